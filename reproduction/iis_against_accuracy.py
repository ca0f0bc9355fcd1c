"""IIS against dense accuracy over models, per bank and per data set (paper, Figures 3 and 4), and how sure it is.

    python reproduction/iis_against_accuracy.py --sweep shapes
    python reproduction/iis_against_accuracy.py --model_root IP_training/IP_Prototype --save_dir results/fig3

Writes iis_points (every model), iis_correlations (a line per bank and data set) and, where several families have
several models, iis_families (spread between the nets of each) as .csv, .md and .tex; and a scatter plot per data set
with a panel per bank as .png and .pdf.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import run_script
from iis.equations import area, area_log_k
from iis.names import slug
from iis.results import LEDGER, read_ledger, select
from iis.statistics import mean_std, plus_minus
from iis.summary import correct_of
from reproduction.lib.figures import draw_marks, legend_below, panels, style
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import (
    by_dataset,
    counted,
    families_of,
    is_last,
    models_of,
    nets_of,
    percent,
    plain,
    point,
    replicate,
    scores,
    seeds_of,
)
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import Slope, associate, retention_slope, rho_within

MEASURES = {"iis": "ρ(IIS, acc)", "area": "ρ(∫acc ds, acc)", "corrected": "ρ(chance-corrected IIS, acc)"}
FINISHED, ALL, LAYERS = "finished", "with checkpoints", "with earlier layers"
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
    "alone, and three cannot give a permutation p below 0.33, four none below 0.083. Slope: b of log ∫acc ds on log "
    "dense with Student's 95 % interval and the p of b = 1, which is an IIS unrelated to accuracy (below 1, the IIS "
    "falls as accuracy rises); log dense of one half of the images serves as the instrument of the other half, so that "
    "chance in the divisor makes no slope. No slope of fewer than five models, of checkpoints, or where chance is more "
    "than half of the variance of log dense.")
ALONG = (" Checkpoints or layers of one net are not independent models: p and interval of the lines with them are too "
         "small.")
ALIKE = (" Models of a family are alike. Intervals of ρ over all models resample them within their family; p and the "
         "slope take them for independent, and are surer than the few families allow: what differs between families "
         "may be anything, not only accuracy.")
WITHIN = (" Within families: each family's mean is taken off, the IIS is of one half of the images and dense accuracy "
          "of the other; interval of models resampled, p of models permuted, within families.")
OF_FAMILIES = ("{}, ± is the standard deviation between the models of a family, [lowest, highest]; within a model: "
               "root mean square of the standard deviations over {}.")


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
                      CAPTION.format(*most) + ALONG * any(line["which"] != FINISHED for line in lines)
                      + ALIKE * any("within_rho" in line for line in lines)
                      + WITHIN * any(line.get("within_rho") is not None for line in lines)))
    of_families = [line for dataset, by_title in found.items() for bank, mine in by_title.items()
                   for line in family_lines(dataset, bank, mine)]
    if of_families:
        print(write_table(folder, "iis_families", of_families, [family_for_people(line) for line in of_families],
                          OF_FAMILIES.format(models_of(runs), seeds_of(runs))))
    for dataset, by_title in found.items():
        write_figure(folder, f"iis_against_accuracy_{slug(dataset)}", scatter(by_title, dataset))
    print(f"written: {folder}/iis_points.*, iis_correlations.* and iis_against_accuracy_DATASET.png, .pdf")


def correlations(dataset: str, bank: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line for the finished models and, where there are checkpoints or earlier layers, a second with them.

    Left out of both: models close to chance, whose IIS means nothing; of the second: a last checkpoint that is the
    finished model over again.
    """
    finished, layers = finished_of(runs), [run for run in runs if run.epoch is None and not is_last(run, runs)]
    weights = {run.identity["weights_hash"] for run in finished}
    distinct = finished + layers + [run for run in runs if run.epoch is not None
                                    and run.identity["weights_hash"] not in weights]
    lines, everything = [], LAYERS if layers else ALL
    for name, mine in ((FINISHED, finished), (everything, distinct))[:1 + (len(distinct) > len(finished))]:
        usable = [run for run in mine if run.meaningful]
        dense, families = [run.dense for run in usable], families_of(usable)
        labels = [run.family for run in usable] if families and name == FINISHED else None
        line = {"dataset": dataset, "bank": bank, "which": name, "models": len(usable), "nets": nets_of(usable),
                "near_chance": len(mine) - len(usable)}
        for measure in MEASURES:
            one = associate([getattr(run, measure) for run in usable], dense, families=labels)
            line |= {f"{measure}_{key}": value for key, value in one.items()}
        images = [per_image(run) for run in usable] if name == FINISHED else []
        area_nN, dense_nN = (np.array(values) for values in zip(*images, strict=True)) if images else ([], [])
        slopes = {"slope": retention_slope(area_nN, dense_nN) if images else Slope()}
        if labels:
            slopes["within_slope"] = retention_slope(area_nN, dense_nN, labels)
            line |= {f"within_{key}": value for key, value in rho_within(area_nN, dense_nN, labels).items()}
        for measure, slope in slopes.items():
            line |= {measure if key == "slope" else f"{measure}_{key}": value for key, value in slope._asdict().items()}
        lines.append(line | {
            "marks": "; ".join(f"{run.model}: {', '.join(run.marks)}" for run in mine if run.marks)})
    return lines


def finished_of(runs: Sequence[Run]) -> list[Run]:
    """Without checkpoints and layers before the last: a network counts once."""
    return [run for run in runs if run.epoch is None and is_last(run, runs)]


def per_image(run: Run, over_k: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What each validation image adds to ∫ acc(s) ds and to dense accuracy, (N,) each, means over seeds: their means
    over images are `run.area` and `run.dense`. over_k: the area is taken over log k, not over s."""
    chosen, ratios = select(read_ledger(run.folder / LEDGER)), run.summary["ratios"]
    correct_RSN, dense_RN = correct_of(chosen, run.summary["seeds"], ratios)
    curve_NS = correct_RSN.mean(0).T
    return area_log_k(run.summary["kept"], curve_NS) if over_k else area(ratios, curve_NS), dense_RN.mean(0)


def family_lines(dataset: str, bank: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line per family of `families_of` the finished models that are not close to chance: spread between its models
    beside that over seeds within a model."""
    lines = []
    for family, mine in families_of([run for run in finished_of(runs) if run.meaningful]).items():
        line = {"dataset": dataset, "bank": bank, "family": family, "models": len(mine)}
        for measure in ("dense", "iis", "corrected"):
            values = [getattr(run, measure) for run in mine]
            line |= dict(zip((f"{measure}_{name}" for name in ("mean", "std", "low", "high")),
                             (*mean_std(values), min(values), max(values)), strict=True))
        within = [run.summary["iis"]["std"] for run in mine]
        lines.append(line | {"iis_seed_std": None if None in within else float(np.mean(np.square(within)) ** 0.5)})
    return lines


def family_for_people(line: dict[str, Any]) -> dict[str, Any]:
    """A line of iis_families as people read it."""
    dense_low, dense_high = (percent(line[f"dense_{name}"]) for name in ("low", "high"))
    return {"data set": line["dataset"], "bank": line["bank"], "family": line["family"], "models": line["models"],
            "dense top-1, %": f"{percent(line['dense_mean'], line['dense_std'])} [{dense_low}, {dense_high}]",
            "IIS": f"{plus_minus(line['iis_mean'], line['iis_std'])} [{line['iis_low']:.4f}, {line['iis_high']:.4f}]",
            "within a model": "" if line["iis_seed_std"] is None else f"± {line['iis_seed_std']:.4f}",
            "chance-corrected IIS": plus_minus(line["corrected_mean"], line["corrected_std"])}


def for_people(line: dict[str, Any]) -> dict[str, Any]:
    """A line of iis_correlations as people read it."""
    def text(measure: str) -> str:
        rho, low, high, tau, tau_p, null_p = (line[f"{measure}_{name}"] for name in
                                              ("rho", "low", "high", "tau", "tau_p", "null_p"))
        if rho is None:
            return "none: fewer than 3 models" if line["models"] < 3 else "none: constant or undefined"
        within = "" if low is None else f" [{signed(low)}, {signed(high)}]"
        return f"{signed(rho)}{within}, p = {null_p:.2g}; τ = {signed(tau)}, p = {tau_p:.2g}"

    def slope(measure: str) -> str:
        low, high, p = (line[f"{measure}_{name}"] for name in ("low", "high", "p"))
        if line[measure] is not None:
            return f"{signed(line[measure])} [{signed(low)}, {signed(high)}], p = {p:.2g}"
        return ("none: " + line["which"].removeprefix("with ") if line["which"] != FINISHED else "none: too few models"
                if line[f"{measure}_reliable"] is None else "none: dense accuracies differ by chance")

    within = {}
    if line.get("within_rho") is not None:
        rho, low, high, p = (line[f"within_{name}"] for name in ("rho", "low", "high", "p"))
        within = {"within families": f"ρ = {signed(rho)} [{signed(low)}, {signed(high)}], p = {p:.2g}; slope "
                                     + slope("within_slope")}
    return {"data set": line["dataset"], "bank": line["bank"], "models": f"{line['models']} {line['which']}",
            **{title: text(measure) for measure, title in MEASURES.items()},
            "slope (1: unrelated)": slope("slope"), **within,
            "marks": line["marks"]}


def signed(value: float) -> str:
    """Two digits, a true minus, no −0.00."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def scatter(found: dict[str, Sequence[Run]], title: str = "") -> Any:
    """A figure with a panel per {title: runs}: IIS against dense top-1, families joined, and models named, unless
    they are one net trained again; mean ± std over seeds; hollow are checkpoints, marks are those of the runs."""
    figure, axes = panels(len(found), f"{title}: IIS against dense accuracy".removeprefix(": "))
    families = sorted({run.family for runs in found.values() for run in runs})
    again = {run.family for runs in found.values() for run in runs if replicate(run)}
    for one, (name, runs) in zip(axes, found.items(), strict=True):
        runs = sorted(runs, key=lambda run: (run.epoch or 0, run.dense))
        for place, family in enumerate(families):
            mine = [run for run in runs if run.family == family]
            loose = {"linestyle": "none"} if family in again else {}
            _draw(one, [run for run in mine if run.epoch is None], style(place) | loose, family)
            _draw(one, [run for run in mine if run.epoch is not None], style(place) | HOLLOW,
                  f"{family} along pre-training")
        draw_marks(one, runs, lambda run: (100 * run.dense, run.iis))
        used = [run for run in finished_of(runs) if run.meaningful]
        for run in (run for run in runs if run.epoch is None and run.family not in again):
            one.annotate(short_name(run), (100 * run.dense, run.iis), xytext=(5, 4), textcoords="offset points",
                         fontsize=7)
        # Over families of several models one ρ would call what differs between families an effect of accuracy.
        rho = None if families_of(used) else associate([run.iis for run in used], [run.dense for run in used])["rho"]
        one.set_title(f"{name}\n{counted(len(used), 'finished model')}"
                      + ("" if rho is None else f", ρ = {signed(rho)}"), fontsize=9)
        one.margins(x=0.25, y=0.12)
        one.set_xlabel("dense top-1, %", fontsize=8)
        one.tick_params(labelsize=8)
        one.locator_params(axis="x", nbins=5)
    figure.supylabel(f"IIS (of {max(run.summary['span'] for runs in found.values() for run in runs):g})", fontsize=10)
    legend_below(figure, axes)
    return figure


def short_name(run: Run) -> str:
    """A model without the name of its family: "50" of resnet50, "025_128" of mobilenet_v1_025_128, MobileNet V1."""
    family = r"[\W_]*".join(re.findall(r"[^\W_]", run.family))
    return re.sub(rf"^{family}[\W_]*", "", run.model, flags=re.IGNORECASE) or run.model


def _draw(axes: Any, runs: Sequence[Run], look: dict[str, Any], label: str) -> None:
    if runs:
        axes.errorbar([100 * run.dense for run in runs], [run.iis for run in runs], label=label, elinewidth=0.8,
                      xerr=[100 * (run.summary["dense"]["std"] or 0) for run in runs], linewidth=1,
                      yerr=[run.summary["iis"]["std"] or 0 for run in runs], **{"markersize": 5, **look})


if __name__ == "__main__":
    run_script(main, Settings)
