"""Images -> an embedding file: streamed to disk, resumable after a kill at any moment, shared between ranks.

Work is cut into chunks of `CHUNK` batches. A chunk's rows go to their own place in `FILE.partial/features.f32`, then
`chunk-N.json` says that it is done. Batches are the same whether a run was interrupted or not, so the numbers are the
same bit for bit. Under torchrun, rank r takes chunks r, r + W, …; rank 0 waits for the others and writes the file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from tqdm import tqdm

from extractor.batches import batches
from extractor.mapped import mapped
from extractor.targets import Target, features_of, fetched, prepared, width_of
from iis.backbones import Backbone
from iis.datasets import ImageSet
from iis.embedding_file import PROVENANCE, Embeddings, differing, load_embeddings, save_embeddings
from iis.layers import Node
from iis.runtime import UserError, claim_folder, read_json, write_json
from iis.tally import tally

CHUNK = 16  # batches; at 32 images and D = 2048 a chunk is 4 MB


def ranks() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun says; 0 of 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_done(images: ImageSet, file: Path, provenance: dict[str, Any]) -> bool:
    """Whether `file` is there already, made from these images in this way.

    Raises `UserError` where it was made in another way, naming the field that differs.
    """
    if not file.exists():
        return False
    before = load_embeddings(file)
    difference = differing(before.provenance, provenance, PROVENANCE)
    if difference is None and before.record.get("pictures_hash") != _images_hash(images):
        difference = f"its images ({len(before)} then, {len(images)} now, or other names)"
    if difference:
        raise UserError(f"{file} was made otherwise: it differs in {difference}; choose another --model_name or "
                        "--save_root, or delete it")
    return True


def embed(images: ImageSet, backbone: Backbone, node: Node, file: Path, provenance: dict[str, Any],
          batch_size: int, workers: int, device: torch.device, precision: str = "fp32",
          record: dict[str, Any] | None = None) -> Path:
    """Embed N images into one `file`; see `embed_together`."""
    embed_together(images, [Target(backbone, node, file, provenance, precision, record or {})], batch_size, workers,
                   device)
    return file


def embed_together(images: ImageSet, targets: Sequence[Target], batch_size: int, workers: int,
                   device: torch.device) -> None:
    """Embed N images into each target's file (features N x D, float32), decoding every image once.

    Prints one line a file; a finished file is kept. Provenance holds the fields of `embedding_file.PROVENANCE`.
    Unreadable images are left out, counted and listed in record["unreadable"]. Memory does not grow with N. Raises
    `UserError` for features that are not finite (naming the image) or all the same, for other settings in the
    partial folder, and when nothing was readable.
    """
    started, (rank, world) = time.time(), ranks()
    left = [target for target in targets if not _kept(images, target, rank)]
    decoders = sorted({target.decoder for target in left})
    if len(decoders) != 1:  # none left, or pixels that cannot be shared
        for decoder in decoders:
            embed_together(images, [target for target in left if target.decoder == decoder], batch_size, workers,
                           device)
        return
    left = [prepared(target) for target in left]
    widths = [width_of(target, device) for target in left]
    for target, width in zip(left, widths, strict=True):
        claim_folder(target.partial, {**target.provenance, "pictures": len(images),
                                      "pictures_hash": _images_hash(images), "width": width,
                                      "batch_size": batch_size}, "unfinished embeddings")
    rows = [range(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    chunks = [rows[start:start + CHUNK] for start in range(0, len(rows), CHUNK)]
    waiting = {chunk: [place for place, target in enumerate(left) if not _log(target.partial, chunk).exists()]
               for chunk in range(rank, len(chunks), world)}
    waiting = {chunk: places for chunk, places in waiting.items() if places}
    todo = [batch for chunk in waiting for batch in chunks[chunk]]
    first, *others = (target.model.preprocessing for target in left)
    stream = iter(tqdm(batches(images, first, todo, workers, device, others), total=len(todo),
                       desc=" + ".join(target.file.name for target in left), unit="batch", disable=None))
    fresh = [0] * len(left)
    with ExitStack() as opened:
        features = [opened.enter_context(open(os.open(target.partial / "features.f32", os.O_RDWR | os.O_CREAT, 0o644),
                                              "rb+")) for target in left]
        for chunk, places in waiting.items():
            unreadable: dict[int, str] = {}
            before: list[tuple] = []  # written while the device computes the next batch
            for _ in chunks[chunk]:
                batch = next(stream)
                unreadable |= batch.unreadable
                begun = [(place, batch, fetched(features_of(left[place], place, batch, device)))
                         for place in places if batch.rows]
                _place(features, before, images)
                before = begun
            _place(features, before, images)
            for place in places:
                fresh[place] += sum(map(len, chunks[chunk])) - len(unreadable)
                features[place].flush()
                os.fsync(features[place].fileno())
                write_json(_log(left[place].partial, chunk), {"unreadable": unreadable})
    for target, width, count in zip(left, widths, fresh, strict=True) if rank == 0 else ():
        _wait(target.partial, len(chunks))
        seconds = max(time.time() - started, 1e-9)
        record = {**target.record, "compiled": bool(getattr(target.forward, "works", False)),
                  "seconds": round(seconds, 1), "root": str(images.root),
                  "device": str(device), "made": datetime.now(UTC).isoformat(timespec="seconds"),
                  "torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
        tally(count)
        kept = _finish(images, target.partial, width, len(chunks), target.file, target.provenance, record)
        print(f"{target.file}: {kept:,} x {width}, {seconds:.1f} s, {count / seconds:,.0f} images/s, {device}")


def _kept(images: ImageSet, target: Target, rank: int) -> bool:
    """Whether the file is there already, and then said."""
    done = is_done(images, target.file, target.provenance)
    if done and rank == 0:
        shutil.rmtree(target.partial, ignore_errors=True)  # killed just after the file was written
        print(f"{target.file}: done already")
    return done


def _place(features: Sequence[Any], computed: Sequence[tuple], images: ImageSet) -> None:
    """Write each row to its own place. Plain writes, not a memory map: a full disk must be an error, not a crash."""
    for place, batch, wait in computed:
        found = wait()  # (B, D)
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise UserError(f"the features of {images.names[batch.rows[bad[0]]]} are not finite: the weights or the "
                            "precision do not suit this model (try --precision fp32, and check the checkpoint)")
        if len(found) >= 8 and (found == found[0]).all():
            raise UserError(f"the features of {len(found)} different images are all the same: the checkpoint or the "
                            "layer cannot be right")
        for row, values in zip(batch.rows, found, strict=True):
            features[place].seek(row * values.nbytes)
            features[place].write(values.tobytes())


def _finish(images: ImageSet, partial: Path, width: int, chunks: int, file: Path, provenance: dict[str, Any],
            record: dict[str, Any]) -> int:
    """Check that all rows are there, write `file` and remove the partial folder. The number of rows kept."""
    unreadable = {int(row): reason for chunk in range(chunks)
                  for row, reason in read_json(_log(partial, chunk))["unreadable"].items()}
    kept = [row for row in range(len(images)) if row not in unreadable]
    if not kept:
        raise UserError(f"none of the {len(images)} images below {images.root} could be read")
    place = partial / "features.f32"
    if place.stat().st_size != (kept[-1] + 1) * width * 4:
        raise UserError(f"{partial} is damaged (features.f32 has another size than its log says); delete the folder "
                        "and start again")
    if unreadable:
        with open(place, "rb") as source, open(partial / "kept.f32", "wb") as handle:
            for start in range(0, kept[-1] + 1, 4096):
                block = np.fromfile(source, np.float32, 4096 * width).reshape(-1, width)
                handle.write(block[[start + row not in unreadable for row in range(len(block))]].tobytes())
        place = partial / "kept.f32"
        print(f"{len(unreadable)} of {len(images)} images could not be read and are left out:", flush=True)
        print("\n".join(f"  {reason}" for _, reason in sorted(unreadable.items())))
    labels_N = torch.tensor([images.labels[row] for row in kept])
    names = [images.names[row] for row in kept]
    record |= {"unreadable": [images.names[row] for row in sorted(unreadable)],
               "pictures_hash": _images_hash(images)}
    for leftover in file.parent.glob(f".{file.stem}.*.tmp{file.suffix}"):  # killed while the file was written
        leftover.unlink()
    with mapped(place, len(kept), width) as features:
        save_embeddings(file, Embeddings(torch.from_numpy(features), labels_N, list(images.class_names), names,
                                         provenance, record))
    del features
    shutil.rmtree(partial)
    return len(kept)


def _wait(partial: Path, chunks: int) -> None:
    waiting = False
    while left := [chunk for chunk in range(chunks) if not _log(partial, chunk).exists()]:
        if not waiting:
            print(f"waiting for the other ranks ({len(left)} chunks)", flush=True)
        waiting = True
        time.sleep(0.2)


def _log(partial: Path, chunk: int) -> Path:
    return partial / f"chunk-{chunk:06d}.json"


def _images_hash(images: ImageSet) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, label in zip(images.names, images.labels, strict=True):
        digest.update(f"{name}\0{label}\n".encode())
    return digest.hexdigest()
