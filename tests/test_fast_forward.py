"""A backbone made ready, or compiled, gives the same features; where that fails it stays as it was."""

import pytest
import torch
from painted import class_folders
from torch import nn

from extractor import embed
from extractor import visual_element_emb_extractor as script
from extractor.fast_forward import Compiled, ready
from iis.backbones import load_backbone
from iis.cli import parse
from iis.embedding_file import load_embeddings
from iis.layers import HEAD_INPUT, Node, represent

AT_HEAD = Node(HEAD_INPUT, "head.1")


class Net(nn.Module):
    """Two convolutions with batch norms that have seen data; `twisted` looks at its numbers, so it cannot be traced.
    Its head lies in a part of its own, as ViT's does."""

    def __init__(self, twisted=False):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 7, 3), \
            nn.BatchNorm2d(7)
        self.head, self.twisted = nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 2)), twisted
        for part in (self.bn1, self.bn2):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 3)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        if self.twisted and x.sum() < 0:
            return x
        return self.head(self.bn2(self.conv2(x)).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def images(count=4):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def norms(module):
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


# ---- folding ----


@pytest.mark.parametrize("twisted", [False, True])
def test_the_same_features_with_and_without_folding(net, twisted):
    net.twisted = twisted
    with torch.inference_mode():
        expected = represent(net, AT_HEAD, images())
        made = ready(net, AT_HEAD, 12)
        found = represent(made, AT_HEAD, images().contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, atol=1e-5) and expected.std() > 0.1
    assert (made is net) is twisted and norms(made) == (2 if twisted else 0)
    assert norms(net) == 2  # the backbone itself keeps its layers
    convolutions = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 2
    assert all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in convolutions)
    assert twisted or not torch.equal(convolutions[0].weight, net.conv1.weight)  # scaled by the norm


def test_what_is_not_folded_and_a_cifar_resnet_is(net, monkeypatch):
    from torch.fx.experimental import optimization

    assert ready(net, Node("conv2", "conv2", 1), 12) is net  # an earlier layer needs the model as it is
    backbone = load_backbone("resnet20", "none")
    node, x = Node(HEAD_INPUT, backbone.head), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = represent(backbone.module, node, x)
        made = ready(backbone.module, node, 32)
        assert not norms(made) and torch.allclose(represent(made, node, x), expected, atol=1e-5)
    whole = optimization.fuse

    def off(module):
        folded = whole(module)
        folded.conv2.bias += 0.01
        return folded

    monkeypatch.setattr(optimization, "fuse", off)
    assert ready(net, AT_HEAD, 12) is net


# ---- --compile ----


@pytest.fixture
def compiler():
    def made(module, **options):
        made.calls.append(options)

        def run(x):
            made.batches.append(len(x))
            return module(x)

        return run

    made.calls, made.batches = [], []
    return made


def test_the_fixed_batch_is_compiled_once_and_others_run_as_they_are(net, compiler):
    forward = Compiled(net, AT_HEAD, 4, compiler)
    with torch.inference_mode():
        for count in (4, 3, 4, 1):
            assert torch.allclose(forward(images(count)), represent(net, AT_HEAD, images(count)), atol=1e-6)
        assert compiler.calls == [{"dynamic": False}] and compiler.batches == [4, 4, 4] and forward.works
        forward = Compiled(net, AT_HEAD, 2, lambda module, **more: torch.compile(module, backend="eager", **more))
        assert torch.allclose(forward(images(2)), represent(net, AT_HEAD, images(2)), atol=1e-6) and forward.works
    assert isinstance(net.head[1], nn.Linear)  # the model itself keeps its head


@pytest.mark.parametrize(("node", "compiler", "sentence"), [
    (AT_HEAD, lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no C++ compiler\n here")), "no C++ compiler here"),
    (AT_HEAD, lambda module, **_: lambda x: module(x) + 1e-2, "off by"),
    (Node("conv1", "conv1", 1), lambda module, **_: module, "conv1 is not the head's input")])
def test_what_cannot_be_compiled_runs_as_it_is(net, node, compiler, sentence, capsys):
    forward = Compiled(net, node, 2, compiler)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(forward(images(2)), represent(net, node, images(2)))
    printed = capsys.readouterr().err
    assert forward.works is False and sentence in printed and printed.count("the model runs uncompiled") == 1


def test_the_flag_reaches_the_model_and_is_recorded(tmp_path, monkeypatch, compiler):
    class_folders(tmp_path / "in", 5, names=["a"])  # two batches of 2, and one image
    monkeypatch.setattr(embed, "Compiled", lambda module, node, batch: Compiled(module, node, batch, compiler))
    flags = ["--model", "resnet20", "--weights", "none", "--device", "cpu", "-b", "2", "-j", "0", "--data-path",
             str(tmp_path / "in"), "--save_root", str(tmp_path), "--model_name"]
    script.main(parse(script.Settings, [*flags, "plain"]))
    script.main(parse(script.Settings, [*flags, "fast", "--compile"]))
    plain, fast = (load_embeddings(tmp_path / name / "visual_element_emb.pkl") for name in ("plain", "fast"))
    assert compiler.batches == [2, 2, 2, 2] and (plain.record["compiled"], fast.record["compiled"]) == (False, True)
    assert torch.allclose(plain.features_ND, fast.features_ND, atol=1e-5)
