"""A backbone made ready gives the same features; what cannot be folded stays as it was."""

import json

import pytest
import torch
from torch import nn

from extractor.fast_forward import ready
from extractor.fused_convolutions import FusedConvolution
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sums_and_relus_go_into_the_convolutions(precision):
    backbone = load_backbone("resnet18", "none")
    node, x = Node(HEAD_INPUT, backbone.head), torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = represent(backbone.module, node, x)
        made = ready(backbone.module, node, 64, precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            off = (represent(made, node, x).float() - expected).abs().max() / expected.abs().max()
    fused = [part for part in made.modules() if isinstance(part, FusedConvolution)]
    # 20 convolutions: in each of 8 blocks one takes in the shortcut; 3 shortcuts are convolutions without a relu.
    assert len(fused) == 20 and sum(part.adds for part in fused) == 8
    assert sum(part.relu is not None for part in fused) == 17
    assert off <= (1e-5 if precision == "fp32" else 0.02)
    kinds = {type(part) for part in made.modules()}
    assert not kinds & {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}


class Sums(nn.Module):
    """Sums that are no shortcut: of another shape, of itself, with a factor, and of a result that is used again."""

    def __init__(self):
        super().__init__()
        for number in range(5):
            setattr(self, f"conv{number}", nn.Conv2d(3 if number == 0 else 4, 4, 1))
        self.bn, self.fc = nn.BatchNorm2d(3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv0(self.bn(x))
        x = self.conv1(x) + x.mean((2, 3), keepdim=True)
        y = self.conv2(x)
        x = torch.add(self.conv3(y + y), x, alpha=0.5)
        z = self.conv4(x)
        return self.fc((z.relu() + z + y).mean((2, 3)))


def test_other_sums_stay_as_they_are(images):
    torch.manual_seed(0)
    net, node = Sums().eval().requires_grad_(False), Node(HEAD_INPUT, "fc")
    with torch.inference_mode():
        expected = represent(net, node, images)
        made = ready(net, node, 12)
        assert torch.allclose(represent(made, node, images), expected, atol=1e-5)
    fused = [part for part in made.modules() if isinstance(part, FusedConvolution)]
    assert len(fused) == 5 and not any(part.adds or part.relu for part in fused)


def test_kernels_that_err_are_not_used(images, monkeypatch):
    net, node = Net().eval().requires_grad_(False), Node(HEAD_INPUT, "fc")
    monkeypatch.setattr(FusedConvolution, "forward", lambda self, x: x.mean() + x.new_zeros(2, 3, 12, 12))
    made = ready(net, node, 12)
    assert made is not net and isinstance(made.conv1, nn.Conv2d)


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

    out = embeddings.main(embeddings.parser().settings(
        ["--pairs", "1", "--images", "6", "--batch_size", "4", "--workers", "0", "--model", "resnet20", "--out",
         str(tmp_path / "x.json")]))
    written = json.loads(out.read_text())
    assert set(written["results"]) == {embeddings.FP32, embeddings.BF16} and "in fp32" in written["note"]
    assert written["results"][embeddings.BF16]["aim"] == 3
