"""Features whose content is known: a share of their power tells the true attributes of an image, the rest something
else, in a space turned at random.

    h = Q · [√share · attributes ⊕ √(1 − share) · rest ⊕ 0] + noise        Q a random orthogonal matrix (D × D)

attributes: one coordinate per attribute word, centred on train and scaled to mean squared length 1. The rest, of mean
squared length 1 too, is one of

    class code        a random vector of the image's class: it tells the class and nothing else
    scattered code    a random vector of one of SCATTER groups of the class, drawn at random: it tells the class as
                      well, but no few directions do
    noise             isotropic noise: it tells nothing, so that accuracy falls with the share

Only the first two answer whether a score orders semantic content, because there the class can be told at every share,
and isotropic noise is set so that a linear classifier reaches one accuracy everywhere: a score that divides by accuracy
then divides by the same number. The price is that the noise differs between shares (it is in the table). Under "noise"
nothing is added and nothing equalised: content and accuracy fall together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iis.runtime import UserError, numpy_rng

RESTS = ("class code", "scattered code", "noise")
SCATTER = 8  # groups per class of the scattered code
REST_WIDTH = 64


@dataclass(frozen=True)
class Images:
    """True attributes (N, A) bool and classes (N,) of both splits."""

    train_has_NA: np.ndarray
    val_has_NA: np.ndarray
    train_labels_N: np.ndarray
    val_labels_N: np.ndarray


@dataclass(frozen=True)
class Controlled:
    """Features of both splits, and the true directions (A, D): column a of Q, along which attribute a is told.

    noise: standard deviation of the isotropic noise per coordinate; accuracy: what the linear classifier then reaches.
    """

    train_ND: np.ndarray
    val_ND: np.ndarray
    directions_AD: np.ndarray
    noise: float
    accuracy: float


def controlled(images: Images, rest: str, share: float, draw: int, target: float = 0.9) -> Controlled:
    """Features at a share in [0, 1]; everything random follows from `draw` alone, the same at every share.

    target: validation accuracy of the linear classifier under a class or scattered code. Raises `UserError` where
    even noiseless features do not reach it.
    """
    if rest not in RESTS or not 0 <= share <= 1:
        raise UserError(f"rest {rest!r} with share {share:g}: the rest is one of {', '.join(RESTS)}, the share in "
                        "[0, 1]")
    attributes = _unit_power(images.train_has_NA, images.val_has_NA)
    count, width = images.train_has_NA.shape[1], images.train_has_NA.shape[1] + REST_WIDTH
    codes = _rest(images, rest, draw, width)
    parts = [np.concatenate([share ** 0.5 * own, np.zeros((len(own), REST_WIDTH))], 1) + (1 - share) ** 0.5 * code
             for own, code in zip(attributes, codes, strict=True)]
    spread = [numpy_rng(draw, "controlled", "noise", split).standard_normal(part.shape)
              for split, part in enumerate(parts)]
    level, accuracy = 0.0, linear_accuracy(*parts, images)
    if rest != "noise":
        if accuracy < target:
            raise UserError(f"{rest}, share {share:g}: without noise the linear classifier reaches {accuracy:.3f}, "
                            f"below the {target:g} asked for; lower --target")
        level, accuracy = _noise_for(target, parts, spread, images)
    turn_DD = np.linalg.qr(numpy_rng(draw, "controlled", "turn").standard_normal((width, width)))[0]
    train_ND, val_ND = ((part + level * noise) @ turn_DD.T for part, noise in zip(parts, spread, strict=True))
    return Controlled(train_ND, val_ND, turn_DD[:, :count].T, level, accuracy)


def linear_accuracy(train_ND: np.ndarray, val_ND: np.ndarray, images: Images) -> float:
    """Validation accuracy of least squares on one-hot classes: quick, and enough to equalise by."""
    classes_NC = np.eye(images.train_labels_N.max() + 1)[images.train_labels_N]
    mean = train_ND.mean(0)
    weights_DC = np.linalg.lstsq(train_ND - mean, classes_NC - classes_NC.mean(0), rcond=1e-6)[0]
    scores_NC = (val_ND - mean) @ weights_DC + classes_NC.mean(0)
    return float((scores_NC.argmax(1) == images.val_labels_N).mean())


def _unit_power(train_ND: np.ndarray, val_ND: np.ndarray) -> list[np.ndarray]:
    mean = train_ND.mean(0)
    scale = ((train_ND - mean) ** 2).sum(1).mean() ** 0.5
    return [(split - mean) / scale for split in (train_ND, val_ND)]


def _rest(images: Images, rest: str, draw: int, width: int) -> list[np.ndarray]:
    """The rest of both splits, (N, D): codes stay out of the attributes' coordinates, noise is everywhere."""
    counts = len(images.train_labels_N), len(images.val_labels_N)
    rngs = [numpy_rng(draw, "controlled", "rest", split) for split in ("train", "val")]
    if rest == "noise":
        return [rng.standard_normal((count, width)) / width ** 0.5 for rng, count in zip(rngs, counts, strict=True)]
    groups = SCATTER if rest == "scattered code" else 1
    classes = images.train_labels_N.max() + 1
    codes_GK = numpy_rng(draw, "controlled", "codes").standard_normal((classes * groups, REST_WIDTH))
    chosen = [codes_GK[labels * groups + rng.integers(groups, size=len(labels))]
              for rng, labels in zip(rngs, (images.train_labels_N, images.val_labels_N), strict=True)]
    return [np.concatenate([np.zeros((len(code), width - REST_WIDTH)), code], 1) for code in _unit_power(*chosen)]


def _noise_for(target: float, parts: list[np.ndarray], spread: list[np.ndarray], images: Images
               ) -> tuple[float, float]:
    """The noise at which the linear classifier falls to `target`, by bisection to 1/2000 of a unit of length."""
    low, high = 0.0, 1.0
    while high - low > 0.0005:
        level = (low + high) / 2
        accuracy = linear_accuracy(*(part + level * noise for part, noise in zip(parts, spread, strict=True)), images)
        low, high = (level, high) if accuracy > target else (low, level)
    return level, accuracy
