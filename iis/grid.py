"""The grid: sparsity ratios x learning rates x seeds, and how many concepts each ratio keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from iis.runtime import UserError

RATIOS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)  # paper, section 3
LEARNING_RATES = (1e-3, 1e-2, 1e-1)  # release


@dataclass(frozen=True, order=True)
class Cell:
    """One head of the grid: an interpretation predictor at `ratio`, or the dense head (ratio -1)."""

    seed: int
    ratio: float
    learning_rate: float

    @property
    def dense(self) -> bool:
        return self.ratio < 0


DENSE = -1.0  # the "ratio" of the dense head, which sees the raw representation


def dropped_count(num_concepts: int, ratio: float) -> int:
    """⌊M·s⌋ as arithmetic means it: 90 · 0.7 is 62.999… in floats and must give 63, hence the 1e-9."""
    return math.floor(num_concepts * ratio + 1e-9)


def kept_count(num_concepts: int, ratio: float) -> int:
    """k = M − ⌊M·s⌋, the number of concepts an interpretation keeps (paper, Eq. 4)."""
    return num_concepts - dropped_count(num_concepts, ratio)


def held_count(rows: int, holdout: float) -> int:
    """How many of the training rows `--holdout` selects on instead of training on them."""
    return round(rows * holdout)


def check_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """Sorted ratios without repeats; `UserError` for one outside [0, 1)."""
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise UserError(f"the sparsity ratio {ratio:g} is outside [0, 1): at 1 no concept would be left")
    return tuple(sorted(set(map(float, ratios))))
