"""What stage 2 makes, decided before anything is computed: which images, at which node, into which file.

The visual and the textual script plan through here, so that whichever runs second finds the first one's files done.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from extractor.embed import embed, is_done
from extractor.targets import Target
from iis.backbones import Backbone
from iis.datasets import UNNAMED, ImageSet
from iis.layers import HEAD_INPUT, Node, resolve
from iis.names import elements_file, model_label, representations_file, slug
from iis.runtime import make_output_folder


@dataclass
class Job:
    """One embedding file to make; see `embed` for the fields."""

    images: ImageSet
    node: Node
    file: Path
    provenance: dict[str, Any]
    record: dict[str, Any]

    def target(self, backbone: Backbone, compiled: int = 0) -> Target:
        """The same for `embed_together`; compiled: the batch size to compile for, or 0."""
        return Target(backbone, self.node, self.file, self.provenance, self.provenance["precision"], self.record,
                      compiled)

    def run(self, backbone: Backbone, batch_size: int, workers: int, device: torch.device) -> Path:
        """Make the file, or find it done."""
        return embed(self.images, backbone, self.node, self.file, self.provenance, batch_size, workers, device,
                     self.provenance["precision"], self.record)


def folder_name(model: str, backbone: Backbone, precision: str = "fp32", chosen: str | None = None) -> str:
    """The folder of a backbone below `embs/`: `chosen`, or the model with its weights where they are not the usual
    ones; precision and decoder are added where they are not fp32 and PIL."""
    name = chosen or model_label(model, backbone.weights, backbone.default_weights)
    decoder = backbone.preprocessing.get("decoder", "pil")
    return name + f"__{precision}" * (precision != "fp32") + f"__{decoder}-decoded" * (decoder != "pil")


def plan(images: ImageSet, backbone: Backbone, layer: str, folder: str, root: Path, precision: str = "fp32",
         elements: dict[str, Any] | None = None, place: Path | None = None, write: bool = True) -> Job:
    """The job for these images: a data set's own, or, with stage 1's settings as `elements`, visual elements.

    place: a folder for the file, instead of `folder` below `root`. write: False where nothing may be made.
    Raises `UserError` for an unknown layer, a folder that cannot be written to, and a file made otherwise.
    """
    node = resolve(backbone.module, backbone.head, layer, backbone.preprocessing["crop"])
    if elements is None:
        file = representations_file(folder, images.dataset, images.split, layer, root)
    else:  # an unnamed data set is the published one
        dataset = "imagenet" if images.dataset == UNNAMED else images.dataset
        file = elements_file(folder, dataset, elements["kind"], elements.get("protocol", "paper"), root)
        if node.name != HEAD_INPUT:
            file = file.with_name(f"{slug(node.name)}_{file.name}")
    provenance = {"model": backbone.model, "weights": backbone.weights, "weights_hash": backbone.weights_hash,
                  "node": node.name, "preprocessing": backbone.preprocessing, "precision": precision,
                  "dataset": images.dataset, "split": images.split, "elements": elements}
    if place is not None:
        file = place / file.name
    if write:
        make_output_folder(file.parent)
    is_done(images, file, provenance)
    return Job(images, node, file, provenance, {"layer": layer})
