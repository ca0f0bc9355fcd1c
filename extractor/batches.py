"""Images in fixed batches: decoded, resized and cropped by worker processes, kept as uint8 until the device.

An image is decoded once for all the models that wait for it; models that resize and crop alike share the pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from extractor.device_decoding import check_resampler, decoded, read_encoded, resized
from iis.datasets import ImageSet, UnreadableImage
from iis.preprocessing import to_uint8
from iis.runtime import available_cores


@dataclass
class Batch:
    """rows: (B,) the images' places in their set; images: uint8 (B, 3, H, W); unreadable: place -> reason;
    others: the same images as each of the other preprocessings asked for leaves them."""

    rows: list[int]
    images: torch.Tensor
    unreadable: dict[int, str]
    others: list[torch.Tensor] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while it computes; `DataLoader` asks for it."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The same on `device`; from pinned memory the copy may still be under way."""
        return self._each(lambda one: one.to(device, non_blocking=True))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {id(one): change(one) for one in (self.images, *self.others)}
        return replace(self, images=changed[id(self.images)], others=[changed[id(one)] for one in self.others])


@dataclass
class Encoded:
    """A batch that the device decodes. content: what `read_encoded` gave for each of `rows`, end to end (one tensor,
    because each that a worker hands over costs an open file); shapes: of each."""

    rows: list[int]
    content: torch.Tensor
    shapes: list[torch.Size]
    unreadable: dict[int, str]

    def decoded(self, images: ImageSet, settings: Sequence[dict[str, Any]], device: torch.device) -> Batch:
        """The batch for each preprocessing of `settings`; equal geometry shares the pixels."""
        parts = self.content.split([shape.numel() for shape in self.shapes]) if self.rows else ()
        files = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        rows, pixels, unreadable = decoded(files, images, self.rows, device)
        stacked = {_geometry(one): resized(pixels, one) if rows else _nothing(one["crop"]) for one in settings}
        first, *others = (stacked[_geometry(one)] for one in settings)
        return Batch(rows, first, self.unreadable | unreadable, others)


class _Prepared(Dataset):
    """One item is one whole batch, so that a batch always holds the same images."""

    def __init__(self, images: ImageSet, settings: Sequence[dict[str, Any]], batches: Sequence[range]) -> None:
        self.images, self.settings, self.batches = images, settings, batches
        self.on_device = settings[0].get("decoder") == "gpu"
        for one in settings if self.on_device else ():
            check_resampler(one)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch | Encoded:
        rows, files, unreadable = [], [], {}
        prepared: dict[tuple, list[torch.Tensor]] = {_geometry(one): [] for one in self.settings}
        for row in self.batches[index]:
            try:
                if self.on_device:
                    files.append(read_encoded(self.images, row))
                else:
                    image = self.images.open(row)
            except UnreadableImage as error:
                unreadable[row] = str(error)
                continue
            rows.append(row)
            for one in () if self.on_device else {_geometry(one): one for one in self.settings}.values():
                prepared[_geometry(one)].append(to_uint8(image, one))
        if self.on_device:
            content = torch.cat([file.flatten() for file in files]) if files else torch.empty(0, dtype=torch.uint8)
            return Encoded(rows, content, [file.shape for file in files], unreadable)
        stacked = {key: _stacked(stack) if stack else _nothing(key[1]) for key, stack in prepared.items()}
        first, *others = (stacked[_geometry(one)] for one in self.settings)  # (B, 3, crop, crop)
        return Batch(rows, first, unreadable, others)


def _geometry(settings: dict[str, Any]) -> tuple[str, int, str]:
    """What decides the pixels; mean and std come later, on the device."""
    return str(settings["resize"]), settings["crop"], settings["interpolation"]


def _nothing(crop: int) -> torch.Tensor:
    return torch.empty(0, 3, crop, crop, dtype=torch.uint8)


def _stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """(B, 3, H, W) whose channels lie last in memory, as PIL has them and convolutions are quickest."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def batches(images: ImageSet, preprocessing: dict[str, Any], rows: Sequence[range], workers: int,
            device: torch.device, others: Sequence[dict[str, Any]] = ()) -> Iterator[Batch]:
    """One `Batch` for each range of `rows`, in order, on `device`; at most `workers` processes and one per core.

    Where the model runs on the CPU too, a quarter of the cores read and the rest compute until the last batch is
    taken: with as many threads as cores beside busy workers, they wait for one another. On fewer than four cores one
    worker reads beside threads on all: a ResNet-50 needs it for a tenth of the time, and would miss half the cores.
    """
    prepared, cores = _Prepared(images, [preprocessing, *others], rows), available_cores()
    threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    workers = max(0, min(workers, max(1, cores // 4) if on_cpu else cores, len(rows) - 1))

    def loader(count: int) -> Iterator[Batch]:
        return iter(DataLoader(prepared, batch_size=None, num_workers=count, pin_memory=device.type == "cuda"))

    try:
        source = loader(workers)
    except (OSError, RuntimeError, AssertionError) as error:  # no processes here: sandboxes, some notebooks
        print(f"workers: {error}; images are read in the main process instead", file=sys.stderr)
        source = loader(0)
    try:
        if on_cpu:
            torch.set_num_threads(min(threads, cores - cores // 4))
        for batch in source:
            if isinstance(batch, Encoded):
                batch = batch.decoded(images, prepared.settings, device)
            yield batch.to(device)
    finally:
        torch.set_num_threads(threads)


def precise(device: torch.device, precision: str) -> Any:
    """A context for `precision`: bf16 is autocast, fp32 is what PyTorch does by itself on `device`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
