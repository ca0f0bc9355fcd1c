"""End2End in stage 3: chunks change nothing, and what is written predicts and explains itself."""

import json

import pytest
from conftest import prototype_flags
from safetensors.torch import load_file

import IP_training.learned_stacks as module
from iis.results import read_ledger
from IP_training import training_run
from IP_training.flags import apply_protocol
from IP_training.inputs import load_inputs
from IP_training.IP_Prototype_training import parser


def rows_of(toy, name):
    args = apply_protocol(parser().settings([str(word) for word in prototype_flags(toy, toy / name)]))
    folder = training_run.run(args, "End2End", load_inputs(args), module.learned(), 20, {})
    return folder, read_ledger(folder / "results.jsonl")


def test_chunks_change_nothing(toy, monkeypatch, tmp_path):
    monkeypatch.setattr(training_run, "DENSE_HEADS", tmp_path / "dense")
    folder, whole = rows_of(toy, "whole")
    monkeypatch.setattr(module, "available_bytes", lambda device: 5 * 4 * 8 * 80 * 20)  # five cells
    _, parts = rows_of(toy, "parts")
    assert len(whole) == 27
    for one, other in zip(whole, parts, strict=True):
        assert one["top1_by_epoch"] == other["top1_by_epoch"] and one["empty_concepts"] == other["empty_concepts"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    tensors = load_file(folder / "predictors" / "seed_0.safetensors")
    assert tensors["0.5/bank"].shape == (20, 12) and tensors["0.9/weight"].shape == (4, 20)
    assert "elements_" in json.dumps(json.loads((folder / "predictors" / "seed_0.json").read_text()))
