"""How well numbers separate images with an attribute from those without: AUROC for many attributes and columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iis.runtime import UserError, read_json


class Captions:
    """The true attributes of every image of a data set, from its captions.json (demo/paint_shapes.py)."""

    def __init__(self, file: Path) -> None:
        """Raises `UserError` where the file is missing, or is none of captions."""
        if not file.is_file():
            raise UserError(f"there is no file {file} with the true attributes: run demo/paint_shapes.py, or name it "
                            "with --captions")
        data: dict[str, Any] = read_json(file)
        if not isinstance(data, dict) or not all(isinstance(data.get(key), dict) for key in ("attributes", "images")):
            raise UserError(f"{file} does not hold the true attributes of images: name captions.json as "
                            "demo/paint_shapes.py writes it")
        self.groups: dict[str, list[str]] = data["attributes"]
        self.words = [word for group in self.groups.values() for word in group]
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
    """AUROC (A,) on val of each attribute's best concept, free of sign.

    Concept and sign are chosen on train and judged on val: the best of M on one set flatters, and the more the larger
    M is. An AUROC below 0.5 therefore means that the choice did not carry over.
    """
    train_AM, val_AM = auroc(train_NM, train_has_NA), auroc(val_NM, val_has_NA)
    best_A = np.abs(train_AM - 0.5).argmax(1)
    rows = np.arange(len(best_A))
    return np.where(train_AM[rows, best_A] < 0.5, 1 - val_AM[rows, best_A], val_AM[rows, best_A])


def linear_probe(train_ND: np.ndarray, train_has_NA: np.ndarray, val_ND: np.ndarray, val_has_NA: np.ndarray
                 ) -> np.ndarray:
    """AUROC (A,) on val of a least-squares direction per attribute, fitted on train: what one direction can reach."""
    mean = train_ND.mean(0)
    weights_DA = np.linalg.lstsq(train_ND - mean, train_has_NA - train_has_NA.mean(0), rcond=None)[0]
    return np.diagonal(auroc((val_ND - mean) @ weights_DA, val_has_NA))
