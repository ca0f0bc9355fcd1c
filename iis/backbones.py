"""Backbones: a specification and its weights -> a frozen model that knows its head, width and preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from iis import preprocessing
from iis.config import find_config, numbers, read_yaml
from iis.layers import find_head
from iis.recipes import default_weights, recipe_for
from iis.runtime import UserError, seed_of
from iis.weights import fit, weights_hash

__all__ = ["Backbone", "configured_backbone", "default_weights", "load_backbone"]


@dataclass
class Backbone:
    """A frozen model in eval mode. width: D of its head's input; preprocessing: see `iis.preprocessing`.

    weights: what people call them (a tag, a file, `none (seed 0)`); weights_hash: what they are. published_top1 in
    percent and categories (C names) where the weights' publisher gives them, else None. default_weights: the label
    that needs no mention in a file name.
    """

    model: str
    module: nn.Module
    head: str
    width: int
    num_classes: int
    preprocessing: dict[str, Any]
    weights: str
    weights_hash: str
    published_top1: float | None = None
    categories: list[str] | None = None
    default_weights: str | None = None


def load_backbone(model: str, weights: str | None = None, device: torch.device | str = "cpu", seed: int = 0,
                  **overrides: Any) -> Backbone:
    """Build `model` with `weights`, frozen, on `device`.

    model: a CIFAR ResNet, a torchvision name, `timm:NAME`, `path/to/file.py:function` or `package.module:function`.
    weights: a torchvision tag (default IMAGENET1K_V1), `none` (random, under `seed`), `pretrained` (timm's default)
    or a local checkpoint. overrides: resize, crop, interpolation, mean, std that are not None; a model of your own
    may carry a dictionary of them as its attribute `preprocessing`.
    Raises `UserError` for what is unknown (naming the nearest), damaged, or does not fit.
    """
    recipe = recipe_for(model, weights, seed)
    module = _seeded(recipe.build, seed)
    own = getattr(module, "preprocessing", None)
    belongs = preprocessing.override(recipe.preprocessing, None, **own) if own else recipe.preprocessing
    settings = preprocessing.override(belongs, recipe.weights if recipe.says or own else None, **overrides)
    head = find_head(module)
    if recipe.state is not None:
        state = recipe.state()
        classes = state.get(f"{head}.weight")
        outputs = module.get_submodule(head).out_features
        if recipe.any_classes and classes is not None and len(classes) != outputs:  # fine-tuned on other classes
            module = _seeded(lambda: recipe.build(num_classes=len(classes)), seed)
        fit(module, state, f"the checkpoint {recipe.weights}")
    module = module.eval().requires_grad_(False)
    linear = module.get_submodule(head)
    return Backbone(recipe.model, module.to(device), head, linear.in_features, linear.out_features, settings,
                    recipe.weights, weights_hash(module), recipe.published_top1, recipe.categories,
                    recipe.default_weights)


def configured_backbone(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> Backbone:
    """The backbone of a YAML of `model_configs/` (a file or a name); `weights` replaces the YAML's.

    Raises `UserError` as `load_backbone` does, and for a YAML without `model`.
    """
    file = find_config(name, "model_configs")
    settings = read_yaml(file)
    if "model" not in settings:
        raise UserError(f"{file} names no backbone: it needs a line `model: NAME`")
    channels = {key: numbers(",".join(map(str, value)) if isinstance(value, list) else value)
                for key, value in settings.items() if key in ("mean", "std") and value is not None}
    sizes = {ours: settings.get(key) for ours, key in
             (("resize", "val_resize_size"), ("crop", "val_crop_size"), ("interpolation", "interpolation"))}
    return load_backbone(settings["model"], weights or settings.get("weights"), device, settings.get("seed", 0),
                         **sizes, **channels)


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Call `build` with torch's generator under the seed, and put the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "random weights"))
        return build()
