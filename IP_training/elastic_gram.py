"""The objective of elastic_net.py in few passes over the data: for a path over lam, whose sparsity must be real.

SAGA's step is set by the largest eigenvalue of x. Concepts are highly correlated, so it needs thousands of epochs, and
stopped early it leaves far too many weights non-zero and the classifier too weak. Here a step knows all eigenvalues:
the softmax's Hessian is at most 1/2, so the loss lies below a quadratic whose curvature is half the Gram matrix of
(x, 1), the same for every class (Böhning 1992). It is minimised by coordinate descent, and the steps are accelerated
(Beck and Teboulle 2009; momentum restarts as in O'Donoghue and Candès 2015). The whole set is one batch: no randomness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from IP_training.elastic_net import ROWS, Fit, objective, residuals

RIDGE = 1e-6  # on the curvature, against a Gram matrix rounded below zero
SWEEPS = 5  # of coordinate descent in a step, at most: a rough minimum serves as well


def gram_path(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, lams: Sequence[float], alpha: float = 0.99,
              n_iters: int = 100, tolerance: float = 0.1) -> Iterator[tuple[float, Fit]]:
    """(lam, Fit) for every lam in the order given (large to small), each started from the last.

    x_NM (N, M) float, standardised, and y_N (N,) int64 on one device. A Fit's `epochs` are passes over the data: at
    most `n_iters`, fewer once `violation` is at most `tolerance` · lam · alpha. Memory beside x: ROWS x C floats.
    """
    curvature = half_gram(x_NM)
    W_KC = np.zeros((len(curvature), num_classes))  # K = M + 1: the last row is the bias
    counts_C = torch.bincount(y_N, minlength=num_classes).double().cpu().numpy()
    W_KC[-1] = np.log(np.maximum(counts_C, 0.5) / len(y_N))  # the best bias at W = 0; no class is empty
    for lam in lams:
        W_KC, passes = _solve(x_NM, y_N, W_KC, curvature, lam, alpha, n_iters, tolerance)
        W_CM, b_C = _split(W_KC, x_NM)
        yield lam, Fit(W_CM, b_C, objective(x_NM, y_N, W_CM, b_C, lam, alpha), passes)


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
           n_iters: int, tolerance: float) -> tuple[np.ndarray, int]:
    ahead_KC, momentum, limit = W_KC, 1.0, tolerance * lam * alpha
    for passes in range(1, n_iters + 1):
        gradient_KC = _gradient(x_NM, y_N, ahead_KC)
        if violation(gradient_KC, ahead_KC, lam, alpha) <= limit:
            return ahead_KC, passes
        new_KC = minimise_model(curvature, ahead_KC, gradient_KC, lam, alpha, 0.1 * limit)
        if ((ahead_KC - new_KC) * (curvature @ (new_KC - W_KC))).sum() > 0:  # the momentum points uphill
            momentum = 1.0
        grown = (1 + (1 + 4 * momentum ** 2) ** 0.5) / 2
        # A weight that the step set to 0 stays 0 in the point ahead, which may be the one that is returned.
        ahead_KC = np.where(new_KC == 0, 0.0, new_KC + (momentum - 1) / grown * (new_KC - W_KC))
        W_KC, momentum = new_KC, grown
    return W_KC, n_iters


def minimise_model(curvature: np.ndarray, now_KC: np.ndarray, gradient_KC: np.ndarray, lam: float, alpha: float,
                   limit: float, sweeps: int = SWEEPS) -> np.ndarray:
    """Near argmin over u of gradient·(u − now) + ½ (u − now)ᵀ curvature (u − now) + the penalty of all rows of u but
    the last, (K, C): cyclic coordinate descent for all classes at once, until no slope moved by more than `limit`."""
    u_KC, slope_KC, columns = now_KC.copy(), gradient_KC.copy(), curvature[:, :, None]
    diagonal, last = np.diagonal(curvature), len(curvature) - 1
    for _ in range(sweeps):
        before = u_KC.copy()
        for k in range(last + 1):
            own = diagonal[k]
            new_C = own * u_KC[k] - slope_KC[k]
            if k < last:
                new_C -= np.minimum(np.maximum(new_C, -lam * alpha), lam * alpha)
                new_C /= own + lam * (1 - alpha)
            else:
                new_C /= own
            change_C = new_C - u_KC[k]
            if change_C.any():
                slope_KC += columns[k] * change_C  # (K, C)
                u_KC[k] = new_C
        if (np.abs(u_KC - before).max(1) * diagonal).max() <= limit:
            break
    return u_KC


def _gradient(x_NM: torch.Tensor, y_N: torch.Tensor, W_KC: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy, (K, C) float64."""
    W_CM, b_C = _split(W_KC, x_NM)
    total_KC = W_CM.new_zeros(W_KC.shape)
    for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True):
        residual_BC = residuals(x, y, W_CM, b_C)
        total_KC[:-1] += x.T @ residual_BC
        total_KC[-1] += residual_BC.sum(0)
    return total_KC.double().cpu().numpy() / len(x_NM)


def _split(W_KC: np.ndarray, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W (C, M) and b (C,) on the device and in the precision of `like`."""
    W_KC = torch.from_numpy(W_KC).to(like)
    return W_KC[:-1].T.contiguous(), W_KC[-1].clone()
