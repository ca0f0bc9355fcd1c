"""Explanations as people see them: plain values for JSON, CSV and a page, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from reproduction.lib.explained_images import Concept, Subject, concepts_of
from reproduction.lib.explanation import Predictor, explain
from reproduction.lib.outputs import new_figure
from reproduction.lib.page import PAGES, percent

FOR, AGAINST = "#1f6fb4", "#c4622d"
TILE = 44  # points: side of a concept's image in the figure


def cards_of(predictor: Predictor, subjects: Sequence[Subject], root: Path | None, top: int,
             lines: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """What the templates' cards take: `predictions` (of `explain`), `images` of the subjects, `top`, and `concepts`,
    the images or words of each concept shown. lines: of `explain_class`, where a class is shown too."""
    predictions = explain(predictor, subjects)
    shown = [concept for mine in (*(one["concepts"] for one in predictions), lines) for concept in mine[:top]]
    return {"predictions": predictions, "images": [one.image for one in subjects], "top": top,
            "concepts": concepts_of(shown, predictor.identity["bank"], root)}


def csv_lines(predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every image and kept concept."""
    return [{**{key: one[key] for key in ("picture", "true", "predicted", "probability", "runner_up")}, **concept}
            for one in predictions for concept in one["concepts"]]


def if_removed(prediction: dict[str, Any], concept: dict[str, Any]) -> str:
    """What would change without the concept: "still star, 91.2 % → 74.0 %", or "becomes circle, 55.1 %; …"."""
    change = f"{percent(prediction['probability'])} → {percent(concept['predicted_without'])}"
    if concept["without_class"] == prediction["predicted"]:
        return f"still {prediction['predicted']}, {change}"
    becomes = f"becomes {concept['without_class']}, {percent(concept['without_probability'])}"
    return f"{becomes}; {prediction['predicted']} {change}"


def verdict(prediction: dict[str, Any]) -> str:
    """"right", "wrong" or, where the true class is not known, nothing."""
    return "" if prediction["true"] is None else "right" if prediction["true"] == prediction["predicted"] else "wrong"


PAGES.filters |= {"if_removed": if_removed, "verdict": verdict}


def explanation_figure(title: str, predictions: Sequence[dict[str, Any]], images: Sequence[Image.Image],
                       concepts: Mapping[int, Concept], top: int, tiles: int = 3) -> Any:
    """A figure of what `cards_of` gives: a row an image, at most `top` concepts an image, `tiles` images a concept."""
    heights = [1.0 + 0.68 * max(2, min(top, len(one["concepts"]))) for one in predictions]  # inches
    figure, axes = new_figure(11, sum(heights) + 0.4, len(heights), 2, height_ratios=heights, width_ratios=[1.2, 3.4])
    figure.suptitle(title, fontsize=11, parse_math=False)
    for (left, right), prediction, image in zip(axes, predictions, images, strict=True):
        _image(left, prediction, image)
        _bars(right, prediction, concepts, top, tiles)
    return figure


def _image(axis: Any, prediction: dict[str, Any], image: Image.Image) -> None:
    axis.imshow(np.asarray(image))
    axis.set_anchor("N")
    axis.axis("off")
    lines = [f"{prediction['predicted']}, {percent(prediction['probability'])}",
             f"then {prediction['runner_up']}, {percent(prediction['runner_up_probability'])}"]
    lines += [f"true: {prediction['true']} ({verdict(prediction)})"] if prediction["true"] is not None else []
    axis.text(0.5, -0.04, "\n".join(lines), transform=axis.transAxes, ha="center", va="top", fontsize=8,
              parse_math=False)


def _bars(axis: Any, prediction: dict[str, Any], concepts: Mapping[int, Concept], top: int, tiles: int) -> None:
    """Bars of the margin contributions; evidence at the left edge, the prediction without a concept at the right."""
    shown = prediction["concepts"][:top]
    values = [concept["margin"] for concept in shown]
    longest = max(map(abs, values), default=1.0) or 1.0
    axis.barh(range(len(shown)), values, height=0.45, color=[FOR if value >= 0 else AGAINST for value in values])
    axis.axvline(0, color="#9a9a9a", linewidth=0.8)
    axis.set(ylim=(max(len(shown), 1) - 0.4, -0.6), xlim=(-1.85 * longest, 1.85 * longest), yticks=[])
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    beside = axis.get_yaxis_transform()
    gives = f"gives to {prediction['predicted']} rather than {prediction['runner_up']}, logits (a: activation)"
    for x, head, where in ((-0.03, "concept", "right"), (0.5, gives, "center"), (1.03, "without it", "left")):
        axis.text(x, 1.02, head, transform=axis.transAxes, ha=where, va="bottom", fontsize=8, fontweight="bold",
                  parse_math=False)
    for y, concept in enumerate(shown):
        _evidence(axis, y, concepts[concept["concept"]], tiles)
        side = 1 if concept["margin"] >= 0 else -1
        axis.annotate(f"{concept['margin']:+.2f}  (a = {concept['activation']:+.2f})", (concept["margin"], y),
                      xytext=(3 * side, 0), textcoords="offset points", va="center", fontsize=7,
                      ha="left" if side > 0 else "right")
        new, change = if_removed(prediction, concept).split(", ", 1)
        axis.annotate(f"{textwrap.fill(f'{new},', 44)}\n{textwrap.fill(change, 44)}", (1.03, y), va="center",
                      fontsize=7, xycoords=beside, parse_math=False)


def _evidence(axis: Any, y: int, concept: Concept, tiles: int) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    if not concept.images:
        axis.annotate(textwrap.fill(concept.label, 26), (-0.03, y), xycoords=axis.get_yaxis_transform(), ha="right",
                      va="center", fontsize=8, parse_math=False)
    for place, image in enumerate(concept.images[:tiles]):
        small = ImageOps.contain(image, (200, 200)) if max(image.size) > 200 else image
        box = OffsetImage(np.asarray(small), zoom=TILE / max(small.size))
        axis.add_artist(AnnotationBbox(box, (0, y), xybox=(-6 - (place + 0.5) * (TILE + 2), 0), frameon=False,
                                       xycoords=axis.get_yaxis_transform(), boxcoords="offset points", pad=0))
