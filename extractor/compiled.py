"""--compile: a backbone through torch.compile, for one fixed batch size.

What goes into the head is what the model gives without its head, so the compiled model has none. A batch of another
size (the last one, or one with unreadable images) runs uncompiled: it would cost another compilation.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from torch import nn

from extractor.fast_forward import TOLERANCE
from iis.layers import HEAD_INPUT, Node, represent


class Compiled:
    """Images (B, 3, H, W), normalised -> features (B, D), as `represent` gives them.

    Where the model cannot be compiled, or what comes out differs by more than autocast may explain, one sentence on
    stderr says so and all batches run uncompiled. `works` tells: None until the first batch of `batch` images.
    """

    def __init__(self, module: nn.Module, node: Node, batch: int, compiler: Callable = torch.compile) -> None:
        self.module, self.node, self.batch, self.compiler = module, node, batch, compiler
        self.works: bool | None = None
        self.function: Callable | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) != self.batch or self.works is False:
            return represent(self.module, self.node, images)
        return self.function(images) if self.works else self._tried(images)

    def _tried(self, images: torch.Tensor) -> torch.Tensor:
        expected = represent(self.module, self.node, images)
        try:
            # Compiled now, with weights as constants where inductor can: nothing of it holds for other models.
            with torch._inductor.config.patch(freezing=images.device.type == "cpu"):
                self.function = self.compiler(_headless(self.module, self.node), dynamic=False)
                found = self.function(images)
            off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
            allowed = TOLERANCE if expected.dtype == torch.float32 and not _lower(images) else 0.05
            if found.shape != expected.shape or not off <= allowed:
                raise ValueError(f"its features are off by {off:.1g} of the largest")
        except Exception as error:  # the compiler, its C++ compiler, Triton: each fails in its own way
            reason = " ".join(str(error).split())[:160]
            print(f"compile: {type(error).__name__}: {reason}; the model runs uncompiled", file=sys.stderr)
            self.works = False
            return expected
        self.works = True
        return found


def _lower(images: torch.Tensor) -> bool:
    return torch.is_autocast_enabled(images.device.type)


def _headless(module: nn.Module, node: Node) -> nn.Module:
    """The model without its head. Raises ValueError where an earlier layer is asked for."""
    if node.name != HEAD_INPUT:
        raise ValueError(f"{node.name} is not the head's input, and only that can be compiled")
    parent, _, name = node.module.rpartition(".")
    headless = copy.deepcopy(module)
    setattr(headless.get_submodule(parent), name, nn.Identity())
    return headless
