"""--decoder gpu: JPEG files are decoded, resized and cropped on the device; workers only read them.

The device's resampler works on the decoded tensor: pixels differ from PIL's by a level or so (on the CPU, with the
same resize and crop: see tests/test_device_decoding.py), so this is a preprocessing of its own, and provenance keeps
its files apart. What is not a plain JPEG file (CMYK, damaged, another format) is decoded by PIL, and then resized like
the rest. Nothing is turned by its EXIF tag, as with PIL.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from iis.datasets import ImageSet, UnreadableImage
from iis.runtime import UserError

RESAMPLERS = ("nearest", "bilinear", "bicubic")  # what tensors can be resized by
END = b"\xff\xd9"  # of a JPEG file that is whole


def check_resampler(settings: dict[str, Any]) -> None:
    """Raise `UserError` where tensors cannot be resized as `settings` ask."""
    if settings["interpolation"] not in RESAMPLERS:
        raise UserError(f"--decoder gpu cannot resize by {settings['interpolation']}: leave it out, or choose "
                        f"--interpolation {', '.join(RESAMPLERS)}")


def read_encoded(images: ImageSet, row: int) -> torch.Tensor:
    """A plain JPEG file's bytes (n,), else the pixels (3, H, W) that PIL gives; uint8 either way.

    Raises `UnreadableImage` where PIL cannot decode it.
    """
    file = images.file(row)
    if file is not None:
        try:
            encoded = file.read_bytes()
            with Image.open(io.BytesIO(encoded)) as header:
                plain = header.format == "JPEG" and header.mode in ("RGB", "L")
            if plain and encoded.rstrip(b"\0").endswith(END):
                return torch.frombuffer(bytearray(encoded), dtype=torch.uint8)  # (n,)
        except Exception:  # PIL says below what is wrong with it
            pass
    return F.pil_to_tensor(images.open(row))  # (3, H, W)


def decode_jpeg(files: list[torch.Tensor] | torch.Tensor, device: torch.device) -> list[torch.Tensor] | torch.Tensor:
    """torchvision's: bytes (n,), or a list of them -> RGB (3, H, W), or a list. Raises RuntimeError."""
    try:  # torchvision 0.29 calls it deprecated
        from torchvision.io import ImageReadMode
        from torchvision.io import decode_jpeg as decode
    except ImportError:
        raise UserError("--decoder gpu needs torchvision.io.decode_jpeg, which this torchvision has not; leave it "
                        "out") from None
    return decode(files, ImageReadMode.RGB, device=device)


def decoded(encoded: Sequence[torch.Tensor], images: ImageSet, rows: Sequence[int], device: torch.device,
            ) -> tuple[list[int], list[torch.Tensor], dict[int, str]]:
    """(rows, their pixels uint8 (3, H, W) on the device, unreadable: place -> reason) of `read_encoded`'s tensors."""
    files = [one for one in encoded if one.ndim == 1]
    try:  # all at once: a GPU decodes them side by side
        found = iter(decode_jpeg(files, device) if files else [])
        return list(rows), [next(found) if one.ndim == 1 else one.to(device) for one in encoded], {}
    except RuntimeError:
        return _one_by_one(encoded, images, rows, device)


def _one_by_one(encoded: Sequence[torch.Tensor], images: ImageSet, rows: Sequence[int], device: torch.device,
                ) -> tuple[list[int], list[torch.Tensor], dict[int, str]]:
    kept, pixels, unreadable = [], [], {}
    for row, one in zip(rows, encoded, strict=True):
        try:
            if one.ndim == 1:
                one = decode_jpeg(one, device)
        except RuntimeError:  # PIL may still read it
            try:
                one = F.pil_to_tensor(images.open(row))
            except UnreadableImage as error:
                unreadable[row] = str(error)
                continue
        kept.append(row)
        pixels.append(one.to(device))
    return kept, pixels, unreadable


def resized(pixels: Sequence[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    """B > 0 images (3, H, W) -> uint8 (B, 3, crop, crop), channels last, on their device; sizes as `to_uint8` has
    them."""
    size = settings["resize"] if isinstance(settings["resize"], list) else [settings["resize"]]
    mode = InterpolationMode(settings["interpolation"])
    alike: dict[torch.Size, list[int]] = {}  # images of one size are resized together: fewer calls of the device
    for place, one in enumerate(pixels):
        alike.setdefault(one.shape, []).append(place)
    crop = settings["crop"]
    found = torch.empty(len(pixels), 3, crop, crop, dtype=torch.uint8, device=pixels[0].device,
                        memory_format=torch.channels_last)
    for places in alike.values():
        stack = F.resize(torch.stack([pixels[place] for place in places]), size, mode, antialias=True)
        found[places] = F.center_crop(stack, [crop, crop])
    return found  # (B, 3, crop, crop)
