"""The images of an explanation: those whose predictions are explained, and those that show what a concept is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iis.cli import find_config, parse, path
from iis.datasets import UnreadableImage, is_synset, load_dataset, readable_class_names
from iis.embedding_file import Embeddings, load_embeddings
from iis.names import elements_file, elements_folder
from iis.runtime import UserError, nearest
from reproduction.lib.run_files import settings_of

SHOWN_AS_IMAGES = ("Prototype", "Cluster", "End2End")  # banks whose evidence is images of visual elements


def open_image(file: Path, remedy: str) -> Image.Image:
    """An image as RGB, as `iis.datasets` opens them. Raises `UserError` where it is missing or damaged."""
    if not file.is_file():
        raise UserError(f"there is no image {file}; {remedy}")
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # a broken file can raise almost anything
        raise UserError(f"{file} cannot be read as an image ({error}); {remedy}") from None


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
    candidates = [given] if given else [elements_folder(*source)]
    file = Path(settings_of(folder).get("concept_path") or elements_file(identity["model"], *source))
    if not given and file.is_file():
        embeddings = load_embeddings(file)
        if embeddings.record.get("root") and embeddings.content_hash == identity["elements_hash"]:
            candidates.insert(0, Path(embeddings.record["root"]))
    found = next((place for place in candidates if place.is_dir()), None)
    if found is None:
        raise UserError(f"the images of the concepts are not at {candidates[0]}; run concept_extract.sh again with "
                        f"DATASET={source[0]}, or name their folder with --elements")
    return found


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
    images = [open_image(root / line, "name the folder of the elements with --elements") for line in lines[:most]]
    classes = list(dict.fromkeys(line.rpartition("/")[0] for line in lines[:most] if "/" in line))
    if all(map(is_synset, classes)):
        classes = readable_class_names("imagenet", classes)
    return Concept(f"concept {number}" + (f", cut from {', '.join(classes)}" if classes else ""), images)


def concepts_of(lines: Iterable[dict[str, Any]], bank: str, root: Path | None) -> dict[int, Concept]:
    """{number: concept} of lines with `concept` and `evidence`."""
    evidence = {line["concept"]: line["evidence"] for line in lines}
    return {number: concept_of(number, evidence[number], bank, root) for number in sorted(evidence)}


# ---- images that are explained ----


@dataclass(frozen=True)
class Subject:
    """One image. name: its path in the data set, or the file's name; label: its true class, None where unknown;
    features_D: its representation."""

    name: str
    image: Image.Image
    label: int | None
    features_D: torch.Tensor


def class_label(text: str, class_names: Sequence[str], folders: Sequence[str]) -> int:
    """The class called `text`, by its readable name or its folder. Raises `UserError` naming the nearest."""
    found = next((list(names).index(text) for names in (class_names, folders) if text in names), None)
    if found is None:
        raise UserError(f"there is no class {text!r}{nearest(text, {*class_names, *folders})}")
    return found


def spread(rows: Sequence[int], count: int) -> list[int]:
    """`count` of the rows, evenly spread over them; all where there are fewer."""
    count = min(count, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def from_rows(rows: Sequence[float], val: Embeddings, dataset: str) -> list[Subject]:
    """Rows of the validation features, with their images. Raises `UserError` for a row or image that is missing."""
    if wrong := [row for row in rows if row not in range(len(val))]:
        raise UserError(f"--rows {wrong[0]:g}: the validation split has rows 0 to {len(val) - 1}")
    images = load_dataset(dataset).images("val")
    index = {name: place for place, name in enumerate(images.names)}
    subjects = []
    for row in map(int, rows):
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
    """Image files, or names in the validation split. Images that the validation features hold are taken from there;
    the others go through the backbone. Raises `UserError` for a file that is missing or no image."""
    known = {name: row for row, name in enumerate(val.image_paths)}
    root = None
    with contextlib.suppress(UserError):  # the data set is not in place
        root = path(str(load_dataset(dataset).images("val").root))
    found: list[Subject | Image.Image] = []
    for word in words:
        file = path(word)
        name = file.relative_to(root).as_posix() if root and file.is_relative_to(root) else word
        if name in known and (name != word or not file.is_file()):
            found += from_rows([known[name]], val, dataset)
        else:
            found.append(open_image(file, f"give an image file, or a name of the {dataset} validation split such as "
                                          f"{val.image_paths[0]}"))
    others = [one for one in found if isinstance(one, Image.Image)]
    features = iter(embed_images(others, val, val_file, config, device) if others else ())
    return [Subject(path(word).name, one, None, next(features)) if isinstance(one, Image.Image) else one
            for word, one in zip(words, found, strict=True)]


def embed_images(images: Sequence[Image.Image], val: Embeddings, val_file: Path, config: str | None = None,
                 device: str | None = None) -> torch.Tensor:
    """Representations (N, D) of images, taken as those of `val` were.

    The backbone is that of `config` (a YAML of model_configs/), else of the settings beside `val_file`, else of the
    configuration that bears the folder's name. Raises `UserError` where it is not the one `val` came from.
    """
    from extractor import visual_element_emb_extractor as script
    from extractor.batches import precise
    from extractor.settings import backbone_of
    from iis.layers import represent, resolve
    from iis.preprocessing import normalise, to_uint8

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
    node = resolve(backbone.module, backbone.head, wanted["node"], backbone.preprocessing["crop"])
    pixels = torch.stack([to_uint8(image, backbone.preprocessing) for image in images]).to(place)
    with torch.inference_mode(), precise(place, wanted["precision"]):
        found_ND = represent(backbone.module, node, normalise(pixels, backbone.preprocessing))
    return found_ND.float().cpu()
