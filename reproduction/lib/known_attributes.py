"""Images whose attributes are known, how well numbers tell them (AUROC), and features made with a known share of them.

    h = Q · [√share · attributes ⊕ √(1 − share) · rest ⊕ 0] + noise        Q a random orthogonal matrix (D × D)

attributes: one coordinate per word, centred on train, of mean squared length 1. The rest, of the same length, is one of

    class code        a random vector of the image's class, which holds the class and nothing else
    scattered code    a random vector of one of SCATTER random groups of the class: no few directions hold the class
    noise             isotropic, without content, so that accuracy falls with the share

Under a code, isotropic noise is set so that a linear classifier reaches one accuracy at every share: a score that
divides by accuracy divides by the same number. The price is that the noise differs between shares (see the table).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iis.runtime import UserError, numpy_rng, read_json

RESTS = ("class code", "scattered code", "noise")
SCATTER = 8  # groups per class of the scattered code
REST_WIDTH = 64


class Captions:
    """The true attributes of every image of a data set, from its captions.json (demo/paint_shapes.py)."""

    def __init__(self, file: Path) -> None:
        """Raises `UserError` where the file is missing."""
        if not file.is_file():
            raise UserError(f"there is no file {file} with the true attributes: run demo/paint_shapes.py, or name it "
                            "with --captions")
        data = read_json(file)
        self.words = [word for group in data["attributes"].values() for word in group]
        self._images = data["images"]

    def names(self, split: str) -> list[str]:
        """Every image of a split, as embedding files name it."""
        return [name.removeprefix(f"{split}/") for name in self._images if name.startswith(f"{split}/")]

    def has(self, split: str, names: Sequence[str]) -> np.ndarray:
        """(N, A) bool: which of `words` are true of each image of a split, named as embedding files name it."""
        try:
            true = [set(self._images[f"{split}/{name}"]["concepts"]) for name in names]
        except KeyError as error:
            raise UserError(f"the captions say nothing of the image {error.args[0]}; they belong to another data set"
                            ) from None
        return np.array([[word in concepts for word in self.words] for concepts in true])


# ---- how well numbers tell attributes ----


def auroc(values_NM: np.ndarray, has_NA: np.ndarray) -> np.ndarray:
    """AUROC (A, M) of every column for every attribute: the share of pairs (with, without) whose values are in order,
    ties counting half (Mann and Whitney). NaN for an attribute that all or none have."""
    from scipy.stats import rankdata

    ranks_NM = rankdata(values_NM, axis=0)
    with_A = has_NA.sum(0)[:, None].astype(float)  # (A, 1)
    pairs = with_A * (len(has_NA) - with_A)
    above = has_NA.T.astype(float) @ ranks_NM - with_A * (with_A + 1) / 2  # (A, M)
    return np.divide(above, pairs, out=np.full_like(above, np.nan), where=pairs > 0)


def best_matching(train_NM: np.ndarray, train_has_NA: np.ndarray, val_NM: np.ndarray, val_has_NA: np.ndarray
                  ) -> np.ndarray:
    """AUROC (A,) on val of each attribute's best concept. Concept and sign are chosen on train, because the best of M
    on one set flatters; below 0.5 the choice did not carry over."""
    train_AM, val_AM = auroc(train_NM, train_has_NA), auroc(val_NM, val_has_NA)
    best_A = np.abs(train_AM - 0.5).argmax(1)
    rows = np.arange(len(best_A))
    return np.where(train_AM[rows, best_A] < 0.5, 1 - val_AM[rows, best_A], val_AM[rows, best_A])


def least_squares(train_ND: np.ndarray, targets_NT: np.ndarray, val_ND: np.ndarray, rcond: float | None = None
                  ) -> np.ndarray:
    """Predictions (N, T) on val of targets, fitted on train with an intercept."""
    mean_D, mean_T = train_ND.mean(0), targets_NT.mean(0)
    return (val_ND - mean_D) @ np.linalg.lstsq(train_ND - mean_D, targets_NT - mean_T, rcond=rcond)[0] + mean_T


def linear_probe(train_ND: np.ndarray, train_has_NA: np.ndarray, val_ND: np.ndarray, val_has_NA: np.ndarray
                 ) -> np.ndarray:
    """AUROC (A,) on val of a least-squares direction per attribute, fitted on train: what one direction can reach."""
    return np.diagonal(auroc(least_squares(train_ND, train_has_NA, val_ND), val_has_NA))


# ---- features with a known share of attributes ----


class Images(NamedTuple):
    """True attributes (N, A) bool and classes (N,) of both splits."""

    train_has_NA: np.ndarray
    val_has_NA: np.ndarray
    train_labels_N: np.ndarray
    val_labels_N: np.ndarray

    @classmethod
    def of(cls, captions: Captions) -> Images:
        """Every image that the captions name; its class is its folder."""
        names = [captions.names(split) for split in ("train", "val")]
        classes = sorted({name.split("/")[0] for name in names[0]})
        return cls(*(captions.has(split, own) for split, own in zip(("train", "val"), names, strict=True)),
                   *(np.array([classes.index(name.split("/")[0]) for name in own]) for own in names))


class Controlled(NamedTuple):
    """Features of both splits, the true directions (A, D), the standard deviation of the isotropic noise per
    coordinate, and the accuracy that the linear classifier reaches."""

    train_ND: np.ndarray
    val_ND: np.ndarray
    directions_AD: np.ndarray
    noise: float
    accuracy: float


def controlled(images: Images, rest: str, share: float, draw: int, target: float = 0.9) -> Controlled:
    """Features at a share in [0, 1]; everything random follows from `draw` alone, the same at every share. Raises
    `UserError` where a linear classifier does not reach the accuracy `target` under a code without noise."""
    if not 0 <= share <= 1:
        raise UserError(f"the share {share:g} of attributes is not in [0, 1]")
    attributes, count = _unit_power(images.train_has_NA, images.val_has_NA), images.train_has_NA.shape[1]
    width = count + REST_WIDTH
    codes = _rest(images, rest, draw, width)
    parts = [share ** 0.5 * np.pad(own, ((0, 0), (0, REST_WIDTH))) + (1 - share) ** 0.5 * code
             for own, code in zip(attributes, codes, strict=True)]
    spread = [numpy_rng(draw, "controlled", "noise", split).standard_normal(part.shape)
              for split, part in enumerate(parts)]

    def noisy(level: float) -> list[np.ndarray]:
        return [part + level * noise for part, noise in zip(parts, spread, strict=True)]

    level, accuracy, low, high = 0.0, linear_accuracy(*parts, images), 0.0, 1.0
    if rest != "noise" and accuracy < target:
        raise UserError(f"{rest}, share {share:g}: without noise the linear classifier reaches {accuracy:.3f}, below "
                        f"the {target:g} asked for; lower --target")
    while rest != "noise" and high - low > 0.0005:  # bisection
        level = (low + high) / 2
        accuracy = linear_accuracy(*noisy(level), images)
        low, high = (level, high) if accuracy > target else (low, level)
    turn_DD = np.linalg.qr(numpy_rng(draw, "controlled", "turn").standard_normal((width, width)))[0]
    train_ND, val_ND = (split_ND @ turn_DD.T for split_ND in noisy(level))
    return Controlled(train_ND, val_ND, turn_DD[:, :count].T, level, accuracy)


def linear_accuracy(train_ND: np.ndarray, val_ND: np.ndarray, images: Images) -> float:
    """Validation accuracy of least squares on one-hot classes: quick, and enough to equalise by."""
    classes_NC = np.eye(images.train_labels_N.max() + 1)[images.train_labels_N]
    scores_NC = least_squares(train_ND, classes_NC, val_ND, rcond=1e-6)
    return float((scores_NC.argmax(1) == images.val_labels_N).mean())


def _unit_power(train_ND: np.ndarray, val_ND: np.ndarray) -> list[np.ndarray]:
    mean = train_ND.mean(0)
    scale = ((train_ND - mean) ** 2).sum(1).mean() ** 0.5
    return [(split - mean) / scale for split in (train_ND, val_ND)]


def _rest(images: Images, rest: str, draw: int, width: int) -> list[np.ndarray]:
    """The rest of both splits, (N, D): codes stay out of the attributes' coordinates, noise is everywhere."""
    labels = images.train_labels_N, images.val_labels_N
    rngs = [numpy_rng(draw, "controlled", "rest", split) for split in ("train", "val")]
    if rest == "noise":
        return [rng.standard_normal((len(own), width)) / width ** 0.5 for rng, own in zip(rngs, labels, strict=True)]
    groups = SCATTER if rest == "scattered code" else 1
    codes_GK = numpy_rng(draw, "controlled", "codes").standard_normal(((labels[0].max() + 1) * groups, REST_WIDTH))
    chosen = [codes_GK[own * groups + rng.integers(groups, size=len(own))]
              for rng, own in zip(rngs, labels, strict=True)]
    return [np.pad(code, ((0, 0), (width - REST_WIDTH, 0))) for code in _unit_power(*chosen)]
