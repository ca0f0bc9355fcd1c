"""Interpretation predictors and dense heads, stacked: G linear heads that train as one module, each as if alone.

    a = h · bankᵀ  →  normalise  →  sparsify(s)  →  Linear(M, C)          (paper, section 3)

What heads share is computed once: `interpret` gives the normalised activations before the learned scale and shift,
which never change while heads train.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from IP_training.normalise import Normaliser, fit_normaliser
from IP_training.sparsify import keep_mask, sparsify


def interpret(features_ND: torch.Tensor, bank_MD: torch.Tensor, normaliser: Normaliser | None = None,
              rows: int = 65536) -> torch.Tensor:
    """h · bankᵀ normalised (LayerNorm over all M unless said), without scale and shift: (N, M) float32 on the
    bank's device. Reads `features_ND` `rows` rows at a time (it may be memory-mapped).
    """
    normaliser = normaliser or fit_normaliser([("layer", len(bank_MD))], features_ND, bank_MD)
    activations_NM = torch.empty(len(features_ND), len(bank_MD), device=bank_MD.device)
    for start in range(0, len(features_ND), rows):
        h = features_ND[start:start + rows].to(bank_MD.device, torch.float32)
        activations_NM[start:start + rows] = normaliser(h @ bank_MD.T)
    return activations_NM


class DenseHeads(nn.Module):
    """G linear classifiers on the raw representation (B, D) → logits (G, B, C)."""

    def __init__(self, count: int, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        first = nn.init.trunc_normal_(torch.empty(num_classes, width), std=0.02, generator=generator)
        self.weight_GCD = nn.Parameter(first.repeat(count, 1, 1))
        self.bias_GC = nn.Parameter(torch.zeros(count, num_classes))

    def forward(self, h_BD: torch.Tensor) -> torch.Tensor:
        x_GBD = h_BD.to(self.weight_GCD.dtype).expand(len(self.weight_GCD), -1, -1)
        return torch.baddbmm(self.bias_GC[:, None], x_GBD, self.weight_GCD.mT)  # (G, B, C)

    def state_of(self, g: int) -> dict[str, torch.Tensor]:
        """What predicting with head g needs."""
        return {"weight": self.weight_GCD[g].detach().clone(), "bias": self.bias_GC[g].detach().clone()}


class MaskedLinear(torch.autograd.Function):
    """scale, shift, mask and Linear of `InterpretationHeads` as one step, with its gradient written down.

    The same numbers as through `sparsify` (tested). Autograd would multiply transposed matrices for the weights, and
    take new memory for every intermediate. What CUDA trains with; on a CPU fused_step.py goes further (bench/heads.py).
    """

    @staticmethod
    def forward(ctx, z_BM, scale_GM, shift_GM, weight_GCM, bias_GC, ratios, rule) -> torch.Tensor:
        x_GBM = torch.addcmul(shift_GM[:, None], z_BM, scale_GM[:, None])  # (G, B, M)
        keep_GBM = keep_mask(x_GBM, ratios, rule)
        x_GBM = x_GBM if keep_GBM is None else x_GBM.mul_(keep_GBM)
        ctx.save_for_backward(z_BM, x_GBM, keep_GBM, weight_GCM, scale_GM)
        return torch.baddbmm(bias_GC[:, None], x_GBM, weight_GCM.mT)  # (G, B, C)

    @staticmethod
    def backward(ctx, grad_GBC) -> tuple[torch.Tensor | None, ...]:
        z_BM, x_GBM, keep_GBM, weight_GCM, scale_GM = ctx.saved_tensors
        grad_weight = torch.bmm(grad_GBC.mT, x_GBM)  # (G, C, M)
        grad_x = torch.bmm(grad_GBC, weight_GCM)  # (G, B, M)
        if keep_GBM is not None:
            grad_x.mul_(keep_GBM)
        grad_shift = grad_x.sum(1)
        # Only fine-tuning asks for it: elsewhere the backbone is frozen.
        grad_z = (grad_x * scale_GM[:, None]).sum(0) if ctx.needs_input_grad[0] else None  # (B, M)
        return grad_z, grad_x.mul_(z_BM).sum(1), grad_shift, grad_weight, grad_GBC.sum(1), None, None


class InterpretationHeads(nn.Module):
    """G predictors, one per sparsity ratio, on normalised activations (B, M) → logits (G, B, C).

    All start from one initial head, so that cells of a seed differ only in what the grid varies. learned_M: which
    columns have a learned scale and shift (all, unless the normaliser of a block learns nothing).
    """

    def __init__(self, ratios: Sequence[float], num_concepts: int, num_classes: int, generator: torch.Generator,
                 rule: str = "mask", learned_M: torch.Tensor | None = None) -> None:
        super().__init__()
        self.ratios, self.rule, self.learned_M = tuple(ratios), rule, None
        count = len(self.ratios)
        first = nn.init.trunc_normal_(torch.empty(num_classes, num_concepts), std=0.02, generator=generator)
        self.weight_GCM = nn.Parameter(first.repeat(count, 1, 1))
        self.bias_GC = nn.Parameter(torch.zeros(count, num_classes))
        self.scale_GM = nn.Parameter(torch.ones(count, num_concepts))  # LayerNorm's affine
        self.shift_GM = nn.Parameter(torch.zeros(count, num_concepts))
        if learned_M is not None and not learned_M.all():
            self.learned_M = learned_M
            for parameter in (self.scale_GM, self.shift_GM):  # a gradient of 0 leaves Adam's entry where it is
                parameter.register_hook(lambda gradient: gradient * learned_M.to(gradient.device))

    def interpretations(self, z_BM: torch.Tensor) -> torch.Tensor:
        """The sparsified interpretations (G, B, M) of normalised activations (B, M)."""
        a_GBM = torch.addcmul(self.shift_GM[:, None], z_BM, self.scale_GM[:, None])  # (G, B, M)
        return sparsify(a_GBM, self.ratios, self.rule)

    def forward(self, z_BM: torch.Tensor) -> torch.Tensor:
        if self.rule in ("mask", "strict") and torch.is_grad_enabled():
            return MaskedLinear.apply(z_BM, self.scale_GM, self.shift_GM, self.weight_GCM, self.bias_GC, self.ratios,
                                      self.rule)
        return torch.baddbmm(self.bias_GC[:, None], self.interpretations(z_BM), self.weight_GCM.mT)  # (G, B, C)

    def state_of(self, g: int) -> dict[str, torch.Tensor]:
        """What predicting with head g needs, beside the bank and its normaliser."""
        return {"weight": self.weight_GCM[g].detach().clone(), "bias": self.bias_GC[g].detach().clone(),
                "scale": self.scale_GM[g].detach().clone(), "shift": self.shift_GM[g].detach().clone()}
