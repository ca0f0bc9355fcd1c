"""Stage 1: cut the images of a data set into SLIC segments, at most 15 each, on grey.

    cd extractor
    python segment_extractor.py --data_root DIR --save_root ../concept_library/visual/segments

DIR holds one folder of images per class (ImageNet's train folder). About 0.4 s of one core for an image of
500 x 375: for ImageNet's 10,000 an hour of one core, and 6 GB. Killed and started again, it goes on where it was.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.image_walk import walk
from extractor.stage1_flags import images_of, save_root_of, stage1_parser
from extractor.stage_plans import tell_stage1
from extractor.superpixels import BOXES, CHOICES, RULES, segments
from iis.cli import ScriptParser, run_script, write_settings

BY_PROTOCOL = {"paper": ("sample", "whole"), "release": ("first", "short")}


def parser() -> ScriptParser:
    """Flags of this script."""
    flags = stage1_parser("segments", __doc__.splitlines()[0])
    flags.add_argument("--segment_choice", choices=CHOICES, help="which 5 of a scale: a seeded sample, or the first "
                       "in raster order; left out, by --protocol")
    flags.add_argument("--bounding_box", choices=BOXES, help="whole, or short of its last row and column; left out, "
                       "by --protocol")
    return flags


def main(args=None) -> None:
    """Cut, save, and print one line of what was done."""
    args = args or parser().settings()
    images = images_of(args.data_root, args.dataset)
    folder = save_root_of(args, images, "segments")
    choice, box = BY_PROTOCOL[args.protocol]
    choice, box = args.segment_choice or choice, args.bounding_box or box
    settings = {"kind": "segments", "protocol": args.protocol, "segment_choice": choice, "bounding_box": box,
                "seed": args.seed, **RULES}
    work = (images, partial(segments, choice=choice, box=box, seed=args.seed), folder, settings,
            args.image_per_class, args.format, args.workers)
    if "dry_run" in args:
        tell_stage1(*work)
        return
    walk(*work)
    write_settings(args, folder / "settings.yaml")


if __name__ == "__main__":
    run_script(main)
