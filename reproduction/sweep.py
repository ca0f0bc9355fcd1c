"""Run what a table or figure needs: models × data sets × banks × seeds, from a YAML.

    python reproduction/sweep.py shapes                    # reproduction/sweeps/shapes.yaml; also any YAML file
    python reproduction/sweep.py shapes --dry_run          # what is done and what would run

Stage 1 and 2 run for what is missing, then the training script of every cell; finished cells are skipped. A cell that
fails does not stop the others: it is reported at the end with its message, and the exit status is not zero. The index
results/sweeps/NAME/cells.json says where every cell's ledger lies; reproduction/*.py --sweep NAME read it.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, path, run_script
from iis.results import LEDGER
from iis.runtime import ROOT, UserError, make_output_folder, nearest, read_json, write_json
from reproduction.lib.runs import SWEEPS
from reproduction.lib.sweep_cells import Sweep, read_sweep

YAMLS = ROOT / "reproduction" / "sweeps"


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("sweep", help="name of a YAML in reproduction/sweeps/, or a file")
    script.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    script.add_argument("--only", metavar="WORD", help="only cells with this word in their name")
    script.add_argument("--dry_run", action="store_true", help="print the cells and what is done, and run nothing")
    script.add_argument("--save_dir", type=path, help="where cells.json goes (default: results/sweeps/NAME)")
    return script


def main(args: argparse.Namespace) -> None:
    """Run every cell that is not finished, and keep the index up to date after each."""
    from reproduction.lib.sweep_steps import Steps

    sweep = read_sweep(find_sweep(args.sweep))
    index = (args.save_dir or SWEEPS / sweep.name) / "cells.json"
    entries = entries_of(sweep, read_json(index) if index.exists() else [])
    wanted = [(cell, entry) for cell, entry in zip(sweep.cells, entries, strict=True)
              if not args.only or args.only in cell.name]
    if not wanted:
        raise UserError(f"no cell of {sweep.name} has {args.only!r} in its name; --dry_run lists them all")
    todo = [(cell, entry) for cell, entry in wanted if not _finished(entry)]
    print(f"sweep {sweep.name}: {len(wanted)} cells, {len(wanted) - len(todo)} finished before")
    if args.dry_run:
        for cell, entry in wanted:
            print(f"  {'done' if _finished(entry) else 'would run'}: {cell.name}")
        return
    make_output_folder(index.parent)
    steps, started = Steps(sweep, args.device), time.monotonic()
    for number, (cell, entry) in enumerate(todo, start=1):
        print(f"\n[{number} of {len(todo)}, {time.monotonic() - started:.0f} s] {cell.name}", flush=True)
        entry |= attempt(lambda cell=cell: steps.run(cell))
        write_json(index, entries)
    write_json(index, entries)
    failed = [(cell, entry) for cell, entry in wanted if entry["message"]]
    print(f"\nsweep {sweep.name}: {len(wanted) - len(failed)} of {len(wanted)} cells finished, "
          f"{len(todo) - len(failed)} of them now, in {time.monotonic() - started:.0f} s; index: {index}")
    if failed:
        raise UserError(f"{len(failed)} of {len(wanted)} cells failed; mend them and start the same command again:\n"
                        + "\n".join(f"  {cell.name}: {entry['message']}" for cell, entry in failed))


def find_sweep(name: str) -> Path:
    """The YAML: a file, or a name in reproduction/sweeps/."""
    for file in (path(name), YAMLS / f"{name.removesuffix('.yaml')}.yaml"):
        if file.is_file():
            return file
    raise UserError(f"there is no sweep {name}{nearest(name, [file.stem for file in YAMLS.glob('*.yaml')])}")


def entries_of(sweep: Sweep, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The index: an entry per cell, with folder and seconds of the same cell in the index of a run before."""
    entries = []
    for cell in sweep.cells:
        key = json.loads(json.dumps(cell.key))  # as it comes back from the file
        same = next((entry for entry in before if all(entry.get(name) == key[name] for name in key)), {})
        entries.append({"name": cell.name, **key, **cell.said, "variant": cell.variant, "folder": same.get("folder"),
                        "seconds": same.get("seconds"), "message": None})
    return entries


def _finished(entry: dict[str, Any]) -> bool:
    return bool(entry["folder"]) and (ROOT / entry["folder"] / LEDGER).is_file()


def attempt(run: Callable[[], Path]) -> dict[str, Any]:
    """Run a cell; its folder and seconds, or the message it failed with."""
    started = time.monotonic()
    try:
        folder = run().resolve()
    except UserError as error:
        return {"message": str(error)}
    except Exception as error:  # whatever it is, the other cells still run
        traceback.print_exc()
        return {"message": f"{type(error).__name__}: {error}"}
    inside = folder.is_relative_to(ROOT)
    return {"folder": str(folder.relative_to(ROOT) if inside else folder), "message": None,
            "seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
