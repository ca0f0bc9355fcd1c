"""Self-contained HTML pages from reproduction/templates: text is escaped, images are data URIs, nothing is fetched."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image, ImageOps

from reproduction.lib.points import counted


def render(template: str, **values: Any) -> str:
    """A template with its values."""
    return PAGES.get_template(template).render(values)


def macro(name: str, *values: Any) -> str:
    """One macro of macros.html."""
    return getattr(PAGES.get_template("macros.html").module, name)(*values)


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
        image = ImageOps.contain(image, (max_side, max_side), Image.Resampling.LANCZOS)
    png, jpeg = _encoded(image, "PNG", optimize=True), _encoded(image, "JPEG", quality=85)
    kind, data = ("jpeg", jpeg) if 2 * len(jpeg) < len(png) else ("png", png)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **settings)
    return out.getvalue()


def kind(value: Any) -> str:
    """The class of a table's cell: number ("0.93 ± 0.01", "1e-3", "5.2 s"), short (stays on one line) or long."""
    text = "" if value is None else str(value).strip()
    if re.fullmatch(r"[-+−±–\d.,\s%]*\d(e[-+]?\d+)?( %| s| min| MB)?", text):
        return "number"
    return "short" if len(text) <= 40 else "long"


def numeric(lines: Sequence[dict[str, Any]], name: str) -> bool:
    """Whether all cells of a column that are not empty are numbers."""
    kinds = {kind(line.get(name)) for line in lines if line.get(name) not in (None, "")}
    return kinds == {"number"}


def anchor(title: str) -> str:
    """The id of a section: "Example concepts" → example-concepts."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def percent(share: float) -> str:
    """"91.2 %", with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


PAGES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True,
                           undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
PAGES.filters |= {one.__name__: one for one in (data_uri, kind, numeric, anchor, percent, counted)}
