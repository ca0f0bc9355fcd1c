"""Sparse autoencoders as concept banks: TopK (arXiv 2406.04093) and BatchTopK (arXiv 2412.06410).

    x = (h − mean) / mean norm        u = W_e x + b_e        x̂ = codes · W_d + b_d,  rows of W_d of length 1
    topk        codes: the k largest of max(u, 0) of each row
    batchtopk   codes: the k·B largest of max(u, 0) of a batch of B rows; after training those above a threshold

trained with Adam on ‖x − x̂‖². (The papers encode x − b_d; here b_e holds −W_e b_d, the same set of functions.) Concepts
that no row uses any more learn to explain what is left of x, the auxiliary loss of 2406.04093. Its learning rate falls
with √M, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from iis.embedding_file import Embeddings, as_embeddings
from iis.runtime import UserError, torch_rng
from IP_training.banks import NEAREST, Bank, MakeBank, Seed, check_enough, chosen_elements, unit_rows
from IP_training.config import SAE_STEPS, usual_k
from IP_training.encoder import Encoder, keep_largest
from IP_training.train_heads import gather

LEAST_BATCH, LARGEST_BATCH = 256, 4096  # rows of a step: M // 8, between these
RATE_AT, RATE = 2**14, 2e-4  # Adam's rate for so many concepts (arXiv 2406.04093)
DECAY = 0.2  # the last part of training, in which the rate falls to 0
DEAD_AFTER = 50  # steps without use, 12,800 rows or more, after which a concept counts as dead
AUXILIARY = 1 / 32  # weight of the auxiliary loss (arXiv 2406.04093)
THRESHOLD_BATCHES = 64  # that the threshold of BatchTopK is the mean of
RESIDENT = 2**28  # numbers that are copied to a GPU whole, 1 GiB; others are, batch by batch
CHUNK = 8192  # rows encoded at once
RULES, CONTROLS = ("topk", "batchtopk"), ("none", "frozen_decoder", "frozen_encoder")
ROUTES = ("decoder", "encoder")


@dataclass(frozen=True, kw_only=True)
class SAERecipe:
    """How an autoencoder is trained. rule: "topk" or "batchtopk". k: codes that stay, of a row or on average (default
    M // 8, at least 1). control (arXiv 2602.14111): what stays random, "frozen_decoder" or "frozen_encoder". Raises
    `UserError` for anything else.
    """

    rule: str = "topk"
    k: int | None = None
    control: str = "none"
    steps: int = SAE_STEPS

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, RULES)
        check_choice("control", self.control, CONTROLS)
        if self.steps < 1:
            raise UserError(f"steps = {self.steps}: an autoencoder needs at least 1 step of training")

    def k_of(self, num_concepts: int) -> int:
        """k for M concepts. Raises `UserError` where there are not so many."""
        k = usual_k(num_concepts) if self.k is None else self.k
        if not 1 <= k <= num_concepts:
            raise UserError(f"--sae_k {k} is outside 1 to {num_concepts}, the number of concepts")
        return k


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise `UserError` for a word that is not known."""
    if value not in known:
        raise UserError(f"{name} = {value!r}: use {', '.join(known)}")


def sae(examples: Embeddings, num_concepts: int, recipe: SAERecipe | None = None, route: str = "decoder",
        images: bool = False, choice: str = "balanced", device: torch.device | None = None) -> MakeBank:
    """M decoder rows of a sparse autoencoder learned on `examples`; evidence: those with the largest codes.

    examples: visual elements, up to 20,000 of them as `chosen_elements` takes them; with images=True training images,
    all that a seed may train on. route: activations are the projections on the rows ("decoder") or the codes
    ("encoder"). Raises `UserError` as `check_enough` and `SAERecipe.k_of` do.
    """
    examples, recipe, device = as_embeddings(examples), recipe or SAERecipe(), device or torch.device("cpu")
    check_enough(examples, 1)
    check_choice("route", route, ROUTES)
    k = recipe.k_of(num_concepts)

    def make(seed: Seed) -> Bank:
        if images:
            rows = torch.arange(len(examples)) if seed.train_rows is None else seed.train_rows
        else:
            rows = torch.tensor(chosen_elements(examples, seed.bank, choice))
        decoder_MD, encoder = fit(examples.features_ND, rows, num_concepts, recipe, k, seed.bank, device)
        largest = largest_codes(examples.features_ND, rows, encoder, min(NEAREST, len(rows)))
        evidence = [[examples.image_paths[row] for row in mine] for mine in largest]
        return Bank("SAE", decoder_MD.cpu(), evidence, encoder=encoder.to("cpu") if route == "encoder" else None)

    return make


def fit(features_ND: torch.Tensor, rows: torch.Tensor, num_concepts: int, recipe: SAERecipe, k: int, seed: int,
        device: torch.device) -> tuple[torch.Tensor, Encoder]:
    """Decoder (M, D) with rows of length 1, and encoder, learned on some rows of features (N, D). The same for the same
    seed on the same device."""
    if device.type != "cpu" and len(rows) * features_ND.shape[1] <= RESIDENT:
        features_ND, rows = features_ND[rows].to(device, torch.float32), torch.arange(len(rows))
    rng, (centre_D, scale) = torch_rng(seed, "sparse autoencoder"), moments(features_ND, rows, device)

    def drawn(count: int) -> torch.Tensor:
        some = rows[torch.randint(len(rows), (count,), generator=rng)]
        return (gather(features_ND, some, some.to(device)) - centre_D) / scale

    width, random = features_ND.shape[1], torch.randn(2, num_concepts, features_ND.shape[1], generator=rng).to(device)
    # Data rows as first directions leave fewer concepts unused; what is frozen is random, as its name says.
    start = random[0] if recipe.control != "none" else drawn(num_concepts) + 0.1 * random[1] / width**0.5
    W_d, W_e = unit_rows(start), unit_rows(random[1] if recipe.control == "frozen_encoder" else start)
    b_e, b_d = torch.zeros(num_concepts, device=device), torch.zeros(width, device=device)
    learned = [b_d, *([] if recipe.control == "frozen_decoder" else [W_d]),
               *([] if recipe.control == "frozen_encoder" else [W_e, b_e])]
    adam = torch.optim.Adam([one.requires_grad_() for one in learned], fused=True,
                            lr=RATE * (RATE_AT / num_concepts) ** 0.5)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1, (recipe.steps - step) / (DECAY * recipe.steps)))
    batch, unused_M = min(max(num_concepts // 8, LEAST_BATCH), LARGEST_BATCH), torch.zeros(num_concepts, device=device)
    for _ in range(recipe.steps):
        x_BD = drawn(batch)
        u_BM = F.linear(x_BD, W_e, b_e)
        codes_BM = sparse(u_BM.relu(), recipe.rule, k)
        left_BD = x_BD - codes_BM @ W_d - b_d
        loss = left_BD.square().sum(1).mean()
        unused_M = torch.where((codes_BM > 0).any(0), 0, unused_M + 1)
        dead_M = unused_M > DEAD_AFTER
        if dead_M.any():
            more_BM = keep_largest(u_BM[:, dead_M].relu(), max(1, width // 2))
            loss = loss + AUXILIARY * (left_BD.detach() - more_BM @ W_d[dead_M]).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        if W_d.grad is not None:  # the part along a row would only change its length
            W_d.grad -= (W_d.grad * W_d.detach()).sum(1, keepdim=True) * W_d.detach()
        adam.step()
        rate.step()
        if W_d.requires_grad:
            W_d.data = unit_rows(W_d.data)
    encoder = Encoder(W_e.detach(), "topk", b_e.detach(), centre_D, scale=scale, k=k)
    if recipe.rule == "batchtopk":
        with torch.no_grad():
            smallest = [u_BM[u_BM > 0].min() for _ in range(THRESHOLD_BATCHES) if (
                u_BM := sparse(F.linear(drawn(batch), W_e, b_e).relu(), recipe.rule, k)).any()]
        threshold = torch.stack(smallest).mean() if smallest else torch.zeros((), device=device)
        encoder = Encoder(W_e.detach(), "threshold", b_e.detach(), centre_D, threshold.expand(num_concepts), scale)
    return W_d.detach(), encoder


def sparse(u_BM: torch.Tensor, rule: str, k: int) -> torch.Tensor:
    """Codes (B, M) in training of u, none below 0."""
    return keep_largest(u_BM, k) if rule == "topk" else keep_largest(u_BM.flatten(), k * len(u_BM)).view_as(u_BM)


def moments(features_ND: torch.Tensor, rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, float]:
    """Mean (D,) of some rows and their mean distance from it; 1 where all are the same."""
    parts = [(some, some.to(device)) for some in rows.split(CHUNK)]
    centre_D = sum(gather(features_ND, *part).double().sum(0) for part in parts) / len(rows)
    norm = sum((gather(features_ND, *part) - centre_D).norm(dim=1).sum() for part in parts) / len(rows)
    return centre_D.float(), float(norm) or 1.0


@torch.no_grad()
def largest_codes(features_ND: torch.Tensor, rows: torch.Tensor, encoder: Encoder, count: int) -> list[list[int]]:
    """For every concept the rows (numbers of features_ND) with its `count` largest codes, largest first, fewer where
    fewer are above 0."""
    device = encoder.weight_MD.device
    best_MK = torch.zeros(len(encoder), 0, device=device)
    found_MK = torch.zeros(len(encoder), 0, dtype=torch.int64, device=device)
    for some in rows.split(CHUNK):
        codes_MB = encoder(features_ND[some.to(features_ND.device)]).T
        all_MK = torch.cat([best_MK, codes_MB], 1)
        best_MK, at_MK = all_MK.topk(min(count, all_MK.shape[1]), dim=1)
        found_MK = torch.cat([found_MK, some.to(device).expand(len(encoder), -1)], 1).gather(1, at_MK)
    return [[row for row, code in zip(*one, strict=True) if code > 0]
            for one in zip(found_MK.tolist(), best_MK.tolist(), strict=True)]


def identity_of_sae(recipe: SAERecipe, num_concepts: int, route: str, learned_on: str) -> dict[str, Any]:
    """What identifies the bank in the ledger."""
    return {"sae_rule": recipe.rule, "sae_k": recipe.k_of(num_concepts), "sae_control": recipe.control,
            "sae_steps": recipe.steps, "route": route, "learned_on": learned_on}
