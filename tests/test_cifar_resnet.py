"""The CIFAR ResNets: names and sizes of the paper's §4.2, and the shortcut without parameters."""

import pytest
import torch

from iis.cifar_resnet import cifar_resnet


@pytest.mark.parametrize(("name", "blocks", "millions"), [("resnet20", 3, 0.27), ("resnet32", 5, 0.46),
                                                          ("resnet44", 7, 0.66), ("resnet56", 9, 0.85),
                                                          ("resnet110", 18, 1.7)])
def test_sizes_are_those_of_table_6(name, blocks, millions):
    model = cifar_resnet(name)
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    parts = ("conv1", "bn1", "conv2", "bn2")
    expected = {f"layer{stage}.{block}.{part}" for stage in (1, 2, 3) for block in range(blocks) for part in parts}
    assert {key.rpartition(".")[0] for key in model.state_dict()} == expected | {"conv1", "bn1", "linear"}


def test_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = cifar_resnet("resnet20").layer2[0].eval()
    torch.nn.init.zeros_(block.conv2.weight)  # the residual is then 0, and only the shortcut is left
    x = torch.rand(1, 16, 4, 6)
    out = block(x)
    assert out.shape == (1, 32, 2, 3)
    assert torch.equal(out[:, 8:24], x[:, :, [0, 2]][..., [0, 2, 4]])
    assert not out[:, :8].any() and not out[:, 24:].any()
    assert cifar_resnet("resnet20", num_classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
