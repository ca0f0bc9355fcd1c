"""The CIFAR ResNets: names and sizes of the paper's §4.2, and the shortcut without parameters."""

import pytest
import torch

from iis.cifar_resnet import Block, cifar_resnet


@pytest.mark.parametrize(("name", "blocks", "millions"), [("resnet20", 3, 0.27), ("resnet32", 5, 0.46),
                                                          ("resnet44", 7, 0.66), ("resnet56", 9, 0.85),
                                                          ("resnet110", 18, 1.7)])
def test_sizes_are_those_of_table_6(name, blocks, millions):
    model = cifar_resnet(name)
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    names = set(model.state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer2.0.bn2.bias",
            f"layer3.{blocks - 1}.conv2.weight", "linear.weight", "linear.bias"} <= names
    assert f"layer3.{blocks}.conv1.weight" not in names
    assert not any("shortcut" in key or "downsample" in key for key in names)


def test_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = Block(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # the residual is then 0, and only the shortcut is left
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    out = block(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert out[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert not out[0, 0].any() and not out[0, 3].any()


def test_forward_gives_one_logit_per_class():
    assert cifar_resnet("resnet20", num_classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
