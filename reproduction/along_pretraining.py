"""IIS and dense accuracy along pre-training, from the checkpoints of a backbone (paper, Figure 5).

    python reproduction/along_pretraining.py --sweep shapes
    python reproduction/along_pretraining.py --model_root IP_training/IP_*/shapes_*_epoch* --save_dir results/fig5

A checkpoint is a model called NAME_epochE. Writes along_pretraining (every checkpoint) and along_pretraining_trend (a
line per net and bank) as .csv, .md and .tex, and along_pretraining_DATASET.png and .pdf.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, run_script
from iis.plots import COLOURS, MARKERS
from iis.runtime import UserError, make_output_folder
from reproduction.lib.association import associate
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.points import (
    counted,
    epoch_of,
    groups,
    meaningful,
    net_of,
    nets_of,
    plain,
    point,
    seeds_said,
    slug,
)
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import plus_minus

STYLES = ("-", "--", ":", "-.")


def parser() -> ScriptParser:
    """The flags of this script."""
    return add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))


def main(args: argparse.Namespace) -> None:
    """Write both tables and a figure per data set."""
    folder = make_output_folder(output_folder(args))
    runs = [run for run in plain(find_runs(args)) if epoch_of(run.model) is not None]
    if not runs:
        raise UserError("no model here is a checkpoint called NAME_epochE; embed and train some (model_name: "
                        "NAME_epoch4, weights: its file), or take a sweep that has checkpoints")
    found = paths(runs)
    lines = [{"net": net, **point(run, bank)} for (_, bank, net), mine in found.items() for run in mine]
    print(write_table(folder, "along_pretraining", lines, [shown_point(line) for line in lines], caption(runs)))
    trends = [trend(dataset, bank, net, mine) for (dataset, bank, net), mine in found.items()]
    print("\n" + write_table(folder, "along_pretraining_trend", trends, [shown_trend(line) for line in trends],
                             trend_caption(runs)))
    names = {dataset: f"along_pretraining_{slug(dataset)}" for dataset, _, _ in found}
    for dataset, name in names.items():
        write_figure(folder, name, twin({(bank, net): mine for (where, bank, net), mine in found.items()
                                         if where == dataset}))
    print(f"written: {folder}/along_pretraining.*, along_pretraining_trend.* and as .png and .pdf "
          f"{', '.join(names.values())}")


def paths(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """{(data set, title of the bank, net): its checkpoints by epoch}."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for (dataset, bank), mine in groups(runs).items():
        for run in sorted(mine, key=lambda run: (net_of(run.model), epoch_of(run.model))):
            found.setdefault((dataset, bank, net_of(run.model)), []).append(run)
    return found


def trend(dataset: str, bank: str, net: str, runs: Sequence[Run]) -> dict[str, Any]:
    """ρ and τ between epoch and IIS, and between epoch and dense accuracy, over the checkpoints that are not near
    chance; None for fewer than three. No p: checkpoints of one net are not independent."""
    usable = [run for run in runs if meaningful(run)]
    epochs = [epoch_of(run.model) for run in usable]
    line = {"dataset": dataset, "bank": bank, "net": net, "checkpoints": len(usable),
            "near_chance": len(runs) - len(usable)}
    for name, values in (("iis", [run.iis for run in usable]),
                         ("corrected", [run.summary["iis_chance_corrected"]["mean"] for run in usable]),
                         ("dense", [run.summary["dense"]["mean"] for run in usable])):
        one = associate(epochs, values)
        line |= {f"{name}_rho": one and one.rho, f"{name}_tau": one and one.tau}
    return line


def shown_point(line: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as people read it."""
    return {"data set": line["dataset"], "bank": line["bank"], "net": line["net"], "epoch": line["epoch"],
            "dense top-1, %": plus_minus(100 * line["dense"], line["dense_std"] and 100 * line["dense_std"], 2),
            "IIS": plus_minus(line["iis"], line["iis_std"]),
            "chance-corrected IIS": plus_minus(line["iis_chance_corrected"], line["iis_chance_corrected_std"]),
            "remark": line["warning"]}


def shown_trend(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `trend` as people read it."""
    def both(name: str) -> str:
        if line["checkpoints"] < 3:
            return "none: fewer than 3 checkpoints"
        if line[f"{name}_rho"] is None:
            return "none: a constant"
        return f"{line[f'{name}_rho']:.2f}; τ = {line[f'{name}_tau']:.2f}".replace("-", "−")

    return {"data set": line["dataset"], "bank": line["bank"], "net": line["net"], "checkpoints": line["checkpoints"],
            "ρ(epoch, IIS)": both("iis"), "ρ(epoch, chance-corrected IIS)": both("corrected"),
            "ρ(epoch, acc)": both("dense")}


def caption(runs: Sequence[Run]) -> str:
    """How many nets these checkpoints are of."""
    return (f"{counted(len({run.model for run in runs}), 'checkpoint')} of {counted(nets_of(runs), 'net')}, "
            f"mean ± std over {seeds_said(runs)}. Checkpoints of one net are not independent models, and each net was "
            "pre-trained once: another pre-training may run otherwise. \"near chance\": the dense head is so weak that "
            "the IIS means nothing; \"saturated\": within one standard error of its ceiling.")


def trend_caption(runs: Sequence[Run]) -> str:
    """Why there is no p-value."""
    return (f"Spearman ρ and Kendall τ over each net's own checkpoints ({counted(nets_of(runs), 'net')}), those near "
            "chance left out. They describe one pre-training each; checkpoints of one net are not "
            "independent, so there is no p-value and no interval.")


def twin(found: dict[tuple[str, str], Sequence[Run]]) -> Any:
    """A figure of one data set: dense top-1 above, IIS below, over the epoch; bars are mean ± std over seeds.

    found: {(bank, net): checkpoints by epoch}. A net has its colour and marker, a bank its kind of line. Dense top-1
    does not depend on the bank and is drawn once per net.
    """
    figure, ((above,), (below,)) = new_figure(6.4, 6.4, rows=2, sharex=True)
    nets, banks = (list(dict.fromkeys(key[place] for key in found)) for place in (1, 0))
    drawn: set[str] = set()
    for (bank, net), runs in found.items():
        place, style = nets.index(net), STYLES[banks.index(bank) % len(STYLES)]
        look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 5,
                "elinewidth": 0.8, "linewidth": 1.3}
        epochs = [epoch_of(run.model) for run in runs]
        if net not in drawn:
            above.errorbar(epochs, [100 * run.summary["dense"]["mean"] for run in runs],
                           yerr=[100 * (run.summary["dense"]["std"] or 0) for run in runs], **look)
            drawn.add(net)
        below.errorbar(epochs, [run.iis for run in runs], yerr=[run.summary["iis"]["std"] or 0 for run in runs],
                       linestyle=style, label=f"{net}, {bank}", **look)
        near = [run for run in runs if not meaningful(run)]
        if near:
            below.plot([epoch_of(run.model) for run in near], [run.iis for run in near], "x", color="black",
                       markersize=9, label="near chance: IIS means nothing")
    above.set_ylabel("dense top-1, %")
    span = max(run.summary["span"] for runs in found.values() for run in runs)
    below.set(xlabel="epoch of pre-training", ylabel=f"IIS (of {span:g})")
    below.axhline(span, color="0.6", linewidth=0.8, linestyle=":")
    for axes in (above, below):
        axes.grid(alpha=0.25)
    labels = dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
