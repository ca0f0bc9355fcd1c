"""Which runs may be compared, what they are called, and the numbers of one of them, by hand."""

import pytest
from made_sweep import made_ledger

from iis.cli import ScriptParser
from iis.grid import RATIOS
from reproduction.lib.points import (
    epoch_of,
    groups,
    meaningful,
    models_said,
    nets_of,
    plain,
    point,
    short_name,
    slug,
    undivided,
)
from reproduction.lib.runs import add_source_flags, find_runs


def runs_of(*folders):
    return plain(find_runs(add_source_flags(ScriptParser()).settings(["--model_root", *map(str, folders)])))


def test_one_run_by_hand(tmp_path):
    # acc(s) falls in a line from 0.8 to 0.8 − 0.98 · 0.5: ∫ = 0.98 · (0.8 + 0.31) / 2 = 0.5439, over dense 0.8
    made_ledger(tmp_path, "net", 0.8, [0.8 - 0.5 * ratio for ratio in RATIOS], spread=0.0)
    run, = runs_of(tmp_path)
    line = point(run, "Prototype")
    assert undivided(run) == pytest.approx(0.5439)
    assert (line["area"], line["iis"], line["iis_std"]) == pytest.approx((0.5439, 0.5439 / 0.8, 0), abs=1e-9)
    assert line["iis_chance_corrected"] == pytest.approx((0.5439 - 0.98 * 0.2) / 0.6)
    assert (line["model"], line["epoch"], line["seeds"], line["warning"]) == ("net", None, 2, "")


def test_near_chance_is_seen(tmp_path):
    made_ledger(tmp_path / "a", "near", 0.24, 0.23)
    made_ledger(tmp_path / "b", "far", 0.26, 0.25)  # more than 0.05 and than 3 · √(0.26 · 0.74 / 1000) = 0.0416
    far, near = runs_of(tmp_path)
    assert (meaningful(far), meaningful(near)) == (True, False) and point(near, "")["warning"] == "near chance"


def test_only_runs_of_one_setting_are_compared(tmp_path):
    for number, said in enumerate(({}, {"num_concepts": 100}, {"num_concepts": 100, "sparsifier": "shrink"},
                                   {"elements": {"kind": "segments", "dataset": "other"}}, {"dataset": "second"},
                                   {"bank": "Random", "elements": None})):
        for model in ("net_a", "net_b"):
            made_ledger(tmp_path / f"{number}{model}", model, 0.8, 0.7, **said)
    found = groups(runs_of(tmp_path))
    assert list(found) == [("second", "Prototype"), ("toy", "Prototype, M = 20, segments"),
                           ("toy", "Prototype, M = 20, segments of other"), ("toy", "Prototype, M = 100, segments"),
                           ("toy", "Prototype, M = 100, segments, shrink"), ("toy", "Random")]
    assert all([run.model for run in mine] == ["net_a", "net_b"] for mine in found.values())


def test_names():
    assert (epoch_of("net_epoch12"), epoch_of("net")) == (12, None)
    assert slug("Prototype, M = 16, segments (stage 1: release)") == "Prototype_M16_segments_stage_1_release"


def test_checkpoints_of_a_net_count_once(tmp_path):
    for model in ("vit_b_16", "net_epoch1", "net_epoch2", "net"):
        made_ledger(tmp_path / model, model, 0.8, 0.7)
    runs = runs_of(tmp_path)
    assert nets_of(runs) == 2 and models_said(runs) == "4 models (2 independent nets)"
    assert models_said(runs[:1]) == "1 model (1 independent net)"
    assert {short_name(run) for run in runs if run.model in ("vit_b_16", "net")} == {"b_16", "net"}
