"""Accuracy retention against sparsity per model, a panel per bank (paper, Figure 7), and the same as a table.

    python reproduction/arr_curves.py --sweep shapes
    python reproduction/arr_curves.py --model_root IP_training/IP_*/resnet* --save_dir results/fig7

Writes arr (.csv: a line per ratio; .md and .tex: a line per model) and arr_DATASET.png and .pdf for each data set.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script
from iis.names import slug
from iis.plots import arr_figure
from iis.runtime import UserError
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import by_dataset, finished, marked, models_of, percent, seeds_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder

Settings = Source
COLUMNS = ("ratio", "kept", "top1", "top1_std", "arr", "arr_std", "arr_chance_corrected")
CAPTION = ("Accuracy retention rate, % of dense top-1, at sparsity ratio s: {}, mean ± std over {}, each with that "
           "seed's dense head. The spread is that of bank and heads, not of other backbones. Close to chance: ARR "
           "means nothing.")


def main(settings: Settings) -> None:
    """Write the table and a figure per data set."""
    folder = output_folder(settings)
    runs = finished(find_runs(settings, draws=2))  # no bootstrap is shown here
    if not runs:
        raise UserError("all runs here are variants of another one; reproduction/controls_table.py is for those")
    for dataset, found in by_dataset(runs).items():
        figure = arr_figure({bank: [curve(run) for run in mine] for bank, mine in found.items()})
        figure.suptitle(f"{dataset}: accuracy retention")
        write_figure(folder, f"arr_{slug(dataset)}", figure)
    lines = [{"dataset": run.dataset, "bank": run.title, "model": run.model, "seeds": len(run.summary["seeds"]),
              **{name: line[name] for name in COLUMNS}, "marks": "; ".join(run.marks)}
             for run in runs for line in run.summary["table"] if line["ratio"] is not None]
    ratios = sorted({line["ratio"] for line in lines})
    print(write_table(folder, "arr", lines, [for_people(run, ratios) for run in runs],
                      CAPTION.format(models_of(runs), seeds_of(runs))))
    print(f"written: {folder}/arr.*, arr_DATASET.png and .pdf")


def curve(run: Run) -> dict[str, Any]:
    """A run as `arr_figure` wants it."""
    return {"label": marked(run.model, run), "ratios": run.summary["ratios"],
            "arr": run.summary["curves"]["best"]["arr"]}


def for_people(run: Run, ratios: list[float]) -> dict[str, Any]:
    """One model with a column per ratio, in percent; "-" for a ratio that it lacks."""
    dense, *rest = run.summary["table"]
    arr = {line["ratio"]: percent(line["arr"], line["arr_std"]) for line in rest}
    return {"data set": run.dataset, "bank": run.title, "model": run.model,
            "dense top-1": percent(dense["top1"], dense["top1_std"]),
            **{f"s = {ratio:g}": arr.get(ratio, "-") for ratio in ratios}, "marks": "; ".join(run.marks)}


if __name__ == "__main__":
    run_script(main, Settings)
