"""How likely chance alone is to give differences between runs that share their seeds.

With few seeds the exact test cannot be small: R seeds have 2^R sign patterns, so its smallest two-sided p is 2 / 2^R
(0.25 for three seeds, 0.0625 for five).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np


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
