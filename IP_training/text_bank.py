"""The Text bank: words as directions in representation space (LF-CBM's route; Oikarinen et al., ICLR 2023).

P (N, M) = cosine of CLIP's image and text embeddings says how much of every word is in every image. A bias-free
projection W (M, D) is learned so that column m of h·Wᵀ rises and falls over the images as column m of P does; its
rows are the concept directions. P is never held: a batch's rows are computed from the embeddings when needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from concept_library.concept_lists import read_concepts
from iis.cli import setting
from iis.embedding_file import Embeddings, differing, load_embeddings
from iis.names import EMBEDDINGS, clip_images_file, clip_label, clip_words_file, shared_words_file
from iis.runtime import ROOT, UserError, choose_device, torch_rng
from IP_training.banks import Bank, MakeBank, Seed, unit_rows
from IP_training.config import TrainingSettings
from IP_training.inputs import Inputs, check_features
from IP_training.predictor import ROUNDING

VALIDATE_EVERY = 50  # steps (release)
LEARNING_RATE = 1e-3  # of Adam (release)
CUTOFFS = {"clip_cutoff": "mean top-5 similarity to the images",
           "interpretability_cutoff": "similarity on the validation images"}
BLOCK = 512  # concepts at a time: rows of W are independent, so a batch needs B x 512 floats and not B x M


def sharpened(a_BM: torch.Tensor) -> torch.Tensor:
    """Columns minus their mean over the batch, cubed, divided by their length: what stands out counts most. A column
    that is constant up to rounding becomes zeros.

    Cubes of small numbers are tiny, so the largest deviation of a column is made 1 first. The result does not depend
    on that scale, so no gradient goes through it.
    """
    mean_M = a_BM.mean(0)
    deviation_BM = a_BM - mean_M
    low_M, high_M = deviation_BM.detach().aminmax(dim=0)
    largest_M = torch.maximum(high_M, -low_M)
    constant_M = largest_M <= ROUNDING * mean_M.detach().abs()
    return nn.functional.normalize((deviation_BM / largest_M.masked_fill(constant_M, torch.inf)) ** 3, dim=0)


def cos_cubed(a_BM: torch.Tensor, b_BM: torch.Tensor) -> torch.Tensor:
    """cos-cubed similarity of matching columns, (M,) in [-1, 1]; negative means anti-aligned (LF-CBM, section 3)."""
    return (sharpened(a_BM) * sharpened(b_BM)).sum(0)


@dataclass
class Split:
    """Images as the backbone sees them, features_ND (N, D), and as CLIP does, images_Nd (N, d), row for row.

    rows: which of them are used; all unless said (`--holdout`).
    """

    features_ND: torch.Tensor
    images_Nd: torch.Tensor
    rows: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.rows = torch.arange(len(self.images_Nd)) if self.rows is None else self.rows

    def features(self, rows: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """h of some rows, (B, D) float32."""
        return self.features_ND[rows].to(device, torch.float32)

    def cosines(self, texts_Md: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """P of some rows, (B, M) in [-1, 1], on the device of texts_Md, which has rows of length 1."""
        return unit(self.images_Nd[rows], texts_Md.device) @ texts_Md.T


def unit(vectors: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """CLIP's embeddings as float32 rows of length 1 on a device."""
    return nn.functional.normalize(vectors.to(device, torch.float32), dim=1)


def mean_top5(split: Split, texts_Md: torch.Tensor, chunk: int = 16384) -> torch.Tensor:
    """Mean of every concept's five largest similarities over the images, (M,) on the CPU."""
    best_5M = texts_Md.new_empty(0, len(texts_Md))
    for rows in split.rows.split(chunk):
        block = torch.cat([best_5M, split.cosines(texts_Md, rows)])
        best_5M = block.topk(min(5, len(block)), dim=0).values  # (5, M)
    return best_5M.mean(0).cpu()


def above(similarity_M: torch.Tensor, cutoff: float, setting: str) -> torch.Tensor:
    """Indices of the concepts whose similarity is above the cut-off, ascending. `UserError` for none."""
    kept = (similarity_M > cutoff).nonzero().flatten()
    if not len(kept):
        raise UserError(f"--{setting} {cutoff:g} drops all {len(similarity_M)} concepts: the largest "
                        f"{CUTOFFS[setting]} is {float(similarity_M.max()):.4f}; set --{setting} below that, or bring "
                        "words that fit the images")
    return kept


class Projection(NamedTuple):
    """W_MD (M, D) and val_similarity_M (M,) of the best validation, both on the CPU; curve: [(step, mean validation
    similarity)] up to the last step."""

    W_MD: torch.Tensor
    val_similarity_M: torch.Tensor
    curve: list[tuple[int, float]]


def learn_projection(train: Split, val: Split, texts_Md: torch.Tensor, *, steps: int = 1000, batch_size: int = 50_000,
                     seed: int = 0) -> Projection:
    """Learn W by maximising the mean over concepts of `cos_cubed(h·Wᵀ, P)`, on the device of texts_Md (M, d).

    Validated before the first step, every 50 steps and after the last; stops where the validation similarity no longer
    rises, and keeps the best W. Depends on `seed` through the first W and the batches.
    """
    device, width, concepts = texts_Md.device, train.features_ND.shape[1], len(texts_Md)
    bound = width ** -0.5  # nn.Linear's first weights
    W_MD = torch.empty(concepts, width).uniform_(-bound, bound, generator=torch_rng(seed, "projection")).to(device)
    W_MD.requires_grad_()
    optimizer = torch.optim.Adam([W_MD], lr=LEARNING_RATE)
    val_h, val_images = val.features(val.rows, device), unit(val.images_Nd[val.rows], device)
    generator, whole = torch_rng(seed, "projection batches"), len(train.rows) <= batch_size
    batch = _batch(train, train.rows, texts_Md) if whole else None
    best, best_M, curve = None, None, []
    for step in range(steps + 1):
        if step % VALIDATE_EVERY == 0 or step == steps:
            similarity_M = _validate(W_MD, val_h, val_images, texts_Md)
            curve.append((step, float(similarity_M.mean())))
            if step and not curve[-1][1] > curve[-2][1]:
                break
            best, best_M = W_MD.detach().clone(), similarity_M
        if step == steps:
            break
        if not whole:
            chosen = torch.randperm(len(train.rows), generator=generator)[:batch_size]
            batch = _batch(train, train.rows[chosen], texts_Md)
        optimizer.zero_grad(set_to_none=True)
        _backward(W_MD, *batch)
        optimizer.step()
    return Projection(best.cpu(), best_M.cpu(), curve)


def _batch(split: Split, rows: torch.Tensor, texts_Md: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """h (B, D) and the sharpened P (B, M) of a batch; the latter takes P's place in memory."""
    target = split.cosines(texts_Md, rows)
    for block in target.split(BLOCK, dim=1):
        block.copy_(sharpened(block))
    return split.features(rows, texts_Md.device), target


def _backward(W_MD: torch.Tensor, h_BD: torch.Tensor, target_BM: torch.Tensor) -> None:
    """Add the gradient of −mean(cos_cubed) to W, a block of concepts at a time."""
    for W, target in zip(W_MD.split(BLOCK), target_BM.split(BLOCK, dim=1), strict=True):
        (-(sharpened(h_BD @ W.T) * target).sum() / len(W_MD)).backward()


@torch.no_grad()
def _validate(W_MD: torch.Tensor, h_VD: torch.Tensor, images_Vd: torch.Tensor, texts_Md: torch.Tensor) -> torch.Tensor:
    return torch.cat([cos_cubed(h_VD @ W.T, images_Vd @ texts.T)
                      for W, texts in zip(W_MD.split(BLOCK), texts_Md.split(BLOCK), strict=True)])


class Dropped(NamedTuple):
    """A word that is not in the bank: which setting dropped it, and its value there."""

    word: str
    setting: str
    value: float


def text_bank(words: Sequence[str], texts_Md: torch.Tensor, train: Split, val: Split, *,
              num_concepts: int | None = None, clip_cutoff: float = 0.25, interpretability_cutoff: float = 0.45,
              device: torch.device | str = "cpu", **learning: Any) -> tuple[Bank, list[Dropped], Projection]:
    """The Text bank: both cut-offs and the projection. Evidence of a row is its word.

    words[m] is concept m of texts_Md (M, d), CLIP's embeddings; num_concepts: keep the M best on validation, in their
    order; `learning` goes to `learn_projection`. The projection returned is that of the words which passed
    `clip_cutoff`. Raises `UserError` where no concept is left, or fewer than `num_concepts`.
    """
    texts_Md = unit(texts_Md, device)
    top5_M = mean_top5(train, texts_Md)
    seen = above(top5_M, clip_cutoff, "clip_cutoff")
    projection = learn_projection(train, val, texts_Md[seen.to(device)], **learning)
    similarity_M = projection.val_similarity_M
    passed = kept = above(similarity_M, interpretability_cutoff, "interpretability_cutoff")
    if num_concepts is not None:
        if num_concepts > len(passed):
            raise UserError(f"--num_concepts {num_concepts}, but only {len(passed)} of {len(seen)} concepts pass "
                            f"--interpretability_cutoff {interpretability_cutoff:g}; ask for fewer, lower the cut-offs "
                            "or bring more words")
        best = similarity_M[passed].argsort(descending=True, stable=True)[:num_concepts]
        kept = passed[best].sort().values
    names = [words[m] for m in seen.tolist()]
    reason = ["interpretability_cutoff"] * len(names)
    for m in passed.tolist():
        reason[m] = "num_concepts"
    dropped = [Dropped(word, "clip_cutoff", float(top5_M[m])) for m, word in enumerate(words) if m not in seen]
    dropped += [Dropped(word, reason[m], float(similarity_M[m])) for m, word in enumerate(names) if m not in kept]
    bank = Bank("Text", unit_rows(projection.W_MD[kept]), [[names[m]] for m in kept.tolist()],
                (("standard", len(kept)),))
    return bank, dropped, projection


# ---- settings and files ----


@dataclass(kw_only=True)
class TextSettings(TrainingSettings):
    """Text bank (published flags)"""

    concept_set: Path | None = setting(None, "list of words, as given to textual_emb_extractor.py (default "
                                       "concept_library/textual/DATASET_filtered.txt)")
    clip_name: str = setting("ViT-B/16", "the CLIP whose embeddings are used")
    clip_weights: str | None = setting(None, "its weights, as given to textual_emb_extractor.py")
    activation_dir: Path | None = setting(None, "folder of the embeddings (default extractor/embs/MODEL)")
    clip_cutoff: float = setting(0.25, "concepts whose mean top-5 cosine over training images is not above this are "
                                 "dropped")
    interpretability_cutoff: float = setting(0.45, "concepts whose validation cos-cubed similarity is not above this "
                                             "are dropped")
    proj_steps: int = setting(1000, "most steps of the projection")
    proj_batch_size: int = setting(50_000, "images per step of the projection")
    print: bool = setting(False, "name each dropped concept")


@dataclass
class TextInputs:
    """CLIP's embeddings of the words (image_paths are the words) and of train and val, row for row as `Inputs`."""

    words: Embeddings
    train: Embeddings
    val: Embeddings


def load_text_inputs(settings: TextSettings, inputs: Inputs) -> TextInputs:
    """Load and check: one CLIP for words and images, and images in the order of the representations."""
    folder = settings.activation_dir or EMBEDDINGS / settings.model_name
    concept_set = settings.concept_set or ROOT / "concept_library" / "textual" / f"{settings.dataset}_filtered.txt"
    label = clip_label(settings.clip_name, settings.clip_weights)
    files = {"words": clip_words_file(folder, concept_set, label),
             **{split: clip_images_file(folder, settings.dataset, split, label) for split in ("train", "val")}}
    if not files["words"].is_file() and concept_set.is_file():  # in CLIP's own folder
        files["words"] = shared_words_file(folder, concept_set, label, read_concepts(concept_set)[0])
    for file in files.values():
        if not file.is_file():
            raise UserError(f"there are no CLIP embeddings {file}; run extractor/textual_emb_extractor.py first, with "
                            f"--dataset {settings.dataset} --concept_set {concept_set} --backbone "
                            f"{settings.model_name} --clip_name {settings.clip_name}")
    text = TextInputs(**{name: load_embeddings(file) for name, file in files.items()})
    for split in ("train", "val"):
        clip, ours = getattr(text, split), getattr(inputs, split)
        difference = differing(text.words.provenance, clip.provenance, ("model", "weights_hash"))
        if difference:
            raise UserError(f"words and {split} images were embedded by different CLIPs: they differ in {difference}")
        if len(clip) != len(ours) or (ours.provenance and clip.image_paths != ours.image_paths):
            raise UserError(f"CLIP's {split} embeddings ({len(clip)} images) and the representations ({len(ours)}) "
                            "are not of the same images; embed both again from one data set")
        check_features(f"CLIP {split}", clip, files[split])
    return text


def identity_of_text(settings: TextSettings, text: TextInputs) -> dict[str, object]:
    """What identifies a Text bank in the ledger, beside the representations."""
    return {**identity_of_words(text),
            **{name: getattr(settings, name) for name in (*CUTOFFS, "proj_steps", "proj_batch_size")}}


def identity_of_words(text: TextInputs) -> dict[str, object]:
    """What identifies CLIP and the list of words."""
    clip = text.words.provenance
    return {"clip": clip.get("model"), "clip_weights_hash": clip.get("weights_hash"),
            "concept_set": clip.get("concept_set"), "words_hash": text.words.content_hash}


def words(settings: TextSettings, inputs: Inputs, text: TextInputs, num_concepts: int | None = None) -> MakeBank:
    """The Text bank of each seed. Under --holdout every cut-off and the early stop use the slice of train instead of
    validation."""
    device = choose_device(settings.device, silent=True)

    def make(seed: Seed) -> Bank:
        train = Split(inputs.train.features_ND, text.train.features_ND, seed.train_rows)
        val = (Split(train.features_ND, train.images_Nd, seed.selection[1]) if seed.selection
               else Split(inputs.val.features_ND, text.val.features_ND))
        bank, dropped, projection = text_bank(
            text.words.image_paths, text.words.features_ND, train, val, num_concepts=num_concepts, device=device,
            clip_cutoff=settings.clip_cutoff, interpretability_cutoff=settings.interpretability_cutoff,
            seed=seed.bank, steps=settings.proj_steps, batch_size=settings.proj_batch_size)
        counts = Counter(word.setting for word in dropped)
        best = max(projection.curve, key=lambda point: point[1])
        print(f"text bank, seed {seed.bank}: {len(bank)} of {len(text.words)} concepts; dropped by "
              + ", ".join(f"{name} {counts[name]}" for name in (*CUTOFFS, "num_concepts"))
              + f"; projection stopped after {projection.curve[-1][0]} steps, best at {best[0]}")
        for word in dropped if settings.print else ():
            print(f"  dropped by {word.setting}: {word.word} ({word.value:.4f})")
        return bank

    return make
