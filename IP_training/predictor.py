"""Interpretation predictors and dense heads: G linear heads that train as one module, each as if alone.

    a = h · bankᵀ  →  normalise  →  sparsify(s)  →  Linear(M, C)          (paper, section 3)

`interpret` computes what all heads share, once: the normalised activations before scale and shift, which never change
while heads train. Logits lie classes first, (G, C, B): on a CPU the gradient of a dense head on 2048 numbers and 10
classes is then ten times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from IP_training.sparsify import keep_mask, sparsify

EPSILON = 1e-5  # of LayerNorm
KINDS = ("layer", "standard")


@dataclass
class Normaliser:
    """How activations are normalised, block by block of columns. blocks: (kind, number of columns), left to right.

    layer: LayerNorm over the block's columns of each sample; its scale and shift are learned with the head.
    standard: minus the training mean, over the training standard deviation of each column; nothing is learned (Text,
    as LF-CBM). mean_M, std_M (M,): 0 and 1 in `layer` columns.
    """

    blocks: tuple[tuple[str, int], ...]
    mean_M: torch.Tensor
    std_M: torch.Tensor

    @property
    def learned_M(self) -> torch.Tensor:
        """Which columns have a learned scale and shift, (M,) bool."""
        return torch.tensor([kind == "layer" for kind, columns in self.blocks for _ in range(columns)])

    def __call__(self, a_BM: torch.Tensor) -> torch.Tensor:
        """Normalised activations (B, M), before scale and shift."""
        sizes = [columns for _, columns in self.blocks]
        columns = zip(self.blocks, *(x.split(sizes, dim=-1) for x in (a_BM, self.mean_M, self.std_M)), strict=True)
        parts = [nn.functional.layer_norm(a, (count,), eps=EPSILON) if kind == "layer" else (a - mean) / std
                 for (kind, count), a, mean, std in columns]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def fit_normaliser(blocks: Sequence[tuple[str, int]], train_features_ND: torch.Tensor, bank_MD: torch.Tensor,
                   train_rows: torch.Tensor | None = None, chunk: int = 65536) -> Normaliser:
    """The normaliser of a bank (on its device), with mean and deviation (ddof 1) of the training activations.

    train_rows: the rows that are trained on, under `--holdout`; else all. A constant column has deviation 1.
    """
    if sum(columns for _, columns in blocks) != len(bank_MD) or not {kind for kind, _ in blocks} <= set(KINDS):
        raise ValueError(f"{blocks} does not describe the {len(bank_MD)} columns of the bank")
    mean_M, std_M = bank_MD.new_zeros(len(bank_MD)), bank_MD.new_ones(len(bank_MD))
    normaliser = Normaliser(tuple(blocks), mean_M, std_M)
    standard_M = ~normaliser.learned_M.to(bank_MD.device)
    if standard_M.any():
        rows = torch.arange(len(train_features_ND)) if train_rows is None else train_rows
        directions, mean, squares = bank_MD[standard_M], 0.0, 0.0

        def activations() -> Iterator[torch.Tensor]:
            for some in rows.split(chunk):
                yield (train_features_ND[some].to(bank_MD.device, torch.float32) @ directions.T).double()

        for a in activations():
            mean = mean + a.sum(0) / len(rows)
        for a in activations():
            squares = squares + (a - mean).square().sum(0)
        std = (squares / max(len(rows) - 1, 1)).sqrt()
        mean_M[standard_M], std_M[standard_M] = mean.float(), torch.where(std > 0, std, 1.0).float()
    return normaliser


def interpret(features_ND: torch.Tensor, bank_MD: torch.Tensor, normaliser: Normaliser | None = None,
              chunk: int = 65536) -> torch.Tensor:
    """h · bankᵀ normalised (LayerNorm over all M unless said), without scale and shift: (N, M) float32 on the
    bank's device. Reads `features_ND` `chunk` rows at a time (it may be memory-mapped)."""
    normaliser = normaliser or fit_normaliser([("layer", len(bank_MD))], features_ND, bank_MD)
    activations_NM = torch.empty(len(features_ND), len(bank_MD), device=bank_MD.device)
    for start in range(0, len(features_ND), chunk):
        h = features_ND[start:start + chunk].to(bank_MD.device, torch.float32)
        activations_NM[start:start + chunk] = normaliser(h @ bank_MD.T)
    return activations_NM


class LinearHeads(nn.Module):
    """G linear classifiers on inputs (B, W) → logits (G, C, B). All start from one initial head, so that the cells of a
    seed differ only in what the grid varies."""

    def __init__(self, count: int, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        first = nn.init.trunc_normal_(torch.empty(num_classes, width), std=0.02, generator=generator)
        self.weight = nn.Parameter(first.repeat(count, 1, 1))  # (G, C, W)
        self.bias = nn.Parameter(torch.zeros(count, num_classes))  # (G, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, W), the same for all heads, or (G, B, W)."""
        x = x.to(self.weight.dtype).expand(len(self.weight), *x.shape[-2:])
        return torch.baddbmm(self.bias[..., None], self.weight, x.mT)  # (G, C, B)

    def state_of(self, g: int) -> dict[str, torch.Tensor]:
        """What predicting with head g needs, beside the bank and its normaliser."""
        return {name: parameter[g].detach().clone() for name, parameter in self.named_parameters()}


class InterpretationHeads(LinearHeads):
    """G predictors, one per sparsity ratio, on normalised activations (B, M) → logits (G, C, B).

    learned_M: which columns have a learned scale and shift (all, unless the normaliser of a block learns nothing).
    """

    def __init__(self, ratios: Sequence[float], num_concepts: int, num_classes: int, generator: torch.Generator,
                 rule: str = "mask", learned_M: torch.Tensor | None = None) -> None:
        super().__init__(len(ratios), num_concepts, num_classes, generator)
        self.ratios, self.rule = tuple(ratios), rule
        self.scale = nn.Parameter(torch.ones(len(ratios), num_concepts))  # (G, M), of the LayerNorm
        self.shift = nn.Parameter(torch.zeros(len(ratios), num_concepts))
        if learned_M is not None and not learned_M.all():
            for parameter in (self.scale, self.shift):  # a gradient of 0 leaves Adam's entry where it is
                parameter.register_hook(lambda gradient: gradient * learned_M.to(gradient.device))

    def interpretations(self, z_BM: torch.Tensor) -> torch.Tensor:
        """The sparsified interpretations (G, B, M) of normalised activations (B, M)."""
        a_GBM = torch.addcmul(self.shift[:, None], z_BM, self.scale[:, None])  # (G, B, M)
        return sparsify(a_GBM, self.ratios, self.rule)

    def forward(self, z_BM: torch.Tensor) -> torch.Tensor:
        if self.rule in ("mask", "strict"):
            return MaskedLinear.apply(z_BM, self.scale, self.shift, self.weight, self.bias, self.ratios, self.rule)
        return super().forward(self.interpretations(z_BM))


class MaskedLinear(torch.autograd.Function):
    """Scale, shift, mask and Linear of `InterpretationHeads` as one step with its gradient written down:

        x = (z·scale + shift)·K    logits = W x + b    P = g (z·K)    Q = g K          g: the logits' gradient (C, B)
        dW = scale·P + shift·Q     dscale = Σ_c W·P    dshift = Σ_c W·Q    db = Σ_b g

    The same numbers as autograd through `sparsify`, without ever forming the gradient by x, which is as large as x: a
    head at a time, its arrays stay in the cache (bench/heads.py says how much that gives).
    """

    @staticmethod
    def forward(ctx, z_BM, scale_GM, shift_GM, weight_GCM, bias_GC, ratios, rule) -> torch.Tensor:
        logits_GCB = z_BM.new_empty(*bias_GC.shape, len(z_BM))
        x_BM, kept = torch.empty_like(z_BM), []
        for g, logits_CB in enumerate(logits_GCB):
            torch.addcmul(shift_GM[g], z_BM, scale_GM[g], out=x_BM)
            keep_1BM = keep_mask(x_BM[None], ratios[g:g + 1], rule)
            kept.append(keep_1BM)
            if keep_1BM is not None:
                x_BM.mul_(keep_1BM[0])
            torch.addmm(bias_GC[g, :, None], weight_GCM[g], x_BM.T, out=logits_CB)
        ctx.kept = kept
        ctx.save_for_backward(z_BM, scale_GM, shift_GM, weight_GCM)
        return logits_GCB

    @staticmethod
    def backward(ctx, grad_GCB) -> tuple[torch.Tensor | None, ...]:
        z_BM, scale_GM, shift_GM, weight_GCM = ctx.saved_tensors
        grad_bias, grad_weight = grad_GCB.sum(2), torch.empty_like(weight_GCM)
        grad_scale, grad_shift = torch.empty_like(scale_GM), torch.empty_like(shift_GM)
        grad_z = torch.zeros_like(z_BM) if ctx.needs_input_grad[0] else None  # fine-tuning alone asks for it
        x_BM = torch.empty_like(z_BM)
        for g, keep_1BM in enumerate(ctx.kept):
            weight_CM, grad_CB = weight_GCM[g], grad_GCB[g]
            P_CM = grad_CB @ (z_BM if keep_1BM is None else torch.mul(z_BM, keep_1BM[0], out=x_BM))
            Q_CM = grad_bias[g, :, None].expand_as(P_CM) if keep_1BM is None else grad_CB @ keep_1BM[0]
            torch.sum(weight_CM * P_CM, 0, out=grad_scale[g])
            torch.sum(weight_CM * Q_CM, 0, out=grad_shift[g])
            torch.addcmul(P_CM * scale_GM[g], Q_CM, shift_GM[g], out=grad_weight[g])
            if grad_z is not None:
                grad_x = grad_CB.T @ weight_CM * scale_GM[g]  # (B, M)
                grad_z += grad_x if keep_1BM is None else grad_x * keep_1BM[0]
        return grad_z, grad_scale, grad_shift, grad_weight, grad_bias, None, None
