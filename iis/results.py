"""The ledger `results.jsonl`: one row per grid cell, with everything that identifies and measures it.

A row is `{**identity, "seed", "ratio", "learning_rate", **measured, **volatile}`; two runs with one seed agree in all
but `VOLATILE`. One ledger holds one setting (one bank at one M on one data set); a row that is computed again replaces
the old one.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iis.grid import Cell
from iis.runtime import UserError, write_text

LEDGER = "results.jsonl"
VOLATILE = ("seconds", "bank_seconds", "date", "host")


def cell_of(row: dict[str, Any]) -> Cell:
    """The grid cell a row belongs to."""
    return Cell(row["seed"], row["ratio"], row["learning_rate"])


def read_ledger(file: Path) -> list[dict[str, Any]]:
    """All rows, or none where there is no file yet. A damaged line is a `UserError` that names it."""
    file = Path(file)
    if not file.exists() or not file.stat().st_size:
        return []
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # names may hold other line ends
    except UnicodeDecodeError:
        raise UserError(f"{file} is no ledger, it is not even text; delete it and run stage 3 again") from None
    return [_row(file, number, line) for number, line in enumerate(lines, start=1)]


def first_row(file: Path) -> dict[str, Any]:
    """The first row, which has what identifies all of them. Raises `UserError` where there is none."""
    try:
        with open(file, encoding="utf-8") as handle:
            return _row(file, 1, handle.readline())
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{file} is no ledger; run stage 3 first") from None


def _row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        cell_of(row)
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{file}, line {number} is not a ledger row; delete that line and run stage 3 again, "
                        "which trains only what is missing") from None
    return row


def add_rows(file: Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add rows, replacing those of the same cell, and write the ledger whole. Returns all rows, sorted by cell."""
    rows = merged(read_ledger(file), rows)
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old and new rows, sorted by cell; a new row replaces the old one of its cell."""
    by_cell = {cell_of(row): row for row in [*old, *new]}
    return [by_cell[cell] for cell in sorted(by_cell)]


def pack_correct(correct_N: np.ndarray) -> str:
    """Per-image correctness (N,) bool as text: N / 8 bytes, deflated, base64."""
    return base64.b64encode(zlib.compress(np.packbits(correct_N.astype(bool)).tobytes(), 9)).decode()


def unpack_correct(text: str, count: int) -> np.ndarray:
    """The (count,) bool array that `pack_correct` packed. Raises `UserError` where the text is damaged."""
    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    except (ValueError, TypeError, zlib.error):
        raise UserError("the field `hits` of a ledger's row is damaged; delete its results.jsonl and run stage 3 "
                        "again") from None
    if 8 * len(packed) < count:
        raise UserError(f"the field `hits` of a ledger's row holds fewer than its {count} images; delete its "
                        "results.jsonl and run stage 3 again")
    return np.unpackbits(packed, count=count).astype(bool)


def select(rows: Sequence[dict[str, Any]], by: str = "best") -> dict[tuple[int, float], dict[str, Any]]:
    """The selected ledger row of every (seed, ratio).

    by="best": the highest top-1 on the selection images over learning rates and epochs (the release's rule);
    by="last": the highest at the last epoch. Among equals the smaller learning rate.
    """
    measure = "select_top1" if by == "best" else "last_select_top1"
    chosen: dict[tuple[int, float], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["seed"], row["ratio"], row["learning_rate"])):
        key = (row["seed"], row["ratio"])
        if key not in chosen or row[measure] > chosen[key][measure]:
            chosen[key] = row
    return chosen
