"""What stages 1 and 2 would make, for `--dry_run`: counted from names alone, timed on a handful of images."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iis.cli import disk, duration, measured, size, tell
from iis.datasets import ImageSet, UnreadableImage
from iis.runtime import UserError

if TYPE_CHECKING:
    import torch

    from extractor.targets import Target

TRIED = 3  # images cut, or batches of at most `MOST` embedded
MOST = 8
WORKER = 150e6  # bytes of a reading or cutting process, about


def tell_stage1(images: ImageSet, cut: Any, folder: Path, settings: dict[str, Any], image_per_class: int,
                format: str, workers: int) -> None:
    """Cut and encode `TRIED` images in memory, spread over the classes, and say what all would take."""
    from extractor.image_walk import SUFFIX, save_element

    per_class: dict[int, int] = {}
    for label in images.labels:
        per_class[label] = min(per_class.get(label, 0) + 1, image_per_class)
    count = sum(per_class.values())
    seconds = written = elements = tried = 0
    for index in range(0, len(images), max(1, len(images) // TRIED)):
        began = time.perf_counter()
        try:
            found = cut(images.open(index), images.names[index])
        except UnreadableImage:
            continue
        for _, element in found:
            file = _Memory(SUFFIX[format])
            save_element(element, file)
            written += file.tell()
        tried, elements = tried + 1, elements + len(found)
        seconds += time.perf_counter() - began if tried > 1 else 0  # the first one imports
    if not tried:
        raise UserError(f"none of the images tried below {images.root} could be read")
    workers = max(1, min(workers, count))
    each = seconds / max(tried - 1, 1)
    tell(f"stage 1, {settings['kind']} of {images.dataset}", {
        "pictures": f"{count:,} of {len(images):,} in {len(per_class):,} classes, at most {image_per_class} of each",
        "elements": f"about {count * elements / tried:,.0f} ({elements / tried:.1f} of each of {tried} images tried)",
        "disk": f"about {disk(count * written / tried, folder)}",
        "memory": f"about {size(WORKER * workers)} in {workers} processes",
        "time": f"about {duration(count * each / workers)} ({each:.2f} s an image and core, by measurement)"})


class _Memory(io.BytesIO):
    """A file in memory that has a suffix, as `save_element` asks."""

    def __init__(self, suffix: str) -> None:
        super().__init__()
        self.suffix, self.name = suffix, f"element{suffix}"


def tell_stage2(images: ImageSet, targets: Sequence[Target], batch_size: int, workers: int,
                device: torch.device) -> None:
    """Read and embed a small batch, and say what all images would take."""
    from extractor.batches import batches
    from extractor.embed import is_done
    from extractor.targets import features_of

    first, *others = (target.model.preprocessing for target in targets)
    some = range(0, min(MOST, batch_size, len(images)))
    batch = next(iter(batches(images, first, [some], 0, device, others)))
    began = time.perf_counter()
    next(iter(batches(images, first, [some], 0, device, others)))
    reading = (time.perf_counter() - began) / len(some)
    if not batch.rows:
        raise UserError(f"none of the first {len(some)} images below {images.root} could be read")
    for place, target in enumerate(targets):
        if is_done(images, target.file, target.provenance):
            print(f"dry run: {target.file} is done already")
            continue
        width = features_of(target, place, batch, device).shape[1]
        each = measured(lambda target=target, place=place: features_of(target, place, batch, device).cpu())
        each /= len(batch.rows)
        side, count = target.model.preprocessing["crop"], len(images)
        # Reading goes on beside computing, in other processes where there are any.
        whole = max(each, reading / workers) if workers else each + reading
        tell(f"stage 2, {target.file}", {
            "shapes": f"{count:,} images of 3 x {side} x {side} -> {count:,} x {width} float32, {target.precision}",
            "disk": f"{disk(4 * count * width, target.file.parent)}, and as much again until it is whole",
            "memory": f"about {size(4 * batch_size * 3 * side * side * 4 + WORKER * workers)} beside the model, "
                      "whatever the number of images",
            "time": f"about {duration(count * whole)} on {device} ({1e3 * reading:.1f} ms an image to read, "
                    f"{1e3 * each:.1f} ms to embed, by measurement of {len(batch.rows)})"})
