"""The images whose predictions are explained: of a data set's validation split, or any files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from iis.cli import find_config, path
from iis.datasets import ImageSet, UnreadableImage, load_dataset
from iis.embedding_file import Embeddings
from iis.runtime import UserError, nearest
from reproduction.lib.concept_images import open_image


@dataclass(frozen=True)
class Subject:
    """One image. name: its path in the data set, or the file's name; label: its true class, None where unknown;
    features_D: its representation."""

    name: str
    image: Image.Image
    label: int | None
    features_D: torch.Tensor


def class_label(text: str, class_names: Sequence[str], folders: Sequence[str]) -> int:
    """The class called `text`, by its name for people or its folder. Raises `UserError` naming the nearest."""
    for names in (class_names, folders):
        if text in names:
            return list(names).index(text)
    raise UserError(f"there is no class {text!r}{nearest(text, {*class_names, *folders})}")


def spread(rows: Sequence[int], count: int) -> list[int]:
    """`count` of the rows, evenly spread over them; all where there are fewer."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def from_rows(rows: Sequence[int], val: Embeddings, dataset: str) -> list[Subject]:
    """Rows of the validation features, with their images. Raises `UserError` for a row or image that is missing."""
    for row in rows:
        if not 0 <= row < len(val):
            raise UserError(f"--rows {row}: the validation split has rows 0 to {len(val) - 1}")
    images = load_dataset(dataset).images("val")
    index = {name: place for place, name in enumerate(images.names)}
    subjects = []
    for row in rows:
        name = val.image_paths[row]
        if name not in index:
            raise UserError(f"{images.root} has no image {name!r}, which the validation features name; put the "
                            "data set back in place (features made elsewhere name no images: embed it with stage 2)")
        try:
            subjects.append(Subject(name, images.open(index[name]), int(val.labels_N[row]), val.features_ND[row]))
        except UnreadableImage as error:
            raise UserError(f"an image cannot be read: {error}; choose another one") from None
    return subjects


def from_files(words: Sequence[str], val: Embeddings, val_file: Path, dataset: str, config: str | None = None,
               device: str | None = None) -> list[Subject]:
    """Image files, or names in the validation split. What the validation features hold is taken from there; the
    rest goes through the backbone. Raises `UserError` for a file that is missing or no image."""
    known = {name: row for row, name in enumerate(val.image_paths)}
    root = _root(dataset)
    subjects: list[Subject | None] = []
    strange: list[tuple[int, str, Image.Image]] = []
    for place, word in enumerate(words):
        file = path(word)
        name = file.relative_to(root).as_posix() if root and file.is_relative_to(root) else word
        if name in known and (name != word or not file.is_file()):
            subjects += from_rows([known[name]], val, dataset)
            continue
        image = open_image(file, f"give an image file, or a name of the {dataset} validation split such as "
                                     f"{val.image_paths[0]}")
        strange.append((place, file.name, image))
        subjects.append(None)
    if strange:
        features_ND = embed_images([image for *_, image in strange], val, val_file, config, device)
        for (place, name, image), features_D in zip(strange, features_ND, strict=True):
            subjects[place] = Subject(name, image, None, features_D)
    return subjects


def _root(dataset: str) -> Path | None:
    """Where the validation images lie; None where the data set is not in place."""
    try:
        images: ImageSet = load_dataset(dataset).images("val")
    except UserError:
        return None
    return path(str(images.root))


def embed_images(images: Sequence[Image.Image], val: Embeddings, val_file: Path, config: str | None = None,
                   device: str | None = None) -> torch.Tensor:
    """Representations (N, D) of images, taken as those of `val` were.

    The backbone is that of `config` (a YAML of model_configs/), else of the settings beside `val_file`, else of the
    configuration that bears the folder's name. Raises `UserError` where it is not the one `val` came from.
    """
    from extractor.backbone_flags import backbone_of
    from extractor.batches import precise
    from extractor.visual_element_emb_extractor import parser
    from iis.layers import represent, resolve
    from iis.preprocessing import normalise, to_uint8

    wanted = val.provenance
    if "weights_hash" not in wanted:
        raise UserError(f"{val_file} does not say which backbone it came from, so other images cannot be embedded")
    written = val_file.with_name(f"{val_file.name}.settings.yaml")
    file = find_config(config or (written if written.is_file() else val_file.parent.name), "model_configs")
    args = parser().settings(["--config_yaml", str(file), *(["--device", device] if device else [])])
    backbone, place = backbone_of(args)
    for field, found in (("weights_hash", backbone.weights_hash), ("preprocessing", backbone.preprocessing)):
        if found != wanted[field]:
            raise UserError(f"the backbone of {file} differs in {field} from the one of {val_file} ({found!r} and "
                            f"{wanted[field]!r}); name its YAML with --config_yaml")
    node = resolve(backbone.module, backbone.head, wanted["node"], backbone.preprocessing["crop"])
    pixels = torch.stack([to_uint8(image, backbone.preprocessing) for image in images]).to(place)
    with torch.inference_mode(), precise(place, wanted["precision"]):
        found_ND = represent(backbone.module, node, normalise(pixels, backbone.preprocessing))
    return found_ND.float().cpu()
