"""Visual elements of the kind `segments`: SLIC superpixels of one image, each cut out on grey.

Rules and their order: the paper's superpixels at three scales; `release` marks what the authors' published code
does instead. SLIC itself takes four fifths of the time of an image (bench/segments.py).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from extractor.shared_slic import labels as superpixel_labels
from iis.runtime import numpy_rng

SCALES = (10, 20, 30)  # n_segments of SLIC, coarse to fine
COMPACTNESS, SIGMA = 10, 1
GREY = 117  # about ImageNet's mean colour
PER_SCALE = 5  # segments kept at one scale, at most
CHOICES = ("sample", "first")
BOXES = ("whole", "short")
# What stage 1 writes into its manifest: a change of one of these is another set of segments.
RULES = {"n_segments": list(SCALES), "compactness": COMPACTNESS, "sigma": SIGMA, "grey": GREY,
         "per_scale": PER_SCALE, "larger_than": 0.001, "jaccard_at_most": 0.5}


def segments(image: Image.Image, name: str, choice: str = "sample", box: str = "whole",
             seed: int = 0) -> list[tuple[str, Image.Image]]:
    """At most 15 segments of an RGB image, each ("SCALE_LABEL", RGB image of the same size).

    choice: `sample` draws 5 labels per scale, by (seed, name, scale); `first` (release) takes the first 5 in raster
    order and never the last label. box: `whole` bounding box, or `short` (release) without its last row and column;
    a segment of which nothing is left is dropped. A tiny image may have no segments at all.
    """
    image_HW3 = np.asarray(image)
    earlier: list[tuple[np.ndarray, np.ndarray]] = []  # (label map, labels kept) of the coarser scales
    elements = []
    for scale, labels_HW in zip(SCALES, superpixel_labels(image_HW3, SCALES, COMPACTNESS, SIGMA), strict=True):
        passing = passing_labels(labels_HW, earlier)
        if choice == "first":
            kept = passing[passing < labels_HW.max()][:PER_SCALE]
        elif len(passing) > PER_SCALE:
            kept = np.sort(numpy_rng(seed, name, scale).choice(passing, PER_SCALE, replace=False))
        else:
            kept = passing
        earlier.append((labels_HW, kept))
        for label, cut_HW3 in cut_out(image_HW3, labels_HW, kept, short=box == "short"):
            element = Image.fromarray(cut_HW3).resize(image.size, Image.Resampling.BICUBIC)  # (H, W, 3)
            elements.append((f"{scale}_{label:03d}", element))
    return elements


def passing_labels(labels_HW: np.ndarray, earlier: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Labels that cover more than 0.1 % of the image and overlap (Jaccard) each kept earlier mask by at most 0.5.

    One count of label pairs per earlier scale gives every intersection at once; in whole numbers, so exact.
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

    boxes = find_objects(labels_HW)
    cuts = []
    for label in kept.tolist():
        rows, columns = boxes[label - 1]
        if short:
            rows, columns = slice(rows.start, rows.stop - 1), slice(columns.start, columns.stop - 1)
        mask_hw = labels_HW[rows, columns] == label
        if mask_hw.size:
            cuts.append((label, np.where(mask_hw[..., None], image_HW3[rows, columns], np.uint8(GREY))))
    return cuts
