"""Recipes: what is known of a backbone before it is built, for each of the four ways to name one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iis import cifar_resnet, preprocessing
from iis.cli import find_config, numbers, path, read_yaml
from iis.layers import find_head
from iis.runtime import ROOT, UserError, nearest, seed_of
from iis.weights import checkpoint_file, fit, published_file, published_state, read_checkpoint, weights_hash

DEFAULT_TAG = "IMAGENET1K_V1"
PAPER_TAGS = {"vit_l_16": "IMAGENET1K_SWAG_E2E_V1"}  # the one of the fourteen with other weights
AS_BUILT = "as built"


@dataclass
class Recipe:
    """How to build a backbone and what belongs to its weights.

    build: takes `num_classes` where any_classes; state: reads the state dict, None where `build` has
    loaded it already or the weights are random; says: the weights themselves say which preprocessing is theirs;
    the rest as in `Backbone`.
    """

    model: str
    build: Callable[..., nn.Module]
    weights: str
    preprocessing: dict[str, Any]
    state: Callable[[], dict[str, torch.Tensor]] | None = None
    published_top1: float | None = None
    categories: list[str] | None = None
    default_weights: str | None = None
    says: bool = False
    any_classes: bool = True


def default_weights(model: str) -> str | None:
    """The weights of `model` that need no mention in a file name: those of the paper, else the usual ones."""
    if model.startswith("timm:"):
        return "pretrained"
    return PAPER_TAGS.get(model, DEFAULT_TAG) if model in torchvision_names() else None


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)


def recipe_for(model: str, weights: str | None, seed: int) -> Recipe:
    """The recipe for `model` with `weights` (see `load_backbone`). Raises `UserError` for what is unknown."""
    random = f"none (seed {seed})" if weights == "none" else None
    if model in cifar_resnet.NAMES:
        return _cifar(model, weights, random)
    if model.startswith("timm:"):
        return _timm(model, weights, random)
    if ":" in model:
        return _own(model, weights, random)
    if model in torchvision_names():
        return _torchvision(model, weights, random)
    known = [*torchvision_names(), *cifar_resnet.NAMES]
    raise UserError(f"there is no model {model!r}{nearest(model, known)} (or timm:NAME, path/to/file.py:function, "
                    "package.module:function)")


def _cifar(model: str, weights: str | None, random: str | None) -> Recipe:
    file = None if random else checkpoint_file(weights)
    if not random and file is None:
        raise UserError(f"{model} has no published weights of its own: give --weights a local checkpoint "
                        f"(model_configs/{model}.yaml says where there is one), or none for random ones")

    def build(num_classes: int = 10) -> nn.Module:
        return cifar_resnet.cifar_resnet(model, num_classes)

    return Recipe(model, build, random or file.name, preprocessing.preprocessing(32, 32), _reader(file))


def _torchvision(model: str, weights: str | None, random: str | None) -> Recipe:
    from torchvision import models

    tags = models.get_model_weights(model)
    file = None if random else checkpoint_file(weights)
    entry = None
    if file is not None:  # a published file under its own name is that weight, wherever it lies
        entry = next((one for one in tags if published_file(one).name == file.name), None)
    elif not random:
        tag = (weights or DEFAULT_TAG).rpartition(".")[2]
        if tag not in tags.__members__:
            raise UserError(f"{model} has no weights {tag!r}{nearest(tag, tags.__members__)} (or none, or a local "
                            "checkpoint)")
        entry = tags[tag]
    arguments: dict[str, Any] = {}
    if model in ("googlenet", "inception_v3"):  # their builders take these from the weights
        arguments = {"transform_input": not random, "init_weights": bool(random)}
    if entry is not None and model.startswith("vit"):
        arguments["image_size"] = entry.meta["min_size"][0]

    def build(num_classes: int = 1000) -> nn.Module:
        return models.get_model(model, weights=None, num_classes=num_classes, **arguments)

    usual = entry or tags.__members__.get(DEFAULT_TAG) or next(iter(tags))
    settings = preprocessing.from_torchvision(usual.transforms())
    if entry is None:
        return Recipe(model, build, random or file.name, settings, _reader(file),
                       default_weights=default_weights(model))
    return Recipe(model, build, entry.name, settings, _reader(file) or (lambda: published_state(entry)),
                   entry.meta["_metrics"]["ImageNet-1K"]["acc@1"], list(entry.meta["categories"]),
                   default_weights(model), says=True)


def _timm(model: str, weights: str | None, random: str | None) -> Recipe:
    import timm

    name = model.removeprefix("timm:")
    if not timm.is_model(name):
        raise UserError(f"timm {timm.__version__} has no model {name!r}{nearest(name, timm.list_models())}")
    file = None if random else checkpoint_file(weights)
    if file is None and weights not in (None, "none", "pretrained"):
        raise UserError(f"{model} has no weights {weights!r}: give pretrained, none or a local checkpoint "
                        "(timm's tags belong to the name, timm:NAME.TAG)")
    pretrained = file is None and not random

    def build(num_classes: int | None = None) -> nn.Module:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        try:
            return timm.create_model(name, pretrained=pretrained, **classes)
        except Exception as error:
            if not pretrained:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"timm could not get the weights of {name} ({reason}): go online once, set HF_HOME to "
                            "where they are, or give --weights a local checkpoint") from None

    config = timm.get_pretrained_cfg(name)
    settings = timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
    return Recipe(model, build, random or ("pretrained" if pretrained else file.name),
                   preprocessing.from_timm(settings), _reader(file), default_weights="pretrained", says=pretrained)


def _own(model: str, weights: str | None, random: str | None) -> Recipe:
    place, _, name = model.rpartition(":")
    module = _import_file(place) if place.endswith(".py") else _import_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{place} has no function {name!r}{nearest(name, known)}")

    def build() -> nn.Module:
        built = function()
        if not isinstance(built, nn.Module):
            raise UserError(f"{model} gave a {type(built).__name__}: it should return a torch.nn.Module")
        return built

    file = None if random or weights in (None, AS_BUILT) else checkpoint_file(weights)
    if not random and file is None and weights not in (None, AS_BUILT):
        raise UserError(f"{model} has no weights {weights!r}: give a local checkpoint, none, or nothing where the "
                        "function loads them itself")
    label = f"{Path(place).name}:{name}" if place.endswith(".py") else model
    return Recipe(label, build, random or (file.name if file else AS_BUILT), preprocessing.preprocessing(),
                  _reader(file), default_weights=AS_BUILT, any_classes=False)


def _import_file(place: str) -> Any:
    file = next((one for one in (path(place), ROOT / place) if one.is_file()), None)
    if file is None:
        raise UserError(f"there is no file {place}: --model path/to/file.py:function needs one")
    specification = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(file.parent))  # so that the file finds its neighbours
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def _import_module(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UserError(f"--model {place}:… cannot be imported ({error}): give package.module:function or "
                        "path/to/file.py:function") from None


def _reader(file: Path | None) -> Callable[[], dict[str, torch.Tensor]] | None:
    return None if file is None else lambda: read_checkpoint(file)


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
