"""One or many ledgers as one self-contained HTML page: curves, scores, concepts, explanations, provenance.

    python reproduction/report.py --sweep shapes                               # results/reproduction/shapes/report.html
    python reproduction/report.py --model_root IP_training/IP_Prototype --save_dir results/report

Tables and figures that other scripts have put into the output folder are part of it: run those first. Nothing is
trained. About a minute for sixty ledgers on two cores.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import count, run_script, setting
from iis.runtime import write_text
from reproduction.lib import report_parts
from reproduction.lib.page import render
from reproduction.lib.points import counted, finished
from reproduction.lib.runs import Source, find_runs, output_folder


@dataclass(kw_only=True)
class Settings(Source):
    """What is on the page."""

    title: str | None = setting(None, "of the page (default: names the data sets)")
    concepts: int = setting(8, "example concepts shown of a bank", type=count)
    images: int = setting(2, "explained predictions shown of a bank", type=count)
    max_mb: int = setting(8, "print a note where the page is larger, in MB", type=count)


def main(settings: Settings) -> Path:
    """Write report.html; returns it."""
    runs, folder = find_runs(settings), output_folder(settings)
    compared = finished(runs)
    warnings, notes = report_parts.remarks(runs)
    title = settings.title or f"Inherent Interpretability Scores: {', '.join(sorted({run.dataset for run in runs}))}"
    text = render(
        "report.html", title=title, runs=runs, scores=report_parts.score_tables(runs), warnings=warnings, notes=notes,
        curves=report_parts.curves(compared), scatters=report_parts.scatters(compared),
        made=report_parts.made_before(folder), concepts=settings.concepts, images=settings.images,
        examples=[report_parts.examples_of(run, settings.concepts, settings.images)
                  for run in report_parts.chosen(compared)],
        provenance=report_parts.provenance(runs), elements=report_parts.element_settings(runs))
    file = folder / "report.html"
    write_text(file, text)
    size = len(text.encode()) / 1e6
    print(f"written: {file} ({counted(len(runs), 'ledger')}, {size:.1f} MB)")
    if size > settings.max_mb:
        print(f"note: more than {settings.max_mb} MB; fewer ledgers, --concepts or --images make it smaller")
    return file


if __name__ == "__main__":
    run_script(main, Settings)
