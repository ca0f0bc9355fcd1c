"""Accuracy retention against sparsity per model, a panel per bank (paper, Figure 7), and the same as a table.

    python reproduction/arr_curves.py --sweep shapes
    python reproduction/arr_curves.py --model_root IP_training/IP_*/resnet* --save_dir results/fig7

Writes arr (.csv: a line per ratio; .md and .tex: a line per model) and arr_DATASET.png and .pdf for each data set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, run_script
from iis.plots import arr_figure
from iis.runtime import UserError, make_output_folder
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import finished, groups, meaningful, models_said, plain, seeds_said, slug
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import plus_minus


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))
    script.add_argument("--checkpoints", action="store_true", help="also those along pre-training, NAME_epochE")
    return script


def main(args: argparse.Namespace) -> None:
    """Write the table and a figure per data set."""
    folder = make_output_folder(output_folder(args))
    runs = (plain if args.checkpoints else finished)(find_runs(args, draws=2))  # no bootstrap is shown here
    if not runs:
        raise UserError("all runs here are variants of another one; reproduction/controls_table.py is for those")
    found = groups(runs)
    lines = [line for (_, bank), mine in found.items() for run in mine for line in arr_lines(run, bank)]
    print(write_table(folder, "arr", lines, shown(found), caption(runs)))
    names = {dataset: f"arr_{slug(dataset)}" for dataset, _ in found}
    for dataset, name in names.items():
        panels = {bank: [curve(run) for run in mine] for (where, bank), mine in found.items() if where == dataset}
        write_figure(folder, name, arr_figure(panels))
    print(f"written: {folder}/arr.* and as .png and .pdf {', '.join(names.values())}")


def curve(run: Run) -> dict[str, Any]:
    """A run as `arr_figure` wants it."""
    return {"label": run.model + ("" if meaningful(run) else " (near chance)"), "ratios": run.summary["ratios"],
            "arr": run.summary["curves"]["best"]["arr"]}


def arr_lines(run: Run, bank: str) -> list[dict[str, Any]]:
    """One line per ratio: ARR as a fraction, mean and std over seeds."""
    summary = run.summary
    return [{"dataset": summary["dataset"], "bank": bank, "model": run.model, "seeds": len(summary["seeds"]),
             **{name: line[name] for name in ("ratio", "kept", "top1", "top1_std", "arr", "arr_std",
                                              "arr_chance_corrected")}}
            for line in summary["table"] if line["ratio"] is not None]


def shown(found: dict[tuple[str, str], Sequence[Run]]) -> list[dict[str, Any]]:
    """One line per model, a column per ratio, in percent; "-" for a ratio that a run lacks."""
    ratios = sorted({ratio for runs in found.values() for run in runs for ratio in run.summary["ratios"]})
    table = []
    for (dataset, bank), runs in found.items():
        for run in runs:
            by_ratio = {line["ratio"]: line for line in run.summary["table"]}
            dense = by_ratio[None]
            table.append({"data set": dataset, "bank": bank, "model": run.model,
                          "dense top-1": _percent(dense["top1"], dense["top1_std"]),
                          **{f"s = {ratio:g}": _percent(by_ratio[ratio]["arr"], by_ratio[ratio]["arr_std"])
                             if ratio in by_ratio else "-" for ratio in ratios}})
    return table


def _percent(mean: float, std: float | None) -> str:
    return plus_minus(100 * mean, None if std is None else 100 * std, 1)


def caption(runs: Sequence[Run]) -> str:
    """What the numbers are, and of how many models."""
    near = sorted({run.model for run in runs if not meaningful(run)})
    return (f"Accuracy retention rate, % of dense top-1, at sparsity ratio s: {models_said(runs)}, mean ± std "
            f"over {seeds_said(runs)}, each with that seed's dense head. ± tells how far bank and heads move "
            "a curve, not how far another backbone would."
            + (f" Near chance, so that ARR means nothing: {', '.join(near)}." if near else ""))


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
