"""Representations too large to stay resident: read row by row from their memory-mapped file, float32 on the device.

A head sees the same rows in the same order as from a resident tensor, so it trains to the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

GIB = 2 ** 30


class Streamed:
    """features_ND (N, D), of any float type, usually memory-mapped; stands where a resident (N, D) tensor would."""

    def __init__(self, features_ND: torch.Tensor, device: torch.device) -> None:
        self.features_ND, self.device = features_ND, device

    @property
    def shape(self) -> torch.Size:
        return self.features_ND.shape

    def __len__(self) -> int:
        return len(self.features_ND)

    def __getitem__(self, rows_R: torch.Tensor) -> Streamed:
        """These rows, still unread: under --holdout they may be many."""
        return _Rows(self, rows_R)

    def new_empty(self, *shape: int) -> torch.Tensor:
        """As a tensor's, for `gather`."""
        return torch.empty(*shape, device=self.device)

    def gather(self, rows_B: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Read the rows (B,) into `out` (B, D)."""
        return out.copy_(self.features_ND[rows_B.cpu()])

    def split(self, count: int) -> Iterator[torch.Tensor]:
        """All rows in order, `count` at a time."""
        for start in range(0, len(self), count):
            yield self.features_ND[start:start + count].to(self.device, torch.float32)  # (count, D)


class _Rows(Streamed):
    """Some rows of another one."""

    def __init__(self, whole: Streamed, rows_R: torch.Tensor) -> None:
        super().__init__(whole.features_ND, whole.device)
        self.rows_R = rows_R.cpu()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows_R), self.features_ND.shape[1]))

    def __len__(self) -> int:
        return len(self.rows_R)

    def gather(self, rows_B: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return super().gather(self.rows_R[rows_B.cpu()], out)

    def split(self, count: int) -> Iterator[torch.Tensor]:
        for rows in self.rows_R.split(count):
            yield self.features_ND[rows].to(self.device, torch.float32)  # (count, D)


def gathered(inputs: torch.Tensor | Streamed, rows_B: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Rows of either kind of input, in `out` (B, W)."""
    if isinstance(inputs, Streamed):
        return inputs.gather(rows_B, out)
    return torch.index_select(inputs, 0, rows_B, out=out)


def resident_or_streamed(features: list[torch.Tensor], device: torch.device,
                         limit_gib: float | None = None) -> tuple[torch.Tensor | Streamed, ...]:
    """The matrices as float32 on the device where together they take no more than `limit_gib` (None: half of what is
    free there); else each as `Streamed`, and one line that says so."""
    needed = sum(4 * matrix.numel() for matrix in features)
    limit = free_bytes(device) / 2 if limit_gib is None else limit_gib * GIB
    if needed <= limit:
        return tuple(matrix.to(device, torch.float32) for matrix in features)
    print(f"features: {needed / GIB:.1f} GiB as float32, more than {limit / GIB:.1f} GiB (--feature_memory): heads on "
          "them read their file batch by batch", flush=True)
    return tuple(Streamed(matrix, device) for matrix in features)


def free_bytes(device: torch.device) -> int:
    """Memory that can be had: of the GPU, or of the machine, page cache included; 4 GiB where it is not told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * GIB
