"""Correlations over models and paired differences: against SciPy, plain loops, and by hand."""

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
    estimate,
    halves,
    heterogeneity_p,
    over_orders,
    paired_difference,
    rank_correlation,
    retention_slope,
    rho_within,
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
    assert associate([1, 2], [1, 2]) == nothing
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


# ---- the IIS and the accuracy that it divides by ----


def made_models(rng, count, spread, together, effect=0.0, images=2000):
    """Whether predictor (standing for ∫ acc ds) and dense head are right, (count, images) each. True dense accuracy
    varies by a factor of about 1 ± spread, true IIS by 2 % and, times effect, with dense. together: share of images on
    which both heads find the same difficulty; half of the difficulty is common to all models."""
    dense_n = np.clip(0.7 * np.exp(rng.normal(0, spread, count)), 0.05, 0.98)
    iis_n = 0.9 * np.exp(rng.normal(0, 0.02, count) + effect * np.log(dense_n / 0.7))

    def difficulty():  # the mean of two uniform numbers, turned into one
        mean_nN = (rng.random((1, images)) + rng.random((count, images))) / 2
        return np.where(mean_nN < 0.5, 2 * mean_nN**2, 1 - 2 * (1 - mean_nN)**2)

    hard_nN, other_nN = difficulty(), difficulty()
    same_nN = rng.random((count, images)) < together
    return (np.where(same_nN, hard_nN, other_nN) < (dense_n * iis_n)[:, None]) * 1.0, (hard_nN < dense_n[:, None]) * 1.0


def test_an_exact_law_is_found_and_few_or_equal_models_say_nothing():
    # All images alike: no chance. ∫acc = 0.8 · dense^1.5, exactly.
    dense = np.repeat([[0.4], [0.5], [0.6], [0.8], [0.9]], 10, axis=1)
    found = retention_slope(0.8 * dense**1.5, dense)
    assert (found.slope, found.low, found.high, found.reliable) == pytest.approx((1.5, 1.5, 1.5, 1))
    assert found.p < 1e-6
    assert retention_slope(0.8 * dense[:4], dense[:4]) == (None,) * 5
    equal = retention_slope(0.8 * dense, np.full_like(dense, 0.5))
    assert equal.slope is None and not equal.reliable
    # Families whose level differs: b = 1.5 within them alone.
    six = np.repeat([[0.4], [0.5], [0.6], [0.7], [0.8], [0.9]], 10, axis=1)
    level = np.array([1, 1, 1, 0.5, 0.5, 0.5])[:, None]
    assert retention_slope(level * six**1.5, six, list("aaabbb")).slope == pytest.approx(1.5)
    assert retention_slope(level * six**1.5, six).slope < 1


def test_a_slope_without_chance_is_that_of_scipys_regression():
    rng = np.random.default_rng(2)
    dense_n = rng.uniform(0.5, 0.9, 9)
    area_n = 0.9 * dense_n**0.8 * np.exp(rng.normal(0, 0.05, 9))
    found, known = retention_slope(*(np.repeat(v[:, None], 8, 1) for v in (area_n, dense_n))), stats.linregress(
        np.log(dense_n), np.log(area_n))
    assert found.slope == pytest.approx(known.slope)
    half = stats.t.ppf(0.975, 7) * known.stderr
    assert (found.low, found.high) == pytest.approx((known.slope - half, known.slope + half))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(known.slope - 1) / known.stderr, 7))


def test_halves_are_disjoint_and_whole():
    values = np.arange(14.0).reshape(2, 7)
    of_Hn = halves(values)
    assert of_Hn.shape == (20, 2) and (3 * of_Hn + 4 * of_Hn[::-1])[:10] == pytest.approx(
        np.tile(values.sum(1), (10, 1)))
    assert len(np.unique(of_Hn)) > 10 and np.array_equal(of_Hn, halves(values))


def test_chance_in_the_divisor_makes_no_slope():
    """With 15 nets that differ little, the plain slope falls far below 1 though the IIS is unrelated to accuracy."""
    rng = np.random.default_rng(0)
    ours, plain, rejected = [], [], []
    for _ in range(120):
        area, dense = made_models(rng, 15, 0.03, 0.0)
        found = retention_slope(area, dense)
        plain.append(stats.linregress(np.log(dense.mean(1)), np.log(area.mean(1))).slope)
        if found.slope is not None:
            ours.append(found.slope)
            rejected.append(found.p < 0.05)
    assert len(ours) > 110 and np.mean(plain) < 0.9
    assert np.median(ours) == pytest.approx(1, abs=0.07) and np.mean(rejected) < 0.11
    with_effect = [retention_slope(*made_models(rng, 12, 0.2, 0.8, effect=-0.3)) for _ in range(10)]
    assert all(found.p < 0.01 for found in with_effect)
    assert np.mean([found.slope for found in with_effect]) == pytest.approx(0.7, abs=0.05)


def test_correlation_within_families_by_hand():
    # Between the families the IIS falls, within them it rises.
    dense = np.array([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    iis = np.array([0.7, 0.8, 0.9, 0.2, 0.3, 0.4])
    area, dense = (np.repeat(v[:, None], 6, 1) for v in (iis * dense, dense))
    found = rho_within(area, dense, list("aaabbb"))
    # Differences to the family's mean are −0.1, 0, 0.1 in both families: ranks 1.5 3.5 5.5 twice, ρ = 1. Of 3! · 3!
    # orders within families only one gives 1, and one −1.
    assert found["rho"] == pytest.approx(1) and found["p"] == pytest.approx(2 / 36, abs=0.01)
    assert associate(iis, dense[:, 0])["rho"] < 0
    assert set(rho_within(area, dense, list("aabbcc")).values()) == {None}  # two degrees of freedom
    assert set(rho_within(dense / 2, dense, list("aaabbb")).values()) == {None}  # every IIS is 0.5


def test_resamples_within_families_keep_the_families():
    x = np.array([1, 2, 3, 11, 12, 13.0])
    (low, high), dropped = bootstrap_rho(x, x**2, families=list("aaabbb"))
    assert low == high == 1 and dropped == 0
    (low, _), _ = bootstrap_rho(x, np.array([3, 2, 1, 13, 12, 11.0]), families=list("aaabbb"))
    assert low >= bootstrap_rho(x, np.array([3, 2, 1, 13, 12, 11.0]))[0][0]


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
    undefined = np.vstack([of_seeds + images, [[np.nan, *of_seeds[1:]]]])  # one resample says nothing of one seed
    assert estimate(of_seeds, undefined) == both
    assert estimate(np.ones(3), np.ones((999, 3))).p == 2 / 1000 and estimate(np.zeros(2), np.zeros((99, 2))).p == 1


def test_balanced_accuracy_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(4, 300, p=[0.7, 0.2, 0.06, 0.04]), rng.integers(0, 4, 300)
    assert balanced_accuracy(predicted == labels, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert balanced_accuracy(np.array([True, False]), np.array([0, 2])) == 0.5  # class 1 does not occur
