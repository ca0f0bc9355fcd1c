"""Segments of an image on one core: the rules written plainly, against extractor/elements.py; every pixel alike.

    python bench/segments.py                  # about 40 s; writes bench/results/segments.json

A painted image of 500 x 375; where IIS_DATA names a folder with imagenet-pictures, the photographs of that size too.
Plain: Jaccard mask by mask, grey composed on the whole image, then the box cut out. Both sides call scikit-image's
`slic`, which takes most of the time.
"""

import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image
from skimage.segmentation import slic

from bench.timing import BenchSettings, paired, report, seconds
from extractor.elements import COMPACTNESS, SCALES, SIGMA, segments
from iis.cli import count, positive, run_script, setting
from iis.runtime import UserError, numpy_rng

RESULT = "segments of an image (plain / suite)"
SIZE = 500, 375  # pixels


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Images"""

    pairs: int = setting(7, "timed pairs, after one warm-up of each side", type=positive)
    photographs: int = setting(4, "of 500 x 375 below IIS_DATA, at most", type=count)


def main(settings: Settings) -> Path:
    """Compare every pixel, then time."""
    images = [painted(), *photographs(settings.photographs)]
    for image in images:
        if plain_segments(image, "an image") != [(tag, element.tobytes()) for tag, element in
                                                 segments(image, "an image")]:
            raise UserError("the two sides give different pixels: the timing would mean nothing")
    result = paired(lambda: [plain_segments(image, "an image") for image in images],
                    lambda: [segments(image, "an image") for image in images], settings.pairs)
    result |= {side: result[side] / len(images) for side in ("plain_s", "fast_s")}
    slic_s = min(seconds(lambda: [slic_labels(np.asarray(image), scale) for image in images for scale in SCALES])
                 for _ in range(3)) / len(images)
    return report(settings, "segments", {RESULT: result}, note=f"seconds per image, of {len(images)}; every pixel "
                  f"alike; the three SLICs take {1e3 * slic_s:.0f} ms of either side")


def slic_labels(image_HW3: np.ndarray, scale: int) -> np.ndarray:
    """SLIC as both sides call it."""
    return slic(image_HW3, n_segments=scale, compactness=COMPACTNESS, sigma=SIGMA, start_label=1)


def plain_segments(image: Image.Image, name: str) -> list[tuple[str, bytes]]:
    """(tag, pixels) of every segment, by the rules as they read (protocol `paper`, seed 0)."""
    array, earlier, found = np.asarray(image), [], []
    for scale in SCALES:
        labels, passing = slic_labels(array, scale), []
        for label in range(1, labels.max() + 1):
            mask = labels == label
            if mask.mean() > 0.001 and all((mask & seen).sum() / (mask | seen).sum() <= 0.5 for seen in earlier):
                passing.append((label, mask))
        if len(passing) > 5:
            drawn = numpy_rng(0, name, scale).choice(len(passing), 5, replace=False)
            passing = [passing[place] for place in sorted(drawn)]
        earlier += [mask for _, mask in passing]
        for label, mask in passing:
            whole = np.where(mask[:, :, None], array, np.full_like(array, 117))
            rows, columns = np.where(mask)
            cut = whole[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
            found.append((f"{scale}_{label:03d}",
                          Image.fromarray(cut).resize(image.size, Image.Resampling.BICUBIC).tobytes()))
    return found


def painted() -> Image.Image:
    """A seeded image with blobs of several sizes and some grain, for SLIC to find edges in."""
    rng, (width, height) = np.random.default_rng(0), SIZE
    total = rng.normal(0, 6, (height, width, 3))
    for cells in (3, 7, 15, 40):
        blobs = Image.fromarray(rng.integers(0, 256, (cells, cells + 1, 3), dtype=np.uint8))
        total += np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC)) / 4.0
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def photographs(most: int) -> list[Image.Image]:
    """RGB photographs of that size; none without IIS_DATA."""
    folder = Path(os.environ.get("IIS_DATA", "/nowhere"), "imagenet-pictures")
    images = (Image.open(file).convert("RGB") for file in sorted(folder.glob("*/*")))
    fitting = (image for image in images if image.size == SIZE)
    return list(itertools.islice(fitting, most))


if __name__ == "__main__":
    run_script(main, Settings)
