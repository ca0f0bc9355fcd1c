"""Scale, shift and sparsify on a GPU in one kernel: interpretations x = (z·scale + shift)·K without sorting.

A row of M magnitudes stays in registers. As integers, the bits of magnitudes have the order of the magnitudes, so the
smallest one that stays is found in 31 steps, a bit each, by counting how many are as large; then ties go by index. It
reads z and writes x, and nothing else of that size.

K is in x: a dropped entry is +0.0, and one that stays and is zero is −0.0, which counts as 0 in every product. `kept`
reads it back. Without Triton, or where the kernel does not work, `plain` computes the same.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from IP_training.sparsify import keep_mask

try:
    import triton
    import triton.language as tl
except ImportError:  # the builds of torch without CUDA come without it
    triton = None

MOST_CONCEPTS = 4096  # a row of more would not fit in registers
ENTRIES = 1024  # of a warp, 32 a thread; a program is a warp, whose sums need no shared memory, while a row fits in one
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, for tests


def scaled_and_selected(z: torch.Tensor, scale_GM: torch.Tensor, shift_GM: torch.Tensor, dropped: Sequence[int],
                      rule: str = "mask") -> torch.Tensor:
    """Interpretations (G, B, M) of normalised activations z, (B, M) for all heads or (G, B, M), with K in them.

    dropped: of each head, how many of M are dropped; rule: "mask" or "strict" (see `sparsify`). No gradient.
    """
    usable = z.is_cuda or INTERPRETED
    if usable and z.shape[-1] <= MOST_CONCEPTS and z.dtype == scale_GM.dtype == torch.float32 and works(z.device):
        return launch(z, scale_GM, shift_GM, tuple(dropped), rule)
    return plain(z, scale_GM, shift_GM, dropped, rule)


def kept(x: torch.Tensor) -> torch.Tensor:
    """K, a bool of the shape of x: the entries that were kept. x: of `scaled_and_selected`, as it was returned."""
    return x.view(torch.int32 if x.element_size() == 4 else torch.int64) != 0


@torch.no_grad()
def plain(z: torch.Tensor, scale_GM: torch.Tensor, shift_GM: torch.Tensor, dropped: Sequence[int],
          rule: str = "mask") -> torch.Tensor:
    """`scaled_and_selected` by sorting."""
    a_GBM = torch.addcmul(shift_GM[:, None], z, scale_GM[:, None])
    keep_GBM = keep_mask(a_GBM, [count / z.shape[-1] for count in dropped], rule)
    a_GBM.masked_fill_(a_GBM == 0, -0.0)
    return a_GBM if keep_GBM is None else a_GBM.masked_fill_(keep_GBM == 0, 0.0)


@functools.cache
def works(device: torch.device) -> bool:
    """Whether the kernel compiles there and gives what `plain` gives, on a few rows with ties; else a line on stderr
    says why not. Tried once, which waits for the device: call it before a CUDA graph is captured."""
    if triton is None:
        return False
    z_BM = torch.arange(20 * 130, device=device).view(20, 130).remainder(37) - 18.0  # products and sums are exact
    scale_GM, shift_GM = torch.ones(3, 130, device=device), torch.zeros(3, 130, device=device)
    try:
        for rule in ("mask", "strict"):
            arguments = z_BM, scale_GM, shift_GM, (0, 65, 127), rule
            if not torch.equal(launch(*arguments).view(torch.int32), plain(*arguments).view(torch.int32)):
                raise ValueError("its result is another than that of sorting")
    except Exception as error:  # no C compiler, an old driver: each fails in its own way
        reason = " ".join(str(error).split())[:160]
        print(f"the sparsifier's kernel is left out: {type(error).__name__}: {reason}", file=sys.stderr)
        return False
    return True


@torch.no_grad()
def launch(z: torch.Tensor, scale_GM: torch.Tensor, shift_GM: torch.Tensor, dropped: tuple[int, ...],
           rule: str) -> torch.Tensor:
    """`scaled_and_selected` by the kernel."""
    (heads, concepts), rows = scale_GM.shape, z.shape[-2]
    z, x_GBM = z.contiguous(), z.new_empty(heads, rows, concepts)
    width = triton.next_power_of_2(concepts)
    at_once = max(1, ENTRIES // width)
    with torch.cuda.device(z.device) if z.is_cuda else nullcontext():  # Triton launches on the current device
        select_kernel[triton.cdiv(rows, at_once), heads](
            z, scale_GM.contiguous(), shift_GM.contiguous(), counts(dropped, z.device), x_GBM, rows,
            rows * concepts if z.dim() == 3 else 0, concepts, width, at_once, rule == "strict",
            num_warps=max(1, width // ENTRIES))
    return x_GBM


@functools.lru_cache(maxsize=256)
def counts(dropped: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Copied to the device once: a copy in every step would wait for it."""
    return torch.tensor(dropped, dtype=torch.int32, device=device)


if triton is not None:
    @triton.jit
    def select_kernel(z_start, scale_start, shift_start, dropped_start, x_start, rows, z_stride,
                      M: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STRICT: tl.constexpr):
        """ROWS rows of one head. M concepts in WIDTH columns (a power of 2); z_stride: from head to head in z."""
        head = tl.program_id(1)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, WIDTH)
        inside = (row[:, None] < rows) & (column[None, :] < M)  # (ROWS, WIDTH)
        place = row[:, None] * M + column[None, :]
        z = tl.load(z_start + head.to(tl.int64) * z_stride + place, mask=inside, other=0.0)
        scale = tl.load(scale_start + head * M + column, mask=column < M, other=0.0)
        shift = tl.load(shift_start + head * M + column, mask=column < M, other=0.0)
        bits = tl.fma(z, scale[None, :], shift[None, :]).to(tl.int32, bitcast=True)
        dropped = tl.load(dropped_start + head)
        keep = inside
        if STRICT or dropped > 0:
            size = tl.where(column[None, :] < M, bits & 0x7FFFFFFF, -1)  # without the sign; padding is below all
            threshold = tl.zeros([ROWS], tl.int32)  # the largest that at least M − dropped reach, from its top bit on
            for bit in tl.static_range(30, -1, -1):
                higher = threshold + (1 << bit)
                reach = tl.sum((size >= higher[:, None]).to(tl.int32), 1)
                threshold = tl.where(reach >= M - dropped, higher, threshold)
            above = size > threshold[:, None]
            keep = above
            if not STRICT:
                tie = (size == threshold[:, None]).to(tl.int32)
                room = M - dropped - tl.sum(above.to(tl.int32), 1)
                keep = above | ((tie == 1) & (tl.cumsum(tie, 1) <= room[:, None]))
        signed = tl.where(bits == 0, -2147483648, bits)  # +0.0 that stays becomes −0.0
        x = tl.where(keep, signed, 0).to(tl.float32, bitcast=True)
        tl.store(x_start + head.to(tl.int64) * rows * M + place, x, mask=inside)
