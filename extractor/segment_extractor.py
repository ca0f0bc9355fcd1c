"""Stage 1: cut the images of a data set into SLIC segments, at most 15 each, on grey.

    cd extractor
    python segment_extractor.py --data_root DIR --save_root ../concept_library/visual/segments

DIR holds one folder of images per class (ImageNet's train folder). About 0.4 s of one core for an image of
500 x 375: for ImageNet's 10,000 a little over an hour of one core, and 7 GB. Killed and started again, it goes on
where it was.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.elements import BOXES, CHOICES, SEGMENT_RULES, segments
from extractor.image_walk import Stage1Settings, run_stage1
from iis.cli import run_script, setting

BY_PROTOCOL = {"paper": ("sample", "whole"), "release": ("first", "short")}


@dataclass(kw_only=True)
class Settings(Stage1Settings):
    """Segments"""

    segment_choice: str | None = setting(None, "which 5 of a scale: a seeded sample, or the first in raster order "
                                         "(default: by --protocol)", choices=CHOICES)
    bounding_box: str | None = setting(None, "whole, or short of its last row and column (default: by --protocol)",
                                       choices=BOXES)


def main(settings: Settings) -> None:
    """Cut, save, and print one line of what was done."""
    choice, box = BY_PROTOCOL[settings.protocol]
    choice, box = settings.segment_choice or choice, settings.bounding_box or box
    run_stage1(settings, "segments", partial(segments, choice=choice, box=box, seed=settings.seed),
               {"segment_choice": choice, "bounding_box": box, **SEGMENT_RULES})


if __name__ == "__main__":
    run_script(main, Settings)
