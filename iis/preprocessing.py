"""Preprocessing belongs to the weights: one dictionary {resize, crop, interpolation, mean, std} says all of it.

An image is resized and cropped with PIL where it is read, travels as uint8 (a quarter of the bytes of floats),
and becomes a normalised float on the device.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from iis.runtime import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def preprocessing(resize: int | list[int] = 256, crop: int = 224, interpolation: str = "bilinear",
                  mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> dict[str, Any]:
    """resize: pixels of the shorter side, or [height, width]; crop: side of the central square, pixels;
    mean, std: of images in [0, 1]. Only plain lists and numbers, so that files and JSON keep it as it is."""
    return {"resize": resize, "crop": crop, "interpolation": interpolation,
            "mean": [float(value) for value in mean], "std": [float(value) for value in std]}


def from_torchvision(transforms: Any) -> dict[str, Any]:
    """The dictionary for the `ImageClassification` preset that torchvision keeps with each weight."""
    sizes = list(transforms.resize_size)
    return preprocessing(sizes[0] if len(sizes) == 1 else sizes, transforms.crop_size[0],
                         transforms.interpolation.value, transforms.mean, transforms.std)


def from_timm(config: dict[str, Any]) -> dict[str, Any]:
    """The dictionary for what `timm.data.resolve_data_config` gives: timm divides the crop by `crop_pct`."""
    crop, mode = config["input_size"][-1], config.get("crop_mode", "center")
    resize = int(crop / config["crop_pct"])
    if mode == "border":
        print("preprocessing: timm pads these images to a square; the suite takes the central crop instead",
              file=sys.stderr)
    interpolation = config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bicubic"
    return preprocessing([resize, resize] if mode == "squash" else resize, crop, interpolation,
                         config["mean"], config["std"])


def override(belongs: dict[str, Any], weights: str | None, **given: Any) -> dict[str, Any]:
    """`belongs` with what is given and not None; a difference from what named `weights` expect is printed to stderr.

    Raises `UserError` for sizes or numbers that make no sense.
    """
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()
             if value is not None}
    if unknown := set(given) - set(belongs):
        raise UserError(f"preprocessing has no {', '.join(sorted(unknown))}: it has {', '.join(belongs)}")
    changed = [f"{key} {value} instead of {belongs[key]}" for key, value in given.items() if value != belongs[key]]
    if changed and weights:
        print(f"preprocessing: {', '.join(changed)} (the weights {weights} were made for the latter)", file=sys.stderr)
    result = {**belongs, **given}
    shorter = min(result["resize"]) if isinstance(result["resize"], list) else result["resize"]
    if not 1 <= result["crop"] <= shorter:
        raise UserError(f"images resized to {shorter} pixels cannot be cropped to {result['crop']}: "
                        "choose --val-crop-size between 1 and --val-resize-size")
    if result["interpolation"] not in INTERPOLATIONS:
        raise UserError(f"--interpolation {result['interpolation']} is not one of {', '.join(INTERPOLATIONS)}")
    if len(result["mean"]) != 3 or len(result["std"]) != 3 or min(result["std"]) <= 0:
        raise UserError("mean and std need three numbers each, for red, green and blue, std above 0")
    return result


def to_uint8(image: Image.Image, settings: dict[str, Any]) -> torch.Tensor:
    """PIL RGB image -> uint8 (3, crop, crop), resized and cropped exactly as torchvision's presets do."""
    size = settings["resize"] if isinstance(settings["resize"], list) else [settings["resize"]]
    image = F.resize(image, size, interpolation=InterpolationMode(settings["interpolation"]))
    return F.pil_to_tensor(F.center_crop(image, [settings["crop"]] * 2))


def normalise(images: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float (B, 3, H, W) on the same device: ÷ 255, − mean, ÷ std."""
    mean, std = (torch.tensor(settings[key], device=images.device).view(3, 1, 1) for key in ("mean", "std"))
    return images.float().div_(255).sub_(mean).div_(std)
