"""published.csv: every value has a source and a tolerance; torchvision's are those of the installed weights."""

import pytest
import yaml
from torchvision import models

from extractor.check_backbone import tolerance
from iis.runtime import ROOT
from reproduction.compare import PUBLISHED
from reproduction.lib.measured import KEY, read_lines

LINES = read_lines(ROOT / "reproduction" / "published.csv", ("value", "tolerance"), PUBLISHED)


def test_every_value_has_a_source_and_a_tolerance_and_every_key_is_there_once():
    assert all(line["source"] and line["unit"] in ("%", "area") for line in LINES)
    assert all(line["tolerance"] for line in LINES)
    keys = [tuple(line[name] for name in KEY) for line in LINES]
    assert len(set(keys)) == len(keys)


def test_nothing_is_quoted_from_the_paper():
    paper = [line for line in LINES if "2510.24105" in line["source"]]
    assert len(paper) == 14 * 4 + 14 * 3 + 4
    assert all(line["value"] is None and "not at hand" in line["source"] for line in paper)


def test_own_heads_are_torchvision_s_for_all_fourteen():
    configs = [yaml.safe_load(file.read_text()) for file in (ROOT / "model_configs").glob("*_IMAGENET1K_*.yaml")]
    ours = {(line["model"], line["setting"]): line for line in LINES
            if (line["method"], line["dataset"]) == ("original head", "imagenet")}
    assert len(configs) == 14 and set(ours) == {(config["model"], config["weights"]) for config in configs}
    for (model, tag), line in ours.items():
        weights = models.get_model_weights(model)[tag]
        assert line["value"] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert line["tolerance"] == pytest.approx(tolerance(line["value"], 50_000), abs=0.006)
        assert f"{type(weights).__name__}.{tag}" in line["source"]


def test_own_heads_of_the_cifar_resnets_are_what_check_backbone_expects():
    for line in LINES:
        if (line["method"], line["dataset"]) == ("original head", "cifar10"):
            config = (ROOT / "model_configs" / f"{line['model']}.yaml").read_text()
            assert f"published_top1: {line['value']:.2f}" in config and line["setting"] in config
            assert f"{100 - line['value']:.2f} %" in line["source"]


@pytest.mark.parametrize(("method", "setting", "values"), [
    ("LF-CBM", "elastic net", (86.37, 65.27, 74.59, 43.71, 71.98)),
    ("LF-CBM", "NEC = 5", (84.05, 56.52, 53.51, 37.65, 60.30)),
    ("random concepts", "NEC = 5", (67.55, 29.52, 68.91, 17.57, 41.49)),
    ("VLG-CBM", "NEC = 5", (88.55, 65.73, 75.79, 41.92, 73.15))])
def test_concept_bottlenecks_as_their_readmes_say(method, setting, values):
    """The READMEs' columns: CIFAR-10, CIFAR-100, CUB-200, Places365, ImageNet."""
    found = {line["dataset"]: line["value"] for line in LINES if (line["method"], line["setting"]) == (method, setting)}
    assert found == dict(zip(("cifar10", "cifar100", "cub", "places365", "imagenet"), values, strict=True))
