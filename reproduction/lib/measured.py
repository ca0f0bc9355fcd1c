"""What was computed here, as the lines of ours.csv: read from what the scripts wrote, never typed.

A line's `method, model, dataset, setting, measure` are spelt as in published.csv, so that the two can be joined.
`variant` names every way in which a run is not the plain one; only plain runs are compared with published values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from iis.names import EMBEDDINGS
from iis.runtime import ROOT, UserError, read_json
from iis.statistics import mean_std
from reproduction.lib.points import variant_of
from reproduction.lib.runs import Run

NEC_METHODS = {"Text": "LF-CBM", "Random": "random concepts"}  # as published.csv calls an elastic net on these banks
FINE_TUNED = {"own_head": ("original head top-1", "%"), "predictor": ("predictor top-1", "%"),
              "fresh_dense": ("dense top-1", "%"), "fresh_ip": ("IP top-1", "%"), "iis": ("IIS", "area"),
              "iis_chance_corrected": ("chance-corrected IIS", "area")}
KEY = ("method", "model", "dataset", "setting", "measure")
OURS = (*KEY, "value", "std", "unit", "seeds", "protocol", "variant", "made_from", "marks")


def read_lines(file: Path, numbers: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """The lines of a CSV as text; `numbers` become floats, NaN where empty.

    Raises `UserError` for a missing file or column, and for what should be a number and is not.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}; name another one, or collect it first (compare.py --collect)")
    try:
        lines = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{file} is no CSV ({error}); name another one") from None
    if "marks" in columns and "marks" not in lines:  # files collected before this column was
        lines["marks"] = ""
    missing = [name for name in columns if name not in lines]
    if missing:
        raise UserError(f"{file} lacks the column {missing[0]}; its first line should be {','.join(columns)}")
    for name in numbers:
        values = pd.to_numeric(lines[name], errors="coerce").astype(float)
        for row in lines.index[values.isna() & (lines[name] != "")]:
            raise UserError(f"{file}, line {row + 2}: {name} = {lines[name][row]!r} is not a number")
        lines[name] = values
    return lines


def merged(old: pd.DataFrame, new: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Old and new lines, sorted; a new line replaces the old one of the same key, protocol and variant."""
    place = [*KEY, "protocol", "variant"]
    lines = pd.concat([old.astype(object), pd.DataFrame(list(new), columns=OURS, dtype=object)])[list(OURS)]
    return lines.fillna({"marks": ""}).drop_duplicates(place, keep="last").sort_values(place)


def lines_of_runs(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """IIS (plain and chance-corrected) of every ledger, and the dense head's top-1 of every data set."""
    lines = []
    for run in runs:
        summary, variant = run.summary, variant_of(run)
        common = {"model": run.model, "dataset": run.dataset, "seeds": len(summary["seeds"]),
                  "made_from": _place(run.folder)}
        bank = {**common, "method": run.method, "setting": f"M = {summary['num_concepts']}",
                "protocol": summary["protocol"], "variant": variant,
                "marks": ", ".join(run.marks)}
        lines += [{**bank, "measure": measure, **_area(score["mean"], score["std"])} for measure, score in (
            ("IIS", summary["iis"]), ("chance-corrected IIS", summary["iis_chance_corrected"]))]
        own = [word for word in variant.split("; ") if word.startswith("holdout") or word.endswith(" epochs")]
        dense = summary["dense"]
        lines.append({**common, "method": "dense head", "setting": "", "protocol": "", "variant": "; ".join(own),
                      "measure": "top-1", **_percent(dense["mean"], dense["std"])})
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
    """Top-1 of LF-CBM's final layer on a bank (elastic_net.json at or below the folders)."""
    lines = []
    for file in sorted({file for folder in folders for file in folder.rglob("elastic_net.json")}):
        found = read_json(file)
        identity, results = found["identity"], found["results"]
        weights, _ = mean_std([one["nec"] for one in results])
        lines.append({"method": "LF-CBM" if identity["bank"] == "Text" else f"{identity['bank']}, elastic net",
                      "model": identity["model"], "dataset": identity["dataset"], "setting": "elastic net",
                      "measure": "top-1", **_percent(*mean_std([one["top1"] for one in results])),
                      "seeds": len(results), "variant": "", "made_from": _place(file),
                      "protocol": f"λ = {identity['lam']:g}: {weights:.1f} weights a class"})
    return lines


def lines_of_nec(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Top-1 at NEC = 5, 10, … and their mean ANEC of every run with a nec.json of the features and seeds of its ledger
    (reproduction/accuracy_at_nec.py). A level that the path did not reach is a variant: it has fewer weights."""
    from reproduction.lib.nec import CACHE, over_seeds, short

    lines = []
    for run in runs:
        file, summary = run.folder / CACHE, run.summary
        kept = read_json(file) if file.exists() else {}
        seeds = [one for one in map(kept.get, map(str, summary["seeds"])) if one and all(
            one["depends"][name] == run.identity[name] for name in ("train_hash", "val_hash"))]
        if not seeds or len(seeds) < len(summary["seeds"]):
            continue
        common = {"method": NEC_METHODS.get(run.method, f"{run.method}, elastic net"), "model": run.model,
                  "dataset": run.dataset, "seeds": len(seeds), "made_from": _place(file),
                  "protocol": f"{summary['protocol']}, M = {summary['num_concepts']}"}
        for line in over_seeds([one["levels"] for one in seeds]):
            if line["top1"] is None:  # NEC is more than M
                continue
            words = [variant_of(run), f"{line['used']:.1f} weights a class" if short(line) else ""]
            what = ("NEC = 5 to 30", "ANEC") if line["nec"] == "ANEC" else (f"NEC = {line['nec']}", "top-1")
            lines.append({**common, **dict(zip(("setting", "measure"), what, strict=True)),
                          "variant": "; ".join(filter(None, words)), **_percent(line["top1"], line["top1_std"])})
    return lines


def lines_of_fine_tuning(root: Path) -> list[dict[str, Any]]:
    """Every measure of every objective, mean ± std over seeds, of the fine-tunings in `root` (runs.json of
    reproduction/finetuning.py). The paper's is plain: Eq. 8, M = 200, s = 0.1, and the backbone as it came."""
    from IP_training import IP_Finetuning
    from reproduction.lib.finetuned import BEFORE, INDEX, NAMES, finished_cells

    usual, lines = IP_Finetuning.Settings(), []
    for index in sorted(root.glob(f"*/{INDEX}")):
        made = read_json(index.parent / "manifest.json")
        cells, failed = finished_cells(index.parent)
        for sentence in failed:
            print(f"left out: {sentence}")
        if not len(cells):
            continue
        for (objective, size, sparsity), mine in cells.groupby(["objective", "num_concepts", "sparsity"], dropna=False,
                                                               sort=False):
            words = [NAMES[objective]] if objective not in (BEFORE, usual.objective) else []
            if objective != BEFORE:
                words += [f"M = {size:g}"] if size != usual.num_concepts else []
                words += [f"s = {sparsity:g}"] if sparsity != usual.sparsity else []
            of_bank = mine["measured_with"].iloc[0]
            common = {"method": "fine-tuning", "model": made["model_config"], "dataset": made["dataset"],
                      "setting": "before fine-tuning" if objective == BEFORE else "after fine-tuning",
                      "seeds": len(mine), "protocol": index.parent.name, "made_from": _place(index)}
            marks = "; ".join(sorted(set(filter(None, mine["marks"]))))
            for name, (measure, unit) in FINE_TUNED.items():
                if mine[name].isna().any():  # the original head of the backbone as it came
                    continue
                with_bank = [f"measured at M = {of_bank}"] if of_bank != usual.num_concepts and name in (
                    "fresh_ip", "iis", "iis_chance_corrected") else []
                mean, std = mean_std(mine[name])
                lines.append({**common, "variant": "; ".join(words + with_bank), "measure": measure,
                              "marks": marks if "IIS" in measure else "",
                              **(_area(mean, std) if unit == "area" else _percent(mean / 100, std and std / 100))})
    return lines


def _place(file: Path) -> str:
    return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name)


def _area(mean: float, std: float | None) -> dict[str, Any]:
    return {"value": round(mean, 5), "std": None if std is None else round(std, 5), "unit": "area"}


def _percent(mean: float, std: float | None) -> dict[str, Any]:
    return {"value": round(100 * mean, 3), "std": None if std is None else round(100 * std, 3), "unit": "%"}
