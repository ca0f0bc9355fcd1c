"""Pictures in fixed batches: decoded, resized and cropped by worker processes, kept as uint8 until the device.

A picture is decoded once for all the models that wait for it; models that resize and crop alike share the pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from extractor.stage1_flags import available_cores
from iis.datasets import PictureSet, UnreadablePicture
from iis.preprocessing import to_uint8


@dataclass
class Batch:
    """rows: (B,) the pictures' places in their set; pictures: uint8 (B, 3, H, W); unreadable: place -> reason;
    others: the same pictures as each of the other preprocessings asked for leaves them."""

    rows: list[int]
    pictures: torch.Tensor
    unreadable: dict[int, str]
    others: list[torch.Tensor] = field(default_factory=list)


class _Prepared(Dataset):
    """One item is one whole batch, so that a batch always holds the same pictures."""

    def __init__(self, pictures: PictureSet, settings: Sequence[dict[str, Any]], batches: Sequence[range]) -> None:
        self.pictures, self.settings, self.batches = pictures, settings, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        rows, unreadable = [], {}
        # mean and std come later, on the device
        geometry = [(str(one["resize"]), one["crop"], one["interpolation"]) for one in self.settings]
        prepared: dict[tuple, list[torch.Tensor]] = {key: [] for key in geometry}
        for row in self.batches[index]:
            try:
                picture = self.pictures.open(row)
            except UnreadablePicture as error:
                unreadable[row] = str(error)
                continue
            rows.append(row)
            for key, stack in prepared.items():
                stack.append(to_uint8(picture, self.settings[geometry.index(key)]))
        stacked = {key: _stacked(stack) if stack else torch.empty(0, 3, key[1], key[1], dtype=torch.uint8)
                   for key, stack in prepared.items()}  # (B, 3, crop, crop)
        first, *others = (stacked[key] for key in geometry)
        return Batch(rows, first, unreadable, others)


def _stacked(pictures: list[torch.Tensor]) -> torch.Tensor:
    """(B, 3, H, W) whose channels lie last in memory, as PIL has them and convolutions are quickest."""
    return torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)


def batches(pictures: PictureSet, preprocessing: dict[str, Any], rows: Sequence[range], workers: int,
            device: torch.device, others: Sequence[dict[str, Any]] = ()) -> Iterator[Batch]:
    """One `Batch` for each range of `rows`, in order, on `device`; at most `workers` processes and one per core.

    Where the model runs on the CPU too, a quarter of the cores read and the rest compute until the last batch is
    taken: with as many threads as cores beside the workers, they wait for one another.
    """
    prepared, cores = _Prepared(pictures, [preprocessing, *others], rows), available_cores()
    threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    workers = max(0, min(workers, max(1, cores // 4) if on_cpu else cores, len(rows) - 1))

    def loader(count: int) -> Iterator[Batch]:
        return iter(DataLoader(prepared, batch_size=None, num_workers=count))

    try:
        source = loader(workers)
    except (OSError, RuntimeError, AssertionError) as error:  # no processes here: sandboxes, some notebooks
        print(f"workers: {error}; pictures are read in the main process instead", file=sys.stderr)
        source = loader(0)
    try:
        if on_cpu:
            torch.set_num_threads(min(threads, max(1, cores - workers)))
        for batch in source:
            moved = {id(one): one.to(device) for one in (batch.pictures, *batch.others)}
            batch.pictures, batch.others = moved[id(batch.pictures)], [moved[id(one)] for one in batch.others]
            yield batch
    finally:
        torch.set_num_threads(threads)


def precise(device: torch.device, precision: str) -> Any:
    """A context for `precision`: bf16 is autocast, fp32 is what PyTorch does by itself on `device`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
