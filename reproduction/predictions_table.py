"""Interpretable predictions (paper, section 4.2, Tables 4 and 5): textual, visual and combined concepts beside dense.

    python reproduction/predictions_table.py --sweep shapes
    python reproduction/predictions_table.py --ratio 0.5 --model_root IP_training/IP_*/resnet20 --save_dir results/out

Accuracy of the interpretation predictor at --ratio, and what it loses against the dense head on the same validation
images. Writes predictions (.csv, .md, .tex). Reads the ledgers; the labels of the validation images, for balanced
accuracy, where they are at hand.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import positive, run_script, setting
from iis.grid import DENSE, check_ratios
from iis.results import LEDGER, read_ledger, select
from iis.runtime import UserError, each
from iis.statistics import bootstrap_means, mean_std
from iis.summary import correct_of
from reproduction.lib.outputs import write_table
from reproduction.lib.points import finished, groups, percent, seeds_of
from reproduction.lib.run_files import balanced_accuracy, labels_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import Estimate, estimate

CONCEPTS = {"Text": "textual", "SpLiCE": "textual", "Prototype": "visual", "Cluster": "visual", "SAE": "visual",
            "NMF": "visual", "PCA": "visual", "End2End": "visual", "Combined": "combined", "Random": "control"}
ORDER = ("textual", "visual", "combined", "other", "control")
CAPTION = ("Interpretation predictors at s = {ratio:g}, %, mean ± std over {seeds}. The difference to the dense head, "
           "in points, is taken image by image and seed by seed; its 95 % interval and p are over seeds and validation "
           "images, p without correction for the number of lines. Without --holdout learning rate and epoch of both "
           "heads were selected on these very images, as the release does. Balanced accuracy (that of the dense head "
           "in brackets) stands where classes are uneven, ? where the labels are not at hand. Random directions are "
           "the control.")


@dataclass(kw_only=True)
class Settings(Source):
    """Which predictors."""

    ratio: float = setting(0.1, "sparsity ratio s of the predictors")
    draws: int = setting(1000, "bootstrap resamples of the images", type=positive)


def main(settings: Settings) -> None:
    """Fold the ledgers into one table."""
    check_ratios([settings.ratio])
    folder = output_folder(settings)
    runs = finished(find_runs(settings, draws=2))  # no bootstrap of the IIS is shown here
    titles = [(run, bank) for (_, bank), mine in groups(runs).items() for run in mine]
    lines, failed = each(lambda pair: line_of(*pair, settings.ratio, settings.draws), titles)
    if not lines:
        raise UserError("; ".join(failed) or "all runs here are variants of another one")
    lines.sort(key=lambda line: (line["dataset"], line["model"], ORDER.index(line["concepts"])))  # stable
    print(write_table(folder, "predictions", lines, [shown(line) for line in lines],
                      CAPTION.format(ratio=settings.ratio, seeds=seeds_of(runs))))
    print(f"written: {folder}/predictions.csv, .md, .tex")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(titles)} runs: {'; '.join(failed)}")


def line_of(run: Run, bank: str, ratio: float, draws: int = 1000) -> dict[str, Any]:
    """One run at a ratio: fractions, mean and std over seeds. Raises `UserError` where the ratio was not trained."""
    chosen, summary = select(read_ledger(run.folder / LEDGER)), run.summary
    rows = pd.DataFrame(chosen.values()).sort_values("seed")
    mine, dense = rows[np.isclose(rows.ratio, ratio)], rows[rows.ratio == DENSE]
    if mine.empty:
        raise UserError(f"{run.folder} has no ratio {ratio:g}; it has {', '.join(f'{s:g}' for s in summary['ratios'])}")
    correct_R1N, base_RN = correct_of(chosen, summary["seeds"], [mine.ratio.iloc[0]])
    correct_RN = correct_R1N[:, 0]
    difference = accuracy_difference(correct_RN, base_RN, draws)
    labels_N = labels_of(run)
    balanced, dense_balanced = (None if labels_N is None else float(np.mean(
        [balanced_accuracy(correct_N, labels_N) for correct_N in some])) for some in (correct_RN, base_RN))
    uneven = None if labels_N is None else bool(np.ptp(np.unique(labels_N, return_counts=True)[1]))
    (accuracy, std), (dense_accuracy, dense_std) = mean_std(mine.top1), mean_std(dense.top1)
    return {"dataset": run.dataset, "model": run.model, "bank": bank,
            "concepts": CONCEPTS.get(summary["bank"], "other"), "ratio": mine.ratio.iloc[0], "seeds": len(mine),
            "num_concepts": summary["num_concepts"], "kept": int(mine.kept.iloc[0]), "dense": dense_accuracy,
            "dense_std": dense_std, "top1": accuracy, "top1_std": std, "top5": mine.top5.mean(),
            "difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high,
            "difference_p": difference.p, "uneven": uneven, "balanced": balanced,
            "dense_balanced": dense_balanced, "marks": "; ".join(run.marks)}


def accuracy_difference(correct_RN: np.ndarray, base_RN: np.ndarray, draws: int = 1000) -> Estimate:
    """Accuracy − base accuracy of R seeds on N images, fractions, over seeds and images. Images that both heads get
    right or wrong tell nothing, so it is surer than the difference of two independent accuracies."""
    difference_RN = np.asarray(correct_RN, float) - np.asarray(base_RN, float)
    return estimate(difference_RN.mean(1), bootstrap_means(difference_RN[:, None], draws)[..., 0])


def shown(line: dict[str, Any]) -> dict[str, Any]:
    """A line as people read it: in percent and points."""
    points = [f"{100 * line[f'difference{end}']:+.1f}" for end in ("", "_low", "_high")]
    balanced = {None: "?", False: "as top-1"}.get(line["uneven"])
    return {"data set": line["dataset"], "model": line["model"], "concepts": line["concepts"], "bank": line["bank"],
            "kept of M": f"{line['kept']} of {line['num_concepts']}",
            "dense top-1": percent(line["dense"], line["dense_std"]),
            "top-1": percent(line["top1"], line["top1_std"]), "top-5": percent(line["top5"]),
            "top-1 − dense [95 %]": "{} [{}, {}]".format(*points), "p": f"{line['difference_p']:.2g}",
            "balanced (dense)": balanced or f"{percent(line['balanced'])} ({percent(line['dense_balanced'])})",
            "marks": line["marks"]}


if __name__ == "__main__":
    run_script(main, Settings)
