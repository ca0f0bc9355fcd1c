"""What was measured as one Markdown table: the ratios and seconds of every JSON in bench/results/.

    python bench/table.py                     # at once
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import RESULTS, markdown
from iis.cli import run_script, setting
from iis.runtime import UserError


@dataclass(kw_only=True)
class Settings:
    """Table"""

    results: Path = setting(RESULTS, "folder with the JSON files")


def main(settings: Settings) -> None:
    """Print the table."""
    table = markdown(sorted(settings.results.glob("*.json")))
    if not table:
        raise UserError(f"{settings.results} holds no measurement; run a benchmark first: python bench/heads.py")
    print(table)


if __name__ == "__main__":
    run_script(main, Settings)
