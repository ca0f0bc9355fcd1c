"""CLIP by name, tag or file: one image tower and one text tower with L2-normalised outputs, through open_clip.

OpenAI trained with the activation x · sigmoid(1.702 x) ("quick GELU"). open_clip builds plain GELU for `ViT-B-16` and
only warns when OpenAI's weights go into it, so the features come out wrong and look right. Here the weights decide:
a tag by open_clip's own table, a file by its content (`clip_sources.read`), and nobody can ask for the other one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from extractor.clip_sources import read, resolve
from iis.layers import Node
from iis.names import clip_label
from iis.preprocessing import INTERPOLATIONS, normalise, preprocessing, to_uint8
from iis.runtime import UserError
from iis.weights import fit, weights_hash

IMAGES = Node("clip_image", "output")  # where `embed` finds the embedding of an `ImageTower`


class ImageTower(nn.Module):
    """Normalised images (B, 3, H, W) -> embeddings of length 1, (B, d)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.output = net, nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(nn.functional.normalize(self.net.encode_image(images), dim=-1))


@dataclass
class Clip:
    """A frozen CLIP on `device`. architecture: open_clip's, and what it computes (`ViT-B-16-quickgelu`); weights: a
    tag or a file's name; weights_hash: what they are; label: its part of file names; preprocessing: see
    `iis.preprocessing`; width: d."""

    architecture: str
    weights: str
    weights_hash: str
    label: str
    preprocessing: dict[str, Any]
    module: ImageTower
    tokenizer: Any
    width: int
    device: torch.device

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor | Sequence[Image.Image]) -> torch.Tensor:
        """uint8 (B, 3, H, W) resized and cropped already, or B PIL images -> (B, d) of length 1."""
        if not torch.is_tensor(images):
            images = torch.stack([to_uint8(image.convert("RGB"), self.preprocessing) for image in images])
        return self.module(normalise(images.to(self.device), self.preprocessing))

    @torch.inference_mode()
    def encode_words(self, words: Sequence[str], batch: int = 512) -> torch.Tensor:
        """T words or phrases -> (T, d) of length 1, float32 on the CPU. They are encoded bare, without a template."""
        rows = [self.module.net.encode_text(self.tokenizer(list(words[start:start + batch])).to(self.device))
                for start in range(0, len(words), batch)]
        return nn.functional.normalize(torch.cat(rows).float(), dim=-1).cpu()


def load_clip(clip_name: str = "ViT-B/16", weights: str | None = None, device: torch.device | str = "cpu",
              label: str | None = None) -> Clip:
    """Build the CLIP that is named, in float32, frozen.

    clip_name: OpenAI's `ViT-B/16`; open_clip's `ViT-B-32:laion2b_s34b_b79k` (NAME:TAG) or `ViT-B-32` with a tag or
    file as `weights`; or a file of one's own, `NAME.json` (open_clip's model config) beside `NAME.pt`. A config beside
    any file of weights, called as the file or as `clip_name`, is its architecture. label: its part of file names, else
    `clip_label`.
    Raises `UserError` for what is unknown (naming the nearest), cannot be had or does not fit.
    """
    import open_clip

    plan = resolve(clip_name, weights)
    state = read(plan)
    tag = open_clip.get_pretrained_cfg(plan.architecture, plan.tag) if plan.tag else {}
    config = open_clip.get_model_config(plan.architecture)
    quick = bool(plan.openai or tag.get("quick_gelu") or config.get("quick_gelu"))
    given = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag}
    logging.disable(logging.WARNING)  # it warns that the weights are random: so they are until `fit`, below
    try:
        net = open_clip.create_model(plan.architecture, load_weights=False, pretrained_text=False,
                                     force_quick_gelu=quick, force_preprocess_cfg=given)
        tokenizer = open_clip.get_tokenizer(plan.architecture)
    except Exception as error:  # a config that contradicts itself, a tokenizer or tower that must be downloaded …
        raise UserError(f"open_clip cannot build {plan.architecture} ({' '.join(str(error).split())[:160]}): choose "
                        "another --clip_name, or mend the config") from None
    finally:
        logging.disable(logging.NOTSET)
    for name in ("logit_scale", "logit_bias"):  # a number or a list of one, by version
        if name in state and getattr(net, name, None) is not None:
            state[name] = state[name].reshape(getattr(net, name).shape)
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    fit(net, open_clip.factory.convert_state_dict(net, state), f"the CLIP checkpoint {plan.file.name}")
    net = net.eval().requires_grad_(False)
    architecture = plan.architecture.removesuffix("-quickgelu") + ("-quickgelu" if quick else "")
    prepared = _preprocessing(open_clip.get_model_preprocess_cfg(net), architecture)
    side = torch.zeros(1, 3, *[prepared["crop"]] * 2)
    with torch.inference_mode():
        width = net.encode_image(side).shape[1]
    called = "openai" if plan.openai else plan.tag or plan.file.name
    return Clip(architecture, called, weights_hash(net), label or clip_label(clip_name, weights),
                prepared, ImageTower(net).to(device), tokenizer, width, torch.device(device))


def _preprocessing(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """open_clip's settings as ours, so that one decode serves CLIP and the backbone."""
    sizes = config["size"] if isinstance(config["size"], tuple | list) else [config["size"]] * 2
    if sizes[0] != sizes[1] or config["resize_mode"] not in ("shortest", "squash"):
        raise UserError(f"{architecture} wants images of {sizes} pixels, resized by {config['resize_mode']!r}: the "
                        "suite prepares square ones by 'shortest' or 'squash'; choose another --clip_name")
    interpolation = config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bicubic"
    return preprocessing(list(sizes) if config["resize_mode"] == "squash" else sizes[0], sizes[0], interpolation,
                         config["mean"], config["std"])
