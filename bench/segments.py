"""Segments of an image on one core: the rules written plainly, against extractor/superpixels.py; every pixel alike.

    python bench/segments.py                  # some 20 s; writes bench/results/segments.json

A painted image of 500 x 375; where IIS_DATA names a folder with imagenet-pictures, the photographs of that size too.
Plain: slic at each scale, Jaccard mask by mask, grey composed on the whole image, then the box cut out.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import bench_parser, paired, report
from iis.cli import ScriptParser, count, positive, run_script
from iis.runtime import UserError

WHOLE, SLIC = "segments of an image (plain / suite)", "its three SLICs (slic / shared conversion and blur)"


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "segments", pairs=7, threads=1)
    script.add_argument("--width", type=positive, default=500, help="pixels, of the painted image")
    script.add_argument("--height", type=positive, default=375, help="pixels")
    script.add_argument("--photographs", type=count, default=4, help="of --width x --height below IIS_DATA, at most")
    return script


def main(args: argparse.Namespace) -> Path:
    """Compare every pixel, then time."""
    import numpy as np

    from extractor import shared_slic, superpixels

    images = [painted(args.width, args.height), *photographs(args)]
    for image in images:
        if plain_segments(image, "an image") != [(tag, element.tobytes())
                                                    for tag, element in superpixels.segments(image, "an image")]:
            raise UserError("the two sides give different pixels: the timing would mean nothing")
    arrays = [np.asarray(image) for image in images]
    rules = (superpixels.SCALES, superpixels.COMPACTNESS, superpixels.SIGMA)
    sides = {WHOLE: (lambda: [plain_segments(image, "an image") for image in images],
                     lambda: [superpixels.segments(image, "an image") for image in images]),
             SLIC: (lambda: [shared_slic.public(array, *rules) for array in arrays],
                    lambda: [shared_slic.labels(array, *rules) for array in arrays])}
    results = {name: paired(*side, args.pairs) for name, side in sides.items()}
    for result in results.values():
        result.update({side: result[side] / len(images) for side in ("plain_s", "fast_s")})
    note = (f"seconds per image, of {len(images)}; every pixel alike; SLIC's k-means is compiled code that both "
            f"sides call alike{'' if shared_slic.trusted() else '; the private parts of SLIC are NOT in use here'}")
    return report(args, "python bench/segments.py", results, {WHOLE: (1.5, 1.8)}, note)


def plain_segments(image, name: str) -> list[tuple[str, bytes]]:
    """(tag, pixels) of every segment, by the rules as they read (protocol `paper`, seed 0)."""
    import numpy as np
    from PIL import Image
    from skimage.segmentation import slic

    from iis.runtime import numpy_rng

    array, earlier, found = np.asarray(image), [], []
    for scale in (10, 20, 30):
        labels = slic(array, n_segments=scale, compactness=10, sigma=1, start_label=1)
        passing = []
        for label in range(1, labels.max() + 1):
            mask = labels == label
            if mask.mean() > 0.001 and all((mask & seen).sum() / (mask | seen).sum() <= 0.5 for seen in earlier):
                passing.append((label, mask))
        if len(passing) > 5:
            drawn = numpy_rng(0, name, scale).choice(len(passing), 5, replace=False)
            passing = [passing[place] for place in sorted(drawn)]
        earlier += [mask for _, mask in passing]
        for label, mask in passing:
            grey = np.full_like(array, 117)
            whole = np.where(mask[:, :, None], array, grey)
            rows, columns = np.where(mask)
            cut = whole[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
            found.append((f"{scale}_{label:03d}",
                          Image.fromarray(cut).resize(image.size, Image.Resampling.BICUBIC).tobytes()))
    return found


def painted(width: int, height: int):
    """A seeded image with blobs of several sizes and some grain, for SLIC to find edges in."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    total = rng.normal(0, 6, (height, width, 3))
    for cells in (3, 7, 15, 40):
        blobs = Image.fromarray(rng.integers(0, 256, (cells, cells + 1, 3), dtype=np.uint8))
        total += np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC)) / 4.0
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def photographs(args: argparse.Namespace) -> list:
    """RGB photographs of the asked size; none without IIS_DATA."""
    from PIL import Image

    files = sorted(Path(os.environ["IIS_DATA"], "imagenet-pictures").glob("*/*")) if "IIS_DATA" in os.environ else []
    found = []
    for file in files:
        with Image.open(file) as image:
            if image.size == (args.width, args.height) and len(found) < args.photographs:
                found.append(image.convert("RGB"))
    return found


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
