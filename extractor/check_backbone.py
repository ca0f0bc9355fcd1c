"""Check a backbone before hours are spent on it: its original head on the val images, against its published top-1.

    python extractor/check_backbone.py --config_yaml resnet20 --dataset cifar10

Catches wrong preprocessing, label order and weights. 10,000 images of 32 pixels take about half a minute on two
cores with ResNet-20 (91.73 %); the 50,000 of ImageNet take minutes on a GPU. Below the published figure the exit
status is 2, and a table shows which other preprocessing or label order raises it. The figure is kept in any case,
beside the backbone's embeddings: embs/MODEL/own_head_DATASET.json.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extractor.settings import backbone_of, need_dataset
from extractor.visual_element_emb_extractor import Settings
from iis.cli import run_script
from iis.names import own_head_file
from iis.runtime import UserError, progress, write_json

TRIED = 2000  # images for each alternative
IMAGENET_VAL = 50_000  # images behind the figures of torchvision's weights
CHANNELS = (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3),
            ((0.0,) * 3, (1.0,) * 3), ((0.0,) * 3, (1 / 255,) * 3))  # ImageNet's; [-1, 1]; [0, 1]; [0, 255]


def main(settings: Settings) -> float:
    """Print the original head's top-1 in percent, and return it.

    Raises `UserError` where it lies below the published one by more than `tolerance`, or the head has other classes.
    """
    import torch

    from extractor.embed import folder_name
    from iis.datasets import classes_of_head, load_dataset

    images = load_dataset(need_dataset(settings, "--check")).images("val")
    backbone, device = backbone_of(settings)
    outputs = classes_of_head(images.class_names, backbone.num_classes)
    if outputs is None:
        raise UserError(f"the head of {backbone.model} ({backbone.weights}) has {backbone.num_classes} classes and "
                        f"{images.dataset} has {len(images.class_names)}: its original head cannot be checked there; "
                        "use the data set the weights were trained on")
    labels_N = torch.tensor(outputs)[images.labels]
    (found_N,) = predictions(images, backbone, [backbone.preprocessing], settings, device)
    count = int((found_N >= 0).sum())
    if not count:
        raise UserError(f"none of the {len(images)} val images of {images.dataset} could be read")
    top1, published = accuracy(found_N, labels_N), backbone.published_top1
    folder = folder_name(settings.model, backbone, settings.precision, settings.model_name)
    write_json(own_head_file(folder, images.dataset, settings.save_root), {
        "model": folder, "weights": backbone.weights, "weights_hash": backbone.weights_hash,
        "dataset": images.dataset, "precision": settings.precision, "top1": top1, "pictures": count,
        "published_top1": published})
    skipped = f" ({len(images) - count} unreadable left out)" if count < len(images) else ""
    print(f"{backbone.model} ({backbone.weights}) on {images.dataset} val: original head {top1:.2f} % top-1 of "
          f"{count:,} images{skipped}")
    if published is None:
        print("no published top-1 is known for these weights (--published_top1 PERCENT): nothing to compare with")
        return top1
    of_imagenet = settings.published_top1 is None and images.dataset == "imagenet"
    same_images = count == (IMAGENET_VAL if of_imagenet else settings.published_images)
    allowed, off = tolerance(published, count, same_images), top1 - published
    print(f"published {published:.2f} %, tolerance {allowed:.2f} points: off by {abs(off):.2f}", flush=True)
    if off > allowed:
        print(f"above the published figure by {off:.2f} points, which no preprocessing explains: these images are "
              "easier (the weights' training images?), or the figure belongs to other weights")
    if off < -allowed:
        raise UserError(f"the original head gives {top1:.2f} % where {published:.2f} % is published: "
                        + _diagnosis(images, backbone, found_N, labels_N, settings, device))
    return top1


def tolerance(published: float, count: int, same_images: bool = False) -> float:
    """How far top-1 may lie from the published, in points: 0.1 on the same images, else 3 standard errors over
    `count` images, at least 0.3."""
    share = min(max(published / 100, 0), 1)
    return 0.1 if same_images else max(0.3, 300 * (share * (1 - share) / count) ** 0.5)


def accuracy(found_N: Any, labels_N: Any) -> float:
    """Percent of the readable images (predictions of 0 or more)."""
    return 100 * float((found_N == labels_N)[found_N >= 0].double().mean())


def predictions(images: Any, backbone: Any, prepared: list[dict], settings: Settings, device: Any) -> Any:
    """Predicted classes (A, N) int64 under each of A preprocessings, every image decoded once; -1 where the image is
    unreadable. An alternative (A > 0) whose image size the model does not take stays at -1."""
    import torch

    from extractor.batches import chunks_of, over_chunks, precise
    from extractor.fast_forward import cpu_bytes, in_slices
    from iis.preprocessing import normalise

    chunks, found_AN = chunks_of(len(images), settings.batch_size, device), torch.full((len(prepared), len(images)), -1)

    def compute(place: int, stream: Any) -> Any:
        rows = range(chunks[place][0].start, chunks[place][-1].stop)
        found_An = torch.full((len(prepared), len(rows)), -1)
        with torch.inference_mode(), precise(device, settings.precision):
            for batch in stream:
                for one, pixels in enumerate(batch.pixels):
                    try:
                        logits_BC = in_slices(lambda some, one=one: [backbone.module(normalise(some, prepared[one]))],
                                              pixels)[0]
                    except (RuntimeError, AssertionError):
                        if one == 0:
                            raise
                        continue
                    found_An[one, [row - rows.start for row in batch.rows]] = logits_BC.argmax(1).cpu()
        return rows, found_An

    with progress(total=sum(map(len, chunks)), desc="original head", unit="batch") as bar:
        for _, (rows, found_An) in over_chunks(images, prepared, chunks, compute, settings.workers, device, bar,
                                               cpu_bytes(prepared, settings.batch_size)):
            found_AN[:, rows.start:rows.stop] = found_An
    return found_AN


def alternatives(usual: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{flags: preprocessing}: one usual change of `usual` at a time."""
    crop = usual["crop"]
    side = usual["resize"] if isinstance(usual["resize"], int) else min(usual["resize"])
    changes = [("--val_resize_size", "resize", crop), ("--val_resize_size", "resize", crop * 8 // 7),  # 256 for 224
               ("--val_crop_size", "crop", side), ("--val_crop_size", "crop", crop * 7 // 8),
               ("--interpolation", "interpolation", "bilinear"), ("--interpolation", "interpolation", "bicubic")]
    found = {f"{flag} {value}": {**usual, key: value} for flag, key, value in changes}
    for mean, std in CHANNELS:
        flags = " ".join(f"{flag} {','.join(f'{value:g}' for value in values)}"
                         for flag, values in (("--mean", mean), ("--std", std)))
        found[flags] = {**usual, "mean": list(mean), "std": list(std)}
    return {flags: changed for flags, changed in found.items() if changed != usual}


def matched(found_N: Any, labels_N: Any) -> float:
    """Top-1 in percent if each predicted class stood for another true class: the best matching of one half of the
    images, measured on the other half, both ways."""
    import torch
    from scipy.optimize import linear_sum_assignment

    readable = found_N >= 0
    order = labels_N[readable].argsort(stable=True)  # class by class, so that every second image has all classes
    found_N, labels_N = found_N[readable][order], labels_N[readable][order]
    classes, renamed_N = int(max(found_N.max(), labels_N.max())) + 1, found_N.clone()
    for half in (0, 1):
        pairs = torch.bincount(found_N[half::2] * classes + labels_N[half::2], minlength=classes ** 2)
        renamed = torch.from_numpy(linear_sum_assignment(pairs.view(classes, classes).numpy(), maximize=True)[1])
        renamed_N[1 - half::2] = renamed[found_N[1 - half::2]]
    return accuracy(renamed_N, labels_N)


def _diagnosis(images: Any, backbone: Any, found_N: Any, labels_N: Any, settings: Settings, device: Any) -> str:
    """Try the alternatives on some of the images, print the table, and name what raises the figure."""
    rows = list(range(0, len(images), max(1, len(images) // TRIED)))
    tried = {"as configured": backbone.preprocessing, **alternatives(backbone.preprocessing)}
    found_AN = predictions(images.only(rows), backbone, list(tried.values()), settings, device)
    labels_n = labels_N[rows]
    right_AN = found_AN == labels_n
    print(f"top-1 of {len(rows):,} of these images, one setting changed at a time:")
    raising = []
    for name, found_n, right_n in zip(tried, found_AN, right_AN, strict=True):
        if (found_n < 0).all():
            print(f"  {'-':>7}    {name} (the model takes no such images)")
            continue
        top1 = accuracy(found_n, labels_n)
        print(f"  {top1:7.2f} %  {name}")
        gained, lost = int((right_n & ~right_AN[0]).sum()), int((~right_n & right_AN[0]).sum())
        if gained - lost > 3 * (gained + lost) ** 0.5:  # 3 standard errors of the difference
            raising.append((top1, name))
    order = matched(found_N, labels_N)
    print(f"  {order:7.2f} %  another label order (classes matched on half of all images, measured on the other)")
    if order > accuracy(found_N, labels_N) + tolerance(order, len(found_N)):
        raising.append((order, "another order of the class folders, as the weights number their classes"))
    if not raising:
        return ("none of the usual alternatives above raises it, so the checkpoint, or the images, are not the "
                "published ones")
    top1, name = max(raising)
    return f"{name} raises it to {top1:.2f} %"


if __name__ == "__main__":
    run_script(main, Settings)
