"""A frozen backbone made ready to embed millions of pictures: the same features to rounding, sooner.

Batch norms are folded into the convolutions before them (in eval mode both are linear), and weights lie as channels
last, as the pictures do. What is folded is tried on two pictures first, and left as it was where it cannot be traced
or rounds further off than `TOLERANCE`.
"""

from __future__ import annotations

import torch
from torch import nn

from iis.layers import HEAD_INPUT, Node, represent
from iis.runtime import torch_rng

TOLERANCE = 1e-4  # largest difference of features, in units of the largest feature (or of 1 where that is smaller)


def ready(module: nn.Module, node: Node, side: int) -> nn.Module:
    """`module` (frozen, in eval mode) ready for pictures of `side` x `side` pixels taken at `node`; `module` itself
    is only laid out anew."""
    module = module.to(memory_format=torch.channels_last)
    # A folded model is one flat graph: of its layers only those with weights can still be asked, as the head is.
    if node.name == HEAD_INPUT and any(type(part) is nn.BatchNorm2d for part in module.modules()):
        return _folded(module, node, side)
    return module


def _folded(module: nn.Module, node: Node, side: int) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    weight = next(module.parameters())
    pictures = torch.randn(2, 3, side, side, generator=torch_rng("fold")).to(weight.device, weight.dtype)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = represent(module, node, pictures)
    try:
        with torch.no_grad():  # not inference_mode: its tensors could not be laid out anew
            folded = fuse(module).to(memory_format=torch.channels_last).requires_grad_(False)
        with torch.inference_mode():
            found = represent(folded, node, pictures)
    except Exception:  # tracing fails in as many ways as there are models
        return module
    near = (found - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()))
    return folded if near and found.shape == expected.shape else module
