"""Explanations as a figure: a row an image, with the bars of its concepts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from reproduction.lib.concept_images import Concept
from reproduction.lib.stories import if_removed, percent, verdict
from reproduction.lib.subjects import Subject

FOR, AGAINST = "#1f6fb4", "#c4622d"
TILE = 30  # points: side of a concept's image
WIDTH = 10.0  # inches


def explanation_figure(told: Sequence[dict[str, Any]], subjects: Sequence[Subject], concepts: Mapping[int, Concept],
                       top: int, tiles: int = 3) -> Any:
    """A figure with at most `top` concepts an image, `tiles` images a concept."""
    from reproduction.lib.outputs import new_figure

    heights = [0.75 + 0.5 * max(2, min(top, len(story["concepts"]))) for story in told]  # inches
    figure, axes = new_figure(WIDTH, sum(heights), len(told), 2, height_ratios=heights, width_ratios=[1, 3.9])
    for (left, right), story, subject in zip(axes, told, subjects, strict=True):
        _image(left, story, subject)
        _bars(right, story, concepts, top, tiles)
    return figure


def _image(axis: Any, story: dict[str, Any], subject: Subject) -> None:
    axis.imshow(np.asarray(subject.image))
    axis.set_anchor("N")
    axis.axis("off")
    lines = [f"{story['predicted']}, {percent(story['probability'])}", f"then {story['runner_up']}, "
             f"{percent(story['runner_up_probability'])}"]
    if story["true"] is not None:
        lines.append(f"true: {story['true']} ({verdict(story)})")
    axis.text(0.5, -0.04, "\n".join(lines), transform=axis.transAxes, ha="center", va="top", fontsize=8,
              parse_math=False)


def _bars(axis: Any, story: dict[str, Any], concepts: Mapping[int, Concept], top: int, tiles: int) -> None:
    """Bars of the margin contributions; evidence at the left edge, what would change without a concept at the right."""
    shown = story["concepts"][:top]
    values = [concept["margin"] for concept in shown]
    longest = max(map(abs, values), default=1.0) or 1.0
    axis.barh(range(len(shown)), values, height=0.45, color=[FOR if value >= 0 else AGAINST for value in values])
    axis.axvline(0, color="#9a9a9a", linewidth=0.8)
    axis.set(ylim=(max(len(shown), 1) - 0.4, -0.6), xlim=(-1.85 * longest, 1.85 * longest), yticks=[])
    axis.set_xlabel(f"gives to {story['predicted']} rather than {story['runner_up']}, logits (a: activation)",
                    fontsize=8, parse_math=False)
    axis.tick_params(labelsize=7)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    for y, concept in enumerate(shown):
        _evidence(axis, y, concepts[concept["concept"]], tiles)
        side = 1 if concept["margin"] >= 0 else -1
        axis.annotate(f"{concept['margin']:+.2f}  (a = {concept['activation']:+.2f})", (concept["margin"], y),
                      xytext=(3 * side, 0), textcoords="offset points", va="center", fontsize=7,
                      ha="left" if side > 0 else "right")
        new, change = f"without it {if_removed(story, concept)}".split(", ", 1)
        said = f"{textwrap.fill(f'{new},', 44)}\n{textwrap.fill(change, 44)}"
        axis.annotate(said, (1.03, y), va="center", fontsize=7, xycoords=axis.get_yaxis_transform(), parse_math=False)


def _evidence(axis: Any, y: int, concept: Concept, tiles: int) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    if not concept.images:
        axis.annotate(textwrap.fill(concept.label, 26), (-0.03, y), xycoords=axis.get_yaxis_transform(), ha="right",
                      va="center", fontsize=8, parse_math=False)
    for place, image in enumerate(concept.images[:tiles]):
        small = image.copy()
        small.thumbnail((160, 160), Image.Resampling.LANCZOS)
        box = OffsetImage(np.asarray(small), zoom=TILE / max(small.size))
        axis.add_artist(AnnotationBbox(box, (0, y), xybox=(-6 - (place + 0.5) * (TILE + 2), 0), frameon=False,
                                       xycoords=axis.get_yaxis_transform(), boxcoords="offset points", pad=0))
