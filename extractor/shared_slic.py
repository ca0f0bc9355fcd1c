"""SLIC at several scales of one image, with the colour conversion and the blur done once for all of them.

scikit-image's `slic` does both anew for every scale: a quarter of its time. The parts between them are private there,
so this room uses them only where they are known to give what `slic` gives: `labels` asks `trusted`, once in a process,
and otherwise calls `slic` scale by scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

ITERATIONS = 10  # of k-means; this and the two factors are slic's defaults
SMALLEST, LARGEST = 0.5, 3  # of a connected piece, in shares of the mean superpixel


def labels(image_HW3: np.ndarray, scales: Sequence[int], compactness: float, sigma: float) -> list[np.ndarray]:
    """`slic`'s label map (H, W), int64 from 1, of a uint8 RGB image at each scale (n_segments)."""
    make = shared if trusted() else public
    return make(image_HW3, scales, compactness, sigma)


def public(image_HW3: np.ndarray, scales: Sequence[int], compactness: float, sigma: float) -> list[np.ndarray]:
    """The same by scikit-image's own `slic`, scale by scale."""
    from skimage.segmentation import slic

    return [slic(image_HW3, n_segments=scale, compactness=compactness, sigma=sigma, start_label=1)
            for scale in scales]


def shared(image_HW3: np.ndarray, scales: Sequence[int], compactness: float, sigma: float) -> list[np.ndarray]:
    """The same steps as `slic`, in its order and precision, the first three of them once."""
    from skimage.color import rgb2lab
    from skimage.filters import gaussian
    from skimage.segmentation import slic_superpixels as parts
    from skimage.util import img_as_float

    rgb_HW3 = img_as_float(image_HW3)
    rgb_HW3 = rgb_HW3 - rgb_HW3.min()
    rgb_HW3 /= rgb_HW3.max() or 1.0  # slic stretches to [0, 1]
    lab_1HW3 = gaussian(rgb2lab(rgb_HW3[None]), sigma=[sigma, sigma, sigma, 0], mode="reflect")
    lab_1HW3 = np.ascontiguousarray(lab_1HW3 * (1.0 / compactness))
    maps = []
    for scale in scales:
        centres_K3, steps = parts._get_grid_centroids(lab_1HW3, scale)
        means_K6 = np.concatenate([centres_K3, np.zeros((len(centres_K3), 3))], axis=-1)  # where, then which colour
        labels_1HW = parts._slic_cython(lab_1HW3, None, means_K6, max(steps), ITERATIONS, np.ones(3), False,
                                        ignore_color=False, start_label=1)
        size = math.prod(lab_1HW3.shape[:3]) / len(centres_K3)
        maps.append(parts._enforce_label_connectivity_cython(labels_1HW, int(SMALLEST * size), int(LARGEST * size),
                                                             start_label=1)[0])
    return [np.asarray(labels_HW) for labels_HW in maps]


@functools.cache
def trusted() -> bool:
    """Whether `shared` gives what `public` gives, on two small images; False too where scikit-image has no such
    parts, or they take other arguments. A tenth of a second."""
    try:
        return all(np.array_equal(one, other) and one.dtype == other.dtype for image in _images()
                   for one, other in zip(shared(image, (5, 20), 10, 1), public(image, (5, 20), 10, 1), strict=True))
    except Exception:  # a private function may change in any way
        return False


def _images() -> list[np.ndarray]:
    """Noise over a slope; and two flat halves, where many pixels lie equally near to two centres."""
    rng = np.random.default_rng(0)
    slope_HW3 = np.linspace(20, 180, 64)[None, :, None] + rng.uniform(0, 60, (48, 64, 3))
    halves_HW3 = np.full((40, 40, 3), 90)
    halves_HW3[:, 20:] = (200, 40, 10)
    return [slope_HW3.astype(np.uint8), halves_HW3.astype(np.uint8)]
