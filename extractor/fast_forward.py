"""A frozen backbone made ready to embed millions of images: the same features to rounding, sooner.

`ready`: batch norms are folded into the convolutions before them (in eval mode both are linear), and weights lie as
channels last, as the images do. `Compiled`: --compile, through torch.compile for one fixed batch size. Both are tried
on images first, and left out, with a sentence, where the model cannot be traced or its features move too far.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from iis.layers import HEAD_INPUT, Node, represent
from iis.runtime import float32_products, torch_rng

TOLERANCE = 1e-4  # of `distance`, in fp32
TOLERANCE_TF32 = 0.006  # 10 bits of mantissa
TOLERANCE_BF16 = 0.05  # 7 bits
SLICE = 8 * 224 ** 2  # pixels that a CPU embeds at a time: larger maps are fetched from memory anew by every layer
TRIED = 2  # images that a folded model is tried on
BASE, PER_PIXEL = 100e6, 3 * 4 * 64  # bytes of a process: of itself, and of a pixel's activations as in a VGG


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of features, in units of the largest feature."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def ready(module: nn.Module, node: Node, side: int) -> nn.Module:
    """`module` (frozen, in eval mode), folded for images of `side` x `side` pixels taken at `node`; `module` itself
    only changes its memory layout. Folding is tried in full float32, whatever precision follows; a sentence on stderr
    says where it is left out."""
    module = module.to(memory_format=torch.channels_last)
    # A folded model is one flat graph: of its layers only those with weights can still be hooked, as the head is.
    if node.name != HEAD_INPUT or not any(type(part) is nn.BatchNorm2d for part in module.modules()):
        return module
    weight = next(module.parameters())
    images = torch.randn(TRIED, 3, side, side, generator=torch_rng("fold")).to(weight.device, weight.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        from torch.fx.experimental.optimization import fuse

        with torch.no_grad():  # not inference_mode: the layout of its tensors cannot be changed
            folded = fuse(module).to(memory_format=torch.channels_last).requires_grad_(False)
        with torch.inference_mode(), float32_products():
            off = distance(represent(folded, node, images), represent(module, node, images))
        if not off <= TOLERANCE:  # also where it is not a number
            raise ValueError(f"features are off by {off:.1g} of the largest")
    except Exception as error:  # tracing fails in as many ways as there are models
        reason = " ".join(str(error).split())[:160]
        print(f"fold: {type(error).__name__}: {reason}; batch norms stay as they are, which is slower and no less "
              "exact", file=sys.stderr)
        return module
    return folded


def in_slices(function: Callable[[torch.Tensor], Sequence[torch.Tensor]], images: torch.Tensor,
              whole: bool = False) -> list[torch.Tensor]:
    """The tensors (B, …) of function(images (B, 3, H, W)), a few images at a time on a CPU unless `whole`."""
    few = len(images) if whole or images.device.type != "cpu" else max(1, SLICE // images[0, 0].numel())
    return [torch.cat(parts) for parts in zip(*map(function, images.split(few)), strict=True)]


def cpu_bytes(preprocessings: Sequence[dict[str, Any]], batch_size: int, whole: bool = False) -> float:
    """What a process needs to embed batches on the CPU, in bytes, beside the weights, which all of them share."""
    pixels = [batch_size * one["crop"] ** 2 for one in preprocessings]
    return BASE + 3 * sum(pixels) + PER_PIXEL * (max(pixels) if whole else min(max(pixels), SLICE))


class Compiled:
    """Images (B, 3, H, W), normalised -> features (B, D), as `represent` gives them.

    The head's input is the output of the model without its head, so the compiled model has none. A batch of another
    size (the last one, or one with unreadable images) runs uncompiled: it would cost another compilation. Where the
    model cannot be compiled, or features differ by more than rounding explains, one sentence on stderr says so and
    all batches run uncompiled. works: whether batches of `batch` images run compiled; known after the first.
    """

    def __init__(self, module: nn.Module, node: Node, batch: int, compiler: Callable = torch.compile) -> None:
        self.module, self.node, self.batch, self.compiler = module, node, batch, compiler
        self.plain = partial(represent, module, node)
        self.function: Callable | None = None
        self.works = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) != self.batch:
            return self.plain(images)
        if self.function is None:
            self.function = self._compiled(images)
        return self.function(images)

    def _compiled(self, images: torch.Tensor) -> Callable:
        """The compiled function, tried on these images, else the plain one."""
        try:
            if self.node.name != HEAD_INPUT:
                raise ValueError(f"{self.node.name} is not the head's input, and only that can be compiled")
            headless = copy.deepcopy(self.module)
            parent, _, name = self.node.module.rpartition(".")
            setattr(headless.get_submodule(parent), name, nn.Identity())
            function, expected = self.compiler(headless, dynamic=False), self.plain(images)
            # Compiled with weights as constants where inductor can: the result holds for this model alone.
            with torch._inductor.config.patch(freezing=images.device.type == "cpu"):
                off = distance(function(images), expected)
            exact = expected.dtype == torch.float32 and not torch.is_autocast_enabled(images.device.type)
            in_float32 = TOLERANCE_TF32 if images.is_cuda and torch.backends.cudnn.allow_tf32 else TOLERANCE
            if not off <= (in_float32 if exact else TOLERANCE_BF16):  # also where it is not a number
                raise ValueError(f"its features are off by {off:.1g} of the largest")
        except Exception as error:  # the compiler, its C++ compiler, Triton: each fails in its own way
            reason = " ".join(str(error).split())[:160]
            print(f"compile: {type(error).__name__}: {reason}; the model runs uncompiled", file=sys.stderr)
            return self.plain
        self.works = True
        return function
