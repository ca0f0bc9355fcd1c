"""Self-contained HTML pages: plain elements, one small style sheet, images as data URIs, nothing fetched.

Text is escaped here (`escape`, and inside every function that takes text); only `body`, `content` and what these
functions return is HTML.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

# Dark text on white (contrast above 12 : 1, links above 7 : 1); wide tables scroll in a box of their own.
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; } html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: #fff; color: #1c1c1c;
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #c8c8c8; }
h1, h2, h3, h4 { text-wrap: balance; } a { color: #084c8d; }
nav ul { columns: 16rem; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: .8rem 0; } .scroll:focus { outline: 2px solid #084c8d; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #d8d8d8; }
th { background: #f0f0f0; } .number { text-align: right; white-space: nowrap; } td.short { white-space: nowrap; }
td.long { min-width: 16rem; } @media (max-width: 40rem) { td.short { white-space: normal; } }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .caption { color: #474747; font-size: .9rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; } .tiles figure { margin: 0; width: 8rem; }
.tiles img { width: 100%; border: 1px solid #d8d8d8; }
details { margin: .5rem 0; } summary { cursor: pointer; } code { font-size: .9em; }
.warning { border-left: .3rem solid #b34a00; padding-left: .7rem; }
"""


def escape(text: Any) -> str:
    """Text as HTML shows it as is, also inside quotes."""
    return html.escape(str(text), quote=True)


def page(title: str, body: str, style: str = "") -> str:
    """A whole document. body: HTML; it should start with its own <h1>. style: CSS beside that of all pages."""
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
            "</body>\n</html>\n")


def data_uri(image: Path | Image.Image, max_side: int = 1200) -> str:
    """An image, shrunk to `max_side` pixels, as a data URI: PNG, or JPEG where that takes less than half.

    Charts stay sharp this way and photographs small. Raises `OSError` for what is no image.
    """
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return data_uri(opened.copy(), max_side)
    if image.mode in ("RGBA", "LA", "P", "PA"):  # on white, because JPEG knows no transparency
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB")
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    png, jpeg = _encoded(image, "PNG", optimize=True), _encoded(image, "JPEG", quality=85)
    kind, data = ("jpeg", jpeg) if 2 * len(jpeg) < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **settings)
    return out.getvalue()


def html_figure(image: Path | Image.Image, alt: str, caption: str = "", max_side: int = 1200,
                width: int | None = None) -> str:
    """An image with its text for those who do not see it, and a caption. width: on the screen, in CSS pixels, where
    there is room for it (default: as many as the image has)."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    size = "" if width is None else f' width="{width}"'
    return f'<figure><img src="{data_uri(image, max_side)}" alt="{escape(alt)}"{size}>{below}</figure>'


def html_table(lines: Sequence[dict[str, Any]], caption: str = "", label: str = "") -> str:
    """A table in a box of its own that scrolls sideways; numbers to the right; nothing for no lines.

    label: what a screen reader calls it (default: the caption, else the names of the columns).
    """
    if not lines:
        return ""
    kinds = {name: {_kind(line.get(name)) for line in lines if line.get(name) not in (None, "")} for name in lines[0]}
    head = "".join(f'<th scope="col"{_class("number" if kind == {"number"} else "")}>{escape(name)}</th>'
                   for name, kind in kinds.items())
    rows = "".join("<tr>" + "".join(_cell(line.get(name)) for name in lines[0]) + "</tr>\n" for line in lines)
    below = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    name = escape(label or caption or ", ".join(map(str, lines[0])))
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>{below}")


def _cell(value: Any) -> str:
    return f"<td{_class(_kind(value))}>{escape('' if value is None else value)}</td>"


def _kind(value: Any) -> str:
    """number ("0.93 ± 0.01", "1e-3", "5.2 s"), short (stays on one line) or long."""
    text = "" if value is None else str(value).strip()
    if re.fullmatch(r"[-+−±–\d.,\s%]*\d(e[-+]?\d+)?( %| s| min| MB)?", text):
        return "number"
    return "short" if len(text) <= 40 else "long"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def html_list(items: Sequence[str]) -> str:
    """A list of plain sentences; nothing for none."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def folded(title: str, content: str) -> str:
    """What is shown only to those who ask; nothing without content."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def section(title: str, content: str, level: int = 2) -> str:
    """A part of the page with a heading, and the anchor that `contents` links to; nothing without content."""
    if not content:
        return ""
    return f'<section id="{anchor(title)}">\n<h{level}>{escape(title)}</h{level}>\n{content}\n</section>\n'


def contents(titles: Sequence[str]) -> str:
    """A table of contents of the sections with these titles."""
    links = "".join(f'<li><a href="#{anchor(title)}">{escape(title)}</a></li>' for title in titles)
    return f'<nav aria-label="Contents"><h2>Contents</h2><ul>{links}</ul></nav>\n'


def anchor(title: str) -> str:
    """The id of a section: "Example concepts" → example-concepts."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
