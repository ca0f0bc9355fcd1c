"""The equations: accuracy retention rate, the Inherent Interpretability Score, and when neither means anything.

    ARR(s) = acc(s) / acc_dense            IIS = ∫ ARR(s) ds  over the sparsity ratios, 0 to 0.98

All accuracies are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iis.grid import RATIOS
from iis.runtime import UserError

ROUNDING = 1e-12  # of sums of accuracies, which are k / N with N far below 1e12


def accuracy_retention(accuracies: np.ndarray, dense: np.ndarray | float) -> np.ndarray:
    """ARR(s): top-1 of the predictor at each ratio over top-1 of the dense head (paper, section 3).

    accuracies: (..., S); dense: (...) or a number. Returns (..., S); NaN where dense is 0.
    """
    return _ratio(np.asarray(accuracies, float), np.asarray(dense, float)[..., None])


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
    """(acc(s) − p) / (dense − p) with p the largest class share of validation. Shapes as `accuracy_retention`; NaN
    where the dense head is exactly at chance."""
    return _ratio(np.asarray(accuracies, float) - chance, np.asarray(dense, float)[..., None] - chance)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; NaN, without numpy's warning, where below is 0 but for rounding."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=np.abs(below) > ROUNDING)


def standard_error(accuracy: float, count: int) -> float:
    """Binomial standard error of an accuracy over `count` images."""
    return float(np.sqrt(max(accuracy * (1 - accuracy), 0.0) / count))


def too_close_to_chance(dense: float, chance: float, count: int) -> bool:
    """True where ARR means nothing: the dense head is within max(5 points, 3 standard errors) of chance."""
    return dense - chance < max(0.05, 3 * standard_error(dense, count))


def saturated(retention_S: np.ndarray, errors_S: np.ndarray) -> bool:
    """True where every ARR is within one standard error of 1 (`iis.statistics.retention_errors`)."""
    return bool(np.all(np.abs(np.asarray(retention_S) - 1) <= np.asarray(errors_S) + ROUNDING))


def near_ceiling(score: float, length: float, error: float) -> bool:
    """True where the IIS is at most one standard error below its ceiling, though a single ratio may still fall.

    One above the ceiling is not near it: that is a dense head which is too weak (`above_ceiling`).
    """
    return not above_ceiling(score, length) and length - score <= error + ROUNDING


def above_ceiling(score: float, length: float) -> bool:
    """True where predictors do better than the dense head, on the mean over ratios."""
    return score > length + ROUNDING


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
