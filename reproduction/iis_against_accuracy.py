"""IIS against dense accuracy over models, per bank and per data set (paper, Figures 3 and 4), and how sure it is.

    python reproduction/iis_against_accuracy.py --sweep shapes
    python reproduction/iis_against_accuracy.py --model_root IP_training/IP_Prototype --save_dir results/fig3

Writes iis_points (every model), iis_correlations (a line per bank and data set) as .csv, .md and .tex, and scatter
plots as .png and .pdf: one per data set with a panel per bank, one per bank with a panel per data set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, run_script
from iis.plots import COLOURS, MARKERS
from iis.runtime import make_output_folder
from reproduction.lib.association import Association, associate, beside_accuracy, division_null
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.points import (
    counted,
    epoch_of,
    groups,
    meaningful,
    models_said,
    nets_of,
    plain,
    point,
    seeds_said,
    short_name,
    slug,
    undivided,
)
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import plus_minus

MEASURES = {"iis": "ρ(IIS, acc)", "area": "ρ(∫acc ds, acc)", "corrected": "ρ(chance-corrected IIS, acc)"}
ALL, FINISHED = "with checkpoints", "finished"


def parser() -> ScriptParser:
    """The flags of this script."""
    return add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))


def main(args: argparse.Namespace) -> None:
    """Write both tables and all scatter plots."""
    folder = make_output_folder(output_folder(args))
    runs = plain(find_runs(args))
    found = groups(runs)
    points = [point(run, bank) for (_, bank), mine in found.items() for run in mine]
    write_table(folder, "iis_points", points, [shown_point(line) for line in points], points_caption(runs))
    lines = [line for (dataset, bank), mine in found.items() for line in correlations(dataset, bank, mine)]
    print(write_table(folder, "iis_correlations", lines, [shown_correlation(line) for line in lines],
                      correlations_caption(lines)))
    drawn = {}
    for dataset, bank in found:
        drawn.setdefault(f"iis_against_accuracy_{slug(dataset)}", {})[bank] = found[dataset, bank]
        kind = found[dataset, bank][0].summary["bank"]
        if len({other for other, title in found if found[other, title][0].summary["bank"] == kind}) > 1:
            drawn.setdefault(f"iis_against_accuracy_{slug(kind)}", {})[f"{dataset}: {bank}"] = found[dataset, bank]
    for name, panels in drawn.items():
        write_figure(folder, name, scatter(panels))
    print(f"written: {folder}/iis_points.*, iis_correlations.* and as .png and .pdf {', '.join(drawn)}")


def correlations(dataset: str, bank: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line for the finished models and, where there are checkpoints, a second with them.

    Left out of both: models near chance, whose IIS means nothing; of the second: a last checkpoint that is the finished
    model over again.
    """
    finished = [run for run in runs if epoch_of(run.model) is None]
    weights = {run.identity["weights_hash"] for run in finished}
    distinct = [*finished, *(run for run in runs if run not in finished
                             and run.identity["weights_hash"] not in weights)]
    lines = []
    for name, mine in ((FINISHED, finished), (ALL, distinct)):
        usable = [run for run in mine if meaningful(run)]
        if name == ALL and len(distinct) == len(finished):
            continue
        measured = [run.iis for run in usable], [undivided(run) for run in usable], \
            [run.summary["iis_chance_corrected"]["mean"] for run in usable]
        dense = [run.summary["dense"]["mean"] for run in usable]
        line = {"dataset": dataset, "bank": bank, "which": name, "models": len(usable), "nets": nets_of(usable),
                "near_chance": len(mine) - len(usable)}
        for measure, one in beside_accuracy(*measured, dense).items():
            line |= flat(measure, one)
        null = division_null(measured[1], dense)
        lines.append(line | {"division_mean": null and null.mean, "division_low": null and null.low,
                             "division_high": null and null.high})
    return lines


def flat(measure: str, one: Association | None) -> dict[str, Any]:
    """An association as columns that begin with the measure's name; None everywhere below three models."""
    low, high = (one and one.interval) or (None, None)
    return {f"{measure}_rho": one and one.rho, f"{measure}_rho_p": one and one.rho_p,
            f"{measure}_low": low, f"{measure}_high": high, f"{measure}_dropped": one and one.dropped,
            f"{measure}_tau": one and one.tau, f"{measure}_tau_p": one and one.tau_p,
            f"{measure}_null_mean": one and one.null_mean, f"{measure}_null_sd": one and one.null_sd,
            f"{measure}_null_p": one and one.null_p}


def shown_point(line: dict[str, Any]) -> dict[str, Any]:
    """A line of iis_points as people read it."""
    return {"data set": line["dataset"], "bank": line["bank"], "family": line["family"], "model": line["model"],
            "dense top-1, %": plus_minus(100 * line["dense"], line["dense_std"] and 100 * line["dense_std"], 2),
            "IIS": plus_minus(line["iis"], line["iis_std"]), "∫acc ds": f"{line['area']:.4f}",
            "chance-corrected IIS": plus_minus(line["iis_chance_corrected"], line["iis_chance_corrected_std"]),
            "remark": line["warning"]}


def shown_correlation(line: dict[str, Any]) -> dict[str, Any]:
    """A line of iis_correlations as people read it."""
    low, high = line["division_low"], line["division_high"]
    return {"data set": line["dataset"], "bank": line["bank"], "models": f"{line['models']} {line['which']}",
            **{title: _shown(line, measure) for measure, title in MEASURES.items()},
            "from division alone": "-" if low is None else f"{_signed(line['division_mean'])} "
                                                           f"[{_signed(low)}, {_signed(high)}]"}


def _shown(line: dict[str, Any], measure: str) -> str:
    if line["models"] < 3:
        return "none: fewer than 3 models"
    rho, low, high, tau, tau_p, null_p = (line[f"{measure}_{name}"] for name in
                                          ("rho", "low", "high", "tau", "tau_p", "null_p"))
    if rho is None:
        return "none: a constant"
    within = "" if low is None else f" [{_signed(low)}, {_signed(high)}]"
    return f"{_signed(rho)}{within}, p = {null_p:.2g}; τ = {_signed(tau)}, p = {tau_p:.2g}"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def points_caption(runs: Sequence[Run]) -> str:
    """What the points are made of."""
    return (f"IIS and dense top-1 of {models_said(runs)}; mean ± std over {seeds_said(runs)}. The seeds share "
            "backbone and images, so ± tells how far bank and heads move the number, not how far another backbone "
            "would.")


def correlations_caption(lines: Sequence[dict[str, Any]]) -> str:
    """What so few models can and cannot show. lines: of `correlations`."""
    models, nets = max(line["models"] for line in lines), max(line["nets"] for line in lines)
    caption = (
        f"At most {counted(models, 'model')} ({counted(nets, 'independent net')}) in a line, those near chance left "
        "out. Spearman ρ with its 95 % bootstrap interval over models (five or more only; a perfect order has one "
        "without width, which is no certainty) and the two-sided p of permuted models; Kendall τ with its p. These "
        "models are few and were not drawn at random: p and interval speak of them alone, and three cannot give a "
        "permutation p below 0.33, four none below 0.083. IIS divides by the accuracy it is compared with: the last "
        "column is ρ and its 95 % range when the curves acc(s) are divided by dense accuracies permuted over models, "
        "so a ρ(IIS, acc) inside it needs no other explanation.")
    if any(line["which"] == ALL for line in lines):
        caption += (" Checkpoints of one net are not independent models: p and interval of the lines with checkpoints "
                    "are too sure of themselves.")
    return caption


def scatter(panels: dict[str, Sequence[Run]]) -> Any:
    """A figure with a panel per {title: runs}: IIS against dense top-1, families joined, mean ± std over seeds; hollow
    are checkpoints, crosses are models near chance."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = new_figure(5.4 if columns == 1 else 3.5 * columns, 0.9 + 3.1 * rows, rows, columns)
    families = sorted({run.family for runs in panels.values() for run in runs})
    for axes, (title, runs) in zip(grid.flat, panels.items(), strict=False):
        for index, family in enumerate(families):
            _draw(axes, [run for run in runs if run.family == family], COLOURS[index % len(COLOURS)],
                  MARKERS[index % len(MARKERS)], family)
        used = [run for run in runs if meaningful(run) and epoch_of(run.model) is None]
        one = associate([run.iis for run in used], [run.summary["dense"]["mean"] for run in used])
        said = f"{len(used)} finished model{'s' * (len(used) != 1)}"
        if one and one.rho is not None:
            said += f", ρ = {_signed(one.rho)}"
        axes.set_title(f"{title}\n{said}", fontsize=9)
        axes.margins(x=0.25, y=0.12)
        axes.grid(alpha=0.25)
        axes.set_xlabel("dense top-1, %", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)
    for axes in list(grid.flat)[len(panels):]:
        axes.set_axis_off()
    figure.supylabel(f"IIS (of {max(run.summary['span'] for runs in panels.values() for run in runs):g})", fontsize=10)
    labels = {label: handle for axes in grid.flat
              for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _draw(axes: Any, runs: Sequence[Run], colour: str, marker: str, family: str) -> None:
    runs = sorted(runs, key=lambda run: (epoch_of(run.model) or 0, run.summary["dense"]["mean"]))
    finished = [run for run in runs if epoch_of(run.model) is None]
    for kind, mine in (("", finished), (" along pre-training", [run for run in runs if run not in finished])):
        if not mine:
            continue
        x, y = [100 * run.summary["dense"]["mean"] for run in mine], [run.iis for run in mine]
        axes.errorbar(x, y, xerr=[100 * (run.summary["dense"]["std"] or 0) for run in mine],
                      yerr=[run.summary["iis"]["std"] or 0 for run in mine], color=colour, marker=marker,
                      markersize=3.5 if kind else 5, markerfacecolor="white" if kind else colour, elinewidth=0.8,
                      linewidth=0.6 if kind else 1.2, linestyle="--" if kind else "-", label=family + kind)
        near = [place for place, run in enumerate(mine) if not meaningful(run)]
        if near:
            axes.plot([x[place] for place in near], [y[place] for place in near], "x", color="black", markersize=8,
                      label="near chance: IIS means nothing")
        for place, run in enumerate(mine if not kind else []):
            start = min(place, max(len(mine) - 2, 0))  # of the line's piece at this point
            falls = y[min(start + 1, len(mine) - 1)] <= y[start]
            axes.annotate(short_name(run), (x[place], y[place]), xytext=(5, 4 if falls else -9),  # beside the line
                          textcoords="offset points", fontsize=7)


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
