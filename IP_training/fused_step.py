"""One training step of stacked heads on a CPU, written out: losses and gradients without autograd.

Per predictor, with z (B, M) the normalised activations, K the mask, g = (softmax − one-hot)/B the loss's gradient:

    a = z·scale + shift      x = a·K      logits = x Wᵀ + b
    P = gᵀ(z·K)    Q = gᵀK        (C, M) each
    dW = scale·P + shift·Q        dscale = Σ_c W·P        dshift = Σ_c W·Q        db = Σ_b g

so that the gradient with respect to x, as large as x, is never formed: two products and four passes over (B, M) per
head, in buffers small enough to stay in the cache, where autograd through all heads at once takes a dozen passes
through main memory. Logits and their gradients lie classes first, (C, B): MKL's products with few classes and
torch's reductions over them are several times as fast so, the dense heads' weight gradient above all. The same
numbers to rounding (tested).
"""

from __future__ import annotations

import torch

from iis.grid import dropped_count
from IP_training.predictor import DenseHeads, InterpretationHeads
from IP_training.sparsify import keep_largest_


def can_fuse(heads: torch.nn.Module, x_BW: torch.Tensor) -> bool:
    """Whether `fused_step` serves these heads: dense, or predictors whose sparsifier is a mask; on a CPU."""
    known = isinstance(heads, DenseHeads) or isinstance(heads, InterpretationHeads) and heads.rule in ("mask", "strict")
    return known and x_BW.device.type == "cpu"


@torch.no_grad()
def fused_step(heads: DenseHeads | InterpretationHeads, x_BW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every head, summed over the batch, (G,); `.grad` of every parameter becomes the gradient
    of its mean. x_BW: what the heads' `forward` takes."""
    for parameter in heads.parameters():
        parameter.grad = torch.empty_like(parameter)
    x_BW = x_BW.to(heads.bias_GC.dtype)
    if isinstance(heads, DenseHeads):
        return torch.stack([_step_of_dense(heads, g, x_BW, y_B) for g in range(len(heads.bias_GC))])
    buffers = [torch.empty_like(x_BW) for _ in range(2)]
    losses = [_step_of_one(heads, g, x_BW, y_B, *buffers) for g in range(len(heads.ratios))]
    if heads.learned_M is not None:
        heads.scale_GM.grad *= heads.learned_M
        heads.shift_GM.grad *= heads.learned_M
    return torch.stack(losses)


@torch.no_grad()
def logits_of(heads: torch.nn.Module, x_BW: torch.Tensor) -> torch.Tensor:
    """Logits of all heads, classes first, (G, C, B); the same numbers as the heads' `forward`."""
    if not can_fuse(heads, x_BW):
        return heads(x_BW).mT
    x_BW = x_BW.to(heads.bias_GC.dtype)
    dense, buffers = isinstance(heads, DenseHeads), [torch.empty_like(x_BW) for _ in range(2)]
    weight_GCW = heads.weight_GCD if dense else heads.weight_GCM
    logits_GCB = x_BW.new_empty(*heads.bias_GC.shape, len(x_BW))
    for g, logits_CB in enumerate(logits_GCB):
        kept_BW = x_BW if dense else _interpret_one(heads, g, x_BW, *buffers)[0]
        torch.addmm(heads.bias_GC[g, :, None], weight_GCW[g], kept_BW.T, out=logits_CB)
    return logits_GCB


def _step_of_dense(heads: DenseHeads, g: int, h_BD: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Loss of dense head g summed over the batch; its gradients go into slice g of every `.grad`."""
    loss, g_CB = _loss_and_gradient(heads.weight_GCD[g], heads.bias_GC[g], h_BD, y_B)
    torch.sum(g_CB, 1, out=heads.bias_GC.grad[g])
    torch.mm(g_CB, h_BD, out=heads.weight_GCD.grad[g])
    return loss


def _step_of_one(heads: InterpretationHeads, g: int, z_BM: torch.Tensor, y_B: torch.Tensor, x_BM: torch.Tensor,
                 keep_BM: torch.Tensor) -> torch.Tensor:
    """Loss of predictor g summed over the batch; its gradients go into slice g of every `.grad`. x, keep: scratch."""
    weight_CM, scale_M, shift_M = heads.weight_GCM[g], heads.scale_GM[g], heads.shift_GM[g]
    x_BM, whole = _interpret_one(heads, g, z_BM, x_BM, keep_BM)
    loss, g_CB = _loss_and_gradient(weight_CM, heads.bias_GC[g], x_BM, y_B)
    bias_grad_C = torch.sum(g_CB, 1, out=heads.bias_GC.grad[g])
    P_CM = g_CB @ (z_BM if whole else torch.mul(z_BM, keep_BM, out=x_BM))
    Q_CM = bias_grad_C[:, None].expand_as(P_CM) if whole else g_CB @ keep_BM
    torch.sum(weight_CM * P_CM, 0, out=heads.scale_GM.grad[g])
    torch.sum(weight_CM * Q_CM, 0, out=heads.shift_GM.grad[g])
    torch.addcmul(P_CM.mul_(scale_M), Q_CM, shift_M, out=heads.weight_GCM.grad[g])
    return loss


def _interpret_one(heads: InterpretationHeads, g: int, z_BM: torch.Tensor, x_BM: torch.Tensor,
                   keep_BM: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Interpretations of predictor g into x, its mask into keep; true where all concepts stay (keep is not set)."""
    torch.addcmul(heads.shift_GM[g], z_BM, heads.scale_GM[g], out=x_BM)
    dropped = dropped_count(z_BM.shape[1], heads.ratios[g])
    if heads.rule == "mask" and not dropped:
        return x_BM, True
    torch.abs(x_BM, out=keep_BM)
    keep_largest_(keep_BM, dropped, heads.rule)
    return x_BM.mul_(keep_BM), False


def _loss_and_gradient(weight_CW: torch.Tensor, bias_C: torch.Tensor, x_BW: torch.Tensor,
                       y_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the linear layer summed over the batch, and the gradient of its mean by the logits, (C, B)."""
    log_share_CB = torch.addmm(bias_C[:, None], weight_CW, x_BW.T).log_softmax(0)
    loss = -log_share_CB.gather(0, y_B[None]).sum()
    g_CB = log_share_CB.exp_()
    return loss, g_CB.scatter_add_(0, y_B[None], g_CB.new_full((1, len(y_B)), -1.0)).div_(len(y_B))
