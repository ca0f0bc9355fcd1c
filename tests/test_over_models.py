"""Tables and figures over models, from ledgers whose numbers are worked out by hand: what may be compared, what it is
called, and every mark where its number stands."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_sweep import CHANCE, call, made_ledger, made_sweep, rows_of

from iis.grid import RATIOS
from iis.plots import arr_figure
from iis.results import add_rows, read_ledger
from iis.runtime import UserError, write_json
from reproduction import along_pretraining, arr_curves, controls_table, iis_against_accuracy
from reproduction.lib.figures import panels
from reproduction.lib.measured import lines_of_runs
from reproduction.lib.points import groups, models_of, plain, point, variant_of
from reproduction.lib.report_parts import score_tables
from reproduction.lib.runs import Source, find_runs
from reproduction.lib.statistics import associate

SCRIPTS = {"iis_points": iis_against_accuracy, "along_pretraining": along_pretraining, "arr": arr_curves}


def runs_of(*folders):
    return plain(find_runs(Source(model_root=list(folders))))


def of_sweep(tmp_path, script, *names):
    """The script on `made_sweep`: its CSVs, and the Markdown of the first."""
    call(script, "--sweep", made_sweep(tmp_path), "--save_dir", tmp_path / "out")
    assert all((tmp_path / "out" / f"{name}.{suffix}").stat().st_size for name in names for suffix in ("md", "tex"))
    text = (tmp_path / "out" / f"{names[0]}.md").read_text()
    return *(rows_of(tmp_path / "out" / f"{name}.csv") for name in names), text


# ---- runs, settings, titles ----


def test_one_run_by_hand(tmp_path):
    # acc(s) falls in a line from 0.8 to 0.8 − 0.98 · 0.5: ∫ = 0.98 · (0.8 + 0.31) / 2 = 0.5439, over dense 0.8
    made_ledger(tmp_path, "net", 0.8, [0.8 - 0.5 * ratio for ratio in RATIOS], spread=0.0)
    run, = runs_of(tmp_path)
    groups([run])
    line = point(run)
    assert (line["area"], line["iis"], line["iis_std"]) == pytest.approx((0.5439, 0.5439 / 0.8, 0), abs=1e-9)
    assert line["iis_chance_corrected"] == pytest.approx((0.5439 - 0.98 * 0.2) / 0.6)
    assert (line["model"], line["epoch"], line["seeds"], line["marks"]) == ("net", None, 2, "")


@pytest.mark.parametrize(("dense", "accuracy", "marks"), [
    (0.24, 0.15, ["close to chance"]), (0.26, 0.2, []),  # more than 0.05 and than 3 · √(0.26 · 0.74 / 1000) = 0.0416
    (0.8, 0.8, ["saturated"]), (0.5, 0.56, ["above the dense head"])])
def test_marks(tmp_path, dense, accuracy, marks):
    made_ledger(tmp_path, "net", dense, accuracy)
    run, = runs_of(tmp_path)
    assert run.marks == marks and run.meaningful == (marks != ["close to chance"])


@pytest.mark.parametrize(("script", "name"), [(SCRIPTS[name], name) for name in SCRIPTS])
def test_a_mark_stands_wherever_its_number_does(tmp_path, script, name):
    made_ledger(tmp_path / "a", "net_epoch1", 0.24, 0.15)
    call(script, "--model_root", tmp_path, "--save_dir", tmp_path / "out")
    for line in rows_of(tmp_path / "out" / f"{name}.csv"):
        assert line["marks"] == "close to chance"
    assert (tmp_path / "out" / f"{name}.md").read_text().splitlines()[2].endswith("| close to chance |")


@pytest.mark.filterwarnings("error:.*(divide|invalid|empty slice)")
def test_tables_take_a_dense_head_exactly_at_chance(tmp_path):
    """Its chance-corrected IIS is undefined, in numbers empty."""
    for model, dense in (("net_epoch1", CHANCE), ("net_a", 0.5), ("net_b", 0.6), ("other", CHANCE)):
        made_ledger(tmp_path / model, model, dense, 0.15)
    for name, script in SCRIPTS.items():
        call(script, "--model_root", tmp_path, "--save_dir", tmp_path / "out")
        key = "arr_chance_corrected" if name == "arr" else "iis_chance_corrected"
        values = {line["model"]: line[key] for line in rows_of(tmp_path / "out" / f"{name}.csv")}
        assert all((value == "") == (model in ("net_epoch1", "other")) for model, value in values.items())
    assert "| undefined |" in (tmp_path / "out" / "iis_points.md").read_text()
    call(controls_table, "--model_root", tmp_path, "--save_dir", tmp_path / "out")
    assert "| undefined |" in (tmp_path / "out" / "controls.md").read_text()
    lines = lines_of_runs(runs_of(*(tmp_path / name for name in ("net_a", "other"))))
    assert [(line["model"], line["measure"]) for line in lines if "chance" in line["measure"]] == [
        ("net_a", "chance-corrected IIS")]
    assert [line["chance-corrected"] for line in score_tables(runs_of(tmp_path / "other"))["toy"]] == ["undefined"]
    assert set(associate([0.1, None, 0.3], [1, 2, 3]).values()) == {None}


def test_every_setting_that_differs_is_in_the_title(tmp_path):
    changes = ({}, {"num_concepts": 100}, {"num_concepts": 100, "sparsifier": "shrink"}, {"dataset": "second"},
               {"elements": {"kind": "segments", "dataset": "other"}}, {"epochs": 5}, {"batch_size": 64},
               {"holdout": 0.1}, {"bank_seed": 2}, {"precision": "bf16"}, {"bank": "Random", "elements": None})
    for number, change in enumerate(changes):
        for model in ("net_a", "net_b"):
            made_ledger(tmp_path / f"{number}{model}", model, 0.8, 0.7, **change)
    found = groups(runs_of(tmp_path))
    assert len(found) == len(changes)  # never two settings under one title
    start, usual = "Prototype, M = 20, segments", "epochs, batch size 1024"
    assert set(found) == {("second", "Prototype"), ("toy", "Random"), *(("toy", title) for title in (
        f"{start}, 30 {usual}", f"Prototype, M = 100, segments, 30 {usual}",
        f"Prototype, M = 100, segments, sparsifier shrink, 30 {usual}", f"{start} of other, 30 {usual}",
        f"{start}, 5 {usual}", f"{start}, 30 epochs, batch size 64", f"{start}, holdout 0.1, 30 {usual}",
        f"{start}, 30 {usual}, bank seed 2", f"{start}, 30 {usual}, precision bf16"))}
    assert all([run.model for run in mine] == ["net_a", "net_b"] for mine in found.values())
    assert {variant_of(mine[0]) for mine in found.values()} == {
        "", "sparsifier shrink", "segments of other", "segments of toy", "5 epochs", "holdout 0.1", "bank seed 2"}


def test_other_ratios_are_another_setting(tmp_path):
    for model in ("net_a", "net_b"):
        made_ledger(tmp_path / model, model, 0.8, 0.7)
    ledger = tmp_path / "net_a" / "results.jsonl"
    add_rows(ledger, [{**row, "ratio": 0.8} for row in read_ledger(ledger) if row["ratio"] == 0.7])
    assert [title for _, title in groups(runs_of(tmp_path))] == [
        "Prototype, ratios 0 0.1 0.3 0.5 0.7 0.8 0.9 0.95 0.98", "Prototype, ratios 0 0.1 0.3 0.5 0.7 0.9 0.95 0.98"]
    call(arr_curves, "--model_root", tmp_path)  # beside the runs, where no folder is named
    rows = [line.split(" | ") for line in (tmp_path / "arr.md").read_text().splitlines() if "| net_" in line]
    assert [row[9] for row in rows] == ["87.5 ± 0.9", "-"]  # s = 0.8 stands after 0, 0.1, 0.3, 0.5, 0.7


def test_nets_of_models(tmp_path):
    for model in ("vit_b_16", "net_epoch1", "net_epoch12", "net"):
        made_ledger(tmp_path / model, model, 0.8, 0.7)
    runs = runs_of(tmp_path)
    assert {run.model: (run.epoch, run.net, run.family) for run in runs} == {
        "vit_b_16": (None, "vit_b_16", "vit"), "net": (None, "net", "net"), "net_epoch1": (1, "net", "net"),
        "net_epoch12": (12, "net", "net")}
    assert models_of(runs) == "4 models (2 independent nets)" and models_of(runs[:1]) == "1 model (1 independent net)"


# ---- figures ----


@pytest.mark.parametrize(("count", "spans"), [(1, [1]), (3, [3]), (4, [3, 1]), (5, [3, 2]), (7, [3, 3, 1])])
def test_panels_have_no_holes_and_a_short_row_stands_in_the_middle(count, spans):
    figure, axes = panels(count, "toy: title")
    assert len(figure.axes) == count == len(axes) and figure.get_suptitle() == "toy: title"
    figure.canvas.draw()
    boxes = [one.get_position() for one in axes]
    heights = sorted({round(box.y0, 3) for box in boxes}, reverse=True)
    rows = [[box for box in boxes if round(box.y0, 3) == height] for height in heights]
    assert [len(row) for row in rows] == spans
    middles = [(row[0].x0 + row[-1].x1) / 2 for row in rows]
    assert middles == pytest.approx([middles[0]] * len(rows), abs=0.02)
    plt.close(figure)


def test_nine_curves_have_nine_styles_and_recurring_labels_one_legend():
    curve = lambda label, arr=((1, 0.5),): {"label": label, "ratios": [0, 0.5], "arr": arr}  # noqa: E731
    figure = arr_figure({"first": [curve("a", [[1, 0.5], [0.9, 0.7]]), curve("b")], "second": [curve("b")]})
    first, second = figure.axes
    assert first.lines[0].get_ydata() == pytest.approx([95, 60])
    assert second.lines[0].get_color() == first.lines[1].get_color() != first.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    lines = arr_figure({"": [curve(str(number)) for number in range(9)]}).axes[0].lines[:9]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9
    plt.close("all")


def test_the_scatter_shows_the_numbers(tmp_path):
    runs = plain(find_runs(Source(sweep=str(made_sweep(tmp_path)))))
    figure = iis_against_accuracy.scatter({bank: mine for (_, bank), mine in groups(runs).items()}, "toy")
    left, right = figure.axes
    assert left.get_title() == "Prototype\n3 finished models, ρ = −0.50" and figure.get_suptitle().startswith("toy")
    family, along = (bar.lines[0] for bar in left.containers)
    assert family.get_xdata() == pytest.approx([50, 60, 80])
    assert family.get_ydata() == pytest.approx([0.98 * 0.88, 0.98 * 0.85, 0.98 * 0.86])
    assert along.get_xdata() == pytest.approx([22, 40, 55, 80])  # in the order of epochs
    signs = {line.get_label(): list(line.get_xdata()) for line in left.lines if line.get_color() == "black"}
    assert signs == {"close to chance": pytest.approx([22]), "saturated": pytest.approx([40])}
    assert len(right.containers) == 1 and {text.get_text() for text in right.texts} == {"a", "b", "c"}
    plt.close(figure)


def test_twin_panels(tmp_path):
    made_sweep(tmp_path)
    made_ledger(tmp_path / "control", "net_c_epoch2", 0.4, 0.36, bank="Random", elements=None)
    runs = runs_of(*(tmp_path / name for name in ("net_c_epoch1", "net_c_epoch2", "net_c_epoch8", "control")))
    figure = along_pretraining.twin("toy", {bank: mine for (_, bank), mine in groups(runs).items()})
    above, below = figure.axes
    dense, = above.containers  # once per net, though there are two banks
    assert dense.lines[0].get_xdata() == pytest.approx([1, 2, 8])
    assert dense.lines[0].get_ydata() == pytest.approx([22, 40, 80])
    assert [bar.get_label() for bar in below.containers] == ["net_c, Prototype", "net_c, Random"]
    assert below.containers[1].lines[0].get_ydata() == pytest.approx([0.98 * 0.9])
    assert above.get_xlim() == below.get_xlim() and below.get_xlabel() == "epoch of pre-training"
    plt.close(figure)


# ---- scripts ----


def test_correlations_of_a_sweep_by_hand(tmp_path, capsys):
    points, correlations, _ = of_sweep(tmp_path, iis_against_accuracy, "iis_points", "iis_correlations")
    assert "1 of 11 runs are variants" in capsys.readouterr().out
    by_model = {(line["bank"], line["model"]): line for line in points}
    assert len(by_model) == 3 + 3 + 4
    # ARR 0.445 / 0.5 and 0.435 / 0.5 on all of 0.98
    assert float(by_model["Prototype", "net_a"]["iis"]) == pytest.approx(0.98 * 0.88)
    assert float(by_model["Prototype", "net_a"]["iis_std"]) == pytest.approx(0.98 * 0.02 / 2**0.5)
    finished, along, random = correlations
    assert [[line[name] for name in ("bank", "which", "models", "nets", "near_chance")] for line in correlations] == [
        ["Prototype", "finished", "3", "3", "0"], ["Prototype", "with checkpoints", "5", "3", "1"],
        ["Random", "finished", "3", "3", "0"]]
    # Dense 0.5 < 0.6 < 0.8 against IIS ranks 3 1 2, areas 1 2 3, chance-corrected ranks 2 1 3.
    measures = iis_against_accuracy.MEASURES
    assert [float(finished[f"{name}_rho"]) for name in measures] == pytest.approx([-0.5, 1, 0.5])
    assert [float(finished[f"{name}_null_p"]) for name in measures] == pytest.approx([1, 1 / 3, 1])
    assert finished["iis_low"] == "" and along["iis_low"] != ""
    assert finished["slope"] == along["slope"] == "" and "within_rho" not in finished  # of three models, of checkpoints
    # With epochs 2 and 4 (dense 0.4, 0.55; ARR 1, 0.84), dense ranks 1 … 5 have IIS ranks 5 4 1 2 3:
    # Σd² = 16 + 4 + 4 + 4 + 4 = 32, ρ = 1 − 6 · 32 / 120.
    assert float(along["iis_rho"]) == pytest.approx(1 - 6 * 32 / 120)
    assert along["marks"] == "net_c_epoch1: close to chance; net_c_epoch2: saturated"
    assert all((tmp_path / "out" / f"iis_against_accuracy_toy.{suffix}").stat().st_size for suffix in ("png", "pdf"))
    caption = (tmp_path / "out" / "iis_correlations.md").read_text()
    assert "At most 5 models (3 independent nets)" in caption and "not independent models" in caption
    assert caption.count("none: too few models") == 2 and caption.count("none: checkpoints") == 1
    assert not (tmp_path / "out" / "iis_families.csv").exists()


def test_nets_of_two_families_by_hand(tmp_path):
    # Within either family the IIS falls with accuracy, between them it rises: ARR 0.9 0.85 0.8, and 0.98 0.96 0.94.
    nets = {"a": [(0.50, 0.450), (0.60, 0.510), (0.70, 0.560)], "b": [(0.80, 0.784), (0.85, 0.816), (0.90, 0.846)]}
    cells = []
    for family, values in nets.items():
        for seed, (dense, accuracy) in enumerate(values):
            model = f"net_{family}" + f"_seed{seed}" * bool(seed)
            made_ledger(tmp_path / model, model, dense, accuracy, spread=0.004)
            cells.append({"model": model, "family": f"net_{family}", "folder": str(tmp_path / model), "variant": ""})
    write_json(tmp_path / "sweep" / "cells.json", cells)
    call(iis_against_accuracy, "--sweep", tmp_path / "sweep" / "cells.json", "--save_dir", tmp_path / "out")
    first, second = rows_of(tmp_path / "out" / "iis_families.csv")
    assert [first[name] for name in ("bank", "family", "models")] == ["Prototype", "net_a", "3"]
    assert [float(first[f"iis_{name}"]) for name in ("mean", "std", "low", "high")] == pytest.approx(
        [0.98 * value for value in (0.85, 0.05, 0.8, 0.9)])
    assert [float(second[f"dense_{name}"]) for name in ("mean", "std", "low", "high")] == pytest.approx(
        [0.85, 0.05, 0.8, 0.9])
    # Over two seeds ± 0.004 of accuracy, std 0.004 · √2; over dense 0.5, 0.6 and 0.7.
    assert float(first["iis_seed_std"]) == pytest.approx(
        0.98 * 0.004 * 2**0.5 * np.mean([1 / 0.5**2, 1 / 0.6**2, 1 / 0.7**2])**0.5)
    line, = rows_of(tmp_path / "out" / "iis_correlations.csv")
    assert float(line["iis_rho"]) == pytest.approx(19 / 35)  # IIS ranks 3 2 1 6 5 4: Σd² = 16
    assert float(line["within_rho"]) < -0.7 and float(line["within_slope"]) < 1 < float(line["slope"])
    caption = (tmp_path / "out" / "iis_correlations.md").read_text()
    assert "6 models (6 independent nets)" in caption and "within families" in caption
    runs = plain(find_runs(Source(sweep=str(tmp_path / "sweep" / "cells.json"))))
    axes, = iis_against_accuracy.scatter({"Prototype": runs}, "toy").axes
    assert not axes.texts and {bar.lines[0].get_linestyle() for bar in axes.containers} == {"None"}


def test_two_models_give_no_correlation_and_two_data_sets_a_panel_each(tmp_path):
    for dataset in ("toy", "second"):
        for model, dense in (("net_a", 0.5), ("net_b", 0.6)):
            made_ledger(tmp_path / dataset / model, model, dense, 0.4, dataset=dataset,
                        elements={"kind": "segments", "dataset": dataset})
    call(iis_against_accuracy, "--model_root", tmp_path, "--save_dir", tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {
        "iis_against_accuracy_toy.png", "iis_against_accuracy_second.png"}
    for line in rows_of(tmp_path / "out" / "iis_correlations.csv"):
        assert line["models"] == "2" and line["iis_rho"] == line["area_rho"] == line["slope"] == ""
    text = (tmp_path / "out" / "iis_correlations.md").read_text()
    assert text.count("none: fewer than 3 models") == 6 and "independent models" not in text


def test_checkpoints_of_a_sweep_by_hand(tmp_path):
    lines, text = of_sweep(tmp_path, along_pretraining, "along_pretraining")
    assert [(line["net"], line["epoch"], line["marks"]) for line in lines] == [
        ("net_c", "1", "close to chance"), ("net_c", "2", "saturated"), ("net_c", "4", ""), ("net_c", "8", "")]
    assert "4 checkpoints of 1 net, mean ± std over 2 seeds" in text and "not independent" in text
    assert all((tmp_path / "out" / f"along_pretraining_toy.{suffix}").stat().st_size for suffix in ("png", "pdf"))


def test_epochs_are_sorted_as_numbers(tmp_path):
    for epoch, dense in ((10, 0.8), (9, 0.7)):
        made_ledger(tmp_path / f"net_{epoch}", f"net_epoch{epoch}", dense, 0.6)
    call(along_pretraining, "--model_root", tmp_path)
    assert [line["epoch"] for line in rows_of(tmp_path / "along_pretraining.csv")] == ["9", "10"]
    made_ledger(tmp_path / "other" / "net", "net", 0.8, 0.7)
    with pytest.raises(UserError, match="NAME_epochE"):
        call(along_pretraining, "--model_root", tmp_path / "other")


def test_retention_of_a_sweep_by_hand(tmp_path):
    lines, text = of_sweep(tmp_path, arr_curves, "arr")
    assert len(lines) == 6 * 8 and {line["model"] for line in lines} == {"net_a", "net_b", "net_c"}
    first = next(line for line in lines if (line["model"], line["ratio"]) == ("net_b", "0.5"))
    assert float(first["arr"]) == pytest.approx(0.85)
    assert float(first["arr_std"]) == pytest.approx(0.01 / 0.6 / 2**0.5)
    assert "| toy | Prototype | net_a | 50.0 ± 0.0 | 88.0 ± 1.4 |" in text
    assert "3 models (3 independent nets), mean ± std over 2 seeds" in text
    assert all((tmp_path / "out" / f"arr_toy.{suffix}").stat().st_size for suffix in ("png", "pdf"))
    made_ledger(tmp_path / "lone", "net_epoch1", 0.5, 0.4)
    call(arr_curves, "--model_root", tmp_path / "lone")  # nothing but a checkpoint: it was meant
    assert {line["model"] for line in rows_of(tmp_path / "lone" / "arr.csv")} == {"net_epoch1"}


@pytest.mark.parametrize("model, family, short", [
    ("resnet50", "resnet", "50"), ("mobilenet_v1_025_128", "MobileNet V1", "025_128"), ("net", "net", "net"),
    ("efficientnet_lite0", "EfficientNet-Lite", "0"), ("timm:resnet50", "resnet", "timm:resnet50"),
    ("net__blocks.4", "net", "blocks.4")])
def test_names_in_the_figure_leave_out_the_family(model, family, short):
    assert iis_against_accuracy.short_name(SimpleNamespace(model=model, family=family)) == short
