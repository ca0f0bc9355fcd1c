"""Balanced accuracy from a ledger: the mean over classes of the share that is right, from its packed correct."""

from __future__ import annotations

from typing import Any

import numpy as np

from iis.results import LEDGER, read_ledger, select, unpack_correct
from iis.runtime import UserError
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run


def balanced_accuracy(correct_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over the classes that occur of their recall. correct_N: bool; labels_N: int. A fraction."""
    labels_N = np.asarray(labels_N)
    per_class = np.bincount(labels_N)
    right = np.bincount(labels_N, weights=np.asarray(correct_N, float), minlength=len(per_class))
    return float((right[per_class > 0] / per_class[per_class > 0]).mean())


def accuracies_at(run: Run, ratio: float) -> dict[str, Any]:
    """{"top1", "balanced"}: mean over seeds of the selected heads at a ratio (iis.grid.DENSE for the dense head).

    balanced is None where the validation labels cannot be found again. Both are None where the ratio was not trained.
    """
    rows = [row for (_, at), row in select(read_ledger(run.folder / LEDGER)).items() if np.isclose(at, ratio)]
    if not rows:
        return {"top1": None, "balanced": None}
    try:
        labels_N = images_of(run, "val").labels_N.numpy()
    except UserError:
        labels_N = None
    balanced = None if labels_N is None else float(np.mean(
        [balanced_accuracy(unpack_correct(row["hits"], len(labels_N)), labels_N) for row in rows]))
    return {"top1": float(np.mean([row["top1"] for row in rows])), "balanced": balanced}
