"""End2End: concept banks that are learned together with their heads (paper, section 3).

    q (E, M)  →  LayerNorm over M, with affine  →  ÷ 0.1  →  hard straight-through Gumbel-softmax (τ = 1) over M
    each element joins one slot; a slot's concept is the sum of its elements (length 1 each), scaled to length 1

then as every predictor: a = h · bankᵀ → LayerNorm → sparsify → Linear. An empty slot is a zero row.

Every cell has a bank of its own, so q is the cost: 20,000 x 200 floats are 16 MB, and training holds four such arrays
per cell, and some six more for the one cell that is at work.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import nn

from iis.embedding_file import Embeddings
from iis.grid import Cell
from iis.runtime import seed_of, torch_rng
from IP_training.banks import MAX_ELEMENTS, Bank, Seed, chosen_elements, unit_rows
from IP_training.inputs import Inputs
from IP_training.predictor import (
    EPSILON,
    InterpretationHeads,
    LinearHeads,
    Normaliser,
    autograd_backward,
    fit_normaliser,
)
from IP_training.shares import BankOf, GroupsOf
from IP_training.train_heads import HeadGroup, Trained, by_learning_rate

TEMPERATURE = 0.1  # what the normalised q is divided by (release); τ of the softmax is 1
FLOATS_PER_ENTRY = 10  # of q: itself, two Adam moments, the gradient, and what the cell at work takes


@functools.lru_cache(maxsize=1)  # the head groups of a seed take the same step one after the other
def gumbel_noise(seed: int, what: str, step: int, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Gumbel noise (E, M) of a step, the same for every cell. Drawn on the device, so devices differ in it."""
    generator = torch.Generator(device).manual_seed(seed_of(seed, "gumbel", what, step))
    return torch.empty(shape, device=device).exponential_(generator=generator).log_().neg_()


def slot_logits(q_EM: torch.Tensor, scale_M: torch.Tensor, shift_M: torch.Tensor,
                noise_EM: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Assignment logits (E, M) of one cell: LayerNorm of q with scale and shift, over the temperature, plus noise."""
    scale_M, shift_M = scale_M / TEMPERATURE, shift_M / TEMPERATURE
    return nn.functional.layer_norm(q_EM, q_EM.shape[-1:], scale_M, shift_M, EPSILON) + noise_EM


class SlotSums(torch.autograd.Function):
    """Sums of the elements in each slot, (G, M, D), straight-through: every element counts in the slot of its largest
    logit, and the gradient is that of softmax(logits)ᵀ · elements.

    A cell at a time, and its logits anew in the backward pass: nothing of the size of q is kept for it, and the arrays
    of one cell stay in the cache.
    """

    @staticmethod
    def forward(ctx, q_GEM: torch.Tensor, scale_GM: torch.Tensor, shift_GM: torch.Tensor, noise_EM: torch.Tensor,
                elements_ED: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q_GEM, scale_GM, shift_GM, noise_EM, elements_ED)
        return slot_sums(slots_of(q_GEM, scale_GM, shift_GM, noise_EM), elements_ED, q_GEM.shape[-1])

    @staticmethod
    def backward(ctx, grad_GMD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *learned, noise_EM, elements_ED = ctx.saved_tensors
        gradients = [torch.empty_like(parameter) for parameter in learned]
        for g, grad_MD in enumerate(grad_GMD):
            leaves = [parameter[g].detach().requires_grad_() for parameter in learned]
            with torch.enable_grad():
                soft_EM = slot_logits(*leaves, noise_EM).softmax(-1)
            found = torch.autograd.grad(soft_EM, leaves, elements_ED @ grad_MD.T)
            for gradient, one in zip(gradients, found, strict=True):
                gradient[g] = one
        return *gradients, None, None


def slots_of(q_GEM: torch.Tensor, scale_GM: torch.Tensor, shift_GM: torch.Tensor,
             noise_EM: torch.Tensor | float = 0.0) -> torch.Tensor:
    """The slot of every element, (G, E): that of its largest logit."""
    return torch.stack([slot_logits(*cell, noise_EM).argmax(-1)
                        for cell in zip(q_GEM, scale_GM, shift_GM, strict=True)])


def slot_sums(slots_GE: torch.Tensor, elements_ED: torch.Tensor, num_concepts: int) -> torch.Tensor:
    """Sum of the elements in each slot, (G, M, D); slots_GE names every element's slot.

    The elements of a slot are added in their order, on every device: additions by index would come in another order in
    every run on CUDA.
    """
    cells, device = len(slots_GE), slots_GE.device
    first_G1 = num_concepts * torch.arange(cells, device=device)[:, None]  # every cell has its own slots
    sorted_S, order_S = (slots_GE + first_G1).flatten().sort(stable=True)  # S = G x E
    starts = torch.searchsorted(sorted_S, torch.arange(cells * num_concepts, device=device))
    sums = nn.functional.embedding_bag(order_S % len(elements_ED), elements_ED, starts, mode="sum")
    return sums.view(cells, num_concepts, -1)


def unit_slots(sums_GMD: torch.Tensor) -> torch.Tensor:
    """Rows scaled to length 1; rows of zeros stay so and pass no gradient (a tiny bound would pass it times 1e12)."""
    norms = sums_GMD.norm(dim=-1, keepdim=True)  # (G, M, 1)
    return sums_GMD / norms.masked_fill(norms == 0, math.inf)


class End2EndHeads(InterpretationHeads):
    """G predictors with a bank each, on raw representations (B, D) → logits (G, C, B).

    elements_ED: rows of length 1, on the device the module will live on. All cells start from one q and one head,
    that of `InterpretationHeads` for the same generator. test_assignment: which slot an element joins in eval mode,
    the "argmax" of its logits, or "gumbel", with noise as in training (release). The bank of eval mode is computed
    once between two calls of `eval()`. seed: of q, and of the noise unless `noise_seed` says another (--bank_seed).
    """

    def __init__(self, ratios: Sequence[float], elements_ED: torch.Tensor, num_concepts: int, num_classes: int,
                 seed: int, generator: torch.Generator, rule: str = "mask", test_assignment: str = "argmax",
                 noise_seed: int | None = None) -> None:
        super().__init__(ratios, num_concepts, num_classes, generator, rule)
        self.test_assignment, self.noise_seed = test_assignment, seed if noise_seed is None else noise_seed
        self.register_buffer("elements_ED", elements_ED, persistent=False)
        self.num_concepts, self.steps, self._banks, self.capturable = num_concepts, 0, None, False
        q = nn.init.trunc_normal_(torch.empty(len(elements_ED), num_concepts), std=0.02,
                                  generator=torch_rng(seed, "q"))
        self.q_GEM = nn.Parameter(q.repeat(len(self.ratios), 1, 1))
        self.q_scale_GM = nn.Parameter(torch.ones(len(self.ratios), num_concepts))  # of q's LayerNorm
        self.q_shift_GM = nn.Parameter(torch.zeros(len(self.ratios), num_concepts))

    @torch.no_grad()
    def assignment(self, cells: slice = slice(None)) -> torch.Tensor:
        """The slot (G, E) of every element at test time."""
        learned = (parameter[cells] for parameter in (self.q_GEM, self.q_scale_GM, self.q_shift_GM))
        return slots_of(*learned, self._noise("test") if self.test_assignment == "gumbel" else 0.0)

    def banks(self) -> torch.Tensor:
        """The bank of every cell, (G, M, D). Each call in training mode is one step with noise of its own."""
        if self.training:
            noise_EM, self.steps = self._noise("train"), self.steps + 1
            return unit_slots(SlotSums.apply(self.q_GEM, self.q_scale_GM, self.q_shift_GM, noise_EM, self.elements_ED))
        if self._banks is None:
            self._banks = unit_slots(slot_sums(self.assignment(), self.elements_ED, self.num_concepts))
        return self._banks

    def interpretations(self, h_BD: torch.Tensor) -> torch.Tensor:
        """The sparsified interpretations (G, B, M) of representations (B, D)."""
        banks_GMD = self.banks()
        h_GBD = h_BD.to(banks_GMD.dtype).expand(len(banks_GMD), -1, -1)
        z_GBM = nn.functional.layer_norm(torch.bmm(h_GBD, banks_GMD.mT), (self.num_concepts,), eps=EPSILON)
        return super().interpretations(z_GBM)

    def forward(self, h_BD: torch.Tensor) -> torch.Tensor:
        return LinearHeads.forward(self, self.interpretations(h_BD))  # (G, C, B)

    backward = autograd_backward  # and so not capturable: every step draws noise

    @torch.no_grad()
    def state_of(self, g: int) -> dict[str, torch.Tensor]:
        """What predicting and explaining with cell g needs, in place of q: its head, bank (M, D) and slots (E,)."""
        slots_GE = self.assignment(slice(g, g + 1))
        bank_MD = unit_slots(slot_sums(slots_GE, self.elements_ED, self.num_concepts))[0]
        head = {name: getattr(self, name)[g].detach().clone() for name in ("weight", "bias", "scale", "shift")}
        return {**head, "bank": bank_MD, "slots": slots_GE[0]}

    def train(self, mode: bool = True) -> End2EndHeads:
        self._banks = None  # parameters may have moved
        return super().train(mode)

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.steps)  # a host number: one on the device would be waited for at every step

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.steps = int(state)

    def _noise(self, what: str) -> torch.Tensor:
        shape, device = (len(self.elements_ED), self.num_concepts), self.elements_ED.device
        return gumbel_noise(self.noise_seed, what, self.steps, shape, device).to(self.q_GEM.dtype)


def assigned(slots_E: torch.Tensor, num_concepts: int) -> list[list[int]]:
    """The elements in each slot, ascending; an empty slot has none."""
    members: list[list[int]] = [[] for _ in range(num_concepts)]
    for element, slot in enumerate(slots_E.tolist()):
        members[slot].append(element)
    return members


def learned_bank(elements: Embeddings, rows: Sequence[int], state: dict[str, torch.Tensor], most: int = 25) -> Bank:
    """The bank of one trained cell, from its `state_of`. rows: which elements it was made of.

    Evidence of a slot: the images of its elements, the `most` nearest to its direction, nearest first.
    """
    bank_MD = state["bank"].float().cpu()
    evidence = []
    for slot, members in enumerate(assigned(state["slots"], len(bank_MD))):
        originals = [rows[member] for member in members]
        features = nn.functional.normalize(elements.features_ND[originals].float(), dim=1)  # (members, D)
        order = (features @ bank_MD[slot]).argsort(descending=True, stable=True)[:most]
        evidence.append([elements.image_paths[originals[place]] for place in order.tolist()])
    return Bank("End2End", bank_MD, evidence)


def cell_bytes(elements: Embeddings, num_concepts: int) -> int:
    """Memory that a cell takes while it trains."""
    return 4 * FLOATS_PER_ENTRY * min(len(elements), MAX_ELEMENTS) * num_concepts


def learned_heads(inputs: Inputs, num_concepts: int, seed: Seed, device: torch.device, sparsifier: str,
                  choice: str = "balanced", test_assignment: str = "argmax") -> tuple[GroupsOf, BankOf]:
    """Heads that learn a bank each, and the bank of each trained head.

    choice: which elements, "balanced" over classes or the "first". Under --bank_seed the elements and the first q are
    the bank's; noise and batches stay the seed's own.
    """
    rows = chosen_elements(inputs.elements, seed.bank, choice)
    elements_ED = unit_rows(inputs.elements.features_ND[rows]).to(device)
    h_train, h_val = inputs.resident(device)

    def groups_of(cells: Sequence[Cell]) -> list[HeadGroup]:
        return [HeadGroup(End2EndHeads([cell.ratio for cell in same_rate], elements_ED, num_concepts,
                                       inputs.num_classes, seed.bank, torch_rng(seed.number, "head"), sparsifier,
                                       test_assignment, seed.number).to(device), same_rate, h_train, h_val)
                for same_rate in by_learning_rate(cells)]

    def bank_of(head: Trained) -> tuple[Bank, Normaliser]:
        bank = learned_bank(inputs.elements, rows, head.state)
        return bank, fit_normaliser(bank.blocks, inputs.train.features_ND, bank.vectors_MD)

    return groups_of, bank_of
