"""Lists of concepts and of class names: read, checked, without duplicates.

Three forms load unchanged: a text file with a concept a line (this suite's and LF-CBM's own), a JSON list, and
JSON of class -> concepts.
"""

from __future__ import annotations

import json
from pathlib import Path

from iis.runtime import ROOT, UserError, nearest

TEXTUAL = ROOT / "concept_library" / "textual"
CLASSES = TEXTUAL / "classes"


def read_concepts(file: Path) -> tuple[list[str], list[str]]:
    """The concepts of a list in its own order and spelling, and the duplicates that were left out.

    Two entries are duplicates when they agree but for case and spaces; the first one stays. Blank lines are
    skipped. Raises `UserError` for a missing, unreadable or empty list, naming the lists of the suite that are near.
    """
    file = Path(file)
    concepts, duplicates, seen = [], [], set()
    for entry in _entries(file):
        concept = " ".join(entry.split())
        if not concept:
            continue
        if concept.casefold() in seen:
            duplicates.append(concept)
        else:
            seen.add(concept.casefold())
            concepts.append(concept)
    if not concepts:
        raise UserError(f"{file} holds no concepts: write one a line, or name another list")
    return concepts, duplicates


def read_class_names(name: str | Path) -> list[str]:
    """Class names to keep concepts away from: a file, a name in `concept_library/textual/classes/`, or `imagenet`.

    `imagenet` gives every synonym of the thousand classes, through timm's list. Underscores are spaces.
    """
    if Path(name).is_file():
        names = read_concepts(Path(name))[0]
    elif str(name) == "imagenet":
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        names = [word for index in range(info.num_classes()) for word in info.index_to_description(index).split(", ")]
    elif (CLASSES / f"{name}.txt").is_file():
        names = read_concepts(CLASSES / f"{name}.txt")[0]
    else:
        known = ["imagenet", *(file.stem for file in CLASSES.glob("*.txt"))]
        raise UserError(f"there is no list of class names {name} (neither a file nor a known name)"
                        f"{nearest(Path(name).stem, known)}")
    return [name.replace("_", " ") for name in names]


def _entries(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # takes a byte-order mark, which editors on Windows write
    except (FileNotFoundError, IsADirectoryError):
        known = [found.name for found in TEXTUAL.glob("*.txt")]
        raise UserError(f"there is no concept list {file}{nearest(file.name, known)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text: save it as UTF-8, one concept a line") from None
    if file.suffix.lower() != ".json":
        return text.splitlines()
    try:
        data = json.loads(text)
        groups = data.values() if isinstance(data, dict) else [data]
        concepts = [concept for group in groups for concept in ([group] if isinstance(group, str) else group)]
        if not all(isinstance(concept, str) for concept in concepts):
            raise TypeError("every concept must be a string")
        return concepts
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{file} is neither a JSON list of concepts nor JSON of class -> concepts ({error})") from None
