"""Controls: choices against their base by hand, on made ledgers, through the script."""

import pytest
from made_sweep import call, made_ledger, rows_of
from scipy import stats

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
    # No checkpoint; the untrained net under its base's name.
    assert set(by_choice) == {("base", "weak"), ("base", "strong"), ("Random bank", "weak"), ("Random bank", "strong"),
                              ("Random bank", "all models"), ("no weights", "strong")}
    base, random = by_choice["base", "strong"], by_choice["Random bank", "strong"]
    unit = 0.98 / 0.96  # of IIS per top-1
    assert float(base["iis"]) == pytest.approx(unit * 0.91)
    assert float(base["iis_std"]) == pytest.approx(unit * 0.01 * 2 ** 0.5)  # 0.92 and 0.90
    assert (base["dense top-1"], base["top-1 at s=0.9"]) == ("0.96", "0.91")
    assert float(base["iis_chance_corrected"]) == pytest.approx(0.98 * 0.71 / 0.76)
    # Differences 0.815 − 0.92 and 0.805 − 0.9 of the strong one, 0.835 − 0.86 and 0.825 − 0.84 of the weak one. Dense
    # heads are right where predictors are, so images add little; t(0.975, 1) = 12.7062.
    assert float(random["difference"]) == pytest.approx(-0.1 * unit)
    assert float(random["difference_low"]) == pytest.approx(unit * (-0.1 - 12.70620 * 0.005), rel=0.05)
    assert float(random["p"]) == pytest.approx(2 * stats.t.sf(0.1 / 0.005, 1), rel=0.1) and random["pairs"] == "2"
    assert float(random["holm_p"]) == pytest.approx(2 * float(random["p"]))  # of two choices of this model
    # F of the two models: means −0.02 and −0.1, both with variance 0.005² · 2: 2 · 0.04² · 2 / 0.00005 = 128.
    both = by_choice["Random bank", "all models"]
    assert float(both["heterogeneity_p"]) == pytest.approx(stats.f.sf(128, 1, 2), rel=1e-4)
    assert (both["difference"], both["kendall_tau"], both["iis"]) == ("", "", "")  # they differ: not pooled
    assert "models differ: not pooled" in text and "<" not in text
    raw = by_choice["no weights", "strong"]
    assert "close to chance" in raw["marks"] and "close to chance" in text


def test_models_that_agree_are_pooled_and_few_are_not_ranked(tmp_path):
    for model, accuracy, lost in (("a", 0.85, 0.05), ("b", 0.80, 0.049), ("c", 0.90, 0.052)):
        made_ledger(tmp_path / "all" / model, model, 0.96, accuracy, seeds=3)
        made_ledger(tmp_path / "all" / f"{model}_random", model, 0.96, accuracy - lost, seeds=3, spread=0.01,
                    bank="Random")
    lines, text = table(tmp_path, "--model_root", tmp_path / "all")
    pooled = next(line for line in lines if line["model"] == "all models")
    # A seed's difference is −lost + 0.005 · (1, −1, −3): its mean is −lost − 0.005, and over models −0.05033 − 0.005.
    assert float(pooled["difference"]) == pytest.approx(-0.98 / 0.96 * (0.151 / 3 + 0.005))
    assert float(pooled["heterogeneity_p"]) > 0.5 and pooled["kendall_tau"] == "1.0" and "| +1.00 |" in text
    error = 0.01 / 3 ** 0.5 * 0.98 / 0.96  # of 0.005, −0.005, −0.015
    assert float(pooled["p"]) == pytest.approx(2 * stats.t.sf(-float(pooled["difference"]) / error, 2), rel=0.05)
    assert float(pooled["holm_p"]) == float(pooled["p"])  # the only choice


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
    assert kendall([1, 2, 3], [5, 5, 5]) is None and kendall([1, 2], [1, 2]) is None  # two models are no ranking
