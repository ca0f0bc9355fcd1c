"""A contact sheet of stage 1: one row per source image, the source and then its elements, coarse to fine.

    python reproduction/contact_sheet.py --data_root DIR --elements concept_library/visual/segments --out sheet.png

DIR is what stage 1 was given (or `--dataset NAME`). A second per ten rows. Rows are spread evenly over the classes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from extractor.image_walk import read_images, read_stage1
from extractor.stage1_flags import images_of
from iis.cli import ScriptParser, path, run_script
from iis.runtime import UserError, write_whole

GAP = 4  # pixels of white around each image


def parser() -> ScriptParser:
    """Flags of this script."""
    flags = ScriptParser(description=__doc__.splitlines()[0])
    flags.add_argument("--data_root", type=path, help="folder of class folders that stage 1 was given")
    flags.add_argument("--dataset", help="or the data set's name")
    flags.add_argument("--elements", type=path, required=True, help="a finished stage-1 folder")
    flags.add_argument("--out", type=path, default=path("contact_sheet.png"), help="PNG to write")
    flags.add_argument("--rows", type=int, default=8, help="source images shown")
    flags.add_argument("--tile", type=int, default=96, help="side of the square each image is fitted into, in pixels")
    return flags


def contact_sheet(rows: list[list[Image.Image]], tile: int) -> Image.Image:
    """Rows of images, each fitted into a `tile` x `tile` square, a wider gap after each row's first."""
    step = tile + GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * step + 4 * GAP, len(rows) * step + GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            scale = tile / max(image.size)
            size = [max(1, round(side * scale)) for side in image.size]
            small = image.resize(size, Image.Resampling.LANCZOS)
            left = x * step + GAP + (2 * GAP if x else 0)
            sheet.paste(small, (left + (tile - size[0]) // 2, y * step + GAP + (tile - size[1]) // 2))
    return sheet


def main(args=None) -> None:
    """Paint the sheet and say where it is."""
    args = args or parser().settings()
    if read_stage1(args.elements) is None:
        raise UserError(f"{args.elements} was not made by stage 1 of this suite; name the folder given as --save_root")
    images = images_of(args.data_root, args.dataset)
    index = {name: row for row, name in enumerate(images.names)}
    cut = [row for row in read_images(args.elements) if "files" in row]
    missing = next((row["picture"] for row in cut if row["picture"] not in index), None)
    if missing:
        raise UserError(f"{args.elements} was cut from another data set: {missing} is not in {images.root}")
    count = max(1, min(args.rows, len(cut)))
    chosen = [cut[position * len(cut) // count] for position in range(count)]
    rows = [[images.open(index[row["picture"]]),
             *(Image.open(args.elements / file).convert("RGB") for file in row["files"])] for row in chosen]
    sheet = contact_sheet(rows, args.tile)
    write_whole(args.out, lambda temporary: sheet.save(temporary, format="PNG"))
    print(f"{args.out}: {count} images of {len(cut)}, {sheet.width} x {sheet.height} pixels")


if __name__ == "__main__":
    run_script(main)
