"""Stage 3's inputs: find the embedding files, load them, and refuse what cannot give a meaningful number."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from iis.datasets import UNNAMED, load_dataset, readable_class_names, same_classes
from iis.embedding_file import Embeddings, check_same_space, differing, load_embeddings
from iis.names import EMBEDDINGS, elements_file
from iis.runtime import UserError, available_bytes, nearest
from IP_training.config import TrainingSettings

# Train and val must be the same in everything but the split.
TRAIN_AND_VAL = ("model", "weights_hash", "node", "preprocessing", "precision", "dataset")
GIB = 2**30


@dataclass
class Inputs:
    """Representations of train and val, and the visual elements (None where a bank needs none)."""

    train: Embeddings
    val: Embeddings
    elements: Embeddings | None
    class_labels: list[str]  # of the classes, for people
    feature_memory: float | None = None  # GiB that `resident` may take; None: half of what is free
    _resident: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.train.class_names)

    @property
    def chance(self) -> float:
        """Accuracy of always naming the largest class of validation."""
        counts = torch.bincount(self.val.labels_N, minlength=self.num_classes)
        return float(counts.max() / counts.sum())

    def resident(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The representations of train (N, D) and val (V, D): float32 on the device if they fit, else as they lie in
        their files, from which training reads a batch at a time. Made once; all heads share them."""
        if device not in self._resident:
            features = self.train.features_ND, self.val.features_ND
            needed = sum(4 * matrix.numel() for matrix in features)
            limit = available_bytes(device) / 2 if self.feature_memory is None else self.feature_memory * GIB
            if needed <= limit:
                features = tuple(matrix.to(device, torch.float32) for matrix in features)
            else:
                print(f"features: {needed / GIB:.1f} GiB as float32, more than {limit / GIB:.1f} GiB "
                      "(--feature_memory): they are read from their file batch by batch", flush=True)
            self._resident[device] = features
        return self._resident[device]


def load_inputs(settings: TrainingSettings, with_elements: bool = True) -> Inputs:
    """Load and check; every `UserError` comes before training starts. Fills --model_name, --dataset and a --batch_size
    that the recipe leaves open. A dry run ends here, with success, where its inputs are not there yet."""
    try:
        return _load(settings, with_elements)
    except UserError as error:
        if not settings.dry_run:
            raise
        print(f"dry run: stage 3 needs the files of stages 1 and 2 to say more ({error})")
        sys.exit(0)


def _load(settings: TrainingSettings, with_elements: bool) -> Inputs:
    bare = settings.train_labels is not None  # ours carry their labels
    for name, published in (("model_name", "resnet50"), ("dataset", "imagenet")):
        if getattr(settings, name) is None:
            if bare:
                raise UserError(f"bare matrices do not say what they are of: name it with --{name}, under which the "
                                "results are filed")
            setattr(settings, name, published)
    where = settings.model_name, settings.dataset
    own = settings.feature_layer, getattr(settings, "activation_dir", None)
    train_file = settings.train_pt or representations_of(*where, "train", *own)
    val_file = settings.val_pt or representations_of(*where, "val", *own)
    train, val = load_embeddings(train_file, settings.train_labels), load_embeddings(val_file, settings.val_labels)
    same_classes(train.class_names, val.class_names)
    difference = differing(train.provenance, val.provenance, TRAIN_AND_VAL)
    if difference:
        raise UserError(f"{train_file} and {val_file} differ in {difference}; embed both splits the same way")
    if train.width != val.width:
        raise UserError(f"train has D = {train.width} and val D = {val.width}; embed both with the same layer")
    for flag, holds, what in (("in_channels", train.width, f"D = {train.width}"),
                              ("num_classes", len(train.class_names), f"{len(train.class_names)} classes")):
        given = getattr(settings, flag)
        if given not in (None, holds):
            raise UserError(f"--{flag} {given}, but {train_file} has {what}; leave it out")
    check_features("train", train, train_file)
    check_features("val", val, val_file)
    elements = _elements(settings, train) if with_elements else None
    settings.fit_batches(len(train))
    return Inputs(train, val, elements, readable_class_names(settings.dataset, train.class_names),
                  settings.feature_memory)


def check_features(name: str, embeddings: Embeddings, file: Path, rows: int = 65536) -> None:
    """Raise `UserError` for NaN, infinite or constant features, or labels that name no class."""
    if not len(embeddings):
        raise UserError(f"{file} holds no images")
    lowest = highest = embeddings.features_ND[0].float()
    for start in range(0, len(embeddings), rows):
        block = embeddings.features_ND[start:start + rows].float()
        bad = ~torch.isfinite(block).all(dim=1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise UserError(f"{file}: the features of row {row} ({embeddings.image_paths[row]}) are not finite; "
                            "check the weights and the image, delete the file and embed again")
        lowest, highest = torch.minimum(lowest, block.amin(0)), torch.maximum(highest, block.amax(0))
    if torch.equal(lowest, highest):
        raise UserError(f"{file}: all {len(embeddings)} {name} features are the same; a constant representation has "
                        "nothing to interpret, check the weights and the layer")
    first, last = int(embeddings.labels_N.min()), int(embeddings.labels_N.max())
    if first < 0 or last >= len(embeddings.class_names):
        raise UserError(f"{file}: labels run from {first} to {last} for {len(embeddings.class_names)} classes; labels "
                        "count from 0")


def _elements(settings: TrainingSettings, train: Embeddings) -> Embeddings:
    where, protocol = (settings.model_name, settings.dataset, settings.element_kind), settings.protocol
    file = Path(settings.concept_path or elements_file(*where, protocol))
    if not file.is_file() and settings.concept_path is None and protocol != "paper":
        raise UserError(f"there are no elements of the {protocol} protocol at {file}: run stages 1 and 2 with "
                        f"PROTOCOL={protocol}, or name other elements with --concept_path")
    elements = load_embeddings(file)
    check_features("element", elements, file)
    check_same_space(elements, train, f"{file} and the training representations")
    if settings.other_dataset or elements.provenance.get("dataset") == UNNAMED:
        return elements  # images from a bare --data_root carry no name to compare
    difference = differing(elements.provenance, train.provenance, ("dataset",))
    if difference is None and train.provenance and elements.class_names != train.class_names:
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


def concepts_wanted(settings: TrainingSettings) -> int:
    """M: --num_concepts, else that of the data set's YAML, else 200 (paper, section 4.1)."""
    if settings.num_concepts is not None:
        return settings.num_concepts
    try:
        return load_dataset(settings.dataset).num_concepts
    except UserError:
        return 200
