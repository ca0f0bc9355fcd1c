"""The published commands, verbatim but for the data and the numbers that describe it, in a copy of the tree.

The textual one needs a stand-in for CLIP and is run in test_textual_emb_extractor.py.
"""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_end_to_end import copy_tree

# As published (design, section 6); only --num_concepts, --num_classes and --n_epoch are those of the tiny data.
COMMANDS = """
cd ./extractor
python segment_extractor.py --data_root ${dataset_traindir} --save_root ../concept_library/visual/segments
python patch_extractor.py --data_root ${dataset_traindir} --save_root ../concept_library/visual/patches
python visual_element_emb_extractor.py --config_yaml ../model_configs/resnet50_IMAGENET1K_V1.yaml --model resnet50 \
--target_layer_name fc --weights IMAGENET1K_V1 --data-path ../concept_library/visual/segments
"""
REPRESENTATIONS = """
python visual_element_emb_extractor.py --config_yaml resnet50 --dataset imagenet --representations train,val
"""
TRAINING = """
cd ../IP_training
python IP_Prototype_training.py --model_name resnet50 --in_channels 2048 \
--concept_path ../extractor/embs/resnet50/visual_element_emb.pkl --num_concepts 20 --num_classes 3 --n_epoch 2 \
--train_pt ../extractor/embs/resnet50/imagenet_train_resnet50_layer4.pt \
--val_pt ../extractor/embs/resnet50/imagenet_val_resnet50_layer4.pt --save_dir ./IP_Prototype/resnet50
cd ../
python iis_computing.py --model_root ./IP_Prototype/resnet50
bash concept_extract.sh; bash emb_extractor.sh
"""
SYNSETS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The suite with 3 classes x 2 images as ImageNet, and a ResNet-50 of random weights under the real file name."""
    from torchvision.models import ResNet50_Weights, resnet50

    folder = tmp_path_factory.mktemp("published")
    tree = copy_tree(folder)
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for synset in SYNSETS:
            (tree / "datasets" / "imagenet" / split / synset).mkdir(parents=True)
            for index in range(2):
                coarse = (torch.rand(4, 5, 3, generator=generator) * 255).byte().numpy()
                image = Image.fromarray(coarse).resize((100, 80), Image.BICUBIC)
                image.save(tree / "datasets" / "imagenet" / split / synset / f"{synset}_{index}.JPEG")
    checkpoints = folder / "torch_home" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet50(weights=None).state_dict(), checkpoints / ResNet50_Weights.IMAGENET1K_V1.url.split("/")[-1])
    return tree


def run_lines(tree, lines):
    """The commands in one shell, as they would be typed; `python` is this one."""
    binaries = tree.parent / "bin"
    binaries.mkdir(exist_ok=True)
    if not (binaries / "python").exists():
        (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (binaries / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHON": "python",
                   "TORCH_HOME": str(tree.parent / "torch_home"),
                   "dataset_traindir": str(tree / "datasets" / "imagenet" / "train")}
    return subprocess.run(["bash", "-e", "-c", lines], cwd=tree, env=environment, text=True, capture_output=True,
                          timeout=290)


def test_the_published_commands_run_as_they_stand(tree):
    done = run_lines(tree, COMMANDS + REPRESENTATIONS + TRAINING)
    assert done.returncode == 0, done.stderr[-3000:]
    embeddings = tree / "extractor" / "embs" / "resnet50"
    for name in ("visual_element_emb.pkl", "imagenet_train_resnet50_layer4.pt", "imagenet_val_resnet50_layer4.pt"):
        assert (embeddings / name).exists(), name
    assert "IIS = " in done.stdout
    assert (tree / "IP_training" / "IP_Prototype" / "resnet50" / "results.jsonl").exists()
    # The scripts, with nothing set, find what the commands made.
    assert list(embeddings.glob("*visual_element_emb.pkl")) and (embeddings / "patches_visual_element_emb.pkl").exists()


def test_elements_at_fc_and_images_at_layer4_are_one_node(tree):
    elements = torch.load(tree / "extractor/embs/resnet50/visual_element_emb.pkl", weights_only=True)
    images = torch.load(tree / "extractor/embs/resnet50/imagenet_train_resnet50_layer4.pt", weights_only=True)
    assert elements["provenance"]["node"] == images["provenance"]["node"]
    assert elements["features"].shape[1] == images["features"].shape[1] == 2048
    assert elements["record"]["layer"] == "fc" and images["record"]["layer"] == "layer4"


def test_the_commands_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    for line in COMMANDS.strip().splitlines()[1:3]:
        assert line in readme
