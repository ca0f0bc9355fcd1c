"""IIS against dense accuracy over models, per bank and per data set (paper, Figures 3 and 4), and how sure it is.

    python reproduction/iis_against_accuracy.py --sweep shapes
    python reproduction/iis_against_accuracy.py --model_root IP_training/IP_Prototype --save_dir results/fig3

Writes iis_points (every model), iis_correlations (a line per bank and data set) as .csv, .md and .tex, and a scatter
plot per data set with a panel per bank as .png and .pdf.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script
from iis.names import slug
from reproduction.lib.figures import draw_marks, legend_below, panels, style
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import by_dataset, counted, models_of, nets_of, plain, point, scores, seeds_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import associate, division_null

MEASURES = {"iis": "ρ(IIS, acc)", "area": "ρ(∫acc ds, acc)", "corrected": "ρ(chance-corrected IIS, acc)"}
ALL, FINISHED = "with checkpoints", "finished"
HOLLOW = {"linestyle": "--", "markerfacecolor": "white", "markersize": 3.5}
Settings = Source
OF_POINTS = ("IIS and dense top-1 of {}; mean ± std over {}. The seeds share backbone and images, so ± is the spread "
             "of bank and heads, not of other backbones. Area over log k: of ARR, 1 where it never falls. Lift over "
             "Random: mean difference to the IIS of the Random run of the same features, M and seeds, with its 95 % "
             "interval over seeds and validation images; empty where there is none.")
CAPTION = (
    "At most {} ({}) in a line, without those close to chance. Spearman ρ with its 95 % bootstrap interval over models "
    "(five or more only; a perfect order has one without width, which is no certainty) and the two-sided p of permuted "
    "models; Kendall τ with its p. These models are few and were not drawn at random: p and interval hold for them "
    "alone, and three cannot give a permutation p below 0.33, four none below 0.083. IIS divides by the accuracy it is "
    "compared with: from division alone, when the curves acc(s) are divided by dense accuracies permuted over models, "
    "comes the ρ of the last column but one with its 95 % range; a ρ(IIS, acc) inside it needs no other explanation.")
ALONG = (" Checkpoints of one net are not independent models: p and interval of the lines with checkpoints are too "
         "small.")


def main(settings: Settings) -> None:
    """Write both tables and all scatter plots."""
    folder = output_folder(settings)
    runs = plain(find_runs(settings))
    found = by_dataset(runs)
    points = [point(run) for run in runs]
    people = [{"data set": line["dataset"], "bank": line["bank"], "family": line["family"], "model": line["model"],
               **scores(line)} for line in points]
    write_table(folder, "iis_points", points, people, OF_POINTS.format(models_of(runs), seeds_of(runs)))
    lines = [line for dataset, by_title in found.items() for bank, mine in by_title.items()
             for line in correlations(dataset, bank, mine)]
    most = (counted(max(line[name] for line in lines), what)
            for name, what in (("models", "model"), ("nets", "independent net")))
    print(write_table(folder, "iis_correlations", lines, [for_people(line) for line in lines],
                      CAPTION.format(*most) + ALONG * any(line["which"] == ALL for line in lines)))
    for dataset, by_title in found.items():
        write_figure(folder, f"iis_against_accuracy_{slug(dataset)}", scatter(by_title, dataset))
    print(f"written: {folder}/iis_points.*, iis_correlations.* and iis_against_accuracy_DATASET.png, .pdf")


def correlations(dataset: str, bank: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line for the finished models and, where there are checkpoints, a second with them.

    Left out of both: models close to chance, whose IIS means nothing; of the second: a last checkpoint that is the
    finished model over again.
    """
    finished = [run for run in runs if run.epoch is None]
    weights = {run.identity["weights_hash"] for run in finished}
    distinct = finished + [run for run in runs if run.epoch is not None and run.identity["weights_hash"] not in weights]
    lines = []
    for name, mine in ((FINISHED, finished), (ALL, distinct))[:1 + (len(distinct) > len(finished))]:
        usable = [run for run in mine if run.meaningful]
        dense = [run.dense for run in usable]
        line = {"dataset": dataset, "bank": bank, "which": name, "models": len(usable), "nets": nets_of(usable),
                "near_chance": len(mine) - len(usable)}
        for measure in MEASURES:
            one = associate([getattr(run, measure) for run in usable], dense)
            line |= {f"{measure}_{key}": value for key, value in one.items()}
        null = division_null([run.area for run in usable], dense)
        lines.append(line | dict(zip(("division_mean", "division_low", "division_high"), null, strict=True)) | {
            "marks": "; ".join(f"{run.model}: {', '.join(run.marks)}" for run in mine if run.marks)})
    return lines


def for_people(line: dict[str, Any]) -> dict[str, Any]:
    """A line of iis_correlations as people read it."""
    def text(measure: str) -> str:
        rho, low, high, tau, tau_p, null_p = (line[f"{measure}_{name}"] for name in
                                              ("rho", "low", "high", "tau", "tau_p", "null_p"))
        if rho is None:
            return "none: fewer than 3 models" if line["models"] < 3 else "none: constant or undefined"
        within = "" if low is None else f" [{signed(low)}, {signed(high)}]"
        return f"{signed(rho)}{within}, p = {null_p:.2g}; τ = {signed(tau)}, p = {tau_p:.2g}"

    mean, low, high = (line[f"division_{name}"] for name in ("mean", "low", "high"))
    return {"data set": line["dataset"], "bank": line["bank"], "models": f"{line['models']} {line['which']}",
            **{title: text(measure) for measure, title in MEASURES.items()},
            "from division alone": "-" if low is None else f"{signed(mean)} [{signed(low)}, {signed(high)}]",
            "marks": line["marks"]}


def signed(value: float) -> str:
    """Two digits, a true minus, no −0.00."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def scatter(found: dict[str, Sequence[Run]], title: str = "") -> Any:
    """A figure with a panel per {title: runs}: IIS against dense top-1, families joined, mean ± std over seeds; hollow
    are checkpoints, marks are those of the runs."""
    figure, axes = panels(len(found), f"{title}: IIS against dense accuracy".removeprefix(": "))
    families = sorted({run.family for runs in found.values() for run in runs})
    for one, (name, runs) in zip(axes, found.items(), strict=True):
        runs = sorted(runs, key=lambda run: (run.epoch or 0, run.dense))
        for place, family in enumerate(families):
            mine = [run for run in runs if run.family == family]
            _draw(one, [run for run in mine if run.epoch is None], style(place), family)
            _draw(one, [run for run in mine if run.epoch is not None], style(place) | HOLLOW,
                  f"{family} along pre-training")
        draw_marks(one, runs, lambda run: (100 * run.dense, run.iis))
        used = [run for run in runs if run.meaningful and run.epoch is None]
        for run in (run for run in runs if run.epoch is None):
            short = run.model.removeprefix(run.family).lstrip("_-:") or run.model  # 50 of resnet50
            one.annotate(short, (100 * run.dense, run.iis), xytext=(5, 4), textcoords="offset points", fontsize=7)
        rho = associate([run.iis for run in used], [run.dense for run in used])["rho"]
        one.set_title(f"{name}\n{counted(len(used), 'finished model')}"
                      + ("" if rho is None else f", ρ = {signed(rho)}"), fontsize=9)
        one.margins(x=0.25, y=0.12)
        one.set_xlabel("dense top-1, %", fontsize=8)
        one.tick_params(labelsize=8)
        one.locator_params(axis="x", nbins=5)
    figure.supylabel(f"IIS (of {max(run.summary['span'] for runs in found.values() for run in runs):g})", fontsize=10)
    legend_below(figure, axes)
    return figure


def _draw(axes: Any, runs: Sequence[Run], look: dict[str, Any], label: str) -> None:
    if runs:
        axes.errorbar([100 * run.dense for run in runs], [run.iis for run in runs], label=label, elinewidth=0.8,
                      xerr=[100 * (run.summary["dense"]["std"] or 0) for run in runs], linewidth=1,
                      yerr=[run.summary["iis"]["std"] or 0 for run in runs], **{"markersize": 5, **look})


if __name__ == "__main__":
    run_script(main, Settings)
