"""Where a representation is taken: any name of a layer -> one node of the model -> a matrix N x D.

The head's input is caught by a forward pre-hook on the head: exact for CNN, ViT, Swin and ConvNeXt alike, and
N x D already (paper §3: the vector that the frozen backbone hands to its classification head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from iis.names import HEAD_INPUT
from iis.runtime import UserError, nearest, torch_rng

# What published commands call the head's input in one family or another. If the model has a layer of that name, the
# layer is meant.
ALIASES = (HEAD_INPUT, "penultimate", "fc", "head", "head.fc", "heads", "heads.head", "classifier", "classifier.2",
           "linear", "flatten", "avgpool", "layer4")
CLASS_TOKENS = ("class_token", "cls_token", "class_embedding")
WIDTHS = ("out_channels", "out_features", "num_features", "num_channels", "normalized_shape")


@dataclass(frozen=True)
class Node:
    """A place in the model. name: `head_input`, or an earlier layer's (what provenance compares); module: where the
    hook goes; axis: the channel axis of what comes out; class_token: the first token stands for the image."""

    name: str
    module: str
    axis: int = -1
    class_token: bool = False


def find_head(module: nn.Module) -> str:
    """The name of the classification head: what `get_classifier()` gives (timm), else the linear layer registered
    last. Raises `UserError` for a model without one."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if hasattr(module, "get_classifier"):
        head = module.get_classifier()
        head = head[0] if isinstance(head, tuple) else head  # distilled models have two
        linear = [name for name in linear if module.get_submodule(name) is head]
    if not linear:
        raise UserError(f"{type(module).__name__} ends in no linear classification head: the suite measures "
                        "representations that feed one")
    return linear[-1]


def resolve(module: nn.Module, head: str, layer: str, image_size: int) -> Node:
    """The node that `layer` names. A layer whose pooled output is the head's input is the head's input.

    Two random images of `image_size` pixels, always the same, are sent through the model to see it.
    Raises `UserError` for an unknown layer (naming the nearest), or one that the forward pass does not use.
    """
    at_head = Node(HEAD_INPUT, head)
    names = [name for name, _ in module.named_modules() if name]
    if layer == head or head.startswith(f"{layer}.") or (layer in ALIASES and layer not in names):
        return at_head
    if layer not in names:
        raise UserError(f"the model has no layer {layer!r}{nearest(layer, {*names, *ALIASES})}")
    device = next(module.parameters()).device
    images = torch.randn(2, 3, image_size, image_size, generator=torch_rng("layer probe")).to(device)
    with torch.no_grad(), _caught(module, head, before=True) as inputs, _caught(module, layer) as outputs:
        module(images)
    shape = _only(outputs, layer).shape
    if not 2 <= len(shape) <= 4:
        raise UserError(f"the layer {layer!r} gives {len(shape)} axes {tuple(shape)}: maps, tokens or vectors are "
                        "needed; choose another layer")
    class_token = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in module.named_parameters())
    node = Node(layer, layer, _channel_axis(module, layer, shape), class_token)
    found, wanted = pool(outputs[-1], node), pool(inputs[-1], at_head)
    same = found.shape == wanted.shape and (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    return at_head if same else node


def represent(module: nn.Module, node: Node, images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W), normalised -> representations (B, D). Gradients flow unless the caller stops them."""
    return represent_all(module, [node], images)[0]


def represent_all(module: nn.Module, nodes: Sequence[Node], images: torch.Tensor) -> list[torch.Tensor]:
    """[(B, D), …] at several nodes, of one forward pass; the same bits as `represent` at each. Maps are pooled as they
    come out: those of all layers together may not fit in memory."""
    with ExitStack() as hooks:
        found = [hooks.enter_context(_caught(module, node.module, node.name == HEAD_INPUT, partial(_pooled, node)))
                 for node in nodes]
        module(images)
    return [_only(one, node.module) for one, node in zip(found, nodes, strict=True)]


def pool(value: torch.Tensor, node: Node) -> torch.Tensor:
    """(B, D) as it is; maps -> mean over their two spatial axes; tokens -> the class token, or their mean."""
    if value.ndim == 3 and node.class_token:
        return value[:, 0].clone()  # (B, D)
    if value.ndim > 2:
        axis = node.axis % value.ndim
        return value.mean(dim=[other for other in range(1, value.ndim) if other != axis])  # (B, D)
    return value


def _pooled(node: Node, value: torch.Tensor) -> torch.Tensor:
    pooled = pool(value, node)
    return pooled.clone() if pooled is value else pooled


@contextmanager
def _caught(module: nn.Module, name: str, before: bool = False,
            keep: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> Iterator[list[torch.Tensor]]:
    """What goes into (`before`) or comes out of a layer while the block runs, of several tensors the first, as `keep`
    makes it: a copy, because the next layer may work in place, as ReLU does."""
    found: list[torch.Tensor] = []

    def after(_: nn.Module, __: tuple, output: torch.Tensor | tuple) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        found.append(keep(first))

    layer = module.get_submodule(name)
    hook = (layer.register_forward_pre_hook(lambda _, inputs: found.append(keep(inputs[0]))) if before
            else layer.register_forward_hook(after))
    try:
        yield found
    finally:
        hook.remove()


def _only(found: list[torch.Tensor], name: str) -> torch.Tensor:
    if not found:
        raise UserError(f"the layer {name!r} takes no part when the model classifies an image; choose another")
    return found[-1]


def _channel_axis(module: nn.Module, layer: str, shape: torch.Size) -> int:
    """The axis, second or last, whose size is the layer's width (Swin is N, H, W, C). Where both or neither fit,
    convolutions and batch norms have their channels second, all else last."""
    width, channels_second = _width(module, layer)
    fitting = {axis for axis in (1, len(shape) - 1) if shape[axis] == width}
    if len(fitting) == 1:
        return fitting.pop()
    return 1 if channels_second else len(shape) - 1


def _width(module: nn.Module, layer: str) -> tuple[int | None, bool]:
    """Width of the last layer with parameters inside `layer`, or else before it; and whether it is convolutional."""
    order = list(module.named_modules())
    last = max(place for place, (name, _) in enumerate(order) if name == layer or name.startswith(f"{layer}."))
    for _, part in reversed(order[:last + 1]):
        widths = [getattr(part, name) for name in WIDTHS if hasattr(part, name)]
        if widths and next(part.parameters(recurse=False), None) is not None:
            width = widths[0][-1] if isinstance(widths[0], tuple) else widths[0]
            two_d = "2d" in type(part).__name__.lower()  # Conv2d, BatchNorm2d, and LayerNorm2d of ConvNeXt
            return width, two_d or isinstance(part, nn.GroupNorm)
    return None, True
