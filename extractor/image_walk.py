"""Stage 1's walk over a data set: choose images, cut each into elements in parallel, save, resume.

A stage-1 folder holds CLASS/IMAGE_TAG.jpg and three files of its own: `manifest.json` (every setting that decides
a pixel), `pictures.jsonl` (a row per finished image, which a resume skips) and `complete.json` (written last).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from extractor.elements import AT_MOST
from iis.cli import disk, positive, print_plan, setting, size, write_settings
from iis.datasets import UNNAMED, ImageSet, UnreadableImage, folder_images, is_synset, load_dataset, same_classes
from iis.names import elements_folder
from iis.processes import Advance, in_processes, jobs_that_fit
from iis.runtime import (
    UserError,
    available_cores,
    claim_folder,
    progress,
    read_json,
    write_json,
    write_text,
    write_whole,
)

Cut = Callable[[Image.Image, str], list[tuple[str, Image.Image]]]  # (image, its name) -> [(tag, element)]
SUFFIX = {"jpeg": ".jpg", "png": ".png"}
LISTED = 20  # unreadable images named on the screen; complete.json names all
TRIED = 3  # images that a dry run cuts
USUAL = {"imagenet": (1000, 1_281_167, 50_000), "cifar10": (10, 50_000, 10_000), "cifar100": (100, 50_000, 10_000),
         "shapes": (8, 4_000, 2_000)}  # classes, train and val images: what a dry run expects before they are there
A_TASK = 8  # images at most: handing a task over takes longer the more of them wait
PHOTOGRAPH = {"segments": 50e3, "patches": 25e3}  # bytes of a JPEG element of ImageNet


@dataclass(kw_only=True)
class Stage1Settings:
    """Images and elements"""

    config_yaml: str | None = setting(None, "a YAML file with any of these settings; the command line wins")
    data_root: Path | None = setting(None, "folder of class folders (default: the train images of --dataset)")
    dataset: str | None = setting(None, "a YAML of dataset_configs/; beside --data_root only the name that is "
                                  "recorded (default: imagenet where all folders are synsets, else unnamed)")
    save_root: Path | None = setting(None, "folder for the elements (default: the data set's, in concept_library/)")
    image_per_class: int = setting(10, "images per class: the first readable ones by name", type=positive)
    protocol: Literal["paper", "release"] = setting("paper", "as the paper, or as the authors' published code")
    seed: int = setting(0, "seed of whatever is drawn at random")
    format: Literal["jpeg", "png"] = setting("jpeg", "jpeg: quality 95 without chroma subsampling; png is exact")
    workers: int = setting(available_cores(), "processes; changes only the time", type=positive)
    dry_run: bool = setting(False, "print what would be made, with bytes and folders; make nothing")


def run_stage1(settings: Stage1Settings, kind: str, cut: Cut, rules: dict[str, Any]) -> None:
    """Cut the images of a data set into elements of one kind, or print what that would make.

    rules: what decides a pixel besides the shared settings. Raises `UserError` for images that are not in place.
    """
    images = images_of(settings.data_root, settings.dataset, settings.dry_run)
    if settings.save_root is None and settings.dataset is None:
        raise UserError(f"say where the {kind} go: --save_root FOLDER, or name the data set with --dataset")
    folder = settings.save_root or elements_folder(images.dataset, kind, settings.protocol)
    if settings.dry_run:
        _print_plan(images, cut, folder, kind, settings)
        return
    walk(images, cut, folder, {"kind": kind, "protocol": settings.protocol, "seed": settings.seed, **rules},
         settings.image_per_class, settings.format, settings.workers)
    write_settings(settings, folder / "settings.yaml")


# ---- the images and elements that stages 1 and 2 read ----


def images_of(data_root: Path | None, dataset: str | None, dry_run: bool = False) -> ImageSet:
    """The images below `data_root`, else the train images of `dataset`.

    Raises `UserError` where they are not in place (but see `expected_images`), and where the data set's val folder
    would fail in stage 2: images without class folders, or other classes than train.
    """
    if data_root is not None:
        name = dataset or UNNAMED
        if dry_run and not data_root.is_dir():
            return expected_images(name, "train", data_root)
        images = folder_images(data_root, name, "train")
        if dataset is None and all(is_synset(name) for name in images.class_names):
            images.dataset = "imagenet"  # as the published commands leave unsaid
        return images
    if dataset is None:
        raise UserError("say which images: --data_root FOLDER (one folder per class) or --dataset NAME")
    found = load_dataset(dataset)
    val_there = not found.torchvision and (found.root / found.val).is_dir()
    return dataset_images(dataset, ["train", "val"] if val_there else ["train"], dry_run)[0]


def dataset_images(name: str, splits: Sequence[str], dry_run: bool = False) -> list[ImageSet]:
    """Images of each split. Raises `UserError` for train and val of different classes, and for images that are not in
    place (but see `expected_images`)."""
    dataset, found = load_dataset(name), []
    for split in splits:
        try:
            found.append(dataset.images(split))
        except UserError as error:
            if not dry_run:
                raise
            print(f"dry run: the {split} images are not there yet: {error}")
            found.append(expected_images(dataset.name, split, dataset.root))
    if len(found) == 2 and all(found):
        same_classes(found[0].class_names, found[1].class_names)
    return found


def expected_images(dataset: str, split: str, root: Path) -> ImageSet:
    """For a dry run, images that are not there yet: labels without names, and none for a data set of unknown size."""
    classes, train, val = USUAL.get(dataset, (1, 0, 0))
    labels = [row % classes for row in range({"train": train, "val": val}[split])]
    return ImageSet(dataset, split, [], labels, [], root)


def elements_of(folder: Path, kind: str | None, dataset: str | None,
                dry_run: bool = False) -> tuple[ImageSet, dict[str, Any]]:
    """The elements below `folder` and stage 1's settings. kind, dataset: of elements that were made elsewhere.

    Raises `UserError` for elements of another kind, and where stage 1 has not finished. In a dry run elements that
    are not there yet are labels without names, as many as stage 1 can give.
    """
    if dry_run and not folder.is_dir():
        kind = kind or ("patches" if folder.name.startswith("patches") else "segments")
        print(f"dry run: the {kind} at {folder} are not there yet (stage 1); at most {AT_MOST[kind]} of an image")
        settings = {"kind": kind, "protocol": "release" if folder.name.endswith("_release") else "paper"}
        name, count = UNNAMED, 0
        if dataset:
            (images,) = dataset_images(dataset, ["train"], dry_run)
            name, count = images.dataset, sum(_per_class(images, 10)) * AT_MOST[kind]
        return ImageSet(name, "elements", [], [0] * count, [], folder), settings
    settings = read_stage1(folder) or {"kind": kind or "segments", "made": "elsewhere"}
    settings.pop("classes", None)
    if kind not in (None, settings["kind"]):
        raise UserError(f"{folder} holds {settings['kind']}, not {kind}: leave --element_kind out, or give the folder "
                        "of the others")
    name = settings.get("dataset", UNNAMED)
    if name == UNNAMED and dataset:
        name = load_dataset(dataset).name if dataset.endswith(".yaml") else dataset
    return folder_images(folder, name, "elements"), settings


def _per_class(images: ImageSet, image_per_class: int) -> list[int]:
    """How many images of each class stage 1 cuts."""
    return [min(found, image_per_class) for found in Counter(images.labels).values()]


def _print_plan(images: ImageSet, cut: Cut, folder: Path, kind: str, settings: Stage1Settings) -> None:
    """Print the bytes that all elements would take, from `TRIED` images cut in memory, spread over the classes; where
    the images are not there yet, the most that they can give."""
    per_class, sizes = _per_class(images, settings.image_per_class), []
    count = sum(per_class)
    for index in range(0, len(images), max(1, len(images) // TRIED)):
        try:
            elements = cut(images.open(index), images.names[index])
            sizes.append([len(encoded(one, settings.format)) for _, one in elements])
        except UnreadableImage:
            continue
    if sizes:
        each, total = sum(map(len, sizes)) / len(sizes), sum(map(sum, sizes)) / len(sizes)
        lines = {"images": f"{count:,} of {len(images):,} in {len(per_class):,} classes, at most "
                           f"{settings.image_per_class} of each",
                 "elements": f"about {count * each:,.0f} ({each:.1f} of each of {len(sizes)} images tried)",
                 "disk": f"about {disk(count * total, folder)}"}
    else:
        most = (count or settings.image_per_class) * AT_MOST[kind]
        lines = {"images": f"none below {images.root} can be read yet",
                 "elements": f"at most {most:,}{'' if count else ' of each class'}, {AT_MOST[kind]} an image",
                 "disk": f"{size(most * PHOTOGRAPH[kind])} if they are photographs"}
    print_plan(f"stage 1, {kind} of {images.dataset}", lines)


# ---- the walk ----


def walk(images: ImageSet, cut: Cut, folder: Path, settings: dict[str, Any], image_per_class: int = 10,
         format: str = "jpeg", workers: int = 1) -> dict[str, Any]:
    """Cut the first `image_per_class` readable images of each class into elements below `folder`.

    settings: everything else that decides a pixel; it goes into the manifest. An image that gives no element counts
    as unreadable. The result depends neither on `workers` nor on being killed and started again. Returns what
    complete.json holds. Raises `UserError` for a folder that holds other things, and for a class without a readable
    image.
    """
    start, finished, tag = time.perf_counter(), folder / "complete.json", str(settings["kind"])
    _claim(folder, images, {**settings, "image_per_class": image_per_class, "format": format})
    by_class: list[list[int]] = [[] for _ in images.class_names]
    for index, label in enumerate(images.labels):
        by_class[label].append(index)
    log = _read_log(folder, images, by_class)
    before = len(log)
    if not finished.exists() or _next_round(by_class, log, image_per_class):
        finished.unlink(missing_ok=True)
        for pattern in (".*.tmp*", ".probe-*"):  # what a killed run left half-written
            for file in folder.rglob(pattern):
                file.unlink(missing_ok=True)
        _write_log(folder, log)
        stems = _stems(images)
        with open(folder / "pictures.jsonl", "a", encoding="utf-8") as handle:
            while todo := _next_round(by_class, log, image_per_class):
                jobs = jobs_that_fit(len(todo), asked=workers)
                some = max(1, min(A_TASK, len(todo) // (4 * jobs)))
                tasks = [partial(_cut_some, images, stems, cut, folder, format, todo[start:start + some])
                         for start in range(0, len(todo), some)]
                with progress(total=len(todo), unit="image", desc=tag) as bar:
                    for _, rows in in_processes(tasks, jobs, bar):  # as they end; the log is sorted below
                        handle.write("".join(json.dumps(row) + "\n" for row in rows.values()))
                        handle.flush()
                        log |= rows
        for indices in _unreadable_classes(by_class, log):
            raise UserError(f"the class {images.class_names[images.labels[indices[0]]]} has no readable image among "
                            f"its {len(indices)} ({log[indices[0]]['unreadable']}); mend one")
        _write_log(folder, log)  # in the data set's order
        unreadable = [log[index] for index in sorted(log) if "unreadable" in log[index]]
        write_json(finished, {
            "complete": True, "pictures": len(log) - len(unreadable),
            "elements": sum(len(row.get("files", [])) for row in log.values()), "unreadable": unreadable,
            "seconds": round(time.perf_counter() - start, 2), "data_root": str(images.root),
            "versions": {name: version(name) for name in ("numpy", "pillow", "scikit-image")}})
    summary, seconds = read_json(finished), time.perf_counter() - start
    unreadable = summary["unreadable"]
    print(f"{tag}: {summary['pictures']} images, {summary['elements']} elements, {len(unreadable)} unreadable, "
          f"{seconds:.1f} s, {(len(log) - before) / seconds:.1f} images/s -> {folder}")
    for row in unreadable[:LISTED]:
        print(f"  skipped {row['picture']}: {row['unreadable']}")
    if len(unreadable) > LISTED:
        print(f"  and {len(unreadable) - LISTED} more, all in {finished}")
    return summary


def _cut_some(images: ImageSet, stems: list[str], cut: Cut, folder: Path, format: str, indices: Sequence[int],
              advance: Advance) -> dict[int, dict[str, Any]]:
    """Cut and save these images; index -> row of `pictures.jsonl`."""
    rows = {}
    for index in indices:
        rows[index] = _cut_one(images, stems[index], cut, folder, format, index)
        advance(1)
    return rows


def _cut_one(images: ImageSet, stem: str, cut: Cut, folder: Path, format: str, index: int) -> dict[str, Any]:
    """Cut and save one image; its row."""
    name = images.names[index]
    try:
        image = images.open(index)
    except UnreadableImage as error:
        return {"picture": name, "unreadable": str(error)}
    files = []
    for tag, element in cut(image, name):
        files.append(f"{stem}_{tag}{SUFFIX[format]}")
        data = encoded(element, format)
        write_whole(folder / files[-1], lambda temporary, data=data: temporary.write_bytes(data))
    if not files:
        return {"picture": name, "unreadable": f"{image.width} x {image.height} pixels are too few to cut"}
    return {"picture": name, "files": files}


def encoded(element: Image.Image, format: str) -> bytes:
    """PNG, or JPEG at quality 95 with full colour resolution: at 32 x 32 a careless JPEG costs ten points of top-1."""
    data = io.BytesIO()
    element.save(data, format, **({} if format == "png" else {"quality": 95, "subsampling": 0}))
    return data.getvalue()


def read_stage1(folder: Path) -> dict[str, Any] | None:
    """The settings a stage-1 folder was made with; None for a folder made elsewhere (no manifest).

    Raises `UserError` where the stage has not finished.
    """
    if not (Path(folder) / "manifest.json").is_file():
        return None
    if not (Path(folder) / "complete.json").is_file():
        raise UserError(f"stage 1 has not finished in {folder}: run the command that makes it again, "
                        "it goes on where it stopped")
    return read_json(Path(folder) / "manifest.json")


def read_log_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage-1 folder: {"picture": name, "files": [...]} or {"picture": name, "unreadable": reason}.

    A damaged line, such as the half-written last one of a killed run, is left out: its image is cut again.
    """
    log, rows = Path(folder) / "pictures.jsonl", []
    for line in log.read_bytes().split(b"\n")[:-1] if log.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _claim(folder: Path, images: ImageSet, settings: dict[str, Any]) -> None:
    if folder.is_dir() and not (folder / "manifest.json").exists() and any(e.is_dir() for e in folder.iterdir()):
        raise UserError(f"{folder} holds folders that this stage did not make; choose another --save_root")
    if folder.resolve().is_relative_to(images.root.resolve()) and not hasattr(images, "source"):
        raise UserError(f"{folder} lies inside the data set {images.root}, where it would become one of its "
                        "classes; choose another --save_root")
    claim_folder(folder, {**settings, "dataset": images.dataset, "classes": _digest(images.class_names),
                          "pictures": _digest(images.names)}, what=str(settings["kind"]))


def _digest(names: list[str]) -> str:
    """Short enough for an error message, and different for different lists."""
    code = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{len(names)} from {names[0]} to {names[-1]} ({code})"


def _read_log(folder: Path, images: ImageSet, by_class: list[list[int]]) -> dict[int, dict[str, Any]]:
    """Finished images by their place, without those whose files are gone and the classes where none was readable: an
    image may have been mended since."""
    rows = {row["picture"]: row for row in read_log_rows(folder)
            if all((folder / file).is_file() for file in row.get("files", []))}
    log = {index: rows[name] for index, name in enumerate(images.names) if name in rows}
    forgotten = {index for indices in _unreadable_classes(by_class, log) for index in indices}
    return {index: row for index, row in log.items() if index not in forgotten}


def _write_log(folder: Path, log: dict[int, dict[str, Any]]) -> None:
    write_text(folder / "pictures.jsonl", "".join(json.dumps(log[index]) + "\n" for index in sorted(log)))


def _unreadable_classes(by_class: list[list[int]], log: dict[int, dict[str, Any]]) -> list[list[int]]:
    """Classes of which finished images are known, but no readable one."""
    readable = {index for index, row in log.items() if "files" in row}
    return [indices for indices in by_class if not log.keys().isdisjoint(indices) and readable.isdisjoint(indices)]


def _next_round(by_class: list[list[int]], log: dict[int, dict[str, Any]], per_class: int) -> list[int]:
    """Images to cut next: the first of each class, and the following ones in place of unreadable ones."""
    todo = []
    for indices in by_class:
        chosen = [index for index in indices if index not in log or "files" in log[index]][:per_class]
        todo += [index for index in chosen if index not in log]
    return todo


def _stems(images: ImageSet) -> list[str]:
    """CLASS/SUB/a of CLASS/SUB/a.jpg; the suffix stays in a class where a.jpg and a.png would meet."""
    short = [os.path.splitext(name)[0] for name in images.names]
    found = Counter(zip(images.labels, short, strict=True))
    meeting = {label for (label, _), count in found.items() if count > 1}
    return [name if label in meeting else stem
            for name, label, stem in zip(images.names, images.labels, short, strict=True)]
