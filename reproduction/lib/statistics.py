"""How strongly two measures of the same models go together, and how far runs with common seeds differ.

Few models say little, and their number decides what may be said: no correlation below three, no bootstrap below five,
and the smallest two-sided p that n models can give is 2 / n! (0.33 for three, 0.083 for four). R seeds have 2^R sign
patterns, so the smallest p of sign flips is 2 / 2^R (0.25 for three seeds, 0.0625 for five).

IIS = ∫ acc(s) ds / dense divides by the accuracy it is compared with, so some correlation comes from the division
alone: `division_null` says how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np

from iis.runtime import numpy_rng
from iis.statistics import interval, mean_std

FEWEST, FEWEST_FOR_BOOTSTRAP = 3, 5
EXACT_UP_TO = 5040  # 7!: all orders of seven models
DRAWS = 10_000
ASSOCIATION = ("rho", "rho_p", "low", "high", "dropped", "tau", "tau_p", "null_mean", "null_sd", "null_p")


def associate(x: Sequence[float], y: Sequence[float], seed: int = 0) -> dict[str, float | None]:
    """Association of x (n,) and y (n,), a value per model each, by the names of ASSOCIATION; None below three models,
    where a measure is constant, or where one of its values is None.

    rho, tau: Spearman's ρ and Kendall's τ-b; rho_p: SciPy's t approximation, far too small for few models; tau_p:
    SciPy's, exact for few models without ties. low, high, dropped: of `bootstrap_rho`. null_mean, null_sd, null_p: ρ
    when one measure is permuted over models, and its two-sided p.
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
    (low, high), dropped = bootstrap_rho(x_n, y_n, seed)
    return {"rho": rho, "rho_p": float(spearmanr(x_n, y_n).pvalue), "low": low, "high": high, "dropped": dropped,
            "tau": float(kendall.statistic), "tau_p": float(kendall.pvalue), "null_mean": float(null.mean()),
            "null_sd": float(null.std(ddof=drawn)),
            # Orders drawn at random lack the one observed, which belongs to its own null (Phipson and Smyth 2010).
            "null_p": (as_far + drawn) / (len(null) + drawn)}


def bootstrap_rho(x_n: np.ndarray, y_n: np.ndarray, seed: int = 0) -> tuple[tuple[float | None, float | None], int]:
    """95 % percentile interval of ρ over resampled models ((None, None) below five), and how many of DRAWS resamples
    are dropped because a measure is constant in them."""
    count = len(x_n)
    if count < FEWEST_FOR_BOOTSTRAP:
        return (None, None), 0
    picks_Bn = numpy_rng(seed, "models", count).integers(count, size=(DRAWS, count))
    rhos = rank_correlation(x_n[picks_Bn], y_n[picks_Bn])
    return interval(rhos[np.isfinite(rhos)]), int((~np.isfinite(rhos)).sum())


def division_null(area: Sequence[float], dense: Sequence[float], seed: int = 0
                  ) -> tuple[float | None, float | None, float | None]:
    """Mean, and central 95 % range, of the correlation that division alone gives: area / permuted dense with permuted
    dense, over orders of the models. An observed ρ(IIS, dense) in this range needs no other explanation. None below
    three models, or where all dense accuracies are equal."""
    area_n, dense_n = _comparable(area), _comparable(dense)
    if len(dense_n) < FEWEST or np.ptp(dense_n) == 0:
        return None, None, None
    null, _ = over_orders(len(dense_n), lambda orders_Bn: rank_correlation(_comparable(area_n / dense_n[orders_Bn]),
                                                                           dense_n[orders_Bn]), seed)
    null = null[np.isfinite(null)]  # without the orders that make all IIS equal
    return (float(null.mean()), *interval(null)) if len(null) else (None, None, None)


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


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number, step down (Holm 1979): none is below 0.05 by chance in more than 5 % of
    families, however they depend on each other. None stays None and does not count."""
    order = sorted((k for k, p in enumerate(p_values) if p is not None), key=lambda k: p_values[k])
    corrected, most = list(p_values), 0.0
    for place, k in enumerate(order):
        most = max(most, min(1.0, (len(order) - place) * p_values[k]))
        corrected[k] = most
    return corrected
