"""The tables of a report: scores with their spread, remarks, where the numbers come from, and how long they took."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from iis.grid import DENSE
from iis.results import LEDGER, read_ledger
from iis.runtime import UserError, read_json
from reproduction.lib.explained_images import elements_root
from reproduction.lib.points import counted, percent, variant_of
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run
from reproduction.lib.tables import plus_minus, texts

Lines = list[dict[str, Any]]


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
    names = [name for name in lines[0] if any(line[name] not in (None, "") for line in lines)]
    return [{name: line[name] for name in names} for line in lines]


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
        identity = run.identity
        key = run.model, run.dataset, str(identity.get("weights_hash"))
        if key in lines:
            continue
        record, made, pixels = {}, {}, "not at hand"
        with contextlib.suppress(UserError):
            val = images_of(run, "val")
            record, made = val.record, val.provenance.get("preprocessing") or {}
            pixels = f"resize {made['resize']}, crop {made['crop']}, {made['interpolation']}" if made else ""
        lines[key] = {"model": key[0], "data set": key[1], "weights": identity.get("weights"),
                      "their hash": key[2][:12], "node": identity.get("node"), "D": identity.get("width"),
                      "precision": identity.get("precision"), "preprocessing": pixels,
                      "images": f"{identity.get('n_train')} + {identity.get('n_val')}",
                      "embedded": record.get("made", "")[:16],
                      **{name: record.get(name, "") for name in ("device", "torch", "torchvision")}}
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
        {"run": number, "data set": run.dataset, "bank": run.summary["bank"], "dense": row["ratio"] == DENSE,
         "date": (row.get("date") or "")[:10], "seconds": row.get("seconds", 0), **{key: row.get(key) for key in (
             "train_hash", "holdout", "epochs", "batch_size", "seed", "learning_rate", "host")}}
        for number, run in enumerate(runs) for row in read_ledger(run.folder / LEDGER)])
    made, seconds = [], []
    for (dataset, bank), mine in heads.groupby(["data set", "bank"], sort=False):
        own, dates = mine[~mine.dense], sorted(set(mine.date) - {""})
        count = mine.run.nunique()
        made.append({"data set": dataset, "bank": bank, "runs": count, "heads": len(own),
                     "epochs": _joined(mine.epochs), "batch": _joined(mine.batch_size),
                     "dates": " to ".join(dict.fromkeys(dates[:1] + dates[-1:])), "hosts": _joined(mine.host)})
        seconds.append(_took("3", f"{dataset}: {bank}, {len(own)} heads in {counted(count, 'run')}", own.seconds.sum()))
    # A dense head is trained once and found by all banks.
    dense = heads[heads.dense].drop_duplicates(["data set", "train_hash", "seed", "learning_rate", "holdout"],
                                               keep="last")
    shared = [_took("3", f"{dataset}: {len(mine)} dense heads", mine.seconds.sum())
              for dataset, mine in dense.groupby("data set")]
    return made, [*_before(runs), *shared, *seconds]


def _before(runs: Sequence[Run]) -> Lines:
    """Seconds of stages 1 and 2, from their own files; what is no longer at hand is left out."""
    cut, embedded = {}, {}
    for run in runs:
        with contextlib.suppress(UserError):
            root = elements_root(run.folder, run.identity)
            if root and (root / "complete.json").is_file():
                cut[root] = read_json(root / "complete.json")
        for split in ("train", "val"):
            if (run.model, run.dataset, split) not in embedded:
                with contextlib.suppress(UserError):
                    embedded[run.model, run.dataset, split] = images_of(run, split)
    stage2 = pd.DataFrame([(model, dataset, len(found), found.record.get("seconds", 0))
                           for (model, dataset, _), found in embedded.items()], columns=["model", "data", "n", "seconds"])
    return [_took("1", f"{'/'.join(root.parts[-2:])}: {done['elements']:,} elements of {done['pictures']:,} images",
                  done.get("seconds", 0)) for root, done in cut.items()] + [
        _took("2", f"{model}: {mine.n.sum():,} images of {dataset}", mine.seconds.sum())
        for (model, dataset), mine in stage2.groupby(["model", "data"], sort=False)]


def _took(stage: str, what: str, seconds: float) -> dict[str, Any]:
    shown = f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    return {"stage": stage, "what": what, "time": shown, "seconds": float(seconds)}


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(sorted({f"{value:g}" if isinstance(value, float) else str(value)
                             for value in values if not pd.isna(value)}))
