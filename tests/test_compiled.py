"""--compile: one batch size, the same features, and one sentence where it does not work."""

import pytest
import torch
from torch import nn

from extractor import visual_element_emb_extractor as script
from extractor.fast_forward import Compiled
from iis.cli import parse
from iis.embedding_file import load_embeddings
from iis.layers import HEAD_INPUT, Node, represent

AT_HEAD = Node(HEAD_INPUT, "head.1")


class Net(nn.Module):
    """Its head lies in a part of its own, as ViT's does."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2))

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


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
            x = torch.randn(count, 3, 8, 8)
            assert torch.allclose(forward(x), represent(net, AT_HEAD, x), atol=1e-6)
    assert compiler.calls == [{"dynamic": False}] and compiler.batches == [4, 4] and forward.works
    assert isinstance(net.head[1], nn.Linear)  # the model itself keeps its head


def test_torch_compile_itself(net):
    forward = Compiled(net, AT_HEAD, 2, lambda module, **options: torch.compile(module, backend="eager", **options))
    with torch.inference_mode():
        x = torch.randn(2, 3, 8, 8)
        assert torch.allclose(forward(x), represent(net, AT_HEAD, x), atol=1e-6) and forward.works


@pytest.mark.parametrize(("node", "compiler", "said"), [
    (AT_HEAD, lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no C++ compiler\n here")), "no C++ compiler here"),
    (AT_HEAD, lambda module, **_: lambda x: module(x) + 1e-2, "off by"),
    (Node("conv", "conv", 1), lambda module, **_: module, "conv is not the head's input")])
def test_what_cannot_be_compiled_runs_as_it_is(net, node, compiler, said, capsys):
    forward, x = Compiled(net, node, 2, compiler), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(forward(x), represent(net, node, x))
    words = capsys.readouterr().err
    assert forward.works is False and said in words and words.count("the model runs uncompiled") == 1


def test_the_flag_reaches_the_model_and_is_recorded(shapes_images, tmp_path, monkeypatch, compiler):
    monkeypatch.setattr("extractor.embed.Compiled",
                        lambda module, node, batch: Compiled(module, node, batch, compiler))
    flags = ["--model", "resnet20", "--weights", "none", "--device", "cpu", "-b", "2", "-j", "0", "--data-path",
             str(shapes_images), "--save_root", str(tmp_path), "--model_name"]
    script.main(parse(script.Settings, [*flags, "plain"]))
    script.main(parse(script.Settings, [*flags, "fast", "--compile"]))
    plain, fast = (load_embeddings(tmp_path / name / "visual_element_emb.pkl") for name in ("plain", "fast"))
    assert compiler.batches == [2, 2] and (plain.record["compiled"], fast.record["compiled"]) == (False, True)
    assert torch.allclose(plain.features_ND, fast.features_ND, atol=1e-5)


@pytest.fixture
def shapes_images(tmp_path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for number in range(5):  # two batches of 2, and one
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "in"
