"""Fine-tuning by interpretability maximisation against its controls (paper, Tables 1 to 3 and Fig. 8).

    python reproduction/finetuning_table.py --sweep finetuning_shapes        # after reproduction/finetuning.py

finetuning: original head, predictor and IIS before and after, mean ± std over seeds; the differences to the control
(CE of the original head alone, same seeds) with Student's interval, and two p values: paired t, and exact sign flips.
finetuning_num_concepts, finetuning_sparsity: the same for other M and s in the objective. finetuning_curves: both
accuracies along fine-tuning. Written as CSV, Markdown and LaTeX, PNG and PDF.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import path, run_script, setting
from iis.plots import COLOURS
from iis.runtime import UserError, make_output_folder
from iis.statistics import mean_std, plus_minus
from reproduction.lib.figures import band, legend_below, panels
from reproduction.lib.finetuned import BEFORE, CONTROL, FOLDER, INDEX, MEASURES, NAMES, PERCENT, finished_cells
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.runs import REPRODUCED
from reproduction.lib.statistics import Difference, paired_difference


@dataclass(kw_only=True)
class Settings:
    """Cells that are read, and the output."""

    sweep: str = setting(help="name of a sweep that reproduction/finetuning.py has run, or its output folder")
    save_dir: Path | None = setting(None, "output folder (default: results/reproduction/SWEEP)")


def main(settings: Settings) -> None:
    """Read all cells, write tables and figure."""
    roots = path(settings.sweep), FOLDER / settings.sweep
    root = next((folder for folder in roots if (folder / INDEX).is_file()), None)
    if root is None:
        raise UserError(f"there is no fine-tuning {settings.sweep} in {FOLDER}: run reproduction/finetuning.py first")
    cells, failed = finished_cells(root)
    for sentence in failed:
        print(f"left out: {sentence}")
    folder = make_output_folder(settings.save_dir or REPRODUCED / root.name)
    if not len(cells) or CONTROL not in set(cells["objective"]):
        raise UserError(f"{root} holds no finished run of the control ({CONTROL}): run python "
                        "reproduction/finetuning.py again")
    usual = cells.loc[cells["objective"] == CONTROL, ["num_concepts", "sparsity"]].iloc[0]
    same = {name: cells[name] == usual[name] for name in usual.index}
    main_cells = cells[(cells["objective"] == BEFORE) | (same["num_concepts"] & same["sparsity"])]
    by_objective = {name: mine for name in NAMES if len(mine := main_cells[main_cells["objective"] == name])}
    control = by_objective[CONTROL]
    print(write(folder, "finetuning", "objective", {NAMES[name]: mine for name, mine in by_objective.items()}, control))
    for name, other, letter in (("num_concepts", "sparsity", "M"), ("sparsity", "num_concepts", "s")):
        ablated = dict(iter(cells[(cells["objective"] == "interpretability") & same[other]].groupby(name)))
        if len(ablated) > 1:
            print("\n" + write(folder, f"finetuning_{name}", letter, ablated, control, compared=("own_head", "iis")))
    results = control["results"].iloc[0]
    draw(folder, f"fine-tuning of {results['model']} on {results['dataset']}",
         {name: mine for name, mine in by_objective.items() if name != BEFORE})
    print(f"\nwritten: {folder}/finetuning*.csv, .md, .tex, finetuning_curves.png, .pdf")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(cells) + len(failed)} cells: {'; '.join(failed)}")


def write(folder: Path, name: str, column: str, groups: Mapping[Any, pd.DataFrame], control: pd.DataFrame,
          compared: Sequence[str] = ("own_head", "predictor", "iis")) -> str:
    """One table: a line per group, its means and its paired differences to the control; the Markdown. compared: the
    measures whose differences people see (predictors of another M or s are not like the control's)."""
    lines, people = [], []
    for label, cells in groups.items():
        line: dict[str, Any] = {column: f"{label:g}" if isinstance(label, float) else label, "seeds": len(cells)}
        row = dict(line)
        for measure, (title, _) in MEASURES.items():
            digits = 2 if measure in PERCENT else 4
            known, base = (some.set_index("seed")[measure].dropna() for some in (cells, control))
            key = {"own_head": "dense_top1", "predictor": "ip_top1"}.get(measure)
            if key and not len(known):  # the original head of the backbone as it came is in every run's epoch 0
                known = control.set_index("seed")["log"].map(lambda log, key=key: 100 * log[0][key])
            # A measure that is undefined for one seed (a dense head exactly at chance) has no mean over seeds.
            mean, std = mean_std(known) if key or len(known) == len(cells) else (None, None)
            if cells["objective"].iloc[0] == BEFORE and len(cells) == 1:  # all seeds began with this one
                known = pd.Series(mean, base.index)
            both = pd.concat([known, base], axis=1, join="inner").sort_index().astype(float).dropna()
            found = paired_difference(*both.to_numpy().T) if cells is not control and len(both) > 1 else Difference()
            line |= {measure: mean, f"{measure}_std": std, f"{measure}_difference": found.mean,
                     **{f"{measure}_{key}": getattr(found, key)
                        for key in ("low", "high", "t_p", "sign_flip_p", "pairs")}}
            row[title] = plus_minus(mean, std, digits)
            if measure in compared:
                t_p = "-" if found.t_p is None else f"{found.t_p:.2g}"
                row[f"Δ {title}"] = "-" if found.mean is None else (
                    f"{found.text(digits)}, p {t_p} / {found.sign_flip_p:.2g}")
        marks = {"marks": "; ".join(sorted(set(filter(None, cells["marks"]))))}
        lines.append(line | marks)
        people.append(row | marks)
    first = control["results"].iloc[0]
    caption = (f"{first['model']} on {first['dataset']}, {first['n_train']} images, {first['epochs']} epochs. "
               f"Mean ± std over seeds. Δ: against {NAMES[CONTROL]}, same seeds, 95 % Student interval; p of the "
               "paired t test and of exact sign flips. Original head and predictor after the last epoch (nothing is "
               "selected); fresh: stage 3 on the fine-tuned backbone.")
    return write_table(folder, name, lines, people, caption)


def draw(folder: Path, title: str, groups: Mapping[str, pd.DataFrame]) -> None:
    """Original head and predictor per epoch, mean and ± std over seeds, by objective (paper, Fig. 8)."""
    figure, axes = panels(2, title, 4.2, 2.7)
    for axis, (key, name) in zip(axes, (("dense_top1", "original head"), ("ip_top1", "interpretation predictor")),
                                 strict=True):
        for (objective, cells), colour in zip(groups.items(), COLOURS, strict=False):
            curves_RT = 100 * np.array([[entry[key] for entry in log] for log in cells["log"]])
            band(axis, range(curves_RT.shape[1]), curves_RT, NAMES[objective], color=colour, marker="o")
        axis.set(xlabel="epoch of fine-tuning (0: as it came)", ylabel="validation top-1, %", title=name)
        axis.locator_params(axis="x", integer=True)
    legend_below(figure, axes)
    write_figure(folder, "finetuning_curves", figure)


if __name__ == "__main__":
    run_script(main, Settings)
