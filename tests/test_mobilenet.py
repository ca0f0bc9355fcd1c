"""MobileNets against hand-made padding, the sizes in the papers' tables, and real images."""

import os

import pytest
import torch
from torch.nn import functional as F

from extractor import check_backbone
from iis.cli import parse
from iis.datasets import classes_of_head
from reproduction.networks import mobilenet

SIZES = {"mobilenet_v1_025_128": (0.5, 256), "mobilenet_v1_050_160": (1.3, 512), "mobilenet_v1_075_192": (2.6, 768),
         "mobilenet_v2_100_224": (3.5, 1280)}  # millions of parameters in the papers, D


@pytest.mark.parametrize("side, before, after", [(4, 0, 1), (5, 1, 1), (7, 1, 1), (160, 0, 1)])
def test_same_padding_of_stride_two(side, before, after):
    layer = mobilenet.SameConv(2, 3, 3, 2)
    x = torch.randn(1, 2, side, side)
    by_hand = F.conv2d(F.pad(x, (before, after, before, after)), layer.weight, layer.bias, stride=2)
    assert torch.equal(layer(x), by_hand)
    assert by_hand.shape[-1] == -(-side // 2)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    net = getattr(mobilenet, name)().eval()
    millions, width = SIZES[name]
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    side = net.preprocessing["crop"]
    assert net.fc.in_features == width and side == int(name[-3:])
    with torch.no_grad():
        assert net.blocks(F.relu6(net.stem(torch.randn(1, 3, side, side)))).shape[-1] == side // 32
    assert name[-3:] != "224" or net.preprocessing["resize"] == 256


def test_residual_only_where_shapes_agree():
    blocks = mobilenet.mobilenet_v2_100_224().blocks
    assert [place for place, block in enumerate(blocks) if block.residual] == [2, 4, 5, 7, 8, 9, 11, 12, 14, 15]
    assert [place for place, block in enumerate(blocks) if block.depthwise.stride == (2, 2)] == [1, 3, 6, 13]


def test_synset_folders_find_their_outputs():
    assert classes_of_head(["n01440764", "n01484850", "n15075141"], 1000) == [0, 2, 999]
    assert classes_of_head(["cat", "dog"], 2) == [0, 1]
    assert classes_of_head(["cat", "dog"], 1000) is None
    assert classes_of_head(["n01440764", "n00000000"], 1000) is None


@pytest.mark.skipif("IIS_DATA" not in os.environ, reason="IIS_DATA does not name the folder with imagenet-pictures")
@pytest.mark.parametrize("name, top1", [("mobilenet_v1_025_128", 24 / 43), ("mobilenet_v1_050_160", 32 / 43)])
def test_original_head_on_real_images(name, top1, tmp_path):
    flags = ["--config_yaml", name, "--dataset", "imagenet_pictures", "--save_root", str(tmp_path), "--device", "cpu"]
    assert check_backbone.main(parse(check_backbone.Settings, flags)) == pytest.approx(100 * top1, abs=2.4)  # an image


