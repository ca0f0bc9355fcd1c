"""The tables of a report: scores with their spread, remarks, where the numbers come from, and how long they took."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from iis.grid import DENSE
from iis.results import LEDGER, read_ledger
from iis.runtime import UserError, read_json
from reproduction.lib.concept_images import elements_root
from reproduction.lib.measured import method_of, variant_of
from reproduction.lib.points import epoch_of, warning
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run
from reproduction.lib.tables import plus_minus


def score_line(run: Run) -> dict[str, Any]:
    """One run as people read it."""
    summary = run.summary
    low, high = summary["bootstrap"]["interval_95"]
    corrected, dense = summary["iis_chance_corrected"], summary["dense"]
    return {"variant": _variant(run), "bank": f"{method_of(run)}, M = {summary['num_concepts']}", "model": run.model,
            "IIS": plus_minus(run.iis, summary["iis"]["std"]), "warning": warning(run),
            "bootstrap 95 %": f"{low:.4f} to {high:.4f}",
            "chance-corrected": plus_minus(corrected["mean"], corrected["std"]),
            "dense top-1, %": plus_minus(100 * dense["mean"], None if dense["std"] is None else 100 * dense["std"], 2),
            "seeds": len(summary["seeds"])}


def _variant(run: Run) -> str:
    """How the run differs from a plain one, in the sweep's words where it has some."""
    protocol = "" if run.summary["protocol"] == "paper" else f"{run.summary['protocol']} protocol"
    return run.variant or "; ".join(part for part in (protocol, variant_of(run)) if part)


def score_tables(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """{heading: lines}: per data set the finished models, those along pre-training, and the variants of either.

    Columns that are empty throughout are left out.
    """
    found: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for run in runs:
        kind = ", variants" if _variant(run) else ", along pre-training" if epoch_of(run.model) is not None else ""
        line = score_line(run)
        place = line["variant"], line["bank"], run.family, epoch_of(run.model) or 0, run.summary["dense"]["mean"]
        found.setdefault(run.summary["dataset"] + kind, []).append((place, line))
    return {name: _filled([line for _, line in sorted(found[name], key=lambda pair: pair[0])])
            for name in sorted(found)}


def _filled(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = [name for name in lines[0] if any(line[name] not in (None, "") for line in lines)]
    return [{name: line[name] for name in names} for line in lines]


def remarks(runs: Sequence[Run]) -> tuple[list[str], list[dict[str, Any]]]:
    """Warnings, one sentence per run; and notes of one kind together, with an example and in how many runs they are."""
    warnings, notes = [], {}
    for run in runs:
        for remark in run.summary["remarks"]:
            if remark.startswith("warning: "):
                warnings.append(f"{_label(run)}: {remark.removeprefix('warning: ')}")
            else:
                kind = re.split(r" for | \(|\d", remark)[0]
                notes.setdefault(kind, []).append(f"{_label(run)}: {remark.removeprefix('note: ')}")
    return warnings, [{"runs": f"{len(found)} of {len(runs)}", "the first of them": found[0]}
                      for found in sorted(notes.values(), key=len, reverse=True)]


def provenance(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line per model and data set: weights, node, preprocessing, images, and when and where stage 2 ran."""
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for run in runs:
        identity = run.identity
        key = run.model, run.summary["dataset"], str(identity.get("weights_hash"))
        if key in lines:
            continue
        try:
            val = images_of(run, "val")
            record, pixels = val.record, _pixels(val.provenance.get("preprocessing") or {})
        except UserError:
            record, pixels = {}, "not at hand"
        lines[key] = {"model": key[0], "data set": key[1], "weights": identity.get("weights"),
                      "their hash": key[2][:12], "node": identity.get("node"), "D": identity.get("width"),
                      "precision": identity.get("precision"), "preprocessing": pixels,
                      "pictures": f"{identity.get('n_train')} + {identity.get('n_val')}",
                      "embedded": record.get("made", "")[:16], "device": record.get("device", ""),
                      "torch": record.get("torch", ""), "torchvision": record.get("torchvision", "")}
    return _filled(list(lines.values()))


def _pixels(settings: dict[str, Any]) -> str:
    if not settings:
        return ""
    return f"resize {settings.get('resize')}, crop {settings.get('crop')}, {settings.get('interpolation')}"


def element_settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Stage 1's settings: a line for each setting, a column for each way in which elements were made."""
    ways = list({str(run.identity["elements"]): run.identity["elements"] for run in runs
                 if run.identity["elements"]}.values())
    names = list(dict.fromkeys(name for way in ways for name in way))
    return [{"setting": name.replace("_", " "),
             **{f"elements {number}": _words(way.get(name, "")) for number, way in enumerate(ways, start=1)}}
            for name in names]


def _words(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def training(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(stage 3 and the settings it ran with, a line per data set and bank; seconds of every stage)."""
    banks: dict[tuple[str, str], dict[str, Any]] = {}
    dense: dict[tuple[str, Any], dict[Any, float]] = {}
    for run in runs:
        rows = read_ledger(run.folder / LEDGER)
        line = banks.setdefault((run.summary["dataset"], run.summary["bank"]), {
            "runs": 0, "heads": 0, "seconds": 0.0, "dates": [], "hosts": set(), "epochs": set(), "batch": set()})
        own = [row for row in rows if row["ratio"] != DENSE]
        line["runs"] += 1
        line["heads"] += len(own)
        line["seconds"] += sum(row.get("seconds", 0) for row in own)
        line["dates"] += [row["date"][:10] for row in rows if row.get("date")]
        line["hosts"] |= {row["host"] for row in rows if row.get("host")}
        line["epochs"].add(run.identity.get("epochs"))
        line["batch"].add(run.identity.get("batch_size"))
        for row in rows:  # a dense head is trained once and found by all banks
            if row["ratio"] == DENSE:
                key = run.summary["dataset"], run.identity.get("train_hash")
                cell = row["seed"], row["learning_rate"], run.identity["holdout"]
                dense.setdefault(key, {})[cell] = row.get("seconds", 0)
    made = [{"data set": dataset, "bank": bank, "runs": line["runs"], "heads": line["heads"],
             "epochs": _joined(line["epochs"]), "batch": _joined(line["batch"]),
             "dates": " to ".join(dict.fromkeys((min(line["dates"]), max(line["dates"])))) if line["dates"] else "",
             "hosts": _joined(line["hosts"])} for (dataset, bank), line in banks.items()]
    seconds = [*_before(runs)]
    for dataset in sorted({dataset for dataset, _ in dense}):
        mine = [value for (where, _), cells in dense.items() if where == dataset for value in cells.values()]
        seconds.append(_took("3", f"{dataset}: {len(mine)} dense heads", sum(mine)))
    seconds += [_took("3", f"{dataset}: {bank}, {line['heads']} heads in {line['runs']} runs", line["seconds"])
                for (dataset, bank), line in banks.items()]
    return made, seconds


def _before(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Stages 1 and 2, as their own files tell it; what is no longer at hand is left out."""
    folders, files = {}, {}
    for run in runs:
        try:
            root = elements_root(run.folder, run.identity)
            if root and (root / "complete.json").is_file():
                folders[root] = read_json(root / "complete.json")
        except UserError:
            pass
        for split in ("train", "val"):
            key = run.model, run.summary["dataset"], split
            try:
                files[key] = files.get(key) or images_of(run, split)
            except UserError:
                continue
    lines = [_took("1", f"{'/'.join(root.parts[-2:])}: {done['elements']:,} elements of {done['pictures']:,} images",
                   done.get("seconds", 0)) for root, done in folders.items()]
    embedded: dict[tuple[str, str], list[Any]] = {}
    for (model, dataset, _), found in files.items():
        embedded.setdefault((model, dataset), []).append(found)
    return lines + [_took("2", f"{model}: {sum(map(len, found)):,} images of {dataset}",
                          sum(one.record.get("seconds", 0) for one in found))
                    for (model, dataset), found in embedded.items()]


def _took(stage: str, what: str, seconds: float) -> dict[str, Any]:
    shown = f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    return {"stage": stage, "what": what, "time": shown, "seconds": seconds}


def _joined(values: Any) -> str:
    return ", ".join(sorted(str(value) for value in values if value is not None))


def _label(run: Run) -> str:
    summary = run.summary
    parts = [run.model, summary["dataset"], method_of(run), f"M = {summary['num_concepts']}", _variant(run)]
    return ", ".join(part for part in parts if part)
