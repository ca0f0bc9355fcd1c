"""`--dry_run`: what a door would do, with shapes, disk, memory and a time from a short measurement; nothing is made."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

BYTES = ("B", "kB", "MB", "GB", "TB")


def tell(what: str, lines: dict[str, str]) -> None:
    """Print one plan."""
    print(f"dry run: {what}")
    for name, text in lines.items():
        print(f"  {name + ':':9} {text}")


def disk(needed: float, folder: Path) -> str:
    """What would be written and what is free where it would go."""
    place = next(parent for parent in (Path(folder), *Path(folder).resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    return f"{size(needed)} in {folder} ({size(free)} free{', which is NOT ENOUGH' if needed > free else ''})"


def size(count: float) -> str:
    """Bytes for people: 1536 -> 1.5 kB; units of 1000."""
    power = 0
    while count >= 1000 and power < len(BYTES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} B" if power == 0 else f"{count:.1f} {BYTES[power]}"


def duration(seconds: float) -> str:
    """Seconds for people: 5400 -> 1.5 hours."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "minutes"), (48 * 3600, 3600, "hours")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def measured(function: Callable[[], object]) -> float:
    """Seconds of a second call; the first one warms up."""
    function()
    began = time.perf_counter()
    function()
    return max(time.perf_counter() - began, 1e-9)
