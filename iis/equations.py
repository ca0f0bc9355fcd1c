"""The equations: accuracy retention rate, the Inherent Interpretability Score, and when neither means anything.

    ARR(s) = acc(s) / acc_dense            IIS = ∫ ARR(s) ds  over the sparsity ratios, 0 to 0.98

All accuracies are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iis.grid import RATIOS
from iis.runtime import UserError


def accuracy_retention(accuracies: np.ndarray, dense: np.ndarray | float) -> np.ndarray:
    """ARR(s): top-1 of the predictor at each ratio over top-1 of the dense head (paper, section 3).

    accuracies: (..., S); dense: (...) or a number. Returns (..., S).
    """
    return np.asarray(accuracies, float) / np.asarray(dense, float)[..., None]


def area(ratios: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Trapezoid of values (..., S) over the ratios (S,), as the release integrates: ARR ≡ 1 gives 0.98."""
    return np.trapezoid(np.asarray(values, float), np.asarray(ratios, float), axis=-1)


def span(ratios: Sequence[float]) -> float:
    """The length the area is taken over; IIS / span is 1 for a curve that never falls."""
    return max(ratios) - min(ratios)


def require_ratios(found: Sequence[float], needed: Sequence[float] = RATIOS, where: str = "the ledger") -> None:
    """A missing ratio means no IIS: it is named, never bridged. Raises `UserError`."""
    missing = [ratio for ratio in needed if not any(np.isclose(ratio, have) for have in found)]
    if missing:
        raise UserError(f"{where} lacks the sparsity ratio(s) {', '.join(f'{ratio:g}' for ratio in missing)}, so there "
                        "is no IIS: start the same stage-3 command again without --ratios (or "
                        "--sparsity_ratio_value), it trains what is missing")


def chance_corrected(accuracies: np.ndarray, dense: np.ndarray | float, chance: float) -> np.ndarray:
    """(acc(s) − p) / (dense − p) with p the largest class share of validation. Shapes as `accuracy_retention`."""
    return (np.asarray(accuracies, float) - chance) / (np.asarray(dense, float)[..., None] - chance)


def standard_error(accuracy: float, count: int) -> float:
    """Binomial standard error of an accuracy over `count` images."""
    return float(np.sqrt(max(accuracy * (1 - accuracy), 0.0) / count))


def too_close_to_chance(dense: float, chance: float, count: int) -> bool:
    """True where ARR means nothing: the dense head is within max(5 points, 3 standard errors) of chance."""
    return dense - chance < max(0.05, 3 * standard_error(dense, count))


def saturated(accuracies: np.ndarray, dense: float, count: int) -> bool:
    """True where every ARR is within one standard error of 1 (two accuracies over `count` images each)."""
    accuracies = np.asarray(accuracies, float)
    retention = accuracies / dense
    relative = (1 - accuracies) / (np.maximum(accuracies, 1e-12) * count) + (1 - dense) / (dense * count)
    return bool(np.all(np.abs(retention - 1) <= retention * np.sqrt(relative)))


def near_ceiling(score: float, length: float, dense: float, count: int) -> bool:
    """True where the IIS is within one standard error of its ceiling or above it, though a single ratio may still fall.

    The standard error is that of an ARR of 1 over `count` images, times the span.
    """
    return length - score <= length * np.sqrt(2) * standard_error(dense, count) / dense


def area_log_k(kept: Sequence[int], values: np.ndarray) -> np.ndarray:
    """Trapezoid of values (..., S) over log k, divided by its length: ∫ ARR d(log k) / log(k_max / k_min), so ARR ≡ 1
    gives 1. kept (S,): the number of concepts k that each ratio keeps. Ours; the same heads as the IIS.

    Most of the ratios, and of the IIS, lie where k is large and ARR nearly flat; here every halving of k counts alike.
    Only values of equal `kept` can be compared. Ratios of equal k (few concepts) keep the same ones, so they are one
    point, the mean of their values. k = 0 (`strict` may keep none) has no logarithm and is left out. A single k gives
    its value, none NaN.
    """
    kept_S, values = np.asarray(kept), np.asarray(values, float)
    counts = np.unique(kept_S[kept_S > 0])
    if not len(counts):
        return np.full(values.shape[:-1], np.nan)
    at_counts = np.stack([values[..., kept_S == count].mean(-1) for count in counts], -1)
    if len(counts) == 1:
        return at_counts[..., 0]
    return np.trapezoid(at_counts, np.log(counts), axis=-1) / np.log(counts[-1] / counts[0])
