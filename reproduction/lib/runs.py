"""The ledgers a table or figure is made of, summarised: those of a sweep, or any folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iis.cli import path, setting
from iis.equations import area
from iis.lift import CONTROL, Lift, lift_of_ledger
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, each, make_output_folder, read_json
from iis.summary import summarise

if TYPE_CHECKING:
    from IP_training.banks import Bank

SWEEPS = ROOT / "results" / "sweeps"
REPRODUCED = ROOT / "results" / "reproduction"


@dataclass(kw_only=True)
class Source:
    """Ledgers that are read, and the output."""

    sweep: str | None = setting(None, "name of a sweep that reproduction/sweep.py has run, or its cells.json")
    model_root: list[Path] | None = setting(None, "instead: folders with ledgers", metavar="FOLDER")
    save_dir: Path | None = setting(None, "output folder (default: results/reproduction/SWEEP, or the first "
                                          "--model_root)")

    def index(self) -> Path | None:
        """The sweep's index: results/sweeps/NAME/cells.json, or the file itself; None for --model_root. Raises
        `UserError` unless one of the two is named."""
        if bool(self.sweep) == bool(self.model_root):
            raise UserError("name either --sweep NAME or --model_root FOLDER" + ", not both" * bool(self.sweep))
        if not self.sweep:
            return None
        return path(self.sweep) if self.sweep.endswith(".json") else SWEEPS / self.sweep / "cells.json"


@dataclass
class Run:
    """One ledger. identity: what its rows share; summary: `iis.summary.summarise` of it; cell: its entry in the sweep's
    index ({} for a folder named by hand); title: of `points.groups`; ledgers: those read with it, where its Random run
    may be; draws: resamples of its bootstrap. The other fields are taken from these:

    epoch is 4 and net `shapes_large` for the checkpoint `shapes_large_epoch4`; None and the model itself for others.
    family: models of one family are joined by a line: the sweep's word, else the start of the name (`resnet50` →
    resnet); a checkpoint belongs to its net. elements: `segments`, `patches`, or "-" for a bank of neither. variant:
    the sweep's name for how the cell differs from the plain one, else "". method: the bank, with its parts: "Combined
    (Prototype + Text)". iis, corrected (IIS with chance taken off), dense (top-1, a fraction): means over seeds. area:
    ∫ acc(s) ds, the IIS without its division by dense. marks: warnings that stand beside every number of the run.
    """

    folder: Path
    identity: dict[str, Any]
    summary: dict[str, Any]
    cell: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    ledgers: Sequence[Path] = ()
    draws: int = 1000

    def __post_init__(self) -> None:
        summary, parts = self.summary, self.identity.get("parts")
        self.model: str = summary["model"]
        self.dataset: str = summary["dataset"]
        self.epoch, self.net = epoch_of(self.model), re.sub(r"_epoch\d+$", "", self.model)
        start = re.split(r"[\d_:]", self.model.removeprefix("timm:"), maxsplit=1)[0]
        self.family: str = self.cell.get("family") or (start if self.epoch is None else self.net) or self.model
        self.elements: str = (self.identity["elements"] or {}).get("kind", "-")
        self.variant: str = self.cell.get("variant", "")
        self.method: str = summary["bank"] + (f" ({' + '.join(parts)})" if parts else "")
        self.iis, self.corrected, self.dense = (summary[name]["mean"] for name in (
            "iis", "iis_chance_corrected", "dense"))
        self.area = float(np.mean(area(summary["ratios"], summary["curves"]["best"]["accuracy"])))
        self.marks: list[str] = summary["marks"]
        self.meaningful = "close to chance" not in self.marks  # else ARR and IIS mean nothing

    @cached_property
    def lift(self) -> Lift | None:
        """The lift over the Random run of the same features; None where there is none, and for a Random run."""
        try:
            return lift_of_ledger(self.folder / LEDGER, self.ledgers, self.draws)
        except UserError:
            return None

    def banks(self, seed: int) -> dict[str, Bank]:
        """The banks that a seed's predictors use: {"all": bank}, or one per ratio, {"0": …, "0.1": …}.

        Raises `UserError` where the predictors are gone.
        """
        from safetensors.torch import load_file

        from IP_training.banks import Bank
        from IP_training.encoder import stored_encoder

        file = self.folder / "predictors" / f"seed_{seed}.safetensors"
        if not file.is_file():
            raise UserError(f"there is no file {file} with the bank: run stage 3 again")
        tensors, described = load_file(file), read_json(file.with_suffix(".json"))
        found, encoders = {}, described.get("encoders", {})
        for ratio, words in sorted(described["concepts"].items()):
            own = "" if ratio == "all" else f"{ratio}/"
            found[ratio] = Bank(self.summary["bank"], tensors[f"{own}bank"].float(), words,
                                tuple((kind, columns) for kind, columns in described["blocks"][ratio]),
                                stored_encoder(tensors, encoders.get(ratio), own))
        return found

    def bank(self, seed: int) -> Bank:
        """The bank of a seed's predictors, of the smallest ratio where each has its own."""
        return next(iter(self.banks(seed).values()))


def epoch_of(model: str) -> int | None:
    """4 of `shapes_large_epoch4`; None for a model that is no checkpoint."""
    match = re.search(r"_epoch(\d+)$", model)
    return int(match[1]) if match else None


def output_folder(source: Source) -> Path:
    """--save_dir, else results/reproduction/SWEEP, else the first --model_root; made where it is missing."""
    index = source.index()
    return make_output_folder(source.save_dir or (REPRODUCED / index.parent.name if index else source.model_root[0]))


def find_runs(source: Source, draws: int = 1000) -> list[Run]:
    """All runs of --sweep or --model_root that can be summarised. Prints a sentence for each one that cannot.

    draws: bootstrap resamples. Raises `UserError` where none can.
    """
    if index := source.index():
        if not index.is_file():
            raise UserError(f"there is no sweep {index}; run python reproduction/sweep.py first")
        found = read_json(index)
        if not isinstance(found, list) or not all(isinstance(cell, dict) for cell in found):
            raise UserError(f"{index} is no list of cells, as reproduction/sweep.py writes it; delete it and run that "
                            "again")
        cells = [(ROOT / cell["folder"], cell) for cell in found if cell.get("folder")]
    else:
        cells = [(file.parent, {}) for root in source.model_root for file in sorted(root.rglob(LEDGER))]
    runs, failed = each(lambda cell: read_run(*cell, draws), cells)
    for run in runs:
        run.ledgers = [other.folder / LEDGER for other in runs if other.summary["bank"] == CONTROL]
    for sentence in failed:
        print(f"left out: {sentence}")
    if not runs:
        raise UserError(f"there is no ledger to read in {source.sweep or ', '.join(map(str, source.model_root))}; run "
                        "stage 3 or reproduction/sweep.py first")
    return runs


def read_run(folder: Path, cell: dict[str, Any] | None = None, draws: int = 1000) -> Run:
    """The run of one ledger; draws: bootstrap resamples. Raises `UserError` where the ledger is damaged."""
    rows = read_ledger(folder / LEDGER)
    summary = summarise(rows, draws, str(folder / LEDGER))
    grid = {"learning_rates": sorted({row["learning_rate"] for row in rows}), "ratios": summary["ratios"]}
    return Run(folder, {"elements": None, **rows[0], **grid}, summary, cell or {}, draws=draws)
