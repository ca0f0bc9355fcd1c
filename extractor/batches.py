"""Images in fixed batches: decoded, resized and cropped on the processor, kept as uint8 until the device.

An image is decoded once for all the models that embed it; models that resize and crop alike share the pixels.
`over_chunks` decides who does what: beside a GPU, processes read for the one that computes; without, every process
reads and computes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from iis.datasets import ImageSet, UnreadableImage
from iis.preprocessing import to_uint8
from iis.processes import Advance, in_processes, jobs_that_fit
from iis.runtime import available_cores, float32_products

CHUNK = 16  # batches; at 32 images and D = 2048 a chunk is 4 MB
CPU_CHUNK = 64  # images: few enough to keep every core busy to the end; marking them as done takes a millisecond

Result = TypeVar("Result")


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


def chunks_of(count: int, size: int, device: torch.device) -> list[list[range]]:
    """The batches of `size` images, in chunks: what a process of several takes at a time."""
    rows, each = ranges(count, size), CHUNK if device.type != "cpu" else max(1, CPU_CHUNK // size)
    return [rows[start:start + each] for start in range(0, len(rows), each)]


def batches(images: ImageSet, preprocessings: Sequence[dict[str, Any]], rows: Sequence[range], workers: int,
            device: torch.device) -> Iterator[Batch]:
    """One `Batch` for each range of `rows`, in order, on `device`, read ahead by at most `workers` processes and one
    per core; 0 reads here."""
    prepared, workers = _Prepared(images, preprocessings), max(0, min(workers, available_cores(), len(rows) - 1))

    def loader(count: int) -> Iterator[Batch]:
        return iter(DataLoader(prepared, batch_size=None, sampler=rows, num_workers=count,
                               pin_memory=device.type == "cuda"))

    try:
        source = loader(workers)
    except (OSError, RuntimeError, AssertionError) as error:  # no processes here: sandboxes, some notebooks
        print(f"workers: {error}; images are read in the main process instead", file=sys.stderr)
        source = loader(0)
    for batch in source:
        yield batch.to(device)


def over_chunks(images: ImageSet, preprocessings: Sequence[dict[str, Any]], chunks: Sequence[Sequence[range]],
                compute: Callable[[int, Iterator[Batch]], Result], workers: int, device: torch.device, bar: Any,
                bytes_each: float = 0) -> Iterator[tuple[int, Result]]:
    """(place, compute(place, its batches)) of every chunk, as they end; `compute` takes all the batches, each of which
    advances `bar`.

    On a CPU at most `workers` processes of one thread each take the chunks, one per core as far as memory holds
    `bytes_each` for each; what `compute` changes in memory stays theirs. Beside a GPU `compute` runs here, in order,
    and the processes read ahead.
    """
    if device.type == "cpu":
        def task(place: int, advance: Advance) -> Result:
            return compute(place, _counted(batches(images, preprocessings, chunks[place], 0, device), advance))

        jobs = jobs_that_fit(len(chunks), bytes_each, ranks=int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # of torchrun
        # Where processes cannot be forked, one computes with all threads.
        yield from in_processes([partial(task, place) for place in range(len(chunks))], max(1, min(jobs, workers)), bar,
                                None if sys.platform == "linux" else torch.get_num_threads())
        return
    stream = batches(images, preprocessings, [rows for chunk in chunks for rows in chunk], workers, device)
    for place, chunk in enumerate(chunks):
        yield place, compute(place, _counted(islice(stream, len(chunk)), bar.update))
    next(stream, None)  # ends the workers


def _counted(stream: Iterator[Batch], advance: Advance) -> Iterator[Batch]:
    for batch in stream:
        yield batch
        advance(1)


@contextmanager
def precise(device: torch.device, precision: str) -> Iterator[None]:
    """A context for `precision`: fp32 is full float32, tf32 what CUDA makes of it, bf16 is autocast."""
    with float32_products(precision == "tf32"), (torch.autocast(device.type, torch.bfloat16) if precision == "bf16"
                                                 else nullcontext()):
        yield
