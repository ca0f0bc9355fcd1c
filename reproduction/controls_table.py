"""Controls: what each choice does to the IIS.

    python reproduction/controls_table.py --sweep shapes        # after reproduction/sweep.py

A choice is a sweep's `variant`, or another bank than Prototype. Each is compared with the base (Prototype, the
defaults) of the same models, data set and M, model by model: Δ IIS paired by seed and image, its 95 % interval and p
over seeds and images, and p after Holm's correction over all choices for that model. An untrained backbone is compared
with the trained one. A mean over models stands below, unless the models differ: a mean of −0.3 and +0.3 says nothing
of either. Writes controls.md, .tex and .csv: a line per choice and model, and one for all models.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import positive, run_script, setting
from iis.grid import DENSE, check_ratios
from iis.results import LEDGER, read_ledger, select
from iis.runtime import UserError
from iis.statistics import bootstrap_iis, plus_minus
from iis.summary import correct_of
from reproduction.lib.outputs import write_table
from reproduction.lib.points import in_words, percent, variant_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import FEWEST, Estimate, estimate, heterogeneity_p, holm

BASE, BASE_BANK = "base", "Prototype"
ALL = "all models"
DIFFERENCE = ("difference", "difference_low", "difference_high", "p", "pairs")  # of an Estimate
DIFFER_BELOW = 0.1  # p of the F test; few seeds find only large differences between models
CAPTION = ("IIS: mean ± std over seeds. Δ: difference to the base of the same model, paired by seed and validation "
           "image, with its 95 % interval over both; p: of the same distribution; Holm: corrected for all choices of a "
           "model (of a data set and M). All models: mean Δ over these models, only where an F test of models against "
           "seeds finds no difference between them (p ≥ {differ:g}); p, differ: of that test. τ: Kendall's, between "
           "the mean IIS of three or more models under the choice and under the base.")


@dataclass(kw_only=True)
class Settings(Source):
    """What is shown."""

    ratio: float = setting(0.9, "sparsity ratio whose accuracy stands beside the IIS")
    draws: int = setting(1000, "bootstrap resamples of the images", type=positive)


def main(settings: Settings) -> Path:
    """Write the table. Returns its folder."""
    check_ratios([settings.ratio])
    folder = output_folder(settings)
    runs = [run for run in find_runs(settings, draws=2) if run.epoch is None]
    lines = []
    for (dataset, size), choices in sorted(grouped(runs).items(),
                                           key=lambda item: (item[0][0], str(item[0][1]).rjust(9))):
        base, mine = choices.pop(BASE, {}), []
        for name, by_model in {BASE: base, **choices}.items():
            if models := [model for model in base if model in by_model]:
                mine += compare(name, by_model, base, models, settings)
            else:
                print(f"left out: {dataset}, M = {size}, {name}: no plain {BASE_BANK} run of its models")
        lines += [{"data set": dataset, "M": size, **line} for line in corrected(mine)]
    if not lines:
        raise UserError(f"there is nothing to compare: no plain {BASE_BANK} run")
    if all(line.get(f"top-1 at s={settings.ratio:g}") is None for line in lines):
        raise UserError(f"no run here has the ratio {settings.ratio:g}; choose --ratio among "
                        f"{', '.join(f'{ratio:g}' for ratio in runs[0].summary['ratios'])}")
    print(write_table(folder, "controls", lines, [shown(line, settings.ratio) for line in lines],
                      CAPTION.format(differ=DIFFER_BELOW)))
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


def compare(name: str, choice: dict[str, Run], base: dict[str, Run], models: Sequence[str], settings: Settings
            ) -> list[dict[str, Any]]:
    """A choice against the base, on `models`, which both have: a line per model, and one for all where there are more.

    Raises `UserError` where a run shares no seed with its base.
    """
    lines, found = [], {}
    for model in models:
        run = choice[model]
        line = {"choice": name, "model": model, "seeds": len(run.summary["seeds"]), "iis": run.iis,
                "iis_std": run.summary["iis"]["std"], **dict.fromkeys(DIFFERENCE),
                "iis_chance_corrected": run.corrected, "dense top-1": run.dense,
                f"top-1 at s={settings.ratio:g}": {one["ratio"]: one["top1"] for one in run.summary["table"]}.get(
                    settings.ratio), "marks": ", ".join(run.marks)}
        if name != BASE:
            found[model] = differences(run, base[model], settings.draws)
            line |= numbers(mean_difference([found[model]]))
        lines.append(line)
    if len(models) > 1 and name != BASE:
        lines.append(over_models(name, choice, base, found))
    return lines


def differences(run: Run, base: Run, draws: int) -> dict[int, tuple[float, np.ndarray]]:
    """{seed that both have: (IIS of the run − IIS of the base, and that in `draws` resamples of the images (B,))}."""
    seeds = sorted({*run.summary["seeds"]} & {*base.summary["seeds"]})
    if not seeds:
        raise UserError(f"{run.folder} and the base share no seed; train both with the same seeds")
    scores = [dict(zip(one.summary["seeds"], one.summary["iis"]["per_seed"], strict=True)) for one in (run, base)]
    drawn_RB = np.subtract(*(drawn_iis(one.folder, tuple(seeds), draws) for one in (run, base))).T
    return {seed: (scores[0][seed] - scores[1][seed], drawn_B) for seed, drawn_B in zip(seeds, drawn_RB, strict=True)}


def mean_difference(found: Sequence[dict[int, tuple[float, np.ndarray]]]) -> Estimate:
    """The mean over models of their `differences`, over the seeds that all have."""
    seeds = common(found)
    return estimate(np.mean([[of[seed][0] for seed in seeds] for of in found], axis=0),
                    np.mean([[of[seed][1] for seed in seeds] for of in found], axis=0).T)


def common(found: Sequence[dict[int, Any]]) -> list[int]:
    """The seeds that all of these have."""
    return sorted(set.intersection(*map(set, found)))


def numbers(found: Estimate) -> dict[str, float]:
    """An estimate as columns."""
    return dict(zip(DIFFERENCE, found, strict=True))


@cache
def drawn_iis(folder: Path, seeds: tuple[int, ...], draws: int) -> np.ndarray:
    """IIS of these seeds in resamples of the images, (B, R); the same resamples for all runs on the same images."""
    chosen = select(read_ledger(folder / LEDGER))
    ratios = sorted({ratio for _, ratio in chosen} - {DENSE})
    return bootstrap_iis(ratios, *correct_of(chosen, seeds, ratios), draws)


def over_models(name: str, choice: dict[str, Run], base: dict[str, Run],
                found: dict[str, dict[int, tuple[float, np.ndarray]]]) -> dict[str, Any]:
    """The line of all models, from the `differences` of each: their mean, unless the models differ."""
    seeds, all_of = common(found.values()), list(found.values())
    p = heterogeneity_p([[of[seed][0] for seed in seeds] for of in all_of])
    line = {"choice": name, "model": ALL, "seeds": len(seeds), **dict.fromkeys(DIFFERENCE), "heterogeneity_p": p,
            "kendall_tau": kendall(*([runs[model].iis for model in found] for runs in (base, choice)))}
    return line | numbers(mean_difference(all_of)) if p is not None and p >= DIFFER_BELOW else line


def corrected(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines with `holm_p`: the p of each model, and those of all models, corrected for their number."""
    by_place = {}
    for model in {line["model"] for line in lines}:
        mine = [place for place, line in enumerate(lines) if line["model"] == model]
        by_place |= dict(zip(mine, holm([lines[place]["p"] for place in mine]), strict=True))
    return [{**line, "holm_p": by_place[place]} for place, line in enumerate(lines)]


def shown(line: dict[str, Any], ratio: float) -> dict[str, str]:
    """A line as people read it."""
    known, found = line["difference"] is not None, Estimate(*(line[key] for key in DIFFERENCE))
    accuracies = {f"{key}, %": percent(line.get(key), digits=2) for key in ("dense top-1", f"top-1 at s={ratio:g}")}
    p = line.get("heterogeneity_p")
    apart = p is not None and not known
    return {"data set": line["data set"], "M": line["M"], "choice": line["choice"], "model": line["model"],
            "IIS": "" if line["model"] == ALL else plus_minus(line["iis"], line["iis_std"]),
            "Δ IIS [95 %]": found.text() if known else "models differ: not pooled" if apart else "",
            "p": f"{found.p:.2g}" if known else "", "p, Holm": f"{line['holm_p']:.2g}" if known else "",
            "p, differ": "" if p is None else f"{p:.2g}",
            "τ": "" if line.get("kendall_tau") is None else f"{line['kendall_tau']:+.2f}",
            "chance-corrected IIS": "" if line["model"] == ALL else plus_minus(line["iis_chance_corrected"], None),
            **accuracies, "marks": line.get("marks", "")}


def kendall(base: Sequence[float], values: Sequence[float]) -> float | None:
    """Kendall's τ-b of two lists of scores; None for fewer than three, or where one is constant."""
    from scipy import stats

    nothing = len(base) < FEWEST or len(set(base)) < 2 or len(set(values)) < 2
    return None if nothing else float(stats.kendalltau(base, values).statistic)


if __name__ == "__main__":
    run_script(main, Settings)
