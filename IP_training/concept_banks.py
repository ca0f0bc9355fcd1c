"""Concept banks: M unit vectors in representation space, each with evidence a person can look at.

A new kind of concept is one function here that returns a `Bank`; predictor, trainer, ledger and score stay one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iis.embedding_file import Embeddings
from iis.runtime import UserError, numpy_rng


@dataclass
class Bank:
    """vectors_MD: (M, D) float32, rows of length 1 (or 0: an empty concept, which the ledger counts).

    evidence[m]: what concept m looks like: image paths, or words. blocks: how the activations are normalised,
    (kind, number of columns) from left to right, see `normalise.py`; LayerNorm over all M unless said.
    """

    kind: str
    vectors_MD: torch.Tensor
    evidence: list[list[str]]
    blocks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        self.blocks = self.blocks or (("layer", len(self.vectors_MD)),)

    def __len__(self) -> int:
        return len(self.vectors_MD)

    @property
    def empty(self) -> int:
        """How many rows are zero."""
        return int((self.vectors_MD.norm(dim=1) == 0).sum())


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Rows divided by their L2 norm; zero rows stay zero."""
    vectors = vectors.to(torch.float32)
    norms = vectors.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, vectors / norms.clamp_min(torch.finfo(torch.float32).tiny), torch.zeros(()))


def balanced_choice(labels: Sequence[int] | torch.Tensor, count: int, *seed_parts: object) -> list[int]:
    """`count` row indices, round-robin over seeded-shuffled classes, without replacement.

    No class gives two rows more than another while that one has rows left.
    """
    labels, rng = np.asarray(labels), numpy_rng(*seed_parts, "balanced choice")
    classes = rng.permutation(np.unique(labels))
    queues = [rng.permutation(np.flatnonzero(labels == label)).tolist() for label in classes]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return chosen


def check_enough(elements: Embeddings, num_concepts: int) -> None:
    """Raise `UserError` where a bank asks for more concepts than there are elements, or for none."""
    if num_concepts < 1:
        raise UserError(f"--num_concepts {num_concepts}: a bank needs at least 1 concept")
    if num_concepts > len(elements):
        raise UserError(f"--num_concepts {num_concepts} is more than the {len(elements)} visual elements there are; "
                        "ask for fewer, or extract more with --image_per_class")


def prototype_bank(elements: Embeddings, num_concepts: int, seed: int, choice: str = "balanced") -> Bank:
    """M of the E element embeddings (paper, section 3; `choice="first"`: the first M rows, as the release)."""
    check_enough(elements, num_concepts)
    rows = (list(range(num_concepts)) if choice == "first"
            else balanced_choice(elements.labels_N, num_concepts, seed, "prototypes"))
    vectors_MD = unit_rows(elements.features_ND[rows])
    return Bank("Prototype", vectors_MD, [[elements.image_paths[row]] for row in rows])
