"""Interpretation predictors and dense heads: G linear heads that train as one module, each as if alone.

    a = h · bankᵀ  →  normalise  →  sparsify(s)  →  Linear(M, C)          (paper, section 3; other a: encoder.py)

`interpret` computes what all heads share, once: the normalised activations before scale and shift, which never change
while heads train. Logits lie classes first, (G, C, B): on a CPU the gradient of a dense head on 2048 numbers and 10
classes is then ten times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from iis.grid import dropped_count
from IP_training.encoder import Encoder, as_encoder
from IP_training.selection_kernel import kept, scaled_and_selected
from IP_training.sparsify import keep_mask, sparsify

EPSILON = 1e-5  # of LayerNorm
KINDS = ("layer", "standard", "scale")
# Spread, relative to the magnitude of what was added up, below which numbers differ by rounding alone: eight times
# float32's spacing of 1.2e-7.
ROUNDING = 1e-6


@dataclass
class Normaliser:
    """How activations are normalised, block by block of columns. blocks: (kind, number of columns), left to right.

    layer: LayerNorm over the block's columns of each sample; its scale and shift are learned with the head.
    standard: minus the training mean, over the training standard deviation of each column; nothing is learned (Text,
    as LF-CBM).
    scale: over the root of the training mean of squares of each column; nothing is learned or subtracted, so that a
    sparse code of 0 stays 0.
    mean_M, std_M (M,): 0 and 1 in `layer` columns, 0 and the divisor in `scale` columns.
    """

    blocks: tuple[tuple[str, int], ...]
    mean_M: torch.Tensor
    std_M: torch.Tensor

    def columns(self, kind: str) -> torch.Tensor:
        """Which columns are normalised so, (M,) bool."""
        return torch.tensor([one == kind for one, columns in self.blocks for _ in range(columns)])

    @property
    def learned_M(self) -> torch.Tensor:
        """Which columns have a learned scale and shift, (M,) bool."""
        return self.columns("layer")

    def __call__(self, a_BM: torch.Tensor) -> torch.Tensor:
        """Normalised activations (B, M), before scale and shift."""
        sizes = [columns for _, columns in self.blocks]
        columns = zip(self.blocks, *(x.split(sizes, dim=-1) for x in (a_BM, self.mean_M, self.std_M)), strict=True)
        parts = [nn.functional.layer_norm(a, (count,), eps=EPSILON) if kind == "layer" else (a - mean) / std
                 for (kind, count), a, mean, std in columns]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def fit_normaliser(blocks: Sequence[tuple[str, int]], train_features_ND: torch.Tensor, bank: Encoder | torch.Tensor,
                   train_rows: torch.Tensor | None = None, chunk: int = 65536,
                   train_activations_NM: torch.Tensor | None = None) -> Normaliser:
    """The normaliser of a bank (on its device), with mean and deviation (ddof 1) of the training activations.

    bank: its encoder, or vectors (M, D) to project on. train_rows: the rows that are trained on, under `--holdout`;
    else all. train_activations_NM: where they are known; else each is computed twice. A column that is constant, up to
    the rounding of its sum of D products, has deviation 1: its noise is not scaled up.
    """
    encoder = as_encoder(bank)
    if sum(columns for _, columns in blocks) != len(encoder) or not {kind for kind, _ in blocks} <= set(KINDS):
        raise ValueError(f"{blocks} does not describe the {len(encoder)} columns of the bank")
    mean_M, std_M = encoder.weight_MD.new_zeros(len(encoder)), encoder.weight_MD.new_ones(len(encoder))
    normaliser, device = Normaliser(tuple(blocks), mean_M, std_M), mean_M.device
    fitted_M, centred_M = ~normaliser.learned_M.to(device), normaliser.columns("standard").to(device)
    if fitted_M.any():
        rows = torch.arange(len(train_features_ND)) if train_rows is None else train_rows
        mean, squares, size_D = 0.0, 0.0, 0.0

        def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for some in rows.split(chunk):
                h = train_features_ND[some].to(device, torch.float32)
                a = encoder(h) if train_activations_NM is None else train_activations_NM[some.to(device)]
                yield h, a[:, fitted_M].double()

        for h, a in chunks():
            mean = mean + a.sum(0) / len(rows)
            size_D = size_D + torch.linalg.vector_norm(h, 1, dim=0) / len(rows)  # mean |h|
        mean = mean * centred_M[fitted_M]
        for _, a in chunks():
            squares = squares + (a - mean).square().sum(0)
        std = (squares / (len(rows) - centred_M[fitted_M].long()).clamp_min(1)).sqrt()
        constant = std <= ROUNDING * encoder.size_M(size_D)[fitted_M]  # of the products that an activation adds up
        mean_M[fitted_M], std_M[fitted_M] = mean.float(), std.masked_fill(constant, 1.0).float()
    return normaliser


def interpret(features_ND: torch.Tensor, bank: Encoder | torch.Tensor, normaliser: Normaliser | None = None,
              chunk: int = 65536) -> torch.Tensor:
    """Activations of a bank (its encoder, or vectors to project on) normalised, by LayerNorm over all M unless said,
    without scale and shift: (N, M) float32 on the bank's device. Reads `features_ND` `chunk` rows at a time (it may be
    memory-mapped)."""
    encoder = as_encoder(bank)
    normaliser = normaliser or fit_normaliser([("layer", len(encoder))], features_ND, encoder)
    activations_NM = torch.empty(len(features_ND), len(encoder), device=encoder.weight_MD.device)
    for start in range(0, len(features_ND), chunk):
        activations_NM[start:start + chunk] = normaliser(encoder(features_ND[start:start + chunk]))
    return activations_NM


def interpret_train(blocks: Sequence[tuple[str, int]], train_features_ND: torch.Tensor, bank: Encoder | torch.Tensor,
                    train_rows: torch.Tensor | None = None, chunk: int = 65536) -> tuple[Normaliser, torch.Tensor]:
    """`fit_normaliser` and the `interpret` of train (N, M) with it, every activation computed once: a code of SpLiCE is
    a Lasso."""
    encoder = as_encoder(bank)
    zeros_M = encoder.weight_MD.new_zeros(len(encoder))
    unchanged = Normaliser((("scale", len(encoder)),), zeros_M, zeros_M + 1)
    a_NM = interpret(train_features_ND, encoder, unchanged, chunk)
    normaliser = fit_normaliser(blocks, train_features_ND, encoder, train_rows, chunk, a_NM)
    for part_BM in a_NM.split(chunk):
        part_BM.copy_(normaliser(part_BM))
    return normaliser, a_NM


class LinearHeads(nn.Module):
    """G linear classifiers on inputs (B, W) → logits (G, C, B). All start from one initial head, so that the cells of a
    seed differ only in what the grid varies.

    capturable: whether a step of `backward` can be a CUDA graph: its gradient is written down and draws nothing.
    """

    capturable = True

    def __init__(self, count: int, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        first = nn.init.trunc_normal_(torch.empty(num_classes, width), std=0.02, generator=generator)
        self.weight = nn.Parameter(first.repeat(count, 1, 1))  # (G, C, W)
        self.bias = nn.Parameter(torch.zeros(count, num_classes))  # (G, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, W), the same for all heads, or (G, B, W)."""
        x = x.to(self.weight.dtype).expand(len(self.weight), *x.shape[-2:])
        return torch.baddbmm(self.bias[..., None], self.weight, x.mT)  # (G, C, B)

    @torch.no_grad()
    def backward(self, x_BW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of each head, (G,), with its gradient in the parameters."""
        losses_G, gradient_GCB = cross_entropy(self(x_BW), y_B)
        self.weight.grad, self.bias.grad = gradient_GCB @ x_BW, gradient_GCB.sum(2)
        return losses_G

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
        self.ratios, self.rule, self.capturable = tuple(ratios), rule, rule != "shrink"
        self.scale = nn.Parameter(torch.ones(len(ratios), num_concepts))  # (G, M), of the LayerNorm
        self.shift = nn.Parameter(torch.zeros(len(ratios), num_concepts))
        everything = learned_M is None or bool(learned_M.all())
        self.register_buffer("learned_M", None if everything else learned_M, persistent=False)

    def interpretations(self, z: torch.Tensor) -> torch.Tensor:
        """The sparsified interpretations (G, B, M) of normalised activations, (B, M) or (G, B, M)."""
        return sparsify(torch.addcmul(self.shift[:, None], z, self.scale[:, None]), self.ratios, self.rule)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return super().forward(self.interpretations(z))

    def backward(self, z_BM: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        losses_G = (autograd_backward if self.rule == "shrink" else masked_backward)(self, z_BM, y_B)
        if self.learned_M is not None:  # a gradient of 0 leaves Adam's entry where it is
            self.scale.grad.mul_(self.learned_M)
            self.shift.grad.mul_(self.learned_M)
        return losses_G


@torch.no_grad()
def masked_backward(heads: InterpretationHeads, z_BM: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """`backward` with the gradient written down, for the mask K and the logits' gradient g (C, B):

        x = (z·scale + shift)·K    logits = W x + b    P = g (z·K)    Q = g K
        dW = scale·P + shift·Q     dscale = Σ_c W·P    dshift = Σ_c W·Q    db = Σ_b g

    The gradient by x, as large as x, is never formed. On a CPU a head at a time is faster, because its arrays stay
    in the cache (bench/heads.py says how much all this gives).
    """
    losses_G = z_BM.new_empty(len(heads.ratios))
    for parameter in heads.parameters():
        parameter.grad = torch.empty_like(parameter)
    at_once = 1 if z_BM.device.type == "cpu" else len(heads.ratios)
    for start in range(0, len(heads.ratios), at_once):
        some = slice(start, start + at_once)
        weight, scale, shift = heads.weight[some], heads.scale[some], heads.shift[some]
        x_GBM, keep_GBM = scaled_and_masked(z_BM, scale, shift, heads.ratios[some], heads.rule)
        logits_GCB = torch.baddbmm(heads.bias[some, :, None], weight, x_GBM.mT)
        losses_G[some], gradient_GCB = cross_entropy(logits_GCB, y_B)
        bias_GC = torch.sum(gradient_GCB, 2, out=heads.bias.grad[some])
        if keep_GBM is None:
            P_GCM, Q_GCM = gradient_GCB @ z_BM, bias_GC[..., None].expand_as(weight)
        else:
            P_GCM, Q_GCM = gradient_GCB @ torch.mul(z_BM, keep_GBM, out=x_GBM), gradient_GCB @ keep_GBM
        torch.sum(weight * P_GCM, 1, out=heads.scale.grad[some])
        torch.sum(weight * Q_GCM, 1, out=heads.shift.grad[some])
        torch.addcmul(P_GCM * scale[:, None], Q_GCM, shift[:, None], out=heads.weight.grad[some])
    return losses_G


def scaled_and_masked(z_BM: torch.Tensor, scale_GM: torch.Tensor, shift_GM: torch.Tensor, ratios: Sequence[float],
                      rule: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sparsified interpretations and their mask of 0 and 1, both (G, B, M), without a gradient; None where all stay."""
    if z_BM.is_cuda:
        dropped = [dropped_count(z_BM.shape[1], ratio) for ratio in ratios]
        x_GBM = scaled_and_selected(z_BM, scale_GM, shift_GM, dropped, rule)
        return x_GBM, kept(x_GBM).to(x_GBM.dtype)
    x_GBM = torch.addcmul(shift_GM[:, None], z_BM, scale_GM[:, None])
    keep_GBM = keep_mask(x_GBM, ratios, rule)
    return (x_GBM if keep_GBM is None else x_GBM.mul_(keep_GBM)), keep_GBM


def autograd_backward(heads: LinearHeads, x: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """`LinearHeads.backward` by autograd, for heads whose gradient is not written down."""
    for parameter in heads.parameters():
        parameter.grad = None
    logits_GCB = heads(x)
    losses_G = F.cross_entropy(logits_GCB, y_B.expand(len(logits_GCB), -1), reduction="none").mean(1)
    losses_G.sum().backward()
    return losses_G.detach()


def cross_entropy(logits_GCB: torch.Tensor, y_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropy of each head, (G,), and its gradient by the logits, (G, C, B)."""
    true_G1B = y_B.expand(len(logits_GCB), 1, -1)
    log_GCB = logits_GCB.log_softmax(1)
    losses_G = -log_GCB.gather(1, true_G1B).mean((1, 2))
    gradient_GCB = log_GCB.exp_().mul_(1 / len(y_B))
    less = gradient_GCB.new_full((1, 1, 1), -1 / len(y_B)).expand_as(true_G1B)
    return losses_G, gradient_GCB.scatter_add_(1, true_G1B, less)
