"""Images to IIS through the three scripts: the built-in data set, tiny, with a random small backbone."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT, run_script


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the suite, so that what the scripts write stays out of the repository."""
    return copy_tree(tmp_path_factory.mktemp("tree"))


def copy_tree(folder):
    """The suite's own files without what runs have made."""
    made = [folder.name for folder in (ROOT / "IP_training").glob("IP_*") if folder.is_dir()]
    ignore = shutil.ignore_patterns(".git", ".venv", "datasets", "embs", "weights", "results", "visual", "dense_heads",
                                    "cluster_centres", "__pycache__", "tests", "*.partial", *made)
    shutil.copytree(ROOT, folder / "iis_suite", ignore=ignore)
    return folder / "iis_suite"


def script(tree, name, **settings):
    """Run one of the bash scripts with settings from the environment."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(["bash", name], cwd=tree, env=environment, text=True, capture_output=True, timeout=280)


def plain_iis(ledger):
    """The IIS by a plain loop over the ledger: best top-1 per ratio over best dense top-1, trapezoids, mean."""
    best, scores = {}, []
    for row in map(json.loads, ledger.read_text().splitlines()):
        key = (row["seed"], row["ratio"])
        best[key] = max(best.get(key, 0), row["top1"])
    for seed in (0, 1):
        dense = best.pop((seed, -1.0))
        curve = sorted((ratio, top1 / dense) for (owner, ratio), top1 in best.items() if owner == seed)
        pairs = zip(curve, curve[1:], strict=False)
        scores.append(sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairs))
    return sum(scores) / 2


def test_from_images_to_the_iis(tree, tmp_path):
    painted = run_script("demo/paint_shapes.py", "--train", 160, "--val", 80, root=tree)
    assert painted.returncode == 0, painted.stderr
    (tree / "model_configs" / "tiny.yaml").write_text(
        "model: demo/small_backbones.py:shapes_small\nweights: none\nmodel_name: tiny\nfeature_layer: fc\n"
        "val_resize_size: 64\nval_crop_size: 64\n")
    settings = {"DATASET": "shapes", "MODELS": "tiny", "SEEDS": "2", "EPOCHS": "2", "NUM_CONCEPTS": "16",
                "IMAGES_PER_CLASS": "2", "ELEMENTS": "segments patches", "DEVICE": "cpu"}
    for name in ("concept_extract.sh", "emb_extractor.sh", "ip_train.sh"):
        done = script(tree, name, **settings)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        assert "stage" in done.stdout.splitlines()[-1]
    for kind in ("segments", "patches"):
        folder = next((tree / "IP_training" / "IP_Prototype" / "tiny").glob(f"shapes_{kind}_M16*"))
        result = json.loads((folder / "iis.json").read_text())
        assert result["seeds"] == [0, 1] and len(result["ratios"]) == 8
        assert result["iis"]["mean"] == pytest.approx(plain_iis(folder / "results.jsonl"))
        assert (folder / "iis.png").stat().st_size > 10_000
    assert (tree / "results" / "shapes" / "comparison.csv").exists()
    again = script(tree, "ip_train.sh", **settings)
    assert again.returncode == 0 and "all were done already" in again.stdout


def test_missing_data_says_how_to_go_on(tree):
    done = script(tree, "concept_extract.sh")
    assert done.returncode != 0
    assert "imagenet" in done.stderr and "DATASET=shapes" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["own", "root", "elsewhere"])
def test_every_script_helps_from_anywhere(place, tmp_path):
    scripts = [script for folder in ("extractor", "IP_training", "demo", "reproduction", "concept_library", ".")
             for script in (ROOT / folder).glob("*.py") if "run_script(" in script.read_text() and script.name != "conftest.py"]
    assert len(scripts) >= 8
    if place != "own":  # one other folder for some is enough: start-up takes a second
        scripts = scripts[:: 6 if place == "root" else 7]

    def helps(script):
        cwd, name = {"own": (script.parent, script.name), "root": (ROOT, script), "elsewhere": (tmp_path, script)}[place]
        done = subprocess.run([sys.executable, str(name), "--help"], cwd=cwd, text=True, capture_output=True)
        assert done.returncode == 0 and "usage:" in done.stdout, f"{script}: {done.stderr}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(helps, scripts))
