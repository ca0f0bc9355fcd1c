"""A sweep's YAML → its cells: models × data sets × banks, each with the flags of its training script.

    settings: {seeds: 3, num_concepts: 64}      # flags of the training scripts; a script takes those it knows
    stage1: {format: png}                       # flags of the scripts of stage 1 and stage 2
    stage2: {batch_size: 256}
    datasets: [shapes]
    models: [shapes_small, {model_name: mine, config_yaml: shapes_small, weights: mine.pth, family: shapes}]
    banks: [Prototype, {bank: Prototype, variant: "shrink (Eq. 4)", sparsifier: shrink}]
    blocks: [{datasets: …, models: …, banks: …, settings: …}]       # more of the same, with the settings above

A model is a name of model_configs/, or a mapping of stage-2 flags; `checkpoints: "demo/weights/NAME_epoch*.pth"` stands
for one model per file. A bank is a kind, or a mapping with the flags of its script; `variant` names what differs from the
plain cell, `elements_of` takes the elements of another data set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iis.cli import read_yaml
from iis.runtime import ROOT, UserError, nearest

DOORS = {"Prototype": "IP_Prototype_training", "Cluster": "IP_Cluster_training", "End2End": "IP_End2End_training",
         "Text": "IP_Text_training", "Combined": "IP_Bank_training", "Random": "IP_Bank_training",
         "Own": "IP_Bank_training"}
BLOCK = ("datasets", "models", "banks", "settings")
OF_MODEL = ("family", "base_model")  # said of a model to tables, not to stage 2


@dataclass(frozen=True)
class SweepCell:
    """One ledger to make. model: flags of stage 2; flags: flags of the training script, without model and data set."""

    model_name: str
    model: dict[str, Any]
    dataset: str
    bank: str
    variant: str = ""
    elements_of: str | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)  # family, base_model

    @property
    def name(self) -> str:
        """What messages call it."""
        size = f", M = {self.flags['num_concepts']}" if "num_concepts" in self.flags else ""
        return f"{self.model_name}, {self.dataset}, {self.bank}{size}" + (f", {self.variant}" if self.variant else "")

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides the ledger, as plain values: an entry of cells.json with another key is another
        cell."""
        return {"model": self.model_name, "stage2": self.model, "dataset": self.dataset, "bank": self.bank,
                "elements_of": self.elements_of, "flags": self.flags}


@dataclass(frozen=True)
class Sweep:
    """cells: in the order of the file; stage1, stage2: flags of the scripts that prepare them."""

    name: str
    cells: list[SweepCell]
    stage1: dict[str, Any]
    stage2: dict[str, Any]


def read_sweep(file: Path) -> Sweep:
    """Expand the YAML. Raises `UserError` for an unknown key or bank, and for two cells that are the same."""
    data = read_yaml(file)
    for key in data:
        if key not in (*BLOCK, "blocks", "stage1", "stage2"):
            raise UserError(f"{file}: unknown key {key!r}{nearest(key, [*BLOCK, 'blocks', 'stage1', 'stage2'])}")
    for key in ("settings", "stage1", "stage2"):
        _check_mapping(data.get(key), key, file)
    first = {key: data[key] for key in BLOCK if key in data and key != "settings"}
    cells: list[SweepCell] = []
    for block in ([first] if first else []) + list(data.get("blocks") or []):
        cells += _cells(block, data.get("settings") or {}, file)
    if not cells:
        raise UserError(f"{file} names no cell: it needs datasets, models and banks")
    seen: set[str] = set()
    for cell in cells:
        if str(cell.key) in seen:
            raise UserError(f"{file} holds the cell ({cell.name}) twice; leave one out")
        seen.add(str(cell.key))
    return Sweep(file.stem, cells, data.get("stage1") or {}, data.get("stage2") or {})


def _check_mapping(value: Any, what: str, file: Path) -> None:
    if not isinstance(value, dict | None):
        raise UserError(f"{file}: {what} should hold `key: value` pairs, and is {value!r}")


def _cells(block: dict[str, Any], settings: dict[str, Any], file: Path) -> list[SweepCell]:
    _check_mapping(block, "a block", file)
    _check_mapping(block.get("settings"), "settings", file)
    for key in block:
        if key not in BLOCK:
            raise UserError(f"{file}: a block has the unknown key {key!r}{nearest(key, BLOCK)}")
    for key in BLOCK[:3]:
        if not isinstance(block.get(key), list) or not block[key]:
            raise UserError(f"{file}: a block needs a list of {key}")
    settings = {**settings, **(block.get("settings") or {})}
    models = [model for entry in block["models"] for model in _models(entry, file)]
    return [_cell(model, dataset, bank, settings, file)
            for dataset in block["datasets"] for model in models for bank in block["banks"]]


def _cell(model: dict[str, Any], dataset: str, bank: str | dict[str, Any], settings: dict[str, Any],
          file: Path) -> SweepCell:
    if not isinstance(dataset, str) or not isinstance(bank, str | dict):
        raise UserError(f"{file}: the data set {dataset!r} or the bank {bank!r} is no name (in quotes, where it looks "
                        "like a number)")
    entry = {"bank": bank} if isinstance(bank, str) else dict(bank)
    kind = entry.pop("bank", None)
    if kind not in DOORS:
        raise UserError(f"{file}: the bank {kind!r} is not known{nearest(str(kind), DOORS)}")
    variant, elements_of = entry.pop("variant", ""), entry.pop("elements_of", None)
    stage2 = {key: value for key, value in model.items() if key not in OF_MODEL}
    return SweepCell(model["model_name"], stage2, dataset, kind, variant, elements_of, {**settings, **entry},
                     {key: model[key] for key in OF_MODEL if key in model})


def _models(entry: str | dict[str, Any], file: Path) -> list[dict[str, Any]]:
    if isinstance(entry, str):
        return [{"model_name": entry, "config_yaml": entry}]
    if not isinstance(entry, dict):
        raise UserError(f"{file}: the model {entry!r} is neither a name (in quotes, where it looks like a number) nor "
                        "a mapping")
    entry = dict(entry)
    pattern = entry.pop("checkpoints", None)
    if pattern is None:
        if "model_name" not in entry:
            raise UserError(f"{file}: a model given as a mapping needs a model_name")
        return [entry]
    found = sorted(ROOT.glob(pattern), key=lambda one: [int(part) if part.isdigit() else part
                                                        for part in re.split(r"(\d+)", one.name)])
    if not found:
        raise UserError(f"{file}: there is no checkpoint {ROOT / pattern}; train the backbone first")
    return [{**entry, "model_name": one.stem, "weights": str(one.relative_to(ROOT))} for one in found]
