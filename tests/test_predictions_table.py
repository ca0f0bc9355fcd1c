"""Interpretable predictions: paired differences by hand and against SciPy, and the table from made ledgers."""

import csv

import numpy as np
import pytest
from made_sweep import made_ledger, made_sweep
from scipy import stats

from iis.cli import parse
from iis.runtime import UserError
from reproduction import predictions_table as script
from reproduction.predictions_table import accuracy_difference, mcnemar_p


def test_accuracy_difference_by_hand():
    correct = np.array([[1, 1, 0, 0]])
    base = np.array([[1, 0, 1, 1]])  # differences 0, 1, −1, −1: mean −1/4, variance (1/16 + 25/16 + 9/16 + 9/16) / 3
    assert accuracy_difference(correct, base) == pytest.approx((-0.25, (44 / 16 / 3 / 4) ** 0.5))
    # A second seed without any difference halves both.
    both = accuracy_difference(np.vstack([correct, base]), np.vstack([base, base]))
    assert both == pytest.approx((-0.125, (44 / 16 / 3 / 4) ** 0.5 / 2))


def test_accuracy_difference_is_scipys_paired_error():
    rng = np.random.default_rng(0)
    base = rng.random(300) < 0.9
    correct = base ^ (rng.random(300) < 0.1)
    mean, error = accuracy_difference(correct[None], base[None])
    assert mean / error == pytest.approx(stats.ttest_rel(correct.astype(float), base.astype(float)).statistic)


def test_mcnemar_by_hand():
    # Of 5 discordant images 1 is won: p = 2 · (1 + 5) / 2^5.
    correct, base = np.array([1, 0, 0, 0, 0, 1, 0]), np.array([0, 1, 1, 1, 1, 1, 0])
    assert mcnemar_p(correct, base) == pytest.approx(2 * 6 / 32)
    assert mcnemar_p(base, base) == 1


def table(folder, *flags):
    script.main(parse(script.Settings, [*map(str, flags), "--save_dir", str(folder)]))
    return list(csv.DictReader((folder / "predictions.csv").open()))


def test_a_sweep_by_hand(tmp_path):
    made_ledger(tmp_path / "text", "net_a", 0.5, 0.46, bank="Text", elements=None)
    lines = table(tmp_path / "out", "--model_root", tmp_path / "text", made_sweep(tmp_path).parent.parent / "net_a",
                  tmp_path / "random_net_a")
    assert [line["concepts"] for line in lines] == ["textual", "visual", "control"]
    text = lines[0]
    # Hits are the first 465 and 455 of 1000, dense 500: the mean over seeds is 0.46.
    assert (float(text["top1"]), float(text["top1_std"])) == pytest.approx((0.46, 0.01 / 2**0.5))
    assert text["kept"] == "18" and float(text["difference"]) == pytest.approx(-0.04)
    differences = np.r_[np.full(35, -1.0), np.full(10, -0.5), np.zeros(955)]
    assert float(text["difference_error"]) == pytest.approx(differences.std(ddof=1) / 1000**0.5)
    assert float(text["mcnemar_p_largest"]) == pytest.approx(2 * 0.5**35)
    assert text["balanced"] == ""  # no settings.yaml leads to the labels
    shown = (tmp_path / "out" / "predictions.md").read_text()
    assert "| 18 of 20 | 50.0 ± 0.0 | 46.0 ± 0.7 | 100.0 | -4.0 [" in shown and "| ? |" in shown


def test_balanced_accuracy_where_classes_are_uneven(tmp_path):
    from test_controls_table import make_ledger  # class 0 has 80 of 100 images

    [line] = table(tmp_path / "out", "--model_root", make_ledger(tmp_path / "run", "net", [90, 90]))
    assert line["uneven"] == "True" and float(line["balanced"]) == pytest.approx((80 / 80 + 10 / 20) / 2)
    assert float(line["dense_balanced"]) == pytest.approx((1 + 16 / 20) / 2)
    assert "| 75.0 (90.0) |" in (tmp_path / "out" / "predictions.md").read_text()


def test_bad_input(tmp_path):
    made_ledger(tmp_path / "net", "net", 0.5, 0.4)
    with pytest.raises(UserError, match="has no ratio 0.2; it has 0, 0.1"):
        table(tmp_path / "out", "--ratio", 0.2, "--model_root", tmp_path / "net")
    with pytest.raises(UserError, match="outside"):
        table(tmp_path / "out", "--ratio", 1, "--model_root", tmp_path / "net")
