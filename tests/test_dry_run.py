"""--dry_run: every stage tells shapes, disk, memory and time from a measurement, and makes nothing."""

import pytest
from bank_runs import flags_of, own_caches  # noqa: F401 - a fixture
from conftest import run_script

from iis.cli import ScriptParser, disk, duration, size
from IP_training import IP_Bank_training, IP_End2End_training


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
