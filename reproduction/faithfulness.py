"""Do contributions tell which concepts a prediction rests on? Order curves of removal: most, least important, random.

    python reproduction/faithfulness.py --sweep shapes
    python reproduction/faithfulness.py --model_root IP_training/IP_Text/shapes_large --save_dir results/faithfulness

Kept concepts are set to 0 one after another: those that speak most for the predicted class first, those that speak
most against it first, or in random order. Writes faithfulness.csv, .md, .tex (areas under the curves),
faithfulness_curves.csv and faithfulness.png, .pdf. About a second a seed on 2,000 images.

The head is linear: `most` beats `random` unless something is broken. How much faster tells on how few concepts
predictions rest.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch

from iis.cli import count, positive, run_script, setting
from iis.plots import COLOURS
from iis.runtime import UserError, each, numpy_rng, torch_rng, write_text
from iis.statistics import bootstrap_means, interval, mean_std, over_seeds, plus_minus
from reproduction.lib.explanation import Predictor, load_predictor, stored_seeds
from reproduction.lib.figures import legend_below, panels
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import counted, finished
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder
from reproduction.lib.statistics import FEWEST_SEEDS, Estimate, estimate, holm
from reproduction.lib.tables import as_csv

PANELS = 18  # of the figure
STEPS = 20  # of a curve, at most
ORDERS = {"most": (COLOURS[1], "most important first"), "random": ("0.5", "random order"),
          "least": (COLOURS[0], "least important first")}
CHANGED = "changed by one removal"
COMPARED = (CHANGED, "probability, random − most")  # between a bank and Random
CAPTION = ("Area under the probability of the predicted class (and under top-1), from none to all of the kept concepts "
           "removed: first those that speak most for the predicted class against the {reference}, first those that "
           "speak least for it, and the mean of {orders} random orders. Changed by one removal: share of the "
           "predictions that become another class without their single most important concept. Mean ± std over seeds; "
           "in brackets the 95 % interval over seeds and validation images. Minus Random: difference to random "
           "directions of the same model, M and s, paired by seed and image; p after Holm's correction over the "
           "differences of a model; fewer than {fewest} seeds are too few to call banks different. The head is linear, "
           "so contributions are exact by construction; the table tells how few concepts predictions rest on, not what "
           "the concepts mean.")


@dataclass(kw_only=True)
class Settings(Source):
    """How concepts are removed."""

    ratio: float | None = setting(None, "sparsity ratio s (default: the sparsest that keeps at least 5 concepts, for "
                                  "each run its own)")
    reference: Literal["runner_up", "mean"] = setting("runner_up", "importance of a concept: its contribution to the "
                                                      "predicted class minus that to the runner-up, or minus the mean "
                                                      "of the other classes")
    random_orders: int = setting(5, "seeded random orders that are averaged", type=positive)
    max_images: int = setting(0, "only the first N of the seeded-shuffled validation images; 0 for all", type=count)
    draws: int = setting(1000, "bootstrap resamples of the images", type=positive)


def main(settings: Settings) -> Path:
    """Measure every run that has predictors and features; returns the output folder."""
    folder = output_folder(settings)
    results, failed = each(lambda run: measure(run, settings), finished(find_runs(settings, draws=2)))
    for sentence in failed:
        print(f"left out: {sentence}")
    if not results:
        raise UserError(f"no run has predictors and features to remove concepts from; the first said: {failed[0]}")
    add_against_random(results)
    reference = {"runner_up": "runner-up", "mean": "mean of the other classes"}[settings.reference]
    print(write_table(folder, "faithfulness", [result["numbers"] for result in results],
                      [result["shown"] for result in results],
                      CAPTION.format(reference=reference, orders=settings.random_orders,
                                     fewest=FEWEST_SEEDS)))
    write_text(folder / "faithfulness_curves.csv", as_csv(pd.concat([result["curves"] for result in results])))
    if len(results) > PANELS:
        print(f"faithfulness.png shows the first {PANELS} of {len(results)} runs; the tables hold all")
    write_figure(folder, "faithfulness", figure(results[:PANELS]))
    print(f"written: {folder}/faithfulness.csv, .md, .tex, .png, .pdf, faithfulness_curves.csv")
    return folder


def measure(run: Run, settings: Settings) -> dict[str, Any]:
    """One run, all its seeds: a line of the table as `numbers` and as `shown`; `curves`: a line for every order and
    step, means over seeds and images; `seeds`; and `drawn`: of each of COMPARED, what each seed has, (R,), and has in
    resamples of the images, (B, R)."""
    seeds = stored_seeds(run.folder)
    if not seeds:
        raise UserError(f"{run.folder} has no predictors/; run its training script again")
    val = images_of(run, "val")
    rows = numpy_rng("faithfulness pictures").permutation(len(val))[:settings.max_images or None]
    predictors = [load_predictor(run.folder, seed, settings.ratio) for seed in seeds]
    curves = [order_curves(predictor, val.features_ND[rows].float(), val.labels_N[rows], settings.reference,
                           settings.random_orders) for predictor in predictors]
    first = predictors[0]
    named = {"model": run.model, "data set": run.dataset, "bank": run.identity["bank"]}
    kept = {"setting": run.variant or run.folder.name, "M": len(first.bank_MD), "s": first.ratio, "kept": first.kept}
    line = {**named, "elements": run.elements, **kept, "seeds": len(seeds), "pictures": len(rows)}
    marks, areas, shown, drawn = {"marks": "; ".join(run.marks)}, {}, {}, {}
    quantities = [one.quantities() for one in curves]  # of each seed, K arrays (N,)
    values_RKN = np.array([list(one.values()) for one in quantities])
    drawn_BRK = bootstrap_means(values_RKN, settings.draws)
    for k, name in enumerate(quantities[0]):
        mean, std = mean_std(values_RKN[:, k].mean(1))
        least = -1.0 if "−" in name else 0.0  # of a difference of two areas, of an area
        low, high = (min(max(end, least), 1.0) for end in interval(over_seeds(drawn_BRK[:, :, k])))
        if name in COMPARED:
            drawn[name] = values_RKN[:, k].mean(1), drawn_BRK[:, :, k]
        areas |= {name: mean, f"{name}, std": std, f"{name}, low": low, f"{name}, high": high}
        within = f" [{low:.3f}, {high:.3f}]" if name == CHANGED or "−" in name else ""
        shown[name] = plus_minus(mean, std, 3) + within
    # Banks of different size over seeds (Text) have different steps: all curves are read at those of the first.
    steps_F = curves[0].share_F
    points = []
    for o, order in enumerate(ORDERS):
        probability_F, right_F = (np.mean([np.interp(steps_F, one.share_F, getattr(one, name)[o].mean(1))
                                           for one in curves], axis=0) for name in ("probability_OFN", "right_OFN"))
        points.append(pd.DataFrame({**named, **kept, "order": order, "removed": steps_F, "probability": probability_F,
                                    "top-1": right_F}))
    return {"numbers": line | areas | marks, "shown": line | shown | marks, "curves": pd.concat(points), "seeds": seeds,
            "drawn": drawn}


def add_against_random(results: list[dict[str, Any]]) -> None:
    """Add columns to `numbers` and `shown`: COMPARED of each bank minus those of the Random run of the same model, data
    set, M and s, over the seeds that both have; empty where there is none."""
    of_random = {same_place(one): one for one in reversed(results) if one["numbers"]["bank"] == "Random"}
    found: dict[tuple[str, str], dict[tuple[int, str], Estimate]] = {}  # per model and data set
    for place, result in enumerate(results):
        random = of_random.get(same_place(result), result)
        seeds = [seed for seed in result["seeds"] if seed in random["seeds"]]
        if random is result or not seeds:
            continue
        columns = [[one["seeds"].index(seed) for seed in seeds] for one in (result, random)]
        for name in COMPARED:
            (of_R, drawn_BR), (of_random_R, drawn_random_BR) = (
                (of[own], drawn[:, own]) for (of, drawn), own in zip((result["drawn"][name], random["drawn"][name]),
                                                                   columns, strict=True))
            found.setdefault(same_place(result)[:2], {})[place, name] = estimate(of_R - of_random_R,
                                                                                drawn_BR - drawn_random_BR)
    corrected = {key: p for mine in found.values() for key, p in zip(
        mine, holm([one.p for one in mine.values()]), strict=True)}
    of_all = {key: one for mine in found.values() for key, one in mine.items()}
    for place, result in enumerate(results):
        for name in COMPARED:
            one, p = of_all.get((place, name)), corrected.get((place, name))
            title = f"{name}, minus Random"
            result["numbers"] |= {f"{title}{end}": value for end, value in zip(
                ("", ", low", ", high", ", p", ", seeds"), one or (None,) * 5, strict=True)} | {f"{title}, Holm p": p}
            result["shown"][title] = "" if one is None else f"{one.text(3)}, " + (
                f"p {p:.2g}" if one.seeds >= FEWEST_SEEDS else f"{counted(one.seeds, 'seed')}: no claim")
        for line in (result["numbers"], result["shown"]):
            line["marks"] = line.pop("marks")  # the last column


def same_place(result: dict[str, Any]) -> tuple[Any, ...]:
    """What a bank and its Random control share."""
    return tuple(result["numbers"][key] for key in ("model", "data set", "M", "s"))


def figure(results: list[dict[str, Any]]) -> Any:
    """A panel a run: probability of the predicted class (solid) and top-1 (dashed) against the share removed."""
    drawing, axes = panels(len(results), "Predictions while concepts are removed", sharex=True, sharey=True)
    for axis, result in zip(axes, results, strict=True):
        for order, points in result["curves"].groupby("order", sort=False):
            colour, words = ORDERS[order]
            for what, style, label in (("probability", "-", words), ("top-1", "--", None)):
                axis.plot(100 * points["removed"], 100 * points[what], style, color=colour, linewidth=1.5, label=label)
        for style, label in (("-", "probability of the predicted class"), ("--", "top-1")):
            axis.plot([], [], style, color="black", label=label)
        line = result["numbers"]
        marks = f"\n({line['marks']})" if line["marks"] else ""
        axis.set_title(f"{line['model']}, {line['data set']}, {line['bank']}\n{line['setting']}, {line['kept']} of "
                       f"{line['M']} kept{marks}", fontsize=8, parse_math=False)
        axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="kept concepts removed, %", ylabel="%")
    legend_below(drawing, axes, 3)
    return drawing


# ---- order curves ----


class Curves(NamedTuple):
    """What becomes of N images in each of O `ORDERS` (random: means over its orders), at F steps."""

    share_F: np.ndarray  # of the kept concepts that are removed, from 0 to 1
    probability_OFN: np.ndarray  # of the class predicted at first
    right_OFN: np.ndarray  # 1 where the true class is predicted
    changed_N: np.ndarray  # 1 where removing the first concept of `most` alone changes the predicted class

    def quantities(self) -> dict[str, np.ndarray]:
        """What a table averages over images, each (N,): `changed_N`, the areas under both curves in each order (by the
        trapezoid rule over the share removed), and random − most of them."""
        found = {CHANGED: self.changed_N}
        for what, values_OFN in (("probability", self.probability_OFN), ("top-1", self.right_OFN)):
            area_ON = np.trapezoid(values_OFN, self.share_F, axis=1)
            found |= {f"{what}, {order}": area_N for order, area_N in zip(ORDERS, area_ON, strict=True)}
            found[f"{what}, random − most"] = found[f"{what}, random"] - found[f"{what}, most"]
        return found


def order_curves(predictor: Predictor, features_ND: torch.Tensor, labels_N: torch.Tensor, reference: str = "runner_up",
                 random_orders: int = 5, rows: int = 2048) -> Curves:
    """The curves of representations (N, D) with true classes (N,), at each concept, or at 20 steps where more stay."""
    x_NM = predictor.interpretations(features_ND)
    kept = int((x_NM != 0).sum(1).max())
    share_F = np.arange(min(kept, STEPS) + 1) / max(min(kept, STEPS), 1)
    drawn, parts, changed = [torch_rng(predictor.seed, "removal order", n) for n in range(random_orders)], [], []
    for x_BM, labels_B in zip(x_NM.split(rows), labels_N.split(rows), strict=True):
        score_BM = scores(predictor, x_BM, reference)
        shuffled = [torch.rand(score_BM.shape, generator=one) for one in drawn]
        parts.append(np.stack([np.mean([_remove(predictor, x_BM, one, labels_B, share_F) for one in group], axis=0)
                               for group in ([score_BM], shuffled, [-score_BM])]))  # (O, 2, F, B)
        first_B1 = score_BM.masked_fill(x_BM == 0, -torch.inf).argmax(1, keepdim=True)
        without_B = predictor.logits(x_BM.scatter(1, first_B1, 0.0)).argmax(1)
        changed.append((without_B != predictor.logits(x_BM).argmax(1)).double().numpy())
    both = np.concatenate(parts, axis=3)
    return Curves(share_F, both[:, 0], both[:, 1], np.concatenate(changed))


def scores(predictor: Predictor, x_NM: torch.Tensor, reference: str) -> torch.Tensor:
    """How much each concept speaks for the predicted class and not for the reference, (N, M) in logits."""
    weight_CM = predictor.weight_CM
    first_N, second_N = predictor.logits(x_NM).topk(2, dim=1).indices.T
    others_NM = (weight_CM.sum(0) - weight_CM[first_N]) / (len(weight_CM) - 1)
    return x_NM * (weight_CM[first_N] - (weight_CM[second_N] if reference == "runner_up" else others_NM))


def _remove(predictor: Predictor, x_BM: torch.Tensor, score_BM: torch.Tensor, labels_B: torch.Tensor,
            share_F: Sequence[float]) -> np.ndarray:
    """(2, F, B): probability of the first prediction, and correctness, when the kept concepts with the highest scores
    are gone, a share of them at a time."""
    kept_BM = x_BM != 0
    # The place of each concept in its row's order; concepts that are 0 anyway come last.
    rank_BM = score_BM.masked_fill(~kept_BM, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count_B1 = kept_BM.sum(1, keepdim=True)
    first_B1 = predictor.logits(x_BM).argmax(1, keepdim=True)
    steps = []
    for share in share_F:
        logits_BC = predictor.logits(x_BM.masked_fill(rank_BM < (share * count_B1).round(), 0.0))
        steps.append(torch.stack([logits_BC.softmax(1).gather(1, first_B1)[:, 0], logits_BC.argmax(1) == labels_B]))
    return torch.stack(steps, dim=1).double().numpy()


if __name__ == "__main__":
    run_script(main, Settings)
