"""Where files go. The published names serve the published case; all else carries what distinguishes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from iis.runtime import ROOT

EMBEDDINGS = ROOT / "extractor" / "embs"
VISUAL = ROOT / "concept_library" / "visual"
HEAD_INPUT = "head_input"  # the layer that every model has
CLIP_FILES = (".json", ".pt", ".pth", ".bin", ".safetensors")


def slug(text: str) -> str:
    """A file-system name: letters, digits, `.`, `_` and `-` alone (`ViT-B/16` is `ViT-B16`)."""
    text = str(text).replace("/", "").replace(":", "_")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def model_label(model: str, weights: str, published_weights: str | None = None) -> str:
    """The folder of a backbone below `embs/`: `resnet50` for the published weights, else `MODEL__WEIGHTS`."""
    model = slug(Path(model).name if ".py:" in model else model).replace(".py_", "_")
    if weights == published_weights:
        return model
    return f"{model}__{slug(Path(weights).stem if '/' in weights else weights)}"


def layer_label(model: str, layer: str | None) -> str:
    """The folder of one layer of several: `MODEL__LAYER`; `MODEL` itself for the head's input, and without a layer."""
    return model if layer in (None, HEAD_INPUT) else f"{model}__{slug(layer)}"


def elements_folder(dataset: str, kind: str, protocol: str = "paper", root: Path = VISUAL) -> Path:
    """Stage 1's output: `visual/segments` for ImageNet, else `visual/DATASET/segments`; `_release` is added."""
    name = kind if protocol == "paper" else f"{kind}_{protocol}"
    return root / name if dataset == "imagenet" else root / dataset / name


def elements_file(model: str, dataset: str, kind: str, protocol: str = "paper", root: Path = EMBEDDINGS) -> Path:
    """Stage 2's element embeddings: `visual_element_emb.pkl` for ImageNet segments, else with a prefix."""
    if dataset != "imagenet":
        parts = [dataset, kind]
    else:
        parts = [kind] if kind != "segments" else []
    parts += [protocol] if protocol != "paper" else []
    return root / model / "_".join([*parts, "visual_element_emb.pkl"])


def representations_file(model: str, dataset: str, split: str, layer: str, root: Path = EMBEDDINGS) -> Path:
    """Stage 2's data-set representations: `DATASET_{train,val}_MODEL_LAYER.pt`."""
    return root / model / f"{dataset}_{split}_{model}_{slug(layer)}.pt"


def own_head_file(model: str, dataset: str, root: Path = EMBEDDINGS) -> Path:
    """What check_backbone.py measured: `own_head_DATASET.json`."""
    return root / model / f"own_head_{slug(dataset)}.json"


def clip_label(clip_name: str, clip_weights: str | None = None) -> str:
    """What CLIP's files are called: `ViT-B16` for `ViT-B/16`, `ViT-B-32_laion2b_e16` for weights but OpenAI's.

    A file (`demo/weights/tiny_clip.json`) gives its stem, and weights in a file theirs, unless it is the model's own
    (OpenAI's is ViT-B-16.pt).
    """
    weights = clip_weights or ""
    is_file = Path(clip_name).suffix in CLIP_FILES
    label = slug(Path(clip_name).stem if is_file else clip_name.removesuffix(":openai"))
    if Path(weights).suffix not in CLIP_FILES:  # a tag
        return label if weights in ("", "openai") else f"{label}_{slug(weights)}"
    stem = Path(weights).stem
    return label if stem in (label, clip_name.replace("/", "-")) else f"{label}__{slug(stem)}"


def clip_images_file(folder: Path, dataset: str, split: str, label: str) -> Path:
    """CLIP's embeddings of a data set's images: `DATASET_{train,val}_clip_ViT-B16.pt`."""
    return folder / f"{dataset}_{split}_clip_{label}.pt"


def clip_words_file(folder: Path, concept_set: Path, label: str) -> Path:
    """CLIP's embeddings of a concept list: `CONCEPTSET_ViT-B16.pt`, after the list's own name."""
    return folder / f"{slug(Path(concept_set).stem)}_{label}.pt"


def words_hash(concepts: Sequence[str]) -> str:
    """What tells a list of words from an edited one."""
    return hashlib.blake2b("\n".join(concepts).encode(), digest_size=16).hexdigest()


def shared_words_file(folder: Path, concept_set: Path, label: str, concepts: Sequence[str]) -> Path:
    """The same file in the folder that all models share, where it carries a hash of the words."""
    file = clip_words_file(folder, concept_set, label)
    return file.with_name(f"{file.stem}_{words_hash(concepts)[:8]}.pt")
