"""Accuracy retention against sparsity per model, a panel per bank (paper, Figure 7), and the same as a table.

    python reproduction/arr_curves.py --sweep shapes
    python reproduction/arr_curves.py --model_root IP_training/IP_*/resnet* --save_dir results/fig7

Writes arr (.csv: a line per ratio; .md and .tex: a line per model) and arr_DATASET.png and .pdf for each data set.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script, setting
from iis.names import slug
from iis.plots import arr_figure
from iis.runtime import UserError, make_output_folder
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import finished, groups, marked, models_of, percent, plain, seeds_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder


@dataclass(kw_only=True)
class Settings(Source):
    """What is drawn."""

    checkpoints: bool = setting(False, "also those along pre-training, NAME_epochE")


def main(settings: Settings) -> None:
    """Write the table and a figure per data set."""
    folder = make_output_folder(output_folder(settings))
    runs = (plain if settings.checkpoints else finished)(find_runs(settings, draws=2))  # no bootstrap is shown here
    if not runs:
        raise UserError("all runs here are variants of another one; reproduction/controls_table.py is for those")
    found = groups(runs)
    lines = [line for (_, bank), mine in found.items() for run in mine for line in arr_lines(run, bank)]
    print(write_table(folder, "arr", lines, for_people(found), (
        f"Accuracy retention rate, % of dense top-1, at sparsity ratio s: {models_of(runs)}, mean ± std over "
        f"{seeds_of(runs)}, each with that seed's dense head. The spread is that of bank and heads, not of other "
        "backbones. Close to chance: ARR means nothing.")))
    for dataset in dict.fromkeys(dataset for dataset, _ in found):
        figure = arr_figure({bank: [curve(run) for run in mine] for (where, bank), mine in found.items()
                             if where == dataset})
        figure.suptitle(f"{dataset}: accuracy retention")
        write_figure(folder, f"arr_{slug(dataset)}", figure)
    print(f"written: {folder}/arr.*, arr_DATASET.png and .pdf")


def curve(run: Run) -> dict[str, Any]:
    """A run as `arr_figure` wants it."""
    return {"label": marked(run.model, run), "ratios": run.summary["ratios"],
            "arr": run.summary["curves"]["best"]["arr"]}


def arr_lines(run: Run, bank: str) -> list[dict[str, Any]]:
    """One line per ratio: ARR as a fraction, mean and std over seeds."""
    return [{"dataset": run.dataset, "bank": bank, "model": run.model, "seeds": len(run.summary["seeds"]),
             **{name: line[name] for name in ("ratio", "kept", "top1", "top1_std", "arr", "arr_std",
                                              "arr_chance_corrected")}, "marks": "; ".join(run.marks)}
            for line in run.summary["table"] if line["ratio"] is not None]


def for_people(found: dict[tuple[str, str], Sequence[Run]]) -> list[dict[str, Any]]:
    """One line per model, a column per ratio, in percent; "-" for a ratio that a run lacks."""
    ratios = sorted({ratio for runs in found.values() for run in runs for ratio in run.summary["ratios"]})
    table = []
    for (dataset, bank), runs in found.items():
        for run in runs:
            dense, *rest = run.summary["table"]
            arr = {line["ratio"]: percent(line["arr"], line["arr_std"]) for line in rest}
            table.append({"data set": dataset, "bank": bank, "model": run.model,
                          "dense top-1": percent(dense["top1"], dense["top1_std"]),
                          **{f"s = {ratio:g}": arr.get(ratio, "-") for ratio in ratios},
                          "marks": "; ".join(run.marks)})
    return table


if __name__ == "__main__":
    run_script(main, Settings)
