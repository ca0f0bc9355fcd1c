"""Controls: choices against their base by hand, on made ledgers, through the script."""

import pytest
from made_sweep import call, made_ledger, rows_of

from iis.runtime import UserError, write_json
from reproduction import controls_table
from reproduction.controls_table import kendall


def table(tmp_path, *flags):
    folder = call(controls_table, *flags, "--save_dir", tmp_path / "table")
    return rows_of(folder / "controls.csv"), (folder / "controls.md").read_text()


def test_choices_by_hand(tmp_path):
    cells = []
    for model, dense, accuracy, changes, cell in (
            ("weak", 0.96, 0.85, {}, {}), ("strong", 0.96, 0.91, {}, {}), ("strong_epoch1", 0.96, 0.5, {}, {}),
            ("weak", 0.96, 0.83, {"bank": "Random", "spread": 0.005}, {}),
            ("strong", 0.96, 0.81, {"bank": "Random", "spread": 0.005}, {}),
            ("raw_net", 0.22, 0.21, {}, {"variant": "no weights", "base_model": "strong"})):
        folder = made_ledger(tmp_path / str(len(cells)), model, dense, accuracy, **{"spread": 0.01, **changes})
        cells.append({"name": str(len(cells)), "model": model, "variant": "", "folder": str(folder), **cell})
    write_json(tmp_path / "cells.json", cells)
    lines, text = table(tmp_path, "--sweep", tmp_path / "cells.json")
    by_choice = {(line["choice"], line["model"]): line for line in lines}
    assert set(by_choice) == {("base", "weak"), ("base", "strong"), ("Random bank", "weak"), ("Random bank", "strong"),
                              ("no weights", "strong")}  # no checkpoint; the untrained net under its base's name
    base, random = by_choice["base", "strong"], by_choice["Random bank", "strong"]
    unit = 0.98 / 0.96  # of IIS per top-1
    assert float(base["iis"]) == pytest.approx(unit * 0.91)
    assert float(base["iis_std"]) == pytest.approx(unit * 0.01 * 2 ** 0.5)  # 0.92 and 0.90
    assert (base["dense top-1"], base["top-1 at s=0.9"]) == ("0.96", "0.91")
    assert float(base["iis_chance_corrected"]) == pytest.approx(0.98 * 0.71 / 0.76)
    # Differences 0.815 − 0.92 and 0.805 − 0.9: mean −0.1, std 0.01 / √2; t(0.975, 1) = 12.7062.
    assert float(random["difference"]) == pytest.approx(-0.1 * unit)
    assert float(random["difference_low"]) == pytest.approx(unit * (-0.1 - 12.70620 * 0.005))
    assert float(random["kendall_tau"]) == -1  # the weak net leads under Random
    assert random["marks"] == "" and "above the dense head" not in text
    raw = by_choice["no weights", "strong"]
    assert "close to chance" in raw["marks"] and raw["kendall_tau"] == ""  # one model has no ranking
    # Means over models of each seed: (−0.025 − 0.105) / 2 and (−0.015 − 0.095) / 2: −0.06 · unit = −0.06125.
    assert "| -0.061" in text and "strong < weak" in text and "strong: close to chance" in text


def test_without_a_sweep_the_choice_is_read_off_the_ledger(tmp_path, capsys):
    expected = {}
    for number, (choice, changes) in enumerate({
            "base": {}, "sparsifier shrink": {"sparsifier": "shrink"}, "holdout 0.1": {"holdout": 0.1},
            "patches": {"elements": {"kind": "patches"}}, "prototypes first": {"prototypes": "first"},
            "release protocol": {"protocol": "release", "sparsifier": "strict", "prototypes": "first",
                                 "elements": {"kind": "segments", "protocol": "release"}},
            "segments of other": {"elements": {"kind": "segments", "dataset": "other"}},
            "bank seed 2": {"bank_seed": 2}, "5 epochs": {"epochs": 5}}.items()):
        expected[choice] = round(0.9 - 0.01 * number, 2)
        made_ledger(tmp_path / "all" / str(number), "net", 0.96, expected[choice],
                    **{"prototypes": "balanced", **changes})
    made_ledger(tmp_path / "all" / "twin", "net", 0.96, 0.5, prototypes="balanced")
    lines, text = table(tmp_path, "--model_root", tmp_path / "all")
    assert {line["choice"]: round(float(line["top-1 at s=0.9"]), 2) for line in lines} == expected
    assert "all/twin, the same choice as" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_sentence(tmp_path):
    folder = made_ledger(tmp_path / "only", "net", 0.96, 0.9, bank="Random")
    with pytest.raises(UserError, match="nothing to compare: no plain Prototype run"):
        table(tmp_path, "--model_root", folder)
    whole = made_ledger(tmp_path / "whole", "net", 0.96, 0.9)
    for ratio, sentence in (("0.33", "no run here has the ratio 0.33; choose --ratio among 0, 0.1"),
                            ("-1", "the sparsity ratio -1 is outside")):  # -1 is how a ledger marks the dense head
        with pytest.raises(UserError, match=sentence):
            table(tmp_path, "--model_root", whole, f"--ratio={ratio}")
    made_ledger(whole / "other", "net", 0.96, 0.9, sparsifier="shrink", first_seed=2)
    with pytest.raises(UserError, match="share no seed"):
        table(tmp_path, "--model_root", whole)


def test_kendall_by_hand():
    assert kendall([1, 2, 3], [2, 1, 3]) == pytest.approx(1 / 3)  # one of three pairs swapped
    assert kendall([1, 2], [5, 5]) is None and kendall([1], [2]) is None
