"""Stage 3's inputs: find the embedding files, load them, and refuse what cannot give a meaningful number."""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from iis.datasets import UNNAMED, load_dataset, readable_class_names, same_classes
from iis.embedding_file import Embeddings, check_same_space, differing, load_embeddings
from iis.names import EMBEDDINGS, elements_file
from iis.runtime import UserError, nearest
from IP_training.streamed import Streamed, resident_or_streamed

# Train and val must be the same in everything but the split.
TRAIN_AND_VAL = ("model", "weights_hash", "node", "preprocessing", "precision", "dataset")


@dataclass(eq=False)
class Inputs:
    """Representations of train and val, and the visual elements (None where a bank needs none)."""

    train: Embeddings
    val: Embeddings
    elements: Embeddings | None
    class_labels: list[str]  # of the classes, for people
    feature_memory: float | None = None  # GiB that `resident` may take; None: half of what is free

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.train.class_names)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one run has one Inputs; on a GPU a second copy would be 10 GB
    def resident(self, device: torch.device) -> tuple[torch.Tensor | Streamed, torch.Tensor | Streamed]:
        """The representations of train (N, D) and val (V, D) on the device, as float32; all heads share them. Where
        they do not fit, both as `Streamed`."""
        return resident_or_streamed([self.train.features_ND, self.val.features_ND], device, self.feature_memory)


def load_inputs(args: argparse.Namespace, with_elements: bool = True) -> Inputs:
    """Load and check; every `UserError` comes before training starts."""
    where = args.feature_layer, getattr(args, "activation_dir", None)
    train_file = args.train_pt or representations_of(args.model_name, args.dataset, "train", *where)
    val_file = args.val_pt or representations_of(args.model_name, args.dataset, "val", *where)
    train, val = load_embeddings(train_file, args.train_labels), load_embeddings(val_file, args.val_labels)
    same_classes(train.class_names, val.class_names)
    difference = differing(train.provenance, val.provenance, TRAIN_AND_VAL)
    if difference:
        raise UserError(f"{train_file} and {val_file} differ in {difference}; embed both splits the same way")
    if train.width != val.width:
        raise UserError(f"train has D = {train.width} and val D = {val.width}; embed both with the same layer")
    if args.in_channels not in (None, train.width):
        raise UserError(f"--in_channels {args.in_channels}, but {train_file} holds D = {train.width}; leave it out")
    if args.num_classes not in (None, len(train.class_names)):
        raise UserError(f"--num_classes {args.num_classes}, but {train_file} has {len(train.class_names)} classes; "
                        "leave it out")
    for name, embeddings in (("train", train), ("val", val)):
        check_features(name, embeddings, Path(train_file if name == "train" else val_file))
    elements = _elements(args, train) if with_elements else None
    return Inputs(train, val, elements, readable_class_names(args.dataset, train.class_names),
                  getattr(args, "feature_memory", None))


def check_features(name: str, embeddings: Embeddings, file: Path, rows: int = 65536) -> None:
    """Raise `UserError` for NaN, infinite or constant features, or labels that name no class."""
    lowest = highest = None
    for start in range(0, len(embeddings), rows):
        block = embeddings.features_ND[start:start + rows].float()
        bad = ~torch.isfinite(block).all(dim=1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise UserError(f"{file}: the features of row {row} ({embeddings.image_paths[row]}) are not finite; "
                            "check the weights and the image, delete the file and embed again")
        low, high = block.amin(0), block.amax(0)
        lowest = low if lowest is None else torch.minimum(lowest, low)
        highest = high if highest is None else torch.maximum(highest, high)
    if lowest is None or torch.equal(lowest, highest):
        raise UserError(f"{file}: all {len(embeddings)} {name} features are the same; a constant representation has "
                        "nothing to interpret, check the weights and the layer")
    if int(embeddings.labels_N.min()) < 0 or int(embeddings.labels_N.max()) >= len(embeddings.class_names):
        raise UserError(f"{file}: labels run from {int(embeddings.labels_N.min())} to {int(embeddings.labels_N.max())} "
                        f"for {len(embeddings.class_names)} classes; labels count from 0")


def _elements(args: argparse.Namespace, train: Embeddings) -> Embeddings:
    file = args.concept_path or elements_file(args.model_name, args.dataset, args.element_kind, args.protocol)
    if not Path(file).is_file() and args.concept_path is None and args.protocol != "paper":
        raise UserError(f"there are no elements of the {args.protocol} protocol at {file}: run stages 1 and 2 with "
                        f"PROTOCOL={args.protocol}, or name other elements with --concept_path")
    elements = load_embeddings(file)
    check_features("element", elements, Path(file))
    check_same_space(elements, train, f"{file} and the training representations")
    difference = differing(elements.provenance, train.provenance, ("dataset",))
    if elements.provenance.get("dataset") == UNNAMED or args.other_dataset:
        difference = None  # images from a bare --data_root carry no name to compare
    if difference is None and not args.other_dataset and elements.class_names != train.class_names:
        if train.provenance:
            difference = "their classes"
    if difference:
        raise UserError(f"{file} comes from another data set than the images: they differ in {difference}; embed this "
                        "data set's elements, or allow it as a control with --other_dataset")
    return elements


def representations_of(model_name: str, dataset: str, split: str, feature_layer: str | None = None,
                       own: Path | None = None) -> Path:
    """Stage 2's file of a split. own: a folder to look in first, where the textual script of the Text bank wrote.

    Raises `UserError` where there is none, or several layers fit.
    """
    folder = EMBEDDINGS / model_name
    pattern = f"{dataset}_{split}_{model_name}_{feature_layer or '*'}.pt"
    found = (sorted(own.glob(pattern)) if own else []) or sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several layers fit: {', '.join(file.name for file in found)}; choose with --feature_layer")
    models = [entry.name for entry in EMBEDDINGS.glob("*") if entry.is_dir()]
    hint = nearest(model_name, models) if not folder.is_dir() else ""
    raise UserError(f"there are no {split} representations {folder / pattern}{hint}; run emb_extractor.sh with "
                    f"DATASET={dataset}, or name the file with --{split}_pt")


def concepts_wanted(args: argparse.Namespace) -> int:
    """M: --num_concepts, else that of the data set's YAML, else 200 (paper, section 4.1)."""
    if args.num_concepts is not None:
        return args.num_concepts
    try:
        return load_dataset(args.dataset).num_concepts
    except UserError:
        return 200
