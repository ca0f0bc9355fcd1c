"""Sparse linear classifiers by the elastic net: LF-CBM's final layer, and the solutions behind accuracy at NEC.

    minimise  mean CE(W x + b, y) + lam · (alpha·‖W‖₁ + (1 − alpha)/2·‖W‖²)       b is free; alpha = 0.99

How many weights are zero is known only at the minimum, and concepts are highly correlated: first-order methods need
thousands of passes over the data to get there. Steps here know the curvature:

- up to `PRECISE` classes a step goes to the minimum of the quadratic model with all terms, within and between classes
  (proximal Newton; Lee, Sun and Saunders 2014): about 4 passes for one lam of a path. While few weights take part
  (`DENSE`) the model's matrix is written down and the minimum exact, else it is found from products with it;
- with more classes a proximal step takes the curvature within each class alone, which moves the support; then the mean
  of the points that the last steps led to under which the mean step is shortest brings in what the classes do to each
  other (Anderson's acceleration, as Bertrand and Massias 2021 have it for coordinate descent): about 15 passes where p
  is far from 0 and 1. The surer the layer, the more the terms between classes weigh, and the more passes: on 101
  classes, 30 images of each and 64 features after a ReLU, 27 passes at 10 weights a class, 485 at 28 (by
  products 4 and 6).

A point is taken only if the objective falls. Up to `PRECISE` classes the loss and its gradient are float64, so that
zeros do not depend on rounding; with more, products are in the precision of x, as curvature always is. The whole set is
one batch: no randomness. Standardise x first: one lam treats all columns alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch

ROWS = 65536  # samples at a time
PRECISE = 256  # classes up to which loss and gradient are float64: of a model with 1 - p below 1e-7 little else is left
HESSIAN_ROWS = 8192  # samples at a time for the Hessian
DENSE = 500  # weights and biases in a step, above which the model's matrix is not written down: products are faster
METRIC_ROWS = 8192  # samples that a class's curvature is taken from, those of the largest p(1 − p)
NEAR = 0.8  # a zero weight whose slope is above this share of the penalty takes part in a proximal step
SWEEPS = 10  # of coordinate descent in a step, at most: a rough minimum serves as well
DEPTH = 8  # steps that are combined, at most
INNER = 0.02  # to what share of the largest violation the step of a class is exact
ROUNDS = 20  # of moving the support and the minimum on it, at most, in a step by products
FORCE = 0.3  # to what share of the largest violation such a step is exact: more is lost again where curvature changes
STALE = 1.5  # ratio of lam over which the curvatures within the classes, which only guide such a step, are kept
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
    """A point U (C, K) of weights and, in the last column, biases; the objective there, the loss's gradient,
    the largest violation of the optimality conditions, and the probabilities (B, C) of each part of the data."""

    U_CK: torch.Tensor
    value: float
    gradient_CK: torch.Tensor
    violation: float
    parts_BC: list[torch.Tensor]


@dataclass
class _Memory:
    """Of the steps by class at one lam: the metric, the weights it covers, its scale, and the last (point, step)."""

    metric: tuple[torch.Tensor, torch.Tensor] | None = None
    covers: torch.Tensor | None = None
    scale: float = 1.0
    steps: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class ElasticNet:
    """One data set, to be solved at any number of lams.

    x_NM (N, M) float, standardised, and y_N (N,) int64 on one device. For the memory see `bytes_of_fit`.
    """

    def __init__(self, x_NM: torch.Tensor, y_N: torch.Tensor, num_classes: int, alpha: float = 0.99) -> None:
        self.x_NM, self.y_N, self.num_classes, self.alpha = x_NM, y_N, num_classes, alpha
        products = torch.float64 if num_classes <= PRECISE else x_NM.dtype
        self.rounding = 1e-14 if products == torch.float64 else 1e-7  # of the objective, a share of it
        self.parts = [(x, x.to(products), y) for x, y in zip(x_NM.split(ROWS), y_N.split(ROWS), strict=True)]
        self.within: tuple[float, torch.Tensor] | None = None  # of `_product_steps`: lam, curvatures
        counts_C = torch.bincount(y_N, minlength=num_classes).double()
        self.empty_CK = counts_C.new_zeros(num_classes, x_NM.shape[1] + 1)
        self.empty_CK[:, -1] = (counts_C.clamp_min(0.5) / len(y_N)).log()  # the best bias at W = 0; no class is empty

    def largest_lam(self) -> float:
        """The smallest lam at which W is all zero: the largest |gradient| at W = 0 with the best b, over alpha."""
        return float(self._at(self.empty_CK, 0.0).gradient_CK[:, :-1].abs().max()) / self.alpha

    def solve(self, lam: float, start: Fit | None = None, n_iters: int = 1000, tolerance: float = 0.01) -> Fit:
        """The solution at `lam`, from `start` or W = 0: until no condition is violated by more than `tolerance` · lam ·
        alpha, or `n_iters` passes over the data are spent, or no step leads down at this precision."""
        at = self._at(self.empty_CK if start is None else
                      torch.cat([start.W_CM, start.b_C[:, None]], 1).to(self.empty_CK), lam)
        passes, limit, memory, down = 1, tolerance * lam * self.alpha, _Memory(), True
        precise = self.num_classes <= PRECISE
        while at.violation > limit and passes < n_iters and down:
            takes_part = (at.U_CK != 0) | (at.gradient_CK.abs() > NEAR * lam * self.alpha)
            takes_part[:, -1] = True
            if precise and int(takes_part.sum()) <= DENSE:
                steps = self._model_steps(at, lam, takes_part, 0.1 * limit)
            elif precise:
                steps = self._product_steps(at, lam, max(0.1 * limit, FORCE * at.violation), memory)
            else:
                steps = self._class_steps(at, lam, takes_part, memory)
            down = False
            for U_CK in steps:
                new, passes = self._at(U_CK, lam), passes + 1
                # Within rounding of the objective the violation decides.
                down = new.value < at.value or (new.value <= at.value * (1 + self.rounding)
                                                and new.violation < at.violation)
                if down:
                    at = new
                if down or passes >= n_iters:
                    break
        W_CM, b_C = at.U_CK[:, :-1].to(self.x_NM), at.U_CK[:, -1].to(self.x_NM)
        return Fit(W_CM, b_C, at.value, passes, at.violation <= limit)

    def _at(self, U_CK: torch.Tensor, lam: float) -> _Point:
        """One pass over the data."""
        gradient_CK, loss, parts = torch.zeros_like(U_CK), 0.0, []
        for _, x, y in self.parts:
            U = U_CK.to(x)
            p = torch.addmm(U[:, -1], x, U[:, :-1].T).log_softmax(1)  # (B, C), in logs
            loss -= float(p.gather(1, y[:, None]).sum(dtype=torch.float64))
            parts.append(p.exp_().clone())
            p.scatter_add_(1, y[:, None], p.new_full((len(y), 1), -1.0))  # now the gradient by the logits
            gradient_CK[:, :-1] += p.T @ x
            gradient_CK[:, -1] += p.sum(0)
        gradient_CK /= len(self.y_N)
        return _Point(U_CK, loss / len(self.y_N) + lam * penalty(U_CK[:, :-1], self.alpha), gradient_CK,
                      float(violations(gradient_CK, U_CK, lam, self.alpha).max()), parts)

    def _model_steps(self, at: _Point, lam: float, takes_part: torch.Tensor, limit: float) -> Iterator[torch.Tensor]:
        """The minimum of the quadratic model with all terms between the weights that take part, then points on the way
        there."""
        U_CK, threshold_CK = at.U_CK, torch.full_like(at.U_CK, lam * self.alpha)
        threshold_CK[:, -1] = 0
        slope_CK = at.gradient_CK.clone()
        slope_CK[:, :-1] += lam * (1 - self.alpha) * U_CK[:, :-1]
        curvature_AA, ridge_CK = self._hessian(at, takes_part), torch.zeros_like(U_CK)
        ridge_CK[:, :-1] = lam * (1 - self.alpha)
        curvature_AA.diagonal().mul_(1 + RIDGE).add_(ridge_CK[takes_part] + 1e-12)
        curvature, slope, start, threshold = (one.cpu().numpy() for one in (
            curvature_AA, slope_CK[takes_part], U_CK[takes_part], threshold_CK[takes_part]))
        found = minimise_model(curvature, slope, start, threshold, limit)
        step_CK = torch.zeros_like(U_CK).masked_scatter_(takes_part, torch.from_numpy(found - start).to(U_CK))
        for halvings in range(12):
            yield U_CK + 0.5**halvings * step_CK

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

    def _product_steps(self, at: _Point, lam: float, limit: float, memory: _Memory) -> Iterator[torch.Tensor]:
        """The minimum of the same model, to `limit`, from products with its matrix, then points on the way there.

        By turns a step of each class by its own curvature, which moves the support, and the minimum on the support by
        conjugate gradients, preconditioned by these curvatures; a weight that would change its sign becomes 0.
        """
        if self.within is None or max(lam / self.within[0], self.within[0] / lam) > STALE:
            self.within = lam, self._metric(at, lam, torch.ones_like(at.U_CK, dtype=torch.bool))[1]
        within_CKK, start_CK = self.within[1], at.U_CK
        weights = [p.to(x) for (x, _, _), p in zip(self.parts, at.parts_BC, strict=True)]
        ridge_CK, threshold_CK = (torch.full_like(start_CK, lam * share) for share in (1 - self.alpha, self.alpha))
        ridge_CK[:, -1] = threshold_CK[:, -1] = 0
        slope_CK = at.gradient_CK + ridge_CK * start_CK

        def product(V_CK: torch.Tensor) -> torch.Tensor:
            total_CK = ridge_CK * V_CK
            for (x, _, _), p in zip(self.parts, weights, strict=True):
                V = V_CK.to(x)
                q = torch.addmm(V[:, -1], x, V[:, :-1].T).mul_(p)  # (B, C)
                q -= p * q.sum(1, keepdim=True)
                total_CK[:, :-1] += (q.T @ x) / len(self.y_N)
                total_CK[:, -1] += q.sum(0) / len(self.y_N)
            return total_CK

        def moved(new_CK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
            """A point, the slope of the model's smooth part there, and the model's value."""
            new_now_CK = now_CK + product(new_CK - U_CK)
            value = (slope_CK + new_now_CK) * (new_CK - start_CK) / 2 + threshold_CK * new_CK.abs()
            return new_CK, new_now_CK, float(value.sum())

        U_CK, now_CK, least = start_CK, slope_CK, float((threshold_CK * start_CK.abs()).sum())
        for _ in range(ROUNDS):
            found = moved(minimise_by_class(memory.scale * within_CKK, U_CK, now_CK - ridge_CK * U_CK, lam, self.alpha,
                                            limit / 2, 3))
            if found[2] > least:
                memory.scale *= 1.5  # classes together go too far; at 2 they cannot
                continue
            U_CK, now_CK, least = found
            free_CK = (U_CK != 0) | (threshold_CK == 0)
            excess_CK = (now_CK + threshold_CK * U_CK.sign()) * free_CK
            largest = float(excess_CK.abs().max())
            if largest > limit / 2:
                own_CKK = torch.where(free_CK[:, :, None] & free_CK[:, None], within_CKK,
                                      torch.diag_embed((~free_CK).double()))
                factor_CKK, failed_C = torch.linalg.cholesky_ex(own_CKK)
                if bool(failed_C.any()):  # rounding left a block indefinite: its diagonal alone
                    own_CKK[failed_C > 0] = own_CKK.diagonal(dim1=1, dim2=2)[failed_C > 0].diag_embed()
                    factor_CKK = torch.linalg.cholesky(own_CKK)
                inverse_CKK = torch.cholesky_inverse(factor_CKK)
                step_CK = conjugate_gradients(lambda V_CK, free_CK=free_CK: product(V_CK) * free_CK, -excess_CK,
                                              inverse_CKK, max(limit / 4, 0.05 * largest))
                for halvings in range(8):
                    new_CK = U_CK + 0.5**halvings * step_CK
                    found = moved(torch.where((new_CK * U_CK < 0) & (threshold_CK > 0), 0.0, new_CK))
                    if found[2] < least:
                        U_CK, now_CK, least = found
                        break
            if float(violations(now_CK - ridge_CK * U_CK, U_CK, lam, self.alpha).max()) <= limit:
                break
        for halvings in range(12):
            yield start_CK + 0.5**halvings * (U_CK - start_CK)

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
            weight_N = (p * (1 - p)).to(self.x_NM)
            chosen = weight_N.topk(METRIC_ROWS).indices if len(p) > METRIC_ROWS else slice(None)
            x = torch.nn.functional.pad(self.x_NM[chosen][:, own[:-1]], (0, 1), value=1.0)
            weight = weight_N[chosen]
            factor = float(weight_N.sum(dtype=torch.float64) / weight.sum(dtype=torch.float64).clamp_min(1e-300)
                           / len(p))
            curvature_CLL[c, -len(own):, -len(own):] = (x.T @ (weight[:, None] * x)).double() * factor
        diagonal = curvature_CLL.diagonal(dim1=1, dim2=2)
        diagonal *= 1 + RIDGE
        diagonal += lam * (1 - self.alpha) + 1e-12
        return columns_CL, curvature_CLL

    def _class_steps(self, at: _Point, lam: float, takes_part: torch.Tensor,
                     memory: _Memory) -> Iterator[torch.Tensor]:
        """Where the last steps of all classes together lead to (Anderson), then the step of each class by its own
        curvature, then shorter ones."""
        violates = violations(at.gradient_CK, at.U_CK, lam, self.alpha) > 0
        if memory.covers is None or bool((violates & ~memory.covers).any()):
            memory.metric, memory.covers = self._metric(at, lam, takes_part), takes_part
        columns_CL, curvature_CLL = memory.metric
        index_CL, there_CL = columns_CL.clamp_min(0), columns_CL >= 0
        u_CL, slope_CL = (full.gather(1, index_CL) * there_CL for full in (at.U_CK, at.gradient_CK))

        for _ in range(12):
            step_CL = minimise_by_class(memory.scale * curvature_CLL, u_CL, slope_CL, lam, self.alpha,
                                        INNER * at.violation) - u_CL
            step_CK = torch.zeros_like(at.U_CK).scatter_add_(1, index_CL, step_CL * there_CL)
            memory.steps = [*memory.steps[1 - DEPTH:], (at.U_CK + step_CK, step_CK)]
            if len(memory.steps) > 1:
                steps_TCL = torch.stack([one.gather(1, index_CL) * there_CL for _, one in memory.steps])
                yield combined([point for point, _ in memory.steps],
                               torch.einsum("tcl,clm,scm->ts", steps_TCL, curvature_CLL, steps_TCL))
            yield at.U_CK + step_CK
            memory.steps.clear()
            memory.covers, memory.scale = None, 2 * memory.scale  # and a new metric at the next point


def conjugate_gradients(product: Callable[[torch.Tensor], torch.Tensor], right_CK: torch.Tensor,
                        inverse_CKK: torch.Tensor, limit: float, steps: int = 100) -> torch.Tensor:
    """Near the V (C, K) of product(V) = right: until no entry is off by more than `limit`, or after `steps` products.
    inverse_CKK: nearly that of the blocks within each class, as the preconditioner."""
    V_CK, left_CK = torch.zeros_like(right_CK), right_CK
    step_CK = eased_CK = torch.einsum("ckl,cl->ck", inverse_CKK, left_CK)
    norm = float((left_CK * eased_CK).sum())
    for _ in range(steps):
        moved_CK = product(step_CK)
        if (bend := float((step_CK * moved_CK).sum())) <= 0:  # rounding
            break
        share = norm / bend
        V_CK, left_CK = V_CK + share * step_CK, left_CK - share * moved_CK
        if float(left_CK.abs().max()) <= limit:
            break
        eased_CK = torch.einsum("ckl,cl->ck", inverse_CKK, left_CK)
        norm, before = float((left_CK * eased_CK).sum()), norm
        step_CK = eased_CK + norm / before * step_CK
    return V_CK


def combined(points: Sequence[torch.Tensor], gram_TT: torch.Tensor) -> torch.Tensor:
    """The mean of points (C, K) that makes the mean of the steps that led there shortest; gram: the steps' inner
    products. A weight is 0 where it is 0 at the last point, and keeps its sign there."""
    gram_TT = gram_TT + (1e-10 * gram_TT.diagonal().max() + 1e-300) * torch.eye(len(points)).to(gram_TT)
    weights_T = torch.linalg.solve(gram_TT, torch.ones_like(gram_TT[0]))
    mean_CK = torch.einsum("t,tck->ck", weights_T / weights_T.sum(), torch.stack(list(points)))
    mean_CK[:, :-1] = torch.where(mean_CK * points[-1] > 0, mean_CK, points[-1])[:, :-1]
    return mean_CK


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
    """Memory in bytes of solving on `rows` features of `width` numbers: x in single precision and, up to `PRECISE`
    classes, double; the probabilities of two points, and of one in
    single precision; what `ROWS` samples need meanwhile; and the larger of the Hessian
    of `DENSE` weights, four times, with the samples weighted by them, and the curvatures of C classes, six times, of
    at most M x M doubles, with the steps."""
    number = 8 if classes <= PRECISE else 4
    x = rows * concepts * (12 if number == 8 else 4)
    meanwhile = min(rows, ROWS) * (4 * (width + concepts) + 3 * number * classes)
    hessian = 4 * 8 * DENSE**2 + min(rows, HESSIAN_ROWS) * 4 * DENSE
    metric = 8 * classes * (6 * (concepts + 1) ** 2 + (4 * DEPTH + 20) * (concepts + 1)) + 8 * rows
    return x + rows * (2 * number + 4) * classes + meanwhile + max(hessian, metric)


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
