"""What reproduction/finetuning.py has run, read back: a cell is one backbone, fine-tuned and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, each, read_json
from iis.summary import summarise
from IP_training.IP_Finetuning import EPOCHS, RESULTS

FOLDER = ROOT / "results" / "finetuning"
INDEX = "runs.json"
BEFORE, CONTROL = "before", "dense"
NAMES = {"interpretability": "CE + λ CE(IP), Eq. 8", "dense": "CE alone (control)", "weight_decay": "CE + weight decay",
         BEFORE: "as it came"}
# What is measured of a backbone: original head and the predictor that trained along, then stage 3 with all fresh.
MEASURES = {"own_head": "original head, %", "predictor": "predictor, %", "fresh_dense": "fresh dense head, %",
            "fresh_ip": "fresh IP at s, %", "iis": "IIS", "iis_chance_corrected": "IIS, chance-corrected"}
PERCENT = ("own_head", "predictor", "fresh_dense", "fresh_ip")


@dataclass(frozen=True)
class Measured:
    """One cell: its entry in the index, the values of MEASURES (accuracies in percent), the M of the bank that stage 3
    measured with, and the log of its epochs."""

    cell: dict[str, Any]
    values: dict[str, float | None]
    num_concepts: int
    log: list[dict[str, Any]]
    results: dict[str, Any]


def finished_cells(root: Path) -> tuple[list[Measured], list[str]]:
    """All finished cells of runs.json in `root`, and a sentence for each one that cannot be read."""
    cells = [cell for cell in read_json(root / INDEX) if cell["seconds"] is not None and not cell["message"]]
    return each(lambda cell: read_cell(root, cell), cells)


def read_cell(root: Path, cell: dict[str, Any]) -> Measured:
    """Results of one cell: both JSONs of fine-tuning (none for the backbone as it came) and its ledger."""
    folder = root / cell["name"]
    rows = read_ledger(folder / "iis" / LEDGER)
    summary = summarise(rows, draws=2, where=str(folder / "iis" / LEDGER))  # no interval is used
    results = read_json(folder / RESULTS) if cell["objective"] != BEFORE else {}
    column = int(np.argmin(np.abs(np.array(summary["ratios"]) - (results.get("sparsity") or 0.1))))
    after = results.get("after", {})
    values = {"own_head": _percent(after.get("dense_top1")), "predictor": _percent(after.get("ip_top1")),
              "fresh_dense": 100 * summary["dense"]["mean"],
              "fresh_ip": 100 * float(np.mean([curve[column] for curve in summary["curves"]["best"]["accuracy"]])),
              "iis": summary["iis"]["mean"], "iis_chance_corrected": summary["iis_chance_corrected"]["mean"]}
    return Measured(cell, values, summary["num_concepts"], read_json(folder / EPOCHS) if results else [], results)


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
