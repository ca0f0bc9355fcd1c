"""What reproduction/finetuning.py has run, read back: a cell is one backbone, fine-tuned and measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iis.runtime import ROOT, each, read_json
from IP_training.IP_Finetuning import EPOCHS, RESULTS
from reproduction.lib.runs import read_run

FOLDER = ROOT / "results" / "finetuning"
INDEX, TUNING = "runs.json", "tuning"
BEFORE, EQ8, CONTROL = "before", "interpretability", "dense"
NAMES = {BEFORE: "as it came", EQ8: "CE + λ CE(IP), Eq. 8", CONTROL: "CE alone (control)",
         "weight_decay": "CE + weight decay"}
# Measures of a backbone, as the table and as ours.csv call them: original head and the predictor that trained along,
# then stage 3 with all fresh. Those of PERCENT are in percent.
MEASURES = {"own_head": ("original head, %", "original head top-1"), "predictor": ("predictor, %", "predictor top-1"),
            "fresh_dense": ("fresh dense head, %", "dense top-1"), "fresh_ip": ("fresh IP at s, %", "IP top-1"),
            "iis": ("IIS", "IIS"), "iis_chance_corrected": ("IIS, chance-corrected", "chance-corrected IIS")}
PERCENT = ("own_head", "predictor", "fresh_dense", "fresh_ip")


def finished_cells(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """A line for each finished cell of runs.json in `root`, and a sentence for each one that cannot be read.

    Columns: those of the index (objective, seed, num_concepts, sparsity, learning_rate, rate_of, …), MEASURES
    (accuracies in percent; None for the original head of the backbone as it came), curve (fresh IP's accuracy at every
    ratio measured), measured_with (M of stage 3's bank), marks, log (the epochs) and results (finetuning.json).
    """
    lines, failed = each(lambda cell: _line(root, cell), _finished(root))
    return pd.DataFrame(lines), failed


def tuned_cells(root: Path) -> pd.DataFrame:
    """A line for each finished cell of the tuning in `root`: objective, learning_rate, seed; own_head and predictor,
    their top-1 on the held-out images after the last epoch, in percent; before: own_head before the first; held_out:
    how many images; head: of `head_of`."""
    lines = []
    for cell in _finished(root):
        results = read_json(root / cell["name"] / RESULTS)
        lines.append({**{key: cell[key] for key in ("objective", "learning_rate", "seed")},
                      "own_head": 100 * results["after"]["dense_top1"], "predictor": 100 * results["after"]["ip_top1"],
                      "before": 100 * results["before"]["dense_top1"], "held_out": results["n_val"],
                      "head": head_of(results)})
    return pd.DataFrame(lines)


def best_rates(cells: pd.DataFrame) -> dict[str, float]:
    """The learning rate of each objective of `tuned_cells` whose original head is best on the held-out images, on
    average over seeds; of equals the smallest. The same for all objectives, so that none is favoured."""
    means = cells.groupby(["objective", "learning_rate"], sort=True)["own_head"].mean().round(9)
    return {objective: float(means[objective].idxmax()) for objective in cells["objective"].unique()}


def head_of(results: Mapping[str, Any]) -> str:
    """What own_head of a run (finetuning.json) is of: the "original head", or the "new head" of other classes that was
    fitted in its place."""
    return "new head" if results.get("new_head") else "original head"


def title_of(cell: Mapping[str, Any]) -> str:
    """How tables call the objective of a cell."""
    return NAMES[cell["objective"]] + (
        ", at the control's rate" if cell["rate_of"] == CONTROL and cell["objective"] != CONTROL else "")


def nearest_ratio(curve: Mapping[float, float], sparsity: float) -> float:
    """The ratio of a curve that is nearest to s."""
    return min(curve, key=lambda ratio: abs(ratio - sparsity))


def _finished(root: Path) -> list[dict[str, Any]]:
    return [cell for cell in read_json(root / INDEX) if cell["seconds"] is not None and not cell["message"]]


def _line(root: Path, cell: dict[str, Any]) -> dict[str, Any]:
    folder = root / cell["name"]
    run = read_run(folder / "iis", draws=2)  # no interval is used
    tuned = cell["objective"] != BEFORE
    results = read_json(folder / RESULTS) if tuned else {}
    accuracy_S = 100 * np.mean(run.summary["curves"]["best"]["accuracy"], axis=0)
    curve = dict(zip(run.summary["ratios"], accuracy_S.tolist(), strict=True))
    after = results.get("after", {})
    percent = {"own_head": after.get("dense_top1"), "predictor": after.get("ip_top1"), "fresh_dense": run.dense}
    return {**cell, **{name: None if value is None else 100 * value for name, value in percent.items()},
            "fresh_ip": curve[nearest_ratio(curve, results.get("sparsity") or 0.1)], "curve": curve,
            "iis": run.iis, "iis_chance_corrected": run.corrected, "measured_with": run.summary["num_concepts"],
            "marks": "; ".join(run.marks), "log": read_json(folder / EPOCHS) if tuned else [], "results": results}
