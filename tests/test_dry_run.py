"""--dry_run: every stage tells shapes, disk, memory and time from a measurement, and makes nothing."""

import re

import numpy as np
import pytest
from bank_runs import flags_of, own_caches  # noqa: F401 - a fixture
from conftest import run_script
from PIL import Image

from extractor import patch_extractor, segment_extractor, visual_element_emb_extractor
from iis.cli import ScriptParser, disk, duration, size
from iis.tally import tally
from IP_training import IP_Bank_training, IP_End2End_training


@pytest.fixture
def place(tmp_path):
    """12 images of two classes in in/."""
    for number in range(12):
        file = tmp_path / "in" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return tmp_path


def everything(folder):
    return sorted(file for file in folder.rglob("*"))


def plans_of(told):
    """{what: {name: text}} of the plans printed."""
    plans = {}
    for line in told.splitlines():
        if line.startswith("dry run: "):
            latest = plans.setdefault(line.removeprefix("dry run: "), {})
        elif line.startswith("  "):
            name, text = line.split(":", 1)
            latest[name.strip()] = text.strip()
    return plans


def test_for_people():
    assert [size(1), size(1536), size(2.5e9)] == ["1 B", "1.5 kB", "2.5 GB"]
    assert [duration(0.5), duration(89), duration(90), duration(5400), duration(3 * 86400)] == [
        "0.5 s", "89 s", "1.5 minutes", "1.5 hours", "3 days"]


def test_a_disk_that_is_too_small_is_told(tmp_path):
    assert "NOT ENOUGH" in disk(1e18, tmp_path / "not" / "there")
    assert "NOT" not in disk(1, tmp_path)


@pytest.mark.parametrize("script, elements", [(segment_extractor, None), (patch_extractor, 16)])
def test_stage_1(place, script, elements, capsys):
    before = everything(place)
    script.main(script.parser().settings(["--data_root", str(place / "in"), "--save_root", str(place / "out"),
                                      "--image_per_class", "5", "--workers", "2", "--dry-run"]))
    ((what, plan),) = plans_of(capsys.readouterr().out).items()
    assert what.startswith("stage 1, ") and everything(place) == before
    assert plan["pictures"].startswith("10 of 12 in 2 classes")
    if elements:
        assert plan["elements"].startswith("about 160 (16.0")
    assert "free" in plan["disk"] and "in 2 processes" in plan["memory"]
    assert re.search(r"about [\d.]+ \w+ \([\d.]+ s an image", plan["time"])


def test_stage_2(place, capsys):
    before = everything(place)
    script = visual_element_emb_extractor
    script.main(script.parser().settings(["--model", "resnet20", "--weights", "none", "--data_path", str(place / "in"),
                                      "--save_root", str(place / "embs"), "--device", "cpu", "-j", "0", "--dry_run"]))
    ((what, plan),) = plans_of(capsys.readouterr().out).items()
    assert "visual_element_emb.pkl" in what and everything(place) == before
    assert plan["shapes"] == "12 images of 3 x 32 x 32 -> 12 x 64 float32, fp32"
    assert plan["disk"].startswith("3.1 kB")  # 12 x 64 x 4
    assert "ms to embed, by measurement of 8" in plan["time"]


def test_stage_3(toy, capsys):
    before = everything(toy)
    for script, kind in ((IP_Bank_training, "Random"), (IP_End2End_training, "End2End")):
        script.main(script.parser().settings(flags_of(toy, "out", "--dry_run", num_concepts=10, seeds=2)))
        plan = plans_of(capsys.readouterr().out)[f"stage 3, {kind} bank for toy on toy"]
        assert plan["shapes"].startswith("N = 300 + 200 images, D = 12, C = 4, M = 10")
        assert plan["heads"] == ("24 predictors (8 ratios x 3 learning rates) and 3 dense heads, for each of 2 seeds; "
                                 "2 epochs of 5 steps")
        assert plan["memory"].startswith("20.0 kB of activations")  # 500 x 10 x 4
        assert ("does not time" in plan["time"]) == (kind == "End2End")
    assert everything(toy) == before


def test_a_script_without_a_plan_of_its_own_tells_its_settings(capsys):
    script = ScriptParser(prog="table.py", description="A table.")
    script.add_argument("--save_dir", default="x")
    with pytest.raises(SystemExit) as stopped:
        script.settings(["--dry-run"])
    assert stopped.value.code == 0
    assert plans_of(capsys.readouterr().out) == {"table.py, A table.": {"save_dir": "x"}}
    assert vars(script.settings([])) == {"save_dir": "x"}  # nothing of it in settings.yaml or a manifest


def test_a_script_with_a_dry_run_of_its_own():
    script = ScriptParser()
    script.add_argument("--dry_run", action="store_true")
    assert script.settings(["--dry_run"]).dry_run and script.settings([]).dry_run is False


def test_help_names_it():
    assert "--dry_run" in run_script("concept_library/filter_concepts.py", "--help").stdout


def test_tally(tmp_path, monkeypatch):
    monkeypatch.delenv("IIS_TALLY", raising=False)
    tally(3)
    monkeypatch.setenv("IIS_TALLY", str(tmp_path / "tally"))
    tally(3)
    tally(4)
    assert (tmp_path / "tally").read_text() == "3\n4\n"
