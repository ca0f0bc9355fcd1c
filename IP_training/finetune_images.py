"""Images for fine-tuning: read by workers, kept as one uint8 tensor where they fit, augmented batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from iis.datasets import ImageSet, UnreadableImage
from iis.preprocessing import to_uint8
from iis.runtime import UserError
from IP_training.concept_banks import balanced_choice


def chosen_images(images: ImageSet, count: int, seed: int) -> ImageSet:
    """`count` of the images, balanced over classes and seeded, in their own order; all for 0 or too large a count."""
    if not 0 < count < len(images):
        return images
    return images.only(sorted(balanced_choice(images.labels, count, seed, "fine-tuning pictures")))


def chosen_elements(elements: ImageSet, settings: dict[str, Any], count: int,
                    seed: int) -> tuple[torch.Tensor, list[str]]:
    """M readable elements, balanced over classes and seeded: uint8 (M, 3, H, W) and their names. M is `count`, or
    all where there are fewer. Raises `UserError` where none can be read."""
    tensors, names = [], []
    for row in balanced_choice(elements.labels, len(elements), seed, "fine-tuning bank"):
        if len(names) == count:
            break
        try:
            tensors.append(to_uint8(elements.open(row), settings))
        except UnreadableImage:
            continue
        names.append(elements.names[row])
    if not names:
        raise UserError(f"none of the {len(elements)} elements in {elements.root} can be read: run stage 1 again")
    return torch.stack(tensors), names


class _Decoded(Dataset):
    """(row, uint8 (3, H, W)), or (row, None) for an image that cannot be read."""

    def __init__(self, images: ImageSet, settings: dict[str, Any]) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor | None]:
        try:
            return row, to_uint8(self.images.open(row), self.settings)
        except UnreadableImage:
            return row, None


def _readable(items: Sequence[tuple[int, torch.Tensor | None]]) -> tuple[list[int], torch.Tensor | None]:
    kept = [(row, pixels) for row, pixels in items if pixels is not None]
    return [row for row, _ in kept], torch.stack([pixels for _, pixels in kept]) if kept else None


class Feed:
    """Batches of N labelled images as uint8, from memory where they take at most `cache_gb`, else from disk.

    labels_N (N,) int64. `rows`: those that can be read, as far as known: all until they have been read once.
    """

    def __init__(self, images: ImageSet, settings: dict[str, Any], workers: int = 0, cache_gb: float = 4.0) -> None:
        self.decoded, self.labels_N = _Decoded(images, settings), torch.tensor(images.labels)
        self.workers = min(workers, os.cpu_count() or 1)
        self.rows, self.cache = torch.arange(len(images)), None
        side = settings["crop"]
        if len(images) * 3 * side * side <= cache_gb * 1e9:
            cache, read = torch.empty(len(images), 3, side, side, dtype=torch.uint8), []
            everything = tqdm(self.batches(self.rows, 256), desc=f"reading {images.split}", unit="batch",
                              total=-(-len(images) // 256), leave=False)
            for rows, pixels in everything:
                cache[rows] = pixels
                read.append(rows)
            if not read:
                raise UserError(f"none of the {len(images)} {images.split} images of {images.dataset} can be "
                                "read")
            self.rows, self.cache = torch.cat(read).sort().values, cache
            if len(self.rows) < len(images):
                print(f"{len(images) - len(self.rows)} {images.split} images cannot be read and are left out")

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(rows (B,), uint8 (B, 3, H, W)) for the rows of `order`, one after another; what cannot be read is left
        out, so B may be smaller than `batch_size`."""
        parts = order.split(batch_size)
        if self.cache is not None:
            yield from ((rows, self.cache[rows]) for rows in parts)
            return
        loader = DataLoader(self.decoded, batch_sampler=[rows.tolist() for rows in parts], num_workers=self.workers,
                            collate_fn=_readable)
        for rows, pixels in loader:
            if rows:
                yield torch.tensor(rows), pixels


def augmented(pixels: torch.Tensor, mirror: float, shift: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 (B, 3, H, W), each image mirrored with probability `mirror` and moved by up to `shift` pixels each way,
    with zeros from outside. Draws on the CPU from `generator`."""
    count, _, height, width = pixels.shape
    if mirror:
        flip_B = torch.rand(count, generator=generator) < mirror
        pixels = torch.where(flip_B[:, None, None, None], pixels.flip(3), pixels)
    if shift:
        moves_2B = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
        y_BH, x_BW = (moves + torch.arange(size) for moves, size in zip(moves_2B, (height, width), strict=True))
        padded = torch.nn.functional.pad(pixels, [shift] * 4)
        each = torch.arange(count)[:, None, None]
        pixels = padded.permute(0, 2, 3, 1)[each, y_BH[:, :, None], x_BW[:, None]].permute(0, 3, 1, 2)  # (B, 3, H, W)
    return pixels
