"""One or many ledgers as one self-contained HTML page: curves, scores, concepts, explanations, provenance, seconds.

    python reproduction/report.py --sweep shapes                               # results/reproduction/shapes/report.html
    python reproduction/report.py --model_root IP_training/IP_Prototype --save_dir results/report

Tables and figures that other scripts have put into the output folder are part of it: run those first. Nothing is
trained. About a minute for sixty ledgers on two cores.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, count, run_script
from iis.runtime import make_output_folder, write_text
from reproduction.lib import report_images, report_tables
from reproduction.lib.explanation_page import STYLE as CARDS
from reproduction.lib.page import contents, escape, folded, html_list, html_table, page, section
from reproduction.lib.points import counted, epoch_of
from reproduction.lib.report_made import made_before
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder

STYLE = """
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .5rem 1.5rem; }
.panels figure { margin: 0; } .concepts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); } .concepts figure { margin: 0; }
.concepts .evidence { gap: .25rem; }
"""
WORDS = (
    "ARR(s), accuracy retention rate: top-1 of the predictor that keeps the share 1 − s of its concepts, over top-1 of "
    "the dense head on the raw representation.",
    "IIS, Inherent Interpretability Score: area under ARR(s) for s from 0 to 0.98; at most about 0.98. "
    "Chance-corrected: the same with the share of the largest class subtracted from both accuracies.",
    "± is one standard deviation over seeds (ddof 1); the interval is a bootstrap over validation images (95 %). The "
    "seed spread alone understates the error.",
    "A line with a warning must not be used to compare representations: near chance, ARR means nothing; saturated, it "
    "cannot tell them apart.")


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))
    script.add_argument("--title", help="of the page (default: names the data sets)")
    script.add_argument("--concepts", type=count, default=8, help="example concepts shown of a bank")
    script.add_argument("--images", type=count, default=2, help="explained predictions shown of a bank")
    script.add_argument("--max_mb", type=count, default=8, help="say so where the page is larger, in MB")
    return script


def main(args: argparse.Namespace) -> Path:
    """Write report.html; returns it."""
    folder = output_folder(args)
    runs = find_runs(args)
    make_output_folder(folder)
    datasets = sorted({run.summary["dataset"] for run in runs})
    title = args.title or f"Inherent Interpretability Scores: {', '.join(datasets)}"
    file = folder / "report.html"
    text = report(title, runs, folder, args.concepts, args.images)
    write_text(file, text)
    size = len(text.encode()) / 1e6
    print(f"written: {file} ({len(runs)} ledgers, {size:.1f} MB)")
    if size > args.max_mb:
        print(f"note: more than {args.max_mb} MB; fewer ledgers, --concepts or --images make it smaller")
    return file


def report(title: str, runs: Sequence[Run], folder: Path, concepts: int, images: int) -> str:
    """The page. folder: where other scripts have put their tables and figures."""
    compared = report_images.comparable(runs)
    chosen = report_images.chosen(compared)
    parts = {
        "How to read it": html_list(WORDS),
        "Scores": scores(runs),
        "Accuracy retention": report_images.curves(compared),
        "IIS against accuracy": report_images.scatters(compared),
        "Tables and figures": made_before(folder),
        "Example concepts": "".join(report_images.concepts_of(run, concepts) for run in chosen if concepts),
        "Explained predictions": "".join(report_images.predictions_of(run, images) for run in chosen if images),
        "Provenance": provenance(runs),
        "Time": time_taken(runs)}
    parts = {name: html for name, html in parts.items() if html}
    body = f"<h1>{escape(title)}</h1>\n<p>{escape(summary(runs))}</p>\n" + contents(list(parts))
    return page(title, body + "".join(section(name, html) for name, html in parts.items()), CARDS + STYLE)


def summary(runs: Sequence[Run]) -> str:
    """What the page is made of, in a sentence."""
    def names(values: set[str]) -> str:
        found = sorted(values)
        return ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")

    seeds, checkpoints = sum(len(run.summary["seeds"]) for run in runs), {
        run.model for run in runs if epoch_of(run.model) is not None}
    also = f" and {counted(len(checkpoints), 'checkpoint')} along pre-training" if checkpoints else ""
    return (f"{counted(len(runs), 'ledger')} ({counted(seeds, 'seed')} in all). Models: "
            f"{names({run.model for run in runs} - checkpoints)}{also}. Data sets: "
            f"{names({run.summary['dataset'] for run in runs})}. Banks: "
            f"{names({run.summary['bank'] for run in runs})}.")


def scores(runs: Sequence[Run]) -> str:
    """The scores per data set, the warnings, and the notes."""
    html = ""
    for name, lines in report_tables.score_tables(runs).items():
        table = html_table(lines, label=f"Scores, {name}")
        # Variants and checkpoints have tables and figures of their own further down.
        html += folded(f"{name} ({len(lines)} runs)", table) if ", " in name else f"<h3>{escape(name)}</h3>{table}"
    warnings, notes = report_tables.remarks(runs)
    if warnings:
        html += f'<div class="warning">{folded(f"Warnings ({len(warnings)})", html_list(warnings))}</div>'
    return html + folded(f"Notes on training ({len(notes)} kinds)", html_table(notes))


def provenance(runs: Sequence[Run]) -> str:
    """Backbones, elements and training."""
    trained, _ = report_tables.training(runs)
    elements = report_tables.element_settings(runs)
    return (html_table(report_tables.provenance(runs), "Backbones, as stage 2 embedded the validation images")
            + html_table(elements, "Visual elements, as stage 1 cut them") + html_table(trained, "Training, stage 3"))


def time_taken(runs: Sequence[Run]) -> str:
    """Seconds of every stage."""
    _, seconds = report_tables.training(runs)
    total = sum(line["seconds"] for line in seconds)
    shown = [{name: line[name] for name in ("stage", "what", "time")} for line in seconds]
    return html_table(shown, f"{total / 60:.1f} min in all, as the stages' own files tell it; loading and embedding of "
                             "words are not counted")


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
