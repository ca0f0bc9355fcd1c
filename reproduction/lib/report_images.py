"""What a report shows: curves and scatter plots of all runs, and concepts and explained predictions of a few."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from iis.plots import arr_figure
from iis.runtime import UserError
from reproduction.arr_curves import curve
from reproduction.iis_against_accuracy import scatter
from reproduction.lib.concept_images import Concept, concept_of, elements_root
from reproduction.lib.explanation import Predictor, explain, load_predictor
from reproduction.lib.explanation_page import card
from reproduction.lib.page import data_uri, escape, html_figure, section
from reproduction.lib.points import epoch_of, groups, plain
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run
from reproduction.lib.stories import stories
from reproduction.lib.subjects import from_rows, spread

INCHES = (4.7, 4.2)  # of a panel: drawn small, so that its words can be read at the width of a phone


def comparable(runs: Sequence[Run]) -> list[Run]:
    """The plain runs of finished models; all plain ones where there are only checkpoints along pre-training."""
    kept = plain(runs)
    return [run for run in kept if epoch_of(run.model) is None] or kept


def curves(runs: Sequence[Run]) -> str:
    """The ARR curves of finished models: a figure per data set and bank. runs: of `comparable`."""
    found = groups(runs)
    return _panels({(dataset, bank): arr_figure({bank: [curve(run) for run in mine]})
                    for (dataset, bank), mine in found.items()}, "Accuracy retention rate against the sparsity ratio")


def scatters(runs: Sequence[Run]) -> str:
    """IIS against dense top-1: a figure per data set and bank with two models or more. runs: of `comparable`."""
    found = {key: mine for key, mine in groups(runs).items() if len({run.model for run in mine}) > 1}
    return _panels({(dataset, bank): scatter({bank: mine}) for (dataset, bank), mine in found.items()},
                   "IIS against dense top-1")


def _panels(figures: dict[tuple[str, str], Any], what: str) -> str:
    """Figures side by side, under the name of their data set."""
    parts = []
    for dataset in dict.fromkeys(dataset for dataset, _ in figures):
        _share_scale([figure for (where, _), figure in figures.items() if where == dataset])
        shown = "".join(html_figure(_image(figure), f"{what}, {dataset}, {bank}; the scores table has the numbers")
                        for (where, bank), figure in figures.items() if where == dataset)
        parts.append(f'<h3>{escape(dataset)}</h3><div class="panels">{shown}</div>')
    return "".join(parts)


def _share_scale(figures: Sequence[Any]) -> None:
    """One range of values for all figures of a data set, so that they can be compared by eye."""
    limits = [figure.axes[0].get_ylim() for figure in figures]
    for figure in figures:
        figure.axes[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _image(figure: Any) -> Image.Image:
    import matplotlib.pyplot as plt

    figure.set_size_inches(*INCHES)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    plt.close(figure)
    return Image.open(out)


def chosen(runs: Sequence[Run]) -> list[Run]:
    """Of every data set and kind of bank but Random, the run of the strongest model (highest dense top-1; of several
    sizes the smallest). runs: of `comparable`."""
    best: dict[tuple[str, str], tuple[Any, Run]] = {}
    for run in (run for run in runs if run.summary["bank"] != "Random"):  # a random direction looks like nothing
        key = run.summary["dataset"], run.summary["bank"]
        place = (run.summary["dense"]["mean"], -(run.identity["num_concepts"] or 0),
                 run.elements == "segments", run.summary["protocol"] == "paper")
        if key not in best or place > best[key][0]:
            best[key] = place, run
    return [run for _, run in best.values()]


def concepts_of(run: Run, count: int) -> str:
    """The `count` concepts with the largest weights, with their images or words and the classes they speak for.

    A sentence instead where predictors or images are not at hand.
    """
    title = f"{run.summary['dataset']}: {run.summary['bank']}, {run.model}"
    try:
        predictor, seed = _predictor(run)
        root = elements_root(run.folder, run.identity)
        strongest = predictor.weight_CM.abs().amax(0).argsort(descending=True, stable=True)[:count].tolist()
        tiles = "".join(_tile(concept_of(m, predictor.evidence[m], run.summary["bank"], root), predictor, m)
                        for m in strongest)
    except UserError as error:
        return section(title, f"<p>Not shown: {escape(error)}</p>", level=3)
    about = (f"{len(strongest)} of {len(predictor.bank_MD)} concepts, those with the largest weights at s = "
             f"{predictor.ratio:g}, seed {seed}; behind each, the classes it speaks for and against most (weight).")
    return section(title, f'<p class="caption">{escape(about)}</p><div class="concepts">{tiles}</div>', level=3)


def _predictor(run: Run) -> tuple[Predictor, int]:
    seed = run.summary["seeds"][0]
    return load_predictor(run.folder, seed), seed


def _tile(concept: Concept, predictor: Predictor, m: int) -> str:
    weight_C = predictor.weight_CM[:, m]
    most, least = int(weight_C.argmax()), int(weight_C.argmin())
    images = "".join(f'<img src="{data_uri(one, 128)}" alt="element of {escape(concept.label)}">'
                       for one in concept.images)
    speaks = ", ".join(f"{predictor.class_names[c]} {weight_C[c]:+.2f}" for c in (most, least))
    return (f'<figure><div class="evidence">{images}</div><figcaption><strong>{escape(concept.label)}</strong><br>'
            f"{escape(speaks)}</figcaption></figure>")


def predictions_of(run: Run, count: int, top: int = 4) -> str:
    """`count` validation images with the concepts that made their prediction; "" or a sentence as above."""
    title = f"{run.summary['dataset']} with {run.summary['bank']}, {run.model}"
    try:
        predictor, seed = _predictor(run)
        val = images_of(run, "val")
        root = elements_root(run.folder, run.identity)
        subjects = from_rows(spread(range(len(val)), count), val, run.summary["dataset"])
        features_ND = val.features_ND[spread(range(len(val)), count)].float()
        told = stories(predictor, explain(predictor, features_ND), subjects)
        wanted = {one["concept"] for story in told for one in story["concepts"][:top]}
        known = {m: concept_of(m, predictor.evidence[m], run.summary["bank"], root) for m in sorted(wanted)}
    except UserError as error:
        return section(title, f"<p>Not shown: {escape(error)}</p>", level=3)
    about = (f"Sparsity ratio {predictor.ratio:g}, {predictor.kept} of {len(predictor.bank_MD)} concepts kept, seed "
             f"{seed}; top-1 {100 * predictor.top1:.2f} %. Bars in logits: for the predicted class (blue) or for the "
             "runner-up (orange). reproduction/explain.py tells more, for any image.")
    cards = "".join(card(story, subject, known, top) for story, subject in zip(told, subjects, strict=True))
    return section(title, f'<p class="caption">{escape(about)}</p>{cards}', level=3)
