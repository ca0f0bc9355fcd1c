"""Paint the built-in data set `shapes`: 64 x 64 images in class folders, with captions and true concepts.

    python demo/paint_shapes.py                 # datasets/shapes: 4,000 + 2,000 images, 11 s on 2 cores, 65 MB

Needs nothing from outside. The same seed gives the same images with any number of workers. Images that are there
already are kept. `captions.json` is written last: caption, true concepts and clutter of each image, the words of each
group, and the rule of each class.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.shapes_world import ATTRIBUTES, CLUTTER, RULES, VERSION, Scene, caption, concepts, paint, scene
from iis.cli import positive, run_script, setting
from iis.processes import Advance, in_processes, jobs_that_fit
from iis.runtime import ROOT, UserError, available_cores, claim_folder, write_json

LIMITS = {"train": 4000, "val": 2000}


@dataclass(kw_only=True)
class Settings:
    """The data set `shapes`"""

    root: Path = setting(ROOT / "datasets" / "shapes", "output folder")
    train: int = setting(LIMITS["train"], "training images, 8 to 4000")
    val: int = setting(LIMITS["val"], "validation images, 8 to 2000")
    seed: int = setting(0, "another seed paints other images of the same world")
    workers: int = setting(available_cores(), "processes", type=positive)


def main(settings: Settings) -> None:
    """Paint what is missing, then write `captions.json`."""
    sizes = {split: getattr(settings, split) for split in LIMITS}
    for split, size in sizes.items():
        if not len(RULES) <= size <= LIMITS[split]:
            raise UserError(f"--{split} {size} should lie between {len(RULES)} (one a class) and {LIMITS[split]}")
    start = time.perf_counter()
    claim_folder(settings.root, {"version": VERSION, "seed": settings.seed, **sizes}, "images")
    scenes = [scene(settings.seed, split, index) for split, size in sizes.items() for index in range(size)]
    captions = settings.root / "captions.json"
    if captions.exists() and all((settings.root / of.name).exists() for of in scenes):
        print(f"shapes: {len(scenes):,} images are in place at {settings.root}")
        return
    for folder in {(settings.root / of.name).parent for of in scenes}:
        folder.mkdir(parents=True, exist_ok=True)
    shares = [scenes[first::settings.workers * 4] for first in range(settings.workers * 4)]
    tasks = [partial(paint_missing, settings.root, share) for share in shares]
    painted = sum(count for _, count in in_processes(tasks, jobs_that_fit(len(tasks), asked=settings.workers)))
    write_json(captions, {
        "format": "shapes-captions-1", "seed": settings.seed, "attributes": ATTRIBUTES, "clutter": CLUTTER,
        "rules": RULES,
        "images": {of.name: {"caption": caption(of), "concepts": concepts(of),
                             "clutter": [" ".join(thing) for thing in of.clutter]} for of in scenes}})
    print(f"shapes: painted {painted:,} of {len(scenes):,} images of {len(RULES)} classes in "
          f"{time.perf_counter() - start:.1f} s at {settings.root}")


def paint_missing(root: Path, scenes: list[Scene], advance: Advance) -> int:
    """Paint the scenes whose file is missing; returns how many. Each file appears whole."""
    missing = [of for of in scenes if not (root / of.name).exists()]
    for of in missing:
        file = root / of.name
        # Not `write_whole`: its fsync would cost more than the painting, and a lost image is painted again.
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        paint(of).save(temporary, format="png", compress_level=1)
        os.replace(temporary, file)
    return len(missing)


if __name__ == "__main__":
    run_script(main, Settings)
