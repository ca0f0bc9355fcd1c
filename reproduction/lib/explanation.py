"""A stored predictor, and what its predictions are made of: contributions of concepts, and predictions without them.

    logit of class c  =  bias of c  +  Σ over concepts m of  activation of m · weight of (c, m)

is exact, because the head is linear. "Without concept m" means: its sparsified activation is 0, and all else stays as
it is (the sparsifier does not run again, so no other concept takes the place).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iis.grid import kept_count
from iis.runtime import UserError, nearest, read_json
from IP_training.encoder import Encoder, stored_encoder
from IP_training.predictor import Normaliser, interpret
from IP_training.sparsify import sparsify
from reproduction.lib.explained_images import Subject

ENOUGH = 5  # concepts that an explanation should have to choose from


@dataclass(frozen=True)
class Predictor:
    """One interpretation predictor, as `save_predictors` of `IP_training/run.py` stores it.

    evidence[m]: what concept m looks like (image paths, or words). rule: of the sparsifier. top1: its stored
    validation accuracy, a fraction. identity: what its ledger's rows share. encoder: what makes activations; None for
    projections on the bank.
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
    encoder: Encoder | None = None

    @property
    def kept(self) -> int:
        """How many concepts an interpretation keeps (under `strict` at most)."""
        return kept_count(len(self.bank_MD), self.ratio) - (self.rule == "strict")

    def interpretations(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Sparsified interpretations (N, M) of representations (N, D)."""
        z_NM = interpret(features_ND, self.encoder or self.bank_MD, self.normaliser)
        return sparsify(torch.addcmul(self.shift_M, z_NM, self.scale_M)[None], [self.ratio], self.rule)[0]

    def logits(self, x_NM: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of sparsified interpretations (N, M)."""
        return x_NM @ self.weight_CM.T + self.bias_C

    def logits_without(self, x_NM: torch.Tensor) -> torch.Tensor:
        """Logits (N, M, C) of sparsified interpretations (N, M), each without one of the M concepts."""
        return self.logits(x_NM)[:, None] - x_NM[..., None] * self.weight_CM.T


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
                     described["selected"][name]["top1"], seed,
                     stored_encoder(tensors, described.get("encoders", {}).get(bank), own))


def explain(predictor: Predictor, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """One dictionary an image: its prediction, and every concept that its interpretation keeps, the one that moved
    the margin between predicted class and runner-up most first. Contributions are in logits: activation · weight.

    A concept's margin is what it gave to the predicted class minus what it gave to the runner-up. With the biases they
    sum to the difference of the two logits, and adding one number to all logits leaves them as they are.
    """
    x_NM = predictor.interpretations(torch.stack([one.features_D for one in subjects]).float())
    return [_explain_one(predictor, x_M, logits_C, subject)
            for x_M, logits_C, subject in zip(x_NM, predictor.logits(x_NM), subjects, strict=True)]


def _explain_one(predictor: Predictor, x_M: torch.Tensor, logits_C: torch.Tensor, subject: Subject) -> dict[str, Any]:
    names, probability_C = predictor.class_names, logits_C.softmax(0)
    first, second = logits_C.argsort(descending=True, stable=True)[:2].tolist()
    given_CM = x_M * predictor.weight_CM
    margin_M, without_MC = given_CM[first] - given_CM[second], predictor.logits_without(x_M[None])[0].softmax(1)
    order = strongest(margin_M)  # then the kept concepts that move the margin by nothing
    order += [m for m in strongest(x_M) if m not in set(order)]
    concepts = [{"concept": m, "evidence": predictor.evidence[m], "activation": float(x_M[m]),
                 "to_predicted": float(given_CM[first, m]), "to_runner_up": float(given_CM[second, m]),
                 "margin": float(margin_M[m]), "without_class": names[int(without_MC[m].argmax())],
                 "without_probability": float(without_MC[m].max()), "predicted_without": float(without_MC[m, first])}
                for m in order]
    found = {"picture": subject.name, "true": None if subject.label is None else names[subject.label]}
    for what, c in (("predicted", first), ("runner_up", second)):
        found |= {what: names[c], f"logit_{what}": float(logits_C[c]), f"bias_{what}": float(predictor.bias_C[c])}
    return found | {"probability": float(probability_C[first]), "runner_up_probability": float(probability_C[second]),
                    "margin": float(logits_C[first] - logits_C[second]), "concepts": concepts}


def explain_class(predictor: Predictor, features_ND: torch.Tensor, label: int) -> list[dict[str, Any]]:
    """What makes one class, over its images' representations (N, D): a line per concept, the strongest first.

    mean: contribution to this class minus the mean of those to the other classes, in logits, averaged over images;
    kept: share of images whose interpretation has the concept; activation: its mean over those; recall: share of
    images predicted as this class; without: the same when the concept is removed from all of them.
    """
    x_NM, weight_CM = predictor.interpretations(features_ND), predictor.weight_CM
    others_M = (weight_CM.sum(0) - weight_CM[label]) / (len(weight_CM) - 1)
    mean_M, kept_M = x_NM.mean(0) * (weight_CM[label] - others_M), (x_NM != 0).double().mean(0)
    without_NM = torch.cat([predictor.logits_without(x_BM).argmax(2) == label for x_BM in x_NM.split(64)])
    recall = float((predictor.logits(x_NM).argmax(1) == label).double().mean())
    columns = {"mean": mean_M, "kept": kept_M, "activation": x_NM.double().mean(0) / kept_M,
               "recall": torch.full_like(kept_M, recall), "without": without_NM.double().mean(0)}
    return [{"concept": m, "evidence": predictor.evidence[m],
             **{name: float(column_M[m]) for name, column_M in columns.items()}} for m in strongest(mean_M)]


def strongest(values_M: torch.Tensor) -> list[int]:
    """Indices of all non-zero values, the largest magnitude first; equal ones in their order."""
    return [m for m in values_M.abs().argsort(descending=True, stable=True).tolist() if values_M[m] != 0]
