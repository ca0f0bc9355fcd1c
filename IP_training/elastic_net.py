"""Sparse linear classifiers by the elastic net: LF-CBM's final layer, and the paths behind accuracy at NEC.

    minimise  mean CE(W x + b, y) + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²)       b is free; alpha = 0.99

Concepts are highly correlated, so gradient methods need thousands of passes over the data, and stopped early they leave
far too many weights non-zero. A step here knows the curvature: the softmax's Hessian is at most 1/2, so the loss lies
below a quadratic with half the Gram matrix of (x, 1), the same for every class (Böhning 1992). Coordinate descent
minimises it, and the steps are accelerated (Beck and Teboulle 2009; restarts as in O'Donoghue and Candès 2015). The
whole set is one batch: no randomness. Standardise x first: one lam treats all columns alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

ROWS = 65536  # samples at a time
RIDGE = 1e-6  # on the curvature, against a Gram matrix rounded below zero
SWEEPS = 5  # of coordinate descent in a step, at most: a rough minimum serves as well
BLOCK = 64  # coordinates between two updates of all slopes, which are then one matrix product


class Fit(NamedTuple):
    """W_CM (C, M) with exact zeros, b_C (C,), the objective in nats, passes over the data, and whether the optimality
    conditions hold to the tolerance asked for."""

    W_CM: torch.Tensor
    b_C: torch.Tensor
    objective: float
    passes: int
    converged: bool


def elastic_net_path(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, lams: Sequence[float],
                     alpha: float = 0.99, n_iters: int = 100, tolerance: float = 0.1) -> Iterator[tuple[float, Fit]]:
    """(lam, Fit) for every lam in the order given (large to small), each started from the last.

    x_NM (N, M) float, standardised, and y_N (N,) int64 on one device. Each solution takes at most `n_iters` passes over
    the data, fewer once `violation` is at most `tolerance` · lam · alpha. Memory beside x: ROWS x C floats, M x M and
    M x C doubles.
    """
    curvature = half_gram(x_NM)
    W_KC = np.zeros((len(curvature), num_classes))  # K = M + 1: the last row is the bias
    counts_C = torch.bincount(y_N, minlength=num_classes).double().cpu().numpy()
    W_KC[-1] = np.log(np.maximum(counts_C, 0.5) / len(y_N))  # the best bias at W = 0; no class is empty
    for lam in lams:
        W_KC, passes, converged = _solve(x_NM, y_N, W_KC, curvature, lam, alpha, n_iters, tolerance)
        W_CM, b_C = _split(W_KC, x_NM)
        yield lam, Fit(W_CM, b_C, objective(x_NM, y_N, W_CM, b_C, lam, alpha), passes, converged)


def fit_elastic_net(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, lam: float, alpha: float = 0.99,
                    n_iters: int = 1000, tolerance: float = 0.01) -> Fit:
    """The solution at one lam; see `elastic_net_path`."""
    return next(elastic_net_path(x_NM, y_N, num_classes, [lam], alpha, n_iters, tolerance))[1]


def bytes_of_fit(rows: int, width: int, concepts: int, classes: int) -> int:
    """Memory in bytes of one path from `rows` features of `width` numbers: x, what `ROWS` of them need, and M x M and
    M x C doubles."""
    return (4 * (rows * concepts + min(rows, ROWS) * max(width + concepts, 3 * classes))
            + 8 * concepts * (2 * concepts + 6 * classes))


def half_gram(x_NM: torch.Tensor) -> np.ndarray:
    """(x, 1)ᵀ(x, 1) / 2N, (M + 1, M + 1) float64: at least the loss's curvature, whatever the weights."""
    total = x_NM.new_zeros(x_NM.shape[1] + 1, x_NM.shape[1] + 1, dtype=torch.float64)
    for x in x_NM.split(ROWS):
        x = torch.nn.functional.pad(x, (0, 1), value=1.0)  # (B, M + 1)
        total += x.T @ x
    return (total / (2 * len(x_NM))).cpu().numpy() + RIDGE * np.eye(len(total))


def violation(gradient_KC: np.ndarray, W_KC: np.ndarray, lam: float, alpha: float = 0.99) -> float:
    """How far the optimality conditions are from holding, 0 at the minimum. The last row is the bias.

    Where W ≠ 0 the loss's gradient is to be −lam·(alpha·sign W + (1 − alpha)·W), where W = 0 at most lam·alpha in size;
    the bias's is to be 0.
    """
    W = W_KC[:-1]
    slope = gradient_KC[:-1] + lam * (1 - alpha) * W
    excess = np.where(W != 0, np.abs(slope + lam * alpha * np.sign(W)), np.abs(slope) - lam * alpha)
    return max(float(excess.max()), float(np.abs(gradient_KC[-1]).max()))


def _solve(x_NM: torch.Tensor, y_N: torch.Tensor, W_KC: np.ndarray, curvature: np.ndarray, lam: float, alpha: float,
           n_iters: int, tolerance: float) -> tuple[np.ndarray, int, bool]:
    ahead_KC, momentum, limit = W_KC, 1.0, tolerance * lam * alpha
    best, best_KC = np.inf, W_KC
    for passes in range(1, n_iters + 1):
        loss, gradient_KC = _loss_and_gradient(x_NM, y_N, ahead_KC)
        if violation(gradient_KC, ahead_KC, lam, alpha) <= limit:
            return ahead_KC, passes, True
        value = loss + lam * _penalty(ahead_KC[:-1], alpha)
        if value > best and momentum > 1:  # carried past the minimum: a step without momentum from the best point
            ahead_KC, W_KC, momentum = best_KC, best_KC, 1.0
            continue
        if value < best:
            best, best_KC = value, ahead_KC
        new_KC = minimise_model(curvature, ahead_KC, gradient_KC, lam, alpha, 0.1 * limit)
        if ((ahead_KC - new_KC) * (curvature @ (new_KC - W_KC))).sum() > 0:  # the momentum points uphill
            momentum = 1.0
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead_KC = new_KC + (momentum - 1) / grown * (new_KC - W_KC)
        # The point ahead may be returned: its momentum must neither revive a weight nor carry one across 0.
        ahead_KC[:-1] = np.where(ahead_KC[:-1] * new_KC[:-1] > 0, ahead_KC[:-1], new_KC[:-1])
        W_KC, momentum = new_KC, grown
    return W_KC, n_iters, False


def minimise_model(curvature: np.ndarray, now_KC: np.ndarray, gradient_KC: np.ndarray, lam: float, alpha: float,
                   limit: float, sweeps: int = SWEEPS) -> np.ndarray:
    """Near argmin over u of gradient·(u − now) + ½ (u − now)ᵀ curvature (u − now) + the penalty of all rows of u but
    the last, (K, C): cyclic coordinate descent for all classes at once, until no slope moved by more than `limit`."""
    u_KC, slope_KC, diagonal, last = now_KC.copy(), gradient_KC.copy(), np.diagonal(curvature), len(curvature) - 1
    for _ in range(sweeps):
        before = u_KC.copy()
        for start in range(0, last + 1, BLOCK):
            block = slice(start, min(start + BLOCK, last + 1))
            slope_BC, own_BB = slope_KC[block].copy(), curvature[block, block]
            for k in range(start, block.stop):
                new_C = diagonal[k] * u_KC[k] - slope_BC[k - start]
                if k < last:
                    new_C -= np.minimum(np.maximum(new_C, -lam * alpha), lam * alpha)
                    new_C /= diagonal[k] + lam * (1 - alpha)
                else:
                    new_C /= diagonal[k]
                change_C = new_C - u_KC[k]
                if change_C.any():
                    slope_BC += own_BB[:, k - start, None] * change_C  # (B, C)
                    u_KC[k] = new_C
            slope_KC += curvature[:, block] @ (u_KC[block] - before[block])  # (K, C)
        if (np.abs(u_KC - before).max(1) * diagonal).max() <= limit:
            break
    return u_KC


def residuals(x_BM: torch.Tensor, y_B: torch.Tensor, W_CM: torch.Tensor, b_C: torch.Tensor) -> torch.Tensor:
    """softmax(W x + b) − one-hot(y), (B, C): the gradient of the cross-entropy with respect to the logits."""
    residual_BC = torch.addmm(b_C, x_BM, W_CM.T).softmax(1)
    return residual_BC.scatter_add_(1, y_B[:, None], residual_BC.new_full((len(y_B), 1), -1.0))


def objective(x_NM: torch.Tensor, y_N: torch.Tensor, W_CM: torch.Tensor, b_C: torch.Tensor, lam: float,
              alpha: float = 0.99) -> float:
    """Mean CE + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²), in nats."""
    total = sum(float(torch.nn.functional.cross_entropy(torch.addmm(b_C, x, W_CM.T), y, reduction="sum"))
                for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True))
    return total / len(x_NM) + lam * _penalty(W_CM.double().cpu().numpy(), alpha)


def _penalty(W: np.ndarray, alpha: float) -> float:
    return float(alpha * np.abs(W).sum() + (1 - alpha) / 2 * np.square(W).sum())


def largest_lam(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, alpha: float = 0.99) -> float:
    """The smallest lam at which W is all zero: the largest |gradient| at W = 0 with the best b, over alpha."""
    shares_C = torch.bincount(y_N, minlength=num_classes).to(x_NM) / len(y_N)
    W_CM = x_NM.new_zeros(num_classes, x_NM.shape[1])
    total_CM = sum(residuals(x, y, W_CM, shares_C.log()).T @ x
                   for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True))
    return float((total_CM / len(x_NM)).abs().max()) / alpha


def _loss_and_gradient(x_NM: torch.Tensor, y_N: torch.Tensor, W_KC: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean cross-entropy and its gradient (K, C), float64."""
    W_CM, b_C = _split(W_KC, x_NM)
    total_KC, loss = W_CM.new_zeros(W_KC.shape), 0.0
    for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True):
        residual_BC = residuals(x, y, W_CM, b_C)
        true_B = residual_BC.gather(1, y[:, None]) + 1  # the probability of the true class
        loss -= float(true_B.clamp_min(1e-30).log().sum(dtype=torch.float64))
        total_KC[:-1] += x.T @ residual_BC
        total_KC[-1] += residual_BC.sum(0)
    return loss / len(x_NM), total_KC.double().cpu().numpy() / len(x_NM)


def _split(W_KC: np.ndarray, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W (C, M) and b (C,) on the device and in the precision of `like`."""
    W_KC = torch.from_numpy(W_KC).to(like)
    return W_KC[:-1].T.contiguous(), W_KC[-1].clone()
