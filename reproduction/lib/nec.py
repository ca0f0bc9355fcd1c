"""Accuracy at NEC (VLG-CBM's measure): how good a linear layer is that may use few concepts per class.

    NEC = ‖W‖₀ / C          ANEC = the mean accuracy over NEC = 5, 10, 15, 20, 25, 30

Of an elastic-net path the sparsest solution with at least NEC · C non-zero weights is pruned to exactly that many, the
largest |W|. The bias stays as it was fitted (as in VLG-CBM's own evaluation): the solutions lie close together on the
path, so pruning removes little. Validation images choose no layer here. They chose two kinds of banks, unless stage 3
had --holdout: End2End's is that of the selected head, and a Text bank holds the words that passed on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from iis.statistics import mean_std
from IP_training.elastic_net import Fit, elastic_net_path, largest_lam
from IP_training.predictor import fit_normaliser, interpret

CACHE = "nec.json"  # beside a ledger, written by reproduction/accuracy_at_nec.py: {seed: {"depends", "levels"}}
LEVELS = (5, 10, 15, 20, 25, 30)
# lam falls geometrically from the largest to its 1/1000 in `lams` steps; each solution is taken where the optimality
# conditions hold up to `tolerance` of the penalty, or after `passes` over the data.
PATH = {"lams": 16, "floor": 1e-3, "tolerance": 0.1, "passes": 60, "alpha": 0.99}


class Layer(NamedTuple):
    """W_CM (C, M), b_C (C,), the lam it was fitted with, and ‖W‖₀ before pruning. Where the path ends with fewer
    weights than the level allows, W is its densest solution, unpruned."""

    W_CM: torch.Tensor
    b_C: torch.Tensor
    lam: float
    nonzero: int


def prune(W_CM: torch.Tensor, keep: int) -> torch.Tensor:
    """W with exactly its `keep` largest |entries|, the others 0; among equals the first in reading order stays.

    Raises `ValueError` where fewer than `keep` are non-zero.
    """
    flat = W_CM.flatten()
    if int((flat != 0).sum()) < keep:
        raise ValueError(f"W has {int((flat != 0).sum())} non-zero weights; {keep} cannot be kept")
    chosen = flat.abs().sort(descending=True, stable=True).indices[:keep]
    return torch.zeros_like(flat).index_copy_(0, chosen, flat[chosen]).view_as(W_CM)


def at_levels(path: Iterable[tuple[float, Fit]], levels: Sequence[int] = LEVELS) -> dict[int, Layer | None]:
    """The layer of every level; None where NEC is more than M. path: from sparse to dense; read no further than needed.
    """
    found: dict[int, Layer | None] = dict.fromkeys(levels)
    lam = fit = nonzero = None
    for lam, fit in path:
        classes, concepts = fit.W_CM.shape
        nonzero = int((fit.W_CM != 0).sum())
        for level in levels:
            if found[level] is None and level <= concepts and nonzero >= level * classes:
                found[level] = Layer(prune(fit.W_CM, level * classes), fit.b_C, lam, nonzero)
        if all(found[level] for level in levels if level <= concepts):
            break
    return {level: layer or (Layer(fit.W_CM, fit.b_C, lam, nonzero) if fit and level <= fit.W_CM.shape[1] else None)
            for level, layer in found.items()}


def lams_from(largest: float, lams: int = PATH["lams"], floor: float = PATH["floor"]) -> list[float]:
    """largest · floor^(1/lams), …, largest · floor: geometric, without the one at which W is 0."""
    return [largest * floor ** (step / lams) for step in range(1, lams + 1)]


def accuracy_at_levels(train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor],
                       bank_MD: torch.Tensor, num_classes: int,
                       levels: Sequence[int] = LEVELS) -> list[dict[str, Any]]:
    """Fit on train = (features (N, D), labels (N,)), measure on val; one line per level: {"nec", "top1" (fraction; None
    where nec > M), "used": ‖W‖₀ / C of the layer, "lam", "nonzero": before pruning}.

    Activations h · bankᵀ of every bank are standardised on train, because one lam treats all concepts alike.
    """
    device = bank_MD.device
    normaliser = fit_normaliser([("standard", len(bank_MD))], train[0], bank_MD)
    x_NM, x_VM = (interpret(split[0], bank_MD, normaliser) for split in (train, val))
    y_N, y_V = train[1].to(device), val[1].to(device)
    lams = lams_from(largest_lam(x_NM, y_N, num_classes, PATH["alpha"]))
    path = elastic_net_path(x_NM, y_N, num_classes, lams, PATH["alpha"], PATH["passes"], PATH["tolerance"])
    lines = []
    for level, layer in at_levels(path, levels).items():
        right = None if layer is None else (x_VM @ layer.W_CM.T + layer.b_C).argmax(1) == y_V
        lines.append({"nec": level, "top1": None, "used": None, "lam": None, "nonzero": None} if right is None else {
            "nec": level, "top1": float(right.double().mean()), "used": int((layer.W_CM != 0).sum()) / num_classes,
            "lam": layer.lam, "nonzero": layer.nonzero})
    return lines


def over_seeds(seeds: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A line per level and one for ANEC: {"nec", "top1", "top1_std": mean and std over seeds, fractions; "used": mean}.

    seeds: for each the lines of `accuracy_at_levels`. None where a seed, or for ANEC a level, has none.
    """
    levels = list(zip(*seeds, strict=True))
    top1 = [[line["top1"] for line in at] for at in levels]
    of_all = [_spread(per_seed)[0] for per_seed in zip(*top1, strict=True)]
    lines = [(at[0]["nec"], _spread(values), _spread([line["used"] for line in at])[0])
             for at, values in zip(levels, top1, strict=True)]
    return [{"nec": nec, "top1": mean, "top1_std": std, "used": used}
            for nec, (mean, std), used in [*lines, ("ANEC", _spread(of_all), None)]]


def short(line: dict[str, Any]) -> bool:
    """Whether the path ended before it reached a level, so that the layer has fewer weights."""
    return line["used"] is not None and line["used"] < line["nec"] - 1e-9


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    return (None, None) if None in values else mean_std(values)
