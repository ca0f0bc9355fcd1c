"""The visual script and its settings: published flags, every YAML, names of files, provenance, what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from painted import class_folders

from extractor.settings import backbone_of
from extractor.visual_element_emb_extractor import Settings, main
from iis import cifar_resnet
from iis.backbones import torchvision_names
from iis.cli import parse
from iis.datasets import ImageSet
from iis.embedding_file import check_same_space, load_embeddings
from iis.runtime import ROOT, UserError

CONFIGS = sorted((ROOT / "model_configs").glob("*.yaml"))
PAPER = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vit_b_16", "vit_l_16", "swin_t", "swin_s",
         "swin_b", "convnext_tiny", "convnext_small", "convnext_base", "convnext_large"}

# ---- settings ----


def test_published_flags_keys_defaults_and_bad_values(tmp_path):
    given = parse(Settings, "--model resnet50 --data-path x --interpolation bilinear --val-resize-size 256 "
                            "--val-crop-size 224 --backend pil --device cpu".split())
    assert (given.target_layer_name, given.batch_size, given.workers, given.world_size, given.dist_url,
            given.backend) == ("fc", 32, 16, 1, "env://", "PIL")
    assert (given.val_resize_size, given.val_crop_size, given.interpolation) == (256, 224, "bilinear")
    (tmp_path / "a.yaml").write_text("model: resnet50\ndata_path: in\nbatch_size: 8\nmean: [0.1, 0.2, 0.3]\n")
    settings = parse(Settings, ["--config_yaml", str(tmp_path / "a.yaml"), "-b", "4"])
    assert (settings.batch_size, settings.val_resize_size, settings.mean) == (4, None, (0.1, 0.2, 0.3))
    assert settings.data_path == ROOT / "in"
    for flags in ("-b 0", "-j -1", "-b two", "--backend tensor", "--decoder gpu"):
        with pytest.raises(UserError):
            parse(Settings, ["--model", "resnet18", *flags.split()])


def test_flags_reach_the_backbone(capsys):
    backbone, device = backbone_of(parse(Settings, (
        "--model resnet20 --weights none --device cpu --world-size 4 --dist-url tcp://a:1 --val-resize-size 40 "
        "--val-crop-size 36 --interpolation bicubic --mean 0,0,0 --std 1,1,1 --published_top1 50").split()))
    assert "the launcher decides" in capsys.readouterr().err
    assert (backbone.width, device.type, backbone.published_top1) == (64, "cpu", 50)
    assert backbone.preprocessing == {"resize": 40, "crop": 36, "interpolation": "bicubic", "mean": [0, 0, 0],
                                      "std": [1, 1, 1]}
    with pytest.raises(UserError, match="missing.th"):  # --resume is a checkpoint and wins
        backbone_of(parse(Settings, "--model resnet20 --weights none --resume missing.th --device cpu".split()))


def test_every_yaml_is_accepted_and_the_papers_models_are_there(monkeypatch):
    from torchvision.models import get_model_weights

    monkeypatch.setenv("IIS_DATA", "data")
    for file in CONFIGS:
        settings = parse(Settings, ["--config_yaml", str(file)])
        model, weights = settings.model, settings.weights
        assert ":" in model or file.stem.startswith(model)
        if model in torchvision_names():
            assert file.stem == f"{model}_{weights}" and weights in get_model_weights(model).__members__
    tags = {model: "IMAGENET1K_SWAG_E2E_V1" if model == "vit_l_16" else "IMAGENET1K_V1" for model in PAPER}
    stems = {file.stem for file in CONFIGS}
    assert {f"{model}_{tag}" for model, tag in tags.items()} | set(cifar_resnet.NAMES) <= stems


# ---- the script ----


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for folder in ("elements", "data/train", "data/val"):
        class_folders(tmp_path / folder)
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
    found = load_embeddings(place / "embs" / "net" / name)
    assert found.features_ND.shape == (4, 32 if more else 64) and found.labels_N.tolist() == [0, 0, 1, 1]
    assert found.provenance["elements"] == {"kind": "segments", "protocol": "paper", "dataset": "unnamed", "seed": 0,
                                            **settings}


def test_representations_at_layer3_live_in_the_space_of_elements_at_fc(place, capsys):
    run(place, "--element_kind", "patches", "--precision", "bf16")  # made elsewhere, without a manifest
    found = load_embeddings(place / "embs" / "resnet20__none-seed-0__bf16" / "patches_visual_element_emb.pkl")
    assert found.provenance["elements"] == {"kind": "patches", "made": "elsewhere"}
    assert found.provenance["precision"] == "bf16" and found.features_ND.dtype == torch.float32
    stage1(place)
    flags = ("--dataset", str(place / "toy.yaml"), "--representations", "train,val", "--feature_layer", "layer3",
             "--model_name", "net")
    run(place, *flags)
    names = ["toy_segments_visual_element_emb.pkl", "toy_train_net_layer3.pt", "toy_val_net_layer3.pt"]
    assert made(place)[:3] == [f"net/{name}" for name in names]
    elements, _, images = [load_embeddings(place / "embs" / "net" / name) for name in names]
    check_same_space(elements, images, "these")
    assert (images.provenance["split"], images.provenance["elements"]) == ("val", None)
    assert images.record["layer"] == "layer3"
    run(place, *flags)
    assert capsys.readouterr().out.count("done already") == 3


@pytest.mark.parametrize(("more", "message"), [
    (("--target_layer_name", "nonsense"), "no layer 'nonsense'"), (("--representations", "train"), "--dataset"),
    (("--element_kind", "patches"), "holds segments"), (("--data-path", "/nowhere"), "no folder /nowhere"),
    (("--val-crop-size", "90"), "cannot be cropped"), (("--representations", "test"), "train,val")])
def test_mistakes_are_refused_before_anything_is_made(place, more, message):
    stage1(place)
    with pytest.raises(UserError, match=message):
        run(place, *more)
    assert made(place) == []


def test_other_weights_missing_inputs_and_a_folder_in_the_way_are_refused(place):
    stage1(place)
    for seed in ("0", "1"):
        run(place, "--seed", seed)
    assert [name.split("/")[0] for name in made(place)] == ["resnet20__none-seed-0", "resnet20__none-seed-1"]
    with pytest.raises(UserError, match="weights .'none .seed 0.' and 'none .seed 2.'"):
        run(place, "--seed", "2", "--model_name", "resnet20__none-seed-0")
    shutil.rmtree(place / "embs")
    (place / "elements" / "complete.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        run(place)
    with pytest.raises(UserError, match="say what to embed"):
        main(parse(Settings, ["--model", "resnet20", "--weights", "none"]))
    stage1(place)
    (place / "data" / "val" / "n02").rename(place / "data" / "val" / "n03")
    with pytest.raises(UserError, match="different classes"):
        run(place, "--dataset", str(place / "toy.yaml"), "--representations", "train,val")
    (place / "embs").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write"):
        run(place)


def test_several_backbones_over_one_decode_make_the_files_each_makes_alone(place, monkeypatch):
    stage1(place)
    images = ["--dataset", str(place / "toy.yaml"), "--representations", "val", "--data-path",
              str(place / "elements"), "--device", "cpu", "-j", "0", "-b", "4"]
    for seed, name in enumerate(("one", "two")):
        settings = {"model": "resnet20", "weights": "none", "seed": seed, "model_name": name,
                    "feature_layer": "linear", "target_layer_name": "linear"}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(settings))
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


def test_layers_of_one_pass_make_the_files_of_a_run_each(place, monkeypatch, capsys):
    stage1(place)
    names = {"layer1": "net__layer1", "layer2": "net__layer2", "head_input": "net"}
    flags = ("--dataset", str(place / "toy.yaml"), "--representations", "val")
    for layer, name in names.items():
        own = ("--feature_layer", layer, "--target_layer_name", layer) if layer != "head_input" else ()
        run(place, *flags, "--model_name", name, *own, "--save_root", str(place / "alone"))
    opened, whole = [], ImageSet.open
    monkeypatch.setattr(ImageSet, "open", lambda self, row: opened.append(self.names[row]) or whole(self, row))
    run(place, *flags, "--model_name", "net", "--layers", ",".join(names))
    assert len(opened) == 8  # 4 elements and 4 validation images, once each
    assert made(place) == sorted(f"{name}/{file}" for layer, name in names.items() for file in (
        "toy_segments_visual_element_emb.pkl", f"toy_val_{name}_{layer.replace('head_input', 'layer4')}.pt"))
    for file in made(place):
        ours, alone = (load_embeddings(place / root / file) for root in ("embs", "alone"))
        assert ours.content_hash == alone.content_hash and ours.provenance == alone.provenance
    assert load_embeddings(place / "embs" / made(place)[-1]).provenance["node"] == "layer2"
    elements, images = (load_embeddings(place / "embs" / file) for file in made(place)[2:4])
    check_same_space(elements, images, "these")
    (place / "embs" / made(place)[2]).unlink()  # of layer1: it alone is made again
    opened.clear()
    capsys.readouterr()
    run(place, *flags, "--model_name", "net", "--layers", ",".join(names))
    assert len(opened) == 4 and capsys.readouterr().out.count("done already") == 5


@pytest.mark.parametrize(("more", "message"), [
    (("--layers", "layer1,layer9"), "no layer 'layer9'; did you mean"),
    (("--layers", "layer1,layer2,layer1"), "layer twice"),
    (("--layers", "layer1,head_input", "--target_layer_name", "layer2"), "'layer2'.*an earlier layer")])
def test_layers_that_cannot_be_are_refused_before_anything_is_made(place, more, message):
    stage1(place)
    with pytest.raises(UserError, match=message):
        run(place, *more)
    assert made(place) == []


def test_a_dry_run_lists_every_layer(place, capsys):
    stage1(place)
    run(place, "--model_name", "net", "--layers", "layer1,layer2,head_input", "--dry_run")
    printed = capsys.readouterr().out
    assert [f"-> 4 x {width} float32" in printed for width in (16, 32, 64)] == [True] * 3 and made(place) == []


# ---- dry runs ----


def test_a_dry_run_has_the_shapes_and_makes_nothing(place, capsys):
    stage1(place)
    flags = ("--dataset", str(place / "toy.yaml"), "--representations", "train,val", "--model_name", "net")
    before = sorted(place.rglob("*"))
    run(place, *flags, "--dry_run")
    printed = capsys.readouterr().out
    assert sorted(place.rglob("*")) == before
    assert printed.count("dry run: stage 2,") == 3 and "toy_segments_visual_element_emb.pkl" in printed
    assert printed.count("shapes:   4 images of 3 x 32 x 32 -> 4 x 64 float32") == 3
    assert f"disk:     1.0 kB in {place}/embs/net (" in printed  # 4 x 64 x 4 bytes
    run(place, *flags)
    capsys.readouterr()
    run(place, *flags, "--dry_run")
    assert capsys.readouterr().out.count("is done already") == 3


def test_a_dry_run_counts_what_is_not_there_yet(place, capsys, monkeypatch):
    (place / "data" / "val").rename(place / "data" / "later")
    (place / "imagenet.yaml").write_text(f"root: {place}/absent\n")
    monkeypatch.setenv("IIS_PLANNED", str(place / "planned"))
    (place / "planned").touch()
    flags = ("--representations", "train,val", "--model_name", "net", "--dry_run", "--data-path", str(place / "none"))
    weights = ("resnet20", f"{place}/absent.th")
    run(place, "--dataset", str(place / "toy.yaml"), *flags, "--element_kind", "patches", model=weights)
    printed = capsys.readouterr().out
    assert "weights are not there yet" in printed and "patches at " in printed
    assert "64 images of 3 x 32 x 32" in printed  # 4 train images, 16 patches of each
    assert "the val images are not there yet: toy has no val folder" in printed
    assert "N images of 3 x 32 x 32 -> N x 64" in printed and "256 B an image, of an unknown number" in printed
    run(place, "--dataset", str(place / "toy.yaml"), *flags, model=weights)  # the segments of the same images
    printed = capsys.readouterr().out
    assert "60 images" in printed and printed.count("is counted above") == 2
    run(place, "--dataset", str(place / "imagenet.yaml"), *flags, model=weights)
    printed = capsys.readouterr().out
    assert all(f"{count} images of" in printed for count in ("150,000", "1,281,167", "50,000"))
    assert not (place / "embs").exists()
    with pytest.raises(UserError, match="no model 'resnet21'"):
        run(place, "--dry_run", model=("resnet21", "none"))


def test_the_bash_scripts_dry_run_counts_a_shared_file_once():
    done = subprocess.run(
        ["bash", str(ROOT / "emb_extractor.sh"), "--dry-run"], text=True, capture_output=True, timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "DEVICE": "cpu",
             "DATASET": "cifar100", "MODELS": "resnet20 resnet20", "IIS_DATA": "/nowhere"})
    assert done.returncode == 0, done.stderr
    for name, count in (("cifar100_train_resnet20_layer3.pt", "50,000"), ("cifar100_val_resnet20_layer3.pt", "10,000"),
                        ("cifar100_segments_visual_element_emb.pkl", "15,000"),
                        ("cifar100_patches_visual_element_emb.pkl", "16,000")):
        planned = [line for line in done.stdout.split("\n") if name in line]
        assert sum(line.startswith("dry run: stage 2, ") for line in planned) == 1
        assert sum(line.endswith("is counted above") for line in planned) == (3 if "layer3" in name else 1)
        assert f"{count} images of 3 x 32 x 32 -> {count} x 64 float32" in done.stdout
