"""Fine-tuning by interpretability maximisation against its controls (paper, Tables 1 to 3 and Fig. 8).

    python reproduction/finetuning_table.py --sweep finetuning_shapes        # after reproduction/finetuning.py

finetuning: original head, predictor and IIS before and after, mean ± std over seeds; the differences to the control
(CE of the original head alone, same seeds) with Student's interval, and three p values: paired t, exact sign flips, and
Holm's correction of the first for all differences of the table. The fresh predictor is compared at the s of the row.
finetuning_ablations: the same for Eq. 8 with other M and s. finetuning_tuning: the learning rates that were tried.
finetuning_curves: both accuracies along fine-tuning. Written as CSV, Markdown and LaTeX, PNG and PDF.

Each seed of a cell is measured with its own seeds of stage 3, so the pairs are independent: without an effect 5 % of
differences have p < 0.05. The original head of the backbone as it came is a known constant, without a seed. Where the
data set has other classes, tables say "new head" for the one that was fitted in its place.
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
from reproduction.lib.finetuned import (
    BEFORE,
    CONTROL,
    EQ8,
    FOLDER,
    INDEX,
    MEASURES,
    NAMES,
    PERCENT,
    TUNING,
    best_rates,
    finished_cells,
    head_of,
    nearest_ratio,
    title_of,
    tuned_cells,
)
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.runs import REPRODUCED
from reproduction.lib.statistics import Difference, holm, paired_difference

COMPARED = ("own_head", "predictor", "fresh_dense", "fresh_ip", "iis")  # IIS, chance-corrected, tells the same story


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
    cells["title"] = [title_of(cell) for cell in cells.to_dict("records")]
    control = cells[cells["objective"] == CONTROL]
    usual = control[["num_concepts", "sparsity"]].iloc[0]
    at_usual = (cells[usual.index] == usual).all(axis=1)
    titles = [NAMES[BEFORE], NAMES[EQ8], f"{NAMES[EQ8]}, at the control's rate", *list(NAMES.values())[2:]]
    groups = {title: mine for title in titles
              if len(mine := cells[(cells["title"] == title) & (at_usual | (cells["objective"] == BEFORE))])}
    named = [({"objective": title}, mine) for title, mine in groups.items()]
    print(write(folder, "finetuning", named, control, COMPARED))
    of_eq8 = cells[cells["title"] == NAMES[EQ8]]
    ablated = [({"M": f"{size:g}", "s": f"{sparsity:g}"}, mine)
               for (size, sparsity), mine in of_eq8.groupby(["num_concepts", "sparsity"])
               if (size, sparsity) != tuple(usual)]
    if ablated:  # a predictor that trained along at another M or s is not like the control's
        print("\n" + write(folder, "finetuning_ablations", ablated, control,
                           [measure for measure in COMPARED if measure != "predictor"]))
    if (root / TUNING / INDEX).is_file():
        print("\n" + write_tuning(folder, tuned_cells(root / TUNING)))
    results = control["results"].iloc[0]
    draw(folder, f"fine-tuning of {results['model']} on {results['dataset']}",
         {title: mine for title, mine in groups.items() if title != NAMES[BEFORE]}, head_of(results))
    print(f"\nwritten: {folder}/finetuning*.csv, .md, .tex, finetuning_curves.png, .pdf")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(cells) + len(failed)} cells: {'; '.join(failed)}")


def write(folder: Path, name: str, groups: Sequence[tuple[dict[str, Any], pd.DataFrame]], control: pd.DataFrame,
          compared: Sequence[str]) -> str:
    """One table: a line per group (its names, its cells) with its means, and the paired differences to the control of
    the measures `compared`; the Markdown."""
    lines, found = [], {}
    for place, (names, cells) in enumerate(groups):
        rates = cells["learning_rate"].dropna().unique()
        line = {**names, "learning_rate": rates[0] if len(rates) else None, "seeds": len(cells)}
        sparsity = pd.concat([cells["sparsity"].dropna(), control["sparsity"]]).iloc[0]
        for measure in MEASURES:
            known = of_seeds(cells, measure, sparsity, control)
            line[measure], line[f"{measure}_std"] = (None, None) if known.isna().any() else mean_std(known)
            both = pd.concat([known, of_seeds(control, measure, sparsity, control)], axis=1, join="inner").dropna()
            if measure in compared and cells["objective"].iloc[0] != CONTROL and len(both) > 1:
                found[place, measure] = paired_difference(*both.to_numpy(float).T)
        lines.append({**line, "marks": "; ".join(sorted(set(filter(None, cells["marks"]))))})
    corrected = dict(zip(found, holm([one.t_p for one in found.values()]), strict=True))
    first, tested, people = control["results"].iloc[0], sum(one.t_p is not None for one in found.values()), []
    head = head_of(first)
    for place, (names, _) in enumerate(groups):
        line, rate = lines[place], lines[place]["learning_rate"]
        row = {**names, "learning rate": "-" if rate is None else f"{rate:g}", "seeds": line["seeds"]}
        for measure, (title, _) in MEASURES.items():
            title, digits = title.replace("original head", head), 2 if measure in PERCENT else 4
            row[title] = plus_minus(line[measure], line[f"{measure}_std"], digits)
            if measure not in compared:
                continue
            one, holm_p = found.get((place, measure), Difference()), corrected.get((place, measure))
            line |= {f"{measure}_difference": one.mean, **{f"{measure}_{key}": getattr(one, key) for key in (
                "low", "high", "t_p", "sign_flip_p", "pairs")}, f"{measure}_holm_p": holm_p}
            shown = " / ".join("-" if p is None else f"{p:.2g}" for p in (one.t_p, one.sign_flip_p, holm_p))
            row[f"Δ {title}"] = "-" if one.mean is None else f"{one.text(digits)}, p {shown}"
        people.append({**row, "marks": line["marks"]})
    caption = (f"{first['model']} on {first['dataset']}, {first['n_train']} images, {first['epochs']} epochs. Mean ± "
               f"std over seeds. Δ: against {NAMES[CONTROL]}, same seeds, on the same {first['n_val']} validation "
               "images; 95 % Student interval over seeds; p of the paired t test / of exact sign flips / of the t test "
               f"after Holm's correction for the {tested} differences of this table. {head.capitalize()} and predictor "
               "after the last epoch (nothing is selected); fresh: stage 3 on the fine-tuned backbone, IP at the row's "
               f"s ({control['sparsity'].iloc[0]:g} where it has none), for the control too.")
    if first.get("new_head"):
        caption += (f" New head: of {first['new_head']} classes, in the place of the original one, and fitted to the "
                    "backbone as it came before the first epoch.")
    return write_table(folder, name, lines, people, caption)


def of_seeds(cells: pd.DataFrame, measure: str, sparsity: float, control: pd.DataFrame) -> pd.Series:
    """A measure of MEASURES by seed, NaN where undefined; of the fresh predictor at the ratio nearest to `sparsity`."""
    by_seed = cells.set_index("seed").sort_index()
    if measure == "fresh_ip":
        return by_seed["curve"].map(lambda curve: curve[nearest_ratio(curve, sparsity)])
    known, key = by_seed[measure].astype(float), {"own_head": "dense_top1", "predictor": "ip_top1"}.get(measure)
    if key and known.isna().all():  # both heads of the backbone as it came are in every run's epoch 0
        known = control.set_index("seed")["log"].map(lambda log: 100 * log[0][key])
    return known


def write_tuning(folder: Path, cells: pd.DataFrame) -> str:
    """The learning rates that were tried, a line for each of every objective; the Markdown."""
    best, head, lines, people = best_rates(cells), cells["head"].iloc[0], [], []
    for (objective, rate), mine in cells.groupby(["objective", "learning_rate"], sort=False):
        line = {"objective": NAMES[objective], "learning_rate": rate, "seeds": len(mine)}
        row = {"objective": NAMES[objective], "learning rate": f"{rate:g}", "seeds": len(mine)}
        for measure in ("own_head", "predictor"):
            line[measure], line[f"{measure}_std"] = mean_std(mine[measure])
            title = MEASURES[measure][0].replace("original head", head)
            row[title] = plus_minus(line[measure], line[f"{measure}_std"], 2)
        lines.append({**line, "taken": best[objective] == rate})
        people.append({**row, "taken": "yes" if best[objective] == rate else ""})
    caption = (f"Top-1 after the last epoch on {cells['held_out'].iloc[0]} training images that were held out, mean ± "
               f"std over seeds; before the first the {head} had "
               f"{plus_minus(*mean_std(cells.drop_duplicates('seed')['before']), 2)} on them. For every objective the "
               f"rate with the best {head} is taken; validation images have no say in it.")
    return write_table(folder, "finetuning_tuning", lines, people, caption)


def draw(folder: Path, title: str, groups: Mapping[str, pd.DataFrame], head: str) -> None:
    """Head of the backbone and predictor per epoch, mean and ± std over seeds, by objective (paper, Fig. 8)."""
    figure, axes = panels(2, title, 4.2, 2.7)
    for axis, (key, name) in zip(axes, (("dense_top1", head), ("ip_top1", "interpretation predictor")),
                                 strict=True):
        for (objective, cells), colour in zip(groups.items(), COLOURS, strict=False):
            curves_RT = 100 * np.array([[entry[key] for entry in log] for log in cells["log"]])
            band(axis, range(curves_RT.shape[1]), curves_RT, objective, color=colour, marker="o")
        axis.set(xlabel="epoch of fine-tuning (0: as it came)", ylabel="validation top-1, %", title=name)
        axis.locator_params(axis="x", integer=True)
    legend_below(figure, axes)
    write_figure(folder, "finetuning_curves", figure)


if __name__ == "__main__":
    run_script(main, Settings)
