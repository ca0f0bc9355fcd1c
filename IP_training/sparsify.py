"""Sparsify interpretations: per sample, keep the concepts with the largest |activation| (paper, Eq. 4).

Rules, for M concepts and ratio s:
    mask     exactly k = M − ⌊M·s⌋ entries keep their value, the rest become 0; equal |a|: lower index first
    strict   the release: values above the ⌊M·s⌋-th (from 0) smallest |a|; one fewer than k, fewer still with ties
    shrink   Eq. 4 as printed: a · max(|a| − τ, 0), τ the largest zeroed |a|
The threshold is a constant for the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from iis.grid import dropped_count


def sparsify(a_GBM: torch.Tensor, ratios: Sequence[float], rule: str = "mask") -> torch.Tensor:
    """Sparsified activations (G, B, M); slice g at ratios[g]. Differentiable in `a_GBM`."""
    if rule == "shrink":
        dropped = [dropped_count(a_GBM.shape[-1], ratio) for ratio in ratios]
        largest_zeroed = _pick(sort_ascending(a_GBM.detach().abs()), [count - 1 for count in dropped])  # (G, B, 1)
        return a_GBM * (a_GBM.abs() - largest_zeroed).clamp_min(0)
    keep_GBM = keep_mask(a_GBM, ratios, rule)
    return a_GBM if keep_GBM is None else a_GBM * keep_GBM


def scaled_and_masked(z_BM: torch.Tensor, scale_GM: torch.Tensor, shift_GM: torch.Tensor, ratios: Sequence[float],
                      rule: str = "mask") -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled, shifted and sparsified activations and their mask, both (G, B, M), without a gradient. No mask: all stay.
    """
    x_GBM = torch.addcmul(shift_GM[:, None], z_BM, scale_GM[:, None])  # (G, B, M)
    keep_GBM = keep_mask(x_GBM, ratios, rule)
    return (x_GBM if keep_GBM is None else x_GBM.mul_(keep_GBM)), keep_GBM


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
    threshold = _pick(sort_ascending(magnitude), dropped)  # (G, B, 1): the smallest magnitude that is kept
    if rule == "strict":
        return magnitude.gt_(threshold)
    kept = _tensor(tuple(magnitude.shape[-1] - count for count in dropped), magnitude.device)[:, None, None]
    return _exactly(magnitude, threshold, kept).to(magnitude.dtype)  # asking for ties would wait for the device


def keep_largest_(magnitude_BM: torch.Tensor, dropped: int, rule: str = "mask") -> torch.Tensor:
    """Turn the magnitudes of one head into its mask, in place: 1 at the entries that stay, 0 at the others.

    In floats, because the CPU's vector units do not work on a bool mask.
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
    exact = _exactly(magnitude_BM[crowded_B], threshold[crowded_B], kept).to(magnitude_BM.dtype)  # (rows, M)
    magnitude_BM.ge_(threshold)
    magnitude_BM[crowded_B] = exact
    return magnitude_BM


def _exactly(magnitude: torch.Tensor, threshold: torch.Tensor, kept: torch.Tensor | int) -> torch.Tensor:
    """Bool (…, M): all above the threshold, and of those equal to it the first ones, `kept` in all."""
    above, ties = magnitude > threshold, magnitude == threshold
    return above | (ties & (ties.cumsum(-1) <= kept - above.sum(-1, keepdim=True)))


def sort_ascending(magnitude: torch.Tensor) -> torch.Tensor:
    """Magnitudes (none below 0) sorted along the last axis.

    On a CPU numpy sorts their bits as integers, which have the same order and need no check for NaN: with AVX-512 some
    30 times as fast as torch.sort on rows this short (bench/heads.py), and the same values.
    """
    if magnitude.device.type == "cpu":
        values = magnitude.numpy()
        bits = values.view(f"i{values.itemsize}")
        return torch.from_numpy(np.sort(bits, axis=-1).view(values.dtype))
    return magnitude.sort(dim=-1).values


def _pick(ascending: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Entry positions[g] of every sorted row of slice g, (G, B, 1); position −1 (none is zeroed) gives 0."""
    index = _tensor(tuple(max(position, 0) for position in positions), ascending.device)
    picked = ascending.gather(-1, index[:, None, None].expand(-1, ascending.shape[1], 1))  # (G, B, 1)
    absent = _tensor(tuple(int(position < 0) for position in positions), ascending.device).bool()
    return picked.masked_fill_(absent[:, None, None], 0.0)


@functools.lru_cache(maxsize=256)
def _tensor(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Copied to the device once: a copy in every step would wait for it."""
    return torch.tensor(values, device=device)
