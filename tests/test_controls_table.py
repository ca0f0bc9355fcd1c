"""Controls: choices against their base by hand, on synthetic ledgers with uneven classes, through the script."""

import numpy as np
import pytest
import torch
from made_sweep import call, rows_of
from sklearn.metrics import balanced_accuracy_score

from iis.embedding_file import Embeddings, save_embeddings
from iis.grid import DENSE, RATIOS
from iis.results import add_rows, pack_correct
from iis.runtime import UserError, write_json, write_text
from reproduction import controls_table
from reproduction.controls_table import ranking
from reproduction.lib.class_balance import balanced_accuracy

LABELS = torch.tensor([0] * 80 + [1] * 20)  # 100 images; always naming class 0 is right 80 times


def make_ledger(folder, model, right, bank="Prototype", dense=96, **identity):
    """A ledger whose heads are right on the first `right[seed]` images at every ratio: IIS = 0.98 · right / dense."""
    val = folder.parent / f"{model}_val.pt"
    embeddings = Embeddings(torch.ones(100, 3), LABELS, ["a", "b"], [f"{row}.png" for row in range(100)])
    save_embeddings(val, embeddings)
    rows = []
    for seed, count in enumerate(right):
        for ratio in (DENSE, *RATIOS):
            correct = np.arange(100) < (dense if ratio == DENSE else count)
            top1 = float(correct.mean())
            rows.append({"bank": bank, "num_concepts": 4, "model": model, "dataset": "toy", "protocol": "paper",
                         "sparsifier": "mask", "prototypes": "balanced", "elements": {"kind": "segments"}, "width": 3,
                         "holdout": 0.0, "n_val": 100, "num_classes": 2, "chance": 0.8, "epochs": 30,
                         "val_hash": embeddings.content_hash, "seed": seed, "ratio": ratio, "learning_rate": 0.01,
                         "kept": None, "bank_size": 4, "top1": top1, "top5": 1.0, "best_epoch": 3, "last_top1": top1,
                         "last_top5": 1.0, "select_top1": top1, "last_select_top1": top1, "loss": 0.1, "note": None,
                         "hits": pack_correct(correct), **identity})
    add_rows(folder / "results.jsonl", rows)
    write_text(folder / "settings.yaml", f"{{val_pt: {val}, model_name: {model}, dataset: toy}}")
    return str(folder)


def sweep(tmp_path, *cells):
    """cells.json of (folder, model, bank, variant, base_model) ledgers, and the lines of the table it gives."""
    write_json(tmp_path / "cells.json", [
        {"name": folder, "model": model, "family": "toy", "dataset": "toy", "bank": bank, "variant": variant,
         "flags": {}, "folder": folder, "seconds": 1, "message": None, **({"base_model": base} if base else {})}
        for folder, model, bank, variant, base in cells])
    return table(tmp_path, "--sweep", tmp_path / "cells.json")


def table(tmp_path, *flags):
    folder = call(controls_table, *flags, "--save_dir", tmp_path / "table")
    return rows_of(folder / "controls.csv"), (folder / "controls.md").read_text()


def test_choices_by_hand(tmp_path):
    ledger = lambda name, *args, **changes: make_ledger(tmp_path / name, *args, **changes)  # noqa: E731
    lines, text = sweep(
        tmp_path,
        (ledger("weak", "weak", (84, 86, 85)), "weak", "Prototype", "", None),
        (ledger("strong", "strong", (90, 91, 92)), "strong", "Prototype", "", None),
        (ledger("epoch", "strong_epoch1", (50, 50, 50)), "strong_epoch1", "Prototype", "", None),
        (ledger("weak random", "weak", (82, 83, 84), bank="Random"), "weak", "Random", "", None),
        (ledger("strong random", "strong", (80, 82, 81), bank="Random"), "strong", "Random", "", None),
        (ledger("raw", "raw_net", (81, 81, 81), dense=81), "raw_net", "Prototype", "no weights", "strong"))
    by_choice = {(line["choice"], line["model"]): line for line in lines}
    assert set(by_choice) == {("base", "weak"), ("base", "strong"), ("Random bank", "weak"), ("Random bank", "strong"),
                              ("no weights", "strong")}  # no checkpoint; the untrained net under its base's name
    base = by_choice["base", "strong"]
    assert float(base["iis"]) == pytest.approx(0.98 * 91 / 96) and float(base["iis_std"]) == pytest.approx(0.98 / 96)
    assert float(base["top-1 at s=0.9"]) == pytest.approx(0.91)
    assert float(base["iis_chance_corrected"]) == pytest.approx(0.98 * 11 / 16)  # (91 - 80) / (96 - 80)
    assert float(base["balanced at s=0.9"]) == pytest.approx((1 + 11 / 20) / 2)  # mean of 10, 11, 12 of 20
    assert float(base["dense balanced"]) == pytest.approx((1 + 16 / 20) / 2) and base["even classes"] == "False"
    random = by_choice["Random bank", "strong"]
    # Differences of correct: -10, -9, -11: mean -10, std 1, t(0.975, 2) = 4.3027.
    assert float(random["difference"]) == pytest.approx(-0.98 * 10 / 96)
    assert float(random["difference_low"]) == pytest.approx(0.98 / 96 * (-10 - 4.30265 / 3 ** 0.5))
    assert float(random["kendall_tau"]) == -1  # the weak net leads under Random
    assert random["marks"] == "" and "above the dense head" not in text
    raw = by_choice["no weights", "strong"]
    assert "close to chance" in raw["marks"] and raw["kendall_tau"] == ""  # one model has no ranking
    # Means over models of each seed: (-2-10)/2, (-3-9)/2, (-1-11)/2 are all -6: -0.06125, without spread.
    assert "| -0.061" in text and " [-0.061" in text and ", -0.061" in text
    assert "strong < weak" in text and "dense balanced, %" in text and "strong: close to chance" in text


def test_without_a_sweep_the_choice_is_read_off_the_ledger(tmp_path):
    for name, right, changes in (("base", 90, {}), ("shrunk", 88, {"sparsifier": "shrink"}),
                                 ("held", 87, {"holdout": 0.1}), ("patches", 86, {"elements": {"kind": "patches"}}),
                                 ("release", 85, {"protocol": "release", "sparsifier": "strict",
                                                  "prototypes": "first"}),
                                 ("first", 84, {"prototypes": "first"}),
                                 ("foreign", 82, {"elements": {"kind": "segments", "dataset": "other"}}),
                                 ("fixed", 83, {"bank_seed": 2}), ("short", 81, {"epochs": 5})):
        make_ledger(tmp_path / "all" / name, "net", (right, right), **changes)
    lines, _ = table(tmp_path, "--model_root", tmp_path / "all")
    assert {line["choice"]: round(float(line["top-1 at s=0.9"]), 2) for line in lines} == {
        "base": 0.9, "sparsifier shrink": 0.88, "holdout 0.1": 0.87, "patches": 0.86, "release protocol": 0.85,
        "prototypes first": 0.84, "segments of other": 0.82, "bank seed 2": 0.83, "5 epochs": 0.81}


def test_even_classes_need_no_second_accuracy(tmp_path):
    cells = [(make_ledger(tmp_path / name, "net", (right, right), chance=0.5), "net", "Prototype", variant, None)
             for name, variant, right in (("base", "", 60), ("other", "other choice", 98))]
    text = sweep(tmp_path, *cells)[1]
    assert "balanced" not in text and "net: saturated, above the dense head" in text  # 98 right against 96


def test_labels_that_changed_since_leave_only_top1(tmp_path):
    cells = [(make_ledger(tmp_path / "base", "net", (90, 91)), "net", "Prototype", "", None)]
    save_embeddings(tmp_path / "net_val.pt", Embeddings(torch.randn(100, 3), 1 - LABELS, ["a", "b"],
                                                        [f"{row}.png" for row in range(100)]))
    (line,), text = sweep(tmp_path, *cells)
    assert line["dense top-1"] == "0.96" and line["dense balanced"] == "" and "| - |" in text


def test_what_cannot_be_compared_is_one_sentence(tmp_path):
    cells = [(make_ledger(tmp_path / "only", "net", (90, 91)), "net", "Prototype", "patches", None)]
    with pytest.raises(UserError, match="nothing to compare: no plain Prototype run"):
        sweep(tmp_path, *cells)
    with pytest.raises(UserError, match="name either --sweep NAME or --model_root"):
        table(tmp_path)
    whole = make_ledger(tmp_path / "whole", "net", (90, 91))
    for ratio, sentence in (("0.33", "no run here has the ratio 0.33; choose --ratio among 0, 0.1"),
                        ("-1", "the sparsity ratio -1 is outside")):  # -1 is how a ledger marks the dense head
        with pytest.raises(UserError, match=sentence):
            table(tmp_path, "--model_root", whole, f"--ratio={ratio}")


def test_balanced_accuracy_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(4, 300, p=[0.7, 0.2, 0.06, 0.04]), rng.integers(0, 4, 300)
    assert balanced_accuracy(predicted == labels, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert balanced_accuracy(np.array([True, False]), np.array([0, 2])) == 0.5  # class 1 does not occur


def test_ranking_by_hand():
    assert ranking([1, 2, 3], [2, 1, 3]) == (pytest.approx(1 / 3), [1, 0, 2])  # one of three pairs swapped
    assert ranking([1, 2], [5, 5])[0] is None and ranking([1], [2])[0] is None
