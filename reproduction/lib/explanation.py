"""A stored predictor, and what its predictions are made of: contributions of concepts, and predictions without them.

    logit of class c  =  bias of c  +  Σ over concepts m of  activation of m · weight of (c, m)

is exact, because the head is linear. "Without concept m" means: its sparsified activation is 0, and all else stays as
it is (the sparsifier does not run again, so no other concept takes the place).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from iis.grid import kept_count
from iis.runtime import UserError, nearest, read_json
from IP_training.predictor import Normaliser, interpret
from IP_training.sparsify import sparsify

ENOUGH = 5  # concepts that an explanation should have to choose from


@dataclass(frozen=True)
class Predictor:
    """One interpretation predictor, as `IP_training/predictor_files.py` stores it.

    evidence[m]: what concept m looks like (image paths, or words). rule: of the sparsifier. top1: its stored
    validation accuracy, a fraction. identity: what its ledger's rows share.
    """

    ratio: float
    rule: str
    bank_MD: torch.Tensor
    normaliser: Normaliser
    scale_M: torch.Tensor
    shift_M: torch.Tensor
    weight_CM: torch.Tensor
    bias_C: torch.Tensor
    evidence: list[list[str]]
    class_names: list[str]
    identity: dict[str, Any]
    top1: float
    seed: int = 0

    @property
    def kept(self) -> int:
        """How many concepts an interpretation keeps (under `strict` at most)."""
        return kept_count(len(self.bank_MD), self.ratio) - (self.rule == "strict")

    def interpretations(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Sparsified interpretations (N, M) of representations (N, D)."""
        z_NM = interpret(features_ND, self.bank_MD, self.normaliser)
        return sparsify(torch.addcmul(self.shift_M, z_NM, self.scale_M)[None], [self.ratio], self.rule)[0]

    def logits(self, x_NM: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of sparsified interpretations (N, M)."""
        return x_NM @ self.weight_CM.T + self.bias_C


def stored_seeds(folder: Path) -> list[int]:
    """The seeds with a stored predictor."""
    return sorted(int(file.stem.removeprefix("seed_")) for file in Path(folder).glob("predictors/seed_*.safetensors"))


def load_predictor(folder: Path, seed: int = 0, ratio: float | None = None) -> Predictor:
    """The predictor of a ledger's folder at a ratio; without one, the sparsest that keeps at least `ENOUGH` concepts
    (or the densest). Raises `UserError` for a seed or ratio that is not there, and for damaged files."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(folder) / "predictors" / f"seed_{seed}.safetensors"
    if not file.is_file() or not file.with_suffix(".json").is_file():
        seeds = ", ".join(map(str, stored_seeds(folder)))
        raise UserError(f"there is no stored predictor {file}; " + (
            f"--seed can be {seeds}" if seeds else
            "give a folder that a training script wrote (it holds results.jsonl and predictors/)"))
    described = read_json(file.with_suffix(".json"))
    try:
        tensors = load_file(file)
    except SafetensorError:
        raise UserError(f"{file} is damaged; delete it and train that seed again") from None
    kept = {float(name): row["kept"] for name, row in described["selected"].items() if name != "dense"}
    if not kept or len(described["class_names"]) < 2:
        raise UserError(f"{file} holds no interpretation predictor of two classes or more: there is no decision to "
                        "explain; run its training script again")
    if ratio is None:
        ratio = max((one for one, count in kept.items() if count >= ENOUGH), default=min(kept))
    name = f"{ratio:g}"
    if ratio not in kept:
        raise UserError(f"{file} has no predictor at --ratio {name}{nearest(name, described['selected'])} "
                        f"(there are {', '.join(f'{one:g}' for one in sorted(kept))})")
    bank = name if f"{name}/bank" in tensors else "all"  # a learned bank belongs to its ratio
    own = "" if bank == "all" else f"{name}/"
    normaliser = Normaliser(tuple(map(tuple, described["blocks"][bank])), tensors[f"{own}mean"], tensors[f"{own}std"])
    head = (tensors[f"{name}/{part}"].float() for part in ("scale", "shift", "weight", "bias"))
    return Predictor(ratio, described["identity"]["sparsifier"], tensors[f"{own}bank"], normaliser, *head,
                     described["concepts"][bank], described["class_names"], described["identity"],
                     described["selected"][name]["top1"], seed)


class Explanation(NamedTuple):
    """N predictions and what they are made of. Contributions are in logits: activation · weight."""

    x_NM: torch.Tensor
    logits_NC: torch.Tensor
    classes_NC: torch.Tensor  # from the likeliest to the least likely
    to_predicted_NM: torch.Tensor  # contributions to the logit of the first class …
    to_runner_up_NM: torch.Tensor  # … and of the second
    without_class_NM: torch.Tensor  # the prediction without concept m …
    without_probability_NM: torch.Tensor  # … its probability …
    predicted_without_NM: torch.Tensor  # … and what is then left of the first class's probability

    @property
    def margin_NM(self) -> torch.Tensor:
        """What concept m gave to the decision between these two classes; with the biases it sums to the margin. Adding
        one number to all logits leaves it as it is, unlike the contribution to a single logit."""
        return self.to_predicted_NM - self.to_runner_up_NM


def explain(predictor: Predictor, features_ND: torch.Tensor, rows: int = 64) -> Explanation:
    """Explain the predictions of representations (N, D), `rows` at a time: (rows, M, C) numbers in memory."""
    x_NM, weight_CM = predictor.interpretations(features_ND), predictor.weight_CM
    logits_NC = predictor.logits(x_NM)
    classes_NC = logits_NC.argsort(dim=1, descending=True, stable=True)
    first_N, second_N = classes_NC[:, 0], classes_NC[:, 1]
    without = []
    for x_BM, logits_BC, first_B in zip(x_NM.split(rows), logits_NC.split(rows), first_N.split(rows), strict=True):
        probability_BMC = (logits_BC[:, None, :] - x_BM[:, :, None] * weight_CM.T).softmax(2)
        best = probability_BMC.max(2)
        still_BM = probability_BMC.gather(2, first_B[:, None, None].expand(*x_BM.shape, 1))[..., 0]  # (B, M)
        without.append((best.indices, best.values, still_BM))
    return Explanation(x_NM, logits_NC, classes_NC, x_NM * weight_CM[first_N], x_NM * weight_CM[second_N],
                       *map(torch.cat, zip(*without, strict=True)))


def explain_class(predictor: Predictor, features_ND: torch.Tensor, label: int) -> list[dict[str, Any]]:
    """What makes one class, over its images' representations (N, D): a line per concept, the strongest first.

    mean: contribution to this class minus the mean of those to the other classes, in logits, averaged over images;
    kept: share of images whose interpretation has the concept; activation: its mean over those; recall: share of
    images predicted as this class; without: the same when the concept is removed from all of them.
    """
    weight_CM, found = predictor.weight_CM, explain(predictor, features_ND)
    others_M = (weight_CM.sum(0) - weight_CM[label]) / (len(weight_CM) - 1)
    mean_M = found.x_NM.mean(0) * (weight_CM[label] - others_M)
    kept_M = (found.x_NM != 0).double().mean(0)
    columns = {"mean": mean_M, "kept": kept_M, "activation": found.x_NM.double().mean(0) / kept_M,
               "recall": (found.classes_NC[:, :1] == label).double().mean(0).expand_as(mean_M),
               "without": (found.without_class_NM == label).double().mean(0)}
    return [{"concept": m, "evidence": predictor.evidence[m],
             **{name: float(column_M[m]) for name, column_M in columns.items()}} for m in strongest(mean_M)]


def strongest(values_M: torch.Tensor | Sequence[float]) -> list[int]:
    """Indices of all non-zero values, the largest magnitude first; equal ones in their order."""
    values_M = torch.as_tensor(values_M)
    order = values_M.abs().argsort(descending=True, stable=True).tolist()
    return [m for m in order if values_M[m] != 0]
