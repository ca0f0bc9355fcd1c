"""Differences between runs that share their seeds: mean, spread and Student's interval of the paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
