"""Check a backbone before hours are spent on it: its original head on the val images, against its published top-1.

    python extractor/check_backbone.py --config_yaml resnet20 --dataset cifar10

Catches wrong preprocessing, label order and weights. 10,000 images of 32 pixels take about half a minute on two
cores with ResNet-20 (91.73 %); the 50,000 of ImageNet take minutes on a GPU. Exit status 0 when the two agree. The
figure is kept beside the backbone's embeddings, in embs/MODEL/own_head_DATASET.json, agree or not.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, run_script, tell
from iis.names import own_head_file
from iis.runtime import UserError, write_json


def tolerance(published: float, count: int) -> float:
    """How far top-1 may lie from the published, in points: 3 standard errors over `count` images, at least 0.3."""
    share = min(max(published / 100, 0), 1)
    return max(0.3, 300 * (share * (1 - share) / count) ** 0.5)


def check(args: argparse.Namespace) -> float:
    """Print the original head's top-1 in percent, and return it.

    Raises `UserError` where it is off the published one by more than `tolerance`, or the head has other classes.
    """
    import torch

    from extractor.backbone_flags import backbone_of, need_dataset
    from extractor.batches import batches, precise
    from extractor.jobs import folder_name
    from iis.datasets import load_dataset
    from iis.preprocessing import normalise

    images = load_dataset(need_dataset(args, "--check")).images("val")
    backbone, device = backbone_of(args)
    if backbone.num_classes != len(images.class_names):
        raise UserError(f"the head of {backbone.model} ({backbone.weights}) knows {backbone.num_classes} classes and "
                        f"{images.dataset} has {len(images.class_names)}: its original head cannot be checked there; "
                        "use the data set the weights were trained on")
    if "dry_run" in args:
        tell("check of a backbone", {"pictures": f"{len(images):,} of {images.dataset} val, through "
                                                 f"{backbone.model} ({backbone.weights}) on {device}"})
        return float("nan")
    rows = [range(start, min(start + args.batch_size, len(images)))
            for start in range(0, len(images), args.batch_size)]
    right = count = unreadable = 0
    with torch.inference_mode(), precise(device, args.precision):
        for batch in batches(images, backbone.preprocessing, rows, args.workers, device):
            unreadable += len(batch.unreadable)
            if batch.rows:
                chosen = backbone.module(normalise(batch.images, backbone.preprocessing)).argmax(1).tolist()  # (B,)
                right += sum(images.labels[row] == label for row, label in zip(batch.rows, chosen, strict=True))
                count += len(batch.rows)
    if not count:
        raise UserError(f"none of the {len(images)} val images of {images.dataset} could be read")
    top1 = 100 * right / count
    folder = folder_name(args.model, backbone, args.precision, args.model_name)
    write_json(own_head_file(folder, images.dataset, args.save_root), {
        "model": folder, "weights": backbone.weights, "weights_hash": backbone.weights_hash,
        "dataset": images.dataset, "precision": args.precision, "top1": top1, "pictures": count,
        "published_top1": backbone.published_top1})
    skipped = f" ({unreadable} unreadable left out)" if unreadable else ""
    print(f"{backbone.model} ({backbone.weights}) on {images.dataset} val: original head {top1:.2f} % top-1 of "
          f"{count:,} images{skipped}")
    if backbone.published_top1 is None:
        print("no published top-1 is known for these weights (--published_top1 PERCENT): nothing to compare with")
        return top1
    allowed = tolerance(backbone.published_top1, count)
    off = abs(top1 - backbone.published_top1)
    print(f"published {backbone.published_top1:.2f} %, tolerance {allowed:.2f} points: off by {off:.2f}", flush=True)
    if off > allowed:
        raise UserError(f"the original head gives {top1:.2f} % where {backbone.published_top1:.2f} % is published: "
                        "preprocessing, the order of the class folders or the checkpoint is not what the weights "
                        "were made with")
    return top1


def parser() -> ScriptParser:
    """The flags, and so the YAML files, of the visual script."""
    from extractor.visual_element_emb_extractor import parser as visual_script

    flags = visual_script()
    flags.description = __doc__.splitlines()[0]
    return flags


def main(args: argparse.Namespace | None = None) -> None:
    """Check the backbone the flags name."""
    check(args or parser().settings())


if __name__ == "__main__":
    run_script(main)
