"""The three bash scripts and the set-up files: syntax, promises, and the message where data is missing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("concept_extract.sh", "emb_extractor.sh", "ip_train.sh")


def bash(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run bash without the settings of whoever runs the tests."""
    clean = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR", "LANG")}
    return subprocess.run(["bash", *words], cwd=cwd, text=True, capture_output=True, timeout=120,
                          env={**clean, "PYTHON": sys.executable, **environment})


@pytest.fixture(scope="module")
def bare_tree(tmp_path_factory) -> Path:
    """The code without data sets, elements or embeddings."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("iis", "extractor", "IP_training", "dataset_configs", "model_configs"):
        shutil.copytree(ROOT / folder, tree / folder,
                        ignore=shutil.ignore_patterns("embs", "__pycache__", "IP_Prototype"))
    for file in (*SCRIPTS, "iis_computing.py"):
        shutil.copy(ROOT / file, tree)
    return tree


@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_syntax_and_header(script):
    assert bash("-n", script).returncode == 0
    text = (ROOT / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n#") and "set -euo pipefail" in text
    assert 'cd "$(dirname "$0")' in text
    if script in SCRIPTS:
        header = text.partition("set -euo")[0]
        assert all(f"# {promise}:" in header for promise in ("Input", "Output", "Expect"))
        assert re.search(r"hour|minute", header) and "GB" in header and "DATASET=" in header


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_data_is_told_from_any_folder(script, bare_tree, tmp_path):
    done = bash(str(bare_tree / script), cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "imagenet" in done.stderr and "DATASET=" in done.stderr
    if script != "ip_train.sh":  # it points at emb_extractor.sh instead
        assert "DATASET=shapes" in done.stderr


def test_unknown_kind_of_elements(bare_tree):
    done = bash(str(bare_tree / "concept_extract.sh"), ELEMENTS="segment")
    assert done.returncode == 2 and "segments" in done.stderr


def test_scripts_hand_their_settings_on(bare_tree, tmp_path):
    """With a stand-in for Python that prints its arguments."""
    echo = tmp_path / "python"
    echo.write_text("#!/usr/bin/env bash\nprintf '%s ' \"$@\"; echo\n")
    echo.chmod(0o755)
    run = {"PYTHON": str(echo), "DATASET": "shapes", "PROTOCOL": "release"}
    told = bash(str(bare_tree / "concept_extract.sh"), SEED="3", WORKERS="2", FORMAT="png", **run).stdout.splitlines()
    assert [line.split()[0] for line in told[:2]] == ["extractor/segment_extractor.py", "extractor/patch_extractor.py"]
    for flag in ("--dataset shapes", "--protocol release", "--seed 3", "--workers 2", "--format png"):
        assert all(flag in line for line in told[:2])
    assert re.search(r"stage 1.*: \d+ s, 0 images, 0.0 images/s$", told[-1])  # the stand-in makes none

    trained = bash(str(bare_tree / "ip_train.sh"), MODELS="a b", SEEDS="2", NUM_CONCEPTS="9", RATIOS="0,0.5", **run)
    lines = [line for line in trained.stdout.splitlines() if line.startswith("IP_training/")]
    assert ["--model_name a " in lines[0], "--model_name b " in lines[1], len(lines)] == [True, True, 2]
    for flag in ("--element_kind segments", "--seeds 2", "--num_concepts 9", "--ratios 0,0.5", "--protocol release"):
        assert all(flag in line for line in lines)


def test_every_data_set_and_citation_can_be_read():
    from iis.datasets import load_dataset

    for file in (ROOT / "dataset_configs").glob("*.yaml"):
        assert load_dataset(file.stem).name == file.stem
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert citation["authors"][0]["family-names"] == "Shen" and citation["year"] == 2025


def test_every_requirement_has_its_reason():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines and all(re.fullmatch(r"[A-Za-z_-]+>=[\d.]+ +# \S.*", line) for line in lines)


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_dry_run_is_handed_on_and_summed_up(bare_tree, tmp_path, how):
    """With a stand-in for Python that prints its arguments and says that it made three."""
    echo = tmp_path / "python"
    echo.write_text('#!/usr/bin/env bash\nprintf "%s " "$@"; echo\n[ -f "$1" ] && echo 3 >>"$IIS_TALLY" || true\n')
    echo.chmod(0o755)
    dry = (["--dry-run"], {}) if how == "argument" else ([], {"DRY_RUN": "1"})
    for script in SCRIPTS:
        told = bash(str(bare_tree / script), *dry[0], PYTHON=str(echo), DATASET="shapes", **dry[1]).stdout
        scripts = [line for line in told.splitlines() if ".py " in line]
        assert scripts and all("--dry_run" in line for line in scripts)
        assert "dry run, nothing was made" in told
    told = bash(str(bare_tree / "concept_extract.sh"), PYTHON=str(echo), DATASET="shapes", DRY_RUN="0").stdout
    assert "--dry_run" not in told and re.search(r"stage 1.*: \d+ s, 6 images, [\d.]+ images/s\n$", told)
    assert "--dry-run" in bash(str(bare_tree / "ip_train.sh"), "--dry", PYTHON=str(echo)).stderr
