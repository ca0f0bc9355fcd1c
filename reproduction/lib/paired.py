"""Differences between runs that share their seeds: mean, spread, Student's interval, and how likely chance gives them.

With few seeds the exact test cannot be small: R seeds have 2^R sign patterns, so its smallest two-sided p is 2 / 2^R
(0.25 for three seeds, 0.0625 for five).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from iis.statistics import mean_std


@dataclass(frozen=True)
class Difference:
    """mean and std (ddof 1) of the differences of `count` pairs; interval: 95 %, None where one pair says nothing."""

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" + (f" [{self.interval[0]:+.4f}, {self.interval[1]:+.4f}]" if self.interval else "")


def paired_difference(values: Sequence[float], base: Sequence[float], level: float = 0.95) -> Difference:
    """values − base, pair by pair, with Student's t interval (n − 1 degrees of freedom)."""
    from scipy import stats

    differences = np.asarray(values, float) - np.asarray(base, float)
    mean, std = mean_std(differences)
    if std is None:
        return Difference(mean, None, None, 1)
    half = float(stats.t.ppf((1 + level) / 2, len(differences) - 1)) * std / len(differences) ** 0.5
    return Difference(mean, std, (mean - half, mean + half), len(differences))


def t_test_p(values: Sequence[float], base: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t test; None where the differences do not vary (or there is one)."""
    from scipy import stats

    differences = np.asarray(values, float) - np.asarray(base, float)
    if len(differences) < 2 or np.ptp(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0).pvalue)


def sign_flip_p(values: Sequence[float], base: Sequence[float]) -> float:
    """Two-sided p of the exact permutation test of paired differences: the share of the 2^R sign patterns whose mean
    is at least as far from 0 as the one found. Needs no normal distribution."""
    differences = np.asarray(values, float) - np.asarray(base, float)
    signs_PR = np.array(list(product((1.0, -1.0), repeat=len(differences))))
    means_P = np.abs(signs_PR @ differences)
    return float(np.mean(means_P >= means_P[0] * (1 - 1e-9)))  # the first pattern is the differences as they are
