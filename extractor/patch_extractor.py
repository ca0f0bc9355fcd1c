"""Stage 1: cut the images of a data set into a 4 x 4 grid of patches, each 224 x 224.

    cd extractor
    python patch_extractor.py --data_root DIR --save_root ../concept_library/visual/patches

DIR holds one folder of images per class (ImageNet's train folder). About 0.05 s of one core for an image of
500 x 375: for ImageNet's 10,000 ten minutes of one core, and 3 GB. Killed and started again, it goes on where it was.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.image_walk import walk
from extractor.patches import RULES, patches
from extractor.stage1_flags import images_of, save_root_of, stage1_parser
from extractor.stage_plans import tell_stage1
from iis.cli import ScriptParser, run_script, write_settings


def parser() -> ScriptParser:
    """Flags of this script."""
    return stage1_parser("patches", __doc__.splitlines()[0])


def main(args=None) -> None:
    """Cut, save, and print one line of what was done."""
    args = args or parser().settings()
    images = images_of(args.data_root, args.dataset)
    folder = save_root_of(args, images, "patches")
    # Nothing is drawn at random and the protocols agree: both are recorded because stage 2's file names tell them.
    settings = {"kind": "patches", "protocol": args.protocol, "seed": args.seed, **RULES}
    work = (images, patches, folder, settings, args.image_per_class, args.format, args.workers)
    if "dry_run" in args:
        tell_stage1(*work)
        return
    walk(*work)
    write_settings(args, folder / "settings.yaml")


if __name__ == "__main__":
    run_script(main)
