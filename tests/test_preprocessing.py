"""Preprocessing equals the presets of torchvision and timm, bit for bit, and overrides are announced."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.models import get_model_weights

from iis.preprocessing import from_timm, from_torchvision, normalise, override, preprocessing, to_uint8
from iis.runtime import UserError


def image(width=101, height=77):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ours(settings):
    return normalise(to_uint8(image(), settings)[None], settings)[0]


@pytest.mark.parametrize(("model", "tag", "side"), [
    ("resnet50", "IMAGENET1K_V1", 224), ("swin_t", "IMAGENET1K_V1", 224), ("convnext_tiny", "IMAGENET1K_V1", 224),
    ("vit_l_16", "IMAGENET1K_SWAG_E2E_V1", 512)])
def test_equals_torchvisions_preset(model, tag, side):
    preset = get_model_weights(model)[tag].transforms()
    assert ours(from_torchvision(preset)).shape == (3, side, side)
    assert torch.equal(ours(from_torchvision(preset)), preset(image()))


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_equals_timms_transform(mode, capsys):
    config = {"input_size": (3, 50, 50), "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7),
              "crop_pct": 0.9, "crop_mode": mode}
    theirs = timm.data.create_transform(**config, is_training=False)(image())
    assert torch.allclose(ours(from_timm(config)), theirs, atol=1e-6)
    assert capsys.readouterr().err == ""
    other = from_timm({**config, "interpolation": "random", "crop_mode": "border"})
    assert (other["interpolation"], other["resize"]) == ("bicubic", 55)
    assert "takes the central crop instead" in capsys.readouterr().err


def test_32_pixels_are_left_alone():
    small = image(32, 32)
    assert np.array_equal(to_uint8(small, preprocessing(32, 32)).permute(1, 2, 0).numpy(), np.asarray(small))


def test_an_override_is_announced_only_where_the_weights_are_named(capsys):
    belongs = preprocessing()
    assert override(belongs, "V1", resize=256, crop=None) == override(belongs, None) == belongs
    override(belongs, None, resize=300)
    assert capsys.readouterr().err == "" and belongs["resize"] == 256
    assert override(belongs, "V1", resize=300, mean=(0, 0, 0)) == {**belongs, "resize": 300, "mean": [0, 0, 0]}
    assert "resize 300 instead of 256, mean [0, 0, 0] instead of [0.485, 0.456, 0.406]" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "word"), [
    ({"crop": 300}, "resized to 256 .* to 300: .*--val-crop-size"), ({"resize": [300, 200]}, "resized to 200"),
    ({"interpolation": "best"}, "best is not one of .*bicubic"), ({"mean": (0.5,)}, "three numbers"),
    ({"std": (1, 0, 1)}, "above 0"), ({"crops": 3}, "no crops: it has resize")])
def test_nonsense_is_refused(given, word):
    with pytest.raises(UserError, match=word):
        override(preprocessing(), None, **given)
