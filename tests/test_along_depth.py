"""IIS and its companions along depth, from ledgers whose numbers are worked out by hand."""

import matplotlib.pyplot as plt
import pytest
from made_sweep import call, made_ledger, rows_of

from iis.grid import RATIOS
from iis.runtime import UserError, read_json, write_json
from reproduction import along_depth, iis_against_accuracy
from reproduction.lib import nec
from reproduction.lib.points import last_layers
from reproduction.lib.runs import Source, find_runs

# Dense top-1 of the layers, from the first to the last, and their ARR at every ratio.
NETS = {"net_a": ((0.40, 0.90), (0.50, 0.86), (0.60, 0.82), (0.70, 0.78)),
        "net_b": ((0.50, 0.95), (0.60, 0.92), (0.70, 0.90), (0.90, 0.88))}
LAYERS = ("one", "two", "three", "head_input")
LOWER = 0.8  # ARR of Random directions, of that of Prototype


def made_depths(folder, nec_of=None):
    """cells.json of two networks of four layers under two banks. nec_of: layers of which the accuracy at NEC is kept,
    0.9 of dense at NEC 5 and 10, and NEC 15 reached by the deep layers alone."""
    cells = []
    for net, layers in NETS.items():
        for depth, (layer, (dense, arr)) in enumerate(zip(LAYERS, layers, strict=True), start=1):
            model = net + f"__{layer}" * (layer != "head_input")
            hashes = {"train_hash": f"train {model}", "val_hash": f"val {model}", "width": 10 * depth}
            for bank, share in (("Prototype", 1.0), ("Random", LOWER)):
                own = {"bank": bank, "elements": None} if bank == "Random" else {}
                place = made_ledger(folder / bank / model, model, dense, share * arr * dense, **hashes, **own)
                cells.append({"name": model, "model": model, "net": net, "layer": layer, "depth": depth, "variant": "",
                              "folder": str(place), "message": None})
                if layer in (nec_of or ()):
                    tops = {5: 0.9 * dense, 10: 0.9 * dense, 15: dense if depth > 2 else None}
                    levels = [{"nec": level, "top1": top1, "reason": ""} for level, top1 in tops.items()]
                    depends = {"path": nec.PATHS["refined"], **{key: hashes[key] for key in ("train_hash", "val_hash")}}
                    write_json(place / nec.cache_name(), {str(seed): {"depends": depends, "levels": levels}
                                                          for seed in (0, 1)})
    write_json(folder / "sweep" / "cells.json", cells)
    return folder / "sweep" / "cells.json"


def tables(tmp_path, **made):
    call(along_depth, "--sweep", made_depths(tmp_path, **made), "--save_dir", tmp_path / "out")
    return [rows_of(tmp_path / "out" / f"{name}.csv") for name in ("along_depth", "along_depth_rho")]


def test_layers_belong_to_their_network(tmp_path):
    runs = find_runs(Source(sweep=str(made_depths(tmp_path))))
    first = next(run for run in runs if run.model == "net_a__two")
    assert (first.net, first.family, first.layer, first.depth, first.epoch) == ("net_a", "net_a", "two", 2, None)
    assert {run.net for run in runs} == {"net_a", "net_b"}


def test_a_table_by_hand(tmp_path, capsys):
    lines, rhos = tables(tmp_path, nec_of=LAYERS)
    assert [(line["bank"], line["net"], line["layer"]) for line in lines] == [
        (bank, net, layer) for bank in ("Prototype", "Random") for net in NETS for layer in LAYERS]
    for line, (dense, arr) in zip(lines, 2 * [value for net in NETS.values() for value in net], strict=True):
        own = arr * (1 if line["bank"] == "Prototype" else LOWER)
        assert float(line["dense"]) == pytest.approx(dense)
        # Two seeds 0.005 above and below; k / 1000 images.
        assert float(line["iis"]) == pytest.approx(0.98 * own, abs=2e-3)
        assert float(line["area_log_k"]) == pytest.approx(own, abs=2e-3)
        assert float(line["anec"]) == pytest.approx(0.9 * dense)  # NEC 5 and 10: not all layers reach 15
        assert line["last"] == str(line["layer"] == "head_input")
        assert line["width"] == str(10 * int(line["depth"]))
        if line["bank"] == "Random":
            assert line["lift"] == ""
        else:
            assert float(line["lift"]) == pytest.approx(0.98 * (1 - LOWER) * arr, abs=2e-3)
    assert [(line["bank"], line["measure"]) for line in rhos] == [
        *(("Prototype", name) for name in ("iis", "lift", "area_log_k", "anec")),
        *(("Random", name) for name in ("iis", "area_log_k", "anec"))]
    for line in rhos:
        sign = 1 if line["measure"] == "anec" else -1  # every other measure falls along either network
        assert line["each"] == "net_a: {0}1.00 net_b: {0}1.00".format("" if sign > 0 else "−")
        assert float(line["each_mean"]) == sign and float(line["each_sign_flip_p"]) == 0.5  # 2 / 2², of two networks
        assert line["each_low"] == line["each_high"] == ""  # both agree exactly
        assert sign * float(line["within_rho"]) > 0.5 and float(line["within_p"]) < 0.01
        assert float(line["within_p"]) <= float(line["within_holm_p"]) <= 1
        assert (line["layers"], line["networks"], line["last"], line["last_rho"]) == ("8", "2", "2", "")
    # Within networks log ARR falls on log dense, in net_a by log(0.78 / 0.9) / log(0.7 / 0.4) = −0.26.
    assert float(rhos[0]["slope"]) == pytest.approx(0.8, abs=0.08) and rhos[1]["slope"] == rhos[3]["slope"] == ""
    text = (tmp_path / "out" / "along_depth.md").read_text()
    assert "8 layers of 2 networks" in text and "at NEC 5, 10." in text.replace("5 to 10", "5, 10")
    assert all((tmp_path / "out" / f"along_depth_toy_{bank}.{suffix}").stat().st_size
               for bank in ("Prototype", "Random") for suffix in ("png", "pdf"))


def test_anec_is_of_all_layers_or_left_out(tmp_path, capsys):
    lines, rhos = tables(tmp_path, nec_of=LAYERS[:2])
    assert "8 of 16 runs lack it" in capsys.readouterr().out
    assert {line["anec"] for line in lines} == {""} and "anec" not in {line["measure"] for line in rhos}
    assert "ANEC: not measured" in (tmp_path / "out" / "along_depth.md").read_text()


def test_layers_close_to_chance_are_shown_and_not_counted(tmp_path):
    index = made_depths(tmp_path)
    made_ledger(tmp_path / "Prototype" / "net_a__one", "net_a__one", 0.21, 0.2, train_hash="train net_a__one",
                val_hash="val net_a__one", width=10)
    call(along_depth, "--sweep", index, "--save_dir", tmp_path / "out")
    first, rho = (rows_of(tmp_path / "out" / f"{name}.csv")[0] for name in ("along_depth", "along_depth_rho"))
    assert first["marks"].startswith("close to chance") and (rho["layers"], rho["near_chance"]) == ("7", "1")


def test_the_figure_joins_layers_in_the_order_of_depth(tmp_path):
    index = made_depths(tmp_path)
    write_json(index, read_json(index)[::-1])
    runs = along_depth.by_depth([run for run in find_runs(Source(sweep=str(index)))
                                 if run.summary["bank"] == "Prototype"])
    layers = [(run, {**along_depth.point(run), "last": along_depth.is_last(run, runs), "anec": None}) for run in runs]
    figure = along_depth.figure_of("toy, Prototype", layers)
    iis, lift, area = figure.axes
    first, second = (bar.lines[0] for bar in iis.containers)
    assert first.get_xdata() == pytest.approx([40, 50, 60, 70])
    assert second.get_xdata() == pytest.approx([50, 60, 70, 90])
    ring = next(line for line in lift.lines if line.get_label() == "last layer")
    assert ring.get_xdata() == pytest.approx([70, 90])
    assert [one.get_ylabel() for one in figure.axes] == ["IIS", "lift over Random", "area over log k"]
    plt.close(figure)


def test_what_has_no_layers_is_refused_and_other_tables_count_networks(tmp_path):
    made_ledger(tmp_path / "lone" / "net", "net", 0.8, [0.8 - 0.5 * ratio for ratio in RATIOS])
    with pytest.raises(UserError, match="`layers`"):
        call(along_depth, "--model_root", tmp_path / "lone")
    call(iis_against_accuracy, "--sweep", made_depths(tmp_path), "--save_dir", tmp_path / "out")
    lines = rows_of(tmp_path / "out" / "iis_correlations.csv")
    assert [(line["which"], line["models"], line["nets"]) for line in lines] == 2 * [
        ("finished", "2", "2"), ("with earlier layers", "8", "2")]
    assert not (tmp_path / "out" / "iis_families.csv").exists()  # layers are no models of a family
    runs = find_runs(Source(sweep=str(made_depths(tmp_path))))
    assert [run.model for run in last_layers(runs)] == ["net_a", "net_a", "net_b", "net_b"]
