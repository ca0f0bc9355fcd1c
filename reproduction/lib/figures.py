"""Panels without holes, one style per label, and one legend below."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil
from typing import Any

import numpy as np

from iis.plots import COLOURS, MARKERS
from reproduction.lib.outputs import new_figure
from reproduction.lib.runs import Run

LINES = ("-", "--", ":", "-.")
SIGNS = {"close to chance": "x", "saturated": "+", "above the dense head": "1"}  # of marks


def panels(count: int, title: str, width: float = 3.5, height: float = 3.1, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure called `title` with `count` axes of (width, height) inches, three in a row; a last row with fewer stands
    in the middle. shared: sharex, sharey."""
    columns = min(3, count)
    rows = ceil(count / columns)
    figure, (grid,) = new_figure(max(5.4, width * columns), height * rows + 0.9)
    grid[0].remove()
    places, axes = figure.add_gridspec(rows, 2 * columns), []
    for place in range(count):
        row, column = divmod(place, columns)
        start = 2 * column + columns - min(columns, count - row * columns)
        axes.append(figure.add_subplot(places[row, start:start + 2], **{
            name: axes[0] for name, wanted in shared.items() if wanted and axes}))
        axes[-1].grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    return figure, axes


def style(place: int) -> dict[str, Any]:
    """Colour, marker and kind of line of the label at `place`."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)],
            "linestyle": LINES[place // len(COLOURS) % len(LINES)]}


def legend_below(figure: Any, axes: Iterable[Any], columns: int = 4) -> None:
    """One legend of all labels in the axes, below them."""
    labels = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False,
                  fontsize=8)


def band(axes: Any, x: Any, values_RT: np.ndarray, label: str, **look: Any) -> None:
    """The mean over rows R as a line, and mean ± one standard deviation (ddof 1) where there are several."""
    mean = values_RT.mean(0)
    axes.plot(x, mean, label=label, markersize=4.5, **look)
    if len(values_RT) > 1:
        std = values_RT.std(0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.18, linewidth=0)


def draw_marks(axes: Any, runs: Iterable[Run], place: Callable[[Run], tuple[float, float]]) -> None:
    """A black sign on every point whose run has marks, named in the legend."""
    for mark, sign in SIGNS.items():
        points = [place(run) for run in runs if mark in run.marks]
        if points:
            axes.plot(*zip(*points, strict=True), sign, color="black", markersize=8, label=mark)
