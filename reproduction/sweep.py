"""Run what a table or figure needs: models × data sets × banks × seeds, from a YAML.

    python reproduction/sweep.py shapes                    # reproduction/sweeps/shapes.yaml; also any YAML file
    python reproduction/sweep.py shapes --dry_run          # what is done and what would run

Stage 1 and 2 run for what is missing, then the training script of every cell; finished cells are skipped. A cell that
fails does not stop the others: it is reported at the end with its message, and the exit status is not zero. The index
results/sweeps/NAME/cells.json names the folder of every cell's ledger; reproduction/*.py --sweep NAME read it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script, setting
from iis.results import LEDGER
from iis.runtime import ROOT, make_output_folder
from reproduction.lib.runs import SWEEPS
from reproduction.lib.sweeps import KEY, Steps, check_settings, find_sweep, read_sweep, run_cells


@dataclass(kw_only=True)
class Settings:
    """What runs, and where."""

    sweep: str = setting(help="name of a YAML in reproduction/sweeps/, or a file", positional=True)
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    only: str | None = setting(None, "only cells with this word in their name", metavar="WORD")
    dry_run: bool = setting(False, "print the cells and what is done, and run nothing")
    save_dir: Path | None = setting(None, "where cells.json goes (default: results/sweeps/NAME)")


def main(settings: Settings) -> None:
    """Run every cell that is not finished, and keep the index up to date after each."""
    file = find_sweep(settings.sweep)
    cells, stage1, stage2 = read_sweep(file)
    check_settings(file.stem, cells, stage1, stage2)
    index = (settings.save_dir or SWEEPS / file.stem) / "cells.json"
    if not settings.dry_run:
        make_output_folder(index.parent)
    run_cells(file.stem, cells, KEY, Steps(stage1, stage2, settings.device).run,
              lambda entry: ROOT / entry["folder"] / LEDGER, index, settings.only, settings.dry_run)


if __name__ == "__main__":
    run_script(main, Settings)
