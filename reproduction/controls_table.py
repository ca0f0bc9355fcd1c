"""Controls: what each choice does to the IIS, and to the ranking of models.

    python reproduction/controls_table.py --sweep shapes        # after reproduction/sweep.py

A choice is a sweep's `variant`, or another bank than --base_bank. Each is compared with the base (--base_bank,
otherwise the defaults) of the same models, data set and M: mean IIS per model, the difference paired over seeds with
Student's 95 % interval, Kendall's τ of the two rankings of models, and the accuracy that the IIS divides. Writes
controls.md, .tex (a line per choice) and .csv (a line per choice and model).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import ScriptParser, run_script
from iis.equations import too_close_to_chance
from iis.grid import DENSE, check_ratios
from iis.runtime import UserError, make_output_folder
from reproduction.lib.class_balance import accuracies_at
from reproduction.lib.outputs import write_table
from reproduction.lib.paired import Difference, paired_difference
from reproduction.lib.points import epoch_of
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import plus_minus

BASE = "base"
CAPTION = ("IIS: mean ± std over seeds. Δ: mean over models of the difference to the base, paired over seeds, with "
           "Student's 95 % interval. τ: Kendall's, between the models' mean IIS under the choice and under the base. "
           "Accuracies and chance-corrected IIS: means over models and seeds.")


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))
    script.add_argument("--base_bank", default="Prototype", help="bank of the base")
    script.add_argument("--ratio", type=float, default=0.9, help="sparsity ratio whose accuracy stands beside the IIS")
    script.add_argument("--with_checkpoints", action="store_true", help="rank checkpoints along pre-training as models "
                      "too (default: leave them out)")
    return script


def main(args: argparse.Namespace) -> Path:
    """Write the table. Returns its folder."""
    check_ratios([args.ratio])
    folder = make_output_folder(output_folder(args))
    runs = [run for run in find_runs(args, draws=2) if args.with_checkpoints or epoch_of(run.model) is None]
    lines, shown, lonely = [], [], []
    for (dataset, size), choices in _by_size(grouped(runs, args.base_bank)):
        base = choices.pop(BASE, None)
        if base is None:
            lonely.append(f"{dataset}, M = {size}: no plain {args.base_bank} run to compare with")
            continue
        for name, by_model in {BASE: base, **choices}.items():
            own, row = compare(name, by_model, base, args.ratio)
            if row is None:
                lonely.append(f"{dataset}, M = {size}, {name}: none of its models is in the base")
                continue
            where = {"data set": dataset, "M": size}
            lines += [{**where, **line} for line in own]
            shown.append({**where, **row})
    for sentence in lonely:
        print(f"left out: {sentence}")
    if not shown:
        raise UserError(f"there is nothing to compare: no plain {args.base_bank} run (see --base_bank)")
    if all(line[f"top-1 at s={args.ratio:g}"] is None for line in lines):
        raise UserError(f"no run here has the ratio {args.ratio:g}; choose --ratio among "
                        f"{', '.join(f'{ratio:g}' for ratio in runs[0].summary['ratios'])}")
    if all(line["even classes"] for line in lines):  # then both accuracies are the same
        shown = [{key: value for key, value in row.items() if "balanced" not in key} for row in shown]
    print(write_table(folder, "controls", lines, shown, CAPTION))
    print(f"written: {folder}/controls.csv")
    return folder


def grouped(runs: Sequence[Run], base_bank: str) -> dict[tuple[str, Any], dict[str, dict[str, Run]]]:
    """{(data set, M): {choice: {model of the base: run}}}, in the order of the runs; of two runs that share all of
    these the first counts, and a sentence says so."""
    groups: dict[tuple[str, Any], dict[str, dict[str, Run]]] = {}
    for run in runs:
        choices = groups.setdefault((run.summary["dataset"], run.summary["num_concepts"]), {})
        by_model = choices.setdefault(choice_of(run, base_bank), {})
        if base_model(run) in by_model:
            print(f"left out: {run.folder}, the same choice as {by_model[base_model(run)].folder}")
        by_model.setdefault(base_model(run), run)
    return groups


def choice_of(run: Run, base_bank: str) -> str:
    """What a run differs in from the base: the sweep's word, or read off the ledger where no sweep says."""
    words = [run.variant] if run.variant else []
    if not run.cell:
        row = run.identity
        words += [f"{row['protocol']} protocol"] if row["protocol"] != "paper" else [
            *(["first prototypes"] if row.get("prototypes") == "first" else []),
            *([row["sparsifier"]] if row["sparsifier"] != "mask" else [])]
        words += ["patches"] if run.elements == "patches" else []
        foreign = (row["elements"] or {}).get("dataset", row["dataset"]) != row["dataset"]
        words += ["bank of another data set"] if foreign else []
        words += ["held-out selection"] if row["holdout"] else []
        words += [f"bank of seed {row['bank_seed']}"] if "bank_seed" in row else []
        words += ["untrained backbone"] if run.model.endswith("_untrained") else []
    bank = run.summary["bank"]
    return ", ".join([*([f"{bank} bank"] if bank != base_bank else []), *words]) or BASE


def base_model(run: Run) -> str:
    """The model of the base that a run is compared with."""
    return run.cell.get("base_model") or run.model.removesuffix("_untrained")


def compare(name: str, choice: dict[str, Run], base: dict[str, Run], ratio: float
            ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """A choice against the base, on the models both have: a line per model, and the line people read (None without
    a common model)."""
    models = [model for model in base if model in choice]
    if not models:
        return [], None
    tau, order = ranking([base[model].iis for model in models], [choice[model].iis for model in models])
    lines = [{**_line(name, model, choice[model], base[model], ratio), "kendall_tau": tau} for model in models]
    names = " < ".join(models[place] for place in order) if len(models) > 1 else "-"
    shown = {"choice": name, **{f"IIS, {model}": "-" for model in base},
             **{f"IIS, {line['model']}": plus_minus(line["iis"], line["iis_std"]) for line in lines},
             "mean of the chance-corrected IIS": f"{np.mean([line['iis_chance_corrected'] for line in lines]):.4f}",
             "Δ IIS": "-" if name == BASE else str(over_models(choice, base, models)),
             "τ": "-" if name == BASE or tau is None else f"{tau:+.2f}",
             "ranking": "same" if name != BASE and tau == 1 else names}
    for key in ("dense top-1", "dense balanced", f"top-1 at s={ratio:g}", f"balanced at s={ratio:g}"):
        values = [line[key] for line in lines]
        shown[f"{key}, %"] = "-" if None in values else f"{100 * np.mean(values):.2f}"
    remarks = {"dense head near chance": [line["model"] for line in lines if line["near chance"]],
               "predictors above their dense head": [line["model"] for line in lines if line["above ceiling"]]}
    said = "; ".join(f"{remark}: {', '.join(where)}" for remark, where in remarks.items() if where)
    return lines, {**shown, "remark": said}


def over_models(choice: dict[str, Run], base: dict[str, Run], models: Sequence[str]) -> Difference:
    """IIS of the choice − IIS of the base: its mean over models for each seed that all have, then over seeds."""
    both = [(_by_seed(choice[model]), _by_seed(base[model])) for model in models]
    seeds = sorted(set.intersection(*(set(scores) for pair in both for scores in pair)))
    if not seeds:
        raise UserError(f"{choice[models[0]].folder} and the base share no seed; train both with the same seeds")
    return paired_difference(*([np.mean([pair[side][seed] for pair in both]) for seed in seeds] for side in (0, 1)))


def _line(name: str, model: str, run: Run, base: Run, ratio: float) -> dict[str, Any]:
    difference = over_models({model: run}, {model: base}, [model])
    low, high = difference.interval or (None, None)
    dense, sparse = accuracies_at(run, DENSE), accuracies_at(run, ratio)
    return {"choice": name, "model": model, "seeds": len(run.summary["seeds"]), "iis": run.iis,
            "iis_std": run.summary["iis"]["std"],
            "iis_chance_corrected": run.summary["iis_chance_corrected"]["mean"],
            "difference": difference.mean, "difference_std": difference.std,
            "difference_low": low, "difference_high": high, "dense top-1": dense["top1"],
            "dense balanced": dense["balanced"], f"top-1 at s={ratio:g}": sparse["top1"],
            f"balanced at s={ratio:g}": sparse["balanced"],
            "near chance": too_close_to_chance(dense["top1"], run.summary["chance"], run.summary["n_val"]),
            "above ceiling": run.iis > run.summary["span"],
            "even classes": bool(np.isclose(run.summary["chance"], 1 / run.identity["num_classes"]))}


def ranking(base: Sequence[float], values: Sequence[float]) -> tuple[float | None, list[int]]:
    """Kendall's τ-b of two lists of scores (None for fewer than two, or where one is constant), and the order of
    `values`, lowest first."""
    from scipy import stats

    order = np.argsort(np.asarray(values, float), kind="stable").tolist()
    if len(values) < 2 or len(set(base)) == 1 or len(set(values)) == 1:
        return None, order
    return float(stats.kendalltau(base, values).statistic), order


def _by_size(groups: dict[tuple[str, Any], Any]) -> list[tuple[tuple[str, Any], Any]]:
    return sorted(groups.items(), key=lambda item: (item[0][0], str(item[0][1]).rjust(9)))


def _by_seed(run: Run) -> dict[int, float]:
    return dict(zip(run.summary["seeds"], run.summary["iis"]["per_seed"], strict=True))


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
