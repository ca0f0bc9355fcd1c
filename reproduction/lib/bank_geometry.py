"""What a bank's vectors alone say: how many directions they span, and whether another seed finds the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np


def effective_rank(bank_MD: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007): 1 for one direction, at most
    min(M, D)."""
    values = np.linalg.svd(bank_MD, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


class Stability(NamedTuple):
    """Mean |cosine| of the rows of two banks: matched, each row with a partner of its own; of any two rows, which is
    what a pairing at random would have. Representations that all point one way, as after a ReLU, have a large one."""

    matched: float
    any_two: float


def matched_cosine(one_MD: np.ndarray, other_MD: np.ndarray) -> Stability:
    """Rows are paired by the assignment with the largest sum (Hungarian algorithm). They have length 1, or 0 (an empty
    concept: cosine 0); of banks of different size the rows left over count as 0.

    The sign does not matter: a predictor's sparsifier keeps the largest |activation|, and its head turns a flipped
    concept by a weight of the other sign.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = np.abs(np.asarray(one_MD, float) @ np.asarray(other_MD, float).T)  # (M, M)
    matched = cosines[linear_sum_assignment(cosines, maximize=True)].sum() / max(cosines.shape)
    return Stability(float(matched), float(cosines.mean()))


def stability(banks: Sequence[np.ndarray]) -> Stability | None:
    """The means of `matched_cosine` over the pairs of seeds, from a bank (M, D) per seed; None of one seed."""
    pairs = [matched_cosine(*pair) for pair in combinations(banks, 2)]
    return Stability(*np.mean(pairs, axis=0).tolist()) if pairs else None
