"""Order curves against a loop that removes one concept at a time, and the script that tabulates their areas."""

import numpy as np
import pandas as pd
import pytest
import torch
from bank_runs import own_caches  # noqa: F401 - a fixture that every test here takes
from explained_runs import explained_run, features, predictor_of

from iis.cli import parse
from iis.runtime import UserError
from reproduction import faithfulness
from reproduction.faithfulness import CHANGED, ORDERS, bootstrap_means, order_curves
from reproduction.lib import runs


def gain(predictor, x_M, m, logits_C, reference):
    """What concept m gives to the predicted class and not to the reference."""
    first, second = logits_C.topk(2).indices.tolist()
    column_C = predictor.weight_CM[:, m]
    against = column_C[second] if reference == "runner_up" else (column_C.sum() - column_C[first]) / (len(column_C) - 1)
    return float(x_M[m] * (column_C[first] - against))


def removed(predictor, x_M, queue):
    """Logits (C,) after 0, 1, … removals, one at a time."""
    x_M = x_M.clone()
    yield predictor.weight_CM @ x_M + predictor.bias_C
    for m in queue:
        x_M[m] = 0
        yield predictor.weight_CM @ x_M + predictor.bias_C


@pytest.mark.parametrize("reference", ["runner_up", "mean"])
def test_curves_against_a_plain_loop(reference):
    predictor, h_ND = predictor_of(classes=4), features(12)
    labels_N = torch.arange(12) % 4
    x_NM = predictor.interpretations(h_ND)
    found = order_curves(predictor, h_ND, labels_N, reference, rows=5)
    assert found.share_F.tolist() == [0, 0.25, 0.5, 0.75, 1]  # 4 of 8 concepts are kept
    for n in range(12):
        first_C = predictor.logits(x_NM[n:n + 1])[0]
        queue = sorted(x_NM[n].nonzero().flatten().tolist(),
                       key=lambda m: -gain(predictor, x_NM[n], m, first_C, reference))  # noqa: B023
        for o, order in ((list(ORDERS).index("most"), queue), (list(ORDERS).index("least"), queue[::-1])):
            steps = list(removed(predictor, x_NM[n], order))
            probability = [float(logits_C.softmax(0)[first_C.argmax()]) for logits_C in steps]
            assert found.probability_OFN[o, :, n] == pytest.approx(probability, abs=1e-5)
            assert found.right_OFN[o, :, n].tolist() == [int(logits_C.argmax()) == n % 4 for logits_C in steps]
            if o == 0:
                assert found.changed_N[n] == (int(steps[1].argmax()) != int(first_C.argmax()))
    assert 0 < found.changed_N.sum() < 12
    # All orders begin and end alike; the random one lies between the others.
    assert np.ptp(found.probability_OFN[:, [0, -1]], axis=0) == pytest.approx(0, abs=1e-6)
    numbers = found.quantities()
    most, random, least = (numbers[f"probability, {order}"] for order in ORDERS)
    assert most.mean() < random.mean() < least.mean() and (numbers[CHANGED] == found.changed_N).all()
    assert most == pytest.approx((found.probability_OFN[0, :-1] + found.probability_OFN[0, 1:]).sum(0) / 8)  # by hand
    assert numbers["probability, random − most"] == pytest.approx(random - most)


def test_random_orders_are_seeded_and_even():
    """After one of 4 removals the mean over many orders is that over the 4 concepts."""
    predictor, h_ND, labels_N = predictor_of(), features(3), torch.zeros(3, dtype=torch.int64)
    found, again = (order_curves(predictor, h_ND, labels_N, random_orders=400) for _ in range(2))
    assert (found.probability_OFN == again.probability_OFN).all()
    for n, x_M in enumerate(predictor.interpretations(h_ND)):
        singles = []
        for m in x_M.nonzero().flatten().tolist():
            before_C, after_C = removed(predictor, x_M, [m])
            singles.append(float(after_C.softmax(0)[before_C.argmax()]))
        after_one = found.probability_OFN[list(ORDERS).index("random"), 1, n]
        assert after_one == pytest.approx(np.mean(singles), abs=5 * np.std(singles) / 20 + 1e-6)


def test_bootstrap_of_means():
    values_KN = np.random.default_rng(0).normal(size=(2, 400))
    drawn = bootstrap_means(np.concatenate([values_KN, values_KN[:1], np.ones((1, 400))]), draws=2000)
    assert drawn.shape == (2000, 4) and (drawn[:, 0] == drawn[:, 2]).all()  # paired: one resample serves all
    assert drawn[:, 3] == pytest.approx(1)
    assert drawn[:, 0].mean() == pytest.approx(values_KN[0].mean(), abs=0.005)
    assert drawn[:, 0].std() == pytest.approx(values_KN[0].std() / 20, rel=0.1)


def test_the_script(toy, capsys, monkeypatch):
    run, _ = explained_run(toy, "0,0.1,0.3,0.5,0.7,0.9,0.95,0.98")
    monkeypatch.setattr(runs.Run, "marks", ["saturated"])
    settings = parse(faithfulness.Settings, ["--model_root", str(run), "--save_dir", str(toy / "out"), "--draws", "50"])
    out = faithfulness.main(settings)
    table, curves = (pd.read_csv(out / f"faithfulness{part}.csv") for part in ("", "_curves"))
    line, = table.to_dict("records")
    assert (line["kept"], line["seeds"], line["pictures"], line["s"], line["marks"]) == (6, 2, 200, 0.7, "saturated")
    most, random = line["probability, most"], line["probability, random"]
    assert line["probability, most, low"] < most < line["probability, most, high"]
    assert most < random < line["probability, least"] and 0 < line[CHANGED] <= 1
    assert line["probability, random − most"] == pytest.approx(random - most)
    assert len(curves) == 3 * 7  # orders x (6 concepts + 1)
    assert np.trapezoid(curves.query("order == 'most'")["probability"], dx=1 / 6) == pytest.approx(most)
    assert all((out / f"faithfulness.{kind}").stat().st_size for kind in ("md", "tex", "png", "pdf"))
    found, = runs.find_runs(settings)
    drawing = faithfulness.figure(4 * [faithfulness.measure(found, settings)])
    titles = [axis.get_title() for axis in drawing.axes]
    assert len(titles) == 4 and all("toy, toy, Prototype" in title and "(saturated)" in title for title in titles)
    (run / "predictors").rename(run / "away")
    with pytest.raises(UserError, match="no run has predictors"):
        faithfulness.main(settings)
    assert "left out" in capsys.readouterr().out
