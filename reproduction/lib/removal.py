"""Order curves: what becomes of a prediction while the concepts it rests on are removed one after another.

Orders: `most` removes the concept that speaks most for the predicted class first, `least` the one that speaks most
against it, `random` is the mean of several seeded orders. A concept speaks for the predicted class by its margin
contribution: activation · (weight of the predicted class − weight of the reference), in logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iis.runtime import numpy_rng, torch_rng
from reproduction.lib.explanation import Predictor

ORDERS = ("most", "random", "least")
CHANGED = "changed by one removal"
STEPS = 20


@dataclass(frozen=True)
class Curves:
    """share_F: shares of the kept concepts that are removed, from 0 to 1. For each of `ORDERS` (axis O), each step and
    each image: probability_OFN of the class predicted at first, and right_OFN, 1 where the true class is predicted
    (for `random`: means over its orders). changed_N: 1 where the first concept of `most` alone, removed, changes the
    predicted class."""

    share_F: np.ndarray
    probability_OFN: np.ndarray
    right_OFN: np.ndarray
    changed_N: np.ndarray

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


def bootstrap_means(values_KN: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Means of K quantities over resamples of the N images, (draws, K); one resample serves all K."""
    count, rng, means = values_KN.shape[1], numpy_rng(seed, "bootstrap", values_KN.shape[1]), []
    for start in range(0, draws, 100):  # 100 x N counts at a time
        picks = rng.multinomial(count, np.full(count, 1 / count), size=min(100, draws - start))
        means.append(picks @ values_KN.T / count)
    return np.concatenate(means)
