"""IIS, lift, area over log k and ANEC against dense accuracy along the depth of each network.

    python reproduction/along_depth.py --sweep caltech101_depth

The layers of a network classify better and better, so a few networks give many points; the sweep names them with
`layers`. ANEC comes from what accuracy_at_nec.py --sweep has kept, and is left out where that has not run. Writes
along_depth (every layer), along_depth_rho (how each measure goes with accuracy) as .csv, .md and .tex, and
along_depth_DATASET_BANK.png and .pdf.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import run_script
from iis.names import slug
from iis.runtime import UserError
from reproduction.iis_against_accuracy import per_image, signed
from reproduction.lib.figures import draw_marks, legend_below, style
from reproduction.lib.measures import MEASURES, anec, stored_levels
from reproduction.lib.nec import reached_by_all, rows_of, span
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.points import by_dataset, counted, is_last, plain, point, scores, seeds_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import (
    FEWEST,
    Difference,
    Slope,
    associate,
    holm,
    paired_difference,
    rank_correlation,
    retention_slope,
    rho_of_halves,
    rho_within,
)

Settings = Source
Layers = Sequence[tuple[Run, dict[str, Any]]]  # in the order of `by_depth`, each with its line of the table
SHOWN = ("iis", "lift", "area_log_k", "anec")  # of MEASURES
CAPTION = ("{} of {}, pooled to D numbers; mean ± std over {}; the last of a network is the input of its head. Lift "
           "over Random with its 95 % interval over seeds and validation images. {}")
OF_RHO = (
    "Spearman ρ of each measure and dense top-1 over the layers of {}, without those close to chance. Each network: "
    "mean of the networks' own ρ with Student's 95 % interval over networks, and the two-sided p of exact sign flips, "
    "at least 2 / 2^n for n networks. All layers: ρ of what is left when the mean of its network is taken off each "
    "layer, the measure on one half of the images and dense accuracy on the other (ANEC: both on all); interval of "
    "layers resampled, p of layers permuted, within networks; Holm: corrected for all lines. Layers of a network lie "
    "on one path, along which much else changes (D above all), and the networks are alike: the p of all layers takes "
    "layers for exchangeable and is too small, and nothing here says that accuracy is the cause. Slope: of the "
    "logarithm of measure times dense on that of dense, within networks; 1 where the measure is unrelated to accuracy. "
    "Last layers: ρ between networks, as a table of finished models has it, with the p of permuted networks.")


def main(settings: Settings) -> None:
    """Write both tables and a figure per data set and bank."""
    folder = output_folder(settings)
    runs = [run for run in plain(find_runs(settings)) if run.depth is not None]
    if not runs:
        raise UserError("no model here is one of several layers of a network: take a sweep whose models have `layers`, "
                        "such as caltech101_depth")
    found, (anecs, levels) = by_dataset(runs), anec_of(runs)
    groups: dict[tuple[str, str], Layers] = {
        (dataset, bank): [(run, {**point(run), "layer": run.layer, "depth": run.depth, "last": is_last(run, runs),
                                 "anec": anecs.get(id(run))}) for run in by_depth(mine)]
        for dataset, by_title in found.items() for bank, mine in by_title.items()}
    points = [line for layers in groups.values() for _, line in layers]
    networks = counted(len({run.net for run in runs}), "network")
    print(write_table(folder, "along_depth", points, [for_people(line) for line in points], CAPTION.format(
        counted(len({run.model for run in runs}), "layer"), networks, seeds_of(runs),
        f"ANEC: mean accuracy at NEC {levels}." if levels else "ANEC: not measured (accuracy_at_nec.py).")))
    lines = [{"dataset": dataset, "bank": bank, "measure": measure, **correlation(layers, measure, runs)}
             for (dataset, bank), layers in groups.items() for measure in shown(layers)]
    for line, corrected in zip(lines, holm([line["within_p"] for line in lines]), strict=True):
        line["within_holm_p"] = corrected
    print(write_table(folder, "along_depth_rho", lines, [rho_for_people(line) for line in lines],
                      OF_RHO.format(networks)))
    for (dataset, bank), layers in groups.items():
        write_figure(folder, f"along_depth_{slug(dataset)}_{slug(bank)}", figure_of(f"{dataset}, {bank}", layers))
    print(f"written: {folder}/along_depth.*, along_depth_rho.*, along_depth_DATASET_BANK.png and .pdf")


def by_depth(runs: Sequence[Run]) -> list[Run]:
    """Network by network, in the order of depth."""
    return sorted(runs, key=lambda run: (run.net, run.depth))


def shown(layers: Layers) -> list[str]:
    """The measures that a layer has: a Random bank has no lift."""
    return [measure for measure in SHOWN if any(line[measure] is not None for _, line in layers)]


def anec_of(runs: Sequence[Run]) -> tuple[dict[int, float], str]:
    """{id(run): ANEC} of what accuracy_at_nec.py has kept, over the levels that all runs of the data set with as many
    concepts reach, and these levels in words; nothing for runs of which one is missing."""
    rivals: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        rivals.setdefault(rows_of(run), []).append(run)
    found, words = {}, []
    for mine in rivals.values():
        stored = [stored_levels(run) for run in mine]
        missing = sum(one is None for one in stored)
        levels = [] if missing else reached_by_all(stored)
        if missing < len(mine) and not levels:
            print(f"ANEC is left out: {missing} of {len(mine)} runs lack it; run accuracy_at_nec.py on the same sweep")
        if levels:
            found |= {id(run): anec(run, fit=False, levels=levels) for run in mine}
            words.append(span(levels))
    return found, "; ".join(dict.fromkeys(words))


def for_people(line: dict[str, Any]) -> dict[str, Any]:
    """A line of along_depth as people read it."""
    shown = scores(line)
    return {"data set": line["dataset"], "bank": line["bank"], "network": line["net"],
            "layer": line["layer"], "D": line["width"],
            **{name: shown[name] for name in ("dense top-1, %", "IIS", "lift over Random", "area over log k")},
            "ANEC, %": "" if line["anec"] is None else f"{100 * line['anec']:.1f}", "marks": line["marks"]}


# ---- how each measure goes with dense accuracy ----


def correlation(layers: Layers, measure: str, runs: Sequence[Run]) -> dict[str, Any]:
    """A line of along_depth_rho, of one bank and measure; runs: all of them, for the lift's controls."""
    usable = [(run, line) for run, line in layers if run.meaningful and line[measure] is not None]
    values, dense, nets = ([line[name] for _, line in usable] for name in (measure, "dense", "net"))
    own = {net: rho for net in dict.fromkeys(nets) if (rho := _rho_of(net, values, dense, nets)) is not None}
    over = paired_difference(list(own.values()), [0.0] * len(own)) if own else Difference()
    if not over.std:  # networks that agree exactly have an interval without width, which is no certainty
        over = over._replace(low=None, high=None)
    slope, last = Slope(), [place for place, (_, line) in enumerate(usable) if line["last"]]
    if measure == "anec":  # not kept image by image
        within = rho_of_halves(*(np.array([one], float) for one in (values, dense)), nets)
    else:
        images = [per_image_of(run, measure, runs) for run, _ in usable]
        area_nN, dense_nN = (np.array(one) for one in zip(*images, strict=True)) if images else (np.empty((0, 2)),) * 2
        within = rho_within(area_nN, dense_nN, nets)
        if measure != "lift":  # it may be below 0
            slope = retention_slope(area_nN, dense_nN, nets)
    across = associate([values[place] for place in last], [dense[place] for place in last])
    return {"layers": len(usable), "near_chance": sum(not run.meaningful for run, _ in layers), "networks": len(own),
            "each": " ".join(f"{net}: {signed(rho)}" for net, rho in own.items()),
            **{f"each_{name}": getattr(over, name) for name in ("mean", "low", "high", "sign_flip_p")},
            **{f"within_{name}": value for name, value in within.items()},
            **{f"slope_{name}".replace("slope_slope", "slope"): value for name, value in slope._asdict().items()},
            "last": len(last), **{f"last_{name}": across[name] for name in ("rho", "low", "high", "null_p")}}


def _rho_of(net: str, values: Sequence[float], dense: Sequence[float], nets: Sequence[str]) -> float | None:
    """ρ of one network; None below three layers, or where a measure is constant."""
    x_n, y_n = (np.array([[value for value, of in zip(one, nets, strict=True) if of == net]])
                for one in (values, dense))
    rho = rank_correlation(x_n, y_n)[0] if x_n.size >= FEWEST else np.nan
    return float(rho) if np.isfinite(rho) else None


def per_image_of(run: Run, measure: str, runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """What each validation image adds to measure times dense, and to dense, (N,) each. A lift is the difference of two
    IIS with the same dense heads."""
    area_N, dense_N = per_image(run, over_k=measure == "area_log_k")
    if measure == "lift":
        control = next(other for other in runs if other.folder.resolve() == Path(run.lift.control).resolve())
        area_N = area_N - per_image(control)[0]
    return area_N, dense_N


def rho_for_people(line: dict[str, Any]) -> dict[str, Any]:
    """A line of along_depth_rho as people read it."""
    def text(value: str, low: str, high: str, *more: str) -> str:
        if line[value] is None:
            return "none"
        within = "" if line[low] is None else f" [{signed(line[low])}, {signed(line[high])}]"
        return signed(line[value]) + within + "".join(more)

    def p(name: str, what: str = "p") -> str:
        return "" if line[name] is None else f", {what} = {line[name]:.2g}"

    return {"data set": line["dataset"], "bank": line["bank"], "measure": MEASURES[line["measure"]][0],
            "layers": line["layers"],
            "each network": text("each_mean", "each_low", "each_high", p("each_sign_flip_p"))
            + (f" ({line['networks']})" if line["each_mean"] is not None else ""),
            "all layers": text("within_rho", "within_low", "within_high", p("within_p"),
                               p("within_holm_p", "Holm p")),
            "slope": "" if line["slope"] is None else text("slope", "slope_low", "slope_high", p("slope_p")),
            "last layers": text("last_rho", "last_low", "last_high", p("last_null_p")) + f" ({line['last']})"}


# ---- the figure ----


def figure_of(title: str, layers: Layers) -> Any:
    """A panel per measure against dense top-1, a line per network in the order of depth; ringed are the last layers,
    which are the plot across networks. Bars are std over seeds, of the lift its interval."""
    measures, nets = shown(layers), list(dict.fromkeys(run.net for run, _ in layers))
    columns = min(2, len(measures))
    rows = ceil(len(measures) / columns)
    figure, grid = new_figure(4.2 * columns, 3.2 * rows + 1, rows, columns)
    axes = list(grid.ravel())
    for one in axes[len(measures):]:
        one.remove()
    for one, measure in zip(axes, measures, strict=False):
        drawn = [(run, line) for run, line in layers if line[measure] is not None]
        unit = 100 if measure == "anec" else 1  # percent, as dense top-1
        places = {id(run): (100 * run.dense, unit * line[measure]) for run, line in drawn}
        for net, group in groupby(drawn, key=lambda layer: layer[0].net):
            mine = list(group)
            one.errorbar(*zip(*(places[id(run)] for run, _ in mine), strict=True), _bars(mine, measure), label=net,
                         markersize=4.5, elinewidth=0.8, linewidth=1.2, **style(nets.index(net)))
        one.plot(*zip(*(places[id(run)] for run, line in drawn if line["last"]), strict=True), "o", markersize=11,
                 markerfacecolor="none", color="black", label="last layer")
        draw_marks(one, [run for run, _ in drawn], lambda run, places=places: places[id(run)])
        one.grid(alpha=0.25)
        one.set(xlabel="dense top-1, %", ylabel=MEASURES[measure][0] + ", %" * (unit > 1))
    figure.suptitle(f"{title}: along depth", fontsize=11)
    legend_below(figure, axes[:len(measures)], 3)
    return figure


def _bars(layers: Layers, measure: str) -> Any:
    """What `errorbar` draws: std over seeds; below and above a lift, to the ends of its interval; none for ANEC."""
    lines = [line for _, line in layers]
    if measure == "lift":
        ends = np.array([[line["lift"] - line["lift_low"], line["lift_high"] - line["lift"]] for line in lines])
        return ends.T.clip(0)
    return None if measure == "anec" else [line[f"{measure}_std"] or 0 for line in lines]


if __name__ == "__main__":
    run_script(main, Settings)
