"""The flags both stage-1 scripts share, and what they mean: which images, and which folder for their elements."""

from __future__ import annotations

import argparse
from pathlib import Path

from iis.cli import ScriptParser, path, positive
from iis.datasets import UNNAMED, ImageSet, folder_images, is_synset, load_dataset
from iis.names import elements_folder
from iis.runtime import UserError, available_cores

PROTOCOLS = ("paper", "release")


def stage1_parser(kind: str, description: str) -> ScriptParser:
    """The flags of both scripts; `kind` is segments or patches."""
    parser = ScriptParser(description=description)
    parser.plans = True
    parser.add_argument("--config_yaml", help="a YAML file with any of these settings; the command line wins")
    parser.add_argument("--data_root", type=path, help="folder that holds one folder of images per class; left "
                        "out, the train images of --dataset")
    parser.add_argument("--dataset", help="name of the data set: a YAML of dataset_configs/; beside --data_root only "
                        "the name that is recorded (left out: imagenet where all folders are synsets, else unnamed)")
    parser.add_argument("--save_root", type=path, help=f"folder for the {kind}; left out, the data set's own below "
                        "concept_library/visual/")
    parser.add_argument("--image_per_class", type=positive, default=10, help="images per class: the first readable "
                        "ones by name")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="as the paper says, or as the "
                        "authors' published code does (README, fidelity)")
    parser.add_argument("--seed", type=int, default=0, help="seed of whatever is drawn at random")
    parser.add_argument("--format", choices=("jpeg", "png"), default="jpeg", help="of the saved images: jpeg is "
                        "quality 95 without chroma subsampling, png is exact")
    parser.add_argument("--workers", type=positive, default=available_cores(), help="processes; changes only the time")
    return parser


def images_of(data_root: Path | None, dataset: str | None) -> ImageSet:
    """The images the flags name. Raises `UserError` where they are not in place."""
    if data_root is not None:
        images = folder_images(data_root, dataset or UNNAMED, "train")
        if dataset is None and all(is_synset(name) for name in images.class_names):
            images.dataset = "imagenet"  # as the published commands leave unsaid
        return images
    if dataset is None:
        raise UserError("say which images: --data_root FOLDER (one folder per class) or --dataset NAME")
    return load_dataset(dataset).images("train")


def save_root_of(args: argparse.Namespace, images: ImageSet, kind: str) -> Path:
    """--save_root, or the data set's own folder. Raises `UserError` where the data set has no name."""
    if args.save_root is not None:
        return args.save_root
    if args.dataset is None:
        raise UserError(f"say where the {kind} go: --save_root FOLDER, or name the data set with --dataset")
    return elements_folder(images.dataset, kind, args.protocol)
