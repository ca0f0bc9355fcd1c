"""The check of a backbone's original head, on a model whose accuracy is known by construction."""

import os
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from extractor.check_backbone import main, Settings, tolerance
from iis.cli import parse
from iis.runtime import UserError, read_json

# Tells dark images (class 0) from light ones (class 1).
OWN = '''
import torch
from torch import nn

def net(classes=2):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
    with torch.no_grad():
        model[2].weight.zero_()[1] = 1
        model[2].bias.zero_()
    model.preprocessing = {"resize": 8, "crop": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return model

def three():
    return net(3)
'''


@pytest.fixture
def place(tmp_path):
    for split in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(20):
                wrong = number < 2  # 2 of 20 in each class: top-1 is 90 %
                value = 230 if (label == 1) != wrong else 20
                Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / split / name / f"{number:02d}.png")
    (tmp_path / "net.py").write_text(OWN)
    (tmp_path / "toy.yaml").write_text(f"name: toy\nroot: {tmp_path}\n")
    return tmp_path


def run(place, *more, function="net"):
    main(parse(Settings, ["--model", f"{place}/net.py:{function}", "--dataset", str(place / "toy.yaml"), "-j", "0",
                            "--device", "cpu", "--save_root", str(place / "embs"), *more]))


def test_tolerance_is_three_standard_errors_and_at_least_0_3_points():
    assert tolerance(90, 10_000) == pytest.approx(0.9)  # 3 * sqrt(0.9 * 0.1 / 10000) = 0.009
    assert tolerance(76.13, 50_000) == pytest.approx(0.572, abs=1e-3)
    assert tolerance(99.9, 50_000) == 0.3


def test_agrees(place, capsys):
    run(place, "--published_top1", "90")
    said = capsys.readouterr().out
    assert "original head 90.00 % top-1 of 40 images" in said and "off by 0.00" in said


def test_off_is_an_error(place):
    with pytest.raises(UserError, match="90.00 % where 40.00 % is published"):
        run(place, "--published_top1", "40", "--model_name", "mine")
    kept = read_json(place / "embs" / "mine" / "own_head_toy.json")
    assert kept["top1"] == 90 and kept["pictures"] == 40 and kept["published_top1"] == 40 and kept["weights_hash"]


def test_wrong_order_of_classes_is_off(place, capsys):
    (place / "val" / "dark").rename(place / "val" / "z")
    with pytest.raises(UserError, match="order of the class folders"):
        run(place, "--published_top1", "90")
    assert "original head 10.00 %" in capsys.readouterr().out


def test_nothing_published_is_said(place, capsys):
    run(place)
    assert "nothing to compare with" in capsys.readouterr().out


def test_other_classes_are_said(place):
    with pytest.raises(UserError, match="knows 3 classes and toy has 2"):
        run(place, function="three")


def test_visual_script_reaches_it(place, capsys):
    from extractor.visual_element_emb_extractor import main as visual

    visual(parse(Settings, ["--model", f"{place}/net.py:net", "--dataset", str(place / "toy.yaml"), "-j", "0",
                              "--device", "cpu", "--published_top1", "90", "--check", "--save_root",
                              str(place / "embs")]))
    assert "original head 90.00 %" in capsys.readouterr().out


def test_needs_a_data_set(place):
    with pytest.raises(UserError, match="--dataset"):
        main(parse(Settings, ["--model", "resnet20", "--weights", "none"]))


@pytest.mark.skipif("IIS_DATA" not in os.environ, reason="IIS_DATA does not name the folder with cifar10.zip")
def test_resnet20_on_400_real_images(tmp_path, capsys):
    """91.73 % on all 10,000 (`check_backbone.py --config_yaml resnet20`); 400 allow 4.1 points."""
    with ZipFile(Path(os.environ["IIS_DATA"]) / "cifar10.zip") as archive:
        by_class = {}
        for name in archive.namelist():
            if name.startswith("test/") and name.endswith(".png"):
                by_class.setdefault(name.split("/")[1], []).append(name)
        for names in by_class.values():
            archive.extractall(tmp_path, names[:40])
    (tmp_path / "c.yaml").write_text(f"name: cifar10\nroot: {tmp_path}\nval: test\n")
    main(parse(Settings, ["--config_yaml", "resnet20", "--dataset", str(tmp_path / "c.yaml"), "-j", "0",
                            "--device", "cpu", "--save_root", str(tmp_path / "embs")]))
    assert "published 91.73 %" in capsys.readouterr().out
