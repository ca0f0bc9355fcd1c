"""The contents of a report, as values for its template: tables, figures of all runs, and examples of a few."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from iis.grid import DENSE
from iis.plots import arr_figure
from iis.results import LEDGER, read_ledger
from iis.runtime import UserError, read_json
from reproduction.arr_curves import curve
from reproduction.iis_against_accuracy import scatter
from reproduction.lib.explained_images import concept_of, elements_root, from_rows, spread
from reproduction.lib.explanation import load_predictor
from reproduction.lib.explanation_shown import cards_of
from reproduction.lib.outputs import HANDED_OVER
from reproduction.lib.points import counted, groups, percent, variant_of
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run
from reproduction.lib.tables import plus_minus, texts

Lines = list[dict[str, Any]]
INCHES = (4.7, 4.2)  # of a panel: drawn small, so that its words can be read at the width of a phone
OWN = ("arr", "iis_points", "iis_against_accuracy", "report")  # what a report makes itself

# ---- tables ----


def score_line(run: Run) -> dict[str, Any]:
    """One run as people read it."""
    summary = run.summary
    low, high = summary["bootstrap"]["interval_95"]
    return {"variant": _variant(run), "bank": f"{run.method}, M = {summary['num_concepts']}", "model": run.model,
            "IIS": plus_minus(run.iis, summary["iis"]["std"]), "marks": "; ".join(run.marks),
            "bootstrap 95 %": f"{low:.4f} to {high:.4f}",
            "chance-corrected": plus_minus(run.corrected, summary["iis_chance_corrected"]["std"]),
            "dense top-1, %": percent(run.dense, summary["dense"]["std"], 2), "seeds": len(summary["seeds"])}


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
    return {name: _filled([line for _, line in sorted(found[name], key=lambda pair: pair[0])])
            for name in sorted(found)}


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
            if kind == "warning":
                warnings.append(f"{label}: {text}")
            else:
                notes.setdefault(re.split(r" for | \(|\d", text)[0], []).append(f"{label}: {text}")
    return warnings, [{"runs": f"{len(found)} of {len(runs)}", "the first of them": found[0]}
                      for found in sorted(notes.values(), key=len, reverse=True)]


def provenance(runs: Sequence[Run]) -> Lines:
    """A line per model and data set: weights, node, preprocessing, images, and when and where stage 2 ran."""
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
                      "images": f"{identity.get('n_train')} + {identity.get('n_val')}",
                      "embedded": record.get("made", "")[:16],
                      **{name: record.get(name) for name in ("device", "torch", "torchvision")}}
    return _filled(list(lines.values()))


def element_settings(runs: Sequence[Run]) -> Lines:
    """Stage 1's settings: a line for each setting, a column for each way in which elements were made."""
    ways = list({str(way): way for way in (run.identity["elements"] for run in runs) if way}.values())
    return texts([{"setting": name.replace("_", " "),
                   **{f"elements {number}": way.get(name) for number, way in enumerate(ways, start=1)}}
                  for name in dict.fromkeys(name for way in ways for name in way)]).to_dict("records")


def training(runs: Sequence[Run]) -> tuple[Lines, Lines]:
    """(stage 3 and its settings, a line per data set and bank; seconds of every stage)."""
    heads = pd.DataFrame([
        {"run": number, "data set": run.dataset, "bank": run.summary["bank"], "date": (row.get("date") or "")[:10],
         "seconds": row.get("seconds", 0), **{key: row.get(key) for key in (
             "ratio", "train_hash", "holdout", "epochs", "batch_size", "seed", "learning_rate", "host")}}
        for number, run in enumerate(runs) for row in read_ledger(run.folder / LEDGER)])
    trained = heads[heads.ratio != DENSE].groupby(["data set", "bank"], sort=False).agg(
        runs=("run", "nunique"), heads=("run", "size"), epochs=("epochs", _joined), batch=("batch_size", _joined),
        dates=("date", lambda dates: " to ".join(sorted({dates.min(), dates.max()}))), hosts=("host", _joined),
        seconds=("seconds", "sum")).reset_index().to_dict("records")
    # A dense head is trained once and found by all banks.
    dense = heads[heads.ratio == DENSE].drop_duplicates(
        ["data set", "train_hash", "seed", "learning_rate", "holdout"], keep="last")
    lines = _before(runs)
    lines += [_took("3", f"{dataset}: {len(mine)} dense heads", mine.seconds.sum())
              for dataset, mine in dense.groupby("data set")]
    return trained, lines + [_took("3", f"{line['data set']}: {line['bank']}, {line['heads']} heads in "
                                   f"{counted(line['runs'], 'run')}", line.pop("seconds")) for line in trained]


def _before(runs: Sequence[Run]) -> Lines:
    """Seconds of stages 1 and 2, from their own files; what is no longer at hand is left out."""
    cut, embedded = {}, {}
    for run in runs:
        with contextlib.suppress(UserError):
            root = elements_root(run.folder, run.identity)
            if root and (root / "complete.json").is_file():
                cut[root] = read_json(root / "complete.json")
        for split in ("train", "val"):
            mine = embedded.setdefault((run.model, run.dataset), {})
            if split not in mine:
                with contextlib.suppress(UserError):
                    mine[split] = images_of(run, split)
    return [_took("1", f"{'/'.join(root.parts[-2:])}: {done['elements']:,} elements of {done['pictures']:,} images",
                  done.get("seconds", 0)) for root, done in cut.items()] + [
        _took("2", f"{model}: {sum(map(len, found.values())):,} images of {dataset}",
              sum(one.record.get("seconds", 0) for one in found.values()))
        for (model, dataset), found in embedded.items() if found]


def _took(stage: str, what: str, seconds: float) -> dict[str, Any]:
    shown = f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    return {"stage": stage, "what": what, "time": shown, "seconds": float(seconds)}


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(sorted({f"{value:g}" if isinstance(value, float) else str(value)
                             for value in values if not pd.isna(value)}))


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
        limits = [other.axes[0].get_ylim() for (where, _), other in figures.items() if where == dataset]
        figure.axes[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        figure.set_size_inches(*INCHES)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=150)
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
    found: dict[str, Any] = {"run": run, "tiles": [], "predictions": [], "no_concepts": "", "no_images": ""}
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
        return found | cards_of(predictor, from_rows(spread(range(len(val)), images), val, run.dataset), root, top)
    except UserError as error:
        return found | {"no_images": str(error)}
