"""Full float32 on CUDA unless TF32 is asked for: one place, which everything that computes goes through.

PyTorch's flags can be set and read on any machine, so no GPU is needed.
"""

import re

import pytest
import torch
from bank_runs import ledger, run, save_clip, text_flags
from conftest import clusters
from painted import class_folders
from torch import nn

import iis
from extractor import batches, embed, fast_forward, settings
from extractor import visual_element_emb_extractor as visual
from iis.cli import parse
from iis.embedding_file import load_embeddings
from iis.layers import HEAD_INPUT, Node
from iis.runtime import ROOT, UserError, float32_products
from IP_training import IP_Finetuning, IP_Prototype_training, IP_Text_training, elastic_net
from IP_training import train_heads as training

BACKENDS = torch.backends
NEWER = [part for part in (getattr(BACKENDS.cudnn, "conv", None), getattr(BACKENDS.cudnn, "rnn", None),
                           BACKENDS.cuda.matmul, getattr(BACKENDS.mkldnn, "matmul", None))
         if hasattr(part, "fp32_precision")]  # since PyTorch 2.9
SHORT = {"n_epoch": 1, "ratios": "0.5", "jobs": 1}


def flags() -> list:
    """Everything that decides the precision of float32, by both interfaces; "mixed" where PyTorch raises."""
    found = [part.fp32_precision for part in NEWER]
    for read in (lambda: BACKENDS.cuda.matmul.allow_tf32, lambda: BACKENDS.cudnn.allow_tf32,
                 torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    return found


def allowed() -> tuple[bool, bool]:
    """Whether matrix products, convolutions may use TF32."""
    return BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def put_back():
    """PyTorch's own flags, before and after each test."""
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    if NEWER:
        BACKENDS.fp32_precision = "none"
        for part, value in zip(NEWER, ("tf32", "tf32", "none", "none"), strict=True):
            part.fp32_precision = value


@pytest.fixture
def tf32():
    """A user who has allowed TF32 everywhere."""
    BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = True
    before = flags()
    yield
    assert flags() == before


def newer(name, value):
    """Set a flag that PyTorch has since 2.9."""
    part = {"all": BACKENDS, "conv": getattr(BACKENDS.cudnn, "conv", None), "matmul": BACKENDS.cuda.matmul}[name]
    if not NEWER:
        pytest.skip("this PyTorch has one interface")
    part.fp32_precision = value


@pytest.mark.parametrize("before", [
    lambda: None, lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    lambda: setattr(BACKENDS.cudnn, "allow_tf32", False), lambda: torch.set_float32_matmul_precision("medium"),
    lambda: newer("conv", "ieee"), lambda: newer("matmul", "tf32"), lambda: newer("all", "tf32")],
    ids=["default", "products", "no convolutions", "medium", "newer, conv", "newer, products", "newer, all"])
def test_full_float32_whatever_was_set_and_all_of_it_is_put_back(before):
    before()
    was = flags()
    for tf32 in (False, True):
        with float32_products(tf32):
            assert allowed() == (tf32, tf32) and "mixed" not in flags()
            assert {part.fp32_precision for part in NEWER[:3]} <= {"tf32" if tf32 else "ieee"}
            with float32_products(not tf32):  # one in another
                assert allowed() == (not tf32, not tf32)
            assert allowed() == (tf32, tf32)
        assert flags() == was
    with pytest.raises(ZeroDivisionError), float32_products():
        raise ZeroDivisionError
    assert flags() == was


def test_no_other_place_sets_it():
    files = [file for folder in ("iis", "extractor", "IP_training", "reproduction", "demo", "bench")
             for file in (ROOT / folder).rglob("*.py")]
    assert [file.name for file in files if re.search(r"allow_tf32 *=|fp32_precision *=|set_float32_matmul",
                                                     file.read_text())] == ["runtime.py"]


def watch(monkeypatch, module, name):
    """The flags seen at each call of module.name."""
    seen, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **named: (seen.append(allowed()), function(*args, **named))[1])
    return seen


# ---- stage 2 ----


class Net(nn.Sequential):
    """A convolution and a head, which note the flags."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        self.seen = []

    def forward(self, x):
        self.seen.append(allowed())
        return super().forward(x)


@pytest.mark.parametrize("precision, expected", [("fp32", False), ("tf32", True), ("bf16", False)])
def test_precision_is_what_it_says(tf32, precision, expected):
    with batches.precise(torch.device("cpu"), precision):
        assert allowed() == (expected, expected) and torch.is_autocast_enabled("cpu") == (precision == "bf16")


def test_a_fold_is_tried_in_full_float32_and_left_out_with_a_sentence(tf32, monkeypatch, capsys):
    seen, net = watch(monkeypatch, fast_forward, "represent"), Net().eval().requires_grad_(False)
    node = Node(HEAD_INPUT, "4")
    assert sum(type(part) is nn.BatchNorm2d for part in fast_forward.ready(net, node, 8).modules()) == 0
    assert seen == [(False, False)] * 2 and not capsys.readouterr().err
    monkeypatch.setattr(fast_forward, "distance", lambda *_: 2e-4)
    assert fast_forward.ready(net, node, 8) is net
    said = capsys.readouterr().err
    assert "0.0002" in said and said.count("\n") == 1


def test_stage_2_records_the_precision(tf32, tmp_path, monkeypatch):
    class_folders(tmp_path / "elements", 2)
    (tmp_path / "own.py").write_text("from test_float32 import Net\n\ndef net():\n    made = Net()\n"
                                     "    made.preprocessing = {'resize': 8, 'crop': 8}\n    return made\n")
    seen, found = watch(monkeypatch, embed, "represent"), {}
    for more in ([], ["--tf32"]):
        visual.main(parse(visual.Settings, [
            "--model", f"{tmp_path}/own.py:net", "--weights", "none", "--data-path", str(tmp_path / "elements"),
            "--element_kind", "segments", "--save_root", str(tmp_path / "embs"), "--device", "cpu", "--workers", "1",
            *more]))
    for file in tmp_path.glob("embs/*/*.pkl"):
        found[file.parent.name.partition("__tf32")[1]] = load_embeddings(file).provenance["precision"]
    assert found == {"": "fp32", "__tf32": "tf32"}
    assert seen == [(False, False)] * (len(seen) // 2) + [(True, True)] * (len(seen) // 2) and len(seen) > 2


def test_tf32_is_a_precision_and_contradicts_bf16():
    made = parse(settings.EmbeddingSettings, ["--model", "resnet18", "--tf32"])
    assert made.precision == "tf32" and parse(settings.EmbeddingSettings, ["--model", "resnet18"]).precision == "fp32"
    with pytest.raises(UserError, match="bf16"):
        parse(settings.EmbeddingSettings, ["--model", "resnet18", "--tf32", "--precision", "bf16"])


# ---- stage 3 ----


@pytest.mark.parametrize("switches", [(), ("--tf32",)])
def test_heads_train_in_full_float32(tf32, toy, monkeypatch, switches):
    seen = watch(monkeypatch, training, "evaluate")
    rows = ledger(run(IP_Prototype_training, toy, "out", *switches, **SHORT))
    assert set(seen) == {(bool(switches),) * 2} and {row.get("tf32", False) for row in rows} == {bool(switches)}
    assert {row["precision"] for row in rows} == {"fp32"}  # of the features


def test_the_elastic_net_and_its_bank_too(tf32, toy, monkeypatch):
    save_clip(toy)
    seen = watch(monkeypatch, elastic_net, "fit_elastic_net")
    run(IP_Text_training, toy, "out", seeds=1, **text_flags(toy, n_epoch=1, n_iters=2, jobs=1))
    assert set(seen) == {(False, False)}


def test_a_fine_tuned_folder_is_called_as_before_and_with_tf32_by_another_name():
    assert "tf32" in IP_Finetuning.NOT_IDENTITY  # manifests of before say nothing of it
    plain, fast = (IP_Finetuning.default_folder(IP_Finetuning.Settings(tf32=on), "toy", 20).name
                   for on in (False, True))
    assert fast == f"{plain}_tf32"


# ---- the Python call ----


@pytest.mark.parametrize("on", [False, True])
def test_the_python_call_leaves_the_flags_as_they_were(tf32, monkeypatch, on):
    seen, (train, val) = watch(monkeypatch, training, "evaluate"), (clusters(60, "train"), clusters(40, "val"))
    monkeypatch.setattr("iis.processes.available_cores", lambda: 1)  # here, where it is seen
    result = iis.score(train.features_ND, train.labels_N, val.features_ND, val.labels_N, "random", 8, seeds=1, epochs=1,
                       learning_rates=(0.01,), draws=2, show_progress=False, tf32=on)
    assert set(seen) == {(on, on)} and [row.get("tf32", False) for row in result.rows] == [on] * len(result.rows)
    net = Net()
    iis.embed(net, torch.randn(2, 3, 8, 8), show_progress=False, tf32=on)
    assert set(net.seen) == {(on, on)}
