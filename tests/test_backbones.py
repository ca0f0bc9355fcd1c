"""Backbones of every kind: named, timm's, your own; their weights, preprocessing, class counts and hashes."""

import os
from pathlib import Path

import pytest
import torch
import torchvision

from iis.backbones import configured_backbone, default_weights, load_backbone
from iis.runtime import UserError

RESNET18 = "resnet18-f37072fd.pth"


def test_published_weights_are_known_by_their_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = tmp_path / "home" / "hub" / "checkpoints" / RESNET18
    file.parent.mkdir(parents=True)
    stand_in = torchvision.models.resnet18(weights=None).eval()
    torch.save(stand_in.state_dict(), file)
    (tmp_path / RESNET18).write_bytes(file.read_bytes())
    x = torch.randn(2, 3, 64, 64)
    for weights in (None, "ResNet18_Weights.IMAGENET1K_V1", str(tmp_path / RESNET18)):  # not torchvision's DEFAULT
        backbone = load_backbone("resnet18", weights)
        assert backbone.weights == backbone.default_weights == "IMAGENET1K_V1" and backbone.published_top1 == 69.758
        assert (backbone.model, backbone.head, backbone.width, backbone.num_classes) == ("resnet18", "fc", 512, 1000)
        assert not any(part.training for part in backbone.module.modules())
        assert not any(value.requires_grad for value in backbone.module.parameters())
        assert torch.equal(backbone.module(x), stand_in(x))
    file.write_bytes(b"PK\x03\x04" + b"0" * 500)
    with pytest.raises(UserError, match=f"{RESNET18} is truncated"):
        load_backbone("resnet18")


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    first, again, other = (load_backbone("resnet20", "none", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert (first.weights, other.weights) == ("none (seed 0)", "none (seed 1)")


@pytest.mark.parametrize("model", ["resnet18", "timm:resnet18", "resnet20"])
def test_the_head_takes_the_checkpoints_number_of_classes(tmp_path, model):
    net = load_backbone(model, "none").module
    head = "linear" if model == "resnet20" else "fc"
    setattr(net, head, torch.nn.Linear(net.get_submodule(head).in_features, 7))
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    backbone = load_backbone(model, str(tmp_path / "mine.pth"))
    assert (backbone.num_classes, backbone.weights, backbone.published_top1) == (7, "mine.pth", None)
    with pytest.raises(UserError, match="the checkpoint mine.pth does not fit the model: .*another shape"):
        load_backbone({"resnet20": "resnet18"}.get(model, "resnet20"), str(tmp_path / "mine.pth"))


@pytest.mark.parametrize(("model", "weights", "message"), [
    ("resnet51", None, "did you mean .*resnet50"), ("resnet18", "IMAGENET1K_V7", "'IMAGENET1K_V7'.*IMAGENET1K_V1"),
    ("resnet20", None, "--weights"), ("timm:resnet1", "none", "timm .* has no model"),
    ("timm:resnet18", "BEST", "no weights 'BEST': give pretrained"), ("nowhere.py:net", None, "no file nowhere.py"),
    ("no_such_package:net", None, "cannot be imported"), ("torchvision.models:resnet18", "V1", "has no weights 'V1'"),
    ("squeezenet1_0", "none", "no linear classification head")])
def test_what_is_unknown_is_named(model, weights, message):
    with pytest.raises(UserError, match=message):
        load_backbone(model, weights)


def test_timm_by_its_own_head_and_preprocessing_and_the_papers_weights(capsys):
    backbone = load_backbone("timm:resnet18", "none", crop=200)
    assert (backbone.head, backbone.width, backbone.default_weights) == ("fc", 512, "pretrained")
    assert [backbone.preprocessing[key] for key in ("interpolation", "resize", "crop")] == ["bicubic", 235, 200]
    assert capsys.readouterr().err == ""  # random weights expect nothing
    assert [default_weights(model) for model in ("resnet50", "vit_l_16", "resnet20", "mine.py:net")] == [
        "IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1", None, "as built"]


OWN = """
from torch import nn
import neighbour

def net():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, neighbour.CLASSES))
    model.preprocessing = {"resize": 40, "crop": 40, "mean": (0.5, 0.5, 0.5)}
    return model

def wrong():
    return 3
"""


def test_a_function_of_your_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "neighbour.py").write_text("CLASSES = 5")
    backbone = load_backbone(f"{tmp_path}/mine.py:net", resize=50)
    assert (backbone.model, backbone.weights, backbone.default_weights) == ("mine.py:net", "as built", "as built")
    assert (backbone.width, backbone.num_classes) == (12, 5)
    assert [backbone.preprocessing[key] for key in ("resize", "crop", "mean")] == [50, 40, [0.5, 0.5, 0.5]]
    assert "resize 50 instead of 40 (the weights as built" in capsys.readouterr().err
    torch.save(backbone.module.state_dict(), tmp_path / "mine.pth")
    loaded = load_backbone(f"{tmp_path}/mine.py:net", str(tmp_path / "mine.pth"), seed=4)
    assert loaded.weights == "mine.pth" and loaded.weights_hash == backbone.weights_hash
    for name, message in (("nets", "no function 'nets'; did you mean net"), ("wrong", "gave a int")):
        with pytest.raises(UserError, match=message):
            load_backbone(f"{tmp_path}/mine.py:{name}")
    assert load_backbone("torchvision.models:resnet18", "none").width == 512


def test_a_yaml_names_a_backbone(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: resnet20\nweights: x\nval_resize_size: 40\nmean: [0.1, 0.2, 0.3]\nstd: 1, 2, 3\nseed: 7\n")
    backbone = configured_backbone(str(file), "none")  # instead of the YAML's
    assert (backbone.model, backbone.weights) == ("resnet20", "none (seed 7)")
    assert backbone.preprocessing == {"resize": 40, "crop": 32, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3],
                                      "std": [1, 2, 3]}
    file.write_text("weights: none")
    with pytest.raises(UserError, match="mine.yaml names no backbone: it needs a line `model: NAME`"):
        configured_backbone(str(file))


@pytest.mark.skipif("IIS_DATA" not in os.environ, reason="IIS_DATA does not name the folder with weights/")
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_the_cifar_checkpoints_load(file, capsys):
    backbone = load_backbone(file.partition("-")[0], str(Path(os.environ["IIS_DATA"]) / "weights" / file))
    assert (backbone.head, backbone.width, backbone.num_classes, backbone.weights) == ("linear", 64, 10, file)
    assert capsys.readouterr().err == ""  # their sha256 is the one their names promise
