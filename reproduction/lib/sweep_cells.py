"""A sweep's YAML → its cells: models × data sets × banks, each with the settings of its training script.

    settings: {seeds: 3, num_concepts: 64}      # of the training scripts; a script takes those it knows
    stage1: {format: png}                       # settings of the scripts of stage 1 and stage 2
    stage2: {batch_size: 256}
    datasets: [shapes]
    models: [shapes_small, {model_name: mine, config_yaml: shapes_small, weights: mine.pth, family: shapes}]
    banks: [Prototype, {bank: Prototype, variant: "shrink (Eq. 4)", sparsifier: shrink}]
    blocks: [{datasets: …, models: …, banks: …, settings: …}]       # more of the same, with the settings above

A model is a name of model_configs/, or a mapping of stage-2 settings; `checkpoints: "demo/weights/NAME_epoch*.pth"`
stands for one model per file. A bank is a kind, or a mapping with the settings of its script; `variant` names what
differs from the plain cell, `elements_of` takes the elements of another data set.
"""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

from iis.cli import read_yaml
from iis.runtime import ROOT, UserError, nearest
from reproduction.lib.cells import checked

SCRIPTS = {"Prototype": "IP_Prototype_training", "Cluster": "IP_Cluster_training", "End2End": "IP_End2End_training",
           "Text": "IP_Text_training", "Combined": "IP_Bank_training", "Random": "IP_Bank_training",
           "Own": "IP_Bank_training"}
BLOCK = ("datasets", "models", "banks", "settings")
OF_TABLES = ("family", "base_model")  # of a model: for tables, not for stage 2
KEY = ("model", "stage2", "dataset", "bank", "elements_of", "flags")  # what decides a cell's ledger


def read_sweep(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The cells in the order of the file, as plain values for cells.json, and the settings of stage 1 and of stage 2.

    A cell has a name, the keys of KEY (stage2: settings of stage 2 for its model; flags: settings of the training
    script), variant, and family and base_model where the model has them. Raises `UserError` for an unknown key or bank,
    and for two cells that are the same.
    """
    data = checked(read_yaml(file), str(file), (*BLOCK, "blocks", "stage1", "stage2"))
    stage1, stage2, settings = (checked(data.get(key), f"{file}: {key}") for key in ("stage1", "stage2", "settings"))
    first = {key: data[key] for key in BLOCK[:3] if key in data}
    cells: list[dict[str, Any]] = []
    for block in ([first] if first else []) + list(data.get("blocks") or []):
        block = checked(block, f"{file}: a block", BLOCK)
        own = {**settings, **checked(block.get("settings"), f"{file}: settings")}
        for key in BLOCK[:3]:
            if not isinstance(block.get(key), list) or not block[key]:
                raise UserError(f"{file}: a block needs a list of {key}")
        models = [model for entry in block["models"] for model in _models(entry, file)]
        cells += [_cell(*parts, own, file) for parts in product(block["datasets"], models, block["banks"])]
    if not cells:
        raise UserError(f"{file} names no cell: it needs datasets, models and banks")
    for place, cell in enumerate(cells):
        if any(all(cell[key] == other[key] for key in KEY) for other in cells[:place]):
            raise UserError(f"{file} holds the cell ({cell['name']}) twice; leave one out")
    return json.loads(json.dumps(cells)), stage1, stage2


def _cell(dataset: str, model: dict[str, Any], bank: str | dict[str, Any], settings: dict[str, Any], file: Path
          ) -> dict[str, Any]:
    if not isinstance(dataset, str) or not isinstance(bank, str | dict):
        raise UserError(f"{file}: the data set {dataset!r} or the bank {bank!r} is no name (in quotes, where it looks "
                        "like a number)")
    own = {"bank": bank} if isinstance(bank, str) else dict(bank)
    kind, variant, elements_of = own.pop("bank", None), own.pop("variant", ""), own.pop("elements_of", None)
    if kind not in SCRIPTS:
        raise UserError(f"{file}: the bank {kind!r} is not known{nearest(str(kind), SCRIPTS)}")
    flags, of_tables = {**settings, **own}, {key: model[key] for key in OF_TABLES if key in model}
    size = f"M = {flags['num_concepts']}" if "num_concepts" in flags else ""
    return {"name": ", ".join(filter(None, (model["model_name"], dataset, kind, size, variant))),
            "model": model["model_name"], "stage2": {key: model[key] for key in model if key not in of_tables},
            "dataset": dataset, "bank": kind, "elements_of": elements_of, "flags": flags, **of_tables,
            "variant": variant}


def _models(entry: str | dict[str, Any], file: Path) -> list[dict[str, Any]]:
    if isinstance(entry, str):
        return [{"model_name": entry, "config_yaml": entry}]
    if not isinstance(entry, dict):
        raise UserError(f"{file}: the model {entry!r} is neither a name (in quotes, where it looks like a number) nor "
                        "a mapping")
    pattern, model = entry.get("checkpoints"), {key: entry[key] for key in entry if key != "checkpoints"}
    if pattern is None:
        if "model_name" not in entry:
            raise UserError(f"{file}: a model given as a mapping needs a model_name")
        return [model]
    found = sorted(ROOT.glob(pattern), key=lambda one: [int(part) if part.isdigit() else part
                                                        for part in re.split(r"(\d+)", one.name)])
    if not found:
        raise UserError(f"{file}: there is no checkpoint {ROOT / pattern}; train the backbone first")
    return [{**model, "model_name": one.stem, "weights": str(one.relative_to(ROOT))} for one in found]
