"""Small images on disk that many tests of stages 1 and 2 share."""

import numpy as np
from PIL import Image


def paint(file, size=(12, 10), mode="RGB", seed=0):
    """Noise of width x height pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file)


def class_folders(root, count=2, size=(32, 32), names=("n01", "n02")):
    """`count` images 0.png, 1.png … in each class folder below `root`, all different."""
    for label, name in enumerate(names):
        for number in range(count):
            paint(root / name / f"{number}.png", size, seed=100 * label + number + sum(map(ord, root.name)))
