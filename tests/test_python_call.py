"""The IIS from Python: the scripts' numbers exactly, every form of input, errors that name the value, and no files."""

import io
import warnings

import numpy as np
import pytest
import torch
from conftest import clusters, prototype_flags
from PIL import Image
from torch import nn
from torchvision import transforms

import iis
from iis.cli import parse
from iis.grid import RATIOS
from iis.results import read_ledger
from iis.runtime import UserError
from iis.summary import summarise
from IP_training import IP_Bank_training, IP_Prototype_training

TRAIN, VAL, ELEMENTS = clusters(300, "train"), clusters(200, "val"), clusters(80, "elements")
LABELS = TRAIN.labels_N, VAL.labels_N
SHORT = {"num_concepts": 20, "seeds": 1, "epochs": 2, "batch_size": 64, "draws": 50, "show_progress": False}


def score(x_train=TRAIN.features_ND, x_val=VAL.features_ND, y_train=LABELS[0], y_val=LABELS[1], **changes):
    return iis.score(x_train, y_train, x_val, y_val, **{**SHORT, **changes})


def numbers(rows):
    keys = ("seed", "ratio", "learning_rate", "top1_by_epoch", "loss", "hits")
    return [{key: row[key] for key in keys} for row in rows]


@pytest.mark.parametrize(("script", "flags", "bank"), [
    (IP_Prototype_training, {}, iis.banks.prototypes(ELEMENTS, 20)), (IP_Bank_training, {"kind": "Random"}, "random")])
def test_the_numbers_are_the_scripts(toy, script, flags, bank, monkeypatch):
    flags = prototype_flags(toy, toy / "out", seeds=2, dense_heads_dir=toy / "dense", **flags)
    rows = read_ledger(script.main(parse(script.Settings, list(map(str, flags)))) / "results.jsonl")
    before = sorted(toy.rglob("*"))
    monkeypatch.chdir(toy)
    result, summary = score(bank=bank, seeds=2), summarise(rows, SHORT["draws"])
    assert sorted(toy.rglob("*")) == before  # nothing is written
    assert len(result.rows) == 2 * (8 * 3 + 3)
    assert sorted(numbers(result.rows), key=str) == sorted(numbers(rows), key=str)
    for key in ("iis", "curves", "bootstrap", "dense", "chance", "table", "bank", "num_concepts"):
        assert result.summary[key] == summary[key], key
    assert (result.iis, result.std) == (summary["iis"]["mean"], summary["iis"]["std"])
    assert result.interval == tuple(summary["bootstrap"]["interval_95"]) and result.interval[0] < result.iis
    assert result.curve == dict(zip(summary["ratios"], np.mean(summary["curves"]["best"]["arr"], axis=0), strict=True))


def test_every_form_of_input_gives_the_same_numbers():
    half = TRAIN.features_ND.half(), VAL.features_ND.half()
    words = [np.array(TRAIN.class_names)[labels].tolist() for labels in LABELS]
    usual = numbers(score(*(x.float() for x in half)).rows)
    assert numbers(score(*half).rows) == usual
    assert numbers(score(*(x.double().numpy() for x in half), *words).rows) == usual
    make = iis.banks.prototypes(ELEMENTS, 20)
    made, usual = make(iis.banks.Seed(0, 0)), numbers(score(bank=make).rows)
    assert numbers(score(bank=made).rows) == numbers(score(bank=made.vectors_MD.numpy()).rows) == usual


NAN = TRAIN.features_ND.clone()
NAN[3, 2] = torch.nan


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"bank": "randm"}, "bank = 'randm'"), ({"bank": torch.eye(11)}, "D = 11"), ({"x_train": NAN}, "x_train.* row 3"),
    ({"y_val": np.array(["class 0"] * 199 + ["zebra"]), "y_train": ["class 0"] * 300}, "y_train lacks: .'zebra'"),
    ({"x_val": VAL.features_ND.view(200, 3, 4)}, r"x_val has shape \(200, 3, 4\)"), ({"ratios": (0,)}, "lacks .0.1"),
    ({"x_val": VAL.features_ND.long()}, "torch.int64"), ({"x_val": VAL.features_ND[:, 1:]}, "D = 12 and x_val D = 11"),
    ({"y_train": LABELS[0][:299]}, r"x_train: 300 rows .* shape \(299,\)"), ({"epochs": 0}, "epochs = 0")])
def test_what_cannot_be_scored_is_named(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        score(**changes)


@pytest.mark.filterwarnings("ignore::UserWarning")  # those beside the one that is asked for
def test_a_number_that_means_nothing_is_a_warning():
    noise = torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="close to chance"):
        score(*noise.split((300, 200)))
    with pytest.warns(UserWarning, match="saturated"):
        score(*(10 * torch.eye(4)[labels] for labels in LABELS), epochs=20, learning_rates=(0.1,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score()
    frame, file = result.frame(), io.BytesIO()
    assert frame["top1"][0] == result.dense and frame["ratio"].tolist()[1:] == list(RATIOS) and result.std is None
    assert frame["arr"].tolist()[1:] == list(result.curve.values())
    result.plot().savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG") and len(file.getvalue()) > 5000


def test_a_dense_head_that_gets_nothing_right_is_a_sentence():
    with pytest.raises(UserError, match="the dense head of seed 0 gets no validation image right"):
        score(*(10 * torch.eye(4)[labels] for labels in LABELS), y_val=(LABELS[1] + 1) % 4, learning_rates=(0.1,))


def test_embed_is_the_heads_input_and_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
                        nn.Flatten(), nn.Dropout(), nn.Linear(20, 4)).eval()
    images, seen = torch.randn(7, 3, 8, 8), {}
    hooks = [net[6].register_forward_pre_hook(lambda _, inputs: seen.update(head=inputs[0])),
             net[0].register_forward_hook(lambda *call: seen.update(conv=call[2].mean((2, 3))))]
    net(images)
    [hook.remove() for hook in hooks]
    net.train()[1].eval()  # batch norm frozen by the model's owner
    modes, quiet = [part.training for part in net.modules()], {"batch_size": 3, "show_progress": False, "device": "cpu"}
    assert torch.allclose(iis.embed(net, images, **quiet), seen["head"], atol=1e-6)
    assert torch.allclose(iis.embed(net, images, "0", **quiet), seen["conv"], atol=1e-6)
    for wrong, node, sentence in ((images, "9", "layer '9'"), ([], None, "at least one image"),
                                  (images[0], None, r"images are \(3, "), ([images[0]], None, "images are Tensor"),
                                  (images.int(), None, "int32")):
        with pytest.raises(UserError, match=sentence):
            iis.embed(net, wrong, node, **quiet)
    assert [part.training for part in net.modules()] == modes and not net[6]._forward_pre_hooks
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 15), dtype=np.uint8)
    grey, settings = [Image.fromarray(one) for one in pixels], {"resize": 10, "crop": 8, "mean": (0.5,) * 3}
    transform = transforms.Compose([transforms.Resize(10), transforms.CenterCrop(8), transforms.ToTensor(),
                                    transforms.Normalize((0.5,) * 3, (0.229, 0.224, 0.225))])
    ready = iis.embed(net, torch.stack([transform(one.convert("RGB")) for one in grey]), **quiet)
    assert torch.allclose(iis.embed(net, grey, settings=settings, **quiet), ready, atol=1e-5)
    net.preprocessing = settings
    assert torch.allclose(iis.embed(net, grey, **quiet), ready, atol=1e-5)
