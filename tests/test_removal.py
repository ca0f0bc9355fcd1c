"""Order curves against a loop that removes one concept at a time, and the script that tabulates their areas."""

import csv

import numpy as np
import pytest
import torch
from bank_runs import own_caches  # noqa: F401 - a fixture that every test here takes
from explained_runs import explained_run, features, predictor_of

from iis.cli import parse
from iis.runtime import UserError
from reproduction import faithfulness
from reproduction.lib.removal import ORDERS, bootstrap_means, order_curves


def plain_curve(predictor, x_M, label, reference, sign):
    """(probability of the first prediction, rightness) after 0, 1, … removals, one at a time."""
    weight, x_M = predictor.weight_CM, x_M.clone()
    logits_C = weight @ x_M + predictor.bias_C
    first = int(logits_C.argmax())
    kept = [m for m in range(len(x_M)) if x_M[m] != 0]
    queue = sorted(kept, key=lambda m: -sign * gain(predictor, x_M, m, logits_C, reference))
    probability, right = [], []
    for m in [None, *queue]:
        if m is not None:
            x_M[m] = 0
        logits_C = weight @ x_M + predictor.bias_C
        probability.append(float(logits_C.softmax(0)[first]))
        right.append(float(int(logits_C.argmax()) == label))
    return probability, right


def gain(predictor, x_M, m, logits_C, reference):
    """What concept m gives to the predicted class and not to the reference."""
    first, second = logits_C.topk(2).indices.tolist()
    column_C = predictor.weight_CM[:, m]
    against = column_C[second] if reference == "runner_up" else (column_C.sum() - column_C[first]) / (len(column_C) - 1)
    return float(x_M[m] * (column_C[first] - against))


@pytest.mark.parametrize("reference", ["runner_up", "mean"])
def test_curves_against_a_plain_loop(reference):
    predictor, h_ND = predictor_of(classes=4), features(12)
    labels_N = torch.arange(12) % 4
    x_NM = predictor.interpretations(h_ND)
    found = order_curves(predictor, h_ND, labels_N, reference, rows=5)
    assert found.share_F.tolist() == [0, 0.25, 0.5, 0.75, 1]  # 4 of 8 concepts are kept
    for order, sign in (("most", 1), ("least", -1)):
        o = ORDERS.index(order)
        for n in range(12):
            probability, right = plain_curve(predictor, x_NM[n], int(labels_N[n]), reference, sign)
            assert found.probability_OFN[o, :, n] == pytest.approx(probability, abs=1e-5)
            assert found.right_OFN[o, :, n].tolist() == right
    for n in range(12):
        first = predictor.logits(x_NM[n:n + 1])[0]
        left_M = x_NM[n].clone()
        left_M[max(left_M.nonzero().flatten().tolist(), key=lambda m: gain(predictor, left_M, m, first, reference))] = 0
        changed = int(predictor.logits(left_M[None])[0].argmax()) != int(first.argmax())
        assert found.changed_N[n] == changed
    assert 0 < found.changed_N.sum() < 12
    # All orders begin and end alike; the random one lies where a mean of many orders does.
    assert np.ptp(found.probability_OFN[:, [0, -1]], axis=0) == pytest.approx(0, abs=1e-6)
    areas = dict(zip(ORDERS, found.areas()[0].mean(1), strict=True))
    assert areas["most"] < areas["random"] < areas["least"]
    by_hand = (found.probability_OFN[0, :-1] + found.probability_OFN[0, 1:]).sum(0) / 8
    assert found.areas()[0][0] == pytest.approx(by_hand)


def test_random_orders_are_seeded_and_even():
    """After one of 4 removals the mean over many orders is that over the 4 concepts."""
    predictor, h_ND = predictor_of(), features(3)
    labels_N = torch.zeros(3, dtype=torch.int64)
    found = order_curves(predictor, h_ND, labels_N, random_orders=400)
    again = order_curves(predictor, h_ND, labels_N, random_orders=400)
    assert (found.probability_OFN == again.probability_OFN).all()
    x_NM = predictor.interpretations(h_ND)
    for n in range(3):
        first = int(predictor.logits(x_NM)[n].argmax())
        singles = []
        for m in x_NM[n].nonzero().flatten().tolist():
            left_M = x_NM[n].clone()
            left_M[m] = 0
            singles.append(float(predictor.logits(left_M[None])[0].softmax(0)[first]))
        error = np.std(singles) / np.sqrt(400)
        after_one = found.probability_OFN[ORDERS.index("random"), 1, n]
        assert after_one == pytest.approx(np.mean(singles), abs=5 * error + 1e-6)


def test_bootstrap_of_means():
    values_KN = np.random.default_rng(0).normal(size=(2, 400))
    drawn = bootstrap_means(np.concatenate([values_KN, values_KN[:1], np.ones((1, 400))]), draws=2000)
    assert drawn.shape == (2000, 4) and (drawn[:, 0] == drawn[:, 2]).all()  # paired: one resample serves all
    assert drawn[:, 3] == pytest.approx(1)
    assert drawn[:, 0].mean() == pytest.approx(values_KN[0].mean(), abs=0.005)
    assert drawn[:, 0].std() == pytest.approx(values_KN[0].std() / 20, rel=0.1)


def test_the_script(toy, capsys):
    run, _ = explained_run(toy, "0,0.1,0.3,0.5,0.7,0.9,0.95,0.98")
    words = ["--model_root", str(run), "--save_dir", str(toy / "out"), "--draws", "50"]
    out = faithfulness.main(parse(faithfulness.Settings, words))
    with open(out / "faithfulness.csv", encoding="utf-8") as handle:
        (line,) = csv.DictReader(handle)
    assert (line["kept"], line["seeds"], line["pictures"], line["s"]) == ("6", "2", "200", "0.7")
    most, random = float(line["probability, most"]), float(line["probability, random"])
    assert most < random < float(line["probability, least"])
    assert float(line["probability, random − most"]) == pytest.approx(random - most)
    assert float(line["probability, most, low"]) < most < float(line["probability, most, high"])
    assert 0 < float(line["changed by one removal"]) <= 1
    for name in ("faithfulness.md", "faithfulness.tex", "faithfulness.png", "faithfulness.pdf"):
        assert (out / name).stat().st_size
    with open(out / "faithfulness_curves.csv", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 3 * 7  # orders x (6 concepts + 1)
    (run / "predictors").rename(run / "away")
    with pytest.raises(UserError, match="no run has predictors"):
        faithfulness.main(parse(faithfulness.Settings, words))
    assert "left out" in capsys.readouterr().out
