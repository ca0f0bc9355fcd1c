"""The classic final layer of LF-CBM: a sparse linear classifier, by proximal SAGA (a comparison to the sparsifier).

    minimise  mean CE(W x + b, y) + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²)       b is free; alpha = 0.99

The gradient of one sample is (softmax − one-hot) xᵀ, so SAGA's table of gradients (N, C, M) is held as residuals
(N, C), and the gradient of a batch is one matrix product. Standardise x first: one lam treats all columns alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from iis.runtime import torch_rng

ROWS = 65536  # samples at a time where the whole set is passed over


class Fit(NamedTuple):
    """W_CM (C, M) with exact zeros, b_C (C,), the objective, and how many epochs it took."""

    W_CM: torch.Tensor
    b_C: torch.Tensor
    objective: float
    epochs: int


@dataclass
class Saga:
    """The state of SAGA: the classifier, every sample's residual when last seen, and the mean gradient they give."""

    W_CM: torch.Tensor
    b_C: torch.Tensor
    residual_NC: torch.Tensor
    mean_W_CM: torch.Tensor
    mean_b_C: torch.Tensor

    def step(self, x_BM: torch.Tensor, y_B: torch.Tensor, rows: torch.Tensor, size: float, lam: float,
             alpha: float) -> None:
        """One proximal step on samples `rows` of the set: x_BM (B, M), y_B (B,)."""
        fresh_BC = residuals(x_BM, y_B, self.W_CM, self.b_C)
        change_BC = fresh_BC - self.residual_NC[rows]
        change_W, change_b = change_BC.T @ x_BM, change_BC.sum(0)  # (C, M), (C,)
        self.W_CM -= size * (change_W / len(rows) + self.mean_W_CM)
        self.b_C -= size * (change_b / len(rows) + self.mean_b_C)
        shrink_(self.W_CM, size * lam * alpha).div_(1 + size * lam * (1 - alpha))
        self.mean_W_CM += change_W / len(self.residual_NC)
        self.mean_b_C += change_b / len(self.residual_NC)
        self.residual_NC[rows] = fresh_BC


def fit_elastic_net(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, lam: float, alpha: float = 0.99,
                    n_iters: int = 1000, batch_size: int = 256, seed: int = 0, tolerance: float = 1e-4,
                    W0: torch.Tensor | None = None, b0: torch.Tensor | None = None) -> Fit:
    """Fit on x_NM (N, M) float, standardised, and y_N (N,) int64, both on one device; at most `n_iters` epochs.

    Stops when no entry of W and b moved by more than `tolerance` times the largest |entry| over an epoch.
    W0 (C, M), b0 (C,): where to start (zeros). Memory beside x: N x C floats.
    """
    W_CM = x_NM.new_zeros(num_classes, x_NM.shape[1]) if W0 is None else W0.to(x_NM).clone()
    b_C = x_NM.new_zeros(num_classes) if b0 is None else b0.to(x_NM).clone()
    state = _start(x_NM, y_N, W_CM, b_C)
    batch_size = min(batch_size, len(x_NM))
    size, epoch = step_size(x_NM, batch_size), 0
    for epoch in range(1, n_iters + 1):
        before_W, before_b = W_CM.clone(), b_C.clone()
        order = torch.randperm(len(x_NM), generator=torch_rng(seed, "saga", epoch)).to(x_NM.device)
        for rows in order.split(batch_size):
            state.step(x_NM[rows], y_N[rows], rows, size, lam, alpha)
        moved = max(float((W_CM - before_W).abs().max()), float((b_C - before_b).abs().max()))
        if moved <= tolerance * max(float(W_CM.abs().max()), float(b_C.abs().max())):
            break
    return Fit(W_CM, b_C, objective(x_NM, y_N, W_CM, b_C, lam, alpha), epoch)


def elastic_net_path(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, lams: Sequence[float],
                     **settings: object) -> Iterator[tuple[float, Fit]]:
    """(lam, Fit) for every lam in the order given, each started from the last: give them from large to small."""
    W_CM = b_C = None
    for lam in lams:
        fit = fit_elastic_net(x_NM, y_N, num_classes, lam, W0=W_CM, b0=b_C, **settings)
        W_CM, b_C = fit.W_CM, fit.b_C
        yield lam, fit


def residuals(x_BM: torch.Tensor, y_B: torch.Tensor, W_CM: torch.Tensor, b_C: torch.Tensor) -> torch.Tensor:
    """softmax(W x + b) − one-hot(y), (B, C): the gradient of the cross-entropy with respect to the logits."""
    residual_BC = torch.addmm(b_C, x_BM, W_CM.T).softmax(1)
    return residual_BC.scatter_add_(1, y_B[:, None], residual_BC.new_full((len(y_B), 1), -1.0))


def shrink_(W: torch.Tensor, amount: float) -> torch.Tensor:
    """In place: every entry moves towards 0 by `amount`, and stops there. The proximal map of amount·‖W‖₁."""
    return W.sub_(W.clamp(-amount, amount))


def objective(x_NM: torch.Tensor, y_N: torch.Tensor, W_CM: torch.Tensor, b_C: torch.Tensor, lam: float,
              alpha: float = 0.99) -> float:
    """Mean CE + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²), in nats."""
    total = sum(float(torch.nn.functional.cross_entropy(torch.addmm(b_C, x, W_CM.T), y, reduction="sum"))
                for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True))
    penalty = alpha * W_CM.abs().sum() + (1 - alpha) / 2 * W_CM.square().sum()
    return total / len(x_NM) + lam * float(penalty)


def largest_lam(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, alpha: float = 0.99) -> float:
    """The smallest lam at which W is all zero: the largest |gradient| at W = 0 with the best b, over alpha."""
    shares_C = torch.bincount(y_N, minlength=num_classes).to(x_NM) / len(y_N)
    W_CM = x_NM.new_zeros(num_classes, x_NM.shape[1])
    return float(_start(x_NM, y_N, W_CM, shares_C.log()).mean_W_CM.abs().max()) / alpha


def step_size(x_NM: torch.Tensor, batch_size: int) -> float:
    """1 / (3 L). The softmax's Hessian is at most 1/2, so one sample has L = ‖(x, 1)‖²/2, and the whole set half the
    largest eigenvalue of its second moments; a batch lies between (expected smoothness, Gower et al. 2019)."""
    count, columns = x_NM.shape
    moments = x_NM.new_zeros(columns + 1, columns + 1, dtype=torch.float64)
    largest = 0.0
    for x in x_NM.split(ROWS):
        x = torch.nn.functional.pad(x, (0, 1), value=1.0)  # (B, M + 1)
        moments += x.T @ x
        largest = max(largest, float(x.square().sum(1).max()))
    whole = float(torch.linalg.eigvalsh(moments / count)[-1])
    share = (count - batch_size) / (batch_size * max(count - 1, 1))  # 1 for single samples, 0 for the whole set
    return 1 / (3 * ((1 - share) * whole + share * largest) / 2)


def _start(x_NM: torch.Tensor, y_N: torch.Tensor, W_CM: torch.Tensor, b_C: torch.Tensor) -> Saga:
    """Exact residuals of the whole set at (W, b), so that a warm start loses nothing."""
    residual_NC, mean_W_CM = x_NM.new_empty(len(x_NM), len(W_CM)), torch.zeros_like(W_CM)
    for start in range(0, len(x_NM), ROWS):
        rows = slice(start, start + ROWS)
        residual_NC[rows] = residuals(x_NM[rows], y_N[rows], W_CM, b_C)
        mean_W_CM += residual_NC[rows].T @ x_NM[rows] / len(x_NM)
    return Saga(W_CM, b_C, residual_NC, mean_W_CM, residual_NC.mean(0))
