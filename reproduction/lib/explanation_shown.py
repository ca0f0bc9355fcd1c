"""Explanations as people see them: plain values for JSON, CSV and a page, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image, ImageOps

from reproduction.lib.explained_images import Concept, Subject, concept_of
from reproduction.lib.explanation import Predictor, explain
from reproduction.lib.outputs import new_figure
from reproduction.lib.page import PAGES, percent

FOR, AGAINST = "#1f6fb4", "#c4622d"
TILE = 52  # points: side of a concept's image in the figure


def cards_of(predictor: Predictor, subjects: Sequence[Subject], root: Path | None, top: int,
             lines: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """What the templates' cards take: `predictions` (of `explain`), `images` of the subjects, `top`, and `concepts`,
    the images or words of each concept shown. lines: of `explain_class`, where a class is shown too."""
    predictions, bank = explain(predictor, subjects), predictor.identity["bank"]
    shown = {line["concept"] for mine in (*(one["concepts"] for one in predictions), lines) for line in mine[:top]}
    return {"predictions": predictions, "images": [one.image for one in subjects], "top": top,
            "concepts": {m: concept_of(m, predictor.evidence[m], bank, root) for m in sorted(shown)}}


def csv_lines(predictions: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A line for every image and kept concept."""
    of_image = ["picture", "true", "predicted", "probability", "runner_up"]
    lines = pd.json_normalize(predictions, "concepts", of_image)
    return lines[[*of_image, *lines.columns.drop(of_image)]]


def if_removed(prediction: dict[str, Any], concept: dict[str, Any]) -> str:
    """What would change without the concept: "still star, 91.2 % → 74.0 %", or "becomes circle, 55.1 %; …"."""
    change = f"{percent(prediction['probability'])} → {percent(concept['predicted_without'])}"
    if concept["without_class"] == prediction["predicted"]:
        return f"still {prediction['predicted']}, {change}"
    becomes = f"becomes {concept['without_class']}, {percent(concept['without_probability'])}"
    return f"{becomes}; {prediction['predicted']} {change}"


PAGES.filters["if_removed"] = if_removed


def explanation_figure(title: str, predictions: Sequence[dict[str, Any]], images: Sequence[Image.Image],
                       concepts: Mapping[int, Concept], top: int, tiles: int = 3) -> Any:
    """A figure of what `cards_of` gives: a row an image, at most `top` concepts an image, `tiles` images a concept."""
    heights = [1.0 + 0.78 * max(2, min(top, len(one["concepts"]))) for one in predictions]  # inches
    figure, axes = new_figure(11, sum(heights) + 0.4, len(heights), 2, height_ratios=heights, width_ratios=[1.2, 3.4])
    figure.suptitle(title, fontsize=11, parse_math=False)
    for (left, right), prediction, image in zip(axes, predictions, images, strict=True):
        _image(left, prediction, image)
        _bars(right, prediction, concepts, top, tiles)
    figure.get_layout_engine().set(h_pad=0.1)
    return figure


def _image(axis: Any, prediction: dict[str, Any], image: Image.Image) -> None:
    axis.imshow(np.asarray(image))
    axis.set_anchor("N")
    axis.axis("off")
    lines = [f"{prediction['predicted']}, {percent(prediction['probability'])}",
             f"then {prediction['runner_up']}, {percent(prediction['runner_up_probability'])}"]
    if prediction["true"] is not None:
        verdict = "right" if prediction["true"] == prediction["predicted"] else "wrong"
        lines.append(f"true: {prediction['true']} ({verdict})")
    axis.text(0.5, -0.04, "\n".join(textwrap.fill(line, 38) for line in lines), transform=axis.transAxes, ha="center",
              va="top", fontsize=8, parse_math=False)


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
    gives = f"gives to {prediction['predicted']} rather than {prediction['runner_up']}, logits (a: activation)"
    for x, head, where in ((-0.03, "concept", "right"), (0.5, textwrap.fill(gives, 70), "center"),
                           (1.03, "without it", "left")):
        axis.text(x, 1.02, head, transform=axis.transAxes, ha=where, va="bottom", fontsize=8, fontweight="bold",
                  parse_math=False)
    beside = {"xycoords": axis.get_yaxis_transform(), "va": "center", "parse_math": False}
    for y, concept in enumerate(shown):
        side = 1 if concept["margin"] >= 0 else -1
        axis.annotate(f"{concept['margin']:+.2f}  (a = {concept['activation']:+.2f})", (concept["margin"], y),
                      xytext=(3 * side, 0), textcoords="offset points", va="center", fontsize=7,
                      ha="left" if side > 0 else "right")
        new, change = if_removed(prediction, concept).split(", ", 1)
        axis.annotate(f"{textwrap.fill(f'{new},', 44)}\n{textwrap.fill(change, 44)}", (1.03, y), fontsize=7, **beside)
        evidence = concepts[concept["concept"]]
        if not evidence.images:
            axis.annotate(textwrap.fill(evidence.label, 26), (-0.03, y), ha="right", fontsize=8, **beside)
        for place, image in enumerate(evidence.images[:tiles]):
            small = np.asarray(ImageOps.contain(image, (200, 200)) if max(image.size) > 200 else image)
            axis.add_artist(AnnotationBbox(OffsetImage(small, zoom=TILE / max(small.shape[:2])), (0, y), pad=0,
                                           xybox=(-6 - (place + 0.5) * (TILE + 2), 0), frameon=False,
                                           xycoords=beside["xycoords"], boxcoords="offset points"))
