"""The Cluster bank: centres of k-means on normalised element embeddings (paper, section 3), fitted once per seed.

scikit-learn's KMeans with k-means++ and a single start (n_init=1): seeds are the repeats here, and their spread is
what the IIS reports. One thread, because with several the order of its sums, and so the centres, changes from run
to run; on one core 20,000 x 64 elements went into 200 centres in 2.6 s (random directions).
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from iis.embedding_file import Embeddings, save_tensors
from iis.runtime import ROOT, UserError, seed_of
from IP_training.concept_banks import Bank, balanced_choice, check_enough, unit_rows

# Where scripts keep fitted centres, by elements, M and seed.
CENTRES = Path(os.environ.get("IIS_CLUSTER_CENTRES", ROOT / "IP_training" / "cluster_centres"))
MAX_ELEMENTS = 20_000  # release
NEAREST = 9  # elements shown for a centre

Centres = tuple[torch.Tensor, list[list[int]]]


def cluster_centres(elements_ED: torch.Tensor, num_concepts: int, seed: int, count: int = NEAREST,
                    method: str = "sklearn") -> Centres:
    """k-means centres (M, D) of length 1, and for each the rows of its `count` nearest elements, nearest first.

    elements_ED (E, D): float, rows of length 1. method: "sklearn", or "fast" (fast_kmeans.py, from the same initial
    centres). Raises `UserError` where M exceeds E or the distinct rows.
    """
    if num_concepts > len(elements_ED):
        raise UserError(f"--num_concepts {num_concepts} is more than the {len(elements_ED)} elements to cluster; "
                        "ask for fewer, or extract more with --image_per_class")
    fit = {"sklearn": _sklearn_means, "fast": _fast_means}[method]
    elements_ED = elements_ED.to("cpu", torch.float32)
    means_MD, distinct = fit(elements_ED, num_concepts, seed_of(seed, "k-means") % 2 ** 32)
    if distinct < num_concepts:
        raise UserError(f"--num_concepts {num_concepts}, but only {distinct} of the {len(elements_ED)} elements "
                        "differ; ask for fewer, or extract from more images")
    centres_MD = unit_rows(means_MD)
    # Among rows of length 1 the nearest to a centre is the one with the largest product.
    nearest_ME = (centres_MD @ elements_ED.T).topk(min(count, len(elements_ED))).indices
    return centres_MD, nearest_ME.tolist()


def _sklearn_means(elements_ED: torch.Tensor, num_concepts: int, state: int) -> tuple[torch.Tensor, int]:
    """Centres (M, D) by scikit-learn, and how many of them have elements."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = KMeans(num_concepts, n_init=1, random_state=state)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said by the caller, as an error
        means.fit(elements_ED.numpy())
    return torch.from_numpy(means.cluster_centers_), len(np.unique(means.labels_))


def _fast_means(elements_ED: torch.Tensor, num_concepts: int, state: int) -> tuple[torch.Tensor, int]:
    """The same by `lloyd`, from the k-means++ centres that scikit-learn starts from under this seed."""
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits

    from IP_training.fast_kmeans import lloyd

    mean_D = elements_ED.mean(0)  # KMeans takes it off before it draws
    with threadpool_limits(1):
        start, _ = kmeans_plusplus((elements_ED - mean_D).numpy(), num_concepts, random_state=state)
    fit = lloyd(elements_ED, torch.from_numpy(start) + mean_D)
    return fit.centres_MD, len(fit.labels_E.unique())


def cached_centres(folder: Path, key: object, make: Callable[[], Centres]) -> Centres:
    """What `make` returns, kept in `folder` under `key` (anything JSON takes) and read from there the next time."""
    from safetensors.torch import load_file

    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    file = Path(folder) / f"centres_{name}.safetensors"
    if file.exists():
        kept = load_file(file)
        return kept["centres"], kept["nearest"].tolist()
    centres_MD, nearest = make()
    save_tensors(file, {"centres": centres_MD, "nearest": torch.tensor(nearest)},
                 {"key": json.dumps(key, sort_keys=True)})
    return centres_MD, nearest


def chosen_elements(elements: Embeddings, seed: int, choice: str = "balanced", most: int = MAX_ELEMENTS) -> list[int]:
    """Rows of the elements a Cluster or End2End bank is made of: all, or `most` of them.

    choice: "balanced" over classes and seeded (`paper`), or the "first" rows (`release`).
    """
    count = min(most, len(elements))
    if choice == "first" or count == len(elements):
        return list(range(count))
    return sorted(balanced_choice(elements.labels_N, count, seed, "elements"))


def cluster_bank(elements: Embeddings, num_concepts: int, seed: int, choice: str = "balanced",
                 folder: Path | None = None, method: str = "sklearn") -> Bank:
    """M centres of up to 20,000 element embeddings; the evidence of a centre is its nearest elements' images.

    folder: where fitted centres are kept (nowhere without it). method: of `cluster_centres`.
    """
    check_enough(elements, num_concepts)
    rows = chosen_elements(elements, seed, choice)

    def make() -> Centres:
        return cluster_centres(unit_rows(elements.features_ND[rows]), num_concepts, seed, NEAREST, method)

    if folder is None:
        centres_MD, nearest = make()
    else:
        key = {"elements": elements.content_hash, "num_concepts": num_concepts, "seed": seed,
               "rows": hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest(),
               **({"kmeans": method} if method != "sklearn" else {})}
        centres_MD, nearest = cached_centres(folder, key, make)
    return Bank("Cluster", centres_MD, [[elements.image_paths[rows[row]] for row in near] for near in nearest])
