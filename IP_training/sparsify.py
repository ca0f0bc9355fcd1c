"""Sparsify interpretations: per sample, keep the concepts with the largest |activation| (paper, Eq. 4).

Rules, for M concepts and ratio s:
    mask     exactly k = M − ⌊M·s⌋ entries keep their value, the rest become 0; equal |a|: lower index first
    strict   the release: values above the ⌊M·s⌋-th (from 0) smallest |a|; one fewer than k, fewer still with ties
    shrink   Eq. 4 as printed: a · max(|a| − τ, 0), τ the largest zeroed |a|
    soft     sign(a) · max(|a| − τ, 0)
The threshold is a constant for the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from iis.grid import dropped_count

RULES = ("mask", "strict", "shrink", "soft")


def sparsify(a_GBM: torch.Tensor, ratios: Sequence[float], rule: str = "mask") -> torch.Tensor:
    """Sparsified activations (G, B, M); slice g at ratios[g]. Differentiable in `a_GBM`."""
    if rule in ("mask", "strict"):
        keep = keep_mask(a_GBM, ratios, rule)
        return a_GBM if keep is None else a_GBM * keep
    dropped = [dropped_count(a_GBM.shape[-1], ratio) for ratio in ratios]
    ascending = sort_ascending(a_GBM.detach().abs())  # (G, B, M)
    excess = (a_GBM.abs() - _pick(ascending, [count - 1 for count in dropped])).clamp_min(0)  # over the largest zeroed
    return a_GBM * excess if rule == "shrink" else a_GBM.sign() * excess


def keep_mask(a_GBM: torch.Tensor, ratios: Sequence[float], rule: str = "mask") -> torch.Tensor | None:
    """1.0 where `mask` or `strict` keeps an entry, else 0.0, (G, B, M); None where all of them stay."""
    dropped = [dropped_count(a_GBM.shape[-1], ratio) for ratio in ratios]
    if rule == "mask" and not any(dropped):
        return None
    magnitude = a_GBM.detach().abs()
    ascending = sort_ascending(magnitude)  # (G, B, M)
    if rule == "strict":
        return magnitude.gt_(_pick(ascending, dropped))
    return keep_largest_(magnitude, ascending, dropped)


def keep_largest_(magnitude: torch.Tensor, ascending: torch.Tensor, dropped: Sequence[int]) -> torch.Tensor:
    """Turn magnitudes (G, B, M) in place into a mask, 0 at exactly dropped[g] entries of every row and 1 elsewhere;
    among equal magnitudes the lower index is kept. `ascending` is `magnitude` sorted along its last axis.

    In place and in floats, because the CPU's vector units then do all of it, which they do not for a bool mask.
    """
    threshold = _pick(ascending, dropped)  # (G, B, 1): the smallest magnitude that is kept
    kept = _tensor(tuple(magnitude.shape[-1] - count for count in dropped), magnitude.device)[:, None, None]
    if magnitude.device.type != "cpu":  # asking whether there are ties would wait for the device
        return _exactly(magnitude, threshold, kept).to(magnitude.dtype)
    # A row has more ties than places exactly when the largest dropped magnitude equals the smallest kept one.
    crowded = (_pick(ascending, [count - 1 for count in dropped], nothing=-1.0) == threshold)[..., 0]  # (G, B)
    if not crowded.any():
        return magnitude.ge_(threshold)
    kept_R1 = kept.expand_as(threshold)[crowded]
    mended = _exactly(magnitude[crowded], threshold[crowded], kept_R1).to(magnitude.dtype)  # (R, M)
    keep = magnitude.ge_(threshold)
    keep[crowded] = mended
    return keep


def _exactly(magnitude: torch.Tensor, threshold: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Bool (…, M): all above the threshold, and of those equal to it the first ones, `kept` in all."""
    above, ties = magnitude > threshold, magnitude == threshold
    return above | (ties & (ties.cumsum(-1) <= kept - above.sum(-1, keepdim=True)))


def sort_ascending(values: torch.Tensor) -> torch.Tensor:
    """Sorted along the last axis. On the CPU numpy's vectorised sort is some 20 times as fast as torch.sort on
    rows this short (bench/heads.py, with AVX-512), and gives the same values."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _pick(ascending: torch.Tensor, positions: Sequence[int], nothing: float = 0.0) -> torch.Tensor:
    """Entry positions[g] of every sorted row of slice g, (G, B, 1); position −1 (none is zeroed) gives `nothing`."""
    index = _tensor(tuple(max(position, 0) for position in positions), ascending.device)
    picked = ascending.gather(-1, index[:, None, None].expand(-1, ascending.shape[1], 1))  # (G, B, 1)
    absent = _tensor(tuple(int(position < 0) for position in positions), ascending.device).bool()
    return picked.masked_fill_(absent[:, None, None], nothing)


@functools.lru_cache(maxsize=256)
def _tensor(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Copied to the device once: a copy in every step would wait for it."""
    return torch.tensor(values, device=device)
