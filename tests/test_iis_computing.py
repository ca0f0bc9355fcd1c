"""Stage 4 through its script: a hand-made ledger, the release's checkpoint names, and what it refuses."""

import json

import numpy as np
import pytest
from conftest import run_script

from iis.grid import DENSE, LEARNING_RATES, RATIOS
from iis.results import add_rows, pack_correct
from iis.summary import summarise

COUNT = 1000


def hand_made(seeds=(0, 1), skip=None, dense=0.8, accuracies=None, classes=10, epochs=30):
    """A ledger whose selected head at ratio s has accuracy dense · (1 − s / 0.98): IIS 0.49 by hand."""
    rows = []
    for seed in seeds:
        for ratio in (DENSE, *RATIOS):
            if ratio == skip:
                continue
            line = dense if ratio == DENSE else dense * (1 - ratio / 0.98)
            top1 = line if accuracies is None or ratio == DENSE else accuracies[RATIOS.index(ratio)]
            for rate in LEARNING_RATES:
                value = round(COUNT * (top1 if rate == 0.01 else 0.9 * top1)) / COUNT  # 0.01 is the best rate
                correct = np.arange(COUNT) < round(COUNT * value)
                rows.append({
                    "seed": seed, "ratio": ratio, "learning_rate": rate, "kept": None if ratio == DENSE else 5,
                    "top1": value, "top5": 1.0, "select_top1": value, "last_top1": value / 2, "last_top5": 0.9,
                    "last_select_top1": value / 2, "best_epoch": 7, "epochs": epochs, "loss": 0.5, "note": None,
                    "hits": pack_correct(correct), "model": "toy", "dataset": "toy", "bank": "Prototype", "num_concepts": 20,
                    "protocol": "paper", "sparsifier": "mask", "width": 12, "holdout": 0.0, "n_val": COUNT,
                    "chance": 1 / classes})
    return rows


def test_summary_by_hand():
    result = summarise(hand_made(), draws=50)
    assert result["iis"]["mean"] == pytest.approx(0.49, abs=1e-3)
    assert result["iis"]["std"] == pytest.approx(0, abs=1e-12)
    assert result["iis"]["normalised"] == pytest.approx(0.5, abs=1e-3)
    # Last epoch: every accuracy halves, the dense one too, so the ratio stays.
    assert result["iis_last"]["mean"] == pytest.approx(0.49, abs=1e-3)
    # (acc − p) / (dense − p) with p = 0.1: ∫ (0.8 t − 0.1) / 0.7 with t from 1 to 0, times 0.98 = 0.42.
    assert result["iis_chance_corrected"]["mean"] == pytest.approx(0.98 * (0.4 - 0.1) / 0.7, abs=2e-3)
    assert [line["learning_rates"] for line in result["table"][:-1]] == [[0.01]] * 8
    assert result["table"][-1]["learning_rates"] == [0.001]  # all equal (0 right): the smallest


def test_a_missing_ratio_is_an_error_that_names_it(tmp_path):
    add_rows(tmp_path / "results.jsonl", hand_made(skip=0.9))
    done = run_script("iis_computing.py", "--model_root", tmp_path)
    assert done.returncode == 2 and "0.9" in done.stderr and "no IIS" in done.stderr
    assert not (tmp_path / "iis.json").exists()


def test_the_script_writes_json_csv_and_image(tmp_path):
    add_rows(tmp_path / "a" / "results.jsonl", hand_made())
    add_rows(tmp_path / "b" / "results.jsonl", hand_made(dense=0.6))
    done = run_script("iis_computing.py", "--model_root", "a", "b", "--save_dir", "both", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "IIS = 0.49" in done.stdout and "± 0.0000" in done.stdout
    for file in ("a/iis.json", "a/iis.csv", "a/iis.png", "b/iis.json", "both/comparison.csv", "both/comparison.png"):
        assert (tmp_path / file).stat().st_size > 100, file
    stored = json.loads((tmp_path / "b" / "iis.json").read_text())
    assert stored["dense"]["mean"] == pytest.approx(0.6) and len(stored["table"]) == 9
    assert (tmp_path / "both" / "comparison.csv").read_text().startswith("model,dataset,bank,num_concepts,protocol")


def test_verdicts():
    chance = summarise(hand_made(dense=0.12), draws=5)
    assert any("mean nothing" in remark for remark in chance["remarks"])
    flat = summarise(hand_made(accuracies=[0.8] * 8), draws=5)
    assert any("saturated" in remark for remark in flat["remarks"])
    assert flat["iis"]["mean"] == pytest.approx(0.98)
    plain = summarise(hand_made(), draws=5)
    assert not any("saturated" in remark or "mean nothing" in remark for remark in plain["remarks"])
    assert any("one seed" in remark for remark in summarise(hand_made(seeds=(0,)), draws=5)["remarks"])
    assert any("last one" in remark for remark in summarise(hand_made(epochs=7), draws=5)["remarks"])


def test_release_checkpoints_give_the_release_number(tmp_path):
    # The best dense head, and a worse one that a directory would list last.
    names = ["standard##0.01##0.842##0.8000##0.9286.pth", "standard##0.1##0.9##0.4000##0.9.pth"]
    for ratio in RATIOS:
        for rate, share in ((0.01, 1.0), (0.1, 0.5)):
            names.append(f"200##{ratio:g}##{rate:g}##0.911##{0.8 * share * (1 - ratio / 0.98):.4f}##0.8511.pth")
    for name in names:
        (tmp_path / name).touch()
    done = run_script("iis_computing.py", "--model_root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "IIS = 0.4900" in done.stdout and "0.8000" in done.stdout
    (tmp_path / names[-1]).unlink()
    (tmp_path / names[-2]).unlink()
    done = run_script("iis_computing.py", "--model_root", tmp_path)
    assert done.returncode == 2 and "0.98" in done.stderr


def test_no_folder_and_no_ledger_are_one_sentence(tmp_path):
    for flags, words in ((["--model_root", tmp_path / "none"], "no folder"), (["--model_root", tmp_path], "no ledger"),
                         (["--model_rot", tmp_path], "--model_root")):
        done = run_script("iis_computing.py", *flags)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
