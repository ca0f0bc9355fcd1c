"""Lloyd's k-means from given initial centres, with fewer and cheaper distances than scikit-learn's.

Products are taken in bfloat16 where the machine has it in hardware; where that cannot tell the two nearest centres
apart they are taken again in float32.
An element whose own centre is surely the nearest (Hamerly's bounds: a centre that moved by δ is at least the old
distance − δ away) needs no products at all, and only elements that changed their centre touch the sums. Rounds, the end
(scikit-learn's tolerance) and what becomes of an empty cluster are those of scikit-learn's KMeans; products are
rounded otherwise, so that a rare element on a border may go to the other side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

ROWS = 2048  # elements at a time, so that their distances stay in the cache
ROUNDING = 2.0 ** -9  # of bfloat16, relative


class Fit(NamedTuple):
    """centres_MD (M, D), labels_E (E,), the sum of squared distances, and the rounds it took."""

    centres_MD: torch.Tensor
    labels_E: torch.Tensor
    inertia: float
    rounds: int


def lloyd(elements_ED: torch.Tensor, start_MD: torch.Tensor, max_rounds: int = 300, tolerance: float = 1e-4) -> Fit:
    """k-means of elements_ED (E, D), float32, from the centres start_MD (M, D), M >= 2.

    It ends when no element changes its centre, or the squared moves of all centres add up to less than `tolerance`
    times the mean variance of a column. An empty cluster takes the element farthest from its centre.
    """
    mean_D = elements_ED.mean(0)
    x_ED = elements_ED - mean_D  # smaller numbers, smaller errors
    state = _Assignment(x_ED, start_MD.to(elements_ED) - mean_D)
    enough = tolerance * float(state.squares_E.mean()) / x_ED.shape[1]
    sums_MD, counts_M = torch.zeros_like(start_MD, dtype=torch.float64), state.labels_E.new_zeros(len(start_MD))
    _add(x_ED, state.labels_E, sums_MD, counts_M, 1)
    rounds = 0
    for _ in range(max_rounds):
        rounds += 1
        _fill_empty(x_ED, state, sums_MD, counts_M)
        fresh_MD = (sums_MD / counts_M.clamp_min(1)[:, None]).to(x_ED)
        moves_M = (fresh_MD - state.centres_MD).norm(dim=1)
        before_E = state.labels_E.clone()
        state.follow(fresh_MD, moves_M)
        moved = (state.labels_E != before_E).nonzero()[:, 0]
        x_RD = x_ED[moved]
        _add(x_RD, before_E[moved], sums_MD, counts_M, -1)
        _add(x_RD, state.labels_E[moved], sums_MD, counts_M, 1)
        if not len(moved) or float(moves_M.square().sum()) <= enough:
            break
    centres_MD = state.centres_MD.double()  # Σ|x − c|² = Σ|x|² − 2 Σ c·(sum of its elements) + Σ n|c|²
    inertia = state.squares_E.double().sum() + (centres_MD * (counts_M[:, None] * centres_MD - 2 * sums_MD)).sum()
    return Fit(state.centres_MD + mean_D, state.labels_E, float(inertia), rounds)


class _Assignment:
    """Every element's nearest centre; its distance from above, and that of the second nearest from below."""

    def __init__(self, x_ED: torch.Tensor, centres_MD: torch.Tensor) -> None:
        rough = torch.bfloat16 if bfloat16_is_fast(x_ED.device) else torch.float32
        self.x_ED, self.rough_ED, self.squares_E = x_ED, x_ED.to(rough), x_ED.square().sum(1)
        self.centres_MD = centres_MD
        self.labels_E = torch.empty(len(x_ED), dtype=torch.int64, device=x_ED.device)
        self.above_E, self.below_E = torch.empty_like(self.squares_E), torch.empty_like(self.squares_E)
        self._measure(torch.arange(len(x_ED), device=x_ED.device))

    def follow(self, centres_MD: torch.Tensor, moves_M: torch.Tensor) -> None:
        """The centres have moved: find each element's nearest anew."""
        self.centres_MD = centres_MD
        self.above_E += moves_M[self.labels_E]
        self.below_E -= moves_M.max()
        self._measure((self.above_E >= self.below_E).nonzero()[:, 0])

    def _measure(self, rows: torch.Tensor) -> None:
        """Nearest centre and bounds of elements `rows`."""
        squares_M, rough_MD = self.centres_MD.square().sum(1), self.centres_MD.to(self.rough_ED.dtype)
        # Rounding of the factors averages out over D columns: eight standard deviations of it.
        spread = 8 * ROUNDING * float(squares_M.max().sqrt()) / self.x_ED.shape[1] ** 0.5
        for some in rows.split(ROWS):
            products = (self.rough_ED[some] @ rough_MD.T).float()  # (rows, M)
            error = products.abs().amax(1) * ROUNDING + spread * self.squares_E[some].sqrt()
            unsure = self._note(some, squares_M - 2 * products, 2 * error)
            again = some[unsure]
            self._note(again, squares_M - 2 * (self.x_ED[again] @ self.centres_MD.T), 1e-6 * self.squares_E[again])

    def _note(self, rows: torch.Tensor, less_RM: torch.Tensor, error_R: torch.Tensor) -> torch.Tensor:
        """Take over what distances say; which of the rows are unsure, bool (R,).

        less_RM: squared distances less |x|²; error_R: how far they may be off.
        """
        nearest_R, self.labels_E[rows] = less_RM.min(1)
        second_R = less_RM.scatter_(1, self.labels_E[rows, None], torch.inf).amin(1)
        squares_R = self.squares_E[rows]
        self.above_E[rows] = (squares_R + nearest_R + error_R).clamp_min(0).sqrt()
        self.below_E[rows] = (squares_R + second_R - error_R).clamp_min(0).sqrt()
        return second_R - nearest_R < 2 * error_R


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 there (2.4 times on one core with AVX-512 BF16)."""
    return device.type != "cpu" or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def _add(x_RD: torch.Tensor, labels_R: torch.Tensor, sums_MD: torch.Tensor, counts_M: torch.Tensor, sign: int) -> None:
    """Add (or with −1 take away) elements to the sums, double, and numbers of their clusters."""
    for x, labels in zip(x_RD.split(ROWS), labels_R.split(ROWS), strict=True):
        sums_MD += x.new_zeros(sums_MD.shape).index_add_(0, labels, x, alpha=sign)
    counts_M += sign * labels_R.bincount(minlength=len(counts_M))


def _fill_empty(x_ED: torch.Tensor, state: _Assignment, sums_MD: torch.Tensor, counts_M: torch.Tensor) -> None:
    """Give every empty cluster one element, those farthest from their centres first."""
    empty = (counts_M == 0).nonzero()[:, 0].tolist()
    if not empty:
        return
    own_E = torch.cat([(x - state.centres_MD[labels]).norm(dim=1)
                       for x, labels in zip(x_ED.split(ROWS), state.labels_E.split(ROWS), strict=True)])
    for cluster, row in zip(empty, own_E.topk(len(empty)).indices.tolist(), strict=True):
        before = int(state.labels_E[row])
        sums_MD[before] -= x_ED[row].double()
        sums_MD[cluster] = x_ED[row].double()
        counts_M[before] -= 1
        counts_M[cluster] += 1
        state.labels_E[row], state.above_E[row] = cluster, torch.inf  # its bounds say nothing any more
