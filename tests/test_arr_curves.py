"""ARR against sparsity: the table by hand, the figure's lines, and one legend where models recur."""

import csv

import matplotlib.pyplot as plt
import pytest
from made_sweep import made_ledger, made_sweep

from iis.plots import arr_figure
from iis.results import add_rows, read_ledger
from reproduction import arr_curves as script


def run(folder, *flags):
    script.main(script.parser().settings([*map(str, flags), "--save_dir", str(folder)]))
    return list(csv.DictReader((folder / "arr.csv").open()))


def test_a_sweep_by_hand(tmp_path):
    lines = run(tmp_path / "out", "--sweep", made_sweep(tmp_path))
    assert len(lines) == 6 * 8 and {line["model"] for line in lines} == {"net_a", "net_b", "net_c"}
    first = next(line for line in lines if (line["model"], line["ratio"]) == ("net_b", "0.5"))
    assert float(first["arr"]) == pytest.approx(0.85)
    assert float(first["arr_std"]) == pytest.approx(0.01 / 0.6 / 2**0.5)
    shown = (tmp_path / "out" / "arr.md").read_text()
    assert "| toy | Prototype | net_a | 50.0 ± 0.0 | 88.0 ± 1.4 |" in shown
    assert "3 models (3 independent nets), mean ± std over 2 seeds" in shown
    for name in ("arr.tex", "arr_toy.png", "arr_toy.pdf"):
        assert (tmp_path / "out" / name).stat().st_size


def test_checkpoints_when_asked_for(tmp_path):
    lines = run(tmp_path / "out", "--sweep", made_sweep(tmp_path), "--checkpoints")
    assert "net_c_epoch2" in {line["model"] for line in lines}
    assert "means nothing: net_c_epoch1." in (tmp_path / "out" / "arr.md").read_text()
    made_ledger(tmp_path / "lone", "net_epoch1", 0.5, 0.4)
    lines = run(tmp_path / "out", "--model_root", tmp_path / "lone")  # nothing but a checkpoint: it was meant
    assert {line["model"] for line in lines} == {"net_epoch1"}


def test_a_ratio_that_one_run_lacks_is_a_dash(tmp_path):
    made_sweep(tmp_path)
    more = [{**row, "ratio": 0.8} for row in read_ledger(tmp_path / "net_a" / "results.jsonl") if row["ratio"] == 0.7]
    add_rows(tmp_path / "net_a" / "results.jsonl", more)
    run(tmp_path / "out", "--model_root", tmp_path / "net_a", tmp_path / "net_b")
    rows = [line.split(" | ") for line in (tmp_path / "out" / "arr.md").read_text().splitlines() if "| net_" in line]
    assert [row[9] for row in rows] == ["88.0 ± 1.4", "-"]  # s = 0.8 comes after 0, 0.1, 0.3, 0.5, 0.7


def curve(label, arr):
    return {"label": label, "ratios": [0, 0.5], "arr": arr}


def test_a_label_has_one_style_and_recurring_labels_one_legend():
    figure = arr_figure({"first": [curve("a", [[1, 0.5], [0.9, 0.7]]), curve("b", [[1, 1]])],
                         "second": [curve("b", [[1, 0.8]])]})
    first, second = figure.axes
    assert first.lines[0].get_ydata() == pytest.approx([95, 60])
    assert second.lines[0].get_color() == first.lines[1].get_color() != first.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert first.get_legend() is None
    alone = arr_figure({"": [curve("a", [[1, 0.5]]), curve("b", [[1, 1]])]})
    assert not alone.legends and len(alone.axes[0].get_legend().get_texts()) == 2
    plt.close("all")


def test_nine_curves_have_nine_styles():
    figure = arr_figure({"": [curve(str(number), [[1, 0.5]]) for number in range(9)]})
    lines = figure.axes[0].lines[:9]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9
    plt.close(figure)
