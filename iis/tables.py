"""Tables as people and programs want them: CSV, Markdown, and numbers with their spread."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any


def as_csv(lines: Sequence[dict[str, Any]]) -> str:
    """A table as CSV; lists are joined by blanks."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: " ".join(map(str, value)) if isinstance(value, list) else value
                         for key, value in line.items()})
    return out.getvalue()


def as_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """A table as Markdown."""
    names = list(lines[0])
    rows = [names, ["---"] * len(names), *([str(line[name]) for name in names] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plus_minus(mean: float, std: float | None, digits: int = 4) -> str:
    """"0.8123 ± 0.0021"; without ± where there is one seed."""
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
