"""Weights: a published tag or a local checkpoint -> a state dict, read without executing anything in the file."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from iis.cli import path
from iis.embedding_file import read_tensors
from iis.runtime import ROOT, UserError

CHECKPOINTS = (".pth", ".pt", ".th", ".bin", ".safetensors")
WRAPPERS = ("state_dict", "model", "model_state_dict")
# torchvision's DenseNet files still bear names of its first version.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def local_file(name: str) -> Path | None:
    """The file called `name` in the caller's folder, else in the repository; None where there is none."""
    return next((file for file in (path(name), ROOT / name) if file.is_file()), None)


def checkpoint_file(weights: str | None) -> Path | None:
    """The local checkpoint that `weights` names, None where it is a tag. Raises `UserError` for a missing file."""
    if not weights or not ("/" in weights or os.sep in weights or Path(weights).suffix in CHECKPOINTS):
        return None
    if file := local_file(weights):
        return file
    raise UserError(f"there is no checkpoint {weights}: give a file that exists, a weight tag, or none")


def read_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    """The state dict in `file`: plain, or under one of `WRAPPERS`, with or without `module.` before the names.

    Raises `UserError` for a truncated file, one that holds more than tensors, or one without a state dict.
    """
    state = read_tensors(file)
    _check_promised_hash(file)
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{file} holds no state dict, neither plain nor under {', '.join(WRAPPERS)}")
    if all(name.startswith("module.") for name in state):
        consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def _check_promised_hash(file: Path) -> None:
    """One line where the file's name promises another sha256, as that of a published file does."""
    if promised := re.search(r"-([0-9a-f]{8})\.\w+$", file.name):
        with open(file, "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()[:8]
        if found != promised[1]:
            print(f"weights: {file} is not the published file (its sha256 starts with {found}, its name says "
                  f"{promised[1]}); it is used as it is", file=sys.stderr)


def published_file(entry: Any) -> Path:
    """Where the file of a torchvision weight lies once it is there: `TORCH_HOME/hub/checkpoints/NAME`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]


def published_state(entry: Any) -> dict[str, torch.Tensor]:
    """The state dict of a torchvision weight, from `TORCH_HOME` or else downloaded and its hash checked.

    Raises `UserError` for a damaged file, and for a failed download, saying which file to put where.
    """
    file = published_file(entry)
    if file.is_file():
        return read_checkpoint(file)
    try:
        return entry.get_state_dict(weights_only=True, check_hash=True, map_location="cpu")
    except Exception as error:  # URLError, HTTPError, timeouts, a wrong hash …
        raise UserError(f"the weights {entry} could not be downloaded ({error}): put {entry.url} into {file.parent} "
                        "by hand, or set TORCH_HOME to where they are") from None


def fit(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load `state` into `module`. `num_batches_tracked` may be absent; half precision becomes float32, with a line.

    Raises `UserError` naming the first keys that are missing, unexpected or of another shape, and how many.
    """
    for name in [name for name in state if OLD_DENSENET.search(name)]:
        state[OLD_DENSENET.sub(r"\1\2", name)] = state.pop(name)
    own = module.state_dict()
    wrong = {"of another shape": [f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
                                  for name, value in state.items() if name in own and value.shape != own[name].shape]}
    if not wrong["of another shape"]:
        # Modules translate old names while they load (torchvision's ViT does), so the names are compared afterwards.
        result = module.load_state_dict(state, strict=False)
        wrong["missing"] = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
        wrong["unexpected"] = result.unexpected_keys
    found = [f"{len(names)} key{'s' if names[1:] else ''} {word} ({', '.join(names[:3])}{', …' if names[3:] else ''})"
             for word, names in wrong.items() if names]
    if found:
        raise UserError(f"{source} does not fit the model: {'; '.join(found)}")
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in state.values()):
        print(f"weights: {source} is in half precision; it is loaded as float32", file=sys.stderr)


def weights_hash(module: nn.Module) -> str:
    """sha256 over the model's own state dict: name, type, shape and bytes of each tensor, in order of names.

    `num_batches_tracked` is left out: it moves no feature, and old checkpoints lack it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
