"""The pictures behind a ledger: the embedding files its settings.yaml leads to, checked against the ledger's hashes."""

from __future__ import annotations

from pathlib import Path

from iis.config import read_yaml
from iis.embedding_file import Embeddings, load_embeddings
from iis.runtime import UserError
from IP_training.inputs import representations_of
from reproduction.runs import Run


def pictures_of(run: Run, split: str) -> Embeddings:
    """Representations and labels of "train" or "val" as the run had them.

    Raises `UserError` where the file is gone or holds other numbers by now.
    """
    file = run.folder / "settings.yaml"
    if not file.is_file():
        raise UserError(f"{run.folder} has no settings.yaml, so its {split} representations cannot be found; run stage "
                        "3 again")
    settings = read_yaml(file)
    own = settings.get("activation_dir")
    named = settings.get(f"{split}_pt") or representations_of(
        settings["model_name"], settings["dataset"], split, settings.get("feature_layer"), Path(own) if own else None)
    labels = settings.get(f"{split}_labels")
    found = load_embeddings(Path(named), Path(labels) if labels else None)
    if found.content_hash != run.identity[f"{split}_hash"]:
        raise UserError(f"{named} holds other numbers than {run.folder} was made of; run stage 3 again")
    return found
