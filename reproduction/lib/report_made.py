"""Tables and figures that other scripts have made (NAME.md, NAME.png), as parts of a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from reproduction.lib.page import escape, folded, html_figure, html_table, section

# What a report makes itself: the same twice would only be longer.
OWN = ("arr", "iis_points", "iis_against_accuracy", "report")


WIDEST = 1400  # pixels of a figure, however tall it is
SHOWN = 15  # lines of a table that is not folded


def made_before(folder: Path) -> str:
    """A section per NAME in `folder` with its figure and its table; "" where there is nothing."""
    names = sorted({file.stem for file in folder.glob("*") if file.suffix in (".md", ".png")})
    names = [name for name in names if not re.match(rf"({'|'.join(OWN)})(_|$)", name)]
    tables = [name for name in names if (folder / f"{name}.md").is_file()]
    # A figure belongs to the table whose name begins its own: controls_shapes.png to controls.md.
    parts = {name: [name] if name in tables else [] for name in names if name in tables or not _owner(name, tables)}
    for name in names:
        if (folder / f"{name}.png").is_file():
            parts.setdefault(_owner(name, tables) or name, []).append(name)
    return "".join(_part(folder, name, list(dict.fromkeys(found)), tables) for name, found in parts.items())


def _owner(name: str, tables: list[str]) -> str | None:
    return max((table for table in tables if name == table or name.startswith(f"{table}_")), key=len, default=None)


def _part(folder: Path, name: str, files: list[str], tables: list[str]) -> str:
    title = name.replace("_", " ").capitalize()
    content = ""
    for file in files:
        if (folder / f"{file}.png").is_file():
            alt = f"Figure {file.replace('_', ' ')}" + ("; the table below has its numbers" if name in tables else "")
            with Image.open(folder / f"{file}.png") as image:
                width, side = image.width, max(image.size)
            # 150 dots an inch, as `write_figure` draws, at about their own size on the screen.
            content += html_figure(folder / f"{file}.png", alt, max_side=round(side * min(1, WIDEST / width)),
                                   width=round(width / 1.5))
    if name in tables:
        content += from_markdown((folder / f"{name}.md").read_text(encoding="utf-8"))
    return section(title, content, level=3)


def from_markdown(text: str) -> str:
    """The Markdown that `write_table` writes: tables, headings, and paragraphs (a caption stands between asterisks)."""
    html, block = "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
            continue
        html, block = html + _table(block), []
        stripped = line.strip()
        if stripped.startswith("#"):
            html += f"<h4>{escape(stripped.lstrip('# '))}</h4>"
        elif stripped.startswith("*") and stripped.endswith("*") and len(stripped) > 2:
            html += f'<p class="caption">{escape(stripped.strip("*"))}</p>'
        elif stripped:
            html += f"<p>{escape(stripped)}</p>"
    return html


def _table(block: list[str]) -> str:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in block]
    rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    if not rows:
        return ""
    names: list[Any] = [name or " " * place for place, name in enumerate(rows[0])]  # two empty headings stay two
    made = html_table([dict(zip(names, row, strict=False)) for row in rows[1:]])
    return folded(f"Table of {len(rows) - 1} lines", made) if len(rows) - 1 > SHOWN else made
