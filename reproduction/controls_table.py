"""Controls: what each choice does to the IIS, and to the ranking of models.

    python reproduction/controls_table.py --sweep shapes        # after reproduction/sweep.py

A choice is a sweep's `variant`, or another bank than Prototype. Each is compared with the base (Prototype, the
defaults) of the same models, data set and M: mean IIS per model, the difference paired over seeds with
Student's 95 % interval, Kendall's τ of the two rankings of models, and the accuracy that the IIS divides. Writes
controls.md, .tex (a line per choice) and .csv (a line per choice and model).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import run_script, setting
from iis.grid import check_ratios
from iis.runtime import UserError
from iis.statistics import plus_minus
from reproduction.lib.outputs import write_table
from reproduction.lib.points import in_words, variant_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import Difference, paired_difference

BASE, BASE_BANK = "base", "Prototype"
CAPTION = ("IIS: mean ± std over seeds. Δ: mean over models of the difference to the base, paired over seeds, with "
           "Student's 95 % interval. τ: Kendall's, between the models' mean IIS under the choice and under the base. "
           "Accuracies and chance-corrected IIS: means over models and seeds.")


@dataclass(kw_only=True)
class Settings(Source):
    """What is shown."""

    ratio: float = setting(0.9, "sparsity ratio whose accuracy stands beside the IIS")


def main(settings: Settings) -> Path:
    """Write the table. Returns its folder."""
    check_ratios([settings.ratio])
    folder = output_folder(settings)
    runs = [run for run in find_runs(settings, draws=2) if run.epoch is None]
    lines, table = [], []
    for (dataset, size), choices in sorted(grouped(runs).items(),
                                           key=lambda item: (item[0][0], str(item[0][1]).rjust(9))):
        base = choices.pop(BASE, {})
        for name, by_model in {BASE: base, **choices}.items():
            models = [model for model in base if model in by_model]
            if not models:
                print(f"left out: {dataset}, M = {size}, {name}: no plain {BASE_BANK} run of its models")
                continue
            own, row = compare(name, by_model, base, models, settings.ratio)
            lines += [{"data set": dataset, "M": size, **line} for line in own]
            table.append({"data set": dataset, "M": size, **row})
    if not table:
        raise UserError(f"there is nothing to compare: no plain {BASE_BANK} run")
    if all(line[f"top-1 at s={settings.ratio:g}"] is None for line in lines):
        raise UserError(f"no run here has the ratio {settings.ratio:g}; choose --ratio among "
                        f"{', '.join(f'{ratio:g}' for ratio in runs[0].summary['ratios'])}")
    print(write_table(folder, "controls", lines, table, CAPTION))
    print(f"written: {folder}/controls.csv")
    return folder


def grouped(runs: Sequence[Run]) -> dict[tuple[str, Any], dict[str, dict[str, Run]]]:
    """{(data set, M): {choice: {model of the base: run}}}; of two runs that share all of these the first counts."""
    found: dict[tuple[str, Any], dict[str, dict[str, Run]]] = {}
    for run in runs:
        choices = found.setdefault((run.dataset, run.summary["num_concepts"]), {})
        model = run.cell.get("base_model") or run.model.removesuffix("_untrained")
        first = choices.setdefault(choice_of(run), {}).setdefault(model, run)
        if first is not run:
            print(f"left out: {run.folder}, the same choice as {first.folder}")
    return found


def choice_of(run: Run) -> str:
    """What a run differs in from the base: the sweep's name for it, or its settings where there is no sweep."""
    bank, protocol = run.summary["bank"], run.identity["protocol"]
    words = [f"{bank} bank" if bank != BASE_BANK else ""]
    if run.cell:
        words += [run.variant]
    else:
        words += [in_words("protocol", protocol) if protocol != "paper" else "", variant_of(run),
                  "untrained backbone" if run.model.endswith("_untrained") else ""]
    return ", ".join(filter(None, words)) or BASE


def compare(name: str, choice: dict[str, Run], base: dict[str, Run], models: Sequence[str], ratio: float
            ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A choice against the base, on `models`, which both have: a line per model, and the line people read."""
    tau = kendall(*([runs[model].iis for model in models] for runs in (base, choice)))
    at_ratio, lines = f"top-1 at s={ratio:g}", []
    for model in models:
        run, difference = choice[model], paired_over_seeds(choice, base, [model])
        top1 = {line["ratio"]: line["top1"] for line in run.summary["table"]}
        lines.append({
            "choice": name, "model": model, "seeds": len(run.summary["seeds"]), "iis": run.iis,
            "iis_std": run.summary["iis"]["std"], "iis_chance_corrected": run.corrected, "difference": difference.mean,
            "difference_std": difference.std, "difference_low": difference.low, "difference_high": difference.high,
            "dense top-1": run.dense, at_ratio: top1.get(ratio), "kendall_tau": tau,
            "marks": ", ".join(run.marks)})
    corrected = [line["iis_chance_corrected"] for line in lines]
    row = {"choice": name, **{f"IIS, {model}": "-" for model in base},
           **{f"IIS, {line['model']}": plus_minus(line["iis"], line["iis_std"]) for line in lines},
           "mean of the chance-corrected IIS": plus_minus(None if None in corrected else np.mean(corrected), None),
           "Δ IIS": "-" if name == BASE else paired_over_seeds(choice, base, models).text(),
           "τ": "-" if name == BASE or tau is None else f"{tau:+.2f}",
           "ranking": "same" if name != BASE and tau == 1 else
           " < ".join(sorted(models, key=lambda model: choice[model].iis)) if len(models) > 1 else "-"}
    for key in ("dense top-1", at_ratio):
        values = [line[key] for line in lines]
        row[f"{key}, %"] = "-" if None in values else f"{100 * np.mean(values):.2f}"
    return lines, {**row, "marks": "; ".join(f"{line['model']}: {line['marks']}" for line in lines if line["marks"])}


def paired_over_seeds(choice: dict[str, Run], base: dict[str, Run], models: Sequence[str]) -> Difference:
    """IIS of the choice − IIS of the base: its mean over models for each seed that all have, then over seeds."""
    scores = pd.concat({(side, model): pd.Series(runs[model].summary["iis"]["per_seed"], runs[model].summary["seeds"])
                        for side, runs in (("choice", choice), ("base", base)) for model in models},
                       axis=1, join="inner")
    if scores.empty:
        raise UserError(f"{choice[models[0]].folder} and the base share no seed; train both with the same seeds")
    return paired_difference(scores["choice"].mean(axis=1), scores["base"].mean(axis=1))


def kendall(base: Sequence[float], values: Sequence[float]) -> float | None:
    """Kendall's τ-b of two lists of scores; None for fewer than two, or where one is constant."""
    from scipy import stats

    constant = len(set(base)) < 2 or len(set(values)) < 2
    return None if constant else float(stats.kendalltau(base, values).statistic)


if __name__ == "__main__":
    run_script(main, Settings)
