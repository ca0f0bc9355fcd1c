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
    """Draw curves into a PNG or PDF, a panel per entry of {title: curves}, all on one scale.

    A curve is {"label", "ratios" (S,), "arr" (R, S) one row per seed}. The line is the mean over seeds, the band mean
    ± one standard deviation (ddof 1).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharey=True, layout="constrained",
                                figsize=(7.2 if columns == 1 else 3.6 * columns, 4.4 if rows == 1 else 3.4 * rows))
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for index, curve in enumerate(curves):
            _draw(axes, curve, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        axes.axhline(100, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlim=(-0.02, 1.0), xticks=np.arange(0, 1, 0.2),
                 xlabel="sparsity ratio s (fraction of concepts set to zero)")
        axes.xaxis.label.set_size(10 if columns == 1 else 8)
        axes.grid(alpha=0.25)
        # Below the axes, so that it never covers data however many runs there are.
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16 if columns == 1 else -0.2), frameon=False,
                    fontsize=9 if columns == 1 else 8, borderaxespad=0)
    for axes in list(grid.flat)[len(panels):]:
        axes.set_axis_off()
    figure.supylabel("accuracy retention rate, % of dense top-1", fontsize=10)
    write_whole(Path(file), lambda temporary: figure.savefig(temporary, dpi=150))
    plt.close(figure)


def _draw(axes: Any, curve: dict[str, Any], colour: str, marker: str) -> None:
    arr_RS = 100 * np.atleast_2d(np.asarray(curve["arr"], float))
    mean = arr_RS.mean(0)
    axes.plot(curve["ratios"], mean, marker=marker, color=colour, label=curve["label"], markersize=4.5, linewidth=1.5)
    if len(arr_RS) > 1:
        std = arr_RS.std(0, ddof=1)
        axes.fill_between(curve["ratios"], mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
