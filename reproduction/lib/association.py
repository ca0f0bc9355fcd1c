"""How strongly two measures of the same models go together, and how sure that is.

Few models say little, and their number decides what may be said: no correlation below three, no bootstrap below five,
and the smallest two-sided p that n models can give is 2 / n! (0.33 for three, 0.083 for four).

IIS = ∫ acc(s) ds / dense divides by the accuracy it is compared with, so some correlation comes from the division
alone. Hence three correlations side by side (`beside_accuracy`), and what division does to curves that have nothing to
do with the dense accuracies they are divided by (`division_null`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np

from iis.runtime import numpy_rng
from iis.statistics import interval

FEWEST, FEWEST_FOR_BOOTSTRAP = 3, 5
EXACT_UP_TO = 5040  # 7!: all orders of seven models
DRAWS = 10_000


@dataclass(frozen=True)
class Association:
    """Spearman ρ and Kendall τ-b of two measures over `models` models; None where a measure is constant.

    rho_p: SciPy's t approximation, far too small for few models (0 at |ρ| = 1); tau_p: SciPy's, exact for few models
    without ties. interval: 95 % percentile bootstrap of ρ over models, None below five models; dropped: resamples in
    which a measure was constant, of DRAWS. null_mean, null_sd, null_p: ρ when one measure is permuted over models, and
    its two-sided p; exact: all n! orders were taken, else DRAWS seeded ones.
    """

    models: int
    rho: float | None
    rho_p: float | None
    tau: float | None
    tau_p: float | None
    interval: tuple[float, float] | None
    dropped: int
    null_mean: float | None
    null_sd: float | None
    null_p: float | None
    exact: bool


@dataclass(frozen=True)
class DivisionNull:
    """ρ(∫ acc(s) ds / permuted dense, permuted dense): mean and central 95 % range over orders of the models."""

    mean: float
    low: float
    high: float
    exact: bool


def associate(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Association | None:
    """The association of x (n,) and y (n,), one value per model each; None for fewer than three models."""
    from scipy.stats import kendalltau, spearmanr

    x_n, y_n = _comparable(x), _comparable(y)
    count = len(x_n)
    if count < FEWEST:
        return None
    exact = factorial(count) <= EXACT_UP_TO
    if np.ptp(x_n) == 0 or np.ptp(y_n) == 0:
        return Association(count, None, None, None, None, None, 0, None, None, None, exact)
    spearman, kendall = spearmanr(x_n, y_n), kendalltau(x_n, y_n)
    rho = float(rank_correlation(x_n[None], y_n[None])[0])
    null = over_orders(count, lambda orders_Bn: rank_correlation(x_n[None], y_n[orders_Bn]), seed)
    as_far = int((np.abs(null) >= abs(rho) - 1e-9).sum())
    # The orders drawn at random lack the one observed, which belongs to its own null (Phipson and Smyth 2010).
    p = as_far / len(null) if exact else (as_far + 1) / (len(null) + 1)
    within, dropped = bootstrap_rho(x_n, y_n, seed)
    return Association(count, rho, float(spearman.pvalue), float(kendall.statistic), float(kendall.pvalue), within,
                       dropped, float(null.mean()), float(null.std(ddof=0 if exact else 1)), p, exact)


def bootstrap_rho(x_n: np.ndarray, y_n: np.ndarray, seed: int = 0) -> tuple[tuple[float, float] | None, int]:
    """95 % percentile interval of ρ over resampled models, and how many of DRAWS resamples were dropped because a
    measure was constant in them; (None, 0) below five models."""
    count = len(x_n)
    if count < FEWEST_FOR_BOOTSTRAP:
        return None, 0
    picks_Bn = numpy_rng(seed, "models", count).integers(count, size=(DRAWS, count))
    rhos = rank_correlation(x_n[picks_Bn], y_n[picks_Bn])
    varied = rhos[np.isfinite(rhos)]
    return interval(varied), len(rhos) - len(varied)


def beside_accuracy(iis: Sequence[float], area: Sequence[float], corrected: Sequence[float], dense: Sequence[float],
                    seed: int = 0) -> dict[str, Association | None]:
    """ρ of dense accuracy with the IIS, with the undivided ∫ acc(s) ds and with the chance-corrected IIS."""
    measures = {"iis": iis, "area": area, "corrected": corrected}
    return {name: associate(values, dense, seed) for name, values in measures.items()}


def division_null(area: Sequence[float], dense: Sequence[float], seed: int = 0) -> DivisionNull | None:
    """What correlation arises from the division alone: the curves acc(s) stay, the dense accuracies are permuted over
    models, IIS = area / permuted dense is computed again and correlated with the permuted dense accuracies.

    An observed ρ(IIS, dense) inside [low, high] needs no other explanation. None for fewer than three models or where
    all dense accuracies are equal.
    """
    area_n, dense_n = _comparable(area), _comparable(dense)
    if len(dense_n) < FEWEST or np.ptp(dense_n) == 0:
        return None
    null = over_orders(len(dense_n), lambda orders_Bn: rank_correlation(np.round(area_n / dense_n[orders_Bn], 12),
                                                                        dense_n[orders_Bn]), seed)
    null = null[np.isfinite(null)]  # without the orders that make all IIS equal
    if not len(null):
        return None
    low, high = interval(null)
    return DivisionNull(float(null.mean()), low, high, factorial(len(dense_n)) <= EXACT_UP_TO)


def over_orders(count: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> np.ndarray:
    """statistic(orders (B, count)) over all orders of `count` models where there are at most 5040, else over DRAWS
    seeded ones. Returns (B,)."""
    if factorial(count) <= EXACT_UP_TO:
        orders_Bn = np.array(list(permutations(range(count))))
    else:
        orders_Bn = numpy_rng(seed, "orders", count).permuted(np.tile(np.arange(count), (DRAWS, 1)), axis=1)
    return statistic(orders_Bn)


def rank_correlation(x_Bn: np.ndarray, y_Bn: np.ndarray) -> np.ndarray:
    """Spearman ρ along the last axis, ties at their mean rank; NaN where a row is constant. (B or 1, n) each; (B,)."""
    from scipy.stats import rankdata

    x_Bn, y_Bn = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(x_Bn, axis=-1), rankdata(y_Bn, axis=-1)))
    with np.errstate(invalid="ignore"):
        return (x_Bn * y_Bn).sum(-1) / np.sqrt((x_Bn**2).sum(-1) * (y_Bn**2).sum(-1))


def _comparable(values: Sequence[float]) -> np.ndarray:
    """Means of the same numbers in another order differ in the last bit and must tie."""
    return np.round(np.asarray(values, float), 12)
