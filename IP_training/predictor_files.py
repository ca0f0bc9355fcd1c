"""The selected predictor of every ratio, with its bank, as safetensors + JSON: explanations need no retraining.

`predictors/seed_R.safetensors` holds `bank` (M, D) and, per ratio s, `s/weight` (C, M), `s/bias` (C,), `s/scale` (M,)
and `s/shift` (M,); `dense/weight` (C, D) and `dense/bias` (C,) where they were trained in this run.
`predictors/seed_R.json` says what each concept looks like, the class names, and what was selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from iis.ledger import cell_of
from iis.runtime import read_json, write_json, write_whole
from iis.selection import select
from IP_training.concept_banks import Bank
from IP_training.grid_training import Trained

# Names in the file: without the axes of the stacked parameters.
SHORT = {"weight_GCM": "weight", "weight_GCD": "weight", "bias_GC": "bias", "scale_GM": "scale", "shift_GM": "shift"}


def save_predictors(folder: Path, bank: Bank, trained: Sequence[Trained], rows: Sequence[dict[str, Any]],
                    class_names: Sequence[str], identity: dict[str, Any]) -> None:
    """Write the newly trained heads that the ledger selects; heads selected earlier stay."""
    if not trained:
        return
    seed = trained[0].cell.seed
    file = folder / "predictors" / f"seed_{seed}.safetensors"
    described = file.with_suffix(".json")
    complete = file.exists() and described.exists()
    tensors = load_file(file) if complete else {}
    selected = read_json(described)["selected"] if complete else {}
    tensors["bank"] = bank.vectors_MD.contiguous()
    best = {cell_of(row): row for row in select([row for row in rows if row["seed"] == seed]).values()}
    for head in trained:
        if head.cell not in best:
            continue
        name = "dense" if head.cell.dense else f"{head.cell.ratio:g}"
        for parameter, value in head.state.items():
            tensors[f"{name}/{SHORT.get(parameter, parameter)}"] = value.cpu().contiguous()
        row = best[head.cell]
        selected[name] = {key: row[key] for key in ("learning_rate", "best_epoch", "kept", "top1", "top5")}
    write_whole(file, lambda temporary: _save_readable(tensors, temporary))
    write_json(described, {"identity": identity, "seed": seed, "selected": selected, "class_names": list(class_names),
                           "concepts": bank.evidence})


def _save_readable(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file)
    file.chmod(0o644)  # safetensors writes 0600, which colleagues on a shared disk cannot read
