"""The Text bank: words as directions in representation space (LF-CBM's route; Oikarinen et al., ICLR 2023).

P (N, M) = cosine of CLIP's image and text embeddings says how much of every word is in every image. A bias-free
projection W (M, D) is learned so that column m of h·Wᵀ rises and falls over the images as column m of P does; its
rows are the concept directions. P is never held: a batch's rows are computed from the embeddings when needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iis.cli import setting
from iis.embedding_file import Embeddings, differing, load_embeddings
from iis.names import EMBEDDINGS, clip_images_file, clip_label, clip_words_file
from iis.runtime import ROOT, UserError, choose_device, torch_rng
from IP_training.banks import Bank, MakeBank, Seed, unit_rows
from IP_training.config import TrainingSettings
from IP_training.inputs import Inputs, check_features

VALIDATE_EVERY = 50  # steps (release)
LEARNING_RATE = 1e-3  # of Adam (release)
BLOCK = 512  # concepts at a time: rows of W are independent, so a batch needs B x 512 floats and not B x M


def sharpened(a_BM: torch.Tensor) -> torch.Tensor:
    """Columns minus their mean over the batch, cubed, divided by their length: what stands out counts most.

    The lower bound of 1e-12 on the length turns columns that are constant but for rounding into zeros.
    """
    return nn.functional.normalize((a_BM - a_BM.mean(0)) ** 3, dim=0, eps=1e-12)


def cos_cubed(a_BM: torch.Tensor, b_BM: torch.Tensor) -> torch.Tensor:
    """cos-cubed similarity of matching columns, (M,) in [-1, 1]; negative means anti-aligned (LF-CBM, section 3)."""
    return (sharpened(a_BM) * sharpened(b_BM)).sum(0)


@dataclass
class Similarity:
    """P without holding it. images_Nd (N, d) and texts_Md (M, d) are one CLIP's embeddings, of any length."""

    images_Nd: torch.Tensor
    texts_Md: torch.Tensor

    def __len__(self) -> int:
        return len(self.images_Nd)

    def rows(self, rows: torch.Tensor | slice, device: torch.device | str = "cpu") -> torch.Tensor:
        """P[rows], (B, M) float32 in [-1, 1]."""
        return self.images(rows, device) @ self.texts(device).T

    def images(self, rows: torch.Tensor | slice, device: torch.device | str = "cpu") -> torch.Tensor:
        """Image embeddings of length 1, (B, d)."""
        return nn.functional.normalize(self.images_Nd[rows].to(device, torch.float32), dim=1)

    def texts(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Text embeddings of length 1, (M, d)."""
        return nn.functional.normalize(self.texts_Md.to(device, torch.float32), dim=1)

    def of(self, concepts: torch.Tensor) -> Similarity:
        """The same images against some of the concepts."""
        return Similarity(self.images_Nd, self.texts_Md[concepts])


def mean_top5(similarity: Similarity, device: torch.device | str = "cpu", image_rows: torch.Tensor | None = None,
              chunk: int = 16384) -> torch.Tensor:
    """Mean of every concept's five largest similarities over the images (all, or `image_rows`), (M,) on the CPU."""
    best_5M = None
    for rows in _all(image_rows, len(similarity)).split(chunk):
        block = similarity.rows(rows, device)  # (B, M)
        block = block if best_5M is None else torch.cat([best_5M, block])
        best_5M = block.topk(min(5, len(block)), dim=0).values  # (5, M)
    return best_5M.mean(0).cpu()


def apply_clip_cutoff(top5_M: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Indices of the concepts whose mean top-5 similarity is above `cutoff`, ascending. `UserError` for none."""
    kept = (top5_M > cutoff).nonzero().flatten()
    if not len(kept):
        raise UserError(f"--clip_cutoff {cutoff:g} drops all {len(top5_M)} concepts: the largest mean top-5 similarity "
                        f"to the images is {float(top5_M.max()):.4f}; set --clip_cutoff below that, or bring words "
                        "that fit the images")
    return kept


def apply_interpretability_cutoff(similarity_M: torch.Tensor, cutoff: float,
                                  num_concepts: int | None = None) -> torch.Tensor:
    """Indices of the concepts with validation similarity above `cutoff`, ascending; of these the `num_concepts` best.

    Raises `UserError` where none is left, or fewer than `num_concepts`.
    """
    kept = (similarity_M > cutoff).nonzero().flatten()
    if not len(kept):
        raise UserError(f"--interpretability_cutoff {cutoff:g} drops all {len(similarity_M)} concepts: the largest "
                        f"similarity on the validation images is {float(similarity_M.max()):.4f}; set "
                        "--interpretability_cutoff below that")
    if num_concepts is None:
        return kept
    if num_concepts > len(kept):
        raise UserError(f"--num_concepts {num_concepts}, but only {len(kept)} of {len(similarity_M)} concepts pass "
                        f"--interpretability_cutoff {cutoff:g}; ask for fewer, lower the cut-offs or bring more words")
    order = similarity_M[kept].argsort(descending=True, stable=True)
    return kept[order[:num_concepts]].sort().values


@dataclass
class Projection:
    """W_MD (M, D) and val_similarity_M (M,) of the best validation, both on the CPU; steps taken, step of the best.

    curve: [(step, mean validation similarity)].
    """

    W_MD: torch.Tensor
    val_similarity_M: torch.Tensor
    steps: int
    best_step: int
    curve: list[tuple[int, float]]


def learn_projection(train_features_ND: torch.Tensor, train_similarity: Similarity, val_features_VD: torch.Tensor,
                     val_similarity: Similarity, *, steps: int = 1000, batch_size: int = 50_000, seed: int = 0,
                     device: torch.device | str = "cpu", train_rows: torch.Tensor | None = None,
                     val_rows: torch.Tensor | None = None) -> Projection:
    """Learn W by maximising the mean over concepts of `cos_cubed(h·Wᵀ, P)`.

    Row n of features and similarity is one image; train_rows, val_rows: which of them to use (`--holdout`), else
    all. Validated before the first step, every 50 steps and after the last; stops where the validation similarity
    no longer rises, and keeps the best W. Depends on `seed` through the first W and the batches.
    """
    train_rows = _all(train_rows, len(train_similarity))
    val_rows = _all(val_rows, len(val_similarity))
    width, concepts = train_features_ND.shape[1], len(train_similarity.texts_Md)
    bound = width ** -0.5  # nn.Linear's first weights
    W_MD = torch.empty(concepts, width).uniform_(-bound, bound, generator=torch_rng(seed, "projection")).to(device)
    W_MD.requires_grad_()
    optimizer = torch.optim.Adam([W_MD], lr=LEARNING_RATE)
    val_h = val_features_VD[val_rows].to(device, torch.float32)
    val_images, val_texts = val_similarity.images(val_rows, device), val_similarity.texts(device)
    generator, whole = torch_rng(seed, "projection batches"), len(train_rows) <= batch_size
    batch = _batch(train_features_ND, train_similarity, train_rows, device) if whole else None
    best, curve = None, []
    for step in range(steps + 1):
        if step % VALIDATE_EVERY == 0 or step == steps:
            similarity_M = _validate(W_MD, val_h, val_images, val_texts)
            curve.append((step, float(similarity_M.mean())))
            if best is not None and not curve[-1][1] > float(best[1].mean()):
                break
            best = (W_MD.detach().clone(), similarity_M, step)
        if step == steps:
            break
        if not whole:
            chosen = train_rows[torch.randperm(len(train_rows), generator=generator)[:batch_size]]
            batch = _batch(train_features_ND, train_similarity, chosen, device)
        optimizer.zero_grad(set_to_none=True)
        _backward(W_MD, *batch)
        optimizer.step()
    return Projection(best[0].cpu(), best[1].cpu(), step, best[2], curve)


def _all(rows: torch.Tensor | None, count: int) -> torch.Tensor:
    return torch.arange(count) if rows is None else rows


def _batch(features_ND: torch.Tensor, similarity: Similarity, rows: torch.Tensor,
           device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """h (B, D) and the sharpened P (B, M) of a batch; the latter takes P's place in memory."""
    target = similarity.rows(rows, device)
    for start in range(0, target.shape[1], BLOCK):
        target[:, start:start + BLOCK] = sharpened(target[:, start:start + BLOCK])
    return features_ND[rows].to(device, torch.float32), target


def _backward(W_MD: torch.Tensor, h_BD: torch.Tensor, target_BM: torch.Tensor) -> None:
    """Add the gradient of −mean(cos_cubed) to W, a block of concepts at a time."""
    for start in range(0, len(W_MD), BLOCK):
        block = slice(start, start + BLOCK)
        loss = -(sharpened(h_BD @ W_MD[block].T) * target_BM[:, block]).sum() / len(W_MD)
        loss.backward()


@torch.no_grad()
def _validate(W_MD: torch.Tensor, h_VD: torch.Tensor, images_Vd: torch.Tensor, texts_Md: torch.Tensor) -> torch.Tensor:
    blocks = [slice(start, start + BLOCK) for start in range(0, len(W_MD), BLOCK)]
    return torch.cat([cos_cubed(h_VD @ W_MD[block].T, images_Vd @ texts_Md[block].T) for block in blocks])


@dataclass
class Dropped:
    """A word that is not in the bank: which setting dropped it, and its value there."""

    word: str
    setting: str
    value: float


def text_bank(words: Sequence[str], train_features_ND: torch.Tensor, train_similarity: Similarity,
              val_features_VD: torch.Tensor, val_similarity: Similarity, *, num_concepts: int | None = None,
              clip_cutoff: float = 0.25, interpretability_cutoff: float = 0.45, device: torch.device | str = "cpu",
              train_rows: torch.Tensor | None = None, **learning: Any) -> tuple[Bank, list[Dropped], Projection]:
    """The Text bank: both cut-offs and the projection. Evidence of a row is its word.

    words[m] is concept m of both similarities; `learning` goes to `learn_projection`. The projection returned
    is that of the words which passed `clip_cutoff`, in their order.
    """
    top5_M = mean_top5(train_similarity, device, train_rows)
    seen = apply_clip_cutoff(top5_M, clip_cutoff)
    projection = learn_projection(train_features_ND, train_similarity.of(seen), val_features_VD,
                                  val_similarity.of(seen), device=device, train_rows=train_rows, **learning)
    similarity_M = projection.val_similarity_M
    kept = apply_interpretability_cutoff(similarity_M, interpretability_cutoff, num_concepts)
    names, stays = [words[m] for m in seen.tolist()], set(kept.tolist())
    unseen = sorted(set(range(len(words))) - set(seen.tolist()))
    dropped = [Dropped(words[m], "clip_cutoff", float(top5_M[m])) for m in unseen]
    dropped += [Dropped(names[m], "num_concepts" if similarity > interpretability_cutoff else "interpretability_cutoff",
                        similarity) for m, similarity in enumerate(similarity_M.tolist()) if m not in stays]
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
    files = [clip_words_file(folder, concept_set, label),
             *(clip_images_file(folder, settings.dataset, split, label) for split in ("train", "val"))]
    for file in files:
        if not file.is_file():
            raise UserError(f"there are no CLIP embeddings {file}; run extractor/textual_emb_extractor.py first, with "
                            f"--dataset {settings.dataset} --concept_set {concept_set} --backbone "
                            f"{settings.model_name} --clip_name {settings.clip_name}")
    found = TextInputs(*map(load_embeddings, files))
    for split, clip, file in (("train", found.train, files[1]), ("val", found.val, files[2])):
        difference = differing(found.words.provenance, clip.provenance, ("model", "weights_hash"))
        if difference:
            raise UserError(f"words and {split} images were embedded by different CLIPs: they differ in {difference}")
        ours = getattr(inputs, split)
        if len(clip) != len(ours) or (ours.provenance and clip.image_paths != ours.image_paths):
            raise UserError(f"CLIP's {split} embeddings ({len(clip)} images) and the representations ({len(ours)}) "
                            "are not of the same images; embed both again from one data set")
        check_features(f"CLIP {split}", clip, file)
    return found


def identity_of_text(settings: TextSettings, text: TextInputs) -> dict[str, object]:
    """What identifies a Text bank in the ledger, beside the representations."""
    return {"clip": text.words.provenance.get("model"), "clip_weights_hash": text.words.provenance.get("weights_hash"),
            "concept_set": text.words.provenance.get("concept_set"), "words_hash": text.words.content_hash,
            "clip_cutoff": settings.clip_cutoff, "interpretability_cutoff": settings.interpretability_cutoff,
            "proj_steps": settings.proj_steps, "proj_batch_size": settings.proj_batch_size}


def words(settings: TextSettings, inputs: Inputs, text: TextInputs, num_concepts: int | None = None) -> MakeBank:
    """The Text bank of each seed. Under --holdout every cut-off and the early stop use the slice of train instead of
    validation."""
    device = choose_device(settings.device, silent=True)
    in_train = Similarity(text.train.features_ND, text.words.features_ND)
    in_val = Similarity(text.val.features_ND, text.words.features_ND)

    def make(seed: Seed) -> Bank:
        check, similarity, rows = ((inputs.train, in_train, seed.selection[1]) if seed.selection
                                   else (inputs.val, in_val, None))
        bank, dropped, projection = text_bank(
            text.words.image_paths, inputs.train.features_ND, in_train, check.features_ND, similarity,
            num_concepts=num_concepts, clip_cutoff=settings.clip_cutoff, device=device, seed=seed.bank,
            interpretability_cutoff=settings.interpretability_cutoff, train_rows=seed.train_rows, val_rows=rows,
            steps=settings.proj_steps, batch_size=settings.proj_batch_size)
        counts = {name: sum(word.setting == name for word in dropped)
                  for name in ("clip_cutoff", "interpretability_cutoff", "num_concepts")}
        print(f"text bank, seed {seed.bank}: {len(bank)} of {len(text.words)} concepts; dropped by "
              + ", ".join(f"{name} {number}" for name, number in counts.items())
              + f"; projection stopped after {projection.steps} steps, best at {projection.best_step}")
        for word in dropped if settings.print else ():
            print(f"  dropped by {word.setting}: {word.word} ({word.value:.4f})")
        return bank

    return make
