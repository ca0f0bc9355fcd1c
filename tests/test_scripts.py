"""The bash scripts and the set-up files: syntax, promises, settings handed on."""

import re
import subprocess

import pytest
import yaml
from conftest import ROOT
from test_end_to_end import bash

SCRIPTS = ("concept_extract.sh", "emb_extractor.sh", "ip_train.sh")


@pytest.fixture
def echo(tmp_path):
    """A stand-in for Python that prints its arguments."""
    file = tmp_path / "python"
    file.write_text("#!/usr/bin/env bash\nprintf '%s ' \"$@\"; echo\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_syntax_and_header(script):
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
    text = (ROOT / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n#") and "set -euo pipefail" in text and 'cd "$(dirname "$0")' in text
    if script in SCRIPTS:
        header = text.partition("set -euo")[0]
        assert all(f"# {promise}:" in header for promise in ("Input", "Output", "Expect"))
        assert re.search(r"hour|minute", header) and "GB" in header and "DATASET=" in header


def test_settings_are_handed_on(echo):
    run = {"PYTHON": echo, "DATASET": "shapes", "PROTOCOL": "release"}
    stage1 = bash(ROOT, "concept_extract.sh", SEED="3", WORKERS="2", FORMAT="png", **run).stdout.split("\n")[:2]
    assert [line.split()[0] for line in stage1] == ["extractor/segment_extractor.py", "extractor/patch_extractor.py"]
    for flag in ("--dataset shapes", "--protocol release", "--seed 3", "--workers 2", "--format png"):
        assert all(flag in line for line in stage1)
    variables = {"SEEDS": "2", "NUM_CONCEPTS": "9", "RATIOS": "0,0.5", "LEARNING_RATES": "0.1,1", "HOLDOUT": "0.1",
                 "HEAD_BATCH_SIZE": "64", "EPOCHS": "7", "OUT": "there", "RESULTS": "tables",
                 "RECIPE": "converged", "TF32": "1"}
    stage3 = bash(ROOT, "ip_train.sh", MODELS="a b", **variables, **run).stdout.split("\n")
    training = [line for line in stage3 if line.startswith("IP_training/")]
    assert ["--model_name a " in training[0], "--model_name b " in training[1], len(training)] == [True, True, 2]
    for flag in ("--element_kind segments", "--seeds 2", "--num_concepts 9", "--ratios 0,0.5", "--protocol release",
                 "--learning_rates 0.1,1", "--holdout 0.1", "--batch_size 64", "--n_epoch 7", "--save_root there",
                 "--recipe converged", "--tf32"):
        assert all(flag in line for line in training), flag
    stage2 = bash(ROOT, "emb_extractor.sh", TF32="1", DRY_RUN="1", CONCEPT_SET="words.txt", **run).stdout.split("\n")
    embedding = [line for line in stage2 if line.startswith("extractor/")]
    assert len(embedding) == 3 and all("--tf32" in line for line in embedding)
    score = next(line for line in stage3 if line.startswith("iis_computing.py"))
    assert "--model_root there/IP_Prototype/a there/IP_Prototype/b --dataset shapes --save_dir tables" in score


@pytest.mark.parametrize("words, variables", [(["--dry-run"], {}), ([], {"DRY_RUN": "1"})])
def test_a_dry_run_is_handed_on(echo, words, variables):
    for script in SCRIPTS:
        shown = bash(ROOT, script, *words, PYTHON=echo, DATASET="shapes", **variables).stdout.split("\n")
        scripts = [line for line in shown if ".py " in line]
        assert scripts and all("--dry_run" in line for line in scripts)
    assert "--dry_run" not in bash(ROOT, "concept_extract.sh", PYTHON=echo, DATASET="shapes", DRY_RUN="0").stdout


@pytest.mark.parametrize("script, variables, value", [
    ("concept_extract.sh", {"ELEMENTS": "segment"}, "ELEMENTS=segment"),
    ("ip_train.sh", {"BANKS": "Clutser"}, "Clutser")])
def test_unknown_settings(echo, script, variables, value):
    done = bash(ROOT, script, PYTHON=echo, **variables)
    assert done.returncode == 2 and value in done.stderr
    assert "--dry" in bash(ROOT, script, "--dry", PYTHON=echo).stderr


def test_every_data_set_and_citation_can_be_read():
    from iis.datasets import load_dataset

    for file in (ROOT / "dataset_configs").glob("*.yaml"):
        assert load_dataset(file.stem).name == file.stem
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert citation["authors"][0]["family-names"] == "Shen" and citation["year"] == 2025


def test_every_requirement_has_its_reason():
    lines = [line for line in (ROOT / "requirements.txt").read_text().split("\n") if line and not line.startswith("#")]
    assert lines and all(re.fullmatch(r"[A-Za-z_0-9-]+>=[\d.]+ +# \S.*", line) for line in lines)
