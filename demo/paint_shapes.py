"""Paint the built-in data set `shapes`: 64 x 64 images in class folders, with captions and true concepts.

    python demo/paint_shapes.py                 # datasets/shapes: 4,000 + 2,000 images, 11 s on 2 cores, 65 MB

Needs nothing from outside. The same seed gives the same images whatever the number of workers, and a finished
data set is kept. `captions.json` is written last: it holds, for each image, its caption, its true concepts and
its clutter, and beside them the vocabulary by group and the rule of each class.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor

from demo.shapes_captions import caption, concepts
from demo.shapes_world import ATTRIBUTES, CLUTTER, RULES, VERSION, Scene, paint, scene
from iis.cli import ScriptParser, path, run_script
from iis.runtime import ROOT, UserError, available_cores, claim_folder, write_json

LIMITS = {"train": 4000, "val": 2000}


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--root", type=path, default=ROOT / "datasets" / "shapes", help="output folder")
    script.add_argument("--train", type=int, default=LIMITS["train"], help="training images, 8 to 4000")
    script.add_argument("--val", type=int, default=LIMITS["val"], help="validation images, 8 to 2000")
    script.add_argument("--seed", type=int, default=0, help="another seed paints other images of the same world")
    script.add_argument("--workers", type=int, default=available_cores(), help="processes")
    return script


def main(settings: argparse.Namespace | None = None) -> None:
    """Paint what is missing, then write `captions.json`."""
    settings = settings or parser().settings()
    sizes = {split: getattr(settings, split) for split in LIMITS}
    for split, size in sizes.items():
        if not len(RULES) <= size <= LIMITS[split]:
            raise UserError(f"--{split} {size} should lie between {len(RULES)} (one a class) and {LIMITS[split]}")
    if settings.workers < 1:
        raise UserError(f"--workers {settings.workers} should be at least 1")
    start = time.perf_counter()
    claim_folder(settings.root, {"version": VERSION, "seed": settings.seed, **sizes}, "pictures")
    scenes = [scene(settings.seed, split, index) for split, size in sizes.items() for index in range(size)]
    captions = settings.root / "captions.json"
    if captions.exists() and all((settings.root / of.name).exists() for of in scenes):
        print(f"shapes: {len(scenes):,} images are in place at {settings.root}")
        return
    for folder in {(settings.root / of.name).parent for of in scenes}:
        folder.mkdir(parents=True, exist_ok=True)
    shares = [(settings.root, scenes[first::settings.workers * 4]) for first in range(settings.workers * 4)]
    with ProcessPoolExecutor(settings.workers) as pool:
        painted = sum(pool.map(paint_missing, shares))
    write_json(captions, {
        "format": "shapes-captions-1", "seed": settings.seed, "attributes": ATTRIBUTES, "clutter": CLUTTER,
        "rules": RULES,
        "images": {of.name: {"caption": caption(of), "concepts": concepts(of),
                             "clutter": [" ".join(thing) for thing in of.clutter]} for of in scenes}})
    print(f"shapes: painted {painted:,} of {len(scenes):,} images of {len(RULES)} classes in "
          f"{time.perf_counter() - start:.1f} s at {settings.root}")


def paint_missing(share: tuple[Path, list[Scene]]) -> int:
    """Paint those scenes of (root, scenes) whose file is missing; returns how many. Each file appears whole."""
    root, scenes = share
    missing = [of for of in scenes if not (root / of.name).exists()]
    for of in missing:
        file = root / of.name
        # Not `write_whole`: its fsync would cost more than the painting, and a lost image is painted again.
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        paint(of).save(temporary, format="png", compress_level=1)
        os.replace(temporary, file)
    return len(missing)


if __name__ == "__main__":
    run_script(main)
