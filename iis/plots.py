"""The ARR curve: accuracy retention against sparsity, one line per run with its spread over seeds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iis.runtime import write_whole

# Okabe and Ito's palette, told apart by colour-blind readers; markers help in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"


class NotebookFigure(Figure):
    """A figure that a notebook shows, whatever its plotting backend."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, dpi=100)
        return out.getvalue()


def write_arr(panels: dict[str, Sequence[dict[str, Any]]], file: Path) -> None:
    """`arr_figure` as `file` (PNG) and as a PDF beside it."""
    figure = arr_figure(panels)
    for one in (Path(file), Path(file).with_suffix(".pdf")):
        write_whole(one, lambda temporary: figure.savefig(temporary, dpi=150))


def arr_figure(panels: dict[str, Sequence[dict[str, Any]]]) -> NotebookFigure:
    """A matplotlib figure of curves, a panel per entry of {title: curves}, all on one scale.

    A curve is {"label", "ratios" (S,), "arr" (R, S) one row per seed}. The line is the mean over seeds, the band mean
    ± one standard deviation (ddof 1). A label has one style in all panels, and one legend below serves them all. Panels
    of an unfinished last row are wider: no place stays empty.
    """
    titles, columns = list(panels), 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = [titles[start:start + columns] for start in range(0, len(titles), columns)]
    labels = list(dict.fromkeys(curve["label"] for curves in panels.values() for curve in curves))
    height = 3.8 * len(rows) + 0.5 + 0.22 * len(labels) / columns
    figure = NotebookFigure(figsize=(7.2 if columns == 1 else 4.2 * columns, height), layout="constrained")
    handles, shared = {}, None
    for part, row in zip(np.atleast_1d(figure.subfigures(len(rows), 1)), rows, strict=True):
        for place, title in enumerate(row, start=1):
            axes = shared = part.add_subplot(1, len(row), place, sharey=shared)
            for curve in panels[title]:
                number = labels.index(curve["label"])
                handles[curve["label"]] = _draw_curve(axes, curve, COLOURS[number % len(COLOURS)],
                                                      MARKERS[(number + number // len(COLOURS)) % len(MARKERS)])
            axes.axhline(100, color="0.6", linewidth=0.8, linestyle=":")
            axes.set_title(title, fontsize=9 if columns > 1 or len(title) > 60 else 11, wrap=True)
            axes.set(xlim=(-0.02, 1.0), xticks=np.arange(0, 1, 0.2))
            axes.set_xlabel("sparsity ratio s (fraction of concepts set to zero)", fontsize=8 if columns > 1 else 10)
            axes.grid(alpha=0.25)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    figure.supylabel("accuracy retention rate, % of dense top-1", fontsize=10)
    return figure


def _draw_curve(axes: Any, curve: dict[str, Any], colour: str, marker: str) -> Any:
    arr_RS = 100 * np.atleast_2d(np.asarray(curve["arr"], float))
    mean = arr_RS.mean(0)
    line, = axes.plot(curve["ratios"], mean, marker=marker, color=colour, label=curve["label"], markersize=4.5,
                      linewidth=1.5)
    if len(arr_RS) > 1:
        std = arr_RS.std(0, ddof=1)
        axes.fill_between(curve["ratios"], mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    return line
