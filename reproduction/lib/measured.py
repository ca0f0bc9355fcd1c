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
from reproduction.lib.measures import stored_levels
from reproduction.lib.points import variant_of
from reproduction.lib.runs import Run

NEC_METHODS = {"Text": "LF-CBM", "Random": "random concepts"}  # as published.csv calls an elastic net on these banks
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
                "protocol": summary["protocol"], "variant": variant, "marks": ", ".join(run.marks)}
        lines += [{**bank, "measure": measure, **_area(summary[name]["mean"], summary[name]["std"])}
                  for measure, name in (("IIS", "iis"), ("chance-corrected IIS", "iis_chance_corrected"))
                  if summary[name]["mean"] is not None]
        own = [word for word in variant.split("; ") if word.startswith("holdout") or word.endswith(" epochs")]
        lines.append({**common, "method": "dense head", "setting": "", "protocol": "", "variant": "; ".join(own),
                      "measure": "top-1", **_percent(summary["dense"]["mean"], summary["dense"]["std"])})
    return lines


def lines_of_own_heads(root: Path = EMBEDDINGS) -> list[dict[str, Any]]:
    """Top-1 of backbones' original heads, as extractor/check_backbone.py kept it."""
    return [{"method": "original head", "model": found["model"], "dataset": found["dataset"],
             "setting": found["weights"], "measure": "top-1", **_percent(found["top1"] / 100, None), "seeds": 1,
             "protocol": "", "variant": "" if found["precision"] == "fp32" else found["precision"],
             "made_from": _place(file)}
            for file in sorted(root.glob("*/own_head_*.json")) for found in [read_json(file)]]


def lines_of_elastic_nets(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Top-1 of LF-CBM's final layer on a bank (elastic_net.json at or below the folders)."""
    lines = []
    for file in sorted({file for folder in folders for file in folder.rglob("elastic_net.json")}):
        found = read_json(file)
        identity, results = found["identity"], pd.DataFrame(found["results"])
        lines.append({"method": "LF-CBM" if identity["bank"] == "Text" else f"{identity['bank']}, elastic net",
                      "model": identity["model"], "dataset": identity["dataset"], "setting": "elastic net",
                      "measure": "top-1", **_percent(*mean_std(results["top1"])), "seeds": len(results), "variant": "",
                      "protocol": f"λ = {identity['lam']:g}: {results['nec'].mean():.1f} weights a class",
                      "made_from": _place(file)})
    return lines


def lines_of_nec(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Top-1 at NEC = 5, 10, … as far as reached, and their mean ANEC over the levels that all runs here with as many
    concepts reach, which its setting names. Of every run with a nec.json (reproduction/accuracy_at_nec.py) of the
    features and seeds of its ledger and of today's path."""
    from reproduction.lib.nec import Seeds, cache_name, over_seeds, reached_by_all, rows_of

    found: list[tuple[Run, Seeds]] = []
    rivals: dict[tuple[str, int], list[Seeds]] = {}
    for run in runs:
        if (seeds := stored_levels(run)) and len(seeds) == len(run.summary["seeds"]):
            found.append((run, seeds))
            rivals.setdefault(rows_of(run), []).append(seeds)
    lines = []
    for run, seeds in found:
        common = {"method": NEC_METHODS.get(run.method, f"{run.method}, elastic net"), "model": run.model,
                  "dataset": run.dataset, "seeds": len(seeds), "made_from": _place(run.folder / cache_name()),
                  "protocol": f"{run.summary['protocol']}, M = {run.summary['num_concepts']}",
                  "variant": variant_of(run)}
        for line in over_seeds(seeds, reached_by_all(rivals[rows_of(run)])):
            if line["top1"] is not None:
                mean = line["nec"] == "ANEC"
                lines.append({**common, "setting": f"NEC = {line['levels'] if mean else line['nec']}",
                              "measure": "ANEC" if mean else "top-1", **_percent(line["top1"], line["top1_std"])})
    return lines


def lines_of_fine_tuning(root: Path) -> list[dict[str, Any]]:
    """Every measure of every objective, mean ± std over seeds, of the fine-tunings in `root` (runs.json of
    reproduction/finetuning.py). The paper's is plain: Eq. 8, M = 200, s = 0.1, and the backbone as it came."""
    from IP_training import IP_Finetuning
    from reproduction.lib.finetuned import (
        BEFORE,
        EQ8,
        INDEX,
        MEASURES,
        NAMES,
        PERCENT,
        finished_cells,
        head_of,
        title_of,
    )

    usual, lines = IP_Finetuning.Settings(), []
    for index in sorted(root.glob(f"*/{INDEX}")):
        made = read_json(index.parent / "manifest.json")
        cells, failed = finished_cells(index.parent)
        for sentence in failed:
            print(f"left out: {sentence}")
        if not len(cells):
            continue
        keys = ["title", "num_concepts", "sparsity", "measured_with"]
        cells["title"] = [title_of(cell) for cell in cells.to_dict("records")]
        for (title, size, sparsity, of_bank), mine in cells.groupby(keys, dropna=False, sort=False):
            before = title == NAMES[BEFORE]
            words = [title if title not in (NAMES[BEFORE], NAMES[EQ8]) else "",
                     f"M = {size:g}" if not before and size != usual.num_concepts else "",
                     f"s = {sparsity:g}" if not before and sparsity != usual.sparsity else ""]
            common = {"method": "fine-tuning", "model": made["model_config"], "dataset": made["dataset"],
                      "setting": "before fine-tuning" if before else "after fine-tuning", "seeds": len(mine),
                      "protocol": index.parent.name, "made_from": _place(index)}
            marks = "; ".join(sorted(set(filter(None, mine["marks"]))))
            for name, (_, measure) in MEASURES.items():
                if mine[name].isna().any():  # the original head of the backbone as it came
                    continue
                by_bank = name in ("fresh_ip", "iis", "iis_chance_corrected") and of_bank != usual.num_concepts
                mean, std = mean_std(mine[name])
                measure = measure.replace("original head", head_of(mine["results"].iloc[0]))
                lines.append({**common, "measure": measure, "marks": marks if "IIS" in measure else "",
                              "variant": "; ".join(filter(None, [*words, by_bank * f"measured at M = {of_bank}"])),
                              **(_percent(mean / 100, std and std / 100) if name in PERCENT else _area(mean, std))})
    return lines


def _place(file: Path) -> str:
    return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name)


def _area(mean: float, std: float | None) -> dict[str, Any]:
    return {"value": round(mean, 5), "std": None if std is None else round(std, 5), "unit": "area"}


def _percent(mean: float, std: float | None) -> dict[str, Any]:
    return {"value": round(100 * mean, 3), "std": None if std is None else round(100 * std, 3), "unit": "%"}
