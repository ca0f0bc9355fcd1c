"""How every table and figure is written: Markdown, CSV and LaTeX (booktabs); PNG and PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iis.runtime import write_json, write_text, write_whole
from reproduction.lib.tables import Table, as_csv, as_latex, as_markdown, texts

HANDED_OVER = ".table.json"  # what the report reads


def write_table(folder: Path, name: str, lines: Table, shown: Table | None = None, caption: str = "") -> str:
    """NAME.csv of `lines` (numbers as they are); NAME.md, NAME.tex and, for the report, NAME.table.json of `shown` (as
    people read them; by default the same). The Markdown, which is also returned, ends with the caption."""
    shown = texts(lines if shown is None else shown)
    markdown = as_markdown(shown) + (f"\n\n*{caption}*" if caption else "")
    write_text(folder / f"{name}.csv", as_csv(lines))
    write_text(folder / f"{name}.md", markdown + "\n")
    write_text(folder / f"{name}.tex", as_latex(shown, caption, f"tab:{name}"))
    write_json(folder / f"{name}{HANDED_OVER}", {"caption": caption, "rows": shown.to_dict("records")})
    return markdown


def new_figure(width: float = 7.2, height: float = 4.4, rows: int = 1, columns: int = 1, **settings: Any) -> Any:
    """(figure, axes (rows, columns)) without a screen; inches. Give legends a place outside the axes: `layout` is
    constrained and makes room."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def write_figure(folder: Path, name: str, figure: Any) -> None:
    """NAME.png (150 dpi) and NAME.pdf."""
    for suffix in ("png", "pdf"):
        write_whole(folder / f"{name}.{suffix}", lambda temporary: figure.savefig(temporary, dpi=150))
