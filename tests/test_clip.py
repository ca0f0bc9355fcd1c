"""CLIP towers: the activation OpenAI's weights need, names and tags, files of one's own, and what is refused."""

import json
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from extractor import clip as module
from extractor.clip import IMAGES, load_clip, resolve, width_of
from iis.layers import represent
from iis.names import clip_label
from iis.preprocessing import normalise
from iis.runtime import UserError

CONFIG = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16,
                                          "head_width": 16},
          "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}


def make(folder, stem="tiny-tower", **config):
    """A config and random weights beside it; the file of the weights."""
    (folder / f"{stem}.json").write_text(json.dumps({**CONFIG, **config}))
    open_clip.add_model_config(folder / f"{stem}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(stem, load_weights=False).state_dict(), folder / f"{stem}.pt")
    return folder / f"{stem}.pt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clip"))


def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)) for _ in range(3)]


def quick_gelus(clip):
    return sum(type(module).__name__ == "QuickGELU" for module in clip.module.modules())


def test_both_towers_are_open_clips_own(tiny):
    clip = load_clip(str(tiny.with_suffix(".json")))
    net, _, transform = open_clip.create_model_and_transforms("tiny-tower", pretrained=str(tiny))
    net.eval()
    with torch.no_grad():
        found = net.encode_image(torch.stack([transform(image) for image in images()]), normalize=True)
        words = net.encode_text(open_clip.get_tokenizer("tiny-tower")(["red tail", "a"]), normalize=True)
    torch.testing.assert_close(clip.encode_images(images()), found)
    torch.testing.assert_close(clip.encode_words(["red tail", "a"]), words)
    torch.testing.assert_close(clip.encode_words(["red tail", "a"], batch=1), words)
    assert (clip.label, clip.width, clip.weights, clip.architecture) == ("tiny-tower", 16, "tiny-tower.pt",
                                                                         "tiny-tower")
    assert width_of(str(tiny)) == 16 and width_of("ViT-B/16") == 512  # from the config alone
    assert clip.preprocessing["crop"] == 32 and clip.preprocessing["interpolation"] == "bicubic"
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)  # the tower is hooked as a backbone is
    found = represent(clip.module, IMAGES, normalise(batch, clip.preprocessing))
    assert torch.equal(found, clip.encode_images(batch))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("openai", ["archive", "keys"])
def test_openais_file_gets_quick_gelu_whatever_the_config_says(tiny, tmp_path, openai):
    net = open_clip.create_model("tiny-tower", pretrained=str(tiny))
    file = tmp_path / "plain.pt"
    (tmp_path / "plain.json").write_text(json.dumps(CONFIG))
    if openai == "keys":
        torch.save({**net.state_dict(), **{key: torch.tensor(32) for key in module.OPENAI_KEYS}}, file)
    else:
        holder = torch.nn.Module()
        for name, value in net.state_dict().items():  # TorchScript wants modules, not dotted names
            above, _, last = name.rpartition(".")
            place = holder
            for part in above.split(".") if above else ():
                place.add_module(part, getattr(place, part, torch.nn.Module()))
                place = getattr(place, part)
            place.register_buffer(last, value)
        with warnings.catch_warnings(action="ignore"):
            torch.jit.script(holder).save(file)
    clip, plain = load_clip(str(file)), load_clip(str(tiny))
    assert quick_gelus(clip) == 2 and quick_gelus(plain) == 0
    assert clip.architecture == "plain-quickgelu"
    quick = open_clip.create_model("tiny-tower", pretrained=str(tiny), force_quick_gelu=True).eval()
    with torch.no_grad():
        expected = quick.encode_text(open_clip.get_tokenizer("tiny-tower")(["red tail"]), normalize=True)
    torch.testing.assert_close(clip.encode_words(["red tail"]), expected)
    assert (clip.encode_words(["red tail"]) - plain.encode_words(["red tail"])).abs().max() > 1e-4


def built(monkeypatch, name, weights=None, state=None):
    """The arguments that open_clip would build `name` with; nothing large is built or read."""
    seen = {}

    def create_model(architecture, **options):
        seen.update(options, architecture=architecture)
        raise RuntimeError("far enough")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(module, "read_checkpoint", lambda file: dict(state or {}))
    monkeypatch.setattr(module, "_published", lambda source: Path("absent"))
    with pytest.raises(UserError) as refused:
        load_clip(name, weights)
    if "far enough" not in str(refused.value):
        raise refused.value
    return seen["architecture"], seen["force_quick_gelu"]


@pytest.mark.parametrize(("name", "quick"), [
    ("ViT-B/16", True), ("ViT-B-16", True), ("ViT-B-16:openai", True), ("ViT-B-16-quickgelu", True),
    ("ViT-L/14@336px", True), ("RN50", True), ("ViT-B-16:dfn2b", True), ("ViT-B-16:laion2b_s34b_b88k", False),
    ("ViT-B/32:laion2b_s34b_b79k", False), ("ViT-B-16:metaclip-400m", True)])
def test_a_tags_weights_get_their_activation(monkeypatch, name, quick):
    architecture, force = built(monkeypatch, name)
    assert architecture in open_clip.list_models() and force is quick


def test_a_local_file_gets_its_activation_or_is_asked_about(monkeypatch, tmp_path):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    exact = {"visual.conv1.weight": torch.randn(4, 3, 16, 16)}
    half = {"visual.conv1.weight": torch.randn(4, 3, 16, 16).half().float()}
    assert built(monkeypatch, "ViT-B/16", str(file), exact) == ("ViT-B-16", True)
    assert built(monkeypatch, "ViT-B-16", str(file), exact) == ("ViT-B-16", False)
    assert built(monkeypatch, "ViT-B-16-quickgelu", str(file), half) == ("ViT-B-16-quickgelu", True)
    assert built(monkeypatch, "ViT-B-16:laion2b_s34b_b88k", str(file), half) == ("ViT-B-16", False)
    keys = {**exact, **{key: torch.tensor(1) for key in module.OPENAI_KEYS}}
    assert built(monkeypatch, "ViT-B-16:laion2b_s34b_b88k", str(file), keys) == ("ViT-B-16", True)
    for name in ("ViT-B-16", "ViT-B-32"):
        with pytest.raises(UserError, match="may be OpenAI's"):
            built(monkeypatch, name, str(file), half)


def test_half_precision_and_a_config_beside_the_weights(tiny, tmp_path, capsys):
    file = tmp_path / "half.pt"
    torch.save({name: value.half() for name, value in torch.load(tiny, weights_only=True).items()}, file)
    (tmp_path / "half.json").write_text(json.dumps(CONFIG))
    clip = load_clip(str(file))
    assert "half precision; it is loaded as float32" in capsys.readouterr().err
    assert clip.encode_words(["red"]).dtype == torch.float32
    assert {value.dtype for value in clip.module.parameters()} == {torch.float32}
    clip = load_clip("ViT-B/16", str(tiny), label="ViT-B16")  # the config beside the weights is their architecture
    assert (clip.architecture, clip.label, clip.width) == ("tiny-tower", "ViT-B16", 16)
    assert clip.weights_hash == load_clip(str(tiny)).weights_hash
    assert load_clip("ViT-B/16", str(tiny)).label == "ViT-B16__tiny-tower"


@pytest.mark.parametrize(("name", "weights", "message"), [
    ("ViT-B/17", None, "no CLIP ViT-B/17; did you mean ViT-B/1"), ("ViT-B-61", None, "did you mean .*ViT-B-16"),
    ("ViT-B-32:laion2b", None, "has no weights laion2b; did you mean laion2b"),
    ("ViT-B-32", "opena", "did you mean openai"), ("ViT-H-14", None, "whose weights for ViT-H-14"),
    ("ViT-B/16", "absent.pt", "no file absent.pt"), ("absent.json", None, "no file absent.json")])
def test_what_is_unknown_is_refused(name, weights, message):
    with pytest.raises(UserError, match=message):
        resolve(name, weights)


@pytest.mark.parametrize(("config", "weights", "called", "sentence"), [
    (None, True, "x.pt", "comes without its architecture"), (CONFIG, False, "x.json", "no weights beside"),
    ({}, True, "x.pt", "no model config of open_clip"), ({**CONFIG, "embed_dim": 8}, True, "x.pt", "does not fit"),
    (CONFIG, 1000, "x.pt", "truncated")])
def test_files_that_do_not_belong_together_are_refused(tiny, tmp_path, config, weights, called, sentence):
    if config is not None:
        (tmp_path / "x.json").write_text(json.dumps(config))
    if weights:
        (tmp_path / "x.pt").write_bytes(tiny.read_bytes()[:None if weights is True else weights])
    with pytest.raises(UserError, match=sentence):
        load_clip(str(tmp_path / called))


def test_without_network_one_sentence_at_once(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="no route.*vit_base_patch16_clip_224.openai from a machine .* --clip_weights"):
        load_clip("ViT-B/16")
    cached = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"found")
    assert module._published(resolve("ViT-B/16")) == cached


@pytest.mark.parametrize(("name", "weights", "label"), [
    ("ViT-B/16", None, "ViT-B16"), ("ViT-B/16", "openai", "ViT-B16"), ("ViT-B/16", "/x/ViT-B-16.pt", "ViT-B16"),
    ("ViT-B-16:openai", None, "ViT-B-16"), ("ViT-B/16", "/x/mine.pt", "ViT-B16__mine"),
    ("ViT-B-32:laion2b_s34b_b79k", None, "ViT-B-32_laion2b_s34b_b79k"),
    ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32_laion2b_s34b_b79k"),
    ("demo/weights/tiny_clip.json", None, "tiny_clip"), ("tiny_clip.json", "tiny_clip.pt", "tiny_clip")])
def test_label(name, weights, label):
    assert clip_label(name, weights) == label
