"""The fine-tuning table and sweep: statistics against SciPy, cells of a YAML, a failing cell, the numbers."""

import csv
import json

import numpy as np
import pytest
import torch
from scipy import stats
from test_finetuning import world  # noqa: F401 - a fixture

from iis.runtime import UserError
from reproduction import finetuning, finetuning_table
from reproduction.finetuning import cells_of, read_plan
from reproduction.lib.measured import lines_of_fine_tuning
from reproduction.lib.paired import paired_difference, sign_flip_p, t_test_p

AFTER, BASE = [0.91, 0.93, 0.90, 0.95, 0.92], [0.90, 0.91, 0.905, 0.92, 0.90]


def test_statistics_against_scipy():
    found = stats.ttest_rel(AFTER, BASE)
    assert t_test_p(AFTER, BASE) == pytest.approx(found.pvalue)
    assert paired_difference(AFTER, BASE).interval == pytest.approx(tuple(found.confidence_interval(0.95)))
    exact = stats.permutation_test((AFTER, BASE), lambda a, b, axis: np.mean(a - b, axis=axis), vectorized=True,
                                   permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(AFTER, BASE) == pytest.approx(exact.pvalue)


def test_sign_flips_by_hand():
    # Differences 1, 2, 3: of the 8 patterns only +++ and --- reach |sum| 6; -1, 2, 3: also the two with |sum| 6.
    assert sign_flip_p([1, 2, 3], [0, 0, 0]) == 2 / 8
    assert sign_flip_p([-1, 2, 3], [0, 0, 0]) == 4 / 8
    assert sign_flip_p([1, 1], [1, 1]) == 1 and t_test_p([1, 1], [1, 1]) is None and t_test_p([1], [2]) is None


def plan_file(folder, text):
    file = folder / "finetuning_toy.yaml"
    file.write_text(text)
    return file


def test_cells_of_a_yaml(tmp_path):
    file = plan_file(tmp_path, "model_config: net\ndataset: toy\nseeds: 2\nobjectives: [interpretability, dense]\n"
                               "recipe: {num_concepts: 8}\n"
                               "ablations: {num_concepts: [4, 8], sparsity: [0.5], seeds: 1}\n")
    assert [cell["name"] for cell in cells_of(read_plan(file))] == [
        "before_seed0", "interpretability_M8_s0.1_seed0", "dense_M8_s0.1_seed0", "interpretability_M8_s0.1_seed1",
        "dense_M8_s0.1_seed1", "interpretability_M4_s0.1_seed0", "interpretability_M8_s0.5_seed0"]
    file.write_text("model_config: net\ndataset: toy\nseeds: 2\nobjectives: [dense]\nrecipe: {num_pictures: 9}\n")
    assert [cell["name"] for cell in cells_of(read_plan(file))][:2] == ["before_seed0", "before_seed1"]


@pytest.mark.parametrize(("text", "words"), [
    ("dataset: toy", "needs a line `model_config: NAME`"), ("model: net", "unknown key 'model'"),
    ("model_config: a\ndataset: b\nobjectives: [iis]", "the objective iis is not known"),
    ("model_config: a\ndataset: b\nablations: {width: [1]}", "no ablation of width"),
    ("model_config: a\ndataset: b\nablations: [1]", "ablations should hold `key: value` pairs"),
    ("model_config: a\ndataset: b\nablations: {sparsity: 0.5}", "sparsity should be a list, and is 0.5"),
    ("model_config: a\ndataset: b\nobjectives: dense", "objectives should be a list"),
    ("model_config: a\ndataset: b\nseeds: many", "seeds should be a whole number above 0, and is 'many'"),
    ("model_config: a\ndataset: b\nseeds: 0", "seeds should be a whole number above 0, and is 0")])
def test_a_bad_yaml_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_plan(plan_file(tmp_path, text))


def test_an_unknown_sweep_is_one_sentence():
    with pytest.raises(UserError, match="there is no sweep finetuning_shape; did you mean finetuning_shapes"):
        finetuning.main(finetuning.parser().settings(["finetuning_shape"]))
    with pytest.raises(UserError, match="there is no fine-tuning nothing"):
        finetuning_table.main(finetuning_table.parser().settings(["--sweep", "nothing"]))


def test_no_cell_of_that_name_is_one_sentence(tmp_path):
    file = plan_file(tmp_path, "model_config: a\ndataset: b\nobjectives: [dense]\nseeds: 1\n")
    with pytest.raises(UserError, match="no cell of .* has 'Text' in its name; it has before_seed0, dense_M200"):
        finetuning.main(finetuning.parser().settings([str(file), "--only", "Text", "--save_dir", str(tmp_path / "o")]))


def test_from_yaml_to_table(world, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr("IP_training.training_run.DENSE_HEADS", world / "dense_heads")
    monkeypatch.setattr("iis.names.elements_folder", lambda *_: world / "elements")
    monkeypatch.setattr("IP_training.IP_Finetuning.elements_folder", lambda *_: world / "elements")
    file = plan_file(world, f"model_config: {world}/net.yaml\ndataset: {world}/toy.yaml\nseeds: 2\n"
                     "recipe: {epochs: 1, batch_size: 12, num_concepts: 4, workers: 0}\n"
                     "objectives: [interpretability, dense]\nablations: {num_concepts: [2, 99], seeds: 1}\n"
                     "measure: {num_concepts: 4, seeds: 1, n_epoch: 2}\n")
    run = lambda *more: finetuning.main(finetuning.parser().settings(  # noqa: E731
        [str(file), "--device", "cpu", "--save_dir", str(world / "runs"), *more]))
    attempt = finetuning.run_cell

    def failing(plan, cell, folder, device):
        if cell["name"] == "dense_M4_s0.1_seed0":
            raise UserError("no luck")
        return attempt(plan, cell, folder, device)

    monkeypatch.setattr(finetuning, "run_cell", failing)
    with pytest.raises(UserError, match="1 of 7 cells failed(.|\n)*dense_M4_s0.1_seed0: no luck"):
        run()
    monkeypatch.setattr(finetuning, "run_cell", attempt)
    run()
    index = json.loads((world / "runs" / "runs.json").read_text())
    assert [entry["message"] for entry in index] == [None] * 7
    monkeypatch.setattr(finetuning, "run_cell", None)  # all are finished: none is called
    run()
    out = world / "table"
    finetuning_table.main(finetuning_table.parser().settings(["--sweep", str(world / "runs"), "--save_dir", str(out)]))
    assert {file.name for file in out.iterdir()} == {
        *(f"finetuning{name}.{suffix}" for name in ("", "_num_concepts") for suffix in ("csv", "md", "tex")),
        "finetuning_curves.png", "finetuning_curves.pdf"}
    lines = {line["objective"]: line for line in csv.DictReader((out / "finetuning.csv").open())}
    assert list(lines) == ["as it came", "CE + λ CE(IP), Eq. 8", "CE alone (control)"]
    after = {(objective, seed): json.loads((world / "runs" / f"{objective}_M4_s0.1_seed{seed}" / "finetuning.json")
             .read_text())["after"]["dense_top1"] for objective in ("interpretability", "dense") for seed in (0, 1)}
    told = lines["CE + λ CE(IP), Eq. 8"]
    assert float(told["own_head"]) == pytest.approx(50 * (after["interpretability", 0] + after["interpretability", 1]))
    expected = 50 * sum(after["interpretability", seed] - after["dense", seed] for seed in (0, 1))
    assert float(told["own_head_difference"]) == pytest.approx(expected) and told["iis_pairs"] == "2"
    collected = {(line["setting"], line["variant"], line["measure"]): line for line in lines_of_fine_tuning(world)}
    eq8 = collected["after fine-tuning", "M = 4", "original head top-1"]
    assert eq8["value"] == pytest.approx(float(told["own_head"]), abs=1e-3) and eq8["seeds"] == 2
    of_control = collected["after fine-tuning", "CE alone (control); M = 4; measured at M = 4", "IIS"]
    assert of_control["value"] == pytest.approx(float(lines["CE alone (control)"]["iis"]), abs=1e-5)
    assert ("before fine-tuning", "measured at M = 4", "IIS") in collected
    assert ("before fine-tuning", "", "dense top-1") in collected
    assert ("before fine-tuning", "", "original head top-1") not in collected
    file.write_text(file.read_text().replace("epochs: 1", "epochs: 2"))
    with pytest.raises(UserError, match="holds backbones made with recipe"):
        run()
    assert torch.load(world / "runs" / "dense_M4_s0.1_seed1" / "backbone.pth", weights_only=True)
