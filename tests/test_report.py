"""Pages are escaped, closed and fetch nothing; the report of a real run and of hand-made ledgers."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_sweep import call, made_ledger, trained
from PIL import Image

from iis.embedding_file import load_embeddings, save_embeddings
from IP_training import IP_Prototype_training
from reproduction import report
from reproduction.lib import report_parts
from reproduction.lib.outputs import write_table
from reproduction.lib.page import PAGES, data_uri, kind, render
from reproduction.lib.report_parts import made_before
from reproduction.lib.runs import Source, find_runs


def macro(name, *values):
    return getattr(PAGES.get_template("macros.html").module, name)(*values)


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


def whole(text):
    """A page that is closed, and names nothing outside itself."""
    reader = Closed()
    reader.feed(text)
    assert reader.open == []
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)|https?:|file:|url\(|@import|<script|<link""", text)
    assert all(image.count('alt="') == 1 for image in re.findall(r"<img[^>]*>", text))
    return text


# ---- parts of pages ----


def test_text_is_escaped_wherever_it_goes():
    evil = '<script>"x" & \'y\'</script>'
    for name, *values in (("table", [{evil: evil}], evil), ("listed", [evil]), ("section", evil, "."),
                          ("folded", evil, "."), ("figure", Image.new("RGB", (2, 2)), evil), ("contents", [evil])):
        assert "<script" not in (made := macro(name, *values)) and "&lt;script&gt;&#34;x&#34; &amp; " in made
    assert whole(render("base.html", title=evil)).count("&lt;script&gt;") == 2


@pytest.mark.parametrize(("word", "values"), [
    ("number", ("0.9315 ± 0.0048", -3, "1e-03", "91.73 %", "5.2 min", "1,194")),
    ("short", ("76f83e89f280", "2026-11-21 to 2026-11-22", "resnet20", "3 seeds", None)),
    ("long", ("a sentence that is too long for one line of a table",))])
def test_cells_know_numbers(word, values):
    assert {kind(value) for value in values} == {word}
    assert macro("table", [{"x": value} for value in values]).count(f'<td class="{word}">') == len(values)


def test_tables_headings_and_what_is_empty():
    made = macro("table", [{"a.b": 1, "b": 1}, {"a.b": None, "b": "x"}], "", "what it is")
    assert '<th scope="col" class="number">a.b</th>' in made and '<th scope="col">b</th>' in made
    assert 'aria-label="what it is"' in made and '<td class="short"></td>' in made
    for name, *values in (("table", []), ("listed", []), ("section", "x", " \n"), ("folded", "x", "")):
        assert macro(name, *values).strip() == ""
    title = "Example concepts: M = 64"
    assert 'id="example-concepts-m-64"' in macro("section", title, "x")
    assert 'href="#example-concepts-m-64"' in macro("contents", [title])


def test_images_are_shrunk_keep_their_shape_and_stand_on_white(tmp_path):
    def image_of(uri):
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))

    Image.new("L", (300, 100), 7).save(tmp_path / "wide.png")
    shown = image_of(data_uri(tmp_path / "wide.png", 60))
    assert shown.size == (60, 20) and shown.mode == "RGB" and shown.getpixel((3, 3)) == (7, 7, 7)
    assert image_of(data_uri(Image.new("RGB", (5, 4)), 60)).size == (5, 4)
    assert image_of(data_uri(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    smooth = np.random.default_rng(0).normal(128, 30, (12, 12, 3)).clip(0, 255).astype("uint8")
    assert data_uri(Image.fromarray(smooth).resize((200, 200))).startswith("data:image/jpeg")
    assert data_uri(Image.new("RGB", (200, 200), "red")).startswith("data:image/png")


# ---- the report ----


def test_a_page_of_a_real_run(toy, tmp_path, capsys):
    run, page = trained(IP_Prototype_training, toy, seeds=2, dense_heads_dir=toy / "dense_heads"), tmp_path / "page"
    elements = load_embeddings(toy / "elements.pkl")
    for name in elements.image_paths:
        file = toy / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(file)
    elements.record = {"root": str(toy / "pictures")}
    save_embeddings(toy / "elements.pkl", elements)
    page.mkdir()
    write_table(page, "controls", [{"a": "x & y", "b": 0.5}], caption="What it is.")
    for name in ("controls_toy", "alone", "arr_toy"):  # arr the report draws itself
        Image.new("RGB", (60, 30), "red").save(page / f"{name}.png")
    text = whole(call(report, "--model_root", run, "--save_dir", page, "--concepts", 3).read_text())
    assert "(1 ledger, " in capsys.readouterr().out
    for heading in ("Scores", "Accuracy retention", "Tables and figures", "Example concepts", "Provenance"):
        assert f"<h2>{heading}</h2>" in text and f">{heading}</a>" in text
    assert "IIS against accuracy</h2>" not in text  # one model makes no scatter
    assert text.count('alt="element of concept') == 3 and "3 of 20 concepts" in text
    assert re.search(r"<br>\s*class \d \+\d\.\d\d, \s*class \d -\d\.\d\d</figcaption>", text)  # for and against
    assert "x &amp; y" in text and '<td class="number">0.5</td>' in text and "What it is." in text
    assert re.search(r"Not shown: .*toy", text)  # its validation images are no data set: said, not raised
    # A figure stands with the table whose name begins its own.
    alone, controls = made_before(page)
    assert (alone["title"], alone["rows"], alone["figures"]) == ("Alone", [], [page / "alone.png"])
    assert (controls["title"], controls["figures"]) == ("Controls", [page / "controls_toy.png"])
    assert controls["rows"] == [{"a": "x & y", "b": "0.5"}] and made_before(tmp_path / "nothing") == []


def test_scores_marks_warnings_and_notes_of_hand_made_ledgers(tmp_path):
    """IIS 0.49 by hand; a second model near chance; a third one with a variant of its own."""
    for model, dense, more in (("net", 0.8, {}), ("net_epoch3", 0.22, {}), ("net", 0.8, {"holdout": 0.1})):
        made_ledger(tmp_path / f"{model}{more}", model, dense, dense / 2, spread=0, **more)
    runs = find_runs(Source(model_root=[tmp_path]), draws=20)
    tables = report_parts.score_tables(runs)
    assert list(tables) == ["toy", "toy, along pre-training", "toy, variants"]
    line, = tables["toy"]
    assert line["IIS"].startswith("0.4900 ± 0.0000") and line["dense top-1, %"] == "80.00 ± 0.00"
    assert "variant" not in line and "marks" not in line
    assert "close to chance" in tables["toy, along pre-training"][0]["marks"]
    assert tables["toy, variants"][0]["variant"] == "holdout 0.1"
    (warning,), notes = report_parts.remarks(runs)
    assert warning.startswith("net_epoch3, toy, Prototype, M = 20: the dense head")
    assert notes[0]["runs"] in ("2 of 3", "3 of 3")
    assert report_parts.element_settings(runs) == [{"setting": name, "elements 1": value} for name, value in (
        ("kind", "segments"), ("protocol", "paper"), ("dataset", "toy"))]
    text = whole(call(report, "--model_root", tmp_path, "--save_dir", tmp_path / "page").read_text())
    assert "not at hand" in text and "Not shown" in text and ">close to chance" in text
