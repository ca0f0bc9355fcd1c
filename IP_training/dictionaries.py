"""Banks from dictionary learning: the elements, or the images, written as sums of M directions.

    nmf      elements ≈ codes · bank, both non-negative (CRAFT; Fel et al., CVPR 2023, arXiv 2211.10154)
    pca      the M directions in which the elements vary most: the classical reference
    splice   CLIP's images ≈ sparse non-negative codes · words (SpLiCE; Bhalla et al., NeurIPS 2024, arXiv 2402.10376)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from iis.embedding_file import Embeddings, as_embeddings
from iis.runtime import UserError, seed_of
from IP_training.banks import NEAREST, Bank, MakeBank, Seed, check_enough, chosen_elements, unit_rows
from IP_training.config import PENALTY
from IP_training.encoder import Encoder
from IP_training.predictor import ROUNDING
from IP_training.sparse_codes import check_penalty

# Most iterations of NMF. On 7,516 segments of Caltech-101 under MobileNet v2 (D = 1280), M = 200, they take 42 s on
# one core, and twice as many lower the relative error from 0.475 to 0.473; neither meets scikit-learn's tolerance.
ITERATIONS = 100


def top_elements(scores_EM: np.ndarray, image_paths: list[str]) -> list[list[str]]:
    """The evidence of M concepts: images of the elements with the largest scores above 0, the largest first."""
    order_ME = np.argsort(-scores_EM, axis=0, kind="stable")[:NEAREST].T
    return [[image_paths[row] for row in rows if scores_EM[row, m] > 0] for m, rows in enumerate(order_ME)]


def as_numpy(elements: Embeddings, rows: list[int]) -> np.ndarray:
    """Features of some elements, (E, D) float32."""
    return elements.features_ND[rows].to("cpu", torch.float32).numpy()


# ---- NMF ----


def nmf(elements: Embeddings, num_concepts: int, choice: str = "balanced") -> MakeBank:
    """M directions of a non-negative matrix factorisation of up to 20,000 element embeddings, as CRAFT makes its
    concepts of image crops (Fel et al., CVPR 2023, arXiv 2211.10154): elements (E, D) ≈ codes (E, M) · bank (M, D), no
    number below 0. The evidence of a concept is the images of the elements with its largest codes.

    The embeddings go in as they are, not scaled to length 1, as in CRAFT. A direction that the factorisation does not
    use is a zero row, which the ledger counts as an empty concept. M may exceed D; then many banks fit equally well.
    choice: see `chosen_elements`. Raises `UserError` for embeddings below 0.
    """
    import sklearn.decomposition  # noqa: F401  # before processes are forked, once for all of them

    elements = check_enough(as_embeddings(elements), num_concepts)
    if below := int((elements.features_ND < 0).any(1).sum()):
        raise UserError(f"NMF needs features of at least 0, and {below} of the {len(elements)} visual elements have "
                        f"some below (the smallest is {float(elements.features_ND.min()):.4g}); embed with a layer "
                        "that ends in a ReLU (--target_layer_name and --feature_layer of stage 2), or use another bank")

    def make(seed: Seed) -> Bank:
        rows = chosen_elements(elements, seed.bank, choice)
        codes_EM, bank_MD = factors(as_numpy(elements, rows), num_concepts, seed.bank)
        return Bank("NMF", unit_rows(torch.from_numpy(bank_MD)),
                    top_elements(codes_EM, [elements.image_paths[row] for row in rows]))

    return make


def factors(elements_ED: np.ndarray, num_concepts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (E, M) and dictionary (M, D) of elements_ED, float32 of at least 0. Prints how well they rebuild it.

    scikit-learn's NMF, coordinate descent, with a random start: its other starts (NNDSVD) are the same for every seed
    but for their smallest entries, need M <= D, and end no lower. One thread, so that every run gives the same bank.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    model = NMF(num_concepts, init="random", max_iter=ITERATIONS, random_state=seed_of(seed, "NMF") % 2**32)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below
        codes_EM = model.fit_transform(elements_ED)
    error = model.reconstruction_err_ / max(np.linalg.norm(elements_ED), np.finfo(np.float32).tiny)
    empty = int((model.components_.max(1) == 0).sum())
    print(f"NMF bank, seed {seed}: relative error {error:.3f} after {model.n_iter_} iterations"
          + (" (the most)" if model.n_iter_ == ITERATIONS else "") + (f", {empty} empty concepts" if empty else ""),
          flush=True)
    return codes_EM, model.components_


# ---- PCA ----


def pca(elements: Embeddings, num_concepts: int, choice: str = "balanced") -> MakeBank:
    """The first M principal directions of up to 20,000 element embeddings, largest variance first. The evidence of a
    concept is the images of the elements with its largest scores.

    Nothing is drawn: seeds differ in their heads alone (and in which 20,000 elements are used where there are more).
    So the spread over seeds says nothing of the bank's, as PCA is used. A direction points to where the element with
    the largest score, up to sign, lies. One in which the elements do not vary is arbitrary: it becomes a zero row,
    which the ledger counts as an empty concept. choice: see `chosen_elements`. Raises `UserError` for M > D.
    """
    import sklearn.decomposition  # noqa: F401  # before processes are forked, once for all of them

    elements = check_enough(as_embeddings(elements), num_concepts)
    if num_concepts > elements.width:
        raise UserError(f"--num_concepts {num_concepts}, but a space of D = {elements.width} has only {elements.width} "
                        "principal directions; ask for fewer, or use another bank")

    def make(seed: Seed) -> Bank:
        rows = chosen_elements(elements, seed.bank, choice)
        scores_EM, bank_MD = principal_directions(as_numpy(elements, rows), num_concepts)
        return Bank("PCA", unit_rows(torch.from_numpy(bank_MD)),
                    top_elements(scores_EM, [elements.image_paths[row] for row in rows]))

    return make


def principal_directions(elements_ED: np.ndarray, num_concepts: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (E, M) of the centred elements and directions (M, D), M <= min(E, D), by falling variance; the score that
    is largest up to sign is positive. Where the elements do not vary, up to rounding, both are zero."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    model = PCA(num_concepts, svd_solver="full")
    with threadpool_limits(1):
        scores_EM = model.fit_transform(elements_ED)
    varies_M = model.singular_values_ > ROUNDING * np.linalg.norm(elements_ED)
    largest_M = np.take_along_axis(scores_EM, np.abs(scores_EM).argmax(0)[None], 0)[0]
    factor_M = np.where(varies_M, np.where(largest_M < 0, -1.0, 1.0), 0.0).astype(elements_ED.dtype)
    return scores_EM * factor_M, model.components_ * factor_M[:, None]


# ---- SpLiCE ----


def splice(words: Sequence[str], texts_Md: torch.Tensor, images_Nd: torch.Tensor, num_concepts: int | None = None,
           penalty: float = PENALTY, device: torch.device | None = None) -> MakeBank:
    """Words as the dictionary of CLIP's image embeddings (SpLiCE; Bhalla et al., NeurIPS 2024, arXiv 2402.10376).

    The representations are CLIP's own image embeddings, of length 1. An image is what is left of it without the mean
    of the training images, at length 1; a concept is a word's text embedding without the mean of all words, at length
    1. Activations are codes, not projections: the a >= 0 of `nonnegative_codes`. The evidence of a concept is its word.

    texts_Md (M, d): CLIP's embeddings of the words; images_Nd (N, d): of the training images, which give the mean and
    decide which words stay: the `num_concepts` with the largest sum of codes, in their order, or all. device: where
    these codes are computed, the CPU unless said. Nothing is drawn. Raises `UserError` where the images are not CLIP's,
    or the words too few.
    """
    if texts_Md.shape[1] != images_Nd.shape[1]:
        raise UserError(f"the words have D = {texts_Md.shape[1]} and the representations D = {images_Nd.shape[1]}: "
                        "SpLiCE needs both embedded by the same CLIP")
    if num_concepts is not None and not 1 <= num_concepts <= len(words):
        raise UserError(f"--num_concepts {num_concepts}, but there are {len(words)} words; give a number between")
    lengths_N = images_Nd.float().norm(dim=1)
    if not (lengths_N - 1).abs().max() < 0.01:  # float16 rounds to less
        raise UserError(f"SpLiCE needs CLIP's image embeddings of length 1, and these have lengths up to "
                        f"{float(lengths_N.max()):.4g}; give those of extractor/textual_emb_extractor.py")
    check_penalty(penalty)
    texts_Md = unit_rows(texts_Md)
    bank_Md = unit_rows(texts_Md - texts_Md.mean(0))

    def make(seed: Seed) -> Bank:
        images = images_Nd if seed.train_rows is None else images_Nd[seed.train_rows]
        encoder, kept = Encoder(bank_Md, "lasso", centre_D=images.float().mean(0), penalty=penalty), range(len(words))
        if num_concepts not in (None, len(words)):
            used_M = sum(encoder.to(device or torch.device("cpu"))(part).sum(0) for part in images.split(65536))
            kept = used_M.argsort(descending=True, stable=True)[:num_concepts].sort().values.tolist()
            encoder = replace(encoder, weight_MD=bank_Md[kept])
        return Bank("SpLiCE", encoder.weight_MD.clone(), [[words[m]] for m in kept], encoder=encoder)

    return make
