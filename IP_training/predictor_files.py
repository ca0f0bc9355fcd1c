"""The selected predictor of every ratio, with its bank, as safetensors + JSON: explanations need no retraining.

`predictors/seed_R.safetensors` holds, per ratio s: `s/weight` (C, M), `s/bias` (C,), `s/scale` and `s/shift` (M,) of
the normaliser; and `bank` (M, D), `mean`, `std` (M,), or `s/bank` … where every ratio has a bank of its own. Dense
heads lie with their own ledger. `predictors/seed_R.json`: what each concept looks like, how blocks of concepts are
normalised, the class names, and what was selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from iis.embedding_file import save_tensors
from iis.results import cell_of, select
from iis.runtime import UserError, read_json, write_json
from IP_training.banks import Bank
from IP_training.predictor import Normaliser
from IP_training.train_heads import Trained


def save_predictors(folder: Path, trained: Sequence[Trained], banks: Sequence[tuple[Bank | None, Normaliser | None]],
                    rows: Sequence[dict[str, Any]], class_names: Sequence[str], identity: dict[str, Any]) -> None:
    """Write the newly trained heads that the ledger selects; heads selected earlier stay.

    banks[i]: bank and normaliser of trained[i]; (None, None) for a dense head.
    """
    seed = trained[0].cell.seed
    file = folder / "predictors" / f"seed_{seed}.safetensors"
    described = file.with_suffix(".json")
    tensors, text = ({}, {"selected": {}, "concepts": {}, "blocks": {}})
    if file.exists() and described.exists():
        try:
            tensors, text = load_file(file), read_json(described)
        except SafetensorError:
            message = f"{file} is damaged; delete it and start again: its heads are lost, the ledger is not"
            raise UserError(message) from None
    best = {cell_of(row): row for row in select([row for row in rows if row["seed"] == seed]).values()}
    for head, (bank, normaliser) in zip(trained, banks, strict=True):
        if head.cell not in best:
            continue
        name = "dense" if head.cell.dense else f"{head.cell.ratio:g}"
        own = f"{name}/" if "bank" in head.state else ""  # a learned bank belongs to its cell
        tensors |= {f"{name}/{key}": value for key, value in head.state.items()}
        if bank is not None:
            tensors |= {f"{own}bank": bank.vectors_MD, f"{own}mean": normaliser.mean_M, f"{own}std": normaliser.std_M}
            text["concepts"][own.rstrip("/") or "all"] = bank.evidence
            text["blocks"][own.rstrip("/") or "all"] = [list(block) for block in bank.blocks]
        row = best[head.cell]
        text["selected"][name] = {key: row[key] for key in ("learning_rate", "best_epoch", "kept", "top1", "top5")}
    save_tensors(file, tensors)
    write_json(described, {"identity": identity, "seed": seed, "class_names": list(class_names), **text})
