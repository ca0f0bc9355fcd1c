"""Sweeps and fine-tuning: what a YAML expands to; finished cells are skipped, and a failing one does not stop the rest;
and the fine-tuning table from its cells."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from made_sweep import call, rows_of
from scipy import stats
from test_finetuning import world  # noqa: F401 - a fixture

from iis import processes
from iis.runtime import UserError
from reproduction import finetuning, finetuning_table, sweep
from reproduction.finetuning import cells_of, read_plan
from reproduction.finetuning_table import COMPARED
from reproduction.lib import sweeps
from reproduction.lib.finetuned import best_rates
from reproduction.lib.measured import lines_of_fine_tuning
from reproduction.lib.runs import read_run
from reproduction.lib.statistics import holm
from reproduction.lib.sweeps import read_sweep

PLAIN = """
settings: {seeds: 2, num_concepts: 5}
datasets: [toy]
models: [one, {model_name: two, config_yaml: one, weights: none, family: ones}]
banks: [Prototype, {bank: Random, variant: small, num_concepts: 3}]
"""


def written(tmp_path, text, name="toy.yaml"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_a_yaml_is_models_times_banks(tmp_path):
    text = PLAIN + "blocks: [{datasets: [other], models: [one], banks: [Text], settings: {seeds: 1}}]"
    cells, *_ = read_sweep(written(tmp_path, text))
    plain, small = {"seeds": 2, "num_concepts": 5}, {"seeds": 2, "num_concepts": 3}
    assert [tuple(map(cell.get, ("model", "bank", "variant", "flags"))) for cell in cells] == [
        ("one", "Prototype", "", plain), ("one", "Random", "small", small), ("two", "Prototype", "", plain),
        ("two", "Random", "small", small), ("one", "Text", "", {"seeds": 1, "num_concepts": 5})]
    assert cells[2]["stage2"] == {"model_name": "two", "config_yaml": "one", "weights": "none"}
    assert cells[2]["family"] == "ones" and "family" not in cells[0] and cells[4]["dataset"] == "other"
    assert cells[1]["name"] == "one, toy, Random, M = 3, small"


def test_checkpoints_are_models_in_the_order_of_their_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    for epoch in (10, 2):
        (tmp_path / f"net_epoch{epoch}.pth").touch()
    text = PLAIN.replace("[one, {model_name: two, config_yaml: one, weights: none, family: ones}]",
                         "[{config_yaml: one, checkpoints: 'net_epoch*.pth'}]")
    cells, *_ = read_sweep(written(tmp_path, text))
    assert [cell["stage2"]["weights"] for cell in cells[::2]] == ["net_epoch2.pth", "net_epoch10.pth"]
    assert cells[0]["stage2"] == {"config_yaml": "one", "model_name": "net_epoch2", "weights": "net_epoch2.pth"}


LAYERED = PLAIN.replace("[one, {model_name: two, config_yaml: one, weights: none, family: ones}]",
                        "[{config_yaml: one, layers: [early, late.1, head_input]}]")


def test_layers_are_models_that_share_stage_2(tmp_path, monkeypatch):
    cells, *stages = read_sweep(written(tmp_path, LAYERED))
    assert [tuple(map(cell.get, ("model", "net", "layer", "depth"))) for cell in cells[::2]] == [
        ("one__early", "one", "early", 1), ("one__late.1", "one", "late.1", 2), ("one", "one", "head_input", 3)]
    embed = {"model_name": "one", "config_yaml": "one", "layers": ["early", "late.1", "head_input"]}
    assert all(cell["stage2"] == embed for cell in cells) and cells[2]["name"] == "one__late.1, toy, Prototype, M = 5"
    steps, called = sweeps.Steps(*stages, None), []
    monkeypatch.setattr(sweeps, "call_script", lambda script, settings: called.append(
        (script.__name__.split(".")[1], settings["model_name"], settings.get("layers"))))
    monkeypatch.setattr(sweeps, "elements_folder", lambda *_: tmp_path)
    for cell in cells:
        steps.run(cell)
    visual = ("visual_element_emb_extractor", "one", embed["layers"])
    assert [called.count(visual), called[0], called[2]] == [2, visual, visual]  # with elements, and without
    assert [name for script, name, _ in called if script == "IP_Prototype_training"] == [
        "one__early", "one__late.1", "one"]
    called.clear()
    for cell in cells:
        steps._words(cell)
    assert [(name, layers) for _, name, layers in called] == [
        (name, None) for name in ("one__early", "one__early", "one__late.1", "one__late.1", "one", "one")]


def test_layers_of_checkpoints_belong_to_their_net(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    for epoch in (1, 2):
        (tmp_path / f"net_epoch{epoch}.pth").touch()
    text = LAYERED.replace("config_yaml: one", "config_yaml: one, checkpoints: 'net_epoch*.pth'")
    cells, *_ = read_sweep(written(tmp_path, text))
    assert [(cell["model"], cell["net"], cell["stage2"]["weights"]) for cell in cells[::2]][2:4] == [
        ("net_epoch1", "net_epoch1", "net_epoch1.pth"), ("net_epoch2__early", "net_epoch2", "net_epoch2.pth")]


@pytest.mark.parametrize("text, sentence", [
    (LAYERED.replace("late.1", "early"), "layers should be a list of different layers"),
    (LAYERED.replace("[early, late.1, head_input]", "early"), "layers should be a list of different layers"),
    (PLAIN + "bank: [Text]", "unknown key 'bank'; did you mean banks"),
    (PLAIN.replace("Random", "Randon"), "the bank 'Randon' is not known; did you mean Random"),
    (PLAIN.replace("[toy]", "toy"), "needs a list of datasets"),
    (PLAIN.replace("{bank: Random, variant: small, num_concepts: 3}", "Prototype"), "twice"),
    (PLAIN.replace("model_name: two, ", ""), "needs a model_name"),
    (PLAIN + "blocks: [{models: [{checkpoints: 'none/*.pth'}], datasets: [a], banks: [Text]}]", "no checkpoint"),
    (PLAIN.replace("{seeds: 2, num_concepts: 5}", "[2, 5]"), "settings should hold `key: value` pairs"),
    (PLAIN + "blocks: [a]", "a block should hold"), (PLAIN.replace("[Prototype,", "[null,"), "bank None is not known"),
    ("settings: {seeds: 1}", "names no cell"),
    (PLAIN.replace("num_concepts: 5", "num_concept: 5"), "num_concept'.*no training script.*did you mean num_concepts"),
    (PLAIN + "stage1: {formatt: png}", "formatt'.*no stage 1 script.*did you mean format"),
    (PLAIN + "stage2: {batch: 3}", "batch'.*no stage 2 script.*did you mean batch_size"),
    (PLAIN.replace("weights: none", "wieghts: none"), "wieghts'.*no stage 2 script.*did you mean weights"),
    (PLAIN.replace("[Prototype,", "[{bank: Prototype, element_kind: patch},"), "element_kind 'patch'; did you")])
def test_a_wrong_sweep_is_one_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        sweeps.check_settings("toy", *read_sweep(written(tmp_path, text)))


@pytest.mark.parametrize(("text", "words"), [
    ("dataset: toy", "needs a line `model_config: NAME`"), ("model: net", "unknown key 'model'"),
    ("objectives: [iis]", "the objective iis is not known"), ("ablations: {width: [1]}", "unknown key 'width'"),
    ("ablations: [1]", "ablations should hold `key: value` pairs"), ("objectives: dense", "should be a list"),
    ("ablations: {sparsity: 0.5}", "sparsity should be a list, and is 0.5")])
def test_a_wrong_fine_tuning_is_one_sentence(tmp_path, text, words):
    start = "" if "model" in text or "dataset" in text else "model_config: a\ndataset: b\n"
    with pytest.raises(UserError, match=words):
        read_plan(written(tmp_path, start + text))


def test_what_is_not_there_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    plan = written(tmp_path, PLAIN)
    for script, flags, sentence in (
            (sweep, (plan, "--only", "Text"), "no cell of toy has 'Text' in its name; it has one, toy, Prototype"),
            (sweep, (plan, "--save_dir", tmp_path / "file"), "cannot write to the output folder"),
            (sweep, ("shape",), "did you mean shapes"),
            (finetuning, ("finetuning_shape",), "there is no sweep finetuning_shape; did you mean finetuning_shapes"),
            (finetuning_table, ("--sweep", "nothing"), "there is no fine-tuning nothing")):
        with pytest.raises(UserError, match=sentence):
            call(script, *flags)


def test_cells_that_fail_and_cells_that_are_done(tmp_path, monkeypatch, capsys):
    """Two of four cells fail, one by a `UserError` and one by a bug; the next start runs those two alone."""
    ran, broken = [], True

    def run(steps, cell):
        ran.append(cell["name"])
        if broken and cell["bank"] == "Random":
            raise UserError("mend me") if cell["model"] == "one" else ZeroDivisionError("a bug")
        folder = tmp_path / cell["name"]
        folder.mkdir()
        (folder / "results.jsonl").touch()
        return folder

    monkeypatch.setattr(sweeps.Steps, "run", run)
    flags = written(tmp_path, PLAIN), "--save_dir", tmp_path / "out"
    with pytest.raises(UserError) as error:
        call(sweep, *flags)
    assert "2 of 4 cells failed" in str(error.value) and len(ran) == 4
    assert "one, toy, Random, M = 3, small: mend me" in str(error.value)
    assert "two, toy, Random, M = 3, small: ZeroDivisionError: a bug" in str(error.value)
    broken = False
    call(sweep, *flags, "--dry_run")
    assert "would run: one, toy, Random" in capsys.readouterr().out and len(ran) == 4
    call(sweep, *flags)
    assert ran[4:] == ["one, toy, Random, M = 3, small", "two, toy, Random, M = 3, small"]
    entries = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert all(entry["folder"] and not entry["message"] for entry in entries)
    call(sweep, *flags)
    assert len(ran) == 6 and "4 cells, 4 finished before" in capsys.readouterr().out


def test_a_cell_prepares_what_it_needs_once_and_a_failure_is_not_tried_again(tmp_path, monkeypatch):
    cells, *stages = read_sweep(written(tmp_path, PLAIN))
    steps, called = sweeps.Steps(*stages, None), []
    monkeypatch.setattr(sweeps, "call_script", lambda script, settings: called.append(
        (script.__name__.split(".")[1], {key: value for key, value in settings.items() if value is not None})))
    monkeypatch.setattr(sweeps, "elements_folder", lambda *_: tmp_path)
    for cell in cells[:2]:
        steps.run(cell)
    embed = {"model_name": "one", "config_yaml": "one", "dataset": "toy", "representations": "train,val"}
    train = {"model_name": "one", "dataset": "toy", "seeds": 2}
    assert called == [("visual_element_emb_extractor", {**embed, "data_path": tmp_path}),
                      ("IP_Prototype_training", {**train, "num_concepts": 5}), ("visual_element_emb_extractor", embed),
                      ("IP_Bank_training", {**train, "num_concepts": 3, "kind": "Random"})]

    def failing(script, settings):
        called.append(settings["model_name"])
        raise UserError("no weights")

    monkeypatch.setattr(sweeps, "call_script", failing)
    for _ in range(2):
        with pytest.raises(UserError, match="no weights"):
            steps.run(cells[2])
    assert called[4:] == ["two"]


def test_the_sweeps_of_the_repository_can_be_read():
    for file in sweeps.YAMLS.glob("*.yaml"):
        if file.stem.startswith("finetuning"):
            assert cells_of(read_plan(file))
        elif "checkpoints:" not in file.read_text():
            sweeps.check_settings(file.stem, *read_sweep(file))


# ---- fine-tuning ----


def test_cells_of_a_fine_tuning(tmp_path):
    start = "model_config: net\ndataset: toy\nseeds: 2\n"
    cells = cells_of(read_plan(written(tmp_path, start + "objectives: [interpretability, dense]\n"
                                       "recipe: {num_concepts: 8}\n"
                                       "ablations: {num_concepts: [4, 8], sparsity: [0.5], seeds: 1}\n")))
    assert [cell["name"] for cell in cells] == [
        "before_seed0", "before_seed1", "interpretability_M8_s0.1_seed0", "dense_M8_s0.1_seed0",
        "interpretability_M8_s0.1_seed1", "dense_M8_s0.1_seed1", "interpretability_M4_s0.1_seed0",
        "interpretability_M8_s0.5_seed0"]
    assert {cell["learning_rate"] for cell in cells} == {None, 0.01}
    plan = read_plan(written(tmp_path, start + "tuning: {learning_rate: [0.1, 0.2]}\n"))
    rates = {cell["name"]: cell["learning_rate"] for cell in cells_of(plan, {"dense": 0.1, "interpretability": 0.2})}
    assert rates["dense_M200_s0.1_seed1"] == rates["interpretability_M200_s0.1_rate_of_dense_seed1"] == 0.1
    assert rates["interpretability_M200_s0.1_seed0"] == 0.2 and len(rates) == 2 * 5
    assert len(cells_of(plan, dict.fromkeys(("dense", "interpretability"), 0.2))) == 2 * 4  # no rate but its own


def test_the_rate_that_is_taken():
    cells = pd.DataFrame([("dense", 0.1, 90), ("dense", 0.1, 92), ("dense", 0.03, 91), ("dense", 0.03, 91),
                          ("interpretability", 0.1, 80), ("interpretability", 0.03, 70)],
                         columns=["objective", "learning_rate", "own_head"])
    assert best_rates(cells) == {"dense": 0.03, "interpretability": 0.1}  # of two equal means the smaller rate


def test_pairs_with_measurement_seeds_of_their_own_hold_the_level():
    """5 seeds without any effect, 20,000 times: stage 3 adds noise of the size of `noise` to that of fine-tuning, 1."""
    rng, shares = np.random.default_rng(0), []
    for noise in (1.0, 100.0):
        arm_RK = rng.normal(size=(20_000, 5)) + noise * rng.normal(size=(20_000, 5))
        each, once = (noise * rng.normal(size=(20_000, count)) for count in (5, 1))
        shares += [float((stats.ttest_1samp(arm_RK - before, 0, axis=1).pvalue < 0.05).mean())
                   for before in (each, once)]
    assert shares == pytest.approx([0.05, 0.21, 0.05, 0.32], abs=0.01)  # each seed's own; one measurement for all


@pytest.mark.parametrize("text, sentence", [
    ("tuning: {learning_rate: 0.1}", "learning_rate should be a list"),
    ("tuning: {seeds: 2}", "learning_rate should be a list"), ("tuning: {rate: [0.1]}", "unknown key 'rate'"),
    ("tuning: {learning_rate: [0.1], seeds: 0}", "tuning: seeds should be a whole number above 0"),
    ("tuning: {learning_rate: [0.1], holdout: 2}", "--holdout 2 must be"),
    ("tuning: {learning_rate: [0.1], holdout: 0}", "would choose on validation images"),
    ("tuning: {learning_rate: [0.1]}\nrecipe: {learning_rate: 0.1}", "leave one of them out")])
def test_a_tuning_that_makes_no_sense(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_plan(written(tmp_path, f"model_config: net\ndataset: toy\n{text}\n"))


@pytest.mark.parametrize("cores", [1, 2])
def test_from_yaml_to_table(world, monkeypatch, capsys, cores):  # noqa: F811
    monkeypatch.setattr(processes, "available_cores", lambda: cores)
    monkeypatch.setattr("iis.names.elements_folder", lambda *_: world / "elements")
    monkeypatch.setattr("IP_training.IP_Finetuning.elements_folder", lambda *_: world / "elements")
    file = written(world, f"model_config: {world}/net.yaml\ndataset: {world}/toy.yaml\nseeds: 2\n"
                   "recipe: {epochs: 1, batch_size: 12, num_concepts: 4, workers: 0}\n"
                   "tuning: {learning_rate: [0.01, 0.1], seeds: 1, holdout: 0.25}\n"
                   "objectives: [interpretability, dense]\n"
                   "ablations: {num_concepts: [2, 99], sparsity: [0.5], seeds: 2}\n"
                   "measure: {num_concepts: 4, seeds: 1, n_epoch: 2}\n", "finetuning_toy.yaml")
    run = lambda: call(finetuning, file, "--device", "cpu", "--save_dir", world / "runs")  # noqa: E731
    run_cell = finetuning.run_cell

    def failing(plan, cell, folder, device):
        if cell["name"] == "dense_M4_s0.1_seed0":
            raise UserError("no luck")
        return run_cell(plan, cell, folder, device)

    monkeypatch.setattr(finetuning, "run_cell", failing)
    with pytest.raises(UserError, match="1 of 12 cells failed(.|\n)*dense_M4_s0.1_seed0: no luck"):
        run()
    monkeypatch.setattr(finetuning, "run_cell", run_cell)
    run()
    assert [entry["message"] for entry in json.loads((world / "runs" / "runs.json").read_text())] == [None] * 12
    monkeypatch.setattr(finetuning, "run_cell", None)  # all are finished: none is called
    run()
    monkeypatch.setattr(finetuning, "run_cell", run_cell)
    out = world / "table"
    call(finetuning_table, "--sweep", world / "runs", "--save_dir", out)
    assert {file.name for file in out.iterdir()} >= {
        *(f"finetuning{name}.{suffix}" for name in ("", "_ablations", "_tuning") for suffix in ("csv", "md", "tex")),
        "finetuning_curves.png", "finetuning_curves.pdf"}
    lines = {line["objective"]: line for line in rows_of(out / "finetuning.csv")}
    assert list(lines) == ["as it came", "CE + λ CE(IP), Eq. 8", "CE alone (control)"]
    tuned = {(cell["objective"], cell["learning_rate"]): json.loads(
        (world / "runs" / "tuning" / cell["name"] / "finetuning.json").read_text())["after"]["dense_top1"]
        for cell in json.loads((world / "runs" / "tuning" / "runs.json").read_text())}
    rates = {objective: 0.1 if tuned[objective, 0.1] > tuned[objective, 0.01] else 0.01
             for objective in ("interpretability", "dense")}
    made = {cell["name"]: cell["learning_rate"] for cell in json.loads((world / "runs" / "runs.json").read_text())}
    assert {made[f"{objective}_M4_s0.1_seed1"] == rate for objective, rate in rates.items()} == {True}
    after = {(objective, seed): json.loads((world / "runs" / f"{objective}_M4_s0.1_seed{seed}" / "finetuning.json")
             .read_text())["after"]["dense_top1"] for objective in ("interpretability", "dense") for seed in (0, 1)}
    eq8, control = lines["CE + λ CE(IP), Eq. 8"], lines["CE alone (control)"]
    assert float(eq8["own_head"]) == pytest.approx(50 * (after["interpretability", 0] + after["interpretability", 1]))
    expected = 50 * sum(after["interpretability", seed] - after["dense", seed] for seed in (0, 1))
    assert float(eq8["own_head_difference"]) == pytest.approx(expected) and eq8["iis_pairs"] == "2"
    assert control["own_head_difference"] == ""
    runs = {(name, seed): read_run(world / "runs" / f"{name}_seed{seed}" / "iis", draws=2)
            for name in ("before", "dense_M4_s0.1", "interpretability_M4_s0.5") for seed in (0, 1)}
    assert [runs[key].summary["seeds"] for key in runs] == [[0], [1]] * 3  # each seed is measured with its own
    mean = lambda name, measure: sum(measure(runs[name, seed]) for seed in (0, 1)) / 2  # noqa: E731
    before, iis = lines["as it came"], lambda run: run.iis
    assert before["seeds"] == before["iis_pairs"] == "2"
    assert float(before["iis"]) == pytest.approx(mean("before", iis))
    assert float(before["iis_difference"]) == pytest.approx(mean("before", iis) - mean("dense_M4_s0.1", iis))
    at = lambda ratio: lambda run: 100 * run.summary["curves"]["best"]["accuracy"][0][  # noqa: E731
        run.summary["ratios"].index(ratio)]
    assert float(before["fresh_ip"]) == pytest.approx(mean("before", at(0.1)))
    ablated = {(line["M"], line["s"]): line for line in rows_of(out / "finetuning_ablations.csv")}
    assert list(ablated) == [("2", "0.1"), ("4", "0.5"), ("99", "0.1")]
    assert float(ablated["4", "0.5"]["fresh_ip_difference"]) == pytest.approx(
        mean("interpretability_M4_s0.5", at(0.5)) - mean("dense_M4_s0.1", at(0.5)))
    number = lambda text: float(text) if text else None  # noqa: E731
    for table, measures in ((lines, COMPARED), (ablated, [name for name in COMPARED if name != "predictor"])):
        names = [(key, name) for key in table if key != "CE alone (control)" for name in measures]
        found = [[number(table[key][f"{name}_{p}"]) for key, name in names] for p in ("t_p", "holm_p")]
        assert found[1] == holm(found[0]) and any(found[0])
    collected = {(line["setting"], line["variant"], line["measure"]): line for line in lines_of_fine_tuning(world)}
    line = collected["after fine-tuning", "M = 4", "original head top-1"]
    assert line["value"] == pytest.approx(float(eq8["own_head"]), abs=1e-3) and line["seeds"] == 2
    of_control = collected["after fine-tuning", "CE alone (control); M = 4; measured at M = 4", "IIS"]
    assert of_control["value"] == pytest.approx(float(control["iis"]), abs=1e-5)
    assert ("before fine-tuning", "measured at M = 4", "IIS") in collected
    assert ("before fine-tuning", "", "dense top-1") in collected
    assert ("before fine-tuning", "", "original head top-1") not in collected
    for results in (world / "runs").rglob("finetuning.json"):
        results.write_text(json.dumps({**json.loads(results.read_text()), "new_head": 2}))
    call(finetuning_table, "--sweep", world / "runs", "--save_dir", world / "replaced")
    for name in ("finetuning", "finetuning_ablations", "finetuning_tuning"):
        table = (world / "replaced" / f"{name}.md").read_text()
        assert "| new head, %" in table and "original head" not in table
    measures = {line["measure"] for line in lines_of_fine_tuning(world)}
    assert "new head top-1" in measures and "original head top-1" not in measures
    text = file.read_text()
    file.write_text(text.replace("[0.01, 0.1]", "[0.5]"))  # another rate is found, and the old cells keep theirs
    with pytest.raises(UserError, match="dense_M4_s0.1_seed1: .* made with learning_rate = 0.*, and this run has "
                                        "learning_rate = 0.5"):
        call(finetuning, file, "--device", "cpu", "--save_dir", world / "runs", "--only", "dense_M4_s0.1_seed1")
    file.write_text(text.replace("epochs: 1", "epochs: 2"))
    with pytest.raises(UserError, match="holds backbones made with recipe"):
        run()
    assert torch.load(world / "runs" / "dense_M4_s0.1_seed1" / "backbone.pth", weights_only=True)
