"""Tables and scatter plots over models: a sweep whose correlations are worked out by hand."""

import csv

import matplotlib.pyplot as plt
import pytest
from made_sweep import made_ledger, made_sweep

from iis.runtime import UserError
from reproduction import iis_against_accuracy as script
from reproduction.lib.points import groups, plain
from reproduction.lib.runs import find_runs


def run(folder, *flags):
    script.main(script.parser().settings([*map(str, flags), "--save_dir", str(folder)]))
    return {name: list(csv.DictReader((folder / f"{name}.csv").open()))
            for name in ("iis_points", "iis_correlations")}


def test_a_sweep_by_hand(tmp_path, capsys):
    tables = run(tmp_path / "out", "--sweep", made_sweep(tmp_path))
    assert "1 of 11 runs are variants" in capsys.readouterr().out
    points = {(line["bank"], line["model"]): line for line in tables["iis_points"]}
    assert len(points) == 3 + 3 + 4
    # ARR 0.445 / 0.5 and 0.435 / 0.5 on all of 0.98
    assert float(points["Prototype", "net_a"]["iis"]) == pytest.approx(0.98 * 0.88)
    assert float(points["Prototype", "net_a"]["iis_std"]) == pytest.approx(0.98 * 0.02 / 2**0.5)
    finished, along, random = tables["iis_correlations"]
    assert [(line["bank"], line["which"], line["models"], line["nets"], line["near_chance"])
            for line in (finished, along, random)] == [
        ("Prototype", "finished", "3", "3", "0"), ("Prototype", "with checkpoints", "5", "3", "1"),
        ("Random", "finished", "3", "3", "0")]
    # Dense 0.5 < 0.6 < 0.8 against IIS ranks 3 1 2, areas 1 2 3, chance-corrected ranks 2 1 3.
    assert [float(finished[f"{name}_rho"]) for name in script.MEASURES] == pytest.approx([-0.5, 1, 0.5])
    assert [float(finished[f"{name}_null_p"]) for name in script.MEASURES] == pytest.approx([1, 1 / 3, 1])
    assert finished["iis_low"] == "" and along["iis_low"] != ""
    # With epochs 2 and 4 (dense 0.4, 0.55; ARR 0.95, 0.84), dense ranks 1 … 5 have IIS ranks 5 4 1 2 3:
    # Σd² = 16 + 4 + 4 + 4 + 4 = 32, ρ = 1 − 6 · 32 / 120.
    assert float(along["iis_rho"]) == pytest.approx(1 - 6 * 32 / 120)
    for name in ("iis_points", "iis_correlations"):
        assert all((tmp_path / "out" / f"{name}.{suffix}").stat().st_size for suffix in ("csv", "md", "tex"))
    assert all((tmp_path / "out" / f"iis_against_accuracy_toy.{suffix}").stat().st_size for suffix in ("png", "pdf"))
    caption = (tmp_path / "out" / "iis_correlations.md").read_text()
    assert "At most 5 models (3 independent nets)" in caption and "not independent models" in caption


def test_two_models_give_no_correlation(tmp_path):
    for model, dense in (("net_a", 0.5), ("net_b", 0.6)):
        made_ledger(tmp_path / model, model, dense, 0.4)
    line, = run(tmp_path / "out", "--model_root", tmp_path)["iis_correlations"]
    assert line["models"] == "2" and line["iis_rho"] == line["area_rho"] == line["division_mean"] == ""
    shown = (tmp_path / "out" / "iis_correlations.md").read_text()
    assert shown.count("none: fewer than 3 models") == 3 and "independent models" not in shown


def test_two_data_sets_give_a_panel_each(tmp_path):
    for dataset in ("toy", "second"):
        for model, dense in (("net_a", 0.5), ("net_b", 0.6)):
            made_ledger(tmp_path / dataset / model, model, dense, 0.4, dataset=dataset,
                        elements={"kind": "segments", "dataset": dataset})
    run(tmp_path / "out", "--model_root", tmp_path)
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {
        "iis_against_accuracy_toy.png", "iis_against_accuracy_second.png", "iis_against_accuracy_Prototype.png"}


def test_the_scatter_shows_the_numbers(tmp_path):
    runs = plain(find_runs(script.parser().settings(["--sweep", str(made_sweep(tmp_path))])))
    figure = script.scatter({bank: mine for (_, bank), mine in groups(runs).items()})
    left, right, *rest = figure.axes
    assert not rest and left.get_title() == "Prototype\n3 finished models, ρ = −0.50"
    family, along = (bar.lines[0] for bar in left.containers)
    assert family.get_xdata() == pytest.approx([50, 60, 80])
    assert family.get_ydata() == pytest.approx([0.98 * 0.88, 0.98 * 0.85, 0.98 * 0.86])
    assert along.get_xdata() == pytest.approx([22, 40, 55, 80])  # in the order of epochs
    cross, = (line for line in left.lines if line.get_label().startswith("near chance"))
    assert cross.get_xdata() == pytest.approx([22])
    assert len(right.containers) == 1 and {text.get_text() for text in right.texts} == {"a", "b", "c"}
    plt.close(figure)


def test_bad_input_is_told(tmp_path):
    for flags, sentence in ((["--save_dir", str(tmp_path)], "either --sweep NAME or --model_root"),
                            (["--model_root", str(tmp_path)], "--save_dir says where"),
                            (["--sweep", "none.json", "--save_dir", str(tmp_path)], "there is no sweep"),
                            (["--swep", "shapes"], "--sweep")):
        with pytest.raises(UserError, match=sentence):
            script.main(script.parser().settings(flags))
