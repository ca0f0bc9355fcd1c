"""Settings of every script that loads a backbone: which model, weights and preprocessing, and where files go."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from iis.cli import count, positive, setting
from iis.names import EMBEDDINGS
from iis.runtime import UserError, choose_device

if TYPE_CHECKING:  # --help should not wait for PyTorch
    import torch

    from iis.backbones import Backbone


@dataclass(kw_only=True)
class BackboneSettings:
    """Backbone: published flags, and ours."""

    config_yaml: str | None = setting(None, "a YAML of model_configs/ (a file or a name); the command line wins")
    model: str = setting(help="torchvision name, CIFAR ResNet (resnet20 … resnet110), timm:NAME, "
                         "path/to/file.py:function or package.module:function")
    weights: str | None = setting(None, "torchvision tag, none (random, under --seed), pretrained (timm) or a local "
                                  "checkpoint (default: IMAGENET1K_V1)")
    resume: str | None = setting(None, "a local checkpoint: the same as --weights PATH, and wins", metavar="PATH")
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda where there is one)")
    batch_size: int = setting(32, "images at a time", type=positive, also=("-b",))
    workers: int = setting(16, "processes, at most one per core: on a CPU they read and compute, beside a GPU read",
                           type=count, also=("-j",))
    interpolation: str | None = setting(None, "bilinear, bicubic … (default: the weights'; published: bilinear)")
    val_resize_size: int | None = setting(None, "pixels of the shorter side (default: the weights'; published: 256)",
                                          type=positive)
    val_crop_size: int | None = setting(None, "pixels of the central square (default: the weights'; published: 224)",
                                        type=positive)
    mean: tuple[float, ...] | None = setting(None, "red,green,blue, of images in [0, 1] (default: the weights')")
    std: tuple[float, ...] | None = setting(None, "red,green,blue (default: the weights')")
    backend: Literal["PIL"] = setting("PIL", "what resizes: the published accuracies rest on PIL", type=str.upper)
    world_size: int = setting(1, "taken from the launcher (torchrun)")
    dist_url: str = setting("env://", "taken from the launcher (torchrun)")
    seed: int = setting(0, "seed of random weights")
    precision: Literal["fp32", "tf32", "bf16"] = setting("fp32", "of the forward pass; features are saved as float32")
    tf32: bool = setting(False, "the same as --precision tf32: products and convolutions on CUDA in TF32")
    compile: bool = setting(False, "through torch.compile: a minute first, then faster on a GPU")
    published_top1: float | None = setting(None, "percent; what --check expects where the weights carry no figure")
    published_images: int | None = setting(None, "images behind that figure; on as many --check allows 0.1 point")

    def __post_init__(self) -> None:
        """Let --tf32 decide the precision."""
        if self.tf32 and self.precision == "bf16":
            raise UserError("--tf32 and --precision bf16 contradict each other: give one of them")
        self.precision = "tf32" if self.tf32 else self.precision


@dataclass(kw_only=True)
class EmbeddingSettings(BackboneSettings):
    """Images, layers and files. One YAML serves all scripts of stage 2."""

    dataset: str | None = setting(None, "a YAML of dataset_configs/, or a folder of datasets/")
    data_path: Path | None = setting(None, "stage 1's folder of elements, one folder per class")
    target_layer_name: str = setting("fc", "layer of the elements: fc, head, heads.head, classifier.2, layer4 … all "
                                     "mean the head's input; an earlier layer is pooled to N x D")
    feature_layer: str = setting("layer4", "layer of the data set's own images, as their file's name spells it")
    model_name: str | None = setting(None, "folder below --save_root (default: the model's name, with its weights "
                                     "where they are not the usual ones)")
    save_root: Path = setting(EMBEDDINGS, "where the embeddings go")


def backbone_of(settings: BackboneSettings) -> tuple[Backbone, torch.device]:
    """The backbone and its device. Raises `UserError` as `load_backbone` does."""
    from iis.backbones import load_backbone

    if (settings.world_size, settings.dist_url) != (1, "env://"):
        print("ranks: --world-size and --dist-url are accepted and not needed: the launcher decides "
              f"(torchrun --nproc-per-node N; here WORLD_SIZE is {os.environ.get('WORLD_SIZE', 1)})", file=sys.stderr)
    device = choose_device(settings.device)
    weights = os.path.join(".", settings.resume) if settings.resume else settings.weights  # a file, never a tag
    backbone = load_backbone(settings.model, weights, device, settings.seed, resize=settings.val_resize_size,
                             crop=settings.val_crop_size, interpolation=settings.interpolation, mean=settings.mean,
                             std=settings.std)
    if settings.published_top1 is not None:
        backbone.published_top1 = settings.published_top1
    return backbone, device


def backbone_to_plan(settings: BackboneSettings) -> tuple[Backbone, torch.device]:
    """The same for a dry run: where the weights are not there yet, random ones under their name."""
    try:
        return backbone_of(settings)
    except UserError as error:
        backbone, device = backbone_of(replace(settings, weights="none", resume=None))
        print(f"dry run: the weights are not there yet: {error}")
    named = settings.resume or settings.weights or backbone.default_weights or "none"
    backbone.weights, backbone.weights_hash = Path(named).name, None
    return backbone, device


def need_dataset(settings: EmbeddingSettings, why: str) -> str:
    """--dataset, or a `UserError` that says what needs it."""
    if settings.dataset is None:
        raise UserError(f"{why} needs --dataset NAME (a YAML of dataset_configs/ or a folder of datasets/)")
    return settings.dataset
