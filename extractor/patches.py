"""Visual elements of the kind `patches`: a grid of boxes of one image (paper and release agree)."""

from __future__ import annotations

from PIL import Image

GRID = 4  # boxes along each side
SIZE = 224  # pixels, of the square each box is resized to
RULES = {"grid": GRID, "size": SIZE}


def patches(image: Image.Image, name: str) -> list[tuple[str, Image.Image]]:
    """The 16 boxes of floor(W/4) x floor(H/4) pixels, row by row, each ("ROW_COLUMN", RGB image of 224 x 224).

    What is left at the right and bottom is dropped. An image under 4 pixels wide or high has no patches.
    `name` is not used: nothing is drawn at random.
    """
    width, height = image.width // GRID, image.height // GRID
    if not width or not height:
        return []
    elements = []
    for row in range(GRID):
        for column in range(GRID):
            left, top = column * width, row * height
            # Crop first: resize(box=...) would let pixels from outside the box bleed in.
            cut = image.crop((left, top, left + width, top + height))
            elements.append((f"{row}_{column}", cut.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return elements
