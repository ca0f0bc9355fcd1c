"""Spread over seeds and over images, against numpy and a plain loop."""

import numpy as np
import pytest

from iis.equations import area
from iis.grid import RATIOS
from iis.runtime import numpy_rng
from iis.statistics import bootstrap_iis, interval, mean_std


def test_mean_and_std_by_hand():
    assert mean_std([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.sqrt(7 / 3)))  # squares 16/9 + 1/9 + 25/9, over 2
    assert mean_std([0.5]) == (0.5, None)


def test_bootstrap_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    correct_RSN, dense_RN = rng.random((2, 8, 60)) < 0.6, rng.random((2, 60)) < 0.8
    scores = bootstrap_iis(RATIOS, correct_RSN, dense_RN, draws=5, seed=3)
    picks = numpy_rng(3, "bootstrap", 60).multinomial(60, np.full(60, 1 / 60), size=5)
    for score, counts in zip(scores, picks, strict=True):
        rows = np.repeat(np.arange(60), counts)
        plain = [area(RATIOS, correct_RSN[r][:, rows].mean(1) / dense_RN[r][rows].mean()) for r in range(2)]
        assert score == pytest.approx(np.mean(plain), rel=1e-5)


def test_bootstrap_spread_matches_theory():
    """One head that is right with p = 0.5 at every ratio, over an always-right dense head: IIS = 0.98 · accuracy."""
    correct = np.random.default_rng(1).random(2000) < 0.5
    scores = bootstrap_iis(RATIOS, np.tile(correct, (1, 8, 1)), np.ones((1, 2000), bool), draws=2000)
    assert scores.std() == pytest.approx(0.98 * np.sqrt(0.25 / 2000), rel=0.08)
    low, high = interval(scores)
    assert low < 0.98 * correct.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * scores.std(), rel=0.1)
