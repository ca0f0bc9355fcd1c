"""The contents of a report, as values for its template: tables, figures of all runs, and examples of a few."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL import Image

from iis.plots import arr_figure
from iis.runtime import UserError, read_json
from iis.statistics import plus_minus, within
from reproduction.arr_curves import curve
from reproduction.iis_against_accuracy import scatter
from reproduction.lib.explained_images import concept_of, elements_root, spread, subjects_of
from reproduction.lib.explanation import load_predictor
from reproduction.lib.explanation_shown import cards_of
from reproduction.lib.outputs import HANDED_OVER
from reproduction.lib.points import beside_iis, beside_shown, groups, percent, variant_of
from reproduction.lib.run_files import embeddings_of, images_of
from reproduction.lib.runs import Run
from reproduction.lib.tables import texts

Lines = list[dict[str, Any]]
INCHES = (4.7, 4.2)  # of a panel: drawn small, so that its words can be read at the width of a phone
OWN = ("arr", "iis_points", "iis_against_accuracy", "report")  # what a report makes itself

# ---- tables ----


def score_line(run: Run) -> dict[str, Any]:
    """One run as people read it."""
    summary = run.summary
    return {"variant": _variant(run), "bank": f"{run.method}, M = {summary['num_concepts']}", "model": run.model,
            "IIS": plus_minus(run.iis, summary["iis"]["std"]), "marks": "; ".join(run.marks),
            "bootstrap 95 %": within(*summary["bootstrap"]["interval_95"]),
            "chance-corrected": plus_minus(run.corrected, summary["iis_chance_corrected"]["std"]),
            **beside_shown(beside_iis(run)), "dense top-1, %": percent(run.dense, summary["dense"]["std"], 2),
            "seeds": len(summary["seeds"])}


def _variant(run: Run) -> str:
    """How the run differs from a plain one, in the sweep's words where it has some."""
    protocol = "" if run.summary["protocol"] == "paper" else f"{run.summary['protocol']} protocol"
    return run.variant or "; ".join(filter(None, (protocol, variant_of(run))))


def score_tables(runs: Sequence[Run]) -> dict[str, Lines]:
    """{heading: lines}: per data set the finished models, those along pre-training, and the variants of either.

    Columns that are empty throughout are left out.
    """
    found: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for run in runs:
        kind = ", variants" if _variant(run) else ", along pre-training" if run.epoch is not None else ""
        line = score_line(run)
        place = line["variant"], line["bank"], run.family, run.epoch or 0, run.dense
        found.setdefault(run.dataset + kind, []).append((place, line))
    return {name: _filled([line for _, line in sorted(found[name], key=itemgetter(0))]) for name in sorted(found)}


def _filled(lines: Lines) -> Lines:
    return texts(lines).loc[:, lambda shown: (shown != "").any()].to_dict("records")


def remarks(runs: Sequence[Run]) -> tuple[list[str], Lines]:
    """Warnings, one sentence per run; and notes of one kind together, with an example and in how many runs they are."""
    warnings, notes = [], {}
    for run in runs:
        label = ", ".join(filter(None, (run.model, run.dataset, run.method, f"M = {run.summary['num_concepts']}",
                                        _variant(run))))
        for remark in run.summary["remarks"]:
            kind, _, text = remark.partition(": ")
            same = warnings if kind == "warning" else notes.setdefault(re.split(r" for | \(|\d", text)[0], [])
            same.append(f"{label}: {text}")
    return warnings, [{"runs": f"{len(found)} of {len(runs)}", "the first of them": found[0]}
                      for found in sorted(notes.values(), key=len, reverse=True)]


def provenance(runs: Sequence[Run]) -> Lines:
    """A line per model and data set: weights, node, preprocessing, and when and where stage 2 ran."""
    lines: dict[Any, dict[str, Any]] = {}
    for run in runs:
        identity, record, pixels = run.identity, {}, "not at hand"
        key = run.model, run.dataset, str(identity.get("weights_hash"))
        if key in lines:
            continue
        with contextlib.suppress(UserError):
            val = images_of(run, "val")
            record, made = val.record, val.provenance.get("preprocessing")
            pixels = f"resize {made['resize']}, crop {made['crop']}, {made['interpolation']}" if made else ""
        lines[key] = {"model": run.model, "data set": run.dataset, "weights": identity.get("weights"),
                      "their hash": key[2][:12], "node": identity.get("node"), "D": identity.get("width"),
                      "precision": identity.get("precision"), "preprocessing": pixels,
                      "embedded": record.get("made", "")[:16],
                      **{name: record.get(name) for name in ("device", "torch", "torchvision")}}
    return _filled(list(lines.values()))


def element_settings(runs: Sequence[Run]) -> Lines:
    """Stage 1's settings: a line for each setting, a column for each way in which elements were made."""
    ways = texts([run.identity["elements"] for run in runs if run.identity["elements"]]).drop_duplicates()
    settings = ways.T.set_axis([f"elements {number}" for number in range(1, len(ways) + 1)], axis=1)
    return settings.rename(lambda name: name.replace("_", " ")).rename_axis("setting").reset_index().to_dict("records")


# ---- figures of all runs ----


def curves(runs: Sequence[Run]) -> dict[str, list[tuple[Image.Image, str]]]:
    """{data set: [(figure, its description)]}: the ARR curves of each bank. runs: of `finished`."""
    return _panels({key: arr_figure({", ".join(key): [curve(run) for run in mine]})
                    for key, mine in groups(runs).items()}, "Accuracy retention rate against the sparsity ratio")


def scatters(runs: Sequence[Run]) -> dict[str, list[tuple[Image.Image, str]]]:
    """The same of IIS against dense top-1, for each bank with two models or more."""
    return _panels({key: scatter({", ".join(key): mine}) for key, mine in groups(runs).items()
                    if len({run.model for run in mine}) > 1}, "IIS against dense top-1")


def _panels(figures: dict[tuple[str, str], Any], what: str) -> dict[str, list[tuple[Image.Image, str]]]:
    """Images of the figures; those of a data set share one range of values, so that they can be compared by eye."""
    found: dict[str, list[tuple[Image.Image, str]]] = {}
    for (dataset, bank), figure in figures.items():
        axis, alike = figure.axes[0], [other.axes[0].get_ylim() for (of, _), other in figures.items() if of == dataset]
        axis.set_ylim(min(low for low, _ in alike), max(high for _, high in alike))
        axis.title.set_wrap(True)
        figure.set_size_inches(*INCHES)
        figure.savefig(out := io.BytesIO(), format="png", dpi=150)
        alt = f"{what}, {dataset}, {bank}; the scores table has the numbers"
        found.setdefault(dataset, []).append((Image.open(out), alt))
    return found


# ---- what other scripts have made ----


def made_before(folder: Path) -> list[dict[str, Any]]:
    """Tables (NAME.table.json of `write_table`) and figures (NAME.png) in `folder`, but those of the report itself.

    A figure stands with the table whose name begins its own: controls_shapes.png with controls. Each part has `title`,
    `figures` (files), `rows` and `caption`.
    """
    tables = {file.name.removesuffix(HANDED_OVER): read_json(file) for file in folder.glob(f"*{HANDED_OVER}")}
    drawn = {file.stem: file for file in folder.glob("*.png")}
    parts: dict[str, dict[str, Any]] = {}
    for name in sorted({*tables, *drawn}):
        if not re.match(rf"({'|'.join(OWN)})(_|$)", name):
            owner = max((table for table in tables if f"{name}_".startswith(f"{table}_")), key=len, default=name)
            part = parts.setdefault(owner, {"title": owner.replace("_", " ").capitalize(), "figures": [],
                                            **tables.get(owner, {"rows": [], "caption": ""})})
            part["figures"] += [drawn[name]] if name in drawn else []
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
    found: dict[str, Any] = {"run": run, "tiles": [], "predictions": [], "no_concepts": "", "no_images": ""}
    try:
        predictor = found["predictor"] = load_predictor(run.folder, run.summary["seeds"][0])
        root = elements_root(run.folder, run.identity)
        largest = predictor.weight_CM.abs().amax(0).argsort(descending=True, stable=True)[:concepts].tolist()
        found["tiles"] = [(concept_of(m, predictor.evidence[m], run.summary["bank"], root),
                           predictor.weight_CM[:, m].tolist()) for m in largest]
    except UserError as error:
        return found | {"no_concepts": str(error), "no_images": str(error)}
    try:
        val, file = embeddings_of(run.folder, run.identity, "val")
        names = [val.image_paths[row] for row in spread(range(len(val)), images)]
        return found | cards_of(predictor, subjects_of(names, val, file, run.dataset), root, top)
    except UserError as error:
        return found | {"no_images": str(error)}
