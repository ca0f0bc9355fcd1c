"""The measures that stand beside the IIS, of one run: what score_truth and bank_truth compare with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iis.runtime import each, read_json
from reproduction.lib.runs import Run

# Column: (what tables call it, 1 where more is better and −1 where less is).
MEASURES = {"iis": ("IIS", 1), "iis_chance_corrected": ("chance-corrected IIS", 1), "lift": ("lift over Random", 1),
            "area_log_k": ("area over log k", 1), "ncc": ("NCC at s = 0", -1), "anec": ("ANEC", 1)}


def measures_of(run: Run, fit: bool = True, levels: Sequence[int] = ()) -> dict[str, float | None]:
    """Means over seeds, by the names of MEASURES. None: lift without a Random run (a Random run's own is 0), and ANEC
    where one of its levels is missing. fit: whether to fit the elastic nets that nec.json lacks; levels: see `anec`.

    Raises `UserError` where predictors or features are gone.
    """
    from reproduction.ncc import measure as contributing

    lift = 0.0 if run.summary["bank"] == "Random" else run.lift and run.lift.mean
    return {"iis": run.iis, "iis_chance_corrected": run.corrected, "lift": lift,
            "area_log_k": run.summary["area_log_k"]["mean"], "ncc": contributing(run, draws=2, ratios=[0.0])[0]["ncc"],
            "anec": anec(run, fit, levels)}


def anec(run: Run, fit: bool = True, levels: Sequence[int] = ()) -> float | None:
    """Mean accuracy over these levels of NEC: those that all runs compared have reached. Unless said, all up to M."""
    import torch

    from reproduction.accuracy_at_nec import measure
    from reproduction.lib.nec import LEVELS, over_seeds

    seeds = measure(run, torch.device("cpu"), "refined") if fit else stored_levels(run)
    if not levels:
        concepts = min(len(run.bank(seed)) for seed in run.summary["seeds"])
        levels = [level for level in LEVELS if level <= concepts]
    return seeds and over_seeds(seeds, levels)[-1]["top1"]


def stored_levels(run: Run) -> list[list[dict[str, Any]]] | None:
    """What accuracy_at_nec.py kept beside a run's ledger, lines per seed; None where a seed is missing, or its lines
    are of other features, another path or another bank (as far as it is still there) than today's."""
    from reproduction.lib.nec import PATHS, cache_name

    file = run.folder / cache_name()
    kept = read_json(file) if file.is_file() else {}
    now = {"path": PATHS["refined"], **{name: run.identity[name] for name in ("train_hash", "val_hash")}}
    seeds = []
    for seed in run.summary["seeds"]:
        banks, _ = each(run.bank, [seed])  # gone with the predictors: nothing to compare with
        depends = {**now, **(banks[0].encoder.fingerprint() if banks else {})}
        one = kept.get(str(seed))
        if not one or any(one["depends"].get(name) != value for name, value in depends.items()):
            return None
        seeds.append(one["levels"])
    return seeds
