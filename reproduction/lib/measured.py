"""What was computed here, as the lines of ours.csv: read from what the scripts wrote, never typed.

A line's `method, model, dataset, setting, measure` are spelt as in published.csv, so that the two can be joined.
`variant` tells every way in which a run is not the plain one; only plain runs are compared with published values.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from iis.names import EMBEDDINGS
from iis.runtime import ROOT, UserError, read_json
from iis.statistics import mean_std
from IP_training.config import PROTOCOLS
from reproduction.lib.runs import Run

NEC_METHODS = {"Text": "LF-CBM", "Random": "random concepts"}  # as published.csv calls an elastic net on these banks
FINE_TUNED = {"own_head": ("original head top-1", "%"), "predictor": ("predictor top-1", "%"),
              "fresh_dense": ("dense top-1", "%"), "fresh_ip": ("IP top-1", "%"), "iis": ("IIS", "area"),
              "iis_chance_corrected": ("chance-corrected IIS", "area")}
KEY = ("method", "model", "dataset", "setting", "measure")
OURS = (*KEY, "value", "std", "unit", "seeds", "protocol", "variant", "made_from")
EPOCHS = 30  # of the paper's recipe


def read_lines(file: Path, numbers: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a CSV; `numbers` become floats, None where empty.

    Raises `UserError` for a missing file or column, and for what should be a number and is not.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}; name another one, or collect it first (compare.py --collect)")
    try:
        reader = csv.DictReader(StringIO(file.read_text(encoding="utf-8"), newline=""))
        lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no CSV ({error}); name another one") from None
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{file} lacks the column {missing[0]}; its first line should be {','.join(columns)}")
    for number, line in enumerate(lines, start=2):
        for name in numbers:
            try:
                line[name] = float(line[name]) if line[name] else None
            except ValueError:
                raise UserError(f"{file}, line {number}: {name} = {line[name]!r} is not a number") from None
    return lines


def variant_of(run: Run) -> str:
    """How the run differs from the plain one of its protocol (mask, balanced prototypes, segments, no holdout, the
    paper's epochs, …), and the sweep's word for it; "" for the plain one."""
    identity = run.identity
    usual = PROTOCOLS[identity["protocol"]]
    words = [f"{name} {identity[name]}" for name, value in usual.items() if identity.get(name, value) != value]
    words += [run.elements] if run.elements not in ("-", "segments") else []
    of = (identity["elements"] or {}).get("dataset")
    words += [f"elements of {of}"] if of not in (None, identity["dataset"], "unnamed") else []
    words += [f"holdout {identity['holdout']:g}"] if identity["holdout"] else []
    words += [f"{identity['epochs']} epochs"] if identity["epochs"] != EPOCHS else []
    words += [f"bank seed {identity['bank_seed']}"] if "bank_seed" in identity else []
    return "; ".join(words) or run.variant


def method_of(run: Run) -> str:
    """The bank, with its parts where it has some: "Combined (Prototype + Text)"."""
    parts = run.identity.get("parts")
    return run.summary["bank"] + (f" ({' + '.join(parts)})" if parts else "")


def lines_of_runs(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """IIS (plain and chance-corrected) of every ledger, and the dense head's top-1 of every data set."""
    lines = []
    for run in runs:
        summary, variant = run.summary, variant_of(run)
        common = {"model": run.model, "dataset": summary["dataset"], "seeds": len(summary["seeds"]),
                  "made_from": _place(run.folder)}
        bank = {**common, "method": method_of(run), "setting": f"M = {summary['num_concepts']}",
                "protocol": summary["protocol"], "variant": variant, "unit": "area"}
        lines += [{**bank, "measure": measure, "value": round(score["mean"], 5), "std": _rounded(score["std"], 5)}
                  for measure, score in (("IIS", summary["iis"]),
                                         ("chance-corrected IIS", summary["iis_chance_corrected"]))]
        own = [word for word in variant.split("; ") if word.startswith("holdout") or word.endswith(" epochs")]
        dense = summary["dense"]
        lines.append({**common, "method": "dense head", "setting": "", "protocol": "", "variant": "; ".join(own),
                      "measure": "top-1", "value": round(100 * dense["mean"], 3), "unit": "%",
                      "std": None if dense["std"] is None else round(100 * dense["std"], 3)})
    return lines


def lines_of_own_heads(root: Path = EMBEDDINGS) -> list[dict[str, Any]]:
    """Top-1 of backbones' original heads, as extractor/check_backbone.py kept it."""
    lines = []
    for file in sorted(root.glob("*/own_head_*.json")):
        found = read_json(file)
        lines.append({"method": "original head", "model": found["model"], "dataset": found["dataset"],
                      "setting": found["weights"], "measure": "top-1", "value": round(found["top1"], 3), "std": None,
                      "unit": "%", "seeds": 1, "protocol": "", "made_from": _place(file),
                      "variant": "" if found["precision"] == "fp32" else found["precision"]})
    return lines


def lines_of_elastic_nets(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Top-1 of LF-CBM's final layer on the Text bank (elastic_net.json at or below the folders)."""
    lines = []
    for file in sorted({file for folder in folders for file in folder.rglob("elastic_net.json")}):
        found = read_json(file)
        identity, results = found["identity"], found["results"]
        top1, std = mean_std([100 * one["top1"] for one in results])
        weights, _ = mean_std([one["nec"] for one in results])
        lines.append({"method": "LF-CBM" if identity["bank"] == "Text" else f"{identity['bank']}, elastic net",
                      "model": identity["model"], "dataset": identity["dataset"], "setting": "elastic net",
                      "measure": "top-1", "value": round(top1, 3), "std": _rounded(std, 3), "unit": "%",
                      "seeds": len(results), "variant": "", "made_from": _place(file),
                      "protocol": f"λ = {identity['lam']:g}: {weights:.1f} weights a class"})
    return lines


def lines_of_nec(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Top-1 at NEC = 5, 10, … and their mean ANEC of every run with a nec.json of the features and seeds of its ledger
    (reproduction/accuracy_at_nec.py). A level that the path did not reach is a variant: it has fewer weights."""
    from reproduction.lib.nec import CACHE, over_seeds

    lines = []
    for run in runs:
        file, summary = run.folder / CACHE, run.summary
        kept = read_json(file) if file.exists() else {}
        seeds = [one for one in map(kept.get, map(str, summary["seeds"])) if one and all(
            one["depends"][name] == run.identity[name] for name in ("train_hash", "val_hash"))]
        if not seeds or len(seeds) < len(summary["seeds"]):
            continue
        bank = method_of(run)
        common = {"method": NEC_METHODS.get(bank, f"{bank}, elastic net"), "model": run.model, "unit": "%",
                  "dataset": summary["dataset"], "seeds": len(seeds), "made_from": _place(file),
                  "protocol": f"{summary['protocol']}, M = {summary['num_concepts']}"}
        for line in over_seeds([one["levels"] for one in seeds]):
            if line["top1"] is None:  # NEC is more than M
                continue
            short = line["used"] is not None and line["used"] < line["nec"] - 1e-9
            words = [variant_of(run), f"{line['used']:.1f} weights a class" if short else ""]
            what = ("NEC = 5 to 30", "ANEC") if line["nec"] == "ANEC" else (f"NEC = {line['nec']}", "top-1")
            lines.append({**common, **dict(zip(("setting", "measure"), what, strict=True)),
                          "variant": "; ".join(filter(None, words)), "value": round(100 * line["top1"], 3),
                          "std": None if line["top1_std"] is None else round(100 * line["top1_std"], 3)})
    return lines


def lines_of_fine_tuning(root: Path) -> list[dict[str, Any]]:
    """Every measure of every objective, mean ± std over seeds, of the fine-tunings in `root` (runs.json of
    reproduction/finetuning.py). The paper's is plain: Eq. 8, M = 200, s = 0.1, and the backbone as it came."""
    from IP_training import IP_Finetuning
    from reproduction.lib.finetuned import BEFORE, INDEX, NAMES, Measured, finished_cells

    usual, lines = IP_Finetuning.parser().settings([]), []
    for index in sorted(root.glob(f"*/{INDEX}")):
        made = read_json(index.parent / "manifest.json")
        measured, failed = finished_cells(index.parent)
        for sentence in failed:
            print(f"left out: {sentence}")
        groups: dict[tuple[Any, ...], list[Measured]] = {}
        for one in measured:
            place = tuple(one.cell[name] for name in ("objective", "num_concepts", "sparsity"))
            groups.setdefault(place, []).append(one)
        for (objective, num_concepts, sparsity), cells in groups.items():
            words = [NAMES[objective]] if objective not in (BEFORE, usual.objective) else []
            words += [f"M = {num_concepts}"] if num_concepts not in (None, usual.num_concepts) else []
            words += [f"s = {sparsity:g}"] if sparsity not in (None, usual.sparsity) else []
            of_bank = cells[0].num_concepts
            common = {"method": "fine-tuning", "model": made["model_config"], "dataset": made["dataset"],
                      "setting": "before fine-tuning" if objective == BEFORE else "after fine-tuning",
                      "seeds": len(cells), "protocol": index.parent.name, "made_from": _place(index)}
            for name, (measure, unit) in FINE_TUNED.items():
                if None in (values := [one.values[name] for one in cells]):  # the original head of a backbone as it came
                    continue
                mean, std = mean_std(values)
                digits = 3 if unit == "%" else 5
                with_bank = [f"measured at M = {of_bank}"] if of_bank != usual.num_concepts and name in (
                    "fresh_ip", "iis", "iis_chance_corrected") else []
                lines.append({**common, "variant": "; ".join(words + with_bank), "measure": measure, "unit": unit,
                              "value": round(mean, digits), "std": _rounded(std, digits)})
    return lines


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old and new lines, sorted; a new line replaces the old one of the same key, protocol and variant."""
    def place(line: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(line[name]) for name in (*KEY, "protocol", "variant"))

    by_place = {place(line): {name: line[name] for name in OURS} for line in [*old, *new]}
    return [by_place[one] for one in sorted(by_place)]


def _place(file: Path) -> str:
    return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
