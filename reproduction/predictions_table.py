"""Interpretable predictions (paper, section 4.2, Tables 4 and 5): textual, visual and combined concepts beside dense.

    python reproduction/predictions_table.py --sweep shapes
    python reproduction/predictions_table.py --ratio 0.5 --model_root IP_training/IP_*/resnet20 --save_dir results/out

Accuracy of the interpretation predictor at --ratio, and what it loses against the dense head on the same validation
images. Writes predictions (.csv, .md, .tex). Reads the ledgers; the labels of the validation images, for balanced
accuracy, where they are at hand.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import ScriptParser, run_script
from iis.grid import DENSE, check_ratios
from iis.results import LEDGER, read_ledger, select, unpack_correct
from iis.runtime import UserError, each, make_output_folder
from iis.statistics import mean_std
from reproduction.lib.class_balance import balanced_accuracy
from reproduction.lib.outputs import write_table
from reproduction.lib.paired_images import accuracy_difference, mcnemar_p
from reproduction.lib.points import finished, groups, seeds_said
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import plus_minus

CONCEPTS = {"Text": "textual", "Prototype": "visual", "Cluster": "visual", "End2End": "visual",
            "Combined": "combined", "Random": "control"}
ORDER = ("textual", "visual", "combined", "other", "control")


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))
    script.add_argument("--ratio", type=float, default=0.1, help="sparsity ratio s of the predictors")
    return script


def main(args: argparse.Namespace) -> None:
    """Fold the ledgers into one table."""
    check_ratios([args.ratio])
    folder = make_output_folder(output_folder(args))
    runs = finished(find_runs(args, draws=2))  # no bootstrap is shown here
    titles = [(run, bank) for (_, bank), mine in groups(runs).items() for run in mine]
    lines, failed = each(lambda pair: line_of(*pair, args.ratio), titles)
    if not lines:
        raise UserError("; ".join(failed) or "all runs here are variants of another one")
    lines.sort(key=lambda line: (line["dataset"], line["model"], ORDER.index(line["concepts"])))  # stable
    print(write_table(folder, "predictions", lines, [shown(line) for line in lines], caption(args.ratio, runs)))
    print(f"written: {folder}/predictions.csv, .md, .tex")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(titles)} runs: {'; '.join(failed)}")


def line_of(run: Run, bank: str, ratio: float) -> dict[str, Any]:
    """One run at a ratio: fractions, mean and std over seeds. Raises `UserError` where the ratio was not trained."""
    chosen = select(read_ledger(run.folder / LEDGER))
    at = next((have for have in run.summary["ratios"] if np.isclose(have, ratio)), None)
    if at is None:
        have = ", ".join(f"{have:g}" for have in run.summary["ratios"])
        raise UserError(f"{run.folder} has no ratio {ratio:g}; it has {have}")
    rows, dense = ([chosen[seed, which] for seed in run.summary["seeds"]] for which in (at, DENSE))
    count = run.summary["n_val"]
    correct_RN, base_RN = (np.array([unpack_correct(row["hits"], count) for row in some]) for some in (rows, dense))
    difference, error = accuracy_difference(correct_RN, base_RN)
    line: dict[str, Any] = {"dataset": run.summary["dataset"], "model": run.model, "bank": bank,
                            "concepts": CONCEPTS.get(run.summary["bank"], "other"), "ratio": at, "seeds": len(rows),
                            "num_concepts": run.summary["num_concepts"], "kept": rows[0]["kept"]}
    for name, some in (("dense", dense), ("top1", rows)):
        line[name], line[f"{name}_std"] = mean_std([row["top1"] for row in some])
    line |= {"top5": float(np.mean([row["top5"] for row in rows])), "difference": difference,
             "difference_error": error,
             "mcnemar_p_largest": max(mcnemar_p(correct, base) for correct, base in zip(correct_RN, base_RN, strict=True))}
    return line | _balanced(run, correct_RN, base_RN)


def _balanced(run: Run, correct_RN: np.ndarray, base_RN: np.ndarray) -> dict[str, float | bool | None]:
    """Balanced accuracies, None where the labels are not at hand; uneven: whether classes differ in size."""
    try:
        labels_N = images_of(run, "val").labels_N.numpy()
    except UserError:
        return {"uneven": None, "balanced": None, "dense_balanced": None}
    sizes = np.unique(labels_N, return_counts=True)[1]
    return {"uneven": bool(np.ptp(sizes)), **{
        name: float(np.mean([balanced_accuracy(correct, labels_N) for correct in some]))
        for name, some in (("balanced", correct_RN), ("dense_balanced", base_RN))}}


def shown(line: dict[str, Any]) -> dict[str, Any]:
    """A line as people read it: in percent and points."""
    low, high = (100 * (line["difference"] + sign * 1.96 * line["difference_error"]) for sign in (-1, 1))
    balanced = {True: lambda: f"{100 * line['balanced']:.1f} ({100 * line['dense_balanced']:.1f})",
                False: lambda: "as top-1", None: lambda: "?"}[line["uneven"]]()
    return {"data set": line["dataset"], "model": line["model"], "concepts": line["concepts"], "bank": line["bank"],
            "kept of M": f"{line['kept']} of {line['num_concepts']}", "dense top-1": _percent(line, "dense"),
            "top-1": _percent(line, "top1"), "top-5": f"{100 * line['top5']:.1f}",
            "top-1 − dense [95 %]": f"{100 * line['difference']:+.1f} [{low:+.1f}, {high:+.1f}]",
            "McNemar p": f"{line['mcnemar_p_largest']:.2g}", "balanced (dense)": balanced}


def _percent(line: dict[str, Any], name: str) -> str:
    std = line[f"{name}_std"]
    return plus_minus(100 * line[name], None if std is None else 100 * std, 1)


def caption(ratio: float, runs: Sequence[Run]) -> str:
    """What the numbers are."""
    return (f"Interpretation predictors at s = {ratio:g}, %, mean ± std over {seeds_said(runs)}. The difference to the "
            "dense head, in points, is taken image by image (averaged over seeds); its interval is ± 1.96 standard "
            "errors over validation images. Without --holdout learning rate and epoch of both heads were selected on "
            "these very images, as the release does. McNemar p: exact, the largest of the seeds. Balanced accuracy "
            "(that of the dense head in brackets) is told where classes are uneven, ? where the labels are not at "
            "hand. Random directions are the control.")


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
