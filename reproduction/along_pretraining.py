"""IIS and dense accuracy along pre-training, from the checkpoints of a backbone (paper, Figure 5).

    python reproduction/along_pretraining.py --sweep shapes
    python reproduction/along_pretraining.py --model_root IP_training/IP_*/shapes_*_epoch* --save_dir results/fig5

A checkpoint is a model called NAME_epochE. Writes along_pretraining (every checkpoint) as .csv, .md and .tex, and
along_pretraining_DATASET.png and .pdf.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script
from iis.names import slug
from iis.runtime import UserError
from reproduction.lib.figures import LINES, draw_marks, legend_below, style
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.points import by_dataset, counted, nets_of, plain, point, scores, seeds_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder

Settings = Source
CAPTION = ("{} of {}, mean ± std over {}. Checkpoints of one net are not independent models, and each net was "
           "pre-trained once: another pre-training may run otherwise. Close to chance: the IIS means nothing; "
           "saturated: within one standard error of its ceiling.")


def main(settings: Settings) -> None:
    """Write the table and a figure per data set."""
    folder = output_folder(settings)
    runs = [run for run in plain(find_runs(settings)) if run.epoch is not None]
    if not runs:
        raise UserError("no model here is a checkpoint called NAME_epochE; embed and train some (model_name: "
                        "NAME_epoch4, weights: its file), or take a sweep that has checkpoints")
    found = by_dataset(runs)
    lines = [point(run) for by_title in found.values() for mine in by_title.values() for run in by_epoch(mine)]
    people = [{"data set": line["dataset"], "bank": line["bank"], "net": line["net"], "epoch": line["epoch"],
               **scores(line)} for line in lines]
    checkpoints = counted(len({run.model for run in runs}), "checkpoint")
    print(write_table(folder, "along_pretraining", lines, people,
                      CAPTION.format(checkpoints, counted(nets_of(runs), "net"), seeds_of(runs))))
    for dataset, by_title in found.items():
        write_figure(folder, f"along_pretraining_{slug(dataset)}", twin(dataset, by_title))
    print(f"written: {folder}/along_pretraining.*, along_pretraining_DATASET.png and .pdf")


def by_epoch(runs: Sequence[Run]) -> list[Run]:
    """Net by net, in the order of epochs."""
    return sorted(runs, key=lambda run: (run.net, run.epoch))


def twin(dataset: str, found: dict[str, Sequence[Run]]) -> Any:
    """A figure of one data set: dense top-1 above, IIS below, over the epoch; bars are mean ± std over seeds.

    found: {title of the bank: checkpoints}. A net has its colour and marker, a bank its kind of line. Dense top-1 does
    not depend on the bank and is drawn once per net.
    """
    figure, ((above,), (below,)) = new_figure(6.4, 6.4, rows=2, sharex=True)
    nets = sorted({run.net for mine in found.values() for run in mine})
    drawn: set[str] = set()  # nets
    for place, (bank, mine) in enumerate(found.items()):
        for net, group in groupby(by_epoch(mine), key=lambda run: run.net):
            runs, look = list(group), {**style(nets.index(net)), "markersize": 5, "elinewidth": 0.8, "linewidth": 1.3}
            epochs = [run.epoch for run in runs]
            if net not in drawn:
                above.errorbar(epochs, [100 * run.dense for run in runs],
                               [100 * (run.summary["dense"]["std"] or 0) for run in runs], **look | {"linestyle": "-"})
            drawn.add(net)
            below.errorbar(epochs, [run.iis for run in runs], [run.summary["iis"]["std"] or 0 for run in runs],
                           label=f"{net}, {bank}", **look | {"linestyle": LINES[place % len(LINES)]})
            draw_marks(below, runs, lambda run: (run.epoch, run.iis))
    above.set_ylabel("dense top-1, %")
    span = max(run.summary["span"] for mine in found.values() for run in mine)
    below.set(xlabel="epoch of pre-training", ylabel=f"IIS (of {span:g})")
    below.axhline(span, color="0.6", linewidth=0.8, linestyle=":")
    for axes in (above, below):
        axes.grid(alpha=0.25)
    figure.suptitle(f"{dataset}: IIS along pre-training")
    legend_below(figure, [below], 2)
    return figure


if __name__ == "__main__":
    run_script(main, Settings)
