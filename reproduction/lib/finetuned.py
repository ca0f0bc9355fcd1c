"""What reproduction/finetuning.py has run, read back: a cell is one backbone, fine-tuned and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iis.runtime import ROOT, each, read_json
from IP_training.IP_Finetuning import EPOCHS, RESULTS
from reproduction.lib.runs import read_run

FOLDER = ROOT / "results" / "finetuning"
INDEX = "runs.json"
BEFORE, CONTROL = "before", "dense"
NAMES = {BEFORE: "as it came", "interpretability": "CE + λ CE(IP), Eq. 8", "dense": "CE alone (control)",
         "weight_decay": "CE + weight decay"}
# Measures of a backbone, as the table and as ours.csv call them: original head and the predictor that trained along,
# then stage 3 with all fresh. Those of PERCENT are in percent.
MEASURES = {"own_head": ("original head, %", "original head top-1"), "predictor": ("predictor, %", "predictor top-1"),
            "fresh_dense": ("fresh dense head, %", "dense top-1"), "fresh_ip": ("fresh IP at s, %", "IP top-1"),
            "iis": ("IIS", "IIS"), "iis_chance_corrected": ("IIS, chance-corrected", "chance-corrected IIS")}
PERCENT = ("own_head", "predictor", "fresh_dense", "fresh_ip")


def finished_cells(root: Path) -> tuple[pd.DataFrame, list[str]]:
    """A line for each finished cell of runs.json in `root`, and a sentence for each one that cannot be read.

    Columns: those of the index (objective, seed, num_concepts, sparsity, …), MEASURES (accuracies in percent; None for
    the original head of the backbone as it came), measured_with (M of stage 3's bank), marks, log (the epochs) and
    results (finetuning.json).
    """
    cells = [cell for cell in read_json(root / INDEX) if cell["seconds"] is not None and not cell["message"]]
    lines, failed = each(lambda cell: _line(root, cell), cells)
    return pd.DataFrame(lines), failed


def _line(root: Path, cell: dict[str, Any]) -> dict[str, Any]:
    folder = root / cell["name"]
    run = read_run(folder / "iis", draws=2)  # no interval is used
    tuned = cell["objective"] != BEFORE
    results = read_json(folder / RESULTS) if tuned else {}
    column = int(np.argmin(np.abs(np.array(run.summary["ratios"]) - (results.get("sparsity") or 0.1))))
    after = results.get("after", {})
    percent = {"own_head": after.get("dense_top1"), "predictor": after.get("ip_top1"), "fresh_dense": run.dense,
               "fresh_ip": float(np.mean(run.summary["curves"]["best"]["accuracy"], axis=0)[column])}
    return {**cell, **{name: None if value is None else 100 * value for name, value in percent.items()},
            "iis": run.iis, "iis_chance_corrected": run.corrected, "measured_with": run.summary["num_concepts"],
            "marks": "; ".join(run.marks), "log": read_json(folder / EPOCHS) if tuned else [], "results": results}
