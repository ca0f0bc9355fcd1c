"""Explanations as plain values: what the page shows, the JSON holds and the CSV lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reproduction.lib.explanation import Explanation, Predictor, strongest
from reproduction.lib.subjects import Subject


def stories(predictor: Predictor, explanation: Explanation, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """One dictionary an image: its prediction, and every concept that its interpretation keeps, the one that moved
    the margin between predicted class and runner-up most first. Contributions are in logits."""
    return [_story(predictor, explanation, n, subject) for n, subject in enumerate(subjects)]


def _story(predictor: Predictor, explanation: Explanation, n: int, subject: Subject) -> dict[str, Any]:
    names = predictor.class_names
    first, second = explanation.classes_NC[n, :2].tolist()
    probability_C = explanation.probability_NC[n]
    margin_M = explanation.margin_NM[n]
    # Kept concepts that move the margin by nothing come last.
    order = strongest(margin_M)
    order += [m for m in strongest(explanation.x_NM[n]) if m not in set(order)]
    concepts = [{"concept": m, "evidence": predictor.evidence[m], "activation": float(explanation.x_NM[n, m]),
                 "to_predicted": float(explanation.to_predicted_NM[n, m]),
                 "to_runner_up": float(explanation.to_runner_up_NM[n, m]), "margin": float(margin_M[m]),
                 "without_class": names[int(explanation.without_class_NM[n, m])],
                 "without_probability": float(explanation.without_probability_NM[n, m]),
                 "predicted_without": float(explanation.predicted_without_NM[n, m])} for m in order]
    return {"picture": subject.name, "true": None if subject.label is None else names[subject.label],
            "predicted": names[first], "probability": float(probability_C[first]),
            "runner_up": names[second], "runner_up_probability": float(probability_C[second]),
            "logit_predicted": float(explanation.logits_NC[n, first]),
            "logit_runner_up": float(explanation.logits_NC[n, second]),
            "bias_predicted": float(predictor.bias_C[first]), "bias_runner_up": float(predictor.bias_C[second]),
            "margin": float(explanation.logits_NC[n, first] - explanation.logits_NC[n, second]),
            "concepts": concepts}


def csv_lines(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for every image and kept concept."""
    return [{**{key: story[key] for key in ("picture", "true", "predicted", "probability", "runner_up")}, **concept}
            for story in told for concept in story["concepts"]]


def percent(share: float) -> str:
    """"91.2 %", with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


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
