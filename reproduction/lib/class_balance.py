"""Balanced accuracy of a ledger's heads: the mean over classes of the share that is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from iis.results import LEDGER, read_ledger, select, unpack_correct
from iis.runtime import UserError
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run


def balanced_accuracy(correct_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over the classes that occur of their recall. correct_N: bool; labels_N: int. A fraction."""
    return float(pd.Series(np.asarray(correct_N, float)).groupby(np.asarray(labels_N)).mean().mean())


def labels_of(run: Run) -> np.ndarray | None:
    """The validation labels (N,) of a run; None where they cannot be found again."""
    try:
        return images_of(run, "val").labels_N.numpy()
    except UserError:
        return None


def accuracies_at(run: Run, ratio: float) -> dict[str, Any]:
    """{"top1", "balanced"}: mean over seeds of the selected heads at a ratio (iis.grid.DENSE for the dense head).

    balanced is None where the validation labels cannot be found again. Both are None where the ratio was not trained.
    """
    rows = [row for (_, at), row in select(read_ledger(run.folder / LEDGER)).items() if np.isclose(at, ratio)]
    labels_N = labels_of(run) if rows else None
    balanced = None if labels_N is None else float(np.mean(
        [balanced_accuracy(unpack_correct(row["hits"], len(labels_N)), labels_N) for row in rows]))
    return {"top1": float(np.mean([row["top1"] for row in rows])) if rows else None, "balanced": balanced}
