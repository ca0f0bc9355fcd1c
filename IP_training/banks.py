"""Concept banks: M unit vectors in representation space, each with evidence a person can look at.

A new kind of bank is one function here. It checks what it is given and returns `make(seed) -> Bank`; predictors,
training, ledger and score stay the same for every bank:

    def my_bank(elements: Embeddings, num_concepts: int) -> MakeBank:
        def make(seed: Seed) -> Bank:
            return Bank("Mine", unit_rows(vectors_MD), [[...] for m in range(num_concepts)])
        return make
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iis.embedding_file import Embeddings, as_embeddings
from iis.runtime import UserError, numpy_rng, seed_of, torch_rng
from IP_training.encoder import Encoder

MAX_ELEMENTS = 20_000  # release
NEAREST = 9  # elements shown for a k-means centre


@dataclass(frozen=True)
class Seed:
    """One seed of a run. bank: the number its bank is drawn with, another under --bank_seed.

    selection: under --holdout, the rows of train to train on and the rows to select on.
    """

    number: int
    bank: int
    selection: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def train_rows(self) -> torch.Tensor | None:
        """Rows of train that may be used to fit anything; None for all."""
        return self.selection[0] if self.selection else None


@dataclass
class Bank:
    """vectors_MD: (M, D) float32, rows of length 1 (or 0: an empty concept, which the ledger counts).

    evidence[m]: what concept m looks like: image paths, or words. blocks: how the activations are normalised,
    (kind, number of columns) from left to right, see `predictor.Normaliser`; LayerNorm over all M unless said, `scale`
    for sparse codes. encoder: what makes activations; the projection on vectors_MD unless said. nonzero: of sparse
    codes, how many of an image are not 0 on average; known once they are computed. seconds: what it took to make,
    where that was measured.
    """

    kind: str
    vectors_MD: torch.Tensor
    evidence: list[list[str]]
    blocks: tuple[tuple[str, int], ...] = ()
    encoder: Encoder | None = None
    nonzero: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        self.encoder = self.encoder or Encoder(self.vectors_MD)
        self.blocks = self.blocks or (("scale" if self.encoder.sparse else "layer", len(self.vectors_MD)),)

    def __len__(self) -> int:
        return len(self.vectors_MD)

    @property
    def empty(self) -> int:
        """How many rows are zero."""
        return int((self.vectors_MD.norm(dim=1) == 0).sum())


MakeBank = Callable[[Seed], Bank]


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


def check_enough(elements: Embeddings, num_concepts: int) -> Embeddings:
    """The elements; `UserError` where a bank asks for more concepts than there are elements, or for none."""
    if num_concepts < 1:
        raise UserError(f"--num_concepts {num_concepts}: a bank needs at least 1 concept")
    if num_concepts > len(elements):
        raise UserError(f"--num_concepts {num_concepts} is more than the {len(elements)} visual elements there are; "
                        "ask for fewer, or extract more with --image_per_class")
    return elements


# ---- Prototype ----


def prototypes(elements: Embeddings, num_concepts: int, choice: str = "balanced") -> MakeBank:
    """M of the E element embeddings (paper, section 3). choice: "balanced" over classes and seeded, or the "first" M
    rows (release)."""
    elements = check_enough(as_embeddings(elements), num_concepts)

    def make(seed: Seed) -> Bank:
        rows = (list(range(num_concepts)) if choice == "first"
                else balanced_choice(elements.labels_N, num_concepts, seed.bank, "prototypes"))
        return Bank("Prototype", unit_rows(elements.features_ND[rows]), [[elements.image_paths[row]] for row in rows])

    return make


# ---- Cluster ----


def clusters(elements: Embeddings, num_concepts: int, choice: str = "balanced") -> MakeBank:
    """M k-means centres of up to 20,000 normalised element embeddings (paper, section 3); the evidence of a centre is
    the images of its nearest elements. choice: see `chosen_elements`."""
    import sklearn.cluster  # noqa: F401  # before processes are forked, once for all of them

    elements = check_enough(as_embeddings(elements), num_concepts)

    def make(seed: Seed) -> Bank:
        rows = chosen_elements(elements, seed.bank, choice)
        elements_ED = unit_rows(elements.features_ND[rows])
        centres_MD = cluster_centres(elements_ED, num_concepts, seed.bank)
        # Among rows of length 1 the nearest to a centre is the one with the largest product.
        nearest_ME = (centres_MD @ elements_ED.T).topk(min(NEAREST, len(rows))).indices
        return Bank("Cluster", centres_MD,
                    [[elements.image_paths[rows[row]] for row in near] for near in nearest_ME.tolist()])

    return make


def chosen_elements(elements: Embeddings, seed: int, choice: str = "balanced", most: int = MAX_ELEMENTS) -> list[int]:
    """Rows of the elements a Cluster or End2End bank is made of: all, or `most` of them.

    choice: "balanced" over classes and seeded (`paper`), or the "first" rows (`release`).
    """
    count = min(most, len(elements))
    if choice == "first" or count == len(elements):
        return list(range(count))
    return sorted(balanced_choice(elements.labels_N, count, seed, "elements"))


def cluster_centres(elements_ED: torch.Tensor, num_concepts: int, seed: int) -> torch.Tensor:
    """k-means centres (M, D) of length 1 of elements_ED (E, D), float, rows of length 1.

    scikit-learn's KMeans, k-means++ and one start: seeds are the repeats here, and their spread is what the IIS
    reports. One thread, because with several the order of its sums, and so the centres, changes from run to run.
    Raises `UserError` where M exceeds the distinct rows.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = KMeans(num_concepts, n_init=1, random_state=seed_of(seed, "k-means") % 2**32)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an error below
        means.fit(elements_ED.to("cpu", torch.float32).numpy())
    distinct = len(np.unique(means.labels_))
    if distinct < num_concepts:
        raise UserError(f"--num_concepts {num_concepts}, but only {distinct} of the {len(elements_ED)} elements "
                        "differ; ask for fewer, or extract from more images")
    return unit_rows(torch.from_numpy(means.cluster_centers_))


# ---- Random, Own, Combined ----


def random(num_concepts: int, width: int) -> MakeBank:
    """M random unit directions of D = width: the control that every claim needs."""

    def make(seed: Seed) -> Bank:
        directions = torch.randn(num_concepts, width, generator=torch_rng(seed.bank, "random directions"))
        return Bank("Random", unit_rows(directions), [[f"random direction {m}"] for m in range(num_concepts)])

    return make


def from_matrix(matrix: torch.Tensor, width: int, names: Sequence[str] | dict[int, str] | None = None,
                where: str = "the bank") -> Bank:
    """An M x D matrix made elsewhere (CAVs, CRAFT, an SAE's dictionary), rows scaled to length 1.

    Rows that have length 1 already stay as they are, bit for bit. names: of all concepts, or of some by number. Raises
    `UserError` for another shape or width, values that float32 cannot hold, zeros alone, or names that do not fit.
    """
    if not torch.is_tensor(matrix) or matrix.ndim != 2 or not len(matrix) or matrix.is_complex():
        found = f"{tuple(matrix.shape)} of {matrix.dtype}" if torch.is_tensor(matrix) else type(matrix).__name__
        raise UserError(f"{where} holds {found}; one matrix of M x D real numbers is needed")
    if matrix.shape[1] != width:
        raise UserError(f"{where} has D = {matrix.shape[1]}, and the representations have D = {width}; make the bank "
                        "in the space of these representations"
                        + (" (it looks transposed)" if matrix.shape[0] == width else ""))
    vectors_MD = matrix.to(torch.float32)
    if not torch.isfinite(vectors_MD).all():
        raise UserError(f"{where} holds values that are not finite, or beyond float32")
    if not vectors_MD.any():
        raise UserError(f"{where} is all zero; a concept needs a direction")
    usual = [f"concept {m}" for m in range(len(matrix))]
    if isinstance(names, dict):
        if beyond := sorted(set(names) - set(range(len(matrix)))):
            raise UserError(f"there is a name for concept {beyond[0]}, and {where} has concepts 0 to {len(matrix) - 1}")
        names = [names.get(m, word) for m, word in enumerate(usual)]
    names = usual if names is None else list(names)
    if len(names) != len(matrix):
        raise UserError(f"there are {len(names)} names for the {len(matrix)} concepts of {where}")
    unit = (vectors_MD.norm(dim=1, keepdim=True) - 1).abs() <= 1e-6  # scaling these again would only round them
    return Bank("Own", torch.where(unit, vectors_MD, unit_rows(vectors_MD)), [[name] for name in names])


def combined(parts: Sequence[MakeBank]) -> MakeBank:
    """Banks stacked (paper, Table 4: visual and textual); each block is normalised by its own rule."""

    def make(seed: Seed) -> Bank:
        banks = [part(seed) for part in parts]
        if any(bank.encoder.sparse for bank in banks):
            raise UserError("a Combined bank projects on its parts: take them without an encoder (--route decoder)")
        return Bank("Combined", torch.cat([bank.vectors_MD for bank in banks]),
                    [[f"{bank.kind}: {line}" for line in lines] for bank in banks for lines in bank.evidence],
                    tuple(block for bank in banks for block in bank.blocks))

    return make


def shares(total: int, count: int) -> list[int]:
    """`total` in `count` parts that differ by at most one, larger first: 200 in 3 is 67, 67, 66."""
    return [total // count + (index < total % count) for index in range(count)]
