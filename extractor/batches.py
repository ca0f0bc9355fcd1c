"""Images in fixed batches: decoded, resized and cropped by worker processes, kept as uint8 until the device.

An image is decoded once for all the models that embed it; models that resize and crop alike share the pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from iis.datasets import ImageSet, UnreadableImage
from iis.preprocessing import to_uint8
from iis.runtime import available_cores


@dataclass
class Batch:
    """rows: (B,) the images' places in their set; pixels: uint8 (B, 3, H, W) under each preprocessing, none where no
    image is readable; unreadable: place -> reason."""

    rows: list[int]
    pixels: list[torch.Tensor]
    unreadable: dict[int, str]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while it computes; `DataLoader` asks for it."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The same on `device`; from pinned memory the copy may still be under way."""
        return self._each(lambda one: one.to(device, non_blocking=True))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {id(one): change(one) for one in self.pixels}
        return replace(self, pixels=[changed[id(one)] for one in self.pixels])


class _Prepared(Dataset):
    """One item is one whole batch, so that a batch always holds the same images; its key is the range of its rows."""

    def __init__(self, images: ImageSet, settings: Sequence[dict[str, Any]]) -> None:
        self.images, self.settings = images, settings

    def __getitem__(self, chosen: range) -> Batch:
        rows, unreadable = [], {}
        prepared = {_geometry(one): (one, []) for one in self.settings}
        for row in chosen:
            try:
                image = self.images.open(row)
            except UnreadableImage as error:
                unreadable[row] = str(error)
                continue
            rows.append(row)
            for one, pixels in prepared.values():
                pixels.append(to_uint8(image, one))
        if not rows:
            return Batch([], [], unreadable)
        # Channels last in memory: PIL's order, and the fastest for convolutions.
        stacked = {key: torch.stack([one.permute(1, 2, 0) for one in pixels]).permute(0, 3, 1, 2)
                   for key, (_, pixels) in prepared.items()}
        return Batch(rows, [stacked[_geometry(one)] for one in self.settings], unreadable)  # (B, 3, crop, crop) each


def _geometry(settings: dict[str, Any]) -> tuple[str, int, str]:
    """What decides the pixels; mean and std are applied on the device."""
    return str(settings["resize"]), settings["crop"], settings["interpolation"]


def ranges(count: int, size: int) -> list[range]:
    """0 … count - 1 in ranges of `size`; the last may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def batches(images: ImageSet, preprocessings: Sequence[dict[str, Any]], rows: Sequence[range], workers: int,
            device: torch.device) -> Iterator[Batch]:
    """One `Batch` for each range of `rows`, in order, on `device`; at most `workers` processes and one per core.

    Where the model runs on the CPU too, a quarter of the cores read and the rest compute until the last batch is
    taken: as many threads as cores beside busy workers wait for one another. On fewer than four cores one worker
    reads beside threads on all: a ResNet-50 needs it for a tenth of the time, and would miss half the cores.
    """
    prepared = _Prepared(images, preprocessings)
    cores, threads = available_cores(), torch.get_num_threads()
    on_cpu = device.type == "cpu"
    workers = max(0, min(workers, max(1, cores // 4) if on_cpu else cores, len(rows) - 1))

    def loader(count: int) -> Iterator[Batch]:
        return iter(DataLoader(prepared, batch_size=None, sampler=rows, num_workers=count,
                               pin_memory=device.type == "cuda"))

    try:
        source = loader(workers)
    except (OSError, RuntimeError, AssertionError) as error:  # no processes here: sandboxes, some notebooks
        print(f"workers: {error}; images are read in the main process instead", file=sys.stderr)
        source = loader(0)
    try:
        if on_cpu:
            torch.set_num_threads(min(threads, cores - cores // 4))
        for batch in source:
            yield batch.to(device)
    finally:
        torch.set_num_threads(threads)


def precise(device: torch.device, precision: str) -> Any:
    """A context for `precision`: bf16 is autocast, fp32 is what PyTorch does by itself on `device`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
