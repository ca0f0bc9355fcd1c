"""Explanations as people see them: plain values for JSON and CSV, cards of a page, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ImageOps

from reproduction.lib.explained_images import Concept, Subject
from reproduction.lib.explanation import Explanation, Predictor, strongest
from reproduction.lib.outputs import new_figure
from reproduction.lib.page import percent

FOR, AGAINST = "#1f6fb4", "#c4622d"
TILE = 44  # points: side of a concept's image in the figure


def stories(predictor: Predictor, explanation: Explanation, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """One dictionary an image: its prediction, and every concept that its interpretation keeps, the one that moved
    the margin between predicted class and runner-up most first. Contributions are in logits."""
    return [_story(predictor, explanation, n, subject) for n, subject in enumerate(subjects)]


def _story(predictor: Predictor, explanation: Explanation, n: int, subject: Subject) -> dict[str, Any]:
    names = predictor.class_names
    first, second = explanation.classes_NC[n, :2].tolist()
    logits_C, margin_M = explanation.logits_NC[n], explanation.margin_NM[n]
    order = strongest(margin_M)  # then the kept concepts that move the margin by nothing
    order += [m for m in strongest(explanation.x_NM[n]) if m not in set(order)]
    concepts = [{"concept": m, "evidence": predictor.evidence[m], "activation": float(explanation.x_NM[n, m]),
                 "to_predicted": float(explanation.to_predicted_NM[n, m]),
                 "to_runner_up": float(explanation.to_runner_up_NM[n, m]), "margin": float(margin_M[m]),
                 "without_class": names[int(explanation.without_class_NM[n, m])],
                 "without_probability": float(explanation.without_probability_NM[n, m]),
                 "predicted_without": float(explanation.predicted_without_NM[n, m])} for m in order]
    story = {"picture": subject.name, "true": None if subject.label is None else names[subject.label]}
    for what, c in (("predicted", first), ("runner_up", second)):
        story |= {what: names[c], f"logit_{what}": float(logits_C[c]), f"bias_{what}": float(predictor.bias_C[c])}
    probability_C = logits_C.softmax(0)
    return story | {"probability": float(probability_C[first]), "runner_up_probability": float(probability_C[second]),
                    "margin": float(logits_C[first] - logits_C[second]), "concepts": concepts}


def csv_lines(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every image and kept concept."""
    return [{**{key: story[key] for key in ("picture", "true", "predicted", "probability", "runner_up")}, **concept}
            for story in told for concept in story["concepts"]]


def if_removed(story: dict[str, Any], concept: dict[str, Any]) -> str:
    """What would change without the concept: "still star, 91.2 % → 74.0 %", or "becomes circle, 55.1 %; …"."""
    change = f"{percent(story['probability'])} → {percent(concept['predicted_without'])}"
    if concept["without_class"] == story["predicted"]:
        return f"still {story['predicted']}, {change}"
    becomes = f"becomes {concept['without_class']}, {percent(concept['without_probability'])}"
    return f"{becomes}; {story['predicted']} {change}"


def verdict(story: dict[str, Any]) -> str:
    """"right", "wrong" or, where the true class is not known, nothing."""
    return "" if story["true"] is None else "right" if story["true"] == story["predicted"] else "wrong"


def the_rest(story: dict[str, Any], top: int) -> str:
    """What the concepts that are not shown and the biases add, so that the sum is complete."""
    shown, rest = story["concepts"][:top], story["concepts"][top:]
    parts = [f"the {len(shown)} concepts above {sum(one['margin'] for one in shown):+.2f}"]
    if rest:
        parts.append(f"{len(rest)} more {sum(one['margin'] for one in rest):+.2f}")
    parts.append(f"biases {story['bias_predicted'] - story['bias_runner_up']:+.2f}")
    return f"{', '.join(parts)}: a margin of {story['margin']:+.2f} logits"


# ---- a page ----


def card_of(story: dict[str, Any], subject: Subject, concepts: Mapping[int, Concept], top: int) -> dict[str, Any]:
    """One prediction as the template's `card` takes it, with at most `top` concepts."""
    rows = [{"concept": concepts[one["concept"]], "value": one["margin"], "removed": if_removed(story, one), "numbers":
             f"{one['margin']:+.2f} ({story['predicted']} {one['to_predicted']:+.2f}, {story['runner_up']} "
             f"{one['to_runner_up']:+.2f}); activation {one['activation']:+.2f}"} for one in story["concepts"][:top]]
    heads = ["Concept", f"Gives to {story['predicted']} rather than {story['runner_up']}, logits", "Without it"]
    return {**story, "image": subject.image, "verdict": verdict(story), "rest": the_rest(story, top), "heads": heads,
            "rows": _one_scale(rows)}


def class_card(of_class: dict[str, Any], concepts: Mapping[int, Concept], top: int) -> dict[str, Any]:
    """A whole class as the template takes it. of_class: `name`, `count`, and `lines` of `explain_class`."""
    lines, name = of_class["lines"], of_class["name"]
    recall = lines[0]["recall"] if lines else 0.0
    rows = [{"concept": concepts[line["concept"]], "value": line["mean"], "numbers":
             f"{line['mean']:+.2f} on average; in {percent(line['kept'])} of the images, with a mean activation of "
             f"{line['activation']:+.2f}", "removed": f"{percent(recall)} → {percent(line['without'])} of the images "
             f"are predicted as {name}"} for line in lines[:top]]
    heads = ["Concept", f"Gives to {name} rather than the other classes, logits", "Without it"]
    return {"name": name, "count": of_class["count"], "recall": recall, "heads": heads, "rows": _one_scale(rows)}


def _one_scale(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with `left` and `width` of their bars, in percent: 0 is at 50, the longest bar takes a half."""
    longest = max((abs(row["value"]) for row in rows), default=0.0) or 1.0
    widths = [50 * abs(row["value"]) / longest for row in rows]
    return [{**row, "width": width, "left": 50 if row["value"] >= 0 else 50 - width}
            for row, width in zip(rows, widths, strict=True)]


# ---- a figure ----


def explanation_figure(title: str, told: Sequence[dict[str, Any]], subjects: Sequence[Subject],
                       concepts: Mapping[int, Concept], top: int, tiles: int = 3) -> Any:
    """A figure, a row an image, with at most `top` concepts an image and `tiles` images a concept."""
    heights = [1.0 + 0.68 * max(2, min(top, len(story["concepts"]))) for story in told]  # inches
    figure, axes = new_figure(11, sum(heights) + 0.4, len(told), 2, height_ratios=heights, width_ratios=[1, 3.4])
    figure.suptitle(title, fontsize=11, parse_math=False)
    for (left, right), story, subject in zip(axes, told, subjects, strict=True):
        _image(left, story, subject)
        _bars(right, story, concepts, top, tiles)
    return figure


def _image(axis: Any, story: dict[str, Any], subject: Subject) -> None:
    axis.imshow(np.asarray(subject.image))
    axis.set_anchor("N")
    axis.axis("off")
    lines = [f"{story['predicted']}, {percent(story['probability'])}",
             f"then {story['runner_up']}, {percent(story['runner_up_probability'])}"]
    lines += [f"true: {story['true']} ({verdict(story)})"] if story["true"] is not None else []
    axis.text(0.5, -0.04, "\n".join(lines), transform=axis.transAxes, ha="center", va="top", fontsize=8,
              parse_math=False)


def _bars(axis: Any, story: dict[str, Any], concepts: Mapping[int, Concept], top: int, tiles: int) -> None:
    """Bars of the margin contributions; evidence at the left edge, the prediction without a concept at the right."""
    shown = story["concepts"][:top]
    values = [concept["margin"] for concept in shown]
    longest = max(map(abs, values), default=1.0) or 1.0
    axis.barh(range(len(shown)), values, height=0.45, color=[FOR if value >= 0 else AGAINST for value in values])
    axis.axvline(0, color="#9a9a9a", linewidth=0.8)
    axis.set(ylim=(max(len(shown), 1) - 0.4, -0.6), xlim=(-1.85 * longest, 1.85 * longest), yticks=[])
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    beside = axis.get_yaxis_transform()
    gives = f"gives to {story['predicted']} rather than {story['runner_up']}, logits (a: activation)"
    for x, head, where in ((-0.03, "concept", "right"), (0.5, gives, "center"), (1.03, "without it", "left")):
        axis.text(x, 1.02, head, transform=axis.transAxes, ha=where, va="bottom", fontsize=8, fontweight="bold",
                  parse_math=False)
    for y, concept in enumerate(shown):
        _evidence(axis, y, concepts[concept["concept"]], tiles)
        side = 1 if concept["margin"] >= 0 else -1
        axis.annotate(f"{concept['margin']:+.2f}  (a = {concept['activation']:+.2f})", (concept["margin"], y),
                      xytext=(3 * side, 0), textcoords="offset points", va="center", fontsize=7,
                      ha="left" if side > 0 else "right")
        new, change = if_removed(story, concept).split(", ", 1)
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
