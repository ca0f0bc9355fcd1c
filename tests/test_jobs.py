"""Plans of stage 2: names of folders and files, and provenance that compares nodes and not spellings."""

import pytest

from extractor.embed import folder_name, plan
from iis.backbones import load_backbone
from iis.datasets import ImageSet
from iis.runtime import UserError


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("resnet20", "none")


def images(dataset="toy", split="train"):
    return ImageSet(dataset, split, ["a"], [0], ["a/0.png"], "nowhere")


def test_folder_carries_weights_and_precision_where_they_are_not_the_usual_ones(backbone):
    assert folder_name("resnet20", backbone) == "resnet20__none-seed-0"
    assert folder_name("resnet20", backbone, "bf16", "mine") == "mine__bf16"
    backbone.default_weights = backbone.weights
    assert folder_name("resnet20", backbone) == "resnet20"


def test_the_spelling_is_in_the_name_and_the_node_in_the_provenance(backbone, tmp_path):
    jobs = [plan(images(), backbone, layer, "net", tmp_path) for layer in ("layer3", "fc", "layer2")]
    assert [job.file.name for job in jobs] == [f"toy_train_net_{layer}.pt" for layer in ("layer3", "fc", "layer2")]
    assert [job.provenance["node"] for job in jobs] == ["head_input", "head_input", "layer2"]
    assert jobs[0].provenance == jobs[1].provenance
    assert jobs[0].record == {"layer": "layer3"}


def test_elements_of_an_unnamed_data_set_take_the_published_name(backbone, tmp_path):
    job = plan(images("unnamed", "elements"), backbone, "fc", "net", tmp_path, elements={"kind": "segments"})
    assert job.file == tmp_path / "net" / "visual_element_emb.pkl"
    assert job.provenance["elements"] == {"kind": "segments"} and job.provenance["dataset"] == "unnamed"


def test_unknown_layer(backbone, tmp_path):
    with pytest.raises(UserError, match="no layer 'layer9'"):
        plan(images(), backbone, "layer9", "net", tmp_path)
