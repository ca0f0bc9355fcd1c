"""Visual elements of one image: SLIC segments on grey, and a grid of patches.

`release` marks what the authors' published code does where it differs from the paper. SLIC takes most of the time.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from iis.runtime import numpy_rng

SCALES = (10, 20, 30)  # n_segments of SLIC, coarse to fine
COMPACTNESS, SIGMA = 10, 1
GREY = 117  # about ImageNet's mean colour
PER_SCALE = 5  # segments kept at one scale, at most
CHOICES, BOXES = ("sample", "first"), ("whole", "short")
GRID = 4  # patches along each side
SIZE = 224  # pixels, of the square each patch is resized to
# What stage 1 writes into its manifest: changing one of these makes other elements.
SEGMENT_RULES = {"n_segments": list(SCALES), "compactness": COMPACTNESS, "sigma": SIGMA, "grey": GREY,
                 "per_scale": PER_SCALE, "larger_than": 0.001, "jaccard_at_most": 0.5}
PATCH_RULES = {"grid": GRID, "size": SIZE}
AT_MOST = {"segments": PER_SCALE * len(SCALES), "patches": GRID * GRID}  # elements of an image


def segments(image: Image.Image, name: str, choice: str = "sample", box: str = "whole",
             seed: int = 0) -> list[tuple[str, Image.Image]]:
    """At most 15 segments of an RGB image, each ("SCALE_LABEL", RGB image of the same size).

    choice: `sample` draws 5 labels per scale, by (seed, name, scale); `first` (release) takes the first 5 in raster
    order and never the last label. box: `whole` bounding box, or `short` (release) without its last row and column;
    a segment of which nothing is left is dropped. A tiny image may have no segments.
    """
    from skimage.segmentation import slic

    image_HW3 = np.asarray(image)
    earlier: list[tuple[np.ndarray, np.ndarray]] = []  # (label map, labels kept) of the coarser scales
    elements = []
    for scale in SCALES:
        labels_HW = slic(image_HW3, n_segments=scale, compactness=COMPACTNESS, sigma=SIGMA, start_label=1)
        passing = passing_labels(labels_HW, earlier)
        if choice == "first":
            kept = passing[passing < labels_HW.max()][:PER_SCALE]
        elif len(passing) > PER_SCALE:
            kept = np.sort(numpy_rng(seed, name, scale).choice(passing, PER_SCALE, replace=False))
        else:
            kept = passing
        earlier.append((labels_HW, kept))
        for label, cut_hw3 in cut_out(image_HW3, labels_HW, kept, short=box == "short"):
            element = Image.fromarray(cut_hw3).resize(image.size, Image.Resampling.BICUBIC)  # (H, W, 3)
            elements.append((f"{scale}_{label:03d}", element))
    return elements


def passing_labels(labels_HW: np.ndarray, earlier: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Labels that cover more than 0.1 % of the image and overlap (Jaccard) each kept earlier mask by at most 0.5.

    One count of label pairs per earlier scale gives every intersection at once, in whole numbers.
    """
    area_A = np.bincount(labels_HW.ravel())
    passes_A = area_A * 1000 > labels_HW.size
    for earlier_HW, kept in earlier:
        width = int(earlier_HW.max()) + 1
        pairs = np.bincount((labels_HW * width + earlier_HW).ravel(), minlength=len(area_A) * width)
        both_AB = pairs.reshape(-1, width)
        either_AB = area_A[:, None] + both_AB.sum(0) - both_AB
        passes_A &= ~(2 * both_AB > either_AB)[:, kept].any(1)
    return np.flatnonzero(passes_A)


def cut_out(image_HW3: np.ndarray, labels_HW: np.ndarray, kept: np.ndarray,
            short: bool) -> list[tuple[int, np.ndarray]]:
    """(label, its bounding box of the image with grey around the segment), boxes (h, w, 3) uint8."""
    from scipy.ndimage import find_objects

    boxes, cuts = find_objects(labels_HW), []
    for label in kept.tolist():
        rows, columns = boxes[label - 1]
        if short:
            rows, columns = slice(rows.start, rows.stop - 1), slice(columns.start, columns.stop - 1)
        mask_hw = labels_HW[rows, columns] == label
        if mask_hw.size:
            cuts.append((label, np.where(mask_hw[..., None], image_HW3[rows, columns], np.uint8(GREY))))
    return cuts


def patches(image: Image.Image, name: str) -> list[tuple[str, Image.Image]]:
    """16 boxes of ⌊W/4⌋ x ⌊H/4⌋ pixels, row by row, each ("ROW_COLUMN", RGB image of 224 x 224).

    The remainder at the right and bottom is dropped. An image under 4 pixels wide or high has no patches. `name` is
    not used: nothing is drawn at random. Paper and release agree.
    """
    width, height = image.width // GRID, image.height // GRID
    elements = []
    for row in range(GRID if width and height else 0):
        for column in range(GRID):
            left, top = column * width, row * height
            # Crop first: resize(box=...) would let pixels from outside the box bleed in.
            cut = image.crop((left, top, left + width, top + height))
            elements.append((f"{row}_{column}", cut.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return elements
