"""CLIP by name, tag or file, through open_clip: two towers with L2-normalised outputs, and their embedding files.

OpenAI trained with the activation x · sigmoid(1.702 x) ("quick GELU"). open_clip builds plain GELU for `ViT-B-16` and
only warns when OpenAI's weights go into it, so the features come out wrong and look right. Here the weights decide:
a tag by open_clip's own table, a file by its content (`_read`); no flag overrides it.

CLIP's embeddings depend on no backbone: each file is made once below `embs/clip/`, and the published names in a
backbone's own folder are hard links to it (copies where the disks differ).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from extractor.embed import Target, is_done
from iis.cli import path
from iis.datasets import ImageSet
from iis.embedding_file import Embeddings, save_embeddings
from iis.layers import Node
from iis.names import CLIP_FILES, clip_images_file, clip_label, clip_words_file, shared_words_file, words_hash
from iis.preprocessing import INTERPOLATIONS, normalise, preprocessing, to_uint8
from iis.processes import Advance, in_processes, jobs_that_fit
from iis.runtime import ROOT, UserError, float32_products, make_output_folder, nearest, read_json, write_whole
from iis.weights import fit, read_checkpoint, weights_hash

IMAGES = Node("clip_image", "output")  # where `embed` finds the embedding of an `ImageTower`
WORDS = "text"  # the node of word embeddings
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # only OpenAI's files hold these beside weights
A_TASK = 64  # words that a process of the CPU encodes at a time
NO_NETWORK_AFTER = 10  # seconds; left alone, huggingface_hub tries for 47

# ---- the towers ----


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
    tag or a file's name; label: its part of file names; preprocessing: see `iis.preprocessing`; width: d."""

    architecture: str
    weights: str
    weights_hash: str
    label: str
    preprocessing: dict[str, Any]
    module: ImageTower
    tokenizer: Any
    width: int
    device: torch.device

    @property
    def provenance(self) -> dict[str, Any]:
        """What all its embedding files record."""
        return {"model": self.architecture, "weights": self.weights, "weights_hash": self.weights_hash,
                "precision": "fp32"}

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
    """Build a CLIP in float32, frozen.

    clip_name: OpenAI's `ViT-B/16`; open_clip's `ViT-B-32:laion2b_s34b_b79k` (NAME:TAG) or `ViT-B-32` with a tag or
    file as `weights`; or your own file `NAME.json` (open_clip's model config) beside `NAME.pt`. A config beside any
    file of weights, called as the file or as `clip_name`, is its architecture. label: default `clip_label`.
    Raises `UserError` for what is unknown (naming the nearest), cannot be had or does not fit.
    """
    import open_clip

    source = resolve(clip_name, weights)
    file = source.file or _published(source)
    state, openai = _read(source, file)
    tag = open_clip.get_pretrained_cfg(source.architecture, source.tag) if source.tag else {}
    config = open_clip.get_model_config(source.architecture)
    quick = bool(openai or tag.get("quick_gelu") or config.get("quick_gelu"))
    given = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag}
    logging.disable(logging.WARNING)  # it warns that the weights are random, which they are until `fit` below
    try:
        net = open_clip.create_model(source.architecture, load_weights=False, pretrained_text=False,
                                     force_quick_gelu=quick, force_preprocess_cfg=given)
        tokenizer = open_clip.get_tokenizer(source.architecture)
    except Exception as error:  # a config that contradicts itself, a tokenizer or tower that must be downloaded …
        raise UserError(f"open_clip cannot build {source.architecture} ({' '.join(str(error).split())[:160]}): choose "
                        "another --clip_name, or mend the config") from None
    finally:
        logging.disable(logging.NOTSET)
    for name in ("logit_scale", "logit_bias"):  # a number or a list of one, by version
        if name in state and getattr(net, name, None) is not None:
            state[name] = state[name].reshape(getattr(net, name).shape)
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    fit(net, open_clip.factory.convert_state_dict(net, state), f"the CLIP checkpoint {file.name}")
    net = net.eval().requires_grad_(False)
    architecture = source.architecture.removesuffix("-quickgelu") + ("-quickgelu" if quick else "")
    prepared = _preprocessing(open_clip.get_model_preprocess_cfg(net), architecture)
    with torch.inference_mode():
        width = net.encode_image(torch.zeros(1, 3, *[prepared["crop"]] * 2)).shape[1]
    called = "openai" if openai else source.tag or file.name
    return Clip(architecture, called, weights_hash(net), label or clip_label(clip_name, weights),
                prepared, ImageTower(net).to(device), tokenizer, width, torch.device(device))


def width_of(clip_name: str, weights: str | None = None) -> int:
    """d, from the config alone. Raises `UserError` as `resolve`."""
    import open_clip

    return open_clip.get_model_config(resolve(clip_name, weights).architecture)["embed_dim"]


def _preprocessing(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """open_clip's settings as ours, so that one decode serves CLIP and the backbone."""
    sizes = config["size"] if isinstance(config["size"], tuple | list) else [config["size"]] * 2
    if sizes[0] != sizes[1] or config["resize_mode"] not in ("shortest", "squash"):
        raise UserError(f"{architecture} wants images of {sizes} pixels, resized by {config['resize_mode']!r}: the "
                        "suite prepares square ones by 'shortest' or 'squash'; choose another --clip_name")
    interpolation = config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bicubic"
    return preprocessing(list(sizes) if config["resize_mode"] == "squash" else sizes[0], sizes[0], interpolation,
                         config["mean"], config["std"])


# ---- where a name's architecture and weights come from ----


@dataclass
class Source:
    """architecture: a name open_clip knows; the weights are the tag's, or in the file; openai: called by OpenAI's
    name, so quick GELU; vouched: the user named the weights' origin."""

    architecture: str
    tag: str | None = None
    file: Path | None = None
    openai: bool = False
    vouched: bool = True


def resolve(clip_name: str, weights: str | None = None) -> Source:
    """What `clip_name` and `weights` mean (see `load_clip`); only a config beside the weights is read.

    Raises `UserError` for an unknown name or tag, naming the nearest, and for a file that is missing.
    """
    import open_clip

    own = _existing(clip_name) if Path(clip_name).suffix in CLIP_FILES else None
    file = _existing(weights) if weights and (own or Path(weights).suffix in CLIP_FILES) else None
    if own:
        configs = [own.with_suffix(".json")]
        file = file or next((one for one in (own, *map(own.with_suffix, CLIP_FILES))
                             if one.is_file() and one not in configs), None)
    else:  # called as the weights, or as the model
        configs = [file.parent / f"{stem}.json" for stem in (file.stem, clip_name)] if file else []
    config = next((one for one in configs if one.is_file()), None)
    if own and config is None:
        raise UserError(f"{own} comes without its architecture: put {configs[0].name} (open_clip's model config) "
                        f"beside it, or give --clip_name NAME --clip_weights {clip_name}")
    if own and file is None:
        raise UserError(f"there are no weights beside {own}: put {own.stem}.pt there, or name them with "
                        "--clip_weights")
    if config:
        return Source(register(config), file=file)
    name, _, tag = clip_name.partition(":")
    # OpenAI wrote ViT-L/14@336px, open_clip writes ViT-L-14-336.
    architecture, known = name.replace("/", "-").replace("@336px", "-336"), open_clip.list_models()
    if architecture not in known:
        spellings = [re.sub(r"^(ViT-[BL])-(\d+)", r"\1/\2", other)
                     for other in open_clip.pretrained.list_pretrained_models_by_tag("openai") if "quick" not in other]
        raise UserError(f"there is no CLIP {name}{nearest(name, {*known, *spellings})}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag = tag if file else weights or tag or ("openai" if "openai" in tags else "")
    if not tag and file is None:
        raise UserError(f"whose weights for {name}? Give --clip_name {name}:TAG{nearest('laion2b', tags)} Or give a "
                        "file with --clip_weights")
    if tag and tag.lower().replace("-", "_") not in tags:
        raise UserError(f"{name} has no weights {tag}{nearest(tag, tags)} Or give a file with --clip_weights")
    return Source(architecture, tag, file, openai="/" in name and tag in ("", "openai"), vouched=bool(tag))


def register(config: Path) -> str:
    """Make a config of your own known to open_clip; the name it has there."""
    import open_clip

    settings = read_json(config)
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(settings):
        raise UserError(f"{config} is no model config of open_clip: it needs embed_dim, vision_cfg and text_cfg")
    if settings["vision_cfg"].get("timm_model_name") == "iis_small_convnet":
        import extractor.small_convnet  # noqa: F401 (registers the tower with timm)
    open_clip.add_model_config(config)
    return config.stem


def _existing(name: str) -> Path:
    if file := next((file for file in (path(name), ROOT / name) if file.is_file()), None):
        return file
    raise UserError(f"there is no file {name}: give an existing CLIP checkpoint or config, or a name such as ViT-B/16")


def _read(source: Source, file: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The weights in `file`, and whether they are OpenAI's.

    OpenAI's own file is a TorchScript archive, or a state dict that was saved from one and still holds three sizes.
    Saved again by others (open_clip's users, huggingface) its only mark is that its numbers fit into half precision:
    OpenAI published such, and training in float32 leaves one number in thousands so. Then the user has to choose.
    Raises `UserError` also for damaged files.
    """
    archive = zipfile.is_zipfile(file) and any("/code/" in name for name in zipfile.ZipFile(file).namelist())
    if archive:  # TorchScript, which executes no Python: the form in which OpenAI alone published CLIP
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                state = dict(torch.jit.load(file, map_location="cpu").state_dict())
        except Exception as error:
            raise UserError(f"{file} is a damaged TorchScript archive ({str(error).splitlines()[0][:120]}): get it "
                            "again") from None
    else:
        state = read_checkpoint(file)
    openai = source.openai or archive or set(state) >= OPENAI_KEYS
    first = state.get("visual.conv1.weight")
    half = first is not None and torch.equal(first.half().float(), first.float())
    if half and not (openai or source.vouched or source.architecture.endswith("-quickgelu")):
        raise UserError(f"{file} may be OpenAI's (its values are half precision, as theirs are), which needs another "
                        f"activation than {source.architecture}: name its origin, --clip_name "
                        f"{source.architecture}-quickgelu for OpenAI's or {source.architecture}:TAG for another's")
    return {name: value for name, value in state.items() if name not in OPENAI_KEYS}, openai


def _published(source: Source) -> Path:
    """The file of a tag: from huggingface's cache, from ~/.cache/clip (OpenAI's own), else downloaded."""
    import huggingface_hub
    import open_clip

    tag = open_clip.get_pretrained_cfg(source.architecture, source.tag)
    repository, name = os.path.split(tag.get("hf_hub", ""))
    name = name or "open_clip_pytorch_model.bin"
    for cached in (name, f"{Path(name.replace('_pytorch', '')).stem}.safetensors") if repository else ():
        if isinstance(found := huggingface_hub.try_to_load_from_cache(repository, cached), str):
            return Path(found)
    own = Path("~/.cache/clip").expanduser() / os.path.basename(tag.get("url", ""))
    if own.is_file():
        return own
    server = huggingface_hub.constants.ENDPOINT
    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        with suppress(urllib.error.HTTPError):  # an answer, if not the best one
            urllib.request.urlopen(server, timeout=NO_NETWORK_AFTER).close()
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:
        raise UserError(f"the weights of {source.architecture} ({source.tag}) are not in the cache and could not be "
                        f"downloaded from {server} ({' '.join(str(error).split())[:160]}): bring "
                        f"{repository or tag.get('url')} from a machine that has it, and name the file with "
                        "--clip_weights") from None


# ---- embedding files ----


def images_target(clip: Clip, images: ImageSet, shared: Path, folder: Path) -> tuple[Target, Path]:
    """The file of these images in `shared` as a target for `embed_together`, and its name in `folder`.

    A file that is right and only in `folder` is linked into `shared`. Raises `UserError` where either was made
    otherwise.
    """
    file, published = (clip_images_file(place, images.dataset, images.split, clip.label)
                       for place in (shared, folder))
    provenance = {**clip.provenance, "node": IMAGES.name, "preprocessing": clip.preprocessing,
                  "dataset": images.dataset, "split": images.split, "elements": None}
    for place in (shared, folder):
        make_output_folder(place)
    if is_done(published, provenance, images) and not is_done(file, provenance, images):
        give(published, file)
    return Target(clip, IMAGES, file, provenance, record={"label": clip.label}), published


def embed_words(clip: Clip, concepts: Sequence[str], concept_set: Path, shared: Path, folder: Path) -> Path:
    """Embed M concepts (features M x d of length 1, image_paths the words) and link the file into `folder`.

    The shared name carries a hash of the words, so that an edited list is embedded anew. Raises `UserError` where
    `folder` has another list, or another CLIP's embeddings, under that name.
    """
    started, published = time.time(), clip_words_file(folder, concept_set, clip.label)
    file = shared_words_file(shared, concept_set, clip.label, concepts)
    provenance = {**clip.provenance, "node": WORDS, "concept_set": concept_set.stem, "words_hash": words_hash(concepts)}
    if is_done(published, provenance):
        print(f"{published}: done already")
        return published
    if not is_done(file, provenance):
        few = A_TASK if clip.device.type == "cpu" else len(concepts)
        tasks = [partial(_encode, clip, concepts[start:start + few]) for start in range(0, len(concepts), few)]
        jobs = jobs_that_fit(len(tasks)) if clip.device.type == "cpu" else 1
        with float32_products():
            found = dict(in_processes(tasks, jobs))
        features_Md = torch.cat([found[index] for index in range(len(tasks))])
        record = {"label": clip.label, "seconds": round(time.time() - started, 1), "torch": str(torch.__version__)}
        save_embeddings(file, Embeddings(features_Md, torch.zeros(len(concepts), dtype=torch.int64), ["concept"],
                                         list(concepts), provenance, record))
        print(f"{file}: {len(concepts):,} x {clip.width}, {time.time() - started:.1f} s, {clip.device}")
    give(file, published)
    return published


def _encode(clip: Clip, words: Sequence[str], advance: Advance) -> torch.Tensor:
    return clip.encode_words(words)


def give(file: Path, other: Path) -> None:
    """Make `other` the same file, unless it exists."""
    if other.exists():
        return
    try:
        os.link(file, other)
    except OSError:  # another disk, or a file system without links
        write_whole(other, lambda temporary: shutil.copyfile(file, temporary))
    print(f"{other}: the same as {file}")
