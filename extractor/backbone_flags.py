"""The flags that say which backbone, with which weights and preprocessing, runs where; and the backbone they name."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from iis.cli import ScriptParser, count, numbers, path, positive
from iis.names import EMBEDDINGS
from iis.runtime import UserError, choose_device

if TYPE_CHECKING:  # --help should not wait for PyTorch
    import torch

    from iis.backbones import Backbone

ONE_MACHINE = {"world_size": 1, "dist_url": "env://"}


def backbone_parser(description: str) -> ScriptParser:
    """A parser with the published flags of the visual script that name a backbone, and ours."""
    parser = ScriptParser(description=description)
    parser.plans = True
    parser.add_argument("--config_yaml", help="a YAML of model_configs/ (a file or a name); the command line wins")
    parser.add_argument("--model", required=True, help="torchvision name, CIFAR ResNet (resnet20 … resnet110), "
                        "timm:NAME, path/to/file.py:function or package.module:function")
    parser.add_argument("--weights", help="torchvision tag, none (random, under --seed), pretrained (timm) or a local "
                        "checkpoint; left out, IMAGENET1K_V1")
    parser.add_argument("--resume", metavar="PATH", help="a local checkpoint: the same as --weights PATH, and wins")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; left out, cuda where there is one")
    parser.add_argument("-b", "--batch_size", type=positive, default=32, help="images at a time")
    parser.add_argument("-j", "--workers", type=count, default=16, help="processes that read images, one per core "
                        "at most; 0 reads in the main process")
    parser.add_argument("--interpolation", help="of resizing: bilinear, bicubic …; left out, the weights' own "
                        "(published: bilinear)")
    parser.add_argument("--val_resize_size", type=positive, help="pixels of the shorter side; left out, the weights' "
                        "own (published: 256)")
    parser.add_argument("--val_crop_size", type=positive, help="pixels of the central square; left out, the weights' "
                        "own (published: 224)")
    parser.add_argument("--mean", type=numbers, help="red,green,blue mean of images in [0, 1]; left out, the "
                        "weights' own")
    parser.add_argument("--std", type=numbers, help="red,green,blue standard deviation; left out, the weights' own")
    parser.add_argument("--backend", type=str.upper, choices=["PIL"], default="PIL", help="what resizes: PIL, so that "
                        "features are those of the published accuracies")
    parser.add_argument("--world_size", type=int, default=1, help="taken from the launcher (torchrun)")
    parser.add_argument("--dist_url", default="env://", help="taken from the launcher (torchrun)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random weights")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the forward pass; features "
                        "are saved as float32")
    parser.add_argument("--decoder", choices=["pil", "gpu"], default="pil", help="gpu: JPEG files are decoded and "
                        "resized on --device (cpu too); pixels differ from PIL's by a level or so, so these files are "
                        "kept apart")
    parser.add_argument("--compile", action="store_true", help="through torch.compile, for the one batch size: a "
                        "minute or so first, then faster on a GPU")
    parser.add_argument("--published_top1", type=float, help="percent; what --check expects where the weights do not "
                        "say")
    parser.add_argument("--dataset", help="a data set: a YAML of dataset_configs/, or a folder of datasets/")
    return parser


def output_flags(parser: ScriptParser) -> None:
    """Add the flags that say at which layer a data set's own images are taken, and where embeddings go."""
    parser.add_argument("--feature_layer", default="layer4", help="layer of the data set's own images, as it stands "
                        "in their file's name")
    parser.add_argument("--model_name", help="folder below --save_root; left out, the model's name, with its weights "
                        "where they are not the usual ones")
    parser.add_argument("--save_root", type=path, default=EMBEDDINGS, help="where the embeddings go")


def backbone_of(args: argparse.Namespace) -> tuple[Backbone, torch.device]:
    """The backbone and device the flags name. Raises `UserError` as `load_backbone` does."""
    from iis.backbones import load_backbone

    if any(getattr(args, name) != value for name, value in ONE_MACHINE.items()):
        print("ranks: --world-size and --dist-url are accepted and not needed: the launcher decides "
              f"(torchrun --nproc-per-node N; here WORLD_SIZE is {os.environ.get('WORLD_SIZE', 1)})", file=sys.stderr)
    device = choose_device(args.device)
    weights = os.path.join(".", args.resume) if args.resume else args.weights  # always a file, never a tag
    backbone = load_backbone(args.model, weights, device, args.seed, resize=args.val_resize_size,
                             crop=args.val_crop_size, interpolation=args.interpolation, mean=args.mean, std=args.std)
    if args.decoder != "pil":  # part of what decides the pixels, so provenance compares it
        backbone.preprocessing = {**backbone.preprocessing, "decoder": args.decoder}
    if args.published_top1 is not None:
        backbone.published_top1 = args.published_top1
    return backbone, device


def need_dataset(args: argparse.Namespace, why: str) -> str:
    """--dataset, or a `UserError` that says what it is needed for."""
    if args.dataset is None:
        raise UserError(f"{why} needs --dataset NAME (a YAML of dataset_configs/ or a folder of datasets/)")
    return args.dataset
