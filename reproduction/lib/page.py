"""Self-contained HTML pages from reproduction/templates: text is escaped, images are data URIs, nothing is fetched."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from reproduction.lib.points import counted


def render(template: str, **values: Any) -> str:
    """A template with its values."""
    return PAGES.get_template(template).render(values)


def data_uri(image: Path | Image.Image, width: int = 1200) -> str:
    """An image, at most `width` pixels wide, as a data URI: PNG, or JPEG where that takes less than half.

    Charts stay sharp this way and photographs small. Raises `OSError` for what is no image.
    """
    image = (image if isinstance(image, Image.Image) else Image.open(image)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")  # JPEG is opaque
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    files = {}
    for name, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        image.save(out := io.BytesIO(), name, **options)
        files[name] = out.getvalue()
    name = "jpeg" if 2 * len(files["jpeg"]) < len(files["png"]) else "png"
    return f"data:image/{name};base64,{base64.b64encode(files[name]).decode()}"


def screen_width(file: Path) -> int:
    """The width in CSS pixels at which a figure of `write_figure` (150 dots an inch) has about its own size."""
    with Image.open(file) as image:
        return round(image.width / 1.5)


def kind(value: Any) -> str:
    """The class of a table's cell: number ("0.93 ± 0.01", "1e-3", "5.2 s"), short (stays on one line) or long."""
    text = "" if value is None else str(value).strip()
    if re.fullmatch(r"[-+−±–\d.,\s%]*\d(e[-+]?\d+)?( %| s| min| MB)?", text):
        return "number"
    return "short" if len(text) <= 40 else "long"


def numeric(lines: Sequence[dict[str, Any]], name: str) -> bool:
    """Whether all cells of a column that are not empty are numbers."""
    return {kind(line[name]) for line in lines if line[name] not in (None, "")} == {"number"}


def anchor(title: str) -> str:
    """The id of a section: "Example concepts" → example-concepts."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def percent(share: float) -> str:
    """"91.2 %", with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True,
                           undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
PAGES.filters |= {one.__name__: one for one in (data_uri, screen_width, kind, numeric, anchor, percent, counted)}
