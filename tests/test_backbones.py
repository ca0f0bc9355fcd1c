"""Backbones of every kind: named, timm's, your own; their weights, preprocessing, class counts and hashes."""

import os
from pathlib import Path

import pytest
import torch
import torchvision

from iis.backbones import default_weights, load_backbone
from iis.runtime import UserError

RESNET18 = "resnet18-f37072fd.pth"


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_published_weights_come_from_torch_home_offline(torch_home):
    torch.manual_seed(3)
    stand_in = torchvision.models.resnet18(weights=None)
    torch.save(stand_in.state_dict(), torch_home / RESNET18)
    backbone = load_backbone("resnet18")  # nothing named: IMAGENET1K_V1, not torchvision's DEFAULT
    assert torch.equal(backbone.module.fc.weight, stand_in.fc.weight)
    assert (backbone.weights, backbone.default_weights) == ("IMAGENET1K_V1", "IMAGENET1K_V1")
    assert backbone.published_top1 == 69.758 and len(backbone.categories) == 1000
    assert (backbone.head, backbone.width, backbone.num_classes) == ("fc", 512, 1000)
    assert not backbone.module.training and not any(p.requires_grad for p in backbone.module.parameters())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.module(x), stand_in.eval()(x))


def test_a_published_file_is_known_by_its_name_wherever_it_lies(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / RESNET18)
    backbone = load_backbone("resnet18", str(tmp_path / RESNET18))
    assert backbone.weights == "IMAGENET1K_V1" and backbone.published_top1 == 69.758


def test_truncated_published_file(torch_home):
    (torch_home / RESNET18).write_bytes(b"PK\x03\x04" + b"0" * 500)
    with pytest.raises(UserError, match=f"{RESNET18} is truncated"):
        load_backbone("resnet18")


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first, again, other = (load_backbone("resnet20", "none", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert (first.weights, other.weights) == ("none (seed 0)", "none (seed 1)")


def test_the_head_takes_the_checkpoints_number_of_classes(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None, num_classes=7).state_dict(), tmp_path / "mine.pth")
    backbone = load_backbone("resnet18", str(tmp_path / "mine.pth"))
    assert (backbone.num_classes, backbone.weights, backbone.published_top1) == (7, "mine.pth", None)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save(load_backbone("resnet20", "none").module.state_dict(), tmp_path / "small.pth")
    with pytest.raises(UserError, match="does not fit the model: .*another shape"):
        load_backbone("resnet18", str(tmp_path / "small.pth"))


@pytest.mark.parametrize(("model", "weights", "message"), [
    ("resnet51", None, "did you mean .*resnet50"), ("resnet18", "IMAGENET1K_V7", "IMAGENET1K_V1"),
    ("resnet20", None, "--weights"), ("timm:resnet1", "none", "timm .* has no model"),
    ("timm:resnet18", "BEST", "pretrained"), ("nowhere.py:net", None, "no file nowhere.py"),
    ("no_such_package:net", None, "cannot be imported"), ("squeezenet1_0", "none", "no linear classification head")])
def test_what_is_unknown_is_named(model, weights, message):
    with pytest.raises(UserError, match=message):
        load_backbone(model, weights)


def test_timm_by_its_own_head_and_preprocessing():
    backbone = load_backbone("timm:resnet18", "none")
    assert (backbone.head, backbone.width) == ("fc", 512)
    assert backbone.preprocessing["interpolation"] == "bicubic" and backbone.preprocessing["resize"] == 235


OWN = '''
from torch import nn
import neighbour

def net():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, neighbour.CLASSES))
    model.preprocessing = {"resize": 40, "crop": 40, "mean": (0.5, 0.5, 0.5)}
    return model

def wrong():
    return 3
'''


def test_a_function_of_your_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "neighbour.py").write_text("CLASSES = 5")
    backbone = load_backbone(f"{tmp_path}/mine.py:net")
    assert (backbone.model, backbone.weights) == ("mine.py:net", "as built")
    assert (backbone.width, backbone.num_classes) == (12, 5)
    assert backbone.preprocessing["crop"] == 40 and backbone.preprocessing["mean"] == [0.5, 0.5, 0.5]
    torch.save(backbone.module.state_dict(), tmp_path / "mine.pth")
    loaded = load_backbone(f"{tmp_path}/mine.py:net", str(tmp_path / "mine.pth"), seed=4)
    assert loaded.weights == "mine.pth" and loaded.weights_hash == backbone.weights_hash
    with pytest.raises(UserError, match="did you mean net"):
        load_backbone(f"{tmp_path}/mine.py:nets")
    with pytest.raises(UserError, match="gave a int"):
        load_backbone(f"{tmp_path}/mine.py:wrong")


def test_a_function_of_a_package():
    assert load_backbone("torchvision.models:resnet18", "none").width == 512


def test_default_weights_are_the_papers():
    assert default_weights("resnet50") == default_weights("vit_b_16") == "IMAGENET1K_V1"
    assert default_weights("vit_l_16") == "IMAGENET1K_SWAG_E2E_V1"
    assert default_weights("resnet20") is None


@pytest.mark.skipif("IIS_DATA" not in os.environ, reason="IIS_DATA does not name the folder with weights/")
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_the_cifar_checkpoints_load(file, capsys):
    backbone = load_backbone(file.partition("-")[0], str(Path(os.environ["IIS_DATA"]) / "weights" / file))
    assert (backbone.head, backbone.width, backbone.num_classes, backbone.weights) == ("linear", 64, 10, file)
    assert capsys.readouterr().err == ""  # their sha256 is the one their names promise
