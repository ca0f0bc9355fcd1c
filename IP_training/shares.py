"""Heads in shares: cells of one seed that train together, on a CPU in a process of their own (iis/processes.py).

Seeds come first, then learning rates, then ratios. Which heads share a process changes a head by rounding at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iis.grid import Cell
from iis.processes import Advance, in_processes, threads_wanted
from iis.runtime import available_cores
from IP_training.banks import Bank, Seed
from IP_training.inputs import Inputs
from IP_training.predictor import Normaliser
from IP_training.train_heads import HeadGroup, Recipe, Trained, fit_grid

EVEN = 0.9  # the part of all processes' time that must be spent at work
LARGE = 50_000  # weights of a predictor; smaller ones gain nothing from a second thread

GroupsOf = Callable[[Sequence[Cell]], list[HeadGroup]]
BankOf = Callable[[Trained], tuple[Bank | None, Normaliser | None]]  # (None, None) of a dense head


@dataclass
class Share:
    """groups_of: makes the heads of `cells`, where they train. bank_of: the bank of a trained one."""

    seed: Seed
    cells: list[Cell]
    groups_of: GroupsOf
    bank_of: BankOf
    resume_file: Path | None = None

    @property
    def dense(self) -> bool:
        """Whether these are dense heads."""
        return self.cells[0].dense


def split(cells: Sequence[Cell], parts: int) -> list[list[Cell]]:
    """Cells in `parts` of nearly equal size, those of a learning rate together."""
    cells = sorted(cells, key=lambda cell: (cell.learning_rate, cell.ratio))
    bounds = [round(len(cells) * part / parts) for part in range(parts + 1)]
    return [cells[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False) if stop > start]


def shares_each(seeds: int, cells: int, jobs: int, most: int = 0) -> int:
    """In how many shares to train `cells` heads of each of `seeds`: the fewest that keep `jobs` processes evenly at
    work. most: heads that the memory of one process holds (0: any number)."""
    least = -(-cells // most) if most else 1
    for count in range(least, cells):
        rounds = -(-seeds * count // jobs)
        if seeds * count >= EVEN * jobs * rounds:
            return count
    return max(1, cells)


def train_shares(shares: Sequence[Share], inputs: Inputs, recipe: Recipe, device: torch.device, jobs: int,
                 weights: int, bar: Any = None) -> Iterator[tuple[Share, list[Trained], float]]:
    """(share, its heads, seconds a head) as the shares end. weights: M x C. bar: advances by an epoch of a head."""
    y_N, y_V = (split.labels_N.to(device) for split in (inputs.train, inputs.val))
    threads = threads_wanted()  # of one process; several have one each
    if weights >= LARGE and "OMP_NUM_THREADS" not in os.environ:
        threads = available_cores()

    def train(share: Share, advance: Advance) -> tuple[list[Trained], float]:
        started, count = time.monotonic(), len(share.cells)
        heads = fit_grid(share.groups_of(share.cells), y_N, y_V, recipe, share.seed.number, share.seed.selection,
                         share.resume_file, lambda epochs: advance(count * epochs))
        return heads, (time.monotonic() - started) / count

    for index, (heads, seconds) in in_processes([partial(train, share) for share in shares], jobs, bar, threads):
        yield shares[index], heads, seconds
