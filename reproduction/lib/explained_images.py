"""The images of an explanation: those whose predictions are explained, and those that show what a concept is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iis.cli import find_config, parse, path
from iis.datasets import ImageSet, UnreadableImage, is_synset, load_dataset, readable_class_names
from iis.embedding_file import Embeddings, load_embeddings
from iis.names import elements_file, elements_folder
from iis.runtime import UserError, nearest
from reproduction.lib.run_files import settings_of

# Banks whose evidence is images of visual elements.
SHOWN_AS_IMAGES = ("Prototype", "Cluster", "SAE", "NMF", "PCA", "End2End")


def read_image(images: ImageSet, index: int, remedy: str) -> Image.Image:
    """An image of a set as RGB. Raises `UserError` where it is missing or damaged."""
    try:
        return images.open(index)
    except UnreadableImage as error:
        raise UserError(f"an image cannot be read: {error}; {remedy}") from None


def loose_files(folder: Path, names: Sequence[str]) -> ImageSet:
    """Image files that belong to no data set, as a set: they are opened as all others are."""
    return ImageSet("", "", [], [], list(names), folder)


# ---- concepts ----


@dataclass(frozen=True)
class Concept:
    """label: its words, or what its images are; images: RGB, the nearest to the concept first."""

    label: str
    images: list[Image.Image]


def elements_root(folder: Path, identity: dict[str, Any], given: Path | None = None) -> Path | None:
    """Stage 1's folder with the images of the elements a bank was made of; None for a bank of words or directions.

    `given`, else where the element embeddings say they lie, else the usual place. Raises `UserError` where it is gone.
    """
    elements = identity.get("elements")
    if elements is None:
        return None
    source = (elements.get("dataset", identity["dataset"]), elements["kind"], elements.get("protocol", "paper"))
    places = [given or elements_folder(*source)]
    file = Path(settings_of(folder).get("concept_path") or elements_file(identity["model"], *source))
    if not given and file.is_file() and (made := load_embeddings(file)).content_hash == identity["elements_hash"]:
        places.insert(0, Path(made.record.get("root", places[0])))
    for place in places:
        if place.is_dir():
            return place
    raise UserError(f"the images of the concepts are not at {places[0]}; run concept_extract.sh again with "
                    f"DATASET={source[0]}, or name their folder with --elements")


def concept_of(number: int, evidence: list[str], bank: str, root: Path | None, most: int = 4) -> Concept:
    """Concept `number` with at most `most` images. evidence: its line in the predictor's JSON; bank: the run's.

    In a Combined bank every line begins with its part ("Prototype: …"). Raises `UserError` for a missing image.
    """
    kind, lines = bank, evidence
    if bank == "Combined" and lines:
        kind = lines[0].partition(": ")[0]
        lines = [line.partition(": ")[2] for line in lines]
    if not lines:
        return Concept(f"concept {number}: an empty slot, no element joined it", [])
    if kind not in SHOWN_AS_IMAGES or root is None:
        return Concept(", ".join(lines), [])
    files, remedy = loose_files(root, lines[:most]), "name the folder of the elements with --elements"
    images = [read_image(files, place, remedy) for place in range(len(files))]
    classes = list(dict.fromkeys(name.rpartition("/")[0] for name in files.names if "/" in name))
    if all(map(is_synset, classes)):
        classes = readable_class_names("imagenet", classes)
    return Concept(f"concept {number}" + (f", cut from {', '.join(classes)}" if classes else ""), images)


# ---- images that are explained ----


@dataclass(frozen=True)
class Subject:
    """One image. name: its path in the data set, or the file's name; label: its true class, None where unknown;
    features_D: its representation, None before it is embedded."""

    name: str
    image: Image.Image
    label: int | None
    features_D: torch.Tensor | None


def class_label(text: str, *names: Sequence[str]) -> int:
    """The class called `text` in one of the lists of `names`. Raises `UserError` naming the nearest."""
    for some in names:
        if text in some:
            return list(some).index(text)
    raise UserError(f"there is no class {text!r}{nearest(text, set().union(*names))}")


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, evenly spread over them; all where there are fewer."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def subjects_of(words: Sequence[str], val: Embeddings, val_file: Path, dataset: str, config: str | None = None,
                device: str | None = None) -> list[Subject]:
    """Images by their names in the validation split, or as files. Those that the validation features hold are taken
    from there; the others go through the backbone. Raises `UserError` for an image that is missing or damaged."""
    rows, absent = {name: row for row, name in enumerate(val.image_paths)}, ""
    try:
        images = load_dataset(dataset).images("val")
    except UserError as error:  # not in place: files from elsewhere can be explained all the same
        images, absent = loose_files(Path(), []), str(error)
    index, found = {name: place for place, name in enumerate(images.names)}, []
    for word in words:
        file = path(word)
        name = file.relative_to(images.root).as_posix() if file.is_relative_to(images.root) else word
        if name in index and name in rows:
            row = rows[name]
            found.append(Subject(name, read_image(images, index[name], "choose another one"), int(val.labels_N[row]),
                                 val.features_ND[row]))
        elif name in rows:
            raise UserError(absent or f"{images.root} has no image {name!r}, which the validation features name; put "
                            "the data set back in place (features from elsewhere name no images: embed with stage 2)")
        else:
            image = read_image(loose_files(file.parent, [file.name]), 0, f"give an image file, or a name of the "
                               f"{dataset} validation split such as {val.image_paths[0]}")
            found.append(Subject(file.name, image, None, None))
    others = [one.image for one in found if one.features_D is None]
    features = iter(embed_images(others, val, val_file, config, device) if others else ())
    return [replace(one, features_D=next(features)) if one.features_D is None else one for one in found]


def embed_images(images: Sequence[Image.Image], val: Embeddings, val_file: Path, config: str | None = None,
                 device: str | None = None) -> torch.Tensor:
    """Representations (N, D) of images, taken as those of `val` were.

    The backbone is that of `config` (a YAML of model_configs/), else of the settings beside `val_file`, else of the
    configuration that bears the folder's name. Raises `UserError` where it is not the one `val` came from.
    """
    from extractor import visual_element_emb_extractor as script
    from extractor.batches import precise
    from extractor.settings import backbone_of
    from iis.python_call import embed

    wanted = val.provenance
    if "weights_hash" not in wanted:
        raise UserError(f"{val_file} does not say which backbone it came from, so other images cannot be embedded")
    written = val_file.with_name(f"{val_file.name}.settings.yaml")
    file = find_config(config or (written if written.is_file() else val_file.parent.name), "model_configs")
    words = ["--config_yaml", str(file), *(["--device", device] if device else [])]
    backbone, place = backbone_of(parse(script.Settings, words))
    for field, found in (("weights_hash", backbone.weights_hash), ("preprocessing", backbone.preprocessing)):
        if found != wanted[field]:
            raise UserError(f"the backbone of {file} differs in {field} from the one of {val_file} ({found!r} and "
                            f"{wanted[field]!r}); name its YAML with --config_yaml")
    with precise(place, wanted["precision"]):
        return embed(backbone.module, images, wanted["node"], settings=backbone.preprocessing, device=str(place),
                     tf32=wanted["precision"] == "tf32", show_progress=False)
