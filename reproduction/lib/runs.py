"""The ledgers a table or figure is made of, summarised: those of a sweep, or any folders.

Every script here takes `--sweep NAME` (cells.json, written by reproduction/sweep.py) or `--model_root FOLDER …`, and
writes into `--save_dir`.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iis.cli import ScriptParser, path
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, each, read_json
from iis.summary import summarise

SWEEPS = ROOT / "results" / "sweeps"


@dataclass(frozen=True)
class Run:
    """One ledger. identity: what its rows share (iis/ledger.py); summary: `iis.summary.summarise` of it; cell: what
    the sweep says of it ({} for a folder named by hand)."""

    folder: Path
    identity: dict[str, Any]
    summary: dict[str, Any]
    cell: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the backbone."""
        return self.summary["model"]

    @property
    def family(self) -> str:
        """Models of one family are joined by a line: the sweep's word, else that of the name."""
        return self.cell.get("family") or family_of(self.model)

    @property
    def elements(self) -> str:
        """`segments` or `patches`; "-" for a bank that is made of neither."""
        return (self.identity["elements"] or {}).get("kind", "-")

    @property
    def variant(self) -> str:
        """What the sweep calls this cell beside its model, data set and bank; "" for a plain one."""
        return self.cell.get("variant", "")

    @property
    def iis(self) -> float:
        """Mean IIS over seeds."""
        return self.summary["iis"]["mean"]


def family_of(model: str) -> str:
    """`resnet50` → resnet, `vit_b_16` → vit, `shapes_large_epoch4` → shapes_large (a checkpoint belongs to its net)."""
    checkpoint = re.match(r"(.+)_epoch\d+$", model)
    return checkpoint[1] if checkpoint else re.split(r"[\d_:]", model.removeprefix("timm:"), maxsplit=1)[0] or model


def add_source_flags(script: ScriptParser) -> ScriptParser:
    """`--sweep` or `--model_root`, and `--save_dir`."""
    script.add_argument("--sweep", help="name of a sweep that reproduction/sweep.py has run, or its cells.json")
    script.add_argument("--model_root", nargs="+", type=path, metavar="FOLDER", help="instead: folders with ledgers")
    script.add_argument("--save_dir", type=path, help="output folder (default: results/reproduction/SWEEP)")
    return script


def output_folder(args: argparse.Namespace) -> Path:
    """--save_dir, else results/reproduction/SWEEP. Raises `UserError` where neither says."""
    if args.save_dir is None and args.sweep is None:
        raise UserError("--save_dir says where the output goes; it can be left out with --sweep only")
    if args.save_dir is not None:
        return args.save_dir
    name = cells_file(args.sweep).parent.name
    return ROOT / "results" / "reproduction" / name


def cells_file(sweep: str) -> Path:
    """The index of a sweep: results/sweeps/NAME/cells.json, or the file itself."""
    return path(sweep) if sweep.endswith(".json") else SWEEPS / sweep / "cells.json"


def find_runs(args: argparse.Namespace, draws: int = 1000) -> list[Run]:
    """All runs of --sweep or --model_root that can be summarised. Prints a sentence for each one that cannot.

    Raises `UserError` where none can.
    """
    if bool(args.sweep) == bool(args.model_root):
        raise UserError("name either --sweep NAME or --model_root FOLDER" + ", not both" * bool(args.sweep))
    if args.sweep:
        file = cells_file(args.sweep)
        if not file.is_file():
            raise UserError(f"there is no sweep {file}; run python reproduction/sweep.py first")
        found = read_json(file)
        if not isinstance(found, list) or not all(isinstance(cell, dict) for cell in found):
            raise UserError(f"{file} is no list of cells, as reproduction/sweep.py writes it; delete it and run that "
                            "again")
        cells = [(ROOT / cell["folder"], cell) for cell in found if cell.get("folder")]
    else:
        cells = [(file.parent, {}) for root in args.model_root for file in sorted(root.rglob(LEDGER))]
    runs, failed = each(lambda cell: _run(*cell, draws), cells)
    for sentence in failed:
        print(f"left out: {sentence}")
    if not runs:
        raise UserError(f"there is no ledger to read in {args.sweep or ', '.join(map(str, args.model_root))}; run "
                        "stage 3 or reproduction/sweep.py first")
    return runs


def _run(folder: Path, cell: dict[str, Any], draws: int) -> Run:
    rows = read_ledger(folder / LEDGER)
    return Run(folder, {key: rows[0].get(key) for key in ("elements", *rows[0])} if rows else {},
               summarise(rows, draws, str(folder / LEDGER)), cell)
