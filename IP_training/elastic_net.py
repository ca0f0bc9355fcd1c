"""Sparse linear classifiers by the elastic net: LF-CBM's final layer, and the solutions behind accuracy at NEC.

    minimise  mean CE(W x + b, y) + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²)       b is free; alpha = 0.99

How many weights are zero is known only at the minimum, and concepts are highly correlated: first-order methods need
thousands of passes over the data to get there. Steps here know the curvature:

- while few weights take part (`DENSE`), a step goes to the exact minimum of the quadratic model with all terms, within
  and between classes (proximal Newton; Lee, Sun and Saunders 2014): about 7 passes for one lam of a path;
- with more, two kinds of step take turns, whichever mends the larger violation of the optimality conditions (as in
  Curtis and Robinson's FaRSA, 2017). A proximal step moves the support: its metric is each class's own curvature, which
  is scaled up until it bounds the loss. A Newton step moves the weights on the support, with all terms, by conjugate
  gradients under the same metric; a weight that would change its sign becomes 0.

The loss and its gradient are float64, so that zeros do not depend on rounding; curvature is in the precision of x. The
whole set is one batch: no randomness. Standardise x first: one lam treats all columns alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch

ROWS = 65536  # samples at a time
PRECISE = 256  # classes up to which probabilities are float64: of a model with 1 - p below 1e-7 little else is left
HESSIAN_ROWS = 8192  # samples at a time for the Hessian
DENSE = 1500  # weights and biases in a step, above which the terms between classes are not written down
METRIC_ROWS = 8192  # samples that a class's curvature is taken from, those of the largest p(1 − p)
NEAR = 0.8  # a zero weight whose slope is above this share of the penalty takes part in a proximal step
SWEEPS = 10  # of coordinate descent in a step, at most: a rough minimum serves as well
DIRECTIONS = 100  # of conjugate gradients in a step, at most
RIDGE = 1e-5  # of a class's curvature, against columns that are linearly dependent


class Fit(NamedTuple):
    """W_CM (C, M) with exact zeros, b_C (C,), the objective in nats, passes over the data, and whether the optimality
    conditions hold to the tolerance asked for."""

    W_CM: torch.Tensor
    b_C: torch.Tensor
    objective: float
    passes: int
    converged: bool


class _Point(NamedTuple):
    """A point U (C, K) of weights and, in the last column, biases; the mean loss and its gradient there, and the
    probabilities (B, C) of each part of the data."""

    U_CK: torch.Tensor
    loss: float
    gradient_CK: torch.Tensor
    parts_BC: list[torch.Tensor]


class ElasticNet:
    """One data set, to be solved at any number of lams.

    x_NM (N, M) float, standardised, and y_N (N,) int64 on one device. For the memory see `bytes_of_fit`.
    """

    def __init__(self, x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, alpha: float = 0.99) -> None:
        self.x_NM, self.y_N, self.num_classes, self.alpha = x_NM, y_N, num_classes, alpha
        self.parts = [(x, x.double(), y) for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True)]
        counts_C = torch.bincount(y_N, minlength=num_classes).double()
        self.empty_CK = counts_C.new_zeros(num_classes, x_NM.shape[1] + 1)
        self.empty_CK[:, -1] = (counts_C.clamp_min(0.5) / len(y_N)).log()  # the best bias at W = 0; no class is empty

    def largest_lam(self) -> float:
        """The smallest lam at which W is all zero: the largest |gradient| at W = 0 with the best b, over alpha."""
        return float(self._at(self.empty_CK).gradient_CK[:, :-1].abs().max()) / self.alpha

    def solve(self, lam: float, start: Fit | None = None, n_iters: int = 1000, tolerance: float = 0.01) -> Fit:
        """The solution at `lam`, from `start` or W = 0: until no condition is violated by more than `tolerance` · lam ·
        alpha, or the step ends that takes the passes over the data to `n_iters`."""
        at = self._at(self.empty_CK if start is None else
                      torch.cat([start.W_CM, start.b_C[:, None]], 1).to(self.empty_CK))
        passes, scale, newton_works = 1, 1.0, True
        while True:
            on_support, off_support = self._violations(at, lam)
            converged = max(on_support, off_support) <= tolerance * lam * self.alpha
            if converged or passes >= n_iters:
                break
            takes_part = (at.U_CK != 0) | (at.gradient_CK.abs() > NEAR * lam * self.alpha)
            takes_part[:, -1] = True
            if int(takes_part.sum()) <= DENSE:
                new, used = self._model_step(at, lam, takes_part, tolerance)
                stuck = new is None
            else:
                metric = self._metric(at, lam, takes_part)
                if newton_works and on_support >= off_support:
                    new, used, newton_works = self._newton_step(at, lam, metric)
                    stuck = False
                else:
                    new, used, scale = self._proximal_step(at, lam, metric, scale, max(on_support, off_support))
                    newton_works, stuck = True, new is None
            passes, at = passes + used, new or at
            if stuck:  # no descent is left at this precision
                break
        W_CM, b_C = at.U_CK[:, :-1].to(self.x_NM), at.U_CK[:, -1].to(self.x_NM)
        return Fit(W_CM, b_C, self._objective(at, lam), passes, converged)

    def _at(self, U_CK: torch.Tensor) -> _Point:
        """One pass over the data."""
        gradient_CK, loss, parts = torch.zeros_like(U_CK), 0.0, []
        for x, x64, y in self.parts:
            log_p = torch.addmm(U_CK[:, -1], x64, U_CK[:, :-1].T).log_softmax(1)  # (B, C)
            loss -= float(log_p.gather(1, y[:, None]).sum())
            p = log_p.exp_()
            parts.append(p.to(torch.float64 if self.num_classes <= PRECISE else x.dtype, copy=True))
            p.scatter_add_(1, y[:, None], p.new_full((len(y), 1), -1.0))  # now the gradient by the logits
            gradient_CK[:, :-1] += p.T @ x64
            gradient_CK[:, -1] += p.sum(0)
        return _Point(U_CK, loss / len(self.y_N), gradient_CK / len(self.y_N), parts)

    def _objective(self, at: _Point, lam: float) -> float:
        return at.loss + lam * penalty(at.U_CK[:, :-1], self.alpha)

    def _violations(self, at: _Point, lam: float) -> tuple[float, float]:
        """The largest violation on the support, biases among it, and off it."""
        excess_CK = violations(at.gradient_CK, at.U_CK, lam, self.alpha)
        zero_CK = at.U_CK == 0
        zero_CK[:, -1] = False
        return (float(excess_CK.masked_fill(zero_CK, 0).max()), float(excess_CK.masked_fill(~zero_CK, 0).max()))

    def _model_step(self, at: _Point, lam: float, takes_part: torch.Tensor,
                    tolerance: float) -> tuple[_Point | None, int]:
        """The next point: the minimum of the quadratic model with all terms between the weights that take part, or
        part of the way there; None where that leads nowhere; and passes."""
        U_CK, threshold_CK = at.U_CK, torch.full_like(at.U_CK, lam * self.alpha)
        threshold_CK[:, -1] = 0
        slope_CK = at.gradient_CK.clone()
        slope_CK[:, :-1] += lam * (1 - self.alpha) * U_CK[:, :-1]
        curvature_AA, ridge_CK = self._hessian(at, takes_part), torch.zeros_like(U_CK)
        ridge_CK[:, :-1] = lam * (1 - self.alpha)
        curvature_AA.diagonal().mul_(1 + RIDGE).add_(ridge_CK[takes_part] + 1e-12)
        curvature, slope, start, threshold = (one.cpu().numpy() for one in (
            curvature_AA, slope_CK[takes_part], U_CK[takes_part], threshold_CK[takes_part]))
        found = minimise_model(curvature, slope, start, threshold, 0.1 * tolerance * lam * self.alpha)
        step_CK = torch.zeros_like(U_CK).masked_scatter_(takes_part, torch.from_numpy(found - start).to(U_CK))
        value = self._objective(at, lam)
        for halvings in range(12):
            new = self._at(U_CK + 0.5**halvings * step_CK)
            if self._objective(new, lam) < value:
                return new, halvings + 2
        return None, halvings + 2

    def _hessian(self, at: _Point, takes_part: torch.Tensor) -> torch.Tensor:
        """The loss's Hessian among the weights that take part, (A, A) float64, class after class."""
        ends = [0, *takes_part.sum(1).cumsum(0).tolist()]
        columns = [row.nonzero()[:-1, 0] for row in takes_part]  # without the bias
        total_AA, within = at.U_CK.new_zeros(ends[-1], ends[-1]), [0.0] * len(columns)
        for (part, _, _), p_of_part in zip(self.parts, at.parts_BC, strict=True):
            for x, p in zip(part.split(HESSIAN_ROWS), p_of_part.split(HESSIAN_ROWS), strict=True):
                weighted_BA = x.new_empty(len(x), ends[-1])
                for c, own in enumerate(columns):
                    mine = slice(ends[c], ends[c + 1])
                    of_class = torch.nn.functional.pad(x[:, own], (0, 1), value=1.0)
                    weighted_BA[:, mine] = of_class * p[:, c, None]
                    weight_B1 = (p[:, c, None] * (1 - p[:, c, None])).to(x)
                    within[c] = within[c] + (of_class.T @ (of_class * weight_B1)).double()
                total_AA -= weighted_BA.T @ weighted_BA
        for c, own_AA in enumerate(within):
            total_AA[ends[c]:ends[c + 1], ends[c]:ends[c + 1]] = own_AA
        return total_AA / len(self.y_N)

    def _metric(self, at: _Point, lam: float, takes_part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which columns of each class take part, (C, L) with the bias last and −1 where there are fewer, and their
        curvature within the class, (C, L, L) float64; identity where there is no column."""
        sizes = takes_part.sum(1)
        columns_CL = torch.full((self.num_classes, int(sizes.max())), -1, device=sizes.device)
        curvature_CLL = torch.eye(columns_CL.shape[1], dtype=torch.float64,
                                  device=sizes.device).repeat(self.num_classes, 1, 1)
        for c in range(self.num_classes):
            own = takes_part[c].nonzero()[:, 0]
            columns_CL[c, -len(own):] = own
            p = torch.cat([part[:, c] for part in at.parts_BC])
            weight_N = p * (1 - p)
            weight_N = weight_N.to(self.x_NM)
            chosen = weight_N.topk(min(METRIC_ROWS, len(p))).indices
            x = torch.nn.functional.pad(self.x_NM[chosen[:, None], own[None, :-1]], (0, 1), value=1.0)
            weight = weight_N[chosen]
            factor = float(weight_N.sum(dtype=torch.float64) / weight.sum(dtype=torch.float64).clamp_min(1e-300)
                           / len(p))
            curvature_CLL[c, -len(own):, -len(own):] = (x.T @ (weight[:, None] * x)).double() * factor
        diagonal = curvature_CLL.diagonal(dim1=1, dim2=2)
        diagonal *= 1 + RIDGE
        diagonal += lam * (1 - self.alpha) + 1e-12
        return columns_CL, curvature_CLL

    def _proximal_step(self, at: _Point, lam: float, metric: tuple[torch.Tensor, torch.Tensor], scale: float,
                       violation: float) -> tuple[_Point | None, int, float]:
        """The next point, None where no scale of the metric leads down; passes; and the scale to begin with next."""
        columns_CL, curvature_CLL = metric
        index_CL, there_CL = columns_CL.clamp_min(0), columns_CL >= 0
        u_CL, slope_CL = (full.gather(1, index_CL) * there_CL for full in (at.U_CK, at.gradient_CK))
        for tries in range(1, 21):
            new_CL = minimise_by_class(scale * curvature_CLL, u_CL, slope_CL, lam, self.alpha, 0.05 * violation)
            step_CL = new_CL - u_CL
            new = self._at(at.U_CK.scatter_add(1, index_CL, step_CL * there_CL))
            model = float((slope_CL * step_CL).sum()
                          + scale / 2 * torch.einsum("cl,clm,cm->", step_CL, curvature_CLL, step_CL))
            if new.loss <= at.loss + model + 1e-15:
                return new, tries, max(scale / 1.5, 0.5)
            scale *= 2
        return None, tries, scale

    def _newton_step(self, at: _Point, lam: float,
                     metric: tuple[torch.Tensor, torch.Tensor]) -> tuple[_Point | None, int, bool]:
        """The next point, None where the step leads nowhere; passes; and whether the step was more than a short one."""
        columns_CL, curvature_CLL = metric
        index_CL, free_CK = columns_CL.clamp_min(0), at.U_CK != 0
        free_CK[:, -1] = True
        free_CL = free_CK.gather(1, index_CL) & (columns_CL >= 0)
        fixed_CLL = torch.where(free_CL[:, :, None] & free_CL[:, None, :], curvature_CLL, 0.0)
        fixed_CLL.diagonal(dim1=1, dim2=2)[~free_CL] = 1.0
        factor_CLL = torch.linalg.cholesky(fixed_CLL)

        def conditioned(r_CK: torch.Tensor) -> torch.Tensor:
            r_CL = r_CK.gather(1, index_CL) * free_CL
            solved = torch.cholesky_solve(r_CL[:, :, None], factor_CLL)[:, :, 0] * free_CL
            return torch.zeros_like(r_CK).scatter_add_(1, index_CL, solved)

        slope_CK = at.gradient_CK.clone()
        slope_CK[:, :-1] += lam * (self.alpha * at.U_CK[:, :-1].sign() + (1 - self.alpha) * at.U_CK[:, :-1])
        r_CK = -slope_CK * free_CK
        z_CK = conditioned(r_CK)
        step_CK, d_CK, old, used = torch.zeros_like(r_CK), z_CK, float((r_CK * z_CK).sum()), 0
        first = old
        for _ in range(DIRECTIONS):
            curved_CK = self._curved(at, d_CK, lam) * free_CK
            used += 1
            along = float((d_CK * curved_CK).sum())
            if along <= 0:
                break
            step_CK = step_CK + old / along * d_CK
            r_CK = r_CK - old / along * curved_CK
            z_CK = conditioned(r_CK)
            now = float((r_CK * z_CK).sum())
            if now <= 1e-4 * first:
                break
            d_CK, old = z_CK + now / old * d_CK, now
        value = self._objective(at, lam)
        reach_CM = torch.where(at.U_CK * step_CK < 0, -at.U_CK / step_CK, torch.inf)[:, :-1]  # where a weight is 0
        first_zero = float(reach_CM.min())
        for share in (1.0, 0.5, 0.25, first_zero):
            if share > 1:
                break
            U_CK = at.U_CK + share * step_CK
            U_CK[:, :-1].masked_fill_(reach_CM <= share, 0)
            new, used = self._at(U_CK), used + 1
            if self._objective(new, lam) < value:
                return new, used, share >= 0.25
        return None, used, False

    def _curved(self, at: _Point, d_CK: torch.Tensor, lam: float) -> torch.Tensor:
        """The objective's Hessian at a point times d, off the kinks of the penalty. One pass over the data."""
        total_CK, d = torch.zeros_like(d_CK), d_CK.to(self.x_NM)
        for (x, _, _), p in zip(self.parts, at.parts_BC, strict=True):
            p = p.to(x)
            change = p * torch.addmm(d[:, -1], x, d[:, :-1].T)  # (B, C)
            change -= p * change.sum(1, keepdim=True)
            total_CK[:, :-1] += change.T @ x
            total_CK[:, -1] += change.sum(0)
        total_CK /= len(self.y_N)
        total_CK[:, :-1] += lam * (1 - self.alpha) * d_CK[:, :-1]
        return total_CK


def elastic_net_path(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, lams: Sequence[float],
                     alpha: float = 0.99, n_iters: int = 1000, tolerance: float = 0.01) -> Iterator[tuple[float, Fit]]:
    """(lam, Fit) for every lam in the order given (large to small), each started from the last; see `ElasticNet`."""
    problem, fit = ElasticNet(x_NM, y_N, num_classes, alpha), None
    for lam in lams:
        fit = problem.solve(lam, fit, n_iters, tolerance)
        yield lam, fit


def fit_elastic_net(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, lam: float, alpha: float = 0.99,
                    n_iters: int = 1000, tolerance: float = 0.01) -> Fit:
    """The solution at one lam; see `ElasticNet`."""
    return next(elastic_net_path(x_NM, y_N, num_classes, [lam], alpha, n_iters, tolerance))[1]


def bytes_of_fit(rows: int, width: int, concepts: int, classes: int) -> int:
    """Memory in bytes of solving on `rows` features of `width` numbers: x in single and double precision, the
    probabilities of two points, what `ROWS` samples need meanwhile, and curvatures of C classes of M x M doubles."""
    return (rows * (12 * concepts + 8 * classes) + min(rows, ROWS) * (4 * (width + concepts) + 24 * classes)
            + 8 * classes * (3 * (concepts + 1) ** 2 + 20 * concepts))


def penalty(W_CM: torch.Tensor, alpha: float) -> float:
    """alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²."""
    return float(alpha * W_CM.abs().sum() + (1 - alpha) / 2 * W_CM.square().sum())


def violations(gradient_CK: torch.Tensor, U_CK: torch.Tensor, lam: float, alpha: float = 0.99) -> torch.Tensor:
    """How far each optimality condition is from holding, (C, K), 0 or less where it holds. The last column is the bias.

    Where W ≠ 0 the loss's gradient is to be −lam·(alpha·sign W + (1 − alpha)·W), where W = 0 at most lam·alpha in size;
    the bias's is to be 0.
    """
    W_CM, excess_CK = U_CK[:, :-1], gradient_CK.abs()
    slope_CM = gradient_CK[:, :-1] + lam * (1 - alpha) * W_CM
    excess_CK[:, :-1] = torch.where(W_CM != 0, (slope_CM + lam * alpha * W_CM.sign()).abs(),
                                    slope_CM.abs() - lam * alpha)
    return excess_CK


def minimise_model(curvature_AA: np.ndarray, slope_A: np.ndarray, start_A: np.ndarray, threshold_A: np.ndarray,
                   limit: float, rounds: int = 300) -> np.ndarray:
    """argmin over u of slope·(u − start) + ½ (u − start)ᵀ curvature (u − start) + threshold·|u|, (A,) float64, until no
    optimality condition is violated by more than `limit`.

    By turns a sweep of coordinate descent, which moves the support, and the exact minimum on the support. On the way
    there the best of the points where a weight crosses 0 is taken, as in feature-sign search (Lee et al., 2007).
    """
    u_A, now_A = start_A.copy(), slope_A.copy()  # now: the smooth part's slope at u
    diagonal = np.diagonal(curvature_AA)
    for _ in range(rounds):
        for k in range(len(u_A)):
            target = diagonal[k] * u_A[k] - now_A[k]
            change = (target - min(max(target, -threshold_A[k]), threshold_A[k])) / diagonal[k] - u_A[k]
            if change:
                now_A += change * curvature_AA[k]
                u_A[k] += change
        for _ in range(rounds):
            own = np.flatnonzero((u_A != 0) | (threshold_A == 0))
            excess_S = now_A[own] + threshold_A[own] * np.sign(u_A[own])
            if np.abs(excess_S).max() <= limit / 2:
                break
            step_S = -_solve(curvature_AA[np.ix_(own, own)], excess_S)
            with np.errstate(divide="ignore", invalid="ignore"):
                crossing_S = -u_A[own] / step_S
            crosses = (crossing_S > 0) & (crossing_S < 1) & (threshold_A[own] > 0)
            shares_T = np.append(crossing_S[crosses], 1.0)
            slope, bend = now_A[own] @ step_S, -excess_S @ step_S
            values_T = (shares_T * slope + shares_T**2 / 2 * bend
                        + np.abs(u_A[own] + shares_T[:, None] * step_S) @ threshold_A[own])
            best = int(values_T.argmin())
            new_S = u_A[own] + shares_T[best] * step_S
            if best < len(shares_T) - 1:
                new_S[np.flatnonzero(crosses)[best]] = 0
            now_A += curvature_AA[:, own] @ (new_S - u_A[own])
            u_A[own] = new_S
        now_A = slope_A + curvature_AA @ (u_A - start_A)  # without the rounding of many small changes
        off = u_A == 0
        if (np.abs(now_A[off]) - threshold_A[off]).max(initial=0) <= limit:
            break
    return u_A


def _solve(matrix_SS: np.ndarray, right_S: np.ndarray) -> np.ndarray:
    """matrix⁻¹ · right; where rounding left the matrix indefinite, of one with a larger diagonal: a shorter step."""
    diagonal_S, ridge = np.diagonal(matrix_SS).copy(), 0.0
    while True:
        try:
            return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix_SS, check_finite=False), right_S)
        except scipy.linalg.LinAlgError:
            ridge = max(1e-6, 100 * ridge)
            matrix_SS = matrix_SS.copy()
            np.fill_diagonal(matrix_SS, diagonal_S * (1 + ridge))


def minimise_by_class(curvature_CLL: torch.Tensor, now_CL: torch.Tensor, gradient_CL: torch.Tensor, lam: float,
                   alpha: float, limit: float, sweeps: int = SWEEPS) -> torch.Tensor:
    """Near argmin over u, class by class, of gradient·(u − now) + ½ (u − now)ᵀ curvature (u − now) + the penalty of all
    of u but the last, (C, L): cyclic coordinate descent for all classes at once, until no slope moved by more than
    `limit`. The ridge is taken to be in the curvature; here it only moves its centre to 0."""
    u_CL, last = now_CL.clone(), now_CL.shape[1] - 1
    start_CL = gradient_CL.clone()
    start_CL[:, :-1] += lam * (1 - alpha) * now_CL[:, :-1]
    diagonal_CL, threshold = curvature_CLL.diagonal(dim1=1, dim2=2).contiguous(), lam * alpha
    for _ in range(sweeps):
        before_CL = u_CL.clone()
        for j in range(last + 1):
            slope_C = start_CL[:, j] + (curvature_CLL[:, j] * (u_CL - now_CL)).sum(1)
            new_C = diagonal_CL[:, j] * u_CL[:, j] - slope_C
            if j < last:
                new_C = new_C - new_C.clamp(-threshold, threshold)
            u_CL[:, j] = new_C / diagonal_CL[:, j]
        if float(((u_CL - before_CL).abs() * diagonal_CL).max()) <= limit:
            break
    return u_CL


def objective(x_NM: torch.Tensor, y_N: torch.Tensor, W_CM: torch.Tensor, b_C: torch.Tensor, lam: float,
              alpha: float = 0.99) -> float:
    """Mean CE + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²), in nats."""
    total = sum(float(torch.nn.functional.cross_entropy(torch.addmm(b_C, x, W_CM.T), y, reduction="sum"))
                for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True))
    return total / len(x_NM) + lam * penalty(W_CM.double(), alpha)


def largest_lam(x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, alpha: float = 0.99) -> float:
    """The smallest lam at which W is all zero; see `ElasticNet`."""
    return ElasticNet(x_NM, y_N, num_classes, alpha).largest_lam()
