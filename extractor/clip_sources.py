"""Which CLIP a name means: its architecture, its tag or file, where the weights lie, and whether they are OpenAI's."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from iis.cli import path
from iis.names import CLIP_FILES
from iis.runtime import ROOT, UserError, nearest, read_json
from iis.weights import read_checkpoint

OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # only OpenAI's files hold these beside weights
NO_NETWORK_AFTER = 10  # seconds; left alone, huggingface_hub tries for 47


@dataclass
class Plan:
    """architecture: a name open_clip knows; weights are the tag, or the file (or both: a file that is the tag's);
    openai: quick GELU, whatever the name; vouched: the user said whose weights the file holds."""

    architecture: str
    tag: str | None = None
    file: Path | None = None
    openai: bool = False
    vouched: bool = False


def resolve(clip_name: str, weights: str | None = None) -> Plan:
    """What `clip_name` and `weights` mean (see `load_clip`); nothing is read but a config beside the weights.

    Raises `UserError` for an unknown name or tag, naming the nearest, and for a file that is missing.
    """
    if Path(clip_name).suffix in CLIP_FILES:
        return _own(clip_name, weights)
    if weights and Path(weights).suffix in CLIP_FILES:
        file = _existing(weights)
        for stem in (file.stem, clip_name):  # a config that is called as the weights, or as the model
            config = file.parent / f"{stem}.json"
            if config.is_file():
                return Plan(register(config), file=file, vouched=True)
        return _known(clip_name, None, file)
    return _known(clip_name, weights, None)


def _own(clip_name: str, weights: str | None) -> Plan:
    """A config and a checkpoint of one's own, side by side unless `weights` names the latter."""
    own = _existing(clip_name)
    config = own.with_suffix(".json")
    if not config.is_file():
        raise UserError(f"{own} does not say its architecture: put {config.name} (open_clip's model config) beside "
                        f"it, or give --clip_name NAME --clip_weights {clip_name}")
    beside = [own.with_suffix(ending) for ending in CLIP_FILES[1:]]
    file = _existing(weights) if weights else next((file for file in [own, *beside] if file.is_file()
                                                    and file != config), None)
    if file is None:
        raise UserError(f"there are no weights beside {own}: put {own.stem}.pt there, or name them with "
                        "--clip_weights")
    return Plan(register(config), file=file, vouched=True)


def _known(clip_name: str, weights: str | None, file: Path | None) -> Plan:
    """A name of OpenAI's or open_clip's, with a tag, with a file, or with both (the file is the tag's)."""
    import open_clip

    name, _, tag = clip_name.partition(":")
    # OpenAI wrote ViT-L/14@336px, open_clip writes ViT-L-14-336.
    architecture = name.replace("/", "-").replace("@336px", "-336")
    known = open_clip.list_models()
    if architecture not in known:
        spellings = [re.sub(r"^(ViT-[BL])-(\d+)", r"\1/\2", other)
                     for other in open_clip.pretrained.list_pretrained_models_by_tag("openai") if "quick" not in other]
        raise UserError(f"there is no CLIP {name}{nearest(name, {*known, *spellings})}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag = weights or tag or ("openai" if file is None and "openai" in tags else "")
    if not tag and file is None:
        raise UserError(f"whose weights for {name}? Give --clip_name {name}:TAG{nearest('laion2b', tags)} Or give a "
                        "file with --clip_weights")
    if tag and tag.lower().replace("-", "_") not in tags:
        raise UserError(f"{name} has no weights {tag}{nearest(tag, tags)} Or give a file with --clip_weights")
    return Plan(architecture, tag or None, file, "/" in name and tag in ("", "openai"), bool(tag))


def register(config: Path) -> str:
    """Make a config of one's own known to open_clip; the name it has there."""
    import open_clip

    settings = read_json(config)
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(settings):
        raise UserError(f"{config} is no model config of open_clip: it needs embed_dim, vision_cfg and text_cfg")
    if settings["vision_cfg"].get("timm_model_name") == "iis_small_convnet":
        import extractor.small_convnet  # noqa: F401 (timm knows it from here on)
    open_clip.add_model_config(config)
    return config.stem


def _existing(name: str) -> Path:
    for file in (path(name), ROOT / name):
        if file.is_file():
            return file
    raise UserError(f"there is no file {name}: give a CLIP checkpoint or a config that exists, or a name such as "
                    "ViT-B/16")


def read(plan: Plan) -> dict[str, torch.Tensor]:
    """The state dict; sets `plan.file` where it was a tag, and `plan.openai` where the file turns out to be OpenAI's.

    OpenAI's own file is a TorchScript archive, or a state dict that was saved from one and still holds three sizes.
    Saved again by others (open_clip's users, huggingface) nothing tells it from another's but that its numbers fit
    into half precision; then the user is asked. Raises `UserError` also for damaged files and failed downloads.
    """
    plan.file = plan.file or _published(plan)
    archive = _is_archive(plan.file)
    state = _archive(plan.file) if archive else read_checkpoint(plan.file)
    plan.openai |= archive or set(state) >= OPENAI_KEYS
    state = {name: value for name, value in state.items() if name not in OPENAI_KEYS}
    if not (plan.openai or plan.vouched or plan.architecture.endswith("-quickgelu")) and _half_precision(state):
        raise UserError(f"{plan.file} may be OpenAI's (its values are half precision, as theirs are), which needs "
                        f"another activation than {plan.architecture}: say whose it is, --clip_name "
                        f"{plan.architecture}-quickgelu for OpenAI's or {plan.architecture}:TAG for another's")
    return state


def _is_archive(file: Path) -> bool:
    """TorchScript, the form in which OpenAI, and nobody since, publishes CLIP."""
    return zipfile.is_zipfile(file) and any("/code/" in name for name in zipfile.ZipFile(file).namelist())


def _archive(file: Path) -> dict[str, torch.Tensor]:
    """The state dict of a TorchScript archive. Its code is compiled by TorchScript, never run by Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return dict(torch.jit.load(file, map_location="cpu").state_dict())
    except Exception as error:
        raise UserError(f"{file} is a damaged TorchScript archive ({str(error).splitlines()[0][:120]}): get it "
                        "again") from None


def _half_precision(state: dict[str, torch.Tensor]) -> bool:
    """Whether the first convolution holds only numbers that half precision can write. OpenAI published such; training
    in float32 leaves one number in thousands so."""
    first = state.get("visual.conv1.weight")
    return first is not None and torch.equal(first.half().float(), first.float())


def _published(plan: Plan) -> Path:
    """The file of a tag: from huggingface's cache, from ~/.cache/clip (OpenAI's own), else downloaded."""
    import huggingface_hub
    import open_clip

    tag = open_clip.get_pretrained_cfg(plan.architecture, plan.tag)
    repository, given = os.path.split(tag.get("hf_hub", ""))
    names = [f"{Path(given).stem}.safetensors", given] if given else ["open_clip_model.safetensors",
                                                                     "open_clip_pytorch_model.bin"]
    for name in names if repository else ():
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    own = Path("~/.cache/clip").expanduser() / os.path.basename(tag.get("url", ""))
    if own.is_file():
        return own
    server = huggingface_hub.constants.ENDPOINT
    reason = f"{server} cannot be reached"
    if not huggingface_hub.constants.HF_HUB_OFFLINE and _reachable(server):
        try:
            return Path(open_clip.download_pretrained(tag))
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
    raise UserError(f"the weights of {plan.architecture} ({plan.tag}) are not in the cache and could not be downloaded "
                    f"({reason}): bring {repository or tag.get('url')} from a machine that has it, and name the file "
                    "with --clip_weights")


def _reachable(server: str) -> bool:
    try:
        urllib.request.urlopen(server, timeout=NO_NETWORK_AFTER).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
