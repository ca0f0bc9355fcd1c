"""The visual script: the published command offline, names of files, provenance, and what it refuses early."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from extractor.visual_element_emb_extractor import main, Settings
from iis.datasets import ImageSet
from iis.embedding_file import check_same_space, load_embeddings
from iis.cli import parse
from iis.runtime import UserError


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    rng = np.random.default_rng(0)
    for folder in ("elements", "data/train", "data/val"):
        for name in ("n01", "n02"):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{number}.png")
    (tmp_path / "toy.yaml").write_text(f"name: toy\nroot: {tmp_path}/data\n")
    return tmp_path


def stage1(place, **settings):
    settings = {"kind": "segments", "protocol": "paper", "dataset": "unnamed", "seed": 0, "classes": "2", **settings}
    (place / "elements" / "manifest.json").write_text(json.dumps(settings))
    (place / "elements" / "complete.json").write_text("{}")


def run(place, *more, model=("resnet20", "none")):
    main(parse(Settings, ["--model", model[0], "--weights", model[1], "--data-path", str(place / "elements"),
                            "--save_root", str(place / "embs"), "-b", "4", "-j", "0", "--device", "cpu", *more]))


def made(place):
    return sorted(file.relative_to(place / "embs").as_posix() for file in (place / "embs").rglob("*.p[kt]*")
                  if not file.name.endswith(".yaml"))


def test_published_command_with_a_stand_in_checkpoint(place):
    folder = place / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), folder / "resnet18-f37072fd.pth")
    stage1(place)
    run(place, "--config_yaml", "resnet18_IMAGENET1K_V1.yaml", "--target_layer_name", "fc",
        model=("resnet18", "IMAGENET1K_V1"))
    found = load_embeddings(place / "embs" / "resnet18" / "visual_element_emb.pkl")
    assert found.features_ND.shape == (4, 512) and found.class_names == ["n01", "n02"]
    assert found.labels_N.tolist() == [0, 0, 1, 1]
    assert found.provenance["node"] == "head_input" and found.record["layer"] == "fc"
    assert found.provenance["preprocessing"]["resize"] == 256
    assert found.provenance["elements"] == {"kind": "segments", "protocol": "paper", "dataset": "unnamed", "seed": 0}


@pytest.mark.parametrize(("settings", "more", "name"), [
    ({"dataset": "imagenet"}, (), "visual_element_emb.pkl"), ({}, (), "visual_element_emb.pkl"),
    ({"dataset": "imagenet", "kind": "patches"}, (), "patches_visual_element_emb.pkl"),
    ({"dataset": "imagenet", "protocol": "release"}, (), "release_visual_element_emb.pkl"),
    ({"dataset": "cub"}, (), "cub_segments_visual_element_emb.pkl"),
    ({}, ("--target_layer_name", "layer2"), "layer2_visual_element_emb.pkl")])
def test_names_carry_what_distinguishes(place, settings, more, name):
    stage1(place, **settings)
    run(place, "--model_name", "net", *more)
    assert made(place) == [f"net/{name}"]


def test_elements_made_elsewhere_take_their_kind_from_the_flag(place):
    run(place, "--element_kind", "patches", "--precision", "bf16")
    found = load_embeddings(place / "embs" / "resnet20__none-seed-0__bf16" / "patches_visual_element_emb.pkl")
    assert found.provenance["elements"] == {"kind": "patches", "made": "elsewhere"}
    assert found.provenance["precision"] == "bf16" and found.features_ND.dtype == torch.float32


def test_representations_at_layer3_live_in_the_space_of_elements_at_fc(place, capsys):
    stage1(place)
    flags = ("--dataset", str(place / "toy.yaml"), "--representations", "train,val", "--feature_layer", "layer3",
             "--model_name", "net")
    run(place, *flags)
    names = ["toy_segments_visual_element_emb.pkl", "toy_train_net_layer3.pt", "toy_val_net_layer3.pt"]
    assert made(place) == [f"net/{name}" for name in names]
    elements, _, images = [load_embeddings(place / "embs" / "net" / name) for name in names]
    check_same_space(elements, images, "these")
    assert (images.provenance["split"], images.provenance["elements"]) == ("val", None)
    assert images.record["layer"] == "layer3"
    run(place, *flags)
    assert capsys.readouterr().out.count("done already") == 3


def test_another_seed_of_the_weights_is_another_folder_and_refused_in_the_same(place):
    stage1(place)
    run(place)
    run(place, "--seed", "1")
    assert [name.split("/")[0] for name in made(place)] == ["resnet20__none-seed-0", "resnet20__none-seed-1"]
    with pytest.raises(UserError, match="weights .'none .seed 0.' and 'none .seed 2.'"):
        run(place, "--seed", "2", "--model_name", "resnet20__none-seed-0")


@pytest.mark.parametrize(("more", "message"), [
    (("--target_layer_name", "nonsense"), "no layer 'nonsense'"), (("--representations", "train"), "--dataset"),
    (("--element_kind", "patches"), "holds segments"), (("--data-path", "/nowhere"), "no folder /nowhere"),
    (("--val-crop-size", "90"), "cannot be cropped"), (("--representations", "test"), "train,val")])
def test_mistakes_are_told_before_anything_is_made(place, more, message):
    stage1(place)
    with pytest.raises(UserError, match=message):
        run(place, *more)
    assert made(place) == []


def test_unfinished_stage_1_and_nothing_to_do_are_told(place):
    stage1(place)
    (place / "elements" / "complete.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        run(place)
    with pytest.raises(UserError, match="say what to embed"):
        main(parse(Settings, ["--model", "resnet20", "--weights", "none"]))


def test_class_lists_that_differ_are_told(place):
    (place / "data" / "val" / "n02").rename(place / "data" / "val" / "n03")
    with pytest.raises(UserError, match="different classes"):
        run(place, "--dataset", str(place / "toy.yaml"), "--representations", "train,val")


def test_a_folder_that_cannot_be_written_is_told_first(place):
    (place / "embs").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write"):
        run(place)


def test_several_backbones_over_one_decode_make_the_files_each_makes_alone(place, monkeypatch):
    stage1(place)
    for name, seed in (("one", 1), ("two", 2)):
        (place / f"{name}.yaml").write_text(f"model: resnet20\nweights: none\nseed: {seed}\nmodel_name: {name}\n"
                                            "feature_layer: linear\ntarget_layer_name: linear\n")
    images = ["--dataset", str(place / "toy.yaml"), "--representations", "val", "--data-path",
                str(place / "elements"), "--device", "cpu", "-j", "0", "-b", "4"]
    for name in ("one", "two"):
        main(parse(Settings, ["--config_yaml", str(place / f"{name}.yaml"), "--save_root", str(place / "alone"),
                                *images]))
    opened = []
    whole = ImageSet.open
    monkeypatch.setattr(ImageSet, "open", lambda self, row: opened.append(self.names[row]) or whole(self, row))
    main(parse(Settings, ["--config_yaml", str(place / "one.yaml"), "--together", str(place / "two.yaml"),
                            "--save_root", str(place / "embs"), *images]))
    assert len(opened) == 8  # 4 elements and 4 validation images, once each
    files = made(place)
    assert len(files) == 4 and {file.split("/")[0] for file in files} == {"one", "two"}
    for file in files:
        ours, alone = (load_embeddings(place / root / file) for root in ("embs", "alone"))
        assert ours.content_hash == alone.content_hash and ours.provenance == alone.provenance
        assert (place / "embs" / f"{file}.settings.yaml").is_file()
