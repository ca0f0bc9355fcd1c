"""Sparsify interpretations: per sample, keep the concepts with the largest |activation| (paper, Eq. 4).

Rules, for M concepts and ratio s:
    mask     exactly k = M − ⌊M·s⌋ entries keep their value, the rest become 0; equal |a|: lower index first
    strict   the release: values above the ⌊M·s⌋-th (from 0) smallest |a|; one fewer than k, fewer still with ties
    shrink   Eq. 4 as printed: a · max(|a| − τ, 0), τ the largest zeroed |a|
    soft     sign(a) · max(|a| − τ, 0)
The threshold is a constant for the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from iis.grid import dropped_count

RULES = ("mask", "strict", "shrink", "soft")


def sparsify(a_GBM: torch.Tensor, ratios: Sequence[float], rule: str = "mask") -> torch.Tensor:
    """Sparsified activations (G, B, M); slice g at ratios[g]. Differentiable in `a_GBM`."""
    num_concepts = a_GBM.shape[-1]
    dropped = [dropped_count(num_concepts, ratio) for ratio in ratios]
    if rule != "strict" and not any(dropped):
        return a_GBM if rule == "mask" else _shrunk(a_GBM, 0.0, rule)
    magnitude = a_GBM.detach().abs()
    ascending = sort_ascending(magnitude)  # (G, B, M)
    if rule == "strict":
        return _where(magnitude > _pick(ascending, dropped), a_GBM)
    if rule == "mask":
        return _where(keep_largest(magnitude, ascending, dropped), a_GBM)
    largest_zeroed = _pick(ascending, [count - 1 for count in dropped])  # (G, B, 1)
    return _shrunk(a_GBM, largest_zeroed, rule)


def keep_largest(magnitude: torch.Tensor, ascending: torch.Tensor, dropped: Sequence[int]) -> torch.Tensor:
    """Bool (G, B, M), False at exactly dropped[g] entries of every row; among equal magnitudes the lower index
    is kept. `ascending` is `magnitude` sorted along its last axis."""
    threshold = _pick(ascending, dropped)  # (G, B, 1): the smallest magnitude that is kept
    keep = magnitude >= threshold
    # A row has more ties than places exactly when the largest dropped magnitude equals the smallest kept one.
    some_dropped = torch.tensor(dropped, device=magnitude.device)[:, None] > 0
    crowded = (_pick(ascending, [count - 1 for count in dropped]) == threshold)[..., 0] & some_dropped  # (G, B)
    if crowded.any():
        rows, ties = magnitude[crowded], (magnitude == threshold)[crowded]  # (R, M)
        above = rows > threshold[crowded]
        kept = torch.tensor([magnitude.shape[-1] - count for count in dropped], device=magnitude.device)
        places = kept[:, None].expand_as(crowded)[crowded] - above.sum(-1)  # (R,)
        keep[crowded] = above | (ties & (ties.cumsum(-1) <= places[:, None]))
    return keep


def sort_ascending(values: torch.Tensor) -> torch.Tensor:
    """Sorted along the last axis. On the CPU numpy's vectorised sort is many times faster than torch.sort on
    rows this short, and gives the same values."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _pick(ascending: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Entry positions[g] of every sorted row of slice g, (G, B, 1); position −1 (nothing is zeroed) gives 0."""
    index = torch.tensor([max(position, 0) for position in positions], device=ascending.device)
    picked = ascending.gather(-1, index[:, None, None].expand(-1, ascending.shape[1], 1))  # (G, B, 1)
    nothing = torch.tensor([position < 0 for position in positions], device=ascending.device)
    return picked.masked_fill(nothing[:, None, None], 0.0)


def _where(keep: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return torch.where(keep, a, torch.zeros((), dtype=a.dtype, device=a.device))


def _shrunk(a: torch.Tensor, threshold: torch.Tensor | float, rule: str) -> torch.Tensor:
    excess = (a.abs() - threshold).clamp_min(0)
    return a * excess if rule == "shrink" else a.sign() * excess
