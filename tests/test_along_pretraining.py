"""IIS along pre-training: checkpoints by epoch, trends by hand, twin panels."""

import csv

import matplotlib.pyplot as plt
import pytest
from made_sweep import made_ledger, made_sweep

from iis.runtime import UserError
from reproduction import along_pretraining as script
from reproduction.lib.points import plain
from reproduction.lib.runs import find_runs


def run(folder, *flags):
    script.main(script.parser().settings([*map(str, flags), "--save_dir", str(folder)]))
    return (list(csv.DictReader((folder / f"{name}.csv").open()))
            for name in ("along_pretraining", "along_pretraining_trend"))


def test_a_sweep_by_hand(tmp_path):
    lines, trends = run(tmp_path / "out", "--sweep", made_sweep(tmp_path))
    assert [(line["net"], line["epoch"], line["warning"]) for line in lines] == [
        ("net_c", "1", "near chance"), ("net_c", "2", "saturated"), ("net_c", "4", ""), ("net_c", "8", "")]
    # ARR 0.95 at dense 0.4 of 1000: one standard error is 0.95 · √(0.62 / 380 + 0.6 / 400) = 0.053.
    # Epochs 2, 4, 8 have ARR 0.95, 0.84, 0.86: ranks 3 1 2, ρ = −½, τ = −⅓; dense top-1 only rises.
    trend, = trends
    assert (trend["checkpoints"], trend["near_chance"]) == ("3", "1")
    assert [float(trend[name]) for name in ("iis_rho", "iis_tau", "dense_rho")] == pytest.approx([-0.5, -1 / 3, 1])
    shown = (tmp_path / "out" / "along_pretraining.md").read_text()
    assert "4 checkpoints of 1 net, mean ± std over 2 seeds" in shown and "not independent" in shown
    for name in ("along_pretraining.tex", "along_pretraining_trend.tex", "along_pretraining_toy.png",
                 "along_pretraining_toy.pdf"):
        assert (tmp_path / "out" / name).stat().st_size


def test_epochs_are_sorted_as_numbers_and_two_give_no_trend(tmp_path):
    for epoch, dense in ((10, 0.8), (9, 0.7)):
        made_ledger(tmp_path / f"net_{epoch}", f"net_epoch{epoch}", dense, 0.6)
    lines, (trend,) = run(tmp_path / "out", "--model_root", tmp_path)
    assert [line["epoch"] for line in lines] == ["9", "10"] and trend["iis_rho"] == ""
    assert "none: fewer than 3 checkpoints" in (tmp_path / "out" / "along_pretraining_trend.md").read_text()


def test_twin_panels(tmp_path):
    made_sweep(tmp_path)
    made_ledger(tmp_path / "control", "net_c_epoch2", 0.4, 0.36, bank="Random", elements=None)
    folders = [str(tmp_path / name) for name in ("net_c_epoch1", "net_c_epoch2", "net_c_epoch8", "control")]
    runs = plain(find_runs(script.parser().settings(["--model_root", *folders])))
    figure = script.twin({(bank, net): mine for (_, bank, net), mine in script.paths(runs).items()})
    above, below = figure.axes
    dense, = above.containers  # once per net, though there are two banks
    assert dense.lines[0].get_xdata() == pytest.approx([1, 2, 8])
    assert dense.lines[0].get_ydata() == pytest.approx([22, 40, 80])
    assert [bar.get_label() for bar in below.containers] == ["net_c, Prototype", "net_c, Random"]
    assert below.containers[1].lines[0].get_ydata() == pytest.approx([0.98 * 0.9])
    assert above.get_xlim() == below.get_xlim() and below.get_xlabel() == "epoch of pre-training"
    plt.close(figure)


def test_no_checkpoints_is_told(tmp_path):
    made_ledger(tmp_path / "net", "net", 0.8, 0.7)
    with pytest.raises(UserError, match="NAME_epochE"):
        run(tmp_path / "out", "--model_root", tmp_path / "net")
