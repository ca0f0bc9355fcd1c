"""Correlations over models against SciPy, plain loops and cases worked out by hand."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from reproduction.lib.association import (
    DRAWS,
    associate,
    beside_accuracy,
    bootstrap_rho,
    division_null,
    rank_correlation,
)

X6, Y6 = [0.31, 0.12, 0.55, 0.55, 0.20, 0.90], [0.7, 0.1, 0.4, 0.8, 0.4, 0.9]  # with ties in both


def test_rho_and_tau_are_scipys():
    ours, spearman, kendall = associate(X6, Y6), stats.spearmanr(X6, Y6), stats.kendalltau(X6, Y6)
    assert (ours.rho, ours.rho_p) == pytest.approx((spearman.statistic, spearman.pvalue))
    assert (ours.tau, ours.tau_p) == pytest.approx((kendall.statistic, kendall.pvalue))
    assert ours.models == 6 and ours.exact


def test_three_models_by_hand():
    # Against ranks 1 2 3, the six orders give ρ = 1, ½, ½, −½, −½, −1: mean 0, two of six as far as 1, six as far as ½.
    ours = associate([1, 2, 3], [10, 20, 30])
    assert (ours.rho, ours.tau, ours.null_mean) == pytest.approx((1, 1, 0), abs=1e-12)
    assert ours.null_p == pytest.approx(2 / 6)
    assert ours.null_sd == pytest.approx(np.sqrt(3 / 6))  # squares 1 + 4 · ¼ + 1 = 3 over all 6; known: 1 / (n − 1)
    half = associate([1, 2, 3], [20, 10, 30])
    assert (half.rho, half.tau, half.null_p) == pytest.approx((0.5, 1 / 3, 1))


def test_exact_null_against_scipys_permutation_test():
    def rho(y):
        return stats.spearmanr(X6, y).statistic

    known = stats.permutation_test((Y6,), rho, permutation_type="pairings", n_resamples=np.inf)
    twice = 2 * min((known.null_distribution >= known.statistic - 1e-9).mean(),
                    (known.null_distribution <= known.statistic + 1e-9).mean())
    by_size = (np.abs(known.null_distribution) >= known.statistic - 1e-9).mean()
    assert associate(X6, Y6).null_p == pytest.approx(by_size)
    assert twice == pytest.approx(known.pvalue)  # SciPy doubles a tail instead; the null is one and the same
    assert associate(X6, Y6).null_sd == pytest.approx(known.null_distribution.std())


def test_many_models_draw_a_seeded_null_near_scipys_p():
    rng = np.random.default_rng(3)
    x = rng.normal(size=30)
    y = 0.35 * x + rng.normal(size=30)
    ours = associate(x, y)
    assert not ours.exact and ours == associate(x, y) and ours.null_p != associate(x, y, seed=1).null_p
    assert ours.null_p == pytest.approx(ours.rho_p, abs=0.02)
    assert ours.null_sd == pytest.approx(1 / np.sqrt(29), rel=0.05)  # variance of ρ under the null: 1 / (n − 1)
    assert associate(np.arange(30), np.arange(30)).null_p == pytest.approx(1 / (DRAWS + 1))  # never 0


def test_no_correlation_below_three_and_no_bootstrap_below_five():
    assert associate([1, 2], [1, 2]) is None and division_null([1, 2], [1, 2]) is None
    four, five = associate([1, 2, 3, 4], [1, 2, 4, 3]), associate([1, 2, 3, 4, 5], [1, 2, 4, 3, 5])
    assert four.interval is None and four.dropped == 0
    assert five.interval is not None and five.interval[0] < five.rho <= five.interval[1]


def test_bootstrap_is_the_percentiles_of_scipys_rho_over_resamples():
    rng = np.random.default_rng(11)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    picks = rng.integers(20, size=(500, 20))
    plain = [stats.spearmanr(x[pick], y[pick]).statistic for pick in picks]
    assert rank_correlation(x[picks], y[picks]) == pytest.approx(plain)
    assert bootstrap_rho(x, y)[0] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.06)


def test_constant_resamples_are_dropped_and_counted():
    # One model differs from four equal ones: a resample is constant without it, (4/5)⁵, or of it alone, (1/5)⁵.
    _, dropped = bootstrap_rho(np.array([0.0, 0, 0, 0, 1]), np.arange(5.0))
    assert dropped / DRAWS == pytest.approx(0.8**5 + 0.2**5, abs=0.015)


def test_a_constant_measure_has_no_correlation():
    ours = associate([0.98, 0.98, 0.98], [0.7, 0.8, 0.9])
    assert ours.models == 3
    assert (ours.rho, ours.tau, ours.rho_p, ours.tau_p, ours.interval, ours.null_p, ours.null_sd) == (None,) * 7


def test_rounding_errors_tie():
    assert associate([0.1 + 0.2, 0.3, 0.5, 0.6], [1, 2, 3, 4]) == associate([0.3, 0.3, 0.5, 0.6], [1, 2, 3, 4])


def test_division_alone_of_one_curve_gives_minus_one():
    # Equal areas: area / dense falls wherever dense rises, whatever the order.
    null = division_null([0.6, 0.6, 0.6, 0.6], [0.7, 0.8, 0.85, 0.9])
    assert (null.mean, null.low, null.high, null.exact) == pytest.approx((-1, -1, -1, True))


def test_division_null_by_a_plain_loop():
    area, dense = [0.50, 0.61, 0.55, 0.72], [0.60, 0.70, 0.80, 0.90]
    rhos = [stats.spearmanr([a / d for a, d in zip(area, order, strict=True)], order).statistic
            for order in permutations(dense)]
    null = division_null(area, dense)
    assert (null.mean, null.low, null.high) == pytest.approx((np.mean(rhos), *np.quantile(rhos, [0.025, 0.975])))
    assert null.mean < -0.3 and division_null(area, [0.8] * 4) is None


def test_three_correlations_side_by_side_can_disagree():
    # Twice the accuracy with 1.5 times the area: the area rises with accuracy, the IIS falls.
    dense, area = np.array([0.4, 0.6, 0.8]), np.array([0.36, 0.48, 0.56])
    found = beside_accuracy(area / dense, area, [0.9, 0.95, 0.92], dense)
    assert {name: one.rho for name, one in found.items()} == pytest.approx({"iis": -1, "area": 1, "corrected": 0.5})
