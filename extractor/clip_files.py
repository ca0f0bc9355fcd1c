"""CLIP's embedding files. They depend on no backbone: made once in a shared folder, and given to every folder.

Below `embs/clip/` lies each file once; the published names in a backbone's own folder are hard links to it (copies
where the disks differ), so they cost no space, and each loads by itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from extractor.clip_towers import IMAGES, Clip
from extractor.embed import is_done
from extractor.targets import Target
from iis.datasets import ImageSet
from iis.embedding_file import PROVENANCE, Embeddings, differing, load_embeddings, save_embeddings
from iis.names import clip_images_file, clip_words_file
from iis.runtime import UserError, make_output_folder

WORDS = "text"  # the node of word embeddings


def images_target(clip: Clip, images: ImageSet, shared: Path, folder: Path,
                    write: bool = True) -> tuple[Target, Path]:
    """The file of these images in `shared` as a target for `embed_together`, and its name in `folder`.

    A right file that only `folder` has is given to `shared`. Raises `UserError` where either was made otherwise.
    write: False where nothing may be made.
    """
    file, published = (clip_images_file(place, images.dataset, images.split, clip.label)
                       for place in (shared, folder))
    provenance = {**_shared_provenance(clip), "node": IMAGES.name, "preprocessing": clip.preprocessing,
                  "dataset": images.dataset, "split": images.split, "elements": None}
    for place in (shared, folder) if write else ():
        make_output_folder(place)
    if is_done(images, published, provenance) and not is_done(images, file, provenance) and write:
        give(published, file)
    return Target(clip, IMAGES, file, provenance, record={"label": clip.label}), published


def embed_words(clip: Clip, concepts: Sequence[str], concept_set: Path, shared: Path, folder: Path) -> Path:
    """Embed M concepts (features M x d of length 1, image_paths the words) and give the file to `folder`.

    The shared name carries a hash of the words, so that an edited list is embedded anew. Raises `UserError` where
    `folder` has another list, or another CLIP's embeddings, under that name.
    """
    started, published = time.time(), clip_words_file(folder, concept_set, clip.label)
    words_hash = hashlib.blake2b("\n".join(concepts).encode(), digest_size=16).hexdigest()
    file = shared / f"{published.stem}_{words_hash[:8]}.pt"
    provenance = {**_shared_provenance(clip), "node": WORDS, "concept_set": concept_set.stem, "words_hash": words_hash}
    done = [_words_done(place, provenance) for place in (published, file)]
    if not any(done):
        features_Md = clip.encode_words(concepts)
        record = {"label": clip.label, "seconds": round(time.time() - started, 1), "torch": str(torch.__version__)}
        save_embeddings(file, Embeddings(features_Md, torch.zeros(len(concepts), dtype=torch.int64), ["concept"],
                                         list(concepts), provenance, record))
        print(f"{file}: {len(concepts):,} x {clip.width}, {time.time() - started:.1f} s, {clip.device}")
    elif done[0]:
        print(f"{published}: done already")
    if not done[0]:
        give(file, published)
    return published


def give(file: Path, other: Path) -> None:
    """Let `other` be the same file, unless it is there."""
    if other.exists():
        return
    try:
        os.link(file, other)
    except FileExistsError:
        pass
    except OSError:  # another disk, or a file system without links
        temporary = other.with_name(f".{other.name}.tmp")
        shutil.copyfile(file, temporary)
        os.replace(temporary, other)
    print(f"{other}: the same as {file}")


def _words_done(file: Path, provenance: dict[str, Any]) -> bool:
    if not file.exists():
        return False
    difference = differing(load_embeddings(file).provenance, provenance,
                           (*PROVENANCE, "concept_set", "words_hash"))
    if difference:
        raise UserError(f"{file} was made otherwise: it differs in {difference}; delete it, rename the concept list, "
                        "or choose another --activation_dir")
    return True


def _shared_provenance(clip: Clip) -> dict[str, Any]:
    return {"model": clip.architecture, "weights": clip.weights, "weights_hash": clip.weights_hash,
            "precision": "fp32"}
