"""Ledgers with accuracies chosen by hand, and a small sweep of them, for tests of tables and figures over models."""

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from conftest import prototype_flags

from iis.cli import parse
from iis.grid import DENSE, RATIOS
from iis.results import add_rows, pack_correct
from iis.runtime import write_json

COUNT, CHANCE = 1000, 0.2


def call(script: ModuleType, *flags: object) -> Any:
    """What `main` of a script returns for a command line."""
    return script.main(parse(script.Settings, [str(flag) for flag in flags]))


def trained(script: ModuleType, folder: Path, out: str = "out", **changes: object) -> Path:
    """A short run of a training script on the `toy` files in `folder`; its folder."""
    return call(script, *prototype_flags(folder, folder / out, **changes))


def rows_of(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV."""
    with open(file, newline="") as handle:
        return list(csv.DictReader(handle))


def correct_of(accuracy: float) -> str:
    """The first images right: `accuracy` of COUNT."""
    return pack_correct(np.arange(COUNT) < round(accuracy * COUNT))


def made_ledger(folder: Path, model: str, dense: float, accuracies: float | list[float], seeds: int = 2,
                spread: float = 0.005, first_seed: int = 0, **identity: object) -> Path:
    """A ledger of one learning rate. accuracies: top-1 at every ratio, or at all of them; the first seed has `spread`
    more, the second `spread` less, the dense head has none."""
    curve = np.broadcast_to(accuracies, len(RATIOS))
    identity = {"bank": "Prototype", "num_concepts": 20, "model": model, "dataset": "toy", "protocol": "paper",
                "sparsifier": "mask", "elements": {"kind": "segments", "protocol": "paper", "dataset": "toy"},
                "width": 12, "weights_hash": model, "chance": CHANCE, "n_val": COUNT, "holdout": 0.0, "epochs": 30,
                "batch_size": 1024, **identity}
    rows = []
    for seed in range(seeds):
        shift = spread * (1 - 2 * seed) if seeds > 1 else 0.0
        for ratio, top1 in [(DENSE, dense), *zip(RATIOS, curve + shift, strict=True)]:
            top1 = round(float(top1), 6)
            rows.append({
                **identity, "seed": first_seed + seed, "ratio": ratio, "learning_rate": 0.01, "top1": top1, "top5": 1.0,
                "kept": None if ratio == DENSE else 20 - int(20 * ratio), "bank_size": 20, "best_epoch": 3,
                "last_top1": top1, "last_top5": 1.0, "select_top1": top1, "last_select_top1": top1, "loss": 0.1,
                "note": None, "hits": correct_of(top1)})
    add_rows(folder / "results.jsonl", rows)
    return folder


# Dense top-1 and top-1 at every ratio. ARR 0.88, 0.85, 0.86; with chance 0.2 taken off both 0.8, 0.775, 0.8133.
FINISHED = {"net_a": (0.5, 0.44), "net_b": (0.6, 0.51), "net_c": (0.8, 0.688)}
# net_c on its way: the first is near chance, the second saturated, the last net_c itself.
ALONG = {"net_c_epoch1": (0.22, 0.21), "net_c_epoch2": (0.4, 0.4), "net_c_epoch4": (0.55, 0.462),
         "net_c_epoch8": (0.8, 0.688)}


def made_cell(folder: Path, name: str, model: str, variant: str = "", **ledger: object) -> dict[str, object]:
    """An entry of cells.json with its ledger in folder / name."""
    dense, accuracy = {**FINISHED, **ALONG}[model]
    made_ledger(folder / name, model, dense, accuracy, **ledger)
    return {"name": name, "model": model, "variant": variant, "folder": str(folder / name), "message": None}


def made_sweep(folder: Path) -> Path:
    """The cells.json (in folder / sweep) of three finished models under two banks, net_c's checkpoints under one of
    them, a variant, and a cell that failed."""
    cells = [made_cell(folder, model, model, weights_hash="c" if model == "net_c" else model) for model in FINISHED]
    cells += [made_cell(folder, f"random_{model}", model, bank="Random", elements=None) for model in FINISHED]
    cells += [made_cell(folder, model, model, weights_hash="c" if model == "net_c_epoch8" else model)
              for model in ALONG]
    cells += [made_cell(folder, "shrink", "net_a", "shrink", sparsifier="shrink"),
              {"name": "failed", "model": "net_d", "variant": "", "folder": None, "message": "out of memory"}]
    write_json(folder / "sweep" / "cells.json", cells)
    return folder / "sweep" / "cells.json"
