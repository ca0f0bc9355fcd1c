"""Backbones: model builders, one for each of the four ways to name a model, and the frozen model with its weights."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iis import cifar_resnet
from iis.cli import find_config, numbers, read_yaml
from iis.layers import find_head
from iis.preprocessing import from_timm, from_torchvision, override, preprocessing
from iis.runtime import UserError, nearest, seed_of
from iis.weights import checkpoint_file, fit, local_file, published_file, published_state, read_checkpoint, weights_hash

DEFAULT_TAG = "IMAGENET1K_V1"
PAPER_TAGS = {"vit_l_16": "IMAGENET1K_SWAG_E2E_V1"}  # the one of the fourteen with other weights
AS_BUILT = "as built"  # the weights of a model whose own function loads them


@dataclass
class Backbone:
    """A frozen model in eval mode. head: the name of its classification head; width: D of the head's input.

    weights: a tag, a file's name or `none (seed 0)`; weights_hash: see `weights.weights_hash`. published_top1: percent,
    where torchvision gives it. default_weights: those that need no mention in a file name.
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
    file = checkpoint_file(weights)
    builder = model_builder(model)(model, weights, file)
    unpublished = file.name if file else f"none (seed {seed})" if weights == "none" else AS_BUILT
    label = builder.published or unpublished
    module = _seeded(builder.build, seed)
    own = getattr(module, "preprocessing", {})
    settings = override(override(builder.preprocessing, None, **own), label if builder.published or own else None,
                        **overrides)
    head = find_head(module)
    if file or builder.entry:
        state = read_checkpoint(file) if file else published_state(builder.entry)
        classes = len(state.get(f"{head}.weight", ()))
        if classes not in (0, module.get_submodule(head).out_features):  # fine-tuned on others
            module = _seeded(partial(builder.build, num_classes=classes), seed)
        fit(module, state, f"the checkpoint {label}")
    module, linear = module.eval().requires_grad_(False).to(device), module.get_submodule(head)
    top1 = builder.entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] if builder.entry else None
    return Backbone(Path(model).name if ".py:" in model else model, module, head, linear.in_features,
                    linear.out_features, settings, label, weights_hash(module), top1, default_weights(model))


def configured_backbone(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> Backbone:
    """The backbone of a YAML of `model_configs/` (a file or a name); `weights` replaces the YAML's.

    Raises `UserError` as `load_backbone` does, and for a YAML without `model`.
    """
    file = find_config(name, "model_configs")
    given = read_yaml(file)
    if "model" not in given:
        raise UserError(f"{file} names no backbone: it needs a line `model: NAME`")
    # A YAML list, or text as on the command line.
    channels = {key: numbers(str(given[key]).strip("[]")) for key in ("mean", "std") if given.get(key)}
    return load_backbone(given["model"], weights or given.get("weights"), device, given.get("seed", 0),
                         resize=given.get("val_resize_size"), crop=given.get("val_crop_size"),
                         interpolation=given.get("interpolation"), **channels)


def default_weights(model: str) -> str | None:
    """The weights of `model` that need no mention in a file name: those of the paper, else the usual ones."""
    if ":" in model:
        return "pretrained" if model.startswith("timm:") else AS_BUILT
    return PAPER_TAGS.get(model, DEFAULT_TAG) if model in torchvision_names() else None


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)


def replace_head(module: nn.Module, head: str, num_classes: int) -> None:
    """Put a linear layer with random weights in the place of the classification head called `head`."""
    (parent, _, name), old = head.rpartition("."), module.get_submodule(head)
    setattr(module.get_submodule(parent), name, nn.Linear(old.in_features, num_classes, device=old.weight.device))


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Call `build` with torch's generator under the seed, and put the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "random weights"))
        return build()


# ---- model builders: model, weights and the checkpoint they name, if any -> ModelBuilder ----


@dataclass
class ModelBuilder:
    """build: takes `num_classes` or nothing; published: the name of published weights; entry: torchvision's object for
    them (timm's `build` reads its own)."""

    build: Callable[..., nn.Module]
    preprocessing: dict[str, Any] = field(default_factory=preprocessing)
    published: str | None = None
    entry: Any = None


def model_builder(model: str) -> Callable[[str, str | None, Path | None], ModelBuilder]:
    """What builds `model`. Raises `UserError` for an unknown name."""
    if model in cifar_resnet.NAMES:
        return _cifar
    if model in torchvision_names():
        return _torchvision
    if ":" in model:
        return _timm if model.startswith("timm:") else _own
    raise UserError(f"there is no model {model!r}{nearest(model, [*torchvision_names(), *cifar_resnet.NAMES])} (or "
                    "timm:NAME, path/to/file.py:function, package.module:function)")


def _cifar(model: str, weights: str | None, file: Path | None) -> ModelBuilder:
    if file is None and weights != "none":
        raise UserError(f"{model} has no published weights of its own: give --weights a local checkpoint "
                        f"(model_configs/{model}.yaml says where there is one), or none for random ones")
    return ModelBuilder(partial(cifar_resnet.cifar_resnet, model), preprocessing(32, 32))


def _torchvision(model: str, weights: str | None, file: Path | None) -> ModelBuilder:
    from torchvision import models

    tags, entry, arguments = models.get_model_weights(model), None, {}
    if file:  # a published file is known by its name, wherever it lies
        entry = next((one for one in tags if published_file(one).name == file.name), None)
    elif weights != "none":
        tag = (weights or DEFAULT_TAG).rpartition(".")[2]
        if tag not in tags.__members__:
            raise UserError(f"{model} has no weights {tag!r}{nearest(tag, tags.__members__)} (or none, or a local "
                            "checkpoint)")
        entry = tags[tag]
    if model in ("googlenet", "inception_v3"):  # their builders take these from the weights
        arguments = {"transform_input": weights != "none", "init_weights": weights == "none"}
    if entry and model.startswith("vit"):
        arguments = {"image_size": entry.meta["min_size"][0]}
    usual = entry or tags.__members__.get(DEFAULT_TAG) or next(iter(tags))
    return ModelBuilder(partial(models.get_model, model, weights=None, **arguments),
                        from_torchvision(usual.transforms()), entry and entry.name, entry)


def _timm(model: str, weights: str | None, file: Path | None) -> ModelBuilder:
    import timm

    name = model.removeprefix("timm:")
    if not timm.is_model(name):
        raise UserError(f"timm {timm.__version__} has no model {name!r}{nearest(name, timm.list_models())}")
    if file is None and weights not in (None, "none", "pretrained"):
        raise UserError(f"{model} has no weights {weights!r}: give pretrained, none or a local checkpoint "
                        "(timm's tags belong to the name, timm:NAME.TAG)")
    pretrained = file is None and weights != "none"

    def build(**classes: int) -> nn.Module:
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
    return ModelBuilder(build, from_timm(settings), "pretrained" if pretrained else None)


def _own(model: str, weights: str | None, file: Path | None) -> ModelBuilder:
    if file is None and weights not in (None, "none", AS_BUILT):
        raise UserError(f"{model} has no weights {weights!r}: give a local checkpoint, none, or nothing where the "
                        "function loads them itself")
    place, _, name = model.rpartition(":")
    module = _imported(place)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{place} has no function {name!r}{nearest(name, known)}")

    def build(num_classes: int | None = None) -> nn.Module:
        built = function()
        if not isinstance(built, nn.Module):
            raise UserError(f"{model} gave a {type(built).__name__}: it should return a torch.nn.Module")
        if num_classes:
            replace_head(built, find_head(built), num_classes)
        return built

    return ModelBuilder(build)


def _imported(place: str) -> Any:
    """The module at path/to/file.py, or called package.module."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UserError(f"--model {place}:… cannot be imported ({error}): give package.module:function or "
                            "path/to/file.py:function") from None
    file = local_file(place)
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
