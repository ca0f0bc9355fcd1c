"""Cells of a sweep, run one after another: finished ones are skipped, and one that fails does not stop the others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from iis.cli import path
from iis.runtime import ROOT, UserError, nearest, read_json, write_json

YAMLS = ROOT / "reproduction" / "sweeps"


def find_sweep(name: str) -> Path:
    """The YAML: a file, or a name in reproduction/sweeps/."""
    for file in (path(name), YAMLS / f"{name.removesuffix('.yaml')}.yaml"):
        if file.is_file():
            return file
    raise UserError(f"there is no sweep {name}{nearest(name, [file.stem for file in YAMLS.glob('*.yaml')])}")


def checked(value: Any, what: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """The mapping `value` ({} for None). Raises `UserError` where it is something else, or has a key beside `known`."""
    if not isinstance(value, dict | None):
        raise UserError(f"{what} should hold `key: value` pairs, and is {value!r}")
    for key in value or {}:
        if known is not None and key not in known:
            raise UserError(f"{what} has the unknown key {key!r}{nearest(key, known)}")
    return value or {}


def with_results(cells: Sequence[dict[str, Any]], index: Path, same: Sequence[str]) -> list[dict[str, Any]]:
    """The cells with "folder", "seconds" and "message" of the entry of the index that has the same values of `same`."""
    before = read_json(index) if index.exists() else []
    entries = []
    for cell in cells:
        old = next((entry for entry in before if all(entry.get(key) == cell[key] for key in same)), {})
        entries.append({**cell, **{key: old.get(key) for key in ("folder", "seconds", "message")}})
    return entries


def run_cells(name: str, entries: list[dict[str, Any]], run: Callable[[dict[str, Any]], Path],
              ledger_of: Callable[[dict[str, Any]], Path], index: Path, only: str | None = None,
              dry_run: bool = False) -> None:
    """Run every entry with the word `only` in its name that is not finished; the index is written after each.

    run: makes a cell and returns its folder; ledger_of: where a finished cell's ledger lies. Raises `UserError` with
    the messages of all that failed.
    """
    wanted = [entry for entry in entries if not only or only in entry["name"]]
    if not wanted:
        raise UserError(f"no cell of {name} has {only!r} in its name; it has "
                        f"{'; '.join(entry['name'] for entry in entries[:4])} …")
    todo = [entry for entry in wanted if not entry["folder"] or entry["message"] or not ledger_of(entry).is_file()]
    print(f"{name}: {len(wanted)} cells, {len(wanted) - len(todo)} finished before")
    if dry_run:
        for entry in wanted:
            print(f"  {'would run' if entry in todo else 'done'}: {entry['name']}")
        return
    started = time.monotonic()
    for number, entry in enumerate(todo, start=1):
        print(f"\n[{number} of {len(todo)}, {time.monotonic() - started:.0f} s] {entry['name']}", flush=True)
        entry |= _attempt(run, entry)
        write_json(index, entries)
    write_json(index, entries)
    failed = [entry for entry in wanted if entry["message"]]
    print(f"\n{name}: {len(wanted) - len(failed)} of {len(wanted)} cells finished, {len(todo) - len(failed)} of them "
          f"now, in {time.monotonic() - started:.0f} s; index: {index}")
    if failed:
        raise UserError(f"{len(failed)} of {len(wanted)} cells failed; mend them and start the same command again:\n"
                        + "\n".join(f"  {entry['name']}: {entry['message']}" for entry in failed))


def _attempt(run: Callable[[dict[str, Any]], Path], entry: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    try:
        folder = run(entry).resolve()
    except UserError as error:
        return {"message": str(error)}
    except Exception as error:  # the other cells still run
        traceback.print_exc()
        return {"message": f"{type(error).__name__}: {error}"}
    inside = folder.is_relative_to(ROOT)
    return {"folder": str(folder.relative_to(ROOT) if inside else folder), "message": None,
            "seconds": round(time.monotonic() - started, 1)}
