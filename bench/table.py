"""The README's table of what was measured: every JSON of bench/results/, as Markdown.

    python bench/table.py
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import RESULTS, readable
from iis.cli import ScriptParser, path, run_script
from iis.runtime import UserError, read_json
from reproduction.lib.tables import as_markdown


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--results", type=path, default=RESULTS, help="folder with the JSON files")
    return script


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    files = sorted(args.results.glob("*.json"))
    if not files:
        raise UserError(f"there is no JSON in {args.results}; run a benchmark first, for example python bench/heads.py")
    print(markdown(files))


def markdown(files: list[Path]) -> str:
    """One line per result, with must and aim where one was set."""
    lines = [line for file in files for line in lines_of(read_json(file))]
    if not lines:
        raise UserError("none of these files holds a ratio or seconds; run a benchmark anew")
    return as_markdown(lines)


def lines_of(written: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of one file: results with a ratio or seconds; other ones, and other files, are left out."""
    if not isinstance(written, dict) or not isinstance(written.get("results"), dict) or "machine" not in written:
        return []  # no benchmark's
    machine, lines = written["machine"], []
    where = machine if isinstance(machine, str) else machine.get(
        "gpu", f"{machine.get('processor')}, {machine.get('threads')} threads")
    for name, result in written["results"].items():
        if "ratio" not in result and "seconds" not in result:
            continue
        unit = " ×" if "ratio" in result else " s"
        span = f" ({result['lowest']:.1f} – {result['highest']:.1f})" if "lowest" in result else ""
        here = "fast_s" if "ratio" in result else "seconds"
        lines.append({"measured": name, "plain": readable(result["plain_s"]) if "plain_s" in result else "–",
                      "here": readable(result[here]) if here in result else "–",
                      "ratio (of pairs)": f"**{result['ratio']:.1f} ×**{span}" if "ratio" in result else "–",
                      **{what: f"{result[what]:g}{unit}" if what in result else "–" for what in ("must", "aim")},
                      "machine": str(where)})
    return lines


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
