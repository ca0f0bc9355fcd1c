"""Convolutions that add a shortcut and rectify as they write their result: oneDNN's own kernels, for a CPU.

A ResNet's maps are then written and read once a layer instead of two or three times, and weights lie from the start
in the order that the kernels read. oneDNN is reached through operators that PyTorch keeps for its compiler
(`torch.ops.mkldnn`): whoever uses this must compare what comes out (`fast_forward.ready` does).
"""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (torch.relu, nn.functional.relu, "relu", "relu_")


class FusedConvolution(nn.Module):
    """relu(convolution(x) + other) of a frozen nn.Conv2d, in `dtype`; sum and relu where `adds` and `rectifies`.

    shape: of x, most often; oneDNN chooses the order of the weights for it. Other shapes are right too.
    """

    def __init__(self, one: nn.Conv2d, adds: bool, rectifies: bool, dtype: torch.dtype, shape: list[int]) -> None:
        super().__init__()
        self.adds, self.relu, self.dtype = adds, "relu" if rectifies else None, dtype
        self.geometry = (list(one.padding), list(one.stride), list(one.dilation), one.groups)
        # Plain attributes: oneDNN's layout is opaque to Module.to, and nothing here is to be moved or saved.
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(one.weight.detach().to(dtype), *self.geometry, shape)
        self.shift = None if one.bias is None else one.bias.detach().to(dtype)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        x, operators = x.to(self.dtype), torch.ops.mkldnn._convolution_pointwise
        if self.adds:
            return operators.binary(x, other.to(self.dtype), self.packed, self.shift, *self.geometry, "add", 1.0,
                                    self.relu, [], "")
        return operators(x, self.packed, self.shift, *self.geometry, self.relu or "none", [], "")


def fuse_convolutions(folded: fx.GraphModule, images: torch.Tensor, batch: int,
                      dtype: torch.dtype) -> fx.GraphModule:
    """A traced model (frozen, on the CPU), anew with each of its convolutions fused with what follows it.

    images: (B, 3, H, W), a few of the size that will come, `batch` at a time. Raises whatever oneDNN does for
    a layer that it cannot hold.
    """
    fused = fx.GraphModule(folded, copy.deepcopy(folded.graph))
    ShapeProp(fused).propagate(images)
    layers, graph = dict(folded.named_modules()), fused.graph
    for node in list(graph.nodes):
        layer = layers.get(node.target) if node.op == "call_module" else None
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            continue
        chain, inputs = [node], [node.args[0]]
        if (following := _sum(node)) is not None:
            inputs.append(next(value for value in following.args if value is not node))
            chain.append(following)
        following = _only_user(chain[-1])
        rectifies = following is not None and _rectifies(following, layers)
        if rectifies:
            chain.append(following)
        shape = [batch, *node.args[0].meta["tensor_meta"].shape[1:]]
        fused.add_submodule(f"fused_{node.name}",
                            FusedConvolution(layer, len(inputs) == 2, rectifies, dtype, shape))
        with graph.inserting_before(chain[-1]):
            made = graph.call_module(f"fused_{node.name}", tuple(inputs))
        made.meta = chain[-1].meta
        chain[-1].replace_all_uses_with(made)
        for replaced in reversed(chain):
            graph.erase_node(replaced)
    fused.delete_all_unused_submodules()
    fused.recompile()
    return fused


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _sum(node: fx.Node) -> fx.Node | None:
    """What alone uses the node, where it adds another result of the same shape to it, without a factor."""
    following = _only_user(node)
    if following is None or following.target not in ADDS or len(following.args) != 2 or following.kwargs:
        return None
    parts = [part for part in following.args if isinstance(part, fx.Node) and "tensor_meta" in part.meta]
    shapes = {part.meta["tensor_meta"].shape for part in parts}
    return following if len(parts) == 2 and parts[0] is not parts[1] and len(shapes) == 1 else None


def _rectifies(node: fx.Node, layers: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(layers.get(node.target)) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in RELUS
