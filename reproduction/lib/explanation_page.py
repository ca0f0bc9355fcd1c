"""Explanations as one HTML page that fetches nothing: a card an image, a row a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reproduction.lib.concept_images import Concept
from reproduction.lib.page import data_uri, escape, html_list, page, section
from reproduction.lib.stories import if_removed, percent, the_rest, verdict
from reproduction.lib.subjects import Subject

STYLE = """
.card { border: 1px solid #c8c8c8; border-radius: .4rem; padding: .8rem; margin: 1rem 0; }
.head { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; }
.head img { width: 9rem; height: 9rem; object-fit: contain; } .head p { margin: .2rem 0; flex: 1 1 14rem; }
.wrong { color: #8a2a00; font-weight: 600; } .right { color: #1d5c2e; font-weight: 600; }
.concept { display: grid; grid-template-columns: 9rem minmax(12rem, 1.2fr) 1fr; gap: .3rem 1rem; align-items: center;
  border-top: 1px solid #e2e2e2; padding: .5rem 0; }
.evidence { display: flex; flex-wrap: wrap; gap: .25rem; } .evidence img { width: 4rem; height: 4rem;
  object-fit: contain; } .evidence small { flex: 1 0 100%; color: #474747; line-height: 1.25; }
span.word { font-weight: 600; }
.bar { position: relative; height: 1.1rem; background: linear-gradient(#9a9a9a, #9a9a9a) 50% 0 / 1px 100% no-repeat; }
.bar i { position: absolute; top: .15rem; bottom: .15rem; }
.for { background: #1f6fb4; } .against { background: #c4622d; }
.numbers { font-variant-numeric: tabular-nums; font-size: .9rem; } .rest { color: #474747; font-size: .9rem; }
@media (max-width: 40rem) { .concept { grid-template-columns: 1fr 1fr; }
 .concept > :last-child { grid-column: 1 / -1; } }
"""
HOW_TO_READ = (
    "A concept's bar is what it gave to the decision between the predicted class and the runner-up: its activation "
    "times the difference of the two classes' weights, in logits. Blue to the right speaks for the predicted class, "
    "orange to the left for the runner-up. All bars and the biases sum exactly to the margin between the two.",
    "Activations are normalised, so a negative one means: less of this concept than usual. With a negative weight that "
    "speaks for a class too.",
    "Without it: the prediction when this concept's activation is set to 0 and all else stays as it is. For a concept "
    "that nearly every image has (it works like a bias) this is a large step away from all that was trained on.",
    "The arithmetic is exact; that a concept means what its images or its word suggest is not proved by it.")


def explanation_page(title: str, about: Sequence[str], told: Sequence[dict[str, Any]], subjects: Sequence[Subject],
                     concepts: Mapping[int, Concept], top: int, of_class: dict[str, Any] | None = None) -> str:
    """The page. told: `stories` of the subjects; concepts: what is shown of each concept named; of_class: `name`,
    `count`, and `lines` of `explain_class`, shown first where given."""
    parts = [f"<h1>{escape(title)}</h1>", html_list(about),
             f"<details><summary>How to read this page</summary>{html_list(HOW_TO_READ)}</details>"]
    if of_class:
        parts.append(section(f"The class {of_class['name']}", _class_card(of_class, concepts, top)))
    cards = "".join(card(story, subject, concepts, top) for story, subject in zip(told, subjects, strict=True))
    parts.append(section("Predictions", cards))
    return page(title, "\n".join(parts), STYLE)


def card(story: dict[str, Any], subject: Subject, concepts: Mapping[int, Concept], top: int) -> str:
    """One prediction as HTML, for a page with `STYLE`."""
    shown = story["concepts"][:top]
    longest = max((abs(concept["margin"]) for concept in shown), default=0.0)
    right = verdict(story)
    true = f"True class: {escape(story['true'])} " if story["true"] is not None else ""
    head = (f'<div class="head"><img src="{data_uri(subject.image, 400)}" alt="{escape(story["picture"])}">'
            f'<p>{escape(story["picture"])}<br>{true}<span class="{right}">{right and f"({right})"}</span><br>'
            f"Predicted: <strong>{escape(story['predicted'])}</strong>, {percent(story['probability'])}<br>"
            f"Runner-up: {escape(story['runner_up'])}, {percent(story['runner_up_probability'])}</p></div>")
    rows = "".join(_row(concepts[concept["concept"]], concept["margin"], longest,
                        f"{concept['margin']:+.2f} ({story['predicted']} {concept['to_predicted']:+.2f}, "
                        f"{story['runner_up']} {concept['to_runner_up']:+.2f}); "
                        f"activation {concept['activation']:+.2f}",
                        f"Without it: {if_removed(story, concept)}") for concept in shown)
    return f'<article class="card">{head}{rows}<p class="rest">Sum: {escape(the_rest(story, top))}.</p></article>\n'


def _class_card(of_class: dict[str, Any], concepts: Mapping[int, Concept], top: int) -> str:
    shown = of_class["lines"][:top]
    longest = max((abs(line["mean"]) for line in shown), default=0.0)
    recall = of_class["lines"][0]["recall"] if of_class["lines"] else 0.0
    rows = "".join(_row(concepts[line["concept"]], line["mean"], longest,
                        f"{line['mean']:+.2f} on average; in {percent(line['kept'])} of the images, with a mean "
                        f"activation of {line['activation']:+.2f}",
                        f"Without it: {percent(recall)} → {percent(line['without'])} of the images are predicted as "
                        f"{of_class['name']}") for line in shown)
    return (f"<p>Means over its {of_class['count']} validation images, of which {percent(recall)} are predicted as "
            f"{escape(of_class['name'])}: the contribution to this class minus the mean of those to the other classes, "
            f'in logits.</p><article class="card">{rows}</article>\n')


def _row(concept: Concept, value: float, longest: float, numbers: str, removed: str) -> str:
    """Evidence; bar and numbers; what would change. Bars of one card share their scale."""
    word = "small" if concept.images else "span"
    images = "".join(f'<img src="{data_uri(one, 160)}" alt="{escape(concept.label)}">' for one in concept.images)
    width = 50 * abs(value) / longest if longest else 0.0
    left = 50.0 if value >= 0 else 50 - width
    kind = "for" if value >= 0 else "against"
    label = f'<{word} class="word">{escape(concept.label)}</{word}>'
    return (f'<div class="concept"><div class="evidence">{images}{label}</div><div>'
            f'<div class="bar"><i class="{kind}" style="left:{left:.1f}%;width:{width:.1f}%"></i></div>'
            f'<div class="numbers">{escape(numbers)}</div></div><div>{escape(removed)}</div></div>\n')
