"""Embedding files: features with their labels, names and provenance in one `.pt` / `.pkl` file.

The file is an ordinary `torch.save` of plain types, so `torch.load(file, weights_only=True, mmap=True)` reads it
anywhere and nothing in it is executed. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iis.runtime import UserError, write_whole

# What decides the numbers in a file, and is compared when it is found again; `record` is only for people.
PROVENANCE = ("model", "weights", "weights_hash", "node", "preprocessing", "precision",
              "dataset", "split", "elements")
# What elements and images must share, so that a concept bank lives in the space of the images.
SHARED_WITH_IMAGES = ("model", "weights_hash", "node", "preprocessing", "precision")


@dataclass
class Embeddings:
    """features_ND (N, D) float, labels_N (N,) int64 into class_names, image_paths one per row.

    provenance: the fields of `PROVENANCE`, each a plain value (`elements` is None for the data set's own images,
    else {"kind": "segments" | "patches", … the settings of stage 1}). record: data root, versions, seconds, …
    content_hash: BLAKE2 of features and labels; two files with one hash hold the same numbers.
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
        return self.features_ND.shape[0]


def content_hash(features_ND: torch.Tensor, labels_N: torch.Tensor, rows: int = 65536) -> str:
    """Hash of the numbers alone, read `rows` rows at a time (about 1 GB/s)."""
    digest = hashlib.blake2b(f"{tuple(features_ND.shape)} {features_ND.dtype}".encode(), digest_size=16)
    for start in range(0, len(features_ND), rows):
        digest.update(features_ND[start:start + rows].contiguous().view(torch.uint8).numpy())
    digest.update(labels_N.to(torch.int64).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_embeddings(file: Path, embeddings: Embeddings) -> None:
    """Write the file whole or not at all. Raises `UserError` for rows that do not belong together."""
    count = len(embeddings)
    if len(embeddings.labels_N) != count or len(embeddings.image_paths) != count:
        raise UserError(f"{file}: {count} rows of features, {len(embeddings.labels_N)} labels and "
                        f"{len(embeddings.image_paths)} paths do not belong together")
    embeddings.content_hash = content_hash(embeddings.features_ND, embeddings.labels_N)
    data = {"format": "iis-embeddings-1", "features": embeddings.features_ND, "labels": embeddings.labels_N,
            "class_names": list(embeddings.class_names), "image_paths": list(embeddings.image_paths),
            "provenance": embeddings.provenance, "record": embeddings.record,
            "content_hash": embeddings.content_hash}
    write_whole(file, lambda temporary: torch.save(data, temporary))


def load_embeddings(file: Path, labels: Path | None = None) -> Embeddings:
    """Read an embedding file (features stay memory-mapped), or a bare N x D matrix together with `labels`.

    A bare matrix may be a `.pt` tensor, `.npy`, or `.safetensors` with one tensor; labels likewise, or a text file
    with one class name a line. Raises `UserError` for a missing, damaged or mis-shaped file.
    """
    data = load_tensors(file)
    if isinstance(data, dict) and data.get("format") == "iis-embeddings-1":
        found = Embeddings(data["features"], data["labels"], data["class_names"], data["image_paths"],
                           data["provenance"], data["record"], data["content_hash"])
    else:
        found = _bare(file, data, labels)
    if found.features_ND.ndim != 2:
        raise UserError(f"{file} holds features of shape {tuple(found.features_ND.shape)}; N x D is needed")
    return found


def load_tensors(file: Path) -> Any:
    """What a `.pt`/`.pkl`/`.pth`, `.npy` or `.safetensors` file holds; nothing in the file is executed."""
    file = Path(file)
    if not file.is_file():
        raise UserError(f"there is no file {file}; run the stage that writes it first")
    try:
        if file.suffix == ".npy":
            import numpy as np

            return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(file)
            return next(iter(tensors.values())) if len(tensors) == 1 else tensors
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # the old format cannot be mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} cannot be read as tensors: it is truncated, or holds more than plain tensors "
                        f"({reason[:160]}); make it again") from None


def save_tensors(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a `.safetensors` file whole or not at all, readable by colleagues (the library itself writes 0600)."""
    from safetensors.torch import save_file

    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    write_whole(file, lambda temporary: save_file(plain, temporary, metadata))
    Path(file).chmod(0o644)


def _bare(file: Path, data: Any, labels: Path | None) -> Embeddings:
    if not torch.is_tensor(data):
        raise UserError(f"{file} is neither an embedding file of this suite nor a bare N x D tensor")
    if labels is None:
        raise UserError(f"{file} holds a bare tensor: name the file with its labels too (--train_labels, --val_labels)")
    if not Path(labels).is_file():
        raise UserError(f"there is no file {labels} with the labels of {file}")
    if Path(labels).suffix == ".txt":
        words = Path(labels).read_text(encoding="utf-8").split("\n")
        words = [word.strip() for word in words if word.strip()]
        classes = sorted(set(words))
        labels_N = torch.tensor([classes.index(word) for word in words])
    else:
        labels_N = load_tensors(labels)
        if not torch.is_tensor(labels_N) or not labels_N.numel():
            raise UserError(f"{labels} holds no labels: one tensor of N class numbers is needed")
        labels_N, classes = labels_N.to(torch.int64).flatten(), None
    return as_embeddings(data, labels_N, classes)


def as_embeddings(features: Any, labels: Any = None, class_names: list[str] | None = None) -> Embeddings:
    """`Embeddings` of an array or tensor (N, D), float16 to 64, with class numbers (N,), all 0 unless given."""
    if isinstance(features, Embeddings):
        return features
    features_ND = torch.as_tensor(features)
    if features_ND.ndim != 2 or not features_ND.is_floating_point():
        raise UserError(f"features of shape {tuple(features_ND.shape)} and type {features_ND.dtype}: a floating-point "
                        "matrix N x D is needed")
    features_ND = features_ND.float() if features_ND.dtype == torch.float64 else features_ND
    count = len(features_ND)
    labels_N = torch.zeros(count, dtype=torch.int64) if labels is None else torch.as_tensor(labels).to(torch.int64)
    if labels_N.shape != (count,):
        raise UserError(f"{count} rows of features and labels of shape {tuple(labels_N.shape)} do not belong together")
    names = class_names or [f"class {label:03d}" for label in range(int(labels_N.max()) + 1 if count else 0)]
    found = Embeddings(features_ND.detach().cpu(), labels_N.cpu(), names, [f"row {row}" for row in range(count)])
    found.content_hash = content_hash(found.features_ND, found.labels_N)
    return found


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
