"""What a person is shown of a concept: words, or the images of its visual elements, which lie in stage 1's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from iis.embedding_file import load_embeddings
from iis.names import elements_file, elements_folder
from iis.runtime import UserError
from reproduction.lib.run_files import settings_of

SHOWN_AS_IMAGES = ("Prototype", "Cluster", "End2End")  # banks whose evidence is images of visual elements


@dataclass(frozen=True)
class Concept:
    """label: its words, or what its images are; images: RGB, the nearest to the concept first."""

    number: int
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
    candidates = [given]
    if given is None:
        embedded = settings_of(folder).get("concept_path") or elements_file(identity["model"], *source)
        candidates = [*_root_of(Path(embedded), identity["elements_hash"]), elements_folder(*source)]
    found = next((place for place in candidates if place.is_dir()), None)
    if found is None:
        raise UserError(f"the images of the concepts are not at {candidates[0]}; run concept_extract.sh again with "
                        f"DATASET={source[0]}, or name their folder with --elements")
    return found


def _root_of(file: Path, content_hash: str) -> list[Path]:
    """Where the elements of an embedding file lay, if it is the one meant."""
    if not file.is_file():
        return []
    embeddings = load_embeddings(file)
    root = embeddings.record.get("root")
    return [Path(root)] if root and embeddings.content_hash == content_hash else []


def concept_of(number: int, evidence: list[str], bank: str, root: Path | None, most: int = 4) -> Concept:
    """Concept `number` with at most `most` images. evidence: its line in the predictor's JSON; bank: the run's.

    In a Combined bank every line begins with its part ("Prototype: …"). Raises `UserError` for a missing image.
    """
    kind, lines = bank, evidence
    if bank == "Combined" and lines:
        kind = lines[0].partition(": ")[0]
        lines = [line.partition(": ")[2] for line in lines]
    if not lines:
        return Concept(number, f"concept {number}: an empty slot, no element joined it", [])
    if kind not in SHOWN_AS_IMAGES or root is None:
        return Concept(number, ", ".join(lines), [])
    images = [open_image(root / line, "name the folder of the elements with --elements") for line in lines[:most]]
    classes = list(dict.fromkeys(line.rpartition("/")[0] for line in lines[:most] if "/" in line))
    return Concept(number, f"concept {number}" + (f", cut from {', '.join(classes)}" if classes else ""), images)


def open_image(file: Path, advice: str) -> Image.Image:
    """An image as RGB, as `iis.datasets` opens them. Raises `UserError` where it is missing or damaged."""
    if not file.is_file():
        raise UserError(f"there is no image {file}; {advice}")
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # a broken file can raise almost anything
        raise UserError(f"{file} cannot be read as an image ({error}); {advice}") from None
