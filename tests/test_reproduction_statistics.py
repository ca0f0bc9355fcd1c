"""Correlations over models, paired differences and variance components: against SciPy, plain loops, and by hand."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from iis.runtime import UserError
from reproduction.lib.run_files import balanced_accuracy
from reproduction.lib.statistics import (
    ASSOCIATION,
    DRAWS,
    associate,
    bootstrap_rho,
    division_null,
    over_orders,
    paired_difference,
    rank_correlation,
)
from reproduction.variance_shares import components, mean_squares, share_intervals, simulate

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


# ---- variance components ----


def test_two_way_components_by_hand():
    # Rows (banks) 1 3 | 5 9: mean 4.5. Bank means 2, 7; head means 3, 6; rest 1 - 2 - 3 + 4.5 = 0.5 up to sign.
    # MS bank = 2 · (2.5² + 2.5²) = 25, MS head = 2 · (1.5² + 1.5²) = 9, MS rest = 4 · 0.25 = 1.
    scores = np.array([[[1.0, 3.0], [5.0, 9.0]]])
    assert mean_squares(scores) == pytest.approx({"bank": 25, "head": 9, "bank × head": 1})
    found = components(scores)
    assert found.variance == pytest.approx({"bank": 12, "head": 4, "bank × head": 1}) and found.negative == ()
    assert found.shares == pytest.approx({"bank": 12 / 17, "head": 4 / 17, "bank × head": 1 / 17})
    # Pure interaction: both main effects have mean square 0, so their estimates are -MS / 2: given as 0, and named.
    found = components(np.array([[[1.0, -1.0], [-1.0, 1.0]]]))
    assert found.negative == ("bank", "head") and found.variance == {"bank": 0, "head": 0, "bank × head": 4}
    assert np.isnan(list(components(np.ones((2, 2, 2))).shares.values())).all()
    with pytest.raises(UserError, match="at least 2 banks and 2 heads"):
        components(np.zeros((1, 1, 3)))


def test_mean_squares_are_those_of_nested_linear_models():
    """Each mean square is the drop in the residual sum of squares when its dummies join the model (least squares)."""
    S, B, H = 3, 4, 5
    scores = np.random.default_rng(1).standard_normal((S, B, H))
    s, b, h = (index.ravel() for index in np.indices((S, B, H)))

    def residual(*labels):
        columns = np.concatenate([label[:, None] == np.unique(label) for label in labels], axis=1).astype(float)
        fit = columns @ np.linalg.lstsq(columns, scores.ravel(), rcond=None)[0]
        return ((scores.ravel() - fit) ** 2).sum()

    one, bank, both = np.zeros_like(s), s * B + b, s * H + h
    assert mean_squares(scores) == pytest.approx({
        "stage-1 sample": (residual(one) - residual(s)) / (S - 1),
        "bank": (residual(s) - residual(bank)) / (S * (B - 1)),
        "head": (residual(one) - residual(h)) / (H - 1),
        "stage-1 sample × head": (residual(s, h) - residual(both)) / ((S - 1) * (H - 1)),
        "bank × head": residual(bank, both) / (S * (B - 1) * (H - 1))})


def test_components_of_simulated_scores_and_their_intervals():
    """Unbiased: over many draws the mean of the estimates is the truth; here with all sources large."""
    truth = {"stage-1 sample": 4.0, "bank": 3.0, "head": 2.0, "stage-1 sample × head": 1.0, "bank × head": 0.5}
    rng = np.random.default_rng(0)
    found = [components(simulate(truth, (12, 6, 12), rng)).variance for _ in range(400)]
    for source, value in truth.items():
        estimates = [variance[source] for variance in found]
        assert np.mean(estimates) == pytest.approx(value, abs=4 * np.std(estimates) / 400 ** 0.5), source
    one = components(simulate({"bank": 3.0, "head": 1.0, "bank × head": 1.0}, (1, 40, 40), np.random.default_rng(0)))
    wide, narrow = (share_intervals(one, (1, size, size), draws=300)["bank"] for size in (4, 40))
    assert narrow[0] < one.shares["bank"] < narrow[1] and narrow[1] - narrow[0] < wide[1] - wide[0]


def test_balanced_accuracy_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(4, 300, p=[0.7, 0.2, 0.06, 0.04]), rng.integers(0, 4, 300)
    assert balanced_accuracy(predicted == labels, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert balanced_accuracy(np.array([True, False]), np.array([0, 2])) == 0.5  # class 1 does not occur
