"""The images behind a ledger: the embedding files its settings.yaml leads to, checked against the ledger's hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iis.cli import read_yaml
from iis.embedding_file import Embeddings, load_embeddings
from iis.runtime import UserError
from IP_training.inputs import representations_of
from reproduction.lib.runs import Run


def images_of(run: Run, split: str) -> Embeddings:
    """Representations and labels of "train" or "val" as the run had them.

    Raises `UserError` where the file is gone or holds other numbers by now.
    """
    return embeddings_of(run.folder, run.identity, split)[0]


def embeddings_of(folder: Path, identity: dict[str, Any], split: str,
                  given: Path | None = None) -> tuple[Embeddings, Path]:
    """The same, and their file, for a ledger's folder with this identity. given: the file, where it lies elsewhere."""
    settings = settings_of(folder)
    if not settings and given is None:
        raise UserError(f"{folder} has no settings.yaml, so its {split} representations cannot be found; run stage 3 "
                        "again")
    own, labels = settings.get("activation_dir"), settings.get(f"{split}_labels")
    file = Path(given or settings.get(f"{split}_pt") or representations_of(
        settings["model_name"], settings["dataset"], split, settings.get("feature_layer"), Path(own) if own else None))
    found = load_embeddings(file, Path(labels) if labels else None)
    if found.content_hash != identity[f"{split}_hash"]:
        raise UserError(f"{file} holds other numbers than {folder} was made of; run stage 3 again")
    return found, file


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings a training script wrote beside its ledger; {} where they are gone."""
    file = Path(folder) / "settings.yaml"
    return read_yaml(file) if file.is_file() else {}


def labels_of(run: Run) -> np.ndarray | None:
    """The validation labels (N,) of a run; None where they cannot be found again."""
    try:
        return images_of(run, "val").labels_N.numpy()
    except UserError:
        return None


def balanced_accuracy(correct_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean over the classes that occur of their recall. correct_N: bool; labels_N: int. A fraction."""
    return float(pd.Series(np.asarray(correct_N, float)).groupby(np.asarray(labels_N)).mean().mean())
