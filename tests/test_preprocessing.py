"""Preprocessing equals the presets of torchvision and timm, bit for bit, and overrides are said."""

import numpy as np
import pytest
import torch
from PIL import Image

from iis.preprocessing import from_timm, from_torchvision, normalise, override, preprocessing, to_uint8
from iis.runtime import UserError


def image(width=101, height=77):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ours(settings):
    return normalise(to_uint8(image(), settings)[None], settings)[0]


@pytest.mark.parametrize("model", ["resnet50", "swin_t", "convnext_tiny"])
def test_equals_torchvisions_preset(model):
    from torchvision.models import get_model_weights

    preset = get_model_weights(model)["IMAGENET1K_V1"].transforms()
    assert torch.equal(ours(from_torchvision(preset)), preset(image()))


def test_vit_l_16_takes_its_own_size_not_the_usual_one():
    from torchvision.models import get_model_weights

    settings = from_torchvision(get_model_weights("vit_l_16")["IMAGENET1K_SWAG_E2E_V1"].transforms())
    assert (settings["resize"], settings["crop"], settings["interpolation"]) == (512, 512, "bicubic")


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_equals_timms_transform(mode):
    import timm

    config = {"input_size": (3, 48, 48), "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7),
              "crop_pct": 0.9, "crop_mode": mode}
    theirs = timm.data.create_transform(**config, is_training=False)(image())
    assert torch.allclose(ours(from_timm(config)), theirs, atol=1e-6)


def test_32_pixels_are_left_alone():
    small = image(32, 32)
    assert np.array_equal(to_uint8(small, preprocessing(32, 32)).permute(1, 2, 0).numpy(), np.asarray(small))


def test_override_says_a_disagreement_only_where_the_weights_are_named(capsys):
    belongs = preprocessing()
    assert override(belongs, "V1", resize=256, crop=None) == belongs
    assert capsys.readouterr().err == ""
    assert override(belongs, "V1", resize=300)["resize"] == 300
    assert "resize 300 instead of 256" in capsys.readouterr().err
    override(belongs, None, resize=300)
    assert capsys.readouterr().err == ""
    assert belongs["resize"] == 256


@pytest.mark.parametrize(("given", "word"), [({"crop": 300}, "--val-crop-size"), ({"interpolation": "best"}, "bicubic"),
                                             ({"mean": (0.5,)}, "three numbers"), ({"crops": 3}, "no crops")])
def test_nonsense_is_refused(given, word):
    with pytest.raises(UserError, match=word):
        override(preprocessing(), None, **given)
