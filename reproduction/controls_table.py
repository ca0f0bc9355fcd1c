"""Controls: what each choice does to the IIS, and to the ranking of models.

    python reproduction/controls_table.py --sweep shapes        # after reproduction/sweep.py

A choice is a sweep's `variant`, or another bank than --base_bank. Each is compared with the base (--base_bank,
otherwise the defaults) of the same models, data set and M: mean IIS per model, the difference paired over seeds with
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

from iis.cli import run_script, setting
from iis.grid import DENSE, check_ratios
from iis.runtime import UserError, make_output_folder
from reproduction.lib.class_balance import accuracies_at
from reproduction.lib.outputs import write_table
from reproduction.lib.points import in_words, variant_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import Difference, paired_difference
from reproduction.lib.tables import plus_minus

BASE = "base"
CAPTION = ("IIS: mean ± std over seeds. Δ: mean over models of the difference to the base, paired over seeds, with "
           "Student's 95 % interval. τ: Kendall's, between the models' mean IIS under the choice and under the base. "
           "Accuracies and chance-corrected IIS: means over models and seeds.")


@dataclass(kw_only=True)
class Settings(Source):
    """What is compared."""

    base_bank: str = setting("Prototype", "bank of the base")
    ratio: float = setting(0.9, "sparsity ratio whose accuracy stands beside the IIS")
    with_checkpoints: bool = setting(False, "rank checkpoints along pre-training as models too (default: leave them "
                                            "out)")


def main(settings: Settings) -> Path:
    """Write the table. Returns its folder."""
    check_ratios([settings.ratio])
    folder = make_output_folder(output_folder(settings))
    runs = [run for run in find_runs(settings, draws=2) if settings.with_checkpoints or run.epoch is None]
    lines, table = [], []
    for (dataset, size), choices in sorted(grouped(runs, settings.base_bank).items(),
                                           key=lambda item: (item[0][0], str(item[0][1]).rjust(9))):
        base = choices.pop(BASE, None)
        if base is None:
            print(f"left out: {dataset}, M = {size}: no plain {settings.base_bank} run to compare with")
            continue
        for name, by_model in {BASE: base, **choices}.items():
            own, row = compare(name, by_model, base, settings.ratio)
            if row is None:
                print(f"left out: {dataset}, M = {size}, {name}: none of its models is in the base")
                continue
            lines += [{"data set": dataset, "M": size, **line} for line in own]
            table.append({"data set": dataset, "M": size, **row})
    if not table:
        raise UserError(f"there is nothing to compare: no plain {settings.base_bank} run (see --base_bank)")
    if all(line[f"top-1 at s={settings.ratio:g}"] is None for line in lines):
        raise UserError(f"no run here has the ratio {settings.ratio:g}; choose --ratio among "
                        f"{', '.join(f'{ratio:g}' for ratio in runs[0].summary['ratios'])}")
    if all(line["even classes"] for line in lines):  # then both accuracies are the same
        table = [{key: value for key, value in row.items() if "balanced" not in key} for row in table]
    print(write_table(folder, "controls", lines, table, CAPTION))
    print(f"written: {folder}/controls.csv")
    return folder


def grouped(runs: Sequence[Run], base_bank: str) -> dict[tuple[str, Any], dict[str, dict[str, Run]]]:
    """{(data set, M): {choice: {model of the base: run}}}; of two runs that share all of these the first counts."""
    groups: dict[tuple[str, Any], dict[str, dict[str, Run]]] = {}
    for run in runs:
        choices = groups.setdefault((run.dataset, run.summary["num_concepts"]), {})
        first = choices.setdefault(choice_of(run, base_bank), {}).setdefault(base_model(run), run)
        if first is not run:
            print(f"left out: {run.folder}, the same choice as {first.folder}")
    return groups


def choice_of(run: Run, base_bank: str) -> str:
    """What a run differs in from the base: the sweep's name for it, or its settings where there is no sweep."""
    bank, protocol = run.summary["bank"], run.identity["protocol"]
    words = [f"{bank} bank"] if bank != base_bank else []
    if run.cell:
        return ", ".join([*words, *([run.variant] if run.variant else [])]) or BASE
    words += [in_words("protocol", protocol)] if protocol != "paper" else []
    words += [variant_of(run)] if variant_of(run) else []
    return ", ".join([*words, *(["untrained backbone"] if run.model.endswith("_untrained") else [])]) or BASE


def base_model(run: Run) -> str:
    """The model of the base that a run is compared with."""
    return run.cell.get("base_model") or run.model.removesuffix("_untrained")


def compare(name: str, choice: dict[str, Run], base: dict[str, Run], ratio: float
            ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """A choice against the base, on the models both have (None without one): a line per model, and the line people
    read."""
    models = [model for model in base if model in choice]
    if not models:
        return [], None
    tau, order = ranking([base[model].iis for model in models], [choice[model].iis for model in models])
    lines = [{**_line(name, model, choice[model], base[model], ratio), "kendall_tau": tau} for model in models]
    names = " < ".join(models[place] for place in order) if len(models) > 1 else "-"
    row = {"choice": name, **{f"IIS, {model}": "-" for model in base},
           **{f"IIS, {line['model']}": plus_minus(line["iis"], line["iis_std"]) for line in lines},
           "mean of the chance-corrected IIS": f"{np.mean([line['iis_chance_corrected'] for line in lines]):.4f}",
           "Δ IIS": "-" if name == BASE else over_models(choice, base, models).text(),
           "τ": "-" if name == BASE or tau is None else f"{tau:+.2f}",
           "ranking": "same" if name != BASE and tau == 1 else names}
    for key in ("dense top-1", "dense balanced", f"top-1 at s={ratio:g}", f"balanced at s={ratio:g}"):
        values = [line[key] for line in lines]
        row[f"{key}, %"] = "-" if None in values else f"{100 * np.mean(values):.2f}"
    return lines, {**row, "marks": "; ".join(f"{line['model']}: {line['marks']}" for line in lines if line["marks"])}


def over_models(choice: dict[str, Run], base: dict[str, Run], models: Sequence[str]) -> Difference:
    """IIS of the choice − IIS of the base: its mean over models for each seed that all have, then over seeds."""
    both = [[dict(zip(run.summary["seeds"], run.summary["iis"]["per_seed"], strict=True))
             for run in (choice[model], base[model])] for model in models]
    seeds = sorted(set.intersection(*(set(scores) for pair in both for scores in pair)))
    if not seeds:
        raise UserError(f"{choice[models[0]].folder} and the base share no seed; train both with the same seeds")
    return paired_difference(*([np.mean([pair[side][seed] for pair in both]) for seed in seeds] for side in (0, 1)))


def _line(name: str, model: str, run: Run, base: Run, ratio: float) -> dict[str, Any]:
    difference = over_models({model: run}, {model: base}, [model])
    dense, sparse = accuracies_at(run, DENSE), accuracies_at(run, ratio)
    return {"choice": name, "model": model, "seeds": len(run.summary["seeds"]), "iis": run.iis,
            "iis_std": run.summary["iis"]["std"], "iis_chance_corrected": run.corrected,
            "difference": difference.mean, "difference_std": difference.std, "difference_low": difference.low,
            "difference_high": difference.high, "dense top-1": dense["top1"], "dense balanced": dense["balanced"],
            f"top-1 at s={ratio:g}": sparse["top1"], f"balanced at s={ratio:g}": sparse["balanced"],
            "marks": ", ".join(run.marks),
            "even classes": bool(np.isclose(run.summary["chance"], 1 / run.identity["num_classes"]))}


def ranking(base: Sequence[float], values: Sequence[float]) -> tuple[float | None, list[int]]:
    """Kendall's τ-b of two lists of scores (None for fewer than two, or where one is constant), and the order of
    `values`, lowest first."""
    from scipy import stats

    order = np.argsort(np.asarray(values, float), kind="stable").tolist()
    constant = len(set(base)) < 2 or len(set(values)) < 2
    return None if constant else float(stats.kendalltau(base, values).statistic), order


if __name__ == "__main__":
    run_script(main, Settings)
