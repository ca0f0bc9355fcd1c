"""Images -> embedding files: streamed to disk, resumable after a kill at any moment, shared between ranks.

Work is cut into chunks of batches. A chunk's rows go to their own place in `FILE.partial/features.f32`, then
`chunk-N.json` marks it as done. Batches are the same whether a run was interrupted or not, and in any number of
processes, so the numbers are the same bit for bit. Under torchrun, rank r takes chunks r, r + W, …; rank 0 waits for
the others and writes the file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from extractor.batches import Batch, chunks_of, over_chunks, precise, ranges
from extractor.fast_forward import Compiled, cpu_bytes, in_slices, ready
from iis.backbones import Backbone
from iis.cli import disk, print_plan, size
from iis.datasets import UNNAMED, ImageSet
from iis.embedding_file import Embeddings, differing, load_embeddings, save_embeddings
from iis.layers import Node, represent, represent_all, resolve
from iis.names import HEAD_INPUT, elements_file, layer_label, model_label, representations_file, slug
from iis.preprocessing import normalise
from iis.processes import thread_limit, threads_wanted
from iis.runtime import UserError, claim_folder, make_output_folder, progress, read_json, torch_rng, write_json


@dataclass
class Target:
    """One file to make of the images: `model` (a `Backbone` or `Clip`) taken at `node`.

    provenance: the fields of `embedding_file.PROVENANCE`, compared when the file is found again; record: for people.
    compiled: the batch size to compile the model for; 0 leaves it uncompiled. module, forward: what `ready` made of the
    model, and normalised images -> features; set by `prepared`.
    """

    model: Any
    node: Node
    file: Path
    provenance: dict[str, Any]
    precision: str = "fp32"
    record: dict[str, Any] = field(default_factory=dict)
    compiled: int = 0
    module: Any = None
    forward: Any = None

    @property
    def partial(self) -> Path:
        """The folder of a file that is not whole yet."""
        return self.file.with_name(f"{self.file.name}.partial")


def folder_name(model: str, backbone: Backbone, precision: str = "fp32", chosen: str | None = None) -> str:
    """The folder of a backbone below `embs/`: `chosen`, or the model with its weights where they are not the usual
    ones; the precision is added where it is not fp32."""
    name = chosen or model_label(model, backbone.weights, backbone.default_weights)
    return name + f"__{precision}" * (precision != "fp32")


def plan_target(images: ImageSet, backbone: Backbone, layer: str, folder: str, root: Path, precision: str = "fp32",
                elements: dict[str, Any] | None = None, place: Path | None = None, write: bool = True,
                compiled: int = 0) -> Target:
    """The file for these images: a data set's own, or, with stage 1's settings as `elements`, visual elements.

    The visual and the textual script plan through here, so whichever runs second finds the first one's files done.
    An earlier layer is in the name of an element file, unless its folder is called `…__LAYER`, as --layers calls it.
    place: a folder for the file, instead of `folder` below `root`. write: False in a dry run.
    Raises `UserError` for an unknown layer, a folder that cannot be written to, and a file made otherwise.
    """
    node = resolve(backbone.module, backbone.head, layer, backbone.preprocessing["crop"])
    if elements is None:
        file = representations_file(folder, images.dataset, images.split, layer, root)
    else:  # an unnamed data set is the published one
        dataset = "imagenet" if images.dataset == UNNAMED else images.dataset
        file = elements_file(folder, dataset, elements["kind"], elements.get("protocol", "paper"), root)
        if folder != layer_label(folder.removesuffix(f"__{slug(node.name)}"), node.name):  # which names the layer
            file = file.with_name(f"{slug(node.name)}_{file.name}")
    if place is not None:
        file = place / file.name
    provenance = {"model": backbone.model, "weights": backbone.weights, "weights_hash": backbone.weights_hash,
                  "node": node.name, "preprocessing": backbone.preprocessing, "precision": precision,
                  "dataset": images.dataset, "split": images.split, "elements": elements}
    if backbone.weights_hash is None:  # a dry run without the weights
        del provenance["weights_hash"]
    if write:
        make_output_folder(file.parent)
        is_done(file, provenance, images)
    return Target(backbone, node, file, provenance, precision, {"layer": layer}, compiled)


def prepared(target: Target) -> Target:
    """The target with its forward pass; see `fast_forward`."""
    if target.forward is not None:
        return target
    module = ready(target.model.module, target.node, target.model.preprocessing["crop"])
    return replace(target, module=module, forward=Compiled(module, target.node, target.compiled) if target.compiled
                   else partial(represent, module, target.node))


def passes(targets: Sequence[Target]) -> list[list[Target]]:
    """The targets, as `prepared` leaves them, by the forward pass that serves them: one for all layers of a model. A
    folded or compiled model has its head's input alone, and a pass of its own."""
    found: dict[Any, list[Target]] = {}
    for target in targets:
        alone = target.compiled and target.node.name == HEAD_INPUT
        key = id(target) if alone else (id(target.module), target.precision, target.compiled)
        found.setdefault(key, []).append(target)
    return list(found.values())


def features_of(targets: Sequence[Target], pixels: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """Float32 features [(B, D), …] on the device of the targets of one pass, of uint8 pixels (B, 3, H, W). A GPU may
    still be computing them."""
    first, nodes = targets[0], [target.node for target in targets]

    def forward(some: torch.Tensor) -> list[torch.Tensor]:
        x = normalise(some, first.model.preprocessing)
        found = [first.forward(x)] if len(targets) == 1 else represent_all(first.module, nodes, x)
        return [features_BD.float() for features_BD in found]

    with torch.inference_mode(), precise(device, first.precision):
        return in_slices(forward, pixels, whole=bool(first.compiled))


def widths_of(targets: Sequence[Target], device: torch.device) -> list[int]:
    """D of each target of one pass."""
    side = targets[0].model.preprocessing["crop"]
    return [found.shape[1] for found in features_of(targets, torch.zeros(1, 3, side, side, device=device), device)]


def _compile(targets: Sequence[Target], device: torch.device) -> None:
    """Compile on images of noise, before processes are forked: all of them then have what one has compiled."""
    size, side = targets[0].compiled, targets[0].model.preprocessing["crop"]
    if size:
        noise = torch.randint(256, (size, 3, side, side), generator=torch_rng("compile"), dtype=torch.uint8)
        features_of(targets, noise.contiguous(memory_format=torch.channels_last).to(device), device)


def ranks() -> tuple[int, int]:
    """This process's rank and their number, from torchrun; 0 of 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_done(file: Path, provenance: dict[str, Any], images: ImageSet | None = None) -> bool:
    """Whether `file` exists, made in this way (and from these images).

    Raises `UserError` where it was made in another way, naming the field that differs.
    """
    if not file.exists():
        return False
    before = load_embeddings(file)
    difference = differing(before.provenance, provenance, tuple(provenance))
    remedy = "rename the concept list, choose another --activation_dir"
    if images is not None:
        remedy = "choose another --model_name or --save_root"
        if difference is None and before.record.get("pictures_hash") != _images_hash(images):
            difference = f"its images ({len(before)} then, {len(images)} now, or other names)"
    if difference:
        raise UserError(f"{file} was made otherwise: it differs in {difference}; {remedy}, or delete it")
    return True


def embed_together(images: ImageSet, targets: Sequence[Target], batch_size: int, workers: int,
                   device: torch.device) -> None:
    """Embed N images into each target's file (features N x D, float32), decoding every image once, in one forward pass
    for all layers of a model.

    Prints one line a file; a finished file is kept. Unreadable images are left out, counted and listed in
    record["unreadable"]. Memory does not grow with N. Raises `UserError` for features that are not finite (naming the
    image) or all the same, for other settings in the partial folder, and when no image is readable.
    """
    started, (rank, world), left = time.time(), ranks(), []
    for target in targets:
        if not is_done(target.file, target.provenance, images):
            left.append(prepared(target))
        elif rank == 0:
            shutil.rmtree(target.partial, ignore_errors=True)  # killed just after the file was written
            print(f"{target.file}: done already")
    if not left:
        return
    together = passes(left)
    left = [target for targets in together for target in targets]
    with thread_limit(threads_wanted()) if device.type == "cpu" else nullcontext():
        widths = [width for targets in together for width in widths_of(targets, device)]
        if device.type == "cpu":
            for targets in together:
                _compile(targets, device)
    pictures_hash = _images_hash(images)
    chunks = chunks_of(len(images), batch_size, device)
    for target, width in zip(left, widths, strict=True):
        claim_folder(target.partial, {**target.provenance, "pictures": len(images), "pictures_hash": pictures_hash,
                                      "width": width, "batch_size": batch_size, "chunk": len(chunks[0])},
                     "unfinished embeddings")
        (target.partial / "features.f32").touch()
    missing = [chunk for chunk in range(rank, len(chunks), world)
               if not all(_log(target, chunk).exists() for target in left)]
    todo = [batch for chunk in missing for batch in chunks[chunk]]
    preprocessings = [targets[0].model.preprocessing for targets in together]

    def compute(place: int, stream: Iterator[Batch]) -> None:
        with ExitStack() as opened:  # by each process for itself: a shared file would share its position
            files = {target.file: opened.enter_context(open(target.partial / "features.f32", "rb+"))
                     for target in left}
            unreadable: dict[int, str] = {}
            before: list[tuple] = []  # written while the device computes the next batch
            for batch in stream:
                unreadable |= batch.unreadable
                begun = [(files[target.file], batch.rows, _fetched(found))
                         for targets, pixels in zip(together, batch.pixels, strict=False)  # none where none is readable
                         for target, found in zip(targets, features_of(targets, pixels, device), strict=True)]
                _write_rows(before, images)
                before = begun
            _write_rows(before, images)
            for target in left:
                files[target.file].flush()
                os.fsync(files[target.file].fileno())
                write_json(_log(target, missing[place]), {"unreadable": unreadable})

    with progress(total=len(todo), desc=" + ".join(target.file.name for target in left), unit="batch") as bar:
        for _ in over_chunks(images, preprocessings, [chunks[chunk] for chunk in missing], compute, workers, device,
                             bar, cpu_bytes(preprocessings, batch_size, any(target.compiled for target in left))):
            pass
    for target, width in zip(left, widths, strict=True) if rank == 0 else ():
        while not all(_log(target, chunk).exists() for chunk in range(len(chunks))):  # of the other ranks
            time.sleep(0.2)
        seconds = max(time.time() - started, 1e-9)
        record = {**target.record, "compiled": bool(getattr(target.forward, "works", False)),
                  "seconds": round(seconds, 1), "root": str(images.root), "device": str(device),
                  "made": datetime.now(UTC).isoformat(timespec="seconds"), "torch": str(torch.__version__),
                  "torchvision": str(torchvision.__version__), "pictures_hash": pictures_hash}
        kept = _finish(images, target, width, len(chunks), record)
        print(f"{target.file}: {kept:,} x {width}, {seconds:.1f} s, {sum(map(len, todo)) / seconds:,.0f} images/s, "
              f"{device}")


def print_targets(images: ImageSet, targets: Sequence[Target], device: torch.device) -> None:
    """A dry run of `embed_together`; images that are not there yet are labels without names."""
    for target in targets:
        if target.file.exists() and (not len(images) or is_done(target.file, target.provenance, images)):
            print(f"dry run: {target.file} is done already")
        else:
            (width,) = widths_of([prepared(target)], device)
            print_file(target.file, len(images.labels), width, target.model.preprocessing["crop"])


def print_file(file: Path, count: int, width: int, side: int | None = None) -> None:
    """Print the shapes and bytes of a file, once: IIS_PLANNED names a list of what earlier scripts have counted.
    count: 0 where it is unknown."""
    if listed := os.environ.get("IIS_PLANNED"):
        if str(file.resolve()) in Path(listed).read_text().split("\n"):
            print(f"dry run: {file} is counted above")
            return
        with open(listed, "a") as handle:
            handle.write(f"{file.resolve()}\n")
    rows = f"{count:,}" if count else "N"
    print_plan(f"stage 2, {file}", {
        "shapes": (f"{rows} images of 3 x {side} x {side} -> " if side else "") + f"{rows} x {width} float32",
        "disk": f"{disk(4 * count * width, file.parent)}, and as much again until it is whole" if count else
                f"{size(4 * width)} an image, of an unknown number"})


def _fetched(found: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy features to the host; the function returned waits for them, not for later work on the device."""
    if not found.is_cuda:
        return found.numpy
    copy, event = found.to("cpu", non_blocking=True), torch.cuda.Event()  # into page-locked memory
    event.record(torch.cuda.current_stream(found.device))
    return lambda: (event.synchronize(), copy.numpy())[1]


def _write_rows(computed: Sequence[tuple], images: ImageSet) -> None:
    """Write each row to its own place. Plain writes, not a memory map: a full disk must be an error, not a crash."""
    for file, rows, wait in computed:
        found = wait()  # (B, D)
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise UserError(f"the features of {images.names[rows[bad[0]]]} are not finite: the weights or the "
                            "precision do not suit this model (try --precision fp32, and check the checkpoint)")
        if len(found) >= 8 and (found == found[0]).all():
            raise UserError(f"the features of {len(found)} different images are all the same: the checkpoint or the "
                            "layer cannot be right")
        for row, values in zip(rows, found, strict=True):
            file.seek(row * values.nbytes)
            file.write(values.tobytes())


def _finish(images: ImageSet, target: Target, width: int, chunks: int, record: dict[str, Any]) -> int:
    """Check that all rows are there, write the file and remove the partial folder. The number of rows kept."""
    unreadable = {int(row): reason for chunk in range(chunks)
                  for row, reason in read_json(_log(target, chunk))["unreadable"].items()}
    kept = [row for row in range(len(images)) if row not in unreadable]
    if not kept:
        raise UserError(f"none of the {len(images)} images below {images.root} could be read")
    place = target.partial / "features.f32"
    if place.stat().st_size != (kept[-1] + 1) * width * 4:
        raise UserError(f"{target.partial} is damaged (features.f32 has another size than its log says); delete the "
                        "folder and start again")
    features_ND = np.memmap(place, np.float32, "c", shape=(kept[-1] + 1, width))
    if unreadable:
        with open(target.partial / "kept.f32", "wb") as handle:
            for some in ranges(len(kept), 4096):
                handle.write(features_ND[kept[some.start:some.stop]].tobytes())
        features_ND = np.memmap(target.partial / "kept.f32", np.float32, "c", shape=(len(kept), width))
        print(f"{len(unreadable)} of {len(images)} images could not be read and are left out:", flush=True)
        print("\n".join(f"  {reason}" for _, reason in sorted(unreadable.items())))
    record["unreadable"] = [images.names[row] for row in sorted(unreadable)]
    for leftover in target.file.parent.glob(f".{target.file.stem}.*.tmp{target.file.suffix}"):  # killed while writing
        leftover.unlink()
    save_embeddings(target.file, Embeddings(torch.from_numpy(features_ND),
                                            torch.tensor([images.labels[row] for row in kept]),
                                            list(images.class_names), [images.names[row] for row in kept],
                                            target.provenance, record))
    del features_ND
    shutil.rmtree(target.partial)
    return len(kept)


def _log(target: Target, chunk: int) -> Path:
    return target.partial / f"chunk-{chunk:06d}.json"


def _images_hash(images: ImageSet) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, label in zip(images.names, images.labels, strict=True):
        digest.update(f"{name}\0{label}\n".encode())
    return digest.hexdigest()
