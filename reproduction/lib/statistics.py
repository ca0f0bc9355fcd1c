"""How strongly two measures of the same models go together, and how far runs with common seeds differ.

Few models say little, and their number decides what may be said: no correlation below three, no bootstrap below five,
and the smallest two-sided p that n models can give is 2 / n! (0.33 for three, 0.083 for four). R seeds have 2^R sign
patterns, so the smallest p of sign flips is 2 / 2^R (0.25 for three seeds, 0.0625 for five).

IIS = ∫ acc(s) ds / dense divides by the accuracy it is compared with. Division alone is no artefact: where the IIS is
unrelated to dense accuracy, ∫ acc(s) ds is proportional to it, and that is the null of `retention_slope`. But dense
accuracy is measured with error, and the same error in the divisor and on the other axis gives a negative correlation.
It matters between nets that are alike. So `retention_slope` and `rho_within` compare the IIS on one half of the images
with the dense accuracy on the other half; `associate` takes the values as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np

from iis.runtime import numpy_rng
from iis.statistics import interval, mean_std, over_seeds

FEWEST, FEWEST_FOR_BOOTSTRAP = 3, 5  # the second for slopes too: their interval has n − 2 degrees of freedom
FEWEST_SEEDS = 5  # for a claim that two banks differ: three give Student's t two degrees of freedom
EXACT_UP_TO = 5040  # 7!: all orders of seven models
DRAWS = 10_000
HALVINGS = 10  # of the images, at random
ASSOCIATION = ("rho", "rho_p", "low", "high", "dropped", "tau", "tau_p", "null_mean", "null_sd", "null_p")


def associate(x: Sequence[float], y: Sequence[float], seed: int = 0, families: Sequence[str] | None = None
              ) -> dict[str, float | None]:
    """Association of x (n,) and y (n,), a value per model each, by the names of ASSOCIATION; None below three models,
    where a measure is constant, or where one of its values is None.

    rho, tau: Spearman's ρ and Kendall's τ-b; rho_p: SciPy's t approximation, far too small for few models; tau_p:
    SciPy's, exact for few models without ties. low, high, dropped: of `bootstrap_rho`, within families. null_mean,
    null_sd, null_p: ρ when one measure is permuted over all models, and its two-sided p.
    """
    from scipy.stats import kendalltau, spearmanr

    x_n, y_n, found = _comparable(x), _comparable(y), dict.fromkeys(ASSOCIATION)
    if len(x_n) < FEWEST or np.isnan([x_n, y_n]).any():
        return found
    if np.ptp(x_n) == 0 or np.ptp(y_n) == 0:
        return {**found, "dropped": 0}
    kendall, rho = kendalltau(x_n, y_n), float(rank_correlation(x_n[None], y_n[None])[0])
    null, exact = over_orders(len(x_n), lambda orders_Bn: rank_correlation(x_n[None], y_n[orders_Bn]), seed)
    as_far, drawn = int((np.abs(null) >= abs(rho) - 1e-9).sum()), 0 if exact else 1
    (low, high), dropped = bootstrap_rho(x_n, y_n, seed, families)
    return {"rho": rho, "rho_p": float(spearmanr(x_n, y_n).pvalue), "low": low, "high": high, "dropped": dropped,
            "tau": float(kendall.statistic), "tau_p": float(kendall.pvalue), "null_mean": float(null.mean()),
            "null_sd": float(null.std(ddof=drawn)),
            # Orders drawn at random lack the one observed, which belongs to its own null (Phipson and Smyth 2010).
            "null_p": (as_far + drawn) / (len(null) + drawn)}


def bootstrap_rho(x_n: np.ndarray, y_n: np.ndarray, seed: int = 0, families: Sequence[str] | None = None
                  ) -> tuple[tuple[float | None, float | None], int]:
    """95 % percentile interval of ρ over resampled models ((None, None) below five), and how many of DRAWS resamples
    are dropped because a measure is constant in them. families (n,): each model is replaced by one of its family, as
    for replicates whose families were chosen and not drawn."""
    count = len(x_n)
    if count < FEWEST_FOR_BOOTSTRAP:
        return (None, None), 0
    rhos = _rho_of(x_n, y_n, _resampled(_places(families or [""] * count), seed))
    return interval(rhos[np.isfinite(rhos)]), int((~np.isfinite(rhos)).sum())


def _rho_of(x_n: np.ndarray, y_n: np.ndarray, picks_Bn: np.ndarray) -> np.ndarray:
    return rank_correlation(x_n[picks_Bn], y_n[picks_Bn])


def _places(families: Sequence[str]) -> list[np.ndarray]:
    """Where each family stands among the models."""
    return [np.flatnonzero(np.asarray(families) == family) for family in dict.fromkeys(families)]


def _resampled(places: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """DRAWS resamples (B, n) in which each model is replaced by one of its family."""
    count = sum(map(len, places))
    picks_Bn, rng = np.empty((DRAWS, count), int), numpy_rng(seed, "models", count)
    for mine in places:
        picks_Bn[:, mine] = mine[rng.integers(len(mine), size=(DRAWS, len(mine)))]
    return picks_Bn


class Slope(NamedTuple):
    """Of `retention_slope`: b, Student's 95 % interval and two-sided p of b = 1; reliable: share of the variance of log
    dense over models that is not chance of the images. None where nothing can be said."""

    slope: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reliable: float | None = None


def retention_slope(area_nN: np.ndarray, dense_nN: np.ndarray, families: Sequence[str] | None = None, seed: int = 0
                    ) -> Slope:
    """b of log ∫acc ds = a + b · log dense over n models. As IIS = ∫acc ds / dense, b − 1 is the slope of log IIS on
    log dense: b = 1 where the IIS is unrelated to dense accuracy, b < 1 where it falls with it.

    area_nN, dense_nN: what each of N images adds to either (means over seeds; their means over images are ∫acc ds and
    dense). families (n,): b within families, with an intercept of each (n − families − 1 degrees of freedom).

    The images are halved at random, and log dense of one half is the instrument of log dense of the other: a plain
    slope is drawn towards 0, by as much as the share of chance in dense, where the errors of ∫acc ds do not follow
    those of dense. Nothing is said below five models or three degrees of freedom, nor where less than half of the
    variance of log dense is reliable (nets alike but for chance).

    Type I error at 5 %, by simulation (600 draws of `made_models` of the tests each, 2,000 images): 3 to 7 % for 5, 8
    and 15 models, and for 15 in three families, whose dense accuracies spread by 3 or 20 %; 6 to 11 % where they spread
    by 20 % and predictor and dense head err on different images. The plain slope has 19 % for 15 models that spread by
    1.5 %, and a bias of −0.4.
    """
    places = _places(families or [""] * len(area_nN))
    free = len(area_nN) - len(places) - 1
    if len(area_nN) < FEWEST_FOR_BOOTSTRAP or free < FEWEST:
        return Slope()
    area_Hn, dense_Hn = (_centred(np.log(halves(values, seed)), places) for values in (area_nN, dense_nN))
    area_n, dense_n = (_centred(np.log(values.mean(1)), places) for values in (area_nN, dense_nN))
    shared, all_of_it = (dense_Hn * dense_Hn[::-1]).sum(-1).mean(), float(dense_n @ dense_n)
    if shared <= all_of_it / 2:
        return Slope(reliable=max(0.0, float(shared / all_of_it)) if all_of_it else None)
    slope = float((area_Hn * dense_Hn[::-1]).sum(-1).mean() / shared)
    rest_n = area_n - slope * dense_n
    error = float(np.sqrt(rest_n @ rest_n / free * all_of_it) / shared)
    from scipy.stats import t

    half = float(t.ppf(0.975, free)) * error
    return Slope(slope, slope - half, slope + half,
                 float(2 * t.sf(abs(slope - 1) / error, free)) if error else float(slope == 1),
                 min(1.0, float(shared / all_of_it)))


def rho_within(area_nN: np.ndarray, dense_nN: np.ndarray, families: Sequence[str], seed: int = 0
               ) -> dict[str, float | None]:
    """Spearman's ρ of IIS and dense accuracy within families: of what is left when the mean of its family is taken off
    each model, so that a difference between families is none of it. Arguments as of `retention_slope`.

    The IIS is of one half of the images and dense of the other, mean over 2 · HALVINGS. See `rho_of_halves`. Type I
    error at 5 %: 4 to 9 % in 150 simulations each of three families of five.
    """
    area_Hn, dense_Hn = halves(area_nN, seed), halves(dense_nN, seed)
    return rho_of_halves(area_Hn / dense_Hn, dense_Hn[::-1], families, seed)


def rho_of_halves(x_Hn: np.ndarray, y_Hn: np.ndarray, families: Sequence[str], seed: int = 0
                  ) -> dict[str, float | None]:
    """Mean Spearman's ρ within families of H pairs of measures of n models, {"rho", "low", "high", "p"}.

    low, high: 95 % over models resampled within families; p: two-sided, of models permuted within families. None where
    families leave fewer than three degrees of freedom, or a measure is constant within them.
    """
    places, count = _places(families), x_Hn.shape[1]
    if count - len(places) - 1 < FEWEST:
        return dict.fromkeys(("rho", "low", "high", "p"))
    pairs = list(zip(x_Hn, y_Hn, strict=True))

    def left(values_Bn: np.ndarray) -> np.ndarray:
        return _comparable(_centred(values_Bn, places))

    def mean_rho(picks_x_Bn: np.ndarray, picks_y_Bn: np.ndarray) -> np.ndarray:
        return np.mean([rank_correlation(left(x_n[picks_x_Bn]), left(y_n[picks_y_Bn])) for x_n, y_n in pairs], axis=0)

    orders_Bn = np.tile(np.arange(count), (DRAWS, 1))
    same_1n, rng = orders_Bn[:1].copy(), numpy_rng(seed, "orders", count)
    for mine in places:
        orders_Bn[:, mine] = rng.permuted(orders_Bn[:, mine], axis=1)
    rho, null = float(mean_rho(same_1n, same_1n)[0]), mean_rho(same_1n, orders_Bn)
    if not np.isfinite(rho):
        return dict.fromkeys(("rho", "low", "high", "p"))
    picks_Bn = _resampled(places, seed)
    rhos = mean_rho(picks_Bn, picks_Bn)
    low, high = interval(rhos[np.isfinite(rhos)])
    as_far = int((np.abs(null) >= abs(rho) - 1e-9).sum())
    return {"rho": rho, "low": low, "high": high, "p": (as_far + 1) / (DRAWS + 1)}


def halves(values_nN: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of (n, N) values over halves of the N images: (2 · HALVINGS, n), the other half of row h in row −1 − h."""
    count = values_nN.shape[1]
    rng, first = numpy_rng(seed, "halves", count), count // 2
    of_KN = rng.permuted(np.tile(np.arange(count) < first, (HALVINGS, 1)), axis=1)
    return np.concatenate([of_KN @ values_nN.T / first, (~of_KN[::-1]) @ values_nN.T / (count - first)])


def _centred(values_Bn: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """Less the mean of each family, along the last axis."""
    centred_Bn = np.array(values_Bn, float)
    for mine in places:
        centred_Bn[..., mine] -= centred_Bn[..., mine].mean(-1, keepdims=True)
    return centred_Bn


def over_orders(count: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> tuple[np.ndarray, bool]:
    """statistic(orders (B, count)) (B,), and whether these are all orders: so up to 5040, else DRAWS seeded ones."""
    exact = factorial(count) <= EXACT_UP_TO
    orders_Bn = np.array(list(permutations(range(count)))) if exact else numpy_rng(seed, "orders", count).permuted(
        np.tile(np.arange(count), (DRAWS, 1)), axis=1)
    return statistic(orders_Bn), exact


def rank_correlation(x_Bn: np.ndarray, y_Bn: np.ndarray) -> np.ndarray:
    """Spearman ρ (B,) along the last axis of (B or 1, n) each, ties at their mean rank; NaN where a row is constant."""
    from scipy.stats import rankdata

    x_Bn, y_Bn = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(x_Bn, axis=-1), rankdata(y_Bn, axis=-1)))
    with np.errstate(invalid="ignore"):
        return (x_Bn * y_Bn).sum(-1) / np.sqrt((x_Bn**2).sum(-1) * (y_Bn**2).sum(-1))


def _comparable(values: Sequence[float]) -> np.ndarray:
    """Rounded: means of the same numbers in another order differ in the last bit and must tie."""
    return np.round(np.asarray(values, float), 12)


class Difference(NamedTuple):
    """Differences of `pairs` pairs: mean, std (ddof 1), Student's 95 % interval [low, high], and the two-sided p of the
    paired t test and of exact sign flips (needs no normal distribution). None where one pair, or no spread, says
    nothing."""

    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    t_p: float | None = None
    sign_flip_p: float | None = None
    pairs: int | None = None

    def text(self, digits: int = 4) -> str:
        """"+0.0123 [+0.0010, +0.0236]"."""
        within = "" if self.low is None else f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        return f"{self.mean:+.{digits}f}{within}"


def paired_difference(values: Sequence[float], base: Sequence[float]) -> Difference:
    """values − base, pair by pair."""
    from scipy import stats

    differences = _comparable(np.asarray(values, float) - np.asarray(base, float))
    (mean, std), count = mean_std(differences), len(differences)
    if std is None:
        return Difference(mean, pairs=1)
    half = float(stats.t.ppf(0.975, count - 1)) * std / count ** 0.5
    t_p = float(stats.ttest_1samp(differences, 0).pvalue) if np.ptp(differences) else None
    flips = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    return Difference(mean, std, mean - half, mean + half, t_p, float(flips.pvalue), count)


class Estimate(NamedTuple):
    """A mean over `seeds` seeds with its 95 % interval and two-sided p against 0, in which seeds and validation images
    vary together (`iis.statistics.over_seeds`); those of one seed are of the images alone."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int

    def text(self, digits: int = 4) -> str:
        """"+0.0123 [+0.0010, +0.0236]"."""
        return f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def estimate(of_seeds_R: np.ndarray, drawn_BR: np.ndarray) -> Estimate:
    """What each of R seeds has, (R,), and has in B resamples of the images, (B, R): of a difference, for each pair of
    seeds. A resample in which a seed has NaN is left out."""
    drawn_BR = _comparable(drawn_BR[np.isfinite(drawn_BR).all(1)])
    return Estimate(float(np.mean(of_seeds_R)), *interval(over_seeds(drawn_BR)), p_over_seeds(drawn_BR),
                    drawn_BR.shape[1])


def p_over_seeds(drawn_BR: np.ndarray) -> float:
    """Two-sided p against 0: twice the smaller tail of the distribution that `over_seeds` draws from. Student's t is
    integrated and not drawn, so that the p of clear differences is not 0; where all seeds agree exactly, or there is
    one, it is at least 2 / (B + 1)."""
    from scipy import stats

    draws, seeds = drawn_BR.shape
    mean_B = drawn_BR.mean(1)
    error = drawn_BR.mean(0).std(ddof=1) / seeds ** 0.5 if seeds > 1 else 0.0
    if error:
        below = float(stats.t.cdf(-mean_B / error, seeds - 1).mean())
        return 2 * min(below, 1 - below)
    return min(1.0, 2 * min((mean_B <= 0).sum() + 1, (mean_B >= 0).sum() + 1) / (draws + 1))


def heterogeneity_p(differences_KR: Sequence[Sequence[float]]) -> float | None:
    """p of the F test that K models have one mean difference, against the spread of R seeds within models. None where
    there is one model, or one seed, to compare with."""
    from scipy import stats

    values_KR = _comparable(differences_KR)
    if min(values_KR.shape) < 2:
        return None
    if not np.ptp(values_KR, axis=1).any():  # no spread within models
        return float(not np.ptp(values_KR))
    return float(stats.f_oneway(*values_KR).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number, step down (Holm 1979): none is below 0.05 by chance in more than 5 % of
    families, however they depend on each other. None stays None and does not count."""
    order = sorted((k for k, p in enumerate(p_values) if p is not None), key=lambda k: p_values[k])
    corrected, most = list(p_values), 0.0
    for place, k in enumerate(order):
        most = max(most, min(1.0, (len(order) - place) * p_values[k]))
        corrected[k] = most
    return corrected


class Friedman(NamedTuple):
    """Of `friedman`: mean ranks (K,), 1 is best; χ² with its p, None where they are undefined."""

    mean_ranks: np.ndarray
    chi2: float | None = None
    p: float | None = None


def friedman(values_NK: Sequence[Sequence[float]], more_is_better: bool = True) -> Friedman:
    """Do K methods measured on the same N networks differ? The rank of each on every network, 1 for the best, equal
    values at their mean rank, and Friedman's test of equal mean ranks (χ², corrected for ties, K − 1 degrees of
    freedom). None below three methods or two networks, and where all values tie."""
    from scipy.stats import friedmanchisquare, rankdata

    values_NK = _comparable(values_NK)
    ranks_K = rankdata(-values_NK if more_is_better else values_NK, axis=1).mean(0)
    networks, methods = values_NK.shape
    if networks < 2 or methods < 3 or not np.ptp(values_NK, axis=1).any():
        return Friedman(ranks_K)
    return Friedman(ranks_K, *map(float, friedmanchisquare(*values_NK.T)))


def critical_difference(methods: int, networks: int, alpha: float = 0.05) -> float:
    """Nemenyi's: mean ranks of two of K methods over N networks that lie at least so far apart differ, at level alpha
    for all pairs together: q · √(K (K + 1) / 6N), q the studentized range's 1 − alpha quantile over √2 (Demšar, JMLR 7,
    2006)."""
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - alpha, methods, np.inf) / 2 ** 0.5
    return float(q * (methods * (methods + 1) / (6 * networks)) ** 0.5)
