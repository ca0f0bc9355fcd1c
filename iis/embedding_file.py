"""Embedding files: features with their labels, names and provenance in one `.pt` / `.pkl` file.

The file is an ordinary `torch.save` of plain types, so `torch.load(file, weights_only=True, mmap=True)` reads it
anywhere and nothing in it is executed. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iis.runtime import UserError, read_lines, write_whole

FORMAT = "iis-embeddings-1"
# What decides the numbers in a file, and is compared when it is found again; `record` is only for people.
PROVENANCE = ("model", "weights", "weights_hash", "node", "preprocessing", "precision", "dataset", "split", "elements")
# What elements and images must share, so that a concept bank lives in the space of the images.
SHARED_WITH_IMAGES = ("model", "weights_hash", "node", "preprocessing", "precision")


@dataclass
class Embeddings:
    """features_ND (N, D) float, labels_N (N,) int64 into class_names, image_paths one per row.

    provenance: the fields of `PROVENANCE`, each a plain value (`elements` is None for the data set's own images,
    else {"kind": "segments" | "patches", … the settings of stage 1}). record: data root, versions, seconds, …
    """

    features_ND: torch.Tensor
    labels_N: torch.Tensor
    class_names: list[str]
    image_paths: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    content_hash: str = ""

    @property
    def width(self) -> int:
        """D."""
        return self.features_ND.shape[1]

    def __len__(self) -> int:
        return len(self.features_ND)


def content_hash(features_ND: torch.Tensor, labels_N: torch.Tensor, rows: int = 65536) -> str:
    """BLAKE2 of the numbers alone, read `rows` rows at a time (about 1 GB/s)."""
    digest = hashlib.blake2b(f"{tuple(features_ND.shape)} {features_ND.dtype}".encode(), digest_size=16)
    for block in features_ND.split(rows):
        digest.update(block.contiguous().view(torch.uint8).numpy())
    digest.update(labels_N.to(torch.int64).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_embeddings(file: Path, embeddings: Embeddings) -> None:
    """Write the file whole or not at all. Raises `UserError` for rows that do not belong together."""
    count = len(embeddings)
    if len(embeddings.labels_N) != count or len(embeddings.image_paths) != count:
        raise UserError(f"{file}: {count} rows of features, {len(embeddings.labels_N)} labels and "
                        f"{len(embeddings.image_paths)} paths do not belong together")
    embeddings.content_hash = content_hash(embeddings.features_ND, embeddings.labels_N)
    fields = dict(vars(embeddings))
    data = {"format": FORMAT, "features": fields.pop("features_ND"), "labels": fields.pop("labels_N"), **fields}
    write_whole(file, lambda temporary: torch.save(data, temporary))


def load_embeddings(file: Path, labels: Path | None = None) -> Embeddings:
    """Read an embedding file (features stay memory-mapped), or a bare N x D matrix together with `labels`.

    A bare matrix may be a `.pt` tensor, `.npy`, or `.safetensors` with one tensor; labels likewise, or a text file
    with one class name a line. Raises `UserError` for a missing, damaged or mis-shaped file.
    """
    data = load_tensors(file)
    if isinstance(data, dict) and data.pop("format", None) == FORMAT:
        try:
            found = Embeddings(data.pop("features"), data.pop("labels"), **data)
            shape, counts = tuple(found.features_ND.shape), (len(found.labels_N), len(found.image_paths))
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{file} is an embedding file of this suite with parts missing; embed again") from None
        if len(shape) != 2 or counts != (shape[0],) * 2:
            raise UserError(f"{file} has features of shape {shape}, {counts[0]} labels and {counts[1]} paths, which do "
                            "not belong together; embed again")
        return found
    if not torch.is_tensor(data):
        raise UserError(f"{file} is neither an embedding file of this suite nor a bare N x D tensor")
    if labels is None:
        raise UserError(f"{file} holds a bare tensor: name the file with its labels too (--train_labels, --val_labels)")
    return as_embeddings(data, *_labels(Path(labels)), str(file))


def _labels(file: Path) -> tuple[torch.Tensor, list[str] | None]:
    """Labels (N,), and the class names where they are words."""
    if file.suffix == ".txt" and file.is_file():
        classes, labels_N = np.unique(read_lines(file), return_inverse=True)
        return torch.from_numpy(labels_N), classes.tolist()
    labels_N = load_tensors(file)
    if not torch.is_tensor(labels_N) or not labels_N.numel():
        raise UserError(f"{file} holds no labels: one tensor of N class numbers is needed")
    return labels_N.flatten(), None


def as_embeddings(features: Any, labels: Any = None, class_names: list[str] | None = None,
                  where: str = "the input") -> Embeddings:
    """`Embeddings` of an array or tensor (N, D), float16 to 64, with class numbers (N,), all 0 unless given.

    Raises `UserError` for another shape or type, which begins with `where`.
    """
    if isinstance(features, Embeddings):
        return features
    try:  # a data frame, an object array or a view backwards are no tensors yet
        features = features if torch.is_tensor(features) else np.ascontiguousarray(features)
        features_ND = torch.as_tensor(features).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where} is no matrix of numbers ({error}): a floating-point matrix N x D is needed") from None
    if features_ND.ndim != 2 or not features_ND.is_floating_point():
        raise UserError(f"{where} has shape {tuple(features_ND.shape)} and type {features_ND.dtype}: a floating-point "
                        "matrix N x D is needed")
    features_ND = features_ND.float() if features_ND.dtype == torch.float64 else features_ND
    count = len(features_ND)
    labels_N = torch.as_tensor(torch.zeros(count) if labels is None else labels).to("cpu", torch.int64)
    if labels_N.shape != (count,):
        raise UserError(f"{where}: {count} rows do not belong with labels of shape {tuple(labels_N.shape)}")
    names = class_names or [f"class {label:03d}" for label in range(int(labels_N.max()) + 1 if count else 0)]
    return Embeddings(features_ND, labels_N, names, [f"row {row}" for row in range(count)],
                      content_hash=content_hash(features_ND, labels_N))


# ---- tensors in files ----


def read_tensors(file: Path) -> Any:
    """What a `.pt`/`.pkl`/`.pth`, `.npy` or `.safetensors` file holds; nothing in the file is executed.

    Raises `UserError` for a damaged file, or one that holds more than tensors and plain types.
    """
    try:
        if file.suffix == ".npy":
            return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        mapped = zipfile.is_zipfile(file)  # torch's old format cannot be
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except PermissionError:
        raise UserError(f"{file} may not be read: change its permissions") from None
    except Exception as error:  # each format has errors of its own
        if re.search("unsupported (global|class)", str(error), re.I):
            raise UserError(f"{file} holds more than tensors, and is not read for safety: save the tensors alone (of a "
                            "model its state_dict()), where the file came from, and give that") from None
        reason = str(error).split("\n")[0]
        if not reason or "weights_only" in reason:  # torch's advice is to switch safety off
            reason = "no pickle of tensors"
        raise UserError(f"{file} is truncated, or cannot be read as tensors ({file.stat().st_size:,} bytes; "
                        f"{reason[:160]}): delete it, and make or get it again") from None


def load_tensors(file: Path) -> Any:
    """`read_tensors` of a file that a stage writes; the only tensor of a `.safetensors` file comes bare."""
    file = Path(file)
    if not file.is_file():
        raise UserError(f"there is no file {file}; run the stage that writes it first")
    found = read_tensors(file)
    return next(iter(found.values())) if file.suffix == ".safetensors" and len(found) == 1 else found


def save_tensors(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a `.safetensors` file whole or not at all, readable by colleagues (the library itself writes 0600)."""
    from safetensors.torch import save_file

    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    write_whole(file, lambda temporary: save_file(plain, temporary, metadata))
    Path(file).chmod(0o644)


# ---- which embeddings belong together ----


def differing(first: dict[str, Any], second: dict[str, Any], fields: tuple[str, ...]) -> str | None:
    """The first of `fields` that both sides record and that differs, as "field (a, b)"; None when all agree."""
    for name in fields:
        if name in first and name in second and first[name] != second[name]:
            return f"{name} ({first[name]!r} and {second[name]!r})"
    return None


def check_same_space(elements: Embeddings, images: Embeddings, files: str) -> None:
    """Raise `UserError` unless elements and images were embedded by one model, weights, node and preprocessing."""
    if elements.width != images.width:
        raise UserError(f"{files}: the widths differ ({elements.width} and {images.width}); "
                        "embed both with the same model and layer")
    difference = differing(elements.provenance, images.provenance, SHARED_WITH_IMAGES)
    if difference:
        raise UserError(f"{files}: elements and images differ in {difference}; embed both the same way")
