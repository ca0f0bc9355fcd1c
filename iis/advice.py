"""Remarks that a ledger deserves: a selection at the edge of the grid, heads that learned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iis.selection import select


def advice(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per remark, for people; none where the ledger deserves none."""
    remarks = []
    selected = list(select(rows).values())
    rates = sorted({row["learning_rate"] for row in rows})
    for rate, side in ((rates[0], "smaller"), (rates[-1], "larger")) if len(rates) > 1 else ():
        at_edge = [row for row in selected if row["learning_rate"] == rate]
        if at_edge:
            remarks.append(f"note: the best learning rate is at the edge of the grid ({rate:g}) for "
                           f"{_places(at_edge)}; a {side} one may do better (--learning_rates)")
    last = [row for row in selected if row["best_epoch"] == row["epochs"]]
    if last:
        remarks.append(f"note: the best epoch is the last one ({last[0]['epochs']}) for {_places(last)}; "
                       "more epochs may do better (--n_epoch)")
    silent = [row for row in selected if row["note"]]
    if silent:
        remarks.append(f"note: {_places(silent)}: {silent[0]['note']}")
    broken = [row for row in rows if not np.isfinite(row["loss"])]
    if broken:
        remarks.append(f"note: the loss of {len(broken)} head(s) diverged ({_places(broken)})")
    return remarks


def _places(rows: Sequence[dict[str, Any]]) -> str:
    """"s = 0.9, 0.95 and the dense head (5 of the heads)"."""
    ratios = sorted({row["ratio"] for row in rows if row["ratio"] >= 0})
    parts = ([f"s = {', '.join(f'{ratio:g}' for ratio in ratios)}"] if ratios else [])
    parts += ["the dense head"] if any(row["ratio"] < 0 for row in rows) else []
    return f"{' and '.join(parts)} ({len(rows)} selected head{'s' if len(rows) > 1 else ''})"
