"""How few concepts make up a logit: NCC (M-CBM, arXiv 2603.07343) of every head, at every sparsity ratio.

    python reproduction/ncc.py --sweep shapes
    python reproduction/ncc.py --model_root IP_training/IP_*/resnet20 --save_dir results/ncc

Needs the runs' predictors/ and their validation features; nothing is trained. lib/ncc.py has the formula. The dense
head, in its own D dimensions, is the reference. Writes ncc (.csv, .md, .tex). The time goes with images × classes × (M
or D): seconds a run for ten classes, minutes for 101 and D = 1280, unless --max_images is set.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import count, part, positive, run_script, setting
from iis.grid import DENSE
from iis.runtime import UserError, each, numpy_rng, progress
from iis.statistics import bootstrap_means, interval, mean_std, over_seeds, plus_minus
from reproduction.lib.ncc import SHARE, contributing_concepts, head_of
from reproduction.lib.outputs import write_table
from reproduction.lib.points import finished, groups, seeds_of
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder

CAPTION = ("NCC: fewest concepts with {:g} of Σ|activation · weight|, mean over validation images and classes; mean ± "
           "std over {}. s = 0 keeps all M concepts; dense: the head on all D numbers. Fewer is better, at equal "
           "accuracy. The interval over seeds and images is in the CSV.")


@dataclass(kw_only=True)
class Settings(Source):
    """What is counted."""

    share: float = setting(SHARE, "τ, the share of the contributions that must be reached; 1: all that are not 0",
                           type=part)
    max_images: int = setting(0, "only the first N of the seeded-shuffled validation images; 0 for all", type=count)
    draws: int = setting(1000, "bootstrap resamples of the images", type=positive)


def main(settings: Settings) -> Path:
    """Measure every run that has predictors and features; returns the output folder."""
    folder = output_folder(settings)
    runs = finished(find_runs(settings, draws=2))
    groups(runs)  # titles
    measured, failed = each(lambda run: (run, measure(run, settings.share, settings.max_images, settings.draws)),
                            progress(runs, desc="NCC", unit="run"))
    for sentence in failed:
        print(f"left out: {sentence}")
    if not measured:
        raise UserError(f"no run has predictors and features; the first said: {failed[0]}")
    lines = [{**_named(run), "seeds": len(run.summary["seeds"]), "share": settings.share, **line,
              "marks": "; ".join(run.marks)} for run, found in measured for line in found]
    people = [{**_named(run), **{_column(line["s"]): plus_minus(line["ncc"], line["ncc_std"], 1) for line in found},
               "marks": "; ".join(run.marks)} for run, found in measured]
    print(write_table(folder, "ncc", lines, people, CAPTION.format(settings.share, seeds_of([r for r, _ in measured]))))
    print(f"written: {folder}/ncc.csv")
    return folder


def _named(run: Run) -> dict[str, Any]:
    return {"dataset": run.dataset, "bank": run.title, "model": run.model, "M": run.summary["num_concepts"],
            "D": run.summary["width"]}


def _column(ratio: float) -> str:
    return "dense" if ratio == DENSE else f"s = {ratio:g}"


def measure(run: Run, share: float = SHARE, max_images: int = 0, draws: int = 1000,
            ratios: list[float] | None = None) -> list[dict[str, Any]]:
    """A line per ratio (by default all, and the dense head, s = -1): {"s", "kept", "ncc", "ncc_std", "ncc_low",
    "ncc_high", "per_seed"}. Raises `UserError` where predictors or features are gone."""
    val, summary = images_of(run, "val"), run.summary
    rows = numpy_rng("ncc images").permutation(len(val))[:max_images or None]
    features_ND, lines = val.features_ND[np.sort(rows)].float(), []
    for ratio in [*summary["ratios"], DENSE] if ratios is None else ratios:
        count_RN = np.stack([contributing_concepts(*head_of(run, seed, ratio, features_ND), share).numpy()
                             for seed in summary["seeds"]])
        mean, std = mean_std(per_seed := count_RN.mean(1))
        low, high = interval(over_seeds(bootstrap_means(count_RN[:, None], draws)[..., 0]))
        kept = summary["width"] if ratio == DENSE else summary["kept"][summary["ratios"].index(ratio)]
        lines.append({"s": ratio, "kept": kept, "ncc": mean, "ncc_std": std, "ncc_low": low, "ncc_high": high,
                      "per_seed": per_seed.tolist()})
    return lines


if __name__ == "__main__":
    run_script(main, Settings)
