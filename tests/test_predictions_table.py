"""Interpretable predictions: paired differences by hand and against SciPy, and the table from made ledgers."""

import numpy as np
import pandas as pd
import pytest
from made_sweep import call, made_ledger, made_sweep
from scipy import stats

from iis.runtime import UserError
from reproduction import predictions_table as script
from reproduction.lib import run_files
from reproduction.predictions_table import accuracy_difference


def test_accuracy_difference_by_hand_and_against_scipy():
    correct = np.array([[1, 1, 0, 0]])
    base = np.array([[1, 0, 1, 1]])  # differences 0, 1, −1, −1
    assert accuracy_difference(correct, base).mean == -0.25
    # One seed: images alone, the interval of a paired t test.
    rng = np.random.default_rng(0)
    base = rng.random(2000) < 0.9
    correct = base ^ (rng.random(2000) < 0.05)
    known = stats.ttest_rel(correct.astype(float), base.astype(float))
    one = accuracy_difference(correct[None], base[None], draws=4000)
    assert (one.low, one.high) == pytest.approx(tuple(known.confidence_interval(0.95)), abs=1e-3)
    # Seeds that differ among each other while their images are many: Student's interval and p over seeds.
    drawn_RN = np.array([rng.random(20_000) < accuracy for accuracy in (0.80, 0.84, 0.90)])
    known = stats.ttest_1samp(drawn_RN.mean(1) - 1, 0)
    three = accuracy_difference(drawn_RN, np.ones_like(drawn_RN))
    assert (three.low, three.high) == pytest.approx(tuple(known.confidence_interval(0.95)), abs=0.004)
    assert three.p == pytest.approx(known.pvalue, rel=0.02) and three.seeds == 3


def table(folder, *flags):
    """The CSV as read, and the Markdown."""
    call(script, *flags, "--save_dir", folder)
    return pd.read_csv(folder / "predictions.csv").to_dict("records"), (folder / "predictions.md").read_text()


def test_a_sweep_by_hand(tmp_path):
    made_ledger(tmp_path / "text", "net_a", 0.5, 0.46, bank="Text", elements=None)
    made_ledger(tmp_path / "chance", "net_b", 0.22, 0.21)
    made_sweep(tmp_path)
    lines, shown = table(tmp_path / "out", "--model_root", tmp_path / "text", tmp_path / "net_a",
                         tmp_path / "random_net_a", tmp_path / "chance")
    assert [line["concepts"] for line in lines] == ["textual", "visual", "control", "visual"]
    text = lines[0]
    # The first 465 and 455 of 1000 are right, dense 500: the mean over seeds is 0.46.
    assert (text["top1"], text["top1_std"]) == pytest.approx((0.46, 0.01 / 2**0.5))
    assert text["kept"] == 18 and text["difference"] == pytest.approx(-0.04)
    # Of two seeds, −0.035 and −0.045, Student's interval is wide: t(0.975, 1) · 0.005 = 0.0635.
    assert text["difference_high"] - text["difference_low"] == pytest.approx(2 * 0.0635, rel=0.1)
    assert text["difference_p"] == pytest.approx(2 * stats.t.sf(0.04 / 0.005, 1), rel=0.1)
    assert np.isnan(text["balanced"])  # no settings.yaml leads to the labels
    assert "| 18 of 20 | 50.0 ± 0.0 | 46.0 ± 0.7 | 100.0 | -4.0 [" in shown and "| ? |  |" in shown
    assert "close to chance" in lines[3]["marks"] and shown.count("| ? | close to chance") == 1
    for ratio, said in ((0.2, "has no ratio 0.2; it has 0, 0.1"), (1, "outside")):
        with pytest.raises(UserError, match=said):
            table(tmp_path / "out", "--ratio", ratio, "--model_root", tmp_path / "text")


def test_balanced_accuracy_where_classes_are_uneven(tmp_path, monkeypatch):
    made_ledger(tmp_path / "run", "net", 0.9, 0.9, spread=0)
    labels_N = np.repeat([0, 2], [800, 200])  # class 1 has no image; the first 900 images are right
    assert run_files.balanced_accuracy(np.arange(1000) < 900, labels_N) == pytest.approx((1 + 0.5) / 2)
    monkeypatch.setattr(script, "labels_of", lambda run: labels_N)
    lines, shown = table(tmp_path / "out", "--model_root", tmp_path / "run")
    assert lines[0]["uneven"] and (lines[0]["balanced"], lines[0]["dense_balanced"]) == pytest.approx((0.75, 0.75))
    assert "| 75.0 (75.0) |" in shown
    monkeypatch.setattr(script, "labels_of", lambda run: np.arange(1000) % 4)
    assert "| as top-1 |" in table(tmp_path / "out", "--model_root", tmp_path / "run")[1]
