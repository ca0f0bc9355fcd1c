"""The images of a report: figures of all runs, what other scripts have made, and concepts and predictions of a few."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from iis.plots import arr_figure
from iis.runtime import UserError, read_json
from reproduction.arr_curves import curve
from reproduction.iis_against_accuracy import scatter
from reproduction.lib.explained_images import concept_of, concepts_of, elements_root, from_rows, spread
from reproduction.lib.explanation import explain, load_predictor
from reproduction.lib.explanation_shown import stories
from reproduction.lib.outputs import HANDED_OVER
from reproduction.lib.points import groups
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run

INCHES = (4.7, 4.2)  # of a panel: drawn small, so that its words can be read at the width of a phone
OWN = ("arr", "iis_points", "iis_against_accuracy", "report")  # what a report makes itself

# ---- figures of all runs ----


def curves(runs: Sequence[Run]) -> dict[str, list[tuple[Image.Image, str]]]:
    """{data set: [(figure, its description)]}: the ARR curves of each bank. runs: of `finished`."""
    return _panels({key: arr_figure({key[1]: [curve(run) for run in mine]}) for key, mine in groups(runs).items()},
                   "Accuracy retention rate against the sparsity ratio")


def scatters(runs: Sequence[Run]) -> dict[str, list[tuple[Image.Image, str]]]:
    """The same of IIS against dense top-1, for each bank with two models or more."""
    return _panels({key: scatter({key[1]: mine}) for key, mine in groups(runs).items()
                    if len({run.model for run in mine}) > 1}, "IIS against dense top-1")


def _panels(figures: dict[tuple[str, str], Any], what: str) -> dict[str, list[tuple[Image.Image, str]]]:
    """Images of the figures; those of a data set share one range of values, so that they can be compared by eye."""
    import matplotlib.pyplot as plt

    found: dict[str, list[tuple[Image.Image, str]]] = {}
    for (dataset, bank), figure in figures.items():
        limits = [other.axes[0].get_ylim() for (where, _), other in figures.items() if where == dataset]
        figure.axes[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        figure.set_size_inches(*INCHES)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=150)
        alt = f"{what}, {dataset}, {bank}; the scores table has the numbers"
        found.setdefault(dataset, []).append((Image.open(out), alt))
    for figure in figures.values():
        plt.close(figure)
    return found


# ---- what other scripts have made ----


def made_before(folder: Path) -> list[dict[str, Any]]:
    """Tables (NAME.table.json of `write_table`) and figures (NAME.png) in `folder`, but those of the report itself.

    A figure stands with the table whose name begins its own: controls_shapes.png with controls. Each part has `title`,
    `figures` (files), `rows` and `caption`.
    """
    tables = {file.name.removesuffix(HANDED_OVER): read_json(file) for file in folder.glob(f"*{HANDED_OVER}")}
    parts: dict[str, dict[str, Any]] = {}
    for name in sorted({*tables, *(file.stem for file in folder.glob("*.png"))}):
        if not re.match(rf"({'|'.join(OWN)})(_|$)", name):
            owner = max((table for table in tables if f"{name}_".startswith(f"{table}_")), key=len, default=name)
            part = parts.setdefault(owner, {"title": owner.replace("_", " ").capitalize(), "figures": [],
                                            **tables.get(owner, {"rows": [], "caption": ""})})
            part["figures"] += folder.glob(f"{name}.png")
    return list(parts.values())


# ---- concepts and predictions of a few runs ----


def chosen(runs: Sequence[Run]) -> list[Run]:
    """Of every data set and kind of bank but Random, the run of the strongest model (highest dense top-1; of several
    sizes the smallest). runs: of `finished`."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in (run for run in runs if run.summary["bank"] != "Random"):  # a random direction looks like nothing
        found.setdefault((run.dataset, run.summary["bank"]), []).append(run)
    return [max(mine, key=lambda run: (run.dense, -(run.identity["num_concepts"] or 0), run.elements == "segments",
                                       run.summary["protocol"] == "paper")) for mine in found.values()]


def examples_of(run: Run, concepts: int, images: int, top: int = 4) -> dict[str, Any]:
    """For the template: the `concepts` concepts with the largest weights (`tiles`), and `images` validation images with
    the `top` concepts that made their predictions. `no_concepts`, `no_images`: why there are none."""
    found: dict[str, Any] = {"run": run, "top": top, "tiles": [], "told": [], "no_concepts": "", "no_images": ""}
    try:
        predictor = found["predictor"] = load_predictor(run.folder, run.summary["seeds"][0])
        root = elements_root(run.folder, run.identity)
        for m in predictor.weight_CM.abs().amax(0).argsort(descending=True, stable=True)[:concepts].tolist():
            weight_C = predictor.weight_CM[:, m]
            speaks = ", ".join(f"{predictor.class_names[c]} {weight_C[c]:+.2f}"
                               for c in (int(weight_C.argmax()), int(weight_C.argmin())))
            found["tiles"].append((concept_of(m, predictor.evidence[m], run.summary["bank"], root), speaks))
    except UserError as error:
        return found | {"no_concepts": str(error), "no_images": str(error), "tiles": []}
    try:
        val = images_of(run, "val")
        rows = spread(range(len(val)), images)
        subjects = from_rows(rows, val, run.dataset)
        told = stories(predictor, explain(predictor, val.features_ND[rows].float()), subjects)
        shown = (one for story in told for one in story["concepts"][:top])
        concepts_shown = concepts_of(shown, run.summary["bank"], root)
    except UserError as error:
        return found | {"no_images": str(error)}
    return found | {"told": told, "images": [one.image for one in subjects], "concepts": concepts_shown}
