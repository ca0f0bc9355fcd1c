"""Do contributions tell which concepts a prediction rests on? Order curves of removal: most, least important, random.

    python reproduction/faithfulness.py --sweep shapes
    python reproduction/faithfulness.py --model_root IP_training/IP_Text/shapes_large --save_dir results/faithfulness

Kept concepts are set to 0 one after another: those that speak most for the predicted class first, those that speak
most against it first, or in random order. Writes faithfulness.csv, .md, .tex (areas under the curves),
faithfulness_curves.csv and faithfulness.png, .pdf. About a second a seed on 2,000 images.

What it shows: how much faster a prediction falls when it loses the concepts its explanation names first, and so on how
few concepts it rests. What it cannot show: the head is linear, so contributions are exact by construction and the order
`most` beats `random` unless something is broken; nothing here says that a concept means what its image or word
suggests, or what the backbone would make of an image without it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis import plots
from iis.cli import ScriptParser, count, positive, run_script
from iis.runtime import UserError, each, make_output_folder, numpy_rng, write_text
from iis.statistics import interval, mean_std
from reproduction.lib.points import finished
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import as_csv, plus_minus

PANELS = 18  # of the figure
COLOURS = {"most": plots.COLOURS[1], "random": "0.5", "least": plots.COLOURS[0]}
SAID = {"most": "most important first", "random": "random order", "least": "least important first"}


def parser() -> ScriptParser:
    """The flags of this script."""
    from reproduction.lib.removal import REFERENCES

    script = add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))
    script.add_argument("--ratio", type=float, help="sparsity ratio s (default: the sparsest that keeps at least 5 "
                      "concepts, for each run its own)")
    script.add_argument("--reference", choices=REFERENCES, default="runner_up", help="importance of a concept: what it "
                      "gives the predicted class rather than the runner-up, or than the other classes on average")
    script.add_argument("--random_orders", type=positive, default=5, help="seeded random orders that are averaged")
    script.add_argument("--max_images", type=count, default=0, help="only the first N of the seeded-shuffled "
                      "validation images; 0 for all")
    script.add_argument("--draws", type=positive, default=1000, help="bootstrap resamples of the images")
    return script


def main(args: argparse.Namespace) -> Path:
    """Measure every run that has predictors and features; returns the output folder."""
    from reproduction.lib.outputs import write_figure, write_table

    folder = make_output_folder(output_folder(args))
    results, failed = each(lambda run: measure(run, args), finished(find_runs(args, draws=2)))
    for sentence in failed:
        print(f"left out: {sentence}")
    if not results:
        raise UserError(f"no run has predictors and features to remove concepts from; the first said: {failed[0]}")
    lines = [{**result["line"], **result["areas"]} for result in results]
    shown = [{**result["line"], **result["shown"]} for result in results]
    print(write_table(folder, "faithfulness", lines, shown, CAPTION.format(
        reference=REFERENCES_SAID[args.reference], orders=args.random_orders)))
    write_text(folder / "faithfulness_curves.csv", as_csv([line for result in results for line in result["curves"]]))
    if len(results) > PANELS:
        print(f"faithfulness.png shows the first {PANELS} of {len(results)} runs; the tables hold all")
    write_figure(folder, "faithfulness", figure(results[:PANELS]))
    print(f"written: {folder}/faithfulness.csv, .md, .tex, .png, .pdf, faithfulness_curves.csv")
    return folder


CAPTION = ("Area under the probability of the predicted class (and under top-1), from none to all of the kept concepts "
           "removed: first those that speak most for the predicted class against the {reference}, first those that "
           "speak least for it, and the mean of {orders} random orders. Changed by one removal: share of the "
           "predictions that become another class without their single most important concept. Mean ± std over seeds; "
           "in brackets the 95 % bootstrap interval over validation images. The head is linear, so contributions are "
           "exact by construction; the table tells how few concepts predictions rest on, not what the concepts mean.")
CHANGED = "changed by one removal"
GAPS = ("probability, random − most", "top-1, random − most")
REFERENCES_SAID = {"runner_up": "runner-up", "mean": "mean of the other classes"}


def measure(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """One run, all its seeds: `line` (what it is), `areas` (numbers), `shown` (as read), `curves` (for the figure)."""
    from reproduction.lib.explanation import load_predictor
    from reproduction.lib.removal import bootstrap_means, order_curves
    from reproduction.lib.run_files import images_of

    val = images_of(run, "val")
    rows = numpy_rng("faithfulness pictures").permutation(len(val))[:args.max_images or None]
    features_ND, labels_N = val.features_ND[rows].float(), val.labels_N[rows]
    predictors = [load_predictor(run.folder, seed, args.ratio) for seed in seeds_of(run.folder)]
    curves = [order_curves(predictor, features_ND, labels_N, args.reference, args.random_orders)
              for predictor in predictors]
    first = predictors[0]
    line = {"model": run.model, "data set": run.identity["dataset"], "bank": run.identity["bank"],
            "elements": run.elements, "setting": run.variant or run.folder.name, "M": len(first.bank_MD),
            "s": first.ratio, "kept": first.kept, "seeds": len(predictors), "pictures": len(rows)}
    of_seeds = [quantities(one) for one in curves]
    drawn = bootstrap_means(np.mean([list(one.values()) for one in of_seeds], axis=0), args.draws)
    areas, shown = {}, {}
    for k, name in enumerate(of_seeds[0]):
        mean, std = mean_std([one[name].mean() for one in of_seeds])
        low, high = interval(drawn[:, k])
        areas |= {name: mean, f"{name}, std": std, f"{name}, low": low, f"{name}, high": high}
        shown[name] = plus_minus(mean, std, 3) + (f" [{low:.3f}, {high:.3f}]" if name in (CHANGED, *GAPS) else "")
    return {"line": line, "areas": areas, "shown": shown, "curves": curve_lines(line, curves)}


def quantities(curves: Any) -> dict[str, np.ndarray]:
    """What is averaged over images, each (N,): areas, their gaps, and whether one removal changes the prediction."""
    from reproduction.lib.removal import ORDERS

    found = {CHANGED: curves.changed_N}
    for what, gap, area_ON in zip(("probability", "top-1"), GAPS, curves.areas(), strict=True):
        found |= {f"{what}, {order}": area_N for order, area_N in zip(ORDERS, area_ON, strict=True)}
        found[gap] = found[f"{what}, random"] - found[f"{what}, most"]
    return found


def seeds_of(folder: Path) -> list[int]:
    """The seeds with a stored predictor. Raises `UserError` where there is none."""
    files = sorted((folder / "predictors").glob("seed_*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no predictors/; run its training script again")
    return sorted(int(file.stem.rpartition("_")[2]) for file in files)


def curve_lines(line: dict[str, Any], curves: list[Any]) -> list[dict[str, Any]]:
    """A line for every order and step, means over seeds and images. Banks of different size over seeds (Text) have
    different steps: their curves are read at those of the first."""
    from reproduction.lib.removal import ORDERS

    steps_F = curves[0].share_F

    def mean_of(name: str) -> np.ndarray:
        return np.mean([[np.interp(steps_F, one.share_F, curve_F) for curve_F in getattr(one, name).mean(2)]
                        for one in curves], axis=0)

    probability_OF, right_OF = mean_of("probability_OFN"), mean_of("right_OFN")
    named = {key: line[key] for key in ("model", "data set", "bank", "setting", "M", "s", "kept")}
    return [{**named, "order": order, "removed": float(share), "probability": float(probability_OF[o, f]),
             "top-1": float(right_OF[o, f])}
            for o, order in enumerate(ORDERS) for f, share in enumerate(steps_F)]


def figure(results: list[dict[str, Any]], columns: int = 3) -> Any:
    """A panel a run: probability of the predicted class (solid) and top-1 (dashed) against the share removed."""
    from matplotlib.lines import Line2D

    from reproduction.lib.outputs import new_figure

    columns = min(columns, len(results))
    rows = -(-len(results) // columns)
    drawing, axes = new_figure(max(3.4 * columns, 4.6), 2.7 * rows + 0.7, rows, columns, sharex=True, sharey=True)
    for axis in axes.flat[len(results):]:
        axis.axis("off")
    for axis, result in zip(axes.flat, results, strict=False):
        line = result["line"]
        for order, colour in COLOURS.items():
            points = [point for point in result["curves"] if point["order"] == order]
            for what, style in (("probability", "-"), ("top-1", "--")):
                axis.plot([100 * point["removed"] for point in points], [100 * point[what] for point in points], style,
                          color=colour, linewidth=1.5)
        kept = f"{line['kept']} of {line['M']} kept"
        axis.set_title(f"{line['model']}, {line['bank']}\n{line['setting']}, {kept}", fontsize=8, parse_math=False)
        axis.set(xlim=(0, 100), ylim=(0, 100))
    for axis in axes[:, 0]:
        axis.set_ylabel("%")
    for axis in axes.flat[max(len(results) - columns, 0):len(results)]:  # those with no panel below
        axis.set_xlabel("kept concepts removed, %")
        axis.tick_params(labelbottom=True)
    handles = [Line2D([], [], color=colour, label=SAID[order]) for order, colour in COLOURS.items()]
    handles += [Line2D([], [], color="black", linestyle=style, label=label)
                for label, style in (("probability of the predicted class", "-"), ("top-1", "--"))]
    drawing.legend(handles=handles, loc="outside lower center", ncols=min(columns + 1, 3), fontsize=8, frameon=False)
    return drawing


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
