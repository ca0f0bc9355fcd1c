"""The ARR curve: accuracy retention against sparsity, one line per run with its spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iis.runtime import write_whole

# Okabe and Ito's palette, told apart by colour-blind readers; markers help in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"


def plot_arr(panels: dict[str, Sequence[dict[str, Any]]], file: Path) -> None:
    """`arr_figure` as a PNG or PDF file."""
    figure = arr_figure(panels)
    write_whole(Path(file), lambda temporary: figure.savefig(temporary, dpi=150))

    import matplotlib.pyplot as plt

    plt.close(figure)


def arr_figure(panels: dict[str, Sequence[dict[str, Any]]]) -> Any:
    """A figure of curves, a panel per entry of {title: curves}, all on one scale; the caller writes and closes it.

    A curve is {"label", "ratios" (S,), "arr" (R, S) one row per seed}. The line is the mean over seeds, the band mean
    ± one standard deviation (ddof 1). One label has one style in all panels, and where labels recur one legend serves
    all panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(curve["label"] for curves in panels.values() for curve in curves))
    recurring = len(labels) < sum(len(curves) for curves in panels.values())
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharey=True, layout="constrained",
                                figsize=(7.2 if columns == 1 else 3.6 * columns, 4.4 if rows == 1 else 3.4 * rows))
    handles: dict[str, Any] = {}
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for index, curve in enumerate(curves):
            place = labels.index(curve["label"]) if recurring else index
            handles[curve["label"]] = _draw(axes, curve, COLOURS[place % len(COLOURS)],
                                            MARKERS[(place + place // len(COLOURS)) % len(MARKERS)])
        axes.axhline(100, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(title, fontsize=12 if columns == 1 else 10)
        axes.set(xlim=(-0.02, 1.0), xticks=np.arange(0, 1, 0.2),
                 xlabel="sparsity ratio s (fraction of concepts set to zero)")
        axes.xaxis.label.set_size(10 if columns == 1 else 8)
        axes.grid(alpha=0.25)
        if not recurring:  # below the axes, so that it never covers data however many runs there are
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16 if columns == 1 else -0.2), frameon=False,
                        fontsize=9 if columns == 1 else 8, borderaxespad=0)
    if recurring:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=2 * columns, frameon=False,
                      fontsize=8)
    for axes in list(grid.flat)[len(panels):]:
        axes.set_axis_off()
    figure.supylabel("accuracy retention rate, % of dense top-1", fontsize=10)
    return figure


def _draw(axes: Any, curve: dict[str, Any], colour: str, marker: str) -> Any:
    arr_RS = 100 * np.atleast_2d(np.asarray(curve["arr"], float))
    mean = arr_RS.mean(0)
    line, = axes.plot(curve["ratios"], mean, marker=marker, color=colour, label=curve["label"], markersize=4.5,
                      linewidth=1.5)
    if len(arr_RS) > 1:
        std = arr_RS.std(0, ddof=1)
        axes.fill_between(curve["ratios"], mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    return line
