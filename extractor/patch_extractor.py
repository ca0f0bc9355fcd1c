"""Stage 1: cut the images of a data set into a 4 x 4 grid of patches, each 224 x 224.

    cd extractor
    python patch_extractor.py --data_root DIR --save_root ../concept_library/visual/patches

DIR holds one folder of images per class (ImageNet's train folder). About 0.03 s of one core for an image of
500 x 375: for ImageNet's 10,000 five minutes of one core, and 4 GB. Killed and started again, it goes on where it was.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.elements import PATCH_RULES, patches
from extractor.image_walk import Stage1Settings as Settings
from extractor.image_walk import run_stage1
from iis.cli import run_script


def main(settings: Settings) -> None:
    """Cut, save, and print one line of what was done."""
    run_stage1(settings, "patches", patches, PATCH_RULES)


if __name__ == "__main__":
    run_script(main, Settings)
