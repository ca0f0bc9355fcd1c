"""A backbone made ready gives the same features; what cannot be folded stays as it was."""

import json

import pytest
import torch
from torch import nn

from extractor.fast_forward import ready
from iis.backbones import load_backbone
from iis.layers import HEAD_INPUT, Node, represent


class Net(nn.Module):
    """Two convolutions with batch norms that have seen data; `twisted` looks at its numbers, so it cannot be traced."""

    def __init__(self, twisted=False):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 7, 3), \
            nn.BatchNorm2d(7)
        self.fc, self.twisted = nn.Linear(7, 2), twisted
        for part in (self.bn1, self.bn2):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 3)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        if self.twisted and x.sum() < 0:
            return x
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("twisted", [False, True])
def test_the_same_features(images, twisted):
    torch.manual_seed(0)
    net, node = Net(twisted).eval().requires_grad_(False), Node(HEAD_INPUT, "fc")
    with torch.inference_mode():
        expected = represent(net, node, images)
        made = ready(net, node, 12)
        found = represent(made, node, images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, atol=1e-5) and expected.std() > 0.1
    folded = not any(isinstance(part, nn.BatchNorm2d) for part in made.modules())
    assert folded is not twisted and (made is net) is twisted
    assert isinstance(net.bn1, nn.BatchNorm2d)  # the backbone itself keeps its layers
    kinds = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    assert bool(kinds) is twisted  # folded ones are oneDNN's


def test_an_earlier_layer_needs_the_model_as_it_is(images):
    net = Net().eval()
    assert ready(net, Node("conv2", "conv2", 1), 12) is net


def test_a_fold_that_is_off_is_not_used(images, monkeypatch):
    from torch.fx.experimental import optimization

    net, node = Net().eval().requires_grad_(False), Node(HEAD_INPUT, "fc")
    whole = optimization.fuse

    def off(module):
        folded = whole(module)
        folded.conv2.bias += 0.01
        return folded

    monkeypatch.setattr(optimization, "fuse", off)
    assert ready(net, node, 12) is net


def test_a_cifar_resnet_is_folded(images):
    backbone = load_backbone("resnet20", "none")
    node, x = Node(HEAD_INPUT, backbone.head), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = represent(backbone.module, node, x)
        made = ready(backbone.module, node, 32)
        assert made is not backbone.module and torch.allclose(represent(made, node, x), expected, atol=1e-5)


def test_the_benchmark_at_toy_size(tmp_path):
    from bench import embeddings

    out = embeddings.main(parse(embeddings.Settings, 
        ["--pairs", "1", "--images", "6", "--batch_size", "4", "--workers", "0", "--model", "resnet20", "--out",
         str(tmp_path / "x.json")]))
    written = json.loads(out.read_text())
    assert set(written["results"]) == {embeddings.FP32, embeddings.BF16} and "in fp32" in written["note"]
    assert written["results"][embeddings.BF16]["aim"] == 3
