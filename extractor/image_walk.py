"""Stage 1's walk over a data set: choose images, cut each into elements in parallel, save, resume.

A stage-1 folder holds CLASS/IMAGE_TAG.jpg and three files of its own: `manifest.json` (every setting that decides
a pixel), `pictures.jsonl` (one row per finished image: what a resume skips) and `complete.json` (written last).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from iis.datasets import ImageSet, UnreadableImage
from iis.runtime import UserError, claim_folder, read_json, write_json, write_text, write_whole
from iis.tally import tally

Cut = Callable[[Image.Image, str], list[tuple[str, Image.Image]]]  # (image, its name) -> [(tag, element)]
SUFFIX = {"jpeg": ".jpg", "png": ".png"}
LISTED = 20  # unreadable images named on the screen; complete.json names all


@dataclass(frozen=True)
class Task:
    """What a worker needs to cut one image; it travels to every worker once."""

    images: ImageSet
    stems: dict[str, str]  # image name -> its elements' file name without tag and suffix
    cut: Cut
    folder: Path
    format: str

    def run(self, index: int) -> dict[str, Any]:
        """Cut and save one image; its row of `pictures.jsonl`."""
        name = self.images.names[index]
        try:
            image = self.images.open(index)
        except UnreadableImage as error:
            return {"picture": name, "unreadable": str(error)}
        elements = self.cut(image, name)
        if not elements:
            return {"picture": name, "unreadable": f"{image.width} x {image.height} pixels are too few to cut"}
        files = [f"{self.stems[name]}_{tag}{SUFFIX[self.format]}" for tag, _ in elements]
        for file, (_, element) in zip(files, elements, strict=True):
            write_whole(self.folder / file, partial(save_element, element))
        return {"picture": name, "files": files}


def save_element(element: Image.Image, file: Path) -> None:
    """PNG, or JPEG at quality 95 with full colour resolution: at 32 x 32 a careless JPEG costs ten points of top-1."""
    element.save(file) if file.suffix == ".png" else element.save(file, quality=95, subsampling=0)


def walk(images: ImageSet, cut: Cut, folder: Path, settings: dict[str, Any], image_per_class: int = 10,
         format: str = "jpeg", workers: int = 1) -> dict[str, Any]:
    """Cut the first `image_per_class` readable images of each class into elements below `folder`.

    settings: everything else that decides a pixel; goes into the manifest. An image that gives no element counts as
    unreadable. The result does not depend on `workers`, nor on being killed and started again. Returns what
    complete.json holds. Raises `UserError` for a folder that holds other things, and for a class without a readable
    image.
    """
    start = time.perf_counter()
    _claim(folder, images, {**settings, "image_per_class": image_per_class, "format": format})
    by_class: list[list[int]] = [[] for _ in images.class_names]
    for index, label in enumerate(images.labels):
        by_class[label].append(index)
    log = _read_log(folder, images, by_class)
    finished = folder / "complete.json"
    done_now = 0
    if not finished.exists() or _next_round(images, by_class, log, image_per_class):
        finished.unlink(missing_ok=True)
        _sweep(folder)
        _write_log(folder, list(log.values()))
        with open(folder / "pictures.jsonl", "a", encoding="utf-8") as handle:
            while todo := _next_round(images, by_class, log, image_per_class):
                # A worker need not hold the names of a million others.
                task = Task(images.only(todo), _stems(images, by_class, todo), cut, folder, format)
                for row in tqdm(_run(task, workers), total=len(todo), unit="picture", desc=str(settings["kind"])):
                    handle.write(json.dumps(row) + "\n")
                    handle.flush()
                    log[row["picture"]] = row
                    done_now += 1
        for label, indices in enumerate(by_class):
            if indices and not any("files" in log.get(images.names[index], ()) for index in indices):
                raise UserError(f"the class {images.class_names[label]} has no readable image among its "
                                f"{len(indices)} ({log[images.names[indices[0]]]['unreadable']}); mend one")
        rows = [log[name] for name in images.names if name in log]
        _write_log(folder, rows)  # in the data set's order, whatever order they came in
        write_json(finished, _summary(images, rows, round(time.perf_counter() - start, 2)))
    summary = read_json(finished)
    _print(str(settings["kind"]), summary, folder, done_now, time.perf_counter() - start)
    return summary


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


def read_images(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage-1 folder: {"picture": name, "files": [...]} or {"picture": name, "unreadable": reason}.

    A half-written last line (the run was killed) is left out.
    """
    log = Path(folder) / "pictures.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # a damaged line costs its image being cut again
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


def _read_log(folder: Path, images: ImageSet, by_class: list[list[int]]) -> dict[str, dict[str, Any]]:
    """Finished images by name. Cut again: images whose files are gone, and classes where none was readable."""
    log = {row["picture"]: row for row in read_images(folder)
           if all((folder / file).is_file() for file in row.get("files", []))}
    for indices in by_class:
        names = [images.names[index] for index in indices if images.names[index] in log]
        if not any("files" in log[name] for name in names):
            for name in names:
                del log[name]
    return log


def _write_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    write_text(folder / "pictures.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _next_round(images: ImageSet, by_class: list[list[int]], log: dict[str, Any], per_class: int) -> list[int]:
    """Images to cut next: the first of each class, and the following ones in place of those found unreadable."""
    todo = []
    for indices in by_class:
        taken = 0
        for index in indices:
            if taken == per_class:
                break
            row = log.get(images.names[index])
            if row is None:
                todo.append(index)
            taken += row is None or "files" in row
    return todo


def _stems(images: ImageSet, by_class: list[list[int]], todo: list[int]) -> dict[str, str]:
    """CLASS/SUB/a of CLASS/SUB/a.jpg; the suffix stays in a class where a.jpg and a.png would meet."""
    stems = {}
    for label in {images.labels[index] for index in todo}:
        names = [images.names[index] for index in by_class[label]]
        short = [os.path.splitext(name)[0] for name in names]
        stems.update(zip(names, short if len(set(short)) == len(names) else names, strict=True))
    return {images.names[index]: stems[images.names[index]] for index in todo}


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half-written (see `write_whole`)."""
    for pattern in (".*.tmp*", ".probe-*"):
        for file in folder.rglob(pattern):
            file.unlink(missing_ok=True)


def _run(task: Task, workers: int) -> Iterator[dict[str, Any]]:
    """Rows of all images of the task, in order, from `workers` processes of one thread each."""
    count = len(task.images)
    workers = min(workers, count)
    if workers == 1:
        yield from map(task.run, range(count))
        return
    from extractor.worker_pool import map_in_processes

    yield from map_in_processes(task.run, count, workers)


def _summary(images: ImageSet, rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    unreadable = [row for row in rows if "unreadable" in row]
    return {"complete": True, "pictures": len(rows) - len(unreadable),
            "elements": sum(len(row.get("files", [])) for row in rows), "unreadable": unreadable, "seconds": seconds,
            "data_root": str(images.root),
            "versions": {name: version(name) for name in ("numpy", "pillow", "scikit-image")}}


def _print(kind: str, summary: dict[str, Any], folder: Path, done_now: int, seconds: float) -> None:
    unreadable = summary["unreadable"]
    tally(done_now)
    speed = f"{done_now / seconds:.1f} images/s" if done_now else "nothing left to do"
    print(f"{kind}: {summary['pictures']} images, {summary['elements']} elements, {len(unreadable)} unreadable, "
          f"{seconds:.1f} s, {speed} -> {folder}")
    for row in unreadable[:LISTED]:
        print(f"  skipped {row['picture']}: {row['unreadable']}")
    if len(unreadable) > LISTED:
        print(f"  and {len(unreadable) - LISTED} more, all in {folder / 'complete.json'}")
