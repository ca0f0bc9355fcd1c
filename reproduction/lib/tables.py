"""What pandas lacks for a paper's tables: lists in cells, Markdown and LaTeX's escapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

Table = pd.DataFrame | Sequence[dict[str, Any]]

LATEX = str.maketrans({"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
                       "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
                       "ρ": r"$\rho$", "τ": r"$\tau$", "λ": r"$\lambda$", "∫": r"$\int$", "≥": r"$\ge$",
                       "≤": r"$\le$", "−": "$-$", "×": r"$\times$", "→": r"$\to$", "Δ": r"$\Delta$"})


def _cells(table: Table, function: Callable[[Any], Any]) -> pd.DataFrame:
    """`function` of every cell. Values stay as they are: pandas' own `map` makes 3 beside an empty cell 3.0."""
    table = table.astype(object) if isinstance(table, pd.DataFrame) else pd.DataFrame(list(table), dtype=object)
    rows = [[function(value) for value in row] for row in table.values]
    return pd.DataFrame(rows, columns=table.columns, dtype=object)


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def as_csv(table: Table) -> str:
    """A table as CSV; lists are joined by blanks."""
    return _cells(table, _plain).to_csv(index=False)


def texts(table: Table) -> pd.DataFrame:
    """The cells as text; a missing value is empty."""
    return _cells(_cells(table, _plain), lambda value: "" if pd.isna(value) else str(value))


def as_markdown(table: Table) -> str:
    """A table as Markdown."""
    shown = texts(table)
    rows = [list(shown), ["---"] * len(shown.columns), *shown.values.tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def as_latex(table: Table, caption: str = "", label: str = "") -> str:
    """A table as LaTeX (package booktabs); signs that LaTeX keeps for itself are escaped."""
    shown = _cells(texts(table), lambda text: text.translate(LATEX))
    shown.columns = [name.translate(LATEX) for name in shown]
    return shown.style.hide(axis="index").to_latex(
        hrules=True, position_float="centering", column_format="l" + "r" * (len(shown.columns) - 1),
        caption=caption.translate(LATEX) or None, label=label or None)
