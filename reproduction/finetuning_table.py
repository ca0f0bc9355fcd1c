"""Fine-tuning by interpretability maximisation against its controls (paper, Tables 1 to 3 and Fig. 8).

    python reproduction/finetuning_table.py --sweep finetuning_shapes        # after reproduction/finetuning.py

finetuning: original head, predictor and IIS before and after, mean ± std over seeds; the differences to the control (CE of
the original head alone, same seeds) with Student's interval, and two p values: paired t, and exact sign flips.
finetuning_num_concepts, finetuning_sparsity: the same for other M and s in the objective. finetuning_curves: both
accuracies along fine-tuning. Written as CSV, Markdown and LaTeX, PNG and PDF.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis import plots
from iis.cli import ScriptParser, path, run_script
from iis.runtime import ROOT, UserError, make_output_folder
from iis.statistics import mean_std
from reproduction.lib.finetuned import (
    BEFORE,
    CONTROL,
    FOLDER,
    INDEX,
    MEASURES,
    NAMES,
    PERCENT,
    Measured,
    finished_cells,
)
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.paired import paired_difference, sign_flip_p, t_test_p
from reproduction.lib.tables import plus_minus

# The objectives that are drawn.
COLOURS = dict(zip(("interpretability", CONTROL, "weight_decay"), plots.COLOURS, strict=False))


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--sweep", required=True, help="name of a sweep that reproduction/finetuning.py has run, or its "
                      "output folder")
    script.add_argument("--save_dir", type=path, help="output folder (default: results/reproduction/SWEEP)")
    return script


def main(args: argparse.Namespace) -> None:
    """Read all cells, write tables and figure."""
    root = next((folder for folder in (path(args.sweep), FOLDER / args.sweep) if (folder / INDEX).is_file()), None)
    if root is None:
        raise UserError(f"there is no fine-tuning {args.sweep} in {FOLDER}: run reproduction/finetuning.py first")
    measured, failed = finished_cells(root)
    for sentence in failed:
        print(f"left out: {sentence}")
    folder = make_output_folder(args.save_dir or ROOT / "results" / "reproduction" / root.name)
    usual = next((one.cell for one in measured if one.cell["objective"] == CONTROL), None)
    if usual is None:
        raise UserError(f"{root} holds no finished run of the control ({CONTROL}): run python "
                        "reproduction/finetuning.py again")
    main_runs = [one for one in measured if one.cell["objective"] == BEFORE or
                 all(one.cell[name] == usual[name] for name in ("num_concepts", "sparsity"))]
    groups = {objective: [one for one in main_runs if one.cell["objective"] == objective] for objective in NAMES}
    groups = {NAMES[objective]: groups[objective] for objective in (BEFORE, "interpretability", CONTROL, "weight_decay")
              if groups[objective]}
    control = groups[NAMES[CONTROL]]
    print(write(folder, "finetuning", "objective", groups, control))
    for name, other in (("num_concepts", "sparsity"), ("sparsity", "num_concepts")):
        values = sorted({one.cell[name] for one in measured if one.cell["objective"] == "interpretability"
                         and one.cell[other] == usual[other]})
        if len(values) > 1:
            ablated = {value: [one for one in measured if one.cell["objective"] == "interpretability"
                               and one.cell[name] == value and one.cell[other] == usual[other]] for value in values}
            print("\n" + write(folder, f"finetuning_{name}", {"num_concepts": "M", "sparsity": "s"}[name], ablated,
                               control, compared=("own_head", "iis")))
    draw(folder, {objective: [one for one in main_runs if one.cell["objective"] == objective] for objective in COLOURS})
    print(f"\nwritten: {folder}/finetuning*.csv, .md, .tex, finetuning_curves.png, .pdf")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(measured) + len(failed)} cells: {'; '.join(failed)}")


def write(folder: Path, name: str, column: str, groups: dict[Any, list[Measured]], control: Sequence[Measured],
          compared: Sequence[str] = ("own_head", "predictor", "iis")) -> str:
    """One table: a line per group, its means and its paired differences to the control; the Markdown.

    compared: the measures whose differences people see. Predictors of another M or s are not like the control's.
    """
    lines, shown = [], []
    for label, runs in groups.items():
        line: dict[str, Any] = {column: label, "seeds": len(runs)}
        people = dict(line)
        for measure, title in MEASURES.items():
            digits = 2 if measure in PERCENT else 4
            known, base = values_of(runs, measure), values_of(control, measure)
            if not known:  # the original head of the backbone as it came is in every run's epoch 0
                known = before_of(control, measure)
            mean, std = mean_std(list(known.values()))
            line |= {measure: mean, f"{measure}_std": std}
            people[title] = plus_minus(mean, std, digits)
            if runs[0].cell["objective"] == BEFORE and len(runs) == 1:  # all seeds began with this one
                known = dict.fromkeys(base, mean)
            line |= difference(known, base, measure) if runs is not control else _nothing(measure)
            if measure in compared:
                people[f"Δ {title}"] = told(line, measure, digits)
        lines.append(line)
        shown.append(people)
    first = control[0].results
    caption = (f"{first['model']} on {first['dataset']}, {first['n_train']} images, {first['epochs']} epochs. "
               f"Mean ± std over seeds. Δ: against {NAMES[CONTROL]}, same seeds, 95 % Student interval; p of the "
               "paired t test and of exact sign flips. Original head and predictor after the last epoch (nothing is "
               "selected); fresh: stage 3 on the fine-tuned backbone.")
    return write_table(folder, name, lines, shown, caption)


def values_of(runs: Sequence[Measured], measure: str) -> dict[int, float]:
    """A measure by seed."""
    return {one.cell["seed"]: one.values[measure] for one in runs if one.values[measure] is not None}


def before_of(runs: Sequence[Measured], measure: str) -> dict[int, float]:
    """Original head or predictor before the first epoch, by seed."""
    key = {"own_head": "dense_top1", "predictor": "ip_top1"}[measure]
    return {one.cell["seed"]: 100 * one.log[0][key] for one in runs}


def difference(mine: dict[int, float], base: dict[int, float], measure: str) -> dict[str, Any]:
    """Δ to the control over the seeds both have: mean, interval and both p values, as columns of the CSV."""
    seeds = sorted(set(mine) & set(base))
    if len(seeds) < 2:
        return _nothing(measure)
    pair = [mine[seed] for seed in seeds], [base[seed] for seed in seeds]
    found = paired_difference(*pair)
    return {f"{measure}_difference": found.mean, f"{measure}_low": found.interval[0],
            f"{measure}_high": found.interval[1], f"{measure}_t_p": t_test_p(*pair),
            f"{measure}_sign_flip_p": sign_flip_p(*pair), f"{measure}_pairs": len(seeds)}


def _nothing(measure: str) -> dict[str, Any]:
    return {f"{measure}_{key}": None for key in ("difference", "low", "high", "t_p", "sign_flip_p", "pairs")}


def told(line: dict[str, Any], measure: str, digits: int) -> str:
    """"+0.0123 [+0.0010, +0.0236], p 0.03 / 0.06"."""
    if line[f"{measure}_difference"] is None:
        return "-"
    mean, low, high = (f"{line[f'{measure}_{key}']:+.{digits}f}" for key in ("difference", "low", "high"))
    t_p, flip = (line[f"{measure}_{key}"] for key in ("t_p", "sign_flip_p"))
    return f"{mean} [{low}, {high}], p {'-' if t_p is None else f'{t_p:.2g}'} / {flip:.2g}"


def draw(folder: Path, groups: dict[str, list[Measured]]) -> None:
    """Original head and predictor per epoch, mean and ± std over seeds, by objective (paper, Fig. 8)."""
    figure, axes = new_figure(8.4, 3.6, 1, 2, sharex=True)
    for axis, (key, title) in zip(axes[0], (("dense_top1", "original head"), ("ip_top1", "interpretation predictor")),
                                  strict=True):
        for objective, runs in groups.items():
            if not runs:
                continue
            curves_RT = 100 * np.array([[entry[key] for entry in one.log] for one in runs])
            epochs, mean = range(curves_RT.shape[1]), curves_RT.mean(0)
            axis.plot(epochs, mean, marker="o", markersize=3, color=COLOURS[objective], label=NAMES[objective])
            if len(runs) > 1:
                std = curves_RT.std(0, ddof=1)
                axis.fill_between(epochs, mean - std, mean + std, color=COLOURS[objective], alpha=0.15, linewidth=0)
        axis.set(xlabel="epoch of fine-tuning (0: as it came)", ylabel="validation top-1, %", title=title)
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", integer=True)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    write_figure(folder, "finetuning_curves", figure)


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
