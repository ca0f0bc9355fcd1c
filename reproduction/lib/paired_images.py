"""Two heads judged on the same validation images: the difference of their accuracies, and how sure it is."""

from __future__ import annotations

import numpy as np


def accuracy_difference(correct_RN: np.ndarray, base_RN: np.ndarray) -> tuple[float, float]:
    """(mean, standard error) of accuracy − base accuracy, fractions, over R seeds and N images; N at least 2.

    An image's difference, averaged over seeds, is −1 … 1; the error is that of the mean over images. Images that
    both heads get right or wrong tell nothing, so it is smaller than that of two independent accuracies.
    """
    difference_N = (np.asarray(correct_RN, float) - np.asarray(base_RN, float)).mean(0)
    return float(difference_N.mean()), float(difference_N.std(ddof=1) / len(difference_N) ** 0.5)


def mcnemar_p(correct_N: np.ndarray, base_N: np.ndarray) -> float:
    """Exact two-sided McNemar test: of the images that one head alone gets right, are they equally often either's?"""
    from scipy import stats

    correct_N, base_N = np.asarray(correct_N, bool), np.asarray(base_N, bool)
    won, lost = int((correct_N & ~base_N).sum()), int((base_N & ~correct_N).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
