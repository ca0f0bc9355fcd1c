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
    if magnitude.device.type == "cpu":  # a head at a time, while its magnitudes are in the cache
        for magnitude_BM, count in zip(magnitude, dropped, strict=True):
            keep_largest_(magnitude_BM, count, rule)
        return magnitude
    ascending = sort_ascending(magnitude)  # (G, B, M)
    threshold = _pick(ascending, dropped)  # (G, B, 1): the smallest magnitude that is kept
    if rule == "strict":
        return magnitude.gt_(threshold)
    kept = _tensor(tuple(magnitude.shape[-1] - count for count in dropped), magnitude.device)[:, None, None]
    return _exactly(magnitude, threshold, kept).to(magnitude.dtype)  # asking for ties would wait for the device


def keep_largest_(magnitude_BM: torch.Tensor, dropped: int, rule: str = "mask") -> torch.Tensor:
    """Turn the magnitudes of one head in place into its mask: under `mask`, 0 at exactly `dropped` entries of every
    row and 1 elsewhere, among equal magnitudes the lower index is kept; under `strict`, 1 above the threshold.

    In place and in floats, because the CPU's vector units then do all of it, which they do not for a bool mask.
    """
    if rule == "mask" and not dropped:
        return magnitude_BM.fill_(1.0)
    ascending = sort_ascending(magnitude_BM)
    threshold = ascending[:, dropped, None]  # (B, 1): the smallest magnitude that is kept
    if rule == "strict":
        return magnitude_BM.gt_(threshold)
    # A row has more ties than places exactly when the largest dropped magnitude equals the smallest kept one.
    crowded_B = ascending[:, dropped - 1] == threshold[:, 0]
    if not crowded_B.any():
        return magnitude_BM.ge_(threshold)
    kept = magnitude_BM.shape[-1] - dropped
    mended = _exactly(magnitude_BM[crowded_B], threshold[crowded_B], kept).to(magnitude_BM.dtype)  # (rows, M)
    magnitude_BM.ge_(threshold)
    magnitude_BM[crowded_B] = mended
    return magnitude_BM


def _exactly(magnitude: torch.Tensor, threshold: torch.Tensor, kept: torch.Tensor | int) -> torch.Tensor:
    """Bool (…, M): all above the threshold, and of those equal to it the first ones, `kept` in all."""
    above, ties = magnitude > threshold, magnitude == threshold
    return above | (ties & (ties.cumsum(-1) <= kept - above.sum(-1, keepdim=True)))


def sort_ascending(magnitude: torch.Tensor) -> torch.Tensor:
    """Magnitudes (none below 0) sorted along the last axis. On the CPU by numpy's vectorised sort, and as integers:
    the bits of floats above 0 have the order of the floats, and integers need no watch for NaN. Some 30 times as
    fast as torch.sort on rows this short (bench/heads.py, with AVX-512), and the same values.
    """
    if magnitude.device.type == "cpu":
        values = magnitude.numpy()
        bits = values.view(f"i{values.itemsize}")
        return torch.from_numpy(np.sort(bits, axis=-1).view(values.dtype))
    return magnitude.sort(dim=-1).values


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
