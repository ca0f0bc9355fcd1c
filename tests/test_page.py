"""HTML pages: what is written is escaped, closed, and needs nothing from outside."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from reproduction.lib.page import (
    anchor,
    contents,
    data_uri,
    escape,
    folded,
    html_figure,
    html_list,
    html_table,
    page,
    section,
)


def image_of(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


class Closed(HTMLParser):
    """Fails on a tag that is closed out of turn."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_and_names_nothing_outside():
    body = section("One", html_table([{"a": 1, "b": "x"}], "a < b") + html_list(["c"]))
    document = page("A & B", "<h1>A</h1>" + contents(["One"]) + body)
    reader = Closed()
    reader.feed(document)
    assert reader.open == []
    assert "<title>A &amp; B</title>" in document and 'href="#one"' in document and 'id="one"' in document
    assert not re.search(r'(src|href)="(?!data:|#)', document) and "url(" not in document


def test_text_is_escaped_wherever_it_goes():
    evil = '<script>"x" & \'y\'</script>'
    tile = Image.new("RGB", (2, 2))
    for made in (html_table([{evil: evil}], evil), html_list([evil]), html_figure(tile, evil, evil),
                 section(evil, "."), folded(evil, "."), contents([evil]), page(evil, "")):
        assert "<script" not in made
    assert escape('"&<') == "&quot;&amp;&lt;"


@pytest.mark.parametrize(("value", "kind"), [
    ("0.9315 ± 0.0048", "number"), (-3, "number"), ("1e-03", "number"), ("91.73 %", "number"),
    ("5.2 min", "number"), ("1,194", "number"), ("76f83e89f280", "short"), ("2026-11-21 to 2026-11-22", "short"),
    ("resnet20", "short"), ("3 seeds", "short"), ("a sentence that is too long for one line of a table", "long"),
    (None, "short")])
def test_cells_know_numbers(value, kind):
    assert f'<td class="{kind}">' in html_table([{"x": value}])


def test_the_heading_of_numbers_stands_over_them():
    made = html_table([{"a": 1, "b": 1}, {"a": None, "b": "x"}], label="what it is")
    assert '<th scope="col" class="number">a</th><th scope="col">b</th>' in made and 'aria-label="what it is"' in made


def test_no_lines_and_no_items_give_nothing():
    assert html_table([]) == html_list([]) == section("x", "") == folded("x", "") == ""


def test_images_are_shrunk_and_keep_their_shape(tmp_path):
    Image.new("L", (300, 100), 7).save(tmp_path / "wide.png")
    shown = image_of(data_uri(tmp_path / "wide.png", 60))
    assert shown.size == (60, 20) and shown.mode == "RGB" and shown.getpixel((3, 3)) == (7, 7, 7)
    assert image_of(data_uri(Image.new("RGB", (5, 4)), 60)).size == (5, 4)


def test_transparent_is_white_and_noise_becomes_jpeg():
    assert image_of(data_uri(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    smooth = np.random.default_rng(0).normal(128, 30, (12, 12, 3)).clip(0, 255).astype("uint8")
    assert data_uri(Image.fromarray(smooth).resize((200, 200))).startswith("data:image/jpeg")
    assert data_uri(Image.new("RGB", (200, 200), "red")).startswith("data:image/png")


def test_anchors():
    assert anchor("Example concepts: M = 64") == "example-concepts-m-64"
