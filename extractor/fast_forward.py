"""A frozen backbone made ready to embed millions of images: the same features to rounding, sooner.

Batch norms are folded into the convolutions before them (in eval mode both are linear), and weights lie as channels
last, as the images do. The folded
model is tried on a few images first, and left out where it cannot be traced or rounds further off than `TOLERANCE`.
"""

from __future__ import annotations

import torch
from torch import nn

from iis.layers import HEAD_INPUT, Node, represent
from iis.runtime import torch_rng

TOLERANCE = 1e-4  # largest difference of features, in units of the largest feature (or of 1 where that is smaller)
SLICE = 8 * 224 ** 2  # pixels that a CPU embeds at a time: larger maps are fetched from memory anew by every layer
TRIED = 2  # images


def ready(module: nn.Module, node: Node, side: int) -> nn.Module:
    """`module` (frozen, in eval mode) ready for images of `side` x `side` pixels taken at `node`; `module` itself
    is only laid out anew."""
    module = module.to(memory_format=torch.channels_last)
    # A folded model is one flat graph: of its layers only those with weights can still be asked, as the head is.
    if node.name != HEAD_INPUT or not any(type(part) is nn.BatchNorm2d for part in module.modules()):
        return module
    weight = next(module.parameters())
    images = torch.randn(TRIED, 3, side, side, generator=torch_rng("fold")).to(weight.device, weight.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    expected = _features(module, node, images)
    try:
        folded = _folded(module)
        if not _near(_features(folded, node, images), expected):
            return module
    except Exception:  # tracing fails in as many ways as there are models
        return module
    return folded


def at_a_time(images: torch.Tensor) -> int:
    """How many of these (B, 3, H, W) a CPU embeds at a time."""
    return max(1, SLICE // images[0, 0].numel())


def _folded(module: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    with torch.no_grad():  # not inference_mode: its tensors could not be laid out anew
        return fuse(module).to(memory_format=torch.channels_last).requires_grad_(False)


def _features(module: nn.Module, node: Node, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return represent(module, node, images)


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    same_shape = found.shape == expected.shape
    return same_shape and bool((found - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max())))
