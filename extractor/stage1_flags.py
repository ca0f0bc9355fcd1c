"""The flags both stage-1 doors share, and what they mean: which pictures, and which folder for their elements."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from iis.config import DoorParser, path, positive
from iis.datasets import UNNAMED, PictureSet, folder_pictures, is_synset, load_dataset
from iis.names import elements_folder
from iis.runtime import UserError

PROTOCOLS = ("paper", "release")


def stage1_parser(kind: str, description: str) -> DoorParser:
    """The flags of both doors; `kind` is segments or patches."""
    parser = DoorParser(description=description)
    parser.plans = True
    parser.add_argument("--config_yaml", help="a YAML file with any of these settings; the command line wins")
    parser.add_argument("--data_root", type=path, help="folder that holds one folder of pictures per class; left "
                        "out, the train pictures of --dataset")
    parser.add_argument("--dataset", help="name of the data set: a YAML of dataset_configs/; beside --data_root only "
                        "the name that is recorded (left out: imagenet where all folders are synsets, else unnamed)")
    parser.add_argument("--save_root", type=path, help=f"folder for the {kind}; left out, the data set's own below "
                        "concept_library/visual/")
    parser.add_argument("--image_per_class", type=positive, default=10, help="pictures per class: the first readable "
                        "ones by name")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="as the paper says, or as the "
                        "authors' published code does (README, fidelity)")
    parser.add_argument("--seed", type=int, default=0, help="seed of whatever is drawn at random")
    parser.add_argument("--format", choices=("jpeg", "png"), default="jpeg", help="of the saved pictures: jpeg is "
                        "quality 95 without chroma subsampling, png is exact")
    parser.add_argument("--workers", type=positive, default=available_cores(), help="processes; changes only the time")
    return parser


def pictures_of(data_root: Path | None, dataset: str | None) -> PictureSet:
    """The pictures the flags name. Raises `UserError` where they are not in place."""
    if data_root is not None:
        pictures = folder_pictures(data_root, dataset or UNNAMED, "train")
        if dataset is None and all(is_synset(name) for name in pictures.class_names):
            pictures.dataset = "imagenet"  # as the published commands leave unsaid
        return pictures
    if dataset is None:
        raise UserError("say which pictures: --data_root FOLDER (one folder per class) or --dataset NAME")
    return load_dataset(dataset).pictures("train")


def save_root_of(args: argparse.Namespace, pictures: PictureSet, kind: str) -> Path:
    """--save_root, or the data set's own folder. Raises `UserError` where the data set has no name."""
    if args.save_root is not None:
        return args.save_root
    if args.dataset is None:
        raise UserError(f"say where the {kind} go: --save_root FOLDER, or name the data set with --dataset")
    return elements_folder(pictures.dataset, kind, args.protocol)


def available_cores() -> int:
    """Cores this process may use: fewer than the machine's under a job scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
