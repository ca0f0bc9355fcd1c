"""IIS and dense accuracy along pre-training, from the checkpoints of a backbone (paper, Figure 5).

    python reproduction/along_pretraining.py --sweep shapes
    python reproduction/along_pretraining.py --model_root IP_training/IP_*/shapes_*_epoch* --save_dir results/fig5

A checkpoint is a model called NAME_epochE. Writes along_pretraining (every checkpoint) and along_pretraining_trend (a
line per net and bank) as .csv, .md and .tex, and along_pretraining_DATASET.png and .pdf.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script
from iis.names import slug
from iis.runtime import UserError
from reproduction.lib.figures import LINES, draw_marks, legend_below, style
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.points import counted, groups, nets_of, plain, point, scores, seeds_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import associate

Settings = Source
CAPTION = ("{} of {nets}, mean ± std over {}. Checkpoints of one net are not independent models, and each net was "
           "pre-trained once: another pre-training may run otherwise. Close to chance: the IIS means nothing; "
           "saturated: within one standard error of its ceiling.")
OF_TRENDS = ("Spearman ρ and Kendall τ over each net's own checkpoints ({nets}), without those close to chance. They "
             "describe one pre-training each; checkpoints of one net are not independent, so there is no p-value and "
             "no interval.")


def main(settings: Settings) -> None:
    """Write both tables and a figure per data set."""
    folder = output_folder(settings)
    runs = [run for run in plain(find_runs(settings)) if run.epoch is not None]
    if not runs:
        raise UserError("no model here is a checkpoint called NAME_epochE; embed and train some (model_name: "
                        "NAME_epoch4, weights: its file), or take a sweep that has checkpoints")
    found, nets = paths(runs), counted(nets_of(runs), "net")
    lines = [point(run) for mine in found.values() for run in mine]
    people = [{"data set": line["dataset"], "bank": line["bank"], "net": line["net"], "epoch": line["epoch"],
               **scores(line)} for line in lines]
    checkpoints = counted(len({run.model for run in runs}), "checkpoint")
    print(write_table(folder, "along_pretraining", lines, people,
                      CAPTION.format(checkpoints, seeds_of(runs), nets=nets)))
    trends = [trend(*key, mine) for key, mine in found.items()]
    print("\n" + write_table(folder, "along_pretraining_trend", trends, [trend_for_people(line) for line in trends],
                             OF_TRENDS.format(nets=nets)))
    for dataset in dict.fromkeys(run.dataset for run in runs):
        figure = twin(dataset, {(bank, net): mine for (where, bank, net), mine in found.items() if where == dataset})
        write_figure(folder, f"along_pretraining_{slug(dataset)}", figure)
    print(f"written: {folder}/along_pretraining.*, along_pretraining_trend.*, along_pretraining_DATASET.png and .pdf")


def paths(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """{(data set, title of the bank, net): its checkpoints by epoch}."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for (dataset, bank), mine in groups(runs).items():
        for run in sorted(mine, key=lambda run: (run.net, run.epoch)):
            found.setdefault((dataset, bank, run.net), []).append(run)
    return found


def trend(dataset: str, bank: str, net: str, runs: Sequence[Run]) -> dict[str, Any]:
    """ρ and τ of epoch with IIS, chance-corrected IIS and dense accuracy, without checkpoints close to chance; None
    below three."""
    usable = [run for run in runs if run.meaningful]
    line = {"dataset": dataset, "bank": bank, "net": net, "checkpoints": len(usable),
            "near_chance": len(runs) - len(usable)}
    for name in ("iis", "corrected", "dense"):
        one = associate([run.epoch for run in usable], [getattr(run, name) for run in usable])
        line |= {f"{name}_{measure}": one[measure] for measure in ("rho", "tau")}
    return line


def trend_for_people(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `trend` as people read it."""
    def both(name: str) -> str:
        if line[f"{name}_rho"] is None:
            return "none: fewer than 3 checkpoints" if line["checkpoints"] < 3 else "none: a constant"
        return f"{line[f'{name}_rho']:.2f}; τ = {line[f'{name}_tau']:.2f}".replace("-", "−")

    return {"data set": line["dataset"], "bank": line["bank"], "net": line["net"], "checkpoints": line["checkpoints"],
            "ρ(epoch, IIS)": both("iis"), "ρ(epoch, chance-corrected IIS)": both("corrected"),
            "ρ(epoch, acc)": both("dense")}


def twin(dataset: str, found: dict[tuple[str, str], Sequence[Run]]) -> Any:
    """A figure of one data set: dense top-1 above, IIS below, over the epoch; bars are mean ± std over seeds.

    found: {(bank, net): checkpoints by epoch}. A net has its colour and marker, a bank its kind of line. Dense top-1
    does not depend on the bank and is drawn once per net.
    """
    figure, ((above,), (below,)) = new_figure(6.4, 6.4, rows=2, sharex=True)
    banks, nets = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
    for (bank, net), runs in found.items():
        look = {**style(nets.index(net)), "markersize": 5, "elinewidth": 0.8, "linewidth": 1.3, "linestyle": "-"}
        epochs = [run.epoch for run in runs]
        if bank == next(other for other, of in found if of == net):
            above.errorbar(epochs, [100 * run.dense for run in runs],
                           yerr=[100 * (run.summary["dense"]["std"] or 0) for run in runs], **look)
        look["linestyle"] = LINES[banks.index(bank) % len(LINES)]
        below.errorbar(epochs, [run.iis for run in runs], yerr=[run.summary["iis"]["std"] or 0 for run in runs],
                       label=f"{net}, {bank}", **look)
        draw_marks(below, runs, lambda run: (run.epoch, run.iis))
    above.set_ylabel("dense top-1, %")
    span = max(run.summary["span"] for runs in found.values() for run in runs)
    below.set(xlabel="epoch of pre-training", ylabel=f"IIS (of {span:g})")
    below.axhline(span, color="0.6", linewidth=0.8, linestyle=":")
    for axes in (above, below):
        axes.grid(alpha=0.25)
    figure.suptitle(f"{dataset}: IIS along pre-training")
    legend_below(figure, [below], 2)
    return figure


if __name__ == "__main__":
    run_script(main, Settings)
