"""A contact sheet of stage 1: one row per source image, the source and then its elements, coarse to fine.

    python reproduction/contact_sheet.py --data_root DIR --elements concept_library/visual/segments --out sheet.png

DIR is what stage 1 was given (or `--dataset NAME`). A second per ten rows. Rows are spread evenly over the classes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageOps

from extractor.image_walk import images_of, read_log_rows, read_stage1
from iis.cli import path, positive, run_script, setting
from iis.runtime import UserError, write_whole
from reproduction.lib.explained_images import spread

GAP = 4  # pixels of white around each image


@dataclass(kw_only=True)
class Settings:
    """Which images are shown, and how large."""

    data_root: Path | None = setting(None, "folder of class folders that stage 1 was given")
    dataset: str | None = setting(None, "or the data set's name")
    elements: Path = setting(help="a finished stage-1 folder")
    out: Path = setting(path("contact_sheet.png"), "PNG to write")
    rows: int = setting(8, "source images shown", type=positive)
    tile: int = setting(96, "side of the square each image is fitted into, in pixels", type=positive)


def contact_sheet(rows: list[list[Image.Image]], tile: int) -> Image.Image:
    """Rows of images, each fitted into a `tile` x `tile` square, a wider gap after each row's first."""
    step = tile + GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * step + 4 * GAP, len(rows) * step + GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            square = ImageOps.pad(image, (tile, tile), Image.Resampling.LANCZOS, "white")
            sheet.paste(square, (x * step + GAP + (2 * GAP if x else 0), y * step + GAP))
    return sheet


def main(settings: Settings) -> None:
    """Paint the sheet and say where it is."""
    if read_stage1(settings.elements) is None:
        raise UserError(f"{settings.elements} was not made by stage 1 of this suite; name the folder given as "
                        "--save_root")
    images = images_of(settings.data_root, settings.dataset)
    index = {name: row for row, name in enumerate(images.names)}
    cut = [row for row in read_log_rows(settings.elements) if "files" in row]
    missing = next((row["picture"] for row in cut if row["picture"] not in index), None)
    if missing:
        raise UserError(f"{settings.elements} was cut from another data set: {missing} is not in {images.root}")
    rows = [[images.open(index[row["picture"]]),
             *(Image.open(settings.elements / file).convert("RGB") for file in row["files"])]
            for row in spread(cut, settings.rows)]
    sheet = contact_sheet(rows, settings.tile)
    write_whole(settings.out, lambda temporary: sheet.save(temporary, format="PNG"))
    print(f"{settings.out}: {len(rows)} images of {len(cut)}, {sheet.width} x {sheet.height} pixels")


if __name__ == "__main__":
    run_script(main, Settings)
