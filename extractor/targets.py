"""A file of features to make, and the forward pass that makes them: prepared once, then a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extractor.batches import Batch, precise
from extractor.compiled import Compiled
from extractor.fast_forward import at_a_time, ready
from iis.layers import Node, represent
from iis.preprocessing import normalise


@dataclass
class Target:
    """One file to make of the images: `model` (anything with `module` and `preprocessing`) taken at `node`.
    compiled: the batch size to compile the model for; 0 leaves it as it is."""

    model: Any
    node: Node
    file: Path
    provenance: dict[str, Any]
    precision: str = "fp32"
    record: dict[str, Any] = field(default_factory=dict)
    compiled: int = 0
    forward: Any = None  # normalised images -> features, once `prepared`

    @property
    def decoder(self) -> str:
        """What decodes and resizes its images."""
        return self.model.preprocessing.get("decoder", "pil")

    @property
    def partial(self) -> Path:
        """The folder of a file that is not whole yet."""
        return self.file.with_name(f"{self.file.name}.partial")


def prepared(target: Target) -> Target:
    """The target with what will compute, unless it has it; see `fast_forward.ready` and `compiled.Compiled`."""
    if target.forward is not None:
        return target
    module = ready(target.model.module, target.node, target.model.preprocessing["crop"])
    forward = (Compiled(module, target.node, target.compiled) if target.compiled
               else partial(represent, module, target.node))
    return replace(target, forward=forward)


def features_of(target: Target, place: int, batch: Batch, device: torch.device) -> torch.Tensor:
    """Float32 features (B, D) on the device, of a batch whose images for this target are its own or its
    others[place - 1]; target: as `prepared` leaves it. A GPU may still be computing them."""
    pixels = [batch.images, *batch.others][place]
    few = len(pixels) if target.compiled or device.type != "cpu" else at_a_time(pixels)
    with torch.inference_mode(), precise(device, target.precision):
        return torch.cat([target.forward(normalise(some, target.model.preprocessing)).float()
                          for some in pixels.split(few)])  # (B, D)


def fetched(found: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy features to the host; the function returned waits for them. What is computed after this call
    does not delay them."""
    if not found.is_cuda:
        return found.numpy
    copy, event = found.to("cpu", non_blocking=True), torch.cuda.Event()  # into page-locked memory
    event.record(torch.cuda.current_stream(found.device))

    def wait() -> np.ndarray:
        event.synchronize()
        return copy.numpy()

    return wait


def width_of(target: Target, device: torch.device) -> int:
    """D of a prepared target."""
    side = target.model.preprocessing["crop"]
    with torch.inference_mode(), precise(device, target.precision):
        return target.forward(torch.zeros(1, 3, side, side, device=device)).shape[1]
