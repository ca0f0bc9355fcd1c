"""The report: one page of a real run and of hand-made ledgers, with nothing fetched and nothing left open."""

import json
import re

import pytest
import torch
from bank_runs import own_caches, run  # noqa: F401  (a fixture)
from PIL import Image
from test_iis_computing import hand_made
from test_page import Closed

from iis.results import add_rows
from iis.cli import parse
from iis.runtime import ROOT, UserError
from IP_training import IP_Prototype_training
from reproduction.lib import report_tables
from reproduction.lib.report_images import made_before
from reproduction.lib.runs import find_runs
from reproduction.report import Settings, main


def flags(*words):
    return parse(Settings, [str(word) for word in words])


def whole(text):
    reader = Closed()
    reader.feed(text)
    assert reader.open == []
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "url(" not in text
    return text


@pytest.fixture
def trained(toy):
    """A real run of two seeds, with images of its elements."""
    folder = run(IP_Prototype_training, toy, seeds=2)
    for number in range(80):
        file = toy / "pictures" / f"class {number % 4}" / f"elements_{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (3 * number, 0, 0)).save(file)
    data = torch.load(toy / "elements.pkl", weights_only=True)
    torch.save({**data, "record": {"root": str(toy / "pictures"), "seconds": 4.0}}, toy / "elements.pkl")
    (toy / "pictures" / "complete.json").write_text(json.dumps({"elements": 80, "pictures": 20, "seconds": 180}))
    return folder


def test_a_page_of_a_real_run(trained, tmp_path, capsys):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "controls.md").write_text("| a | b |\n| --- | --- |\n| x & y | 0.5 |\n\n*What it is.*\n")
    Image.new("RGB", (60, 30), "red").save(tmp_path / "page" / "controls.png")
    file = main(flags("--model_root", trained, "--save_dir", tmp_path / "page", "--concepts", 3))
    text = whole(file.read_text())
    assert "(1 ledgers, " in capsys.readouterr().out
    for heading in ("Scores", "Accuracy retention", "Tables and figures", "Example concepts", "Provenance", "Time"):
        assert f"<h2>{heading}</h2>" in text and f">{heading}</a>" in text
    assert "IIS against accuracy</h2>" not in text  # one model makes no scatter
    assert text.count('alt="element of concept') == 3 and "3 of 20 concepts" in text
    assert "x &amp; y" in text and "What it is." in text
    assert re.search(r"Not shown: .*toy", text)  # its validation images are no data set: said, not raised
    assert "80 elements of 20 images" in text and "3.0 min" in text
    assert "3 dense heads" not in text and "6 dense heads" in text and "48 heads in 1 runs" in text
    assert all(image.count('alt="') == 1 for image in re.findall(r"<img[^>]*>", text))


def test_scores_warnings_and_notes_of_hand_made_ledgers(tmp_path):
    """IIS 0.49 by hand; a second model near chance; a third one with a variant of its own."""
    common = {"elements": None, "weights_hash": "abc", "train_hash": "t", "date": "2026-01-02T03:04", "host": "box",
              "seconds": 2}
    for name, more, dense in (("a", {}, 0.8), ("b", {"model": "net_epoch3"}, 0.12), ("c", {"holdout": 0.1}, 0.8)):
        add_rows(tmp_path / name / "results.jsonl", [{**row, **common, **more} for row in hand_made(dense=dense)])
    runs = find_runs(flags("--model_root", tmp_path, "--save_dir", tmp_path), draws=20)
    tables = report_tables.score_tables(runs)
    assert list(tables) == ["toy", "toy, along pre-training", "toy, variants"]
    line, = tables["toy"]
    assert line["IIS"].startswith("0.4900 ± 0.0000") and line["dense top-1, %"] == "80.00 ± 0.00"
    assert "variant" not in line and "warning" not in line
    assert tables["toy, along pre-training"][0]["warning"] == "near chance"
    assert tables["toy, variants"][0]["variant"] == "holdout 0.1"
    warnings, notes = report_tables.remarks(runs)
    assert len(warnings) == 1 and warnings[0].startswith("net_epoch3, toy, Prototype, M = 20: the dense head")
    assert notes[0]["runs"] in ("2 of 3", "3 of 3")
    made, seconds = report_tables.training(runs)
    assert made == [{"data set": "toy", "bank": "Prototype", "runs": 3, "heads": 3 * 48, "epochs": "30", "batch": "",
                     "dates": "2026-01-02", "hosts": "box"}]
    # 2 seeds x 3 rates, with and without holdout (b finds a's): 12 dense heads; 144 others; 2 seconds each.
    assert [(line["what"], line["time"]) for line in seconds] == [
        ("toy: 12 dense heads", "24.0 s"), ("toy: Prototype, 144 heads in 3 runs", "4.8 min")]
    text = whole(main(flags("--model_root", tmp_path, "--save_dir", tmp_path / "page")).read_text())
    assert "not at hand" in text and "Not shown" in text


def test_markdown_becomes_tables_headings_and_captions():
    made = from_markdown("# T\n\n| a |  |  |\n|---|---|---|\n| <b> | 1 | 2 |\nplain\n*c*\n")
    assert "<h4>T</h4>" in made and "<td class=\"short\">&lt;b&gt;</td>" in made and '<p class="caption">c</p>' in made
    assert "<p>plain</p>" in made and made.count("<th ") == 3


def test_a_figure_stands_with_the_table_whose_name_begins_its_own(tmp_path):
    for name in ("controls_shapes.png", "alone.png", "arr_shapes.png"):
        Image.new("RGB", (9, 6)).save(tmp_path / name)
    for name in ("controls", "iis_points"):
        (tmp_path / f"{name}.md").write_text("| a |\n|---|\n| 1 |\n")
    made = made_before(tmp_path)
    assert re.findall("<h3>(.*?)</h3>", made) == ["Alone", "Controls"]  # arr and iis_points the report makes itself
    assert made.index("Controls</h3>") < made.index("Figure controls shapes") < made.index("<table>")
    assert 'width="6"' in made and made_before(tmp_path / "nothing") == ""


def test_bad_flags_are_one_sentence(tmp_path):
    for words, sentence in ((["--model_root", tmp_path], "--save_dir says where"),
                            (["--model_root", tmp_path, "--save_dir", tmp_path], "there is no ledger"),
                            (["--sweep", "no_such_sweep"], "there is no sweep")):
        with pytest.raises(UserError, match=sentence):
            main(flags(*words))
    assert not list(tmp_path.iterdir()) and not (ROOT / "results" / "reproduction" / "no_such_sweep").exists()
