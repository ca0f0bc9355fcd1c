"""From a ledger to the IIS: the curve of every seed, mean ± std, a bootstrap, and what to know before using it.

A folder of checkpoints named as the authors' release names them is read too (`release_summary`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iis.equations import (
    above_ceiling,
    accuracy_retention,
    area,
    area_log_k,
    chance_corrected,
    near_ceiling,
    require_ratios,
    saturated,
    span,
    standard_error,
    too_close_to_chance,
)
from iis.grid import DENSE, held_count
from iis.results import select, unpack_correct
from iis.runtime import UserError, without_nan
from iis.statistics import bootstrap_retention, interval, mean_std, retention_errors

TITLE = ("model", "dataset", "bank", "num_concepts", "protocol")  # what names a run in tables
# What else a row must hold to be summarised; those of MEASURED must be numbers.
MEASURED = ("top1", "top5", "last_top1", "last_top5", "select_top1", "last_select_top1")
NEEDED = (*TITLE, *MEASURED, "kept", "hits", "chance", "n_val", "sparsifier", "width", "holdout")
FEW_STEPS = 300  # optimizer steps in all, below which heads have hardly trained
# Marks stand beside the number in every table, CSV and figure.
MARKS = {"close to chance": "!", "saturated": "^", "above the dense head": "+"}


def summarise(rows: Sequence[dict[str, Any]], draws: int = 1000, where: str = "the ledger") -> dict[str, Any]:
    """Everything `iis_computing.py` reports about one ledger, as plain values. Accuracies are fractions.

    None stands for what is undefined: the std of one seed, what is divided by a dense head's distance from chance
    where that is 0, and what is divided by a last epoch that gets nothing right. Raises `UserError` where a seed lacks
    a ratio or its dense head, where that gets nothing right, or where a row lacks a measurement.
    """
    seeds, ratios = seeds_and_ratios(rows, where)
    first, chosen, last = rows[0], select(rows), select(rows, "last")
    nothing = [seed for seed in seeds if not chosen[seed, DENSE]["top1"]]
    if nothing:
        raise UserError(f"{where}: the dense head of seed {nothing[0]} gets no validation image right, so there is "
                        "no IIS; check that training and validation labels number the same classes, or train it longer "
                        "(--n_epoch) or at other --learning_rates")
    best = _curves(chosen, seeds, ratios, "top1", first["chance"])
    at_end = _curves(last, seeds, ratios, "last_top1", first["chance"])
    kept_RS = [[chosen[seed, ratio]["kept"] for ratio in ratios] for seed in seeds]  # a Text bank's M may vary
    correct_RSN, dense_RN = correct_of(chosen, seeds, ratios)
    errors_S, error = retention_errors(ratios, correct_RSN, dense_RN)
    arr_BRS = bootstrap_retention(correct_RSN, dense_RN, draws)
    scores = area(ratios, arr_BRS).mean(1)  # over images alone: seeds have their std beside it
    defined = scores[np.isfinite(scores)]
    dense, dense_std = mean_std(best["dense"])
    sizes = sorted({chosen[seed, ratios[0]]["bank_size"] for seed in seeds}) if first["num_concepts"] is None else []
    result = {**{name: first[name] for name in TITLE}, "sparsifier": first["sparsifier"], "width": first["width"],
              "holdout": first["holdout"], "seeds": seeds, "ratios": ratios, "span": span(ratios),
              "kept": kept_RS[0],
              "n_val": first["n_val"], "chance": first["chance"], "curves": {"best": best, "last": at_end},
              "iis": _score(best["iis"], span(ratios)), "iis_last": _score(at_end["iis"], span(ratios)),
              "iis_chance_corrected": _score(best["iis_chance_corrected"], span(ratios)),
              "area_log_k": _score(_areas_log_k(kept_RS, best["arr"]), 1.0) | {
                  "interval_95": interval(np.mean(_areas_log_k(kept_RS, np.moveaxis(arr_BRS, 1, 0)), axis=0))},
              "paired_error": {"arr": errors_S.tolist(), "iis": error},
              "bootstrap": {"draws": draws, "undefined": draws - len(defined), "interval_95": interval(scores),
                            "std": float(defined.std(ddof=1)) if len(defined) > 1 else None},
              "dense": {"mean": dense, "std": dense_std, "standard_error": standard_error(dense, first["n_val"]),
                        "top5": float(np.mean([chosen[seed, DENSE]["top5"] for seed in seeds]))},
              "table": _table(chosen, last, seeds, ratios, best)}
    if sizes:  # a Text bank of all words that pass; their number may differ between seeds
        result["num_concepts"] = sizes[0] if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
    result = without_nan(result)
    result["marks"], warnings = _warnings(result)
    result["remarks"] = [*warnings, *_notes(result), *remarks_on_rows(rows)]
    return result


def mark_of(result: dict[str, Any]) -> str:
    """The signs of a summary's marks, to stand behind its number: "" for none."""
    return "".join(MARKS[mark] for mark in result.get("marks", ()))


def seeds_and_ratios(rows: Sequence[dict[str, Any]], where: str) -> tuple[list[int], list[float]]:
    """The seeds and sparsity ratios of a ledger. Raises `UserError` where it has no rows, a row lacks a measurement, or
    a seed lacks a ratio or its dense head."""
    if not rows:
        raise UserError(f"{where} has no rows: run stage 3 first")
    for row in rows:
        gone = [name for name in NEEDED if name not in row] or [
            name for name in MEASURED if not isinstance(row[name], int | float)]
        if gone:
            raise UserError(f"{where}: the row of seed {row['seed']}, ratio {row['ratio']} says nothing of "
                            f"{', '.join(gone)}; delete that line and run stage 3 again, which trains what is missing")
    seeds, ratios = sorted({row["seed"] for row in rows}), sorted({row["ratio"] for row in rows} - {DENSE})
    for seed in seeds:
        mine = [row["ratio"] for row in rows if row["seed"] == seed]
        require_ratios(mine, where=f"{where}, seed {seed},")
        require_ratios(mine, ratios, where=f"{where}, seed {seed},")
        if DENSE not in mine:
            raise UserError(f"{where} has no dense head for seed {seed}: run stage 3 again, it trains what is missing")
    return seeds, ratios


def _curves(chosen: dict[tuple[int, float], dict[str, Any]], seeds: Sequence[int], ratios: Sequence[float],
            measure: str, chance: float) -> dict[str, list]:
    """ARR, chance-corrected ARR and IIS of every seed, each with that seed's dense head."""
    accuracy_RS = np.array([[chosen[seed, ratio][measure] for ratio in ratios] for seed in seeds])
    dense_R = np.array([chosen[seed, DENSE][measure] for seed in seeds])
    retention_RS = accuracy_retention(accuracy_RS, dense_R)
    corrected_RS = chance_corrected(accuracy_RS, dense_R, chance)
    return {"accuracy": accuracy_RS.tolist(), "dense": dense_R.tolist(), "arr": retention_RS.tolist(),
            "arr_chance_corrected": corrected_RS.tolist(), "iis": area(ratios, retention_RS).tolist(),
            "iis_chance_corrected": area(ratios, corrected_RS).tolist()}


def _score(per_seed: Sequence[float], length: float) -> dict[str, Any]:
    mean, std = mean_std(per_seed)
    return {"mean": mean, "std": std, "per_seed": list(per_seed), "normalised": mean / length}


def _table(chosen: dict, last: dict, seeds: Sequence[int], ratios: Sequence[float], best: dict) -> list[dict[str, Any]]:
    """One line per ratio (the dense head first): means over seeds, and the std of what is compared."""
    corrected_S, lines = np.mean(best["arr_chance_corrected"], axis=0), []
    corrected_K = [*corrected_S, 1 + 0 * corrected_S[0]]  # the dense head's own is last: 1, or as undefined as the rest
    for column, ratio in enumerate((DENSE, *ratios), start=-1):
        mine, ends = ([selected[seed, ratio] for seed in seeds] for selected in (chosen, last))
        top1, top1_std = mean_std([row["top1"] for row in mine])
        arr, arr_std = (1.0, None) if ratio == DENSE else mean_std([curve[column] for curve in best["arr"]])
        lines.append({"ratio": None if ratio == DENSE else ratio, "kept": mine[0]["kept"], "top1": top1,
                      "top1_std": top1_std, "top5": float(np.mean([row["top5"] for row in mine])),
                      "last_top1": float(np.mean([row["last_top1"] for row in ends])),
                      "last_top5": float(np.mean([row["last_top5"] for row in ends])),
                      "learning_rates": sorted({row["learning_rate"] for row in mine}), "arr": arr,
                      "arr_std": arr_std, "arr_chance_corrected": float(corrected_K[column])})
    return lines


def _areas_log_k(kept_RS: Sequence[Sequence[int]], arr_RS: Sequence[Any]) -> list[Any]:
    """Area over log k of every seed with its own k; arr_RS: for each (S,) or (B, S)."""
    return [area_log_k(kept_S, arr_S).tolist() for kept_S, arr_S in zip(kept_RS, arr_RS, strict=True)]


def correct_of(chosen: dict[tuple[int, float], dict[str, Any]], seeds: Sequence[int], ratios: Sequence[float]
               ) -> tuple[np.ndarray, np.ndarray]:
    """Which validation images the selected heads got right, as `bootstrap_retention` takes it: (R, S, N) bool and, of
    the dense heads, (R, N)."""
    correct_RKN = np.array([[unpack_correct(chosen[seed, ratio]["hits"], chosen[seed, ratio]["n_val"])
                             for ratio in (*ratios, DENSE)] for seed in seeds])
    return correct_RKN[:, :-1], correct_RKN[:, -1]


# ---- remarks: what a reader must know before using the number ----


def _warnings(result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The marks of a summary, and their sentences."""
    dense, count, marks, remarks = result["dense"]["mean"], result["n_val"], [], []
    if too_close_to_chance(dense, result["chance"], count):
        marks.append("close to chance")
        remarks.append(f"warning: the dense head reaches {dense:.4f} where always naming the largest class gives "
                       f"{result['chance']:.4f}; this close to chance ARR and IIS mean nothing")
    score, ceiling, error, reason = result["iis"]["mean"], result["span"], result["paired_error"], None
    if saturated(np.mean(result["curves"]["best"]["arr"], axis=0), error["arr"]):
        reason = "every ARR is within one standard error of 1"
    elif near_ceiling(score, ceiling, error["iis"]):
        reason = f"the IIS is within one standard error ({error['iis']:.4f}) of its ceiling {ceiling:g}"
    if reason:
        marks.append("saturated")
        remarks.append(f"warning: {reason}, so it has saturated and cannot tell representations apart; use a smaller "
                       "--num_concepts or a harder data set")
    if above_ceiling(score, ceiling):
        marks.append("above the dense head")
        remarks.append(f"warning: the IIS is above {ceiling:g}, so predictors do better than the dense head "
                       "that they are divided by, which may need more epochs (--n_epoch) or other --learning_rates")
    return marks, remarks


def _notes(result: dict[str, Any]) -> list[str]:
    notes, bootstrap = [], result["bootstrap"]
    for name, sentence in (
            ("iis_chance_corrected", f"exactly at chance ({result['chance']:.4f}), so the chance-corrected IIS is"),
            ("iis_last", "right about no image after the last epoch, so the IIS of the last epoch is")):
        undefined = [str(seed) for seed, value in zip(result["seeds"], result[name]["per_seed"], strict=True)
                     if value is None]
        if undefined:
            notes.append(f"note: the dense head of seed {', '.join(undefined)} is {sentence} undefined")
    if bootstrap["undefined"]:
        notes.append(f"note: in {bootstrap['undefined']} of {bootstrap['draws']} resamples a dense head gets no image "
                     "right; the bootstrap interval is that of the others")
    if not result["holdout"]:
        notes.append("note: epoch and learning rate were selected on the validation images themselves, as the release "
                     "does; --holdout 0.1 in stage 3 selects on a slice of train")
    if len(result["seeds"]) == 1:
        notes.append("note: one seed says nothing about spread; train more with --seeds 3")
    return notes


def remarks_on_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for each thing about the training that deserves one: a selection at the edge of the grid, too few
    steps, heads that learned nothing."""
    remarks, selected = [], list(select(rows).values())
    rates = sorted({row["learning_rate"] for row in rows})
    for rate, side in ((rates[0], "smaller"), (rates[-1], "larger")) if len(rates) > 1 else ():
        at_edge = [row for row in selected if row["learning_rate"] == rate]
        if at_edge:
            remarks.append(f"note: the best learning rate is at the edge of the grid ({rate:g}) for "
                           f"{_places(at_edge)}; a {side} one may do better (--learning_rates)")
    last = [row for row in selected if row["best_epoch"] == row["epochs"]]
    if last:
        remarks.append(f"note: the best epoch is the last one ({last[0]['epochs']}) for {_places(last)}; "
                       "more epochs may do better (--n_epoch)")
    steps = {row["epochs"] * -(-(row["n_train"] - held_count(row["n_train"], row["holdout"])) // row["batch_size"])
             for row in rows if {"epochs", "n_train", "batch_size", "holdout"} <= row.keys()}
    if steps and min(steps) < FEW_STEPS:
        remarks.append(f"note: heads trained for {min(steps)} steps in all, and under about {FEW_STEPS} they have "
                       "hardly settled; set a smaller --batch_size, a larger --n_epoch, or --recipe converged")
    silent = [row for row in selected if row["note"]]
    if silent:
        remarks.append(f"note: {_places(silent)}: {silent[0]['note']}")
    broken = [row for row in rows if not np.isfinite(row["loss"])]
    if broken:
        remarks.append(f"note: the loss of {len(broken)} head(s) diverged ({_places(broken)})")
    return remarks


def _places(rows: Sequence[dict[str, Any]]) -> str:
    """"s = 0.9, 0.95 and the dense head (5 of the heads)"."""
    ratios = sorted({row["ratio"] for row in rows if row["ratio"] >= 0})
    parts = ([f"s = {', '.join(f'{ratio:g}' for ratio in ratios)}"] if ratios else [])
    parts += ["the dense head"] if any(row["ratio"] < 0 for row in rows) else []
    return f"{' and '.join(parts)} ({len(rows)} selected head{'s' if len(rows) > 1 else ''})"


# ---- the release's checkpoints ----


def is_release_folder(folder: Path) -> bool:
    """True where at least one file is named as the release names them."""
    return any("##" in file.name for file in Path(folder).glob("*.pth"))


def release_summary(folder: Path) -> list[dict[str, Any]]:
    """One result per M from file names alone: best top-1 per ratio over best dense top-1, and the area.

        standard##0.01##0.842##0.7613##0.9286.pth        standard##lr##loss##top1##top5      the dense head
        200##0.7##0.01##0.911##0.6402##0.8511.pth        M##s##lr##loss##top1##top5          a predictor

    Raises `UserError` for a name that does not parse, a missing dense head or a missing ratio.
    """
    dense: list[float] = []
    best: dict[int, dict[float, float]] = defaultdict(dict)
    for file in sorted(Path(folder).glob("*##*.pth")):
        parts = file.name.removesuffix(".pth").split("##")
        try:
            if parts[0] == "standard":
                _, _, _, top1, _ = parts
                dense.append(float(top1))
            else:
                count, ratio, _, _, top1, _ = parts
                best[int(count)][float(ratio)] = max(float(top1), best[int(count)].get(float(ratio), 0.0))
        except ValueError:
            raise UserError(f"{file} is not named standard##lr##loss##top1##top5.pth or "
                            "M##s##lr##loss##top1##top5.pth; move it out of the folder") from None
    if not dense:
        raise UserError(f"{folder} has no dense head (standard##lr##loss##top1##top5.pth), so there is nothing to "
                        "divide by")
    if not max(dense):
        raise UserError(f"{folder}: every dense head's name says top-1 0, so there is nothing to divide by; train it "
                        "longer or at other learning rates")
    if not best:
        raise UserError(f"{folder} has a dense head but no predictor (M##s##lr##loss##top1##top5.pth)")
    results = []
    for count, accuracies in sorted(best.items()):
        require_ratios(list(accuracies), where=f"{folder}, M = {count},")
        ratios = sorted(accuracies)
        retention = accuracy_retention([accuracies[ratio] for ratio in ratios], max(dense))
        score = float(area(ratios, retention))
        results.append({"num_concepts": count, "dense": max(dense), "ratios": ratios, "arr": retention.tolist(),
                        "accuracy": [accuracies[ratio] for ratio in ratios], "iis": score,
                        "normalised": score / span(ratios)})
    return results
