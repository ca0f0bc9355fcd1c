"""The published flags and defaults, the launcher's flags, and every YAML of model_configs/."""

import pytest

from extractor.settings import backbone_of
from extractor.visual_element_emb_extractor import Settings
from iis import cifar_resnet
from iis.backbones import torchvision_names
from iis.cli import parse
from iis.runtime import ROOT, UserError

CONFIGS = sorted((ROOT / "model_configs").glob("*.yaml"))
PAPER = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vit_b_16", "vit_l_16", "swin_t", "swin_s",
         "swin_b", "convnext_tiny", "convnext_small", "convnext_base", "convnext_large"}


def test_published_flags_and_defaults():
    args = parse(Settings, "--model resnet50 --data-path x --interpolation bilinear --val-resize-size 256 "
                             "--val-crop-size 224 --backend PIL --device cpu".split())
    assert (args.target_layer_name, args.batch_size, args.workers, args.world_size, args.dist_url, args.backend) \
        == ("fc", 32, 16, 1, "env://", "PIL")
    assert (args.val_resize_size, args.val_crop_size, args.interpolation) == (256, 224, "bilinear")
    left_out = parse(Settings, ["--model", "resnet50"])
    assert (left_out.val_resize_size, left_out.val_crop_size, left_out.interpolation) == (None, None, None)


def test_published_keys_in_a_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("model: resnet50\ndata_path: in\nbatch_size: 8\nval_resize_size: 300\n"
                                     "mean: [0.1, 0.2, 0.3]\n")
    args = parse(Settings, ["--config_yaml", str(tmp_path / "a.yaml"), "-b", "4"])
    assert (args.batch_size, args.val_resize_size, args.mean) == (4, 300, (0.1, 0.2, 0.3))
    assert args.data_path == ROOT / "in"


def test_launcher_flags_are_accepted_and_explained(capsys):
    args = parse(Settings, "--model resnet20 --weights none --device cpu --world-size 4 --dist-url tcp://a:1".split())
    backbone, device = backbone_of(args)
    assert "the launcher decides" in capsys.readouterr().err
    assert (backbone.width, device.type) == (64, "cpu")


def test_resume_is_a_checkpoint_and_wins():
    args = parse(Settings, "--model resnet20 --weights none --resume missing.th --device cpu".split())
    with pytest.raises(UserError, match="missing.th"):
        backbone_of(args)


def test_preprocessing_flags_reach_the_backbone(capsys):
    args = parse(Settings, "--model resnet20 --weights none --device cpu --val-resize-size 40 --val-crop-size 36 "
                             "--interpolation bicubic --mean 0,0,0 --std 1,1,1".split())
    assert backbone_of(args)[0].preprocessing == {"resize": 40, "crop": 36, "interpolation": "bicubic",
                                                  "mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.mark.parametrize("flags", ["-b 0", "-j -1", "-b two", "--backend tensor"])
def test_bad_values_are_one_sentence(flags):
    with pytest.raises(UserError):
        parse(Settings, ["--model", "resnet18", *flags.split()])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_yaml_is_accepted(file, monkeypatch):
    from torchvision.models import get_model_weights

    monkeypatch.setenv("IIS_DATA", "data")
    args = parse(Settings, ["--config_yaml", str(file)])
    assert ":" in args.model or file.stem.startswith(args.model)
    if args.model in torchvision_names():
        assert file.stem == f"{args.model}_{args.weights}" and args.weights in get_model_weights(args.model).__members__


def test_the_fourteen_of_the_paper_and_the_cifar_resnets_are_there():
    stems = {file.stem for file in CONFIGS}
    tags = {model: "IMAGENET1K_SWAG_E2E_V1" if model == "vit_l_16" else "IMAGENET1K_V1" for model in PAPER}
    assert {f"{model}_{tag}" for model, tag in tags.items()} | set(cifar_resnet.NAMES) <= stems
