"""Images to IIS as users run it: the published commands verbatim, the three bash scripts, `--help` from anywhere.

In copies of the tree, so that what the scripts write stays out of the repository.
"""

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, run_script
from PIL import Image

from iis.cli import parser_of

# As published; only --num_concepts, --num_classes and --n_epoch are those of the tiny data.
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


def copy_tree(folder):
    """The suite's own files without what runs have made."""
    made = [entry.name for entry in (ROOT / "IP_training").glob("IP_*") if entry.is_dir()]
    ignore = shutil.ignore_patterns(".git", ".venv", "datasets", "embs", "weights", "results", "visual", "dense_heads",
                                    "__pycache__", "tests", "*.partial", *made)
    shutil.copytree(ROOT, folder / "iis_suite", ignore=ignore)
    return folder / "iis_suite"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the suite with 160 + 80 images of `shapes` and a small backbone of random weights."""
    tree = copy_tree(tmp_path_factory.mktemp("tree"))
    painted = run_script("demo/paint_shapes.py", "--train", 160, "--val", 80, root=tree)
    assert painted.returncode == 0, painted.stderr
    (tree / "model_configs" / "tiny.yaml").write_text(
        "model: demo/small_backbones.py:shapes_small\nweights: none\nmodel_name: tiny\nfeature_layer: fc\n"
        "val_resize_size: 64\nval_crop_size: 64\n")
    return tree


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A copy of the suite with 3 classes x 2 images as ImageNet, and a ResNet-50 of random weights under the real file
    name."""
    from torchvision.models import ResNet50_Weights, resnet50

    folder = tmp_path_factory.mktemp("published")
    tree = copy_tree(folder)
    generator = torch.Generator().manual_seed(0)
    for place in (tree / "datasets" / "imagenet" / split / synset for split in ("train", "val") for synset in SYNSETS):
        place.mkdir(parents=True)
        for index in range(2):
            coarse = (torch.rand(4, 5, 3, generator=generator) * 255).byte().numpy()
            Image.fromarray(coarse).resize((100, 80), Image.BICUBIC).save(place / f"{place.name}_{index}.JPEG")
    checkpoints = folder / "torch_home" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet50(weights=None).state_dict(), checkpoints / ResNet50_Weights.IMAGENET1K_V1.url.split("/")[-1])
    return tree


def bash(tree, *words, **settings):
    """bash in the tree with settings from the environment; `python` is this one."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(["bash", *words], cwd=tree, env=environment, text=True, capture_output=True, timeout=290)


def plain_iis(ledger):
    """The IIS by a plain loop over the ledger: best top-1 per ratio over best dense top-1, trapezoids, mean."""
    best, scores = {}, []
    for row in map(json.loads, ledger.read_text().split("\n")[:-1]):
        key = (row["seed"], row["ratio"])
        best[key] = max(best.get(key, 0), row["top1"])
    for seed in (0, 1):
        dense = best.pop((seed, -1.0))
        curve = sorted((ratio, top1 / dense) for (owner, ratio), top1 in best.items() if owner == seed)
        pairs = zip(curve, curve[1:], strict=False)
        scores.append(sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairs))
    return sum(scores) / 2


def test_the_three_scripts_from_images_to_the_iis(tree):
    settings = {"DATASET": "shapes", "MODELS": "tiny", "SEEDS": "2", "EPOCHS": "2", "NUM_CONCEPTS": "16",
                "OUT": "ledgers", "IMAGES_PER_CLASS": "2", "ELEMENTS": "segments patches", "DEVICE": "cpu",
                "HEAD_BATCH_SIZE": "32", "LEARNING_RATES": "0.01,0.1", "HOLDOUT": "0.2", "RESULTS": "tables"}
    for name in ("concept_extract.sh", "emb_extractor.sh", "ip_train.sh"):
        done = bash(tree, name, **settings)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
    for kind in ("segments", "patches"):
        folder = next((tree / "ledgers" / "IP_Prototype" / "tiny").glob(f"shapes_{kind}_M16*"))
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().split("\n")[:-1]]
        assert {(row["batch_size"], row["holdout"]) for row in rows} == {(32, 0.2)} and len(rows) == 2 * 9 * 2
        result = json.loads((folder / "iis.json").read_text())
        assert result["seeds"] == [0, 1] and len(result["ratios"]) == 8
        if not result["holdout"]:
            assert result["iis"]["mean"] == pytest.approx(plain_iis(folder / "results.jsonl"))
        assert (folder / "iis.png").stat().st_size > 10_000 and (folder / "iis.pdf").stat().st_size > 5_000
    # Another data set whose name begins the same is no row of this comparison.
    other = tree / "ledgers" / "IP_Prototype" / "tiny" / "shapes_two_segments_M16"
    shutil.copytree(folder, other)
    text = (other / "results.jsonl").read_text().replace('"dataset": "shapes"', '"dataset": "shapes_two"')
    (other / "results.jsonl").write_text(text)
    again = bash(tree, "ip_train.sh", **settings)
    assert again.returncode == 0 and "all were done already" in again.stdout
    assert "shapes_two" not in (tree / "tables" / "comparison.csv").read_text()


def test_missing_data_says_how_to_go_on(tree):
    done = bash(tree, "concept_extract.sh")
    assert done.returncode == 2 and "imagenet" in done.stderr and "DATASET=shapes" in done.stderr
    assert "Traceback" not in done.stderr
    for name in ("concept_extract.sh", "emb_extractor.sh", "ip_train.sh"):  # a dry run does not stop for it
        dry = bash(tree, name, "--dry-run", DATASET="shapes", MODELS="shapes_small")
        assert "dry run" in dry.stdout and "Traceback" not in dry.stderr, name


def test_the_published_commands_run_as_they_stand(imagenet):
    binaries = imagenet.parent / "bin"
    binaries.mkdir()
    (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (binaries / "python").chmod(0o755)
    done = bash(imagenet, "-e", "-c", COMMANDS + REPRESENTATIONS + TRAINING, PYTHON="python",
                PATH=f"{binaries}:{os.environ['PATH']}", TORCH_HOME=str(imagenet.parent / "torch_home"),
                dataset_traindir=str(imagenet / "datasets" / "imagenet" / "train"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "IIS = " in done.stdout
    assert (imagenet / "IP_training" / "IP_Prototype" / "resnet50" / "results.jsonl").exists()
    place = imagenet / "extractor" / "embs" / "resnet50"
    assert (place / "patches_visual_element_emb.pkl").exists()  # the bash scripts, with nothing set
    elements, images = (torch.load(place / name, weights_only=True) for name in
                        ("visual_element_emb.pkl", "imagenet_train_resnet50_layer4.pt"))
    assert elements["provenance"]["node"] == images["provenance"]["node"]  # fc and layer4 are one place
    assert elements["features"].shape[1] == images["features"].shape[1] == 2048
    assert (elements["record"]["layer"], images["record"]["layer"]) == ("fc", "layer4")


def test_the_published_commands_stand_in_the_documentation():
    text = (ROOT / "README.md").read_text()
    assert all(line in text for line in COMMANDS.strip().split("\n")[1:3])


def scripts():
    return [file for folder in ("extractor", "IP_training", "demo", "reproduction", "bench", "concept_library", ".")
            for file in sorted((ROOT / folder).glob("*.py")) if "run_script(" in file.read_text()]


@pytest.mark.parametrize("file", scripts(), ids=lambda file: file.stem)
def test_every_script_describes_its_settings(file):
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    text = parser_of(module.Settings, (module.__doc__ or "").partition("\n")[0]).format_help()
    assert module.__doc__ and module.main.__doc__ and "usage:" in text
    for field in dataclasses.fields(module.Settings):
        assert field.name in text and field.metadata["help"], field.name


@pytest.mark.parametrize("place", ["own", "root", "elsewhere"])
def test_scripts_help_from_anywhere(place, tmp_path):
    """One script of each folder; starting Python costs seconds."""
    by_folder = {file.parent: file for file in scripts()}
    assert len(scripts()) >= 30 and len(by_folder) == 7

    def helps(script):
        cwd = {"own": script.parent, "root": ROOT, "elsewhere": tmp_path}[place]
        name = script.name if place == "own" else script
        done = subprocess.run([sys.executable, str(name), "--help"], cwd=cwd, text=True, capture_output=True)
        assert done.returncode == 0 and "usage:" in done.stdout, f"{script}: {done.stderr}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(helps, by_folder.values()))
