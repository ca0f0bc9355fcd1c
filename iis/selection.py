"""Which head of the grid speaks for a ratio: the best (learning rate, epoch) by the selection accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def select(rows: Sequence[dict[str, Any]], by: str = "best") -> dict[tuple[int, float], dict[str, Any]]:
    """The selected ledger row of every (seed, ratio).

    by="best": the highest top-1 on the selection pictures over learning rates and epochs (the release's rule);
    by="last": the highest at the last epoch. Among equals the smaller learning rate.
    """
    measure = "select_top1" if by == "best" else "last_select_top1"
    chosen: dict[tuple[int, float], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["seed"], row["ratio"], row["learning_rate"])):
        key = (row["seed"], row["ratio"])
        if key not in chosen or row[measure] > chosen[key][measure]:
            chosen[key] = row
    return chosen
