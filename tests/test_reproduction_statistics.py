"""Correlations over models and paired differences: against SciPy, plain loops, and by hand."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from reproduction.lib.run_files import balanced_accuracy
from reproduction.lib.statistics import (
    ASSOCIATION,
    DRAWS,
    associate,
    bootstrap_rho,
    division_null,
    estimate,
    heterogeneity_p,
    over_orders,
    paired_difference,
    rank_correlation,
)

X6, Y6 = [0.31, 0.12, 0.55, 0.55, 0.20, 0.90], [0.7, 0.1, 0.4, 0.8, 0.4, 0.9]  # with ties in both
AFTER, BASE = [0.91, 0.93, 0.90, 0.95, 0.92], [0.90, 0.91, 0.905, 0.92, 0.90]


def some(found, *names):
    return [found[name] for name in names]


def test_associations_and_their_exact_null_against_scipy():
    spearman, kendall = stats.spearmanr(X6, Y6), stats.kendalltau(X6, Y6)
    assert some(associate(X6, Y6), "rho", "rho_p", "tau", "tau_p") == pytest.approx([*spearman, *kendall])
    known = stats.permutation_test((Y6,), lambda y: stats.spearmanr(X6, y).statistic, permutation_type="pairings",
                                   n_resamples=np.inf)
    by_size = (np.abs(known.null_distribution) >= known.statistic - 1e-9).mean()  # SciPy doubles a tail instead
    assert some(associate(X6, Y6), "null_p", "null_mean", "null_sd") == pytest.approx(
        [by_size, known.null_distribution.mean(), known.null_distribution.std()], abs=1e-12)


def test_three_models_by_hand():
    # Against ranks 1 2 3, the six orders give ρ = 1, ½, ½, −½, −½, −1: mean 0, two of six as far as 1, six as far as ½;
    # squares 1 + 4 · ¼ + 1 = 3 over all 6.
    ours = associate([1, 2, 3], [10, 20, 30])
    assert some(ours, "rho", "tau", "null_mean", "null_p", "null_sd") == pytest.approx([1, 1, 0, 2 / 6, (3 / 6) ** 0.5],
                                                                                    abs=1e-12)
    half = associate([1, 2, 3], [20, 10, 30])
    assert some(half, "rho", "tau", "null_p") == pytest.approx([0.5, 1 / 3, 1])


def test_many_models_draw_a_seeded_null_near_scipys_p():
    rng = np.random.default_rng(3)
    x = rng.normal(size=30)
    y = 0.35 * x + rng.normal(size=30)
    ours = associate(x, y)
    assert not over_orders(30, lambda orders: orders[:, 0])[1] and over_orders(7, lambda orders: orders[:, 0])[1]
    assert ours == associate(x, y) and ours["null_p"] != associate(x, y, seed=1)["null_p"]
    assert ours["null_p"] == pytest.approx(ours["rho_p"], abs=0.02)
    assert ours["null_sd"] == pytest.approx(1 / np.sqrt(29), rel=0.05)  # variance of ρ under the null: 1 / (n − 1)
    assert associate(np.arange(30), np.arange(30))["null_p"] == pytest.approx(1 / (DRAWS + 1))  # never 0


def test_too_few_or_constant_models_have_no_correlation():
    nothing = dict.fromkeys(ASSOCIATION)
    assert associate([1, 2], [1, 2]) == nothing and division_null([1, 2], [1, 2]) == (None, None, None)
    assert associate([0.98, 0.98, 0.98], [0.7, 0.8, 0.9]) == {**nothing, "dropped": 0}
    four, five = associate([1, 2, 3, 4], [1, 2, 4, 3]), associate([1, 2, 3, 4, 5], [1, 2, 4, 3, 5])
    assert some(four, "low", "high", "dropped") == [None, None, 0] and five["low"] < five["rho"] <= five["high"]


def test_rounding_errors_tie():
    assert associate([0.1 + 0.2, 0.3, 0.5, 0.6], [1, 2, 3, 4]) == associate([0.3, 0.3, 0.5, 0.6], [1, 2, 3, 4])


def test_bootstrap_is_the_percentiles_of_scipys_rho_over_resamples():
    rng = np.random.default_rng(11)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    picks = rng.integers(20, size=(500, 20))
    plain = [stats.spearmanr(x[pick], y[pick]).statistic for pick in picks]
    assert rank_correlation(x[picks], y[picks]) == pytest.approx(plain)
    assert bootstrap_rho(x, y)[0] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.06)
    # One model differs from four equal ones: a resample is constant without it, (4/5)⁵, or of it alone, (1/5)⁵.
    _, dropped = bootstrap_rho(np.array([0.0, 0, 0, 0, 1]), np.arange(5.0))
    assert dropped / DRAWS == pytest.approx(0.8**5 + 0.2**5, abs=0.015)


def test_division_alone_by_hand_and_by_a_plain_loop():
    # Equal areas: area / dense falls wherever dense rises, whatever the order.
    assert division_null([0.6, 0.6, 0.6, 0.6], [0.7, 0.8, 0.85, 0.9]) == pytest.approx((-1, -1, -1))
    area, dense = [0.50, 0.61, 0.55, 0.72], [0.60, 0.70, 0.80, 0.90]
    rhos = [stats.spearmanr([a / d for a, d in zip(area, order, strict=True)], order).statistic
            for order in permutations(dense)]
    assert division_null(area, dense) == pytest.approx((np.mean(rhos), *np.quantile(rhos, [0.025, 0.975])))
    assert division_null(area, [0.8] * 4) == (None, None, None)


def test_paired_differences_against_scipy():
    found, known = paired_difference(AFTER, BASE), stats.ttest_rel(AFTER, BASE)
    assert found.t_p == pytest.approx(known.pvalue) and found.pairs == 5
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval(0.95)))
    exact = stats.permutation_test((AFTER, BASE), lambda a, b, axis: np.mean(a - b, axis=axis), vectorized=True,
                                   permutation_type="samples", n_resamples=np.inf)
    assert found.sign_flip_p == pytest.approx(exact.pvalue) and found.text(3) == "+0.015 [-0.001, +0.031]"
    one = paired_difference([0.5], [0.25])
    assert (one.mean, one.std, one.low, one.t_p, one.text(2)) == (0.25, None, None, None, "+0.25")


@pytest.mark.parametrize(("differences", "p"), [([1, 2, 3], 2 / 8), ([-1, 2, 3], 4 / 8), ([0, 0], 1), ([-2, -2], 0.5)])
def test_sign_flips_by_hand(differences, p):
    # 1, 2, 3: of the 8 patterns only +++ and --- reach |sum| 6; -1, 2, 3: those two and two more reach |sum| 4.
    found = paired_difference(differences, np.zeros(len(differences)))
    assert found.sign_flip_p == p and (found.t_p is None) == (len(set(differences)) == 1)


def test_models_that_differ_more_than_their_seeds():
    values_KR = [[0.1, 0.2, 0.3], [0.2, 0.3, 0.5], [0.4, 0.6, 0.6]]
    assert heterogeneity_p(values_KR) == pytest.approx(stats.f_oneway(*values_KR).pvalue)
    assert heterogeneity_p([[0.1, 0.1], [0.1, 0.1]]) == 1 and heterogeneity_p([[0.1, 0.1], [0.2, 0.2]]) == 0
    assert heterogeneity_p([[0.1, 0.2]]) is None and heterogeneity_p([[0.1], [0.2]]) is None


def test_estimates_over_seeds_and_images():
    """Seeds alone: Student's interval and p. Images alone: tails of the resamples. Both: wider than either."""
    rng = np.random.default_rng(0)
    of_seeds, images = np.array(AFTER) - BASE, 0.01 * rng.standard_normal((2000, 1))
    seeds_alone = estimate(of_seeds, np.tile(of_seeds, (2000, 1)))
    known = paired_difference(AFTER, BASE)
    assert seeds_alone.p == pytest.approx(known.t_p)
    assert (seeds_alone.low, seeds_alone.high) == pytest.approx((known.low, known.high), abs=1e-4)
    both, one = estimate(of_seeds, of_seeds + images), estimate(of_seeds[:1], of_seeds[:1] + images)
    assert both.low < seeds_alone.low and both.high > seeds_alone.high and both.p > seeds_alone.p
    assert one.p == pytest.approx(2 * stats.norm.sf(of_seeds[0] / 0.01), abs=0.03)
    assert (both.seeds, one.seeds, one.text(3)[:6]) == (5, 1, "+0.010")
    assert estimate(np.ones(3), np.ones((999, 3))).p == 2 / 1000 and estimate(np.zeros(2), np.zeros((99, 2))).p == 1


def test_balanced_accuracy_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(4, 300, p=[0.7, 0.2, 0.06, 0.04]), rng.integers(0, 4, 300)
    assert balanced_accuracy(predicted == labels, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert balanced_accuracy(np.array([True, False]), np.array([0, 2])) == 0.5  # class 1 does not occur
