"""How many images or heads the scripts of one bash script made: what its summary line counts."""

from __future__ import annotations

import os


def tally(count: int) -> None:
    """Add a line to the file that the environment variable IIS_TALLY names (see stage.sh); nothing without it."""
    if file := os.environ.get("IIS_TALLY"):
        with open(file, "a", encoding="utf-8") as handle:
            handle.write(f"{count}\n")
