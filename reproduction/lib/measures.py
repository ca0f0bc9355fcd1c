"""The measures that stand beside the IIS, of one run: what score_truth and bank_truth compare with the truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from iis.runtime import read_json
from iis.statistics import mean_std
from reproduction.lib.runs import Run

# Column: (what tables call it, 1 where more is better and −1 where less is).
MEASURES = {"iis": ("IIS", 1), "iis_chance_corrected": ("chance-corrected IIS", 1), "lift": ("lift over Random", 1),
            "area_log_k": ("area over log k", 1), "ncc": ("NCC at s = 0", -1), "anec": ("ANEC", 1)}


def measures_of(run: Run, fit: bool = True) -> dict[str, float | None]:
    """Means over seeds, by the names of MEASURES. None: lift without a Random run (a Random run's own is 0), and ANEC
    where a level is missing. fit: whether to fit the elastic nets that nec.json lacks.

    Raises `UserError` where predictors or features are gone.
    """
    from reproduction.ncc import measure as contributing

    lift = 0.0 if run.summary["bank"] == "Random" else run.lift and run.lift.mean
    return {"iis": run.iis, "iis_chance_corrected": run.corrected, "lift": lift,
            "area_log_k": run.summary["area_log_k"]["mean"], "ncc": contributing(run, draws=2, ratios=[0.0])[0]["ncc"],
            "anec": anec(run, fit)}


def anec(run: Run, fit: bool = True) -> float | None:
    """Mean accuracy over the levels of NEC up to M (of banks with few concepts not all six exist)."""
    import torch

    from reproduction.accuracy_at_nec import measure
    from reproduction.lib.nec import cache_name

    if fit:
        levels: list[Any] = measure(run, torch.device("cpu"), "refined")
    else:
        file = run.folder / cache_name()
        kept = read_json(file) if file.is_file() else {}
        levels = [kept.get(str(seed), {}).get("levels", []) for seed in run.summary["seeds"]]
    concepts = min(len(run.bank(seed)) for seed in run.summary["seeds"])
    top1 = [[line["top1"] for line in lines if line["nec"] <= concepts] for lines in levels]
    if not all(top1) or any(None in one for one in top1):
        return None
    return mean_std([float(np.mean(one)) for one in top1])[0]
