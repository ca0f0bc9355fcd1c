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


def plot_arr(curves: Sequence[dict[str, Any]], file: Path, title: str = "") -> None:
    """Draw curves, each {"label", "ratios" (S,), "arr" (R, S) one row per seed}, into a PNG or PDF.

    The line is the mean over seeds, the band mean ± one standard deviation (ddof 1).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for index, curve in enumerate(curves):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        arr_RS = 100 * np.atleast_2d(np.asarray(curve["arr"], float))
        mean = arr_RS.mean(0)
        axes.plot(curve["ratios"], mean, marker=marker, color=colour, label=curve["label"], markersize=5)
        if len(arr_RS) > 1:
            std = arr_RS.std(0, ddof=1)
            axes.fill_between(curve["ratios"], mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    axes.axhline(100, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xlabel="sparsity ratio s (fraction of concepts set to zero)",
             ylabel="accuracy retention rate, % of dense top-1", xlim=(-0.02, 1.0), title=title)
    axes.grid(alpha=0.25)
    # Beside the axes, so that it never covers data however many runs there are.
    figure.legend(loc="outside lower center", ncols=min(2, len(curves)), frameon=False, fontsize=9)
    write_whole(Path(file), lambda temporary: figure.savefig(temporary, dpi=150))
    plt.close(figure)
