"""A sweep: what its YAML expands to; finished cells are skipped, and a failing one does not stop the rest."""

import json

import pytest

from iis.runtime import UserError
from reproduction import sweep
from reproduction.lib import sweep_steps
from reproduction.lib.scripts import words_of
from reproduction.lib.sweep_cells import read_sweep

PLAIN = """
settings: {seeds: 2, num_concepts: 5}
datasets: [toy]
models: [one, {model_name: two, config_yaml: one, weights: none, family: ones}]
banks: [Prototype, {bank: Random, variant: small, num_concepts: 3}]
"""


def written(tmp_path, text):
    file = tmp_path / "toy.yaml"
    file.write_text(text)
    return file


def test_a_yaml_is_models_times_banks(tmp_path):
    cells = read_sweep(written(tmp_path, PLAIN)).cells
    assert [(cell.model_name, cell.bank, cell.variant, cell.flags) for cell in cells] == [
        ("one", "Prototype", "", {"seeds": 2, "num_concepts": 5}),
        ("one", "Random", "small", {"seeds": 2, "num_concepts": 3}),
        ("two", "Prototype", "", {"seeds": 2, "num_concepts": 5}),
        ("two", "Random", "small", {"seeds": 2, "num_concepts": 3})]
    assert cells[2].model == {"model_name": "two", "config_yaml": "one", "weights": "none"}
    assert cells[2].said == {"family": "ones"}


def test_blocks_share_the_settings(tmp_path):
    text = PLAIN + "blocks: [{datasets: [other], models: [one], banks: [Text], settings: {seeds: 1}}]"
    assert [cell.flags for cell in read_sweep(written(tmp_path, text)).cells if cell.dataset == "other"] == [
        {"seeds": 1, "num_concepts": 5}]


def test_checkpoints_are_models_in_the_order_of_their_epochs(tmp_path, monkeypatch):
    from reproduction.lib import sweep_cells

    monkeypatch.setattr(sweep_cells, "ROOT", tmp_path)
    for epoch in (10, 2):
        (tmp_path / f"net_epoch{epoch}.pth").touch()
    text = PLAIN.replace("[one, {model_name: two, config_yaml: one, weights: none, family: ones}]",
                         "[{config_yaml: one, checkpoints: 'net_epoch*.pth'}]")
    cells = read_sweep(written(tmp_path, text)).cells
    assert [cell.model["weights"] for cell in cells[::2]] == ["net_epoch2.pth", "net_epoch10.pth"]
    assert cells[0].model == {"config_yaml": "one", "model_name": "net_epoch2", "weights": "net_epoch2.pth"}


@pytest.mark.parametrize("text, sentence", [
    (PLAIN + "bank: [Text]", "unknown key 'bank'; did you mean banks"),
    (PLAIN.replace("Random", "Randon"), "the bank 'Randon' is not known; did you mean Random"),
    (PLAIN.replace("[toy]", "toy"), "needs a list of datasets"),
    (PLAIN.replace("{bank: Random, variant: small, num_concepts: 3}", "Prototype"), "twice"),
    (PLAIN.replace("model_name: two, ", ""), "needs a model_name"),
    (PLAIN + "blocks: [{models: [{checkpoints: 'none/*.pth'}], datasets: [a], banks: [Text]}]", "no checkpoint"),
    (PLAIN.replace("{seeds: 2, num_concepts: 5}", "[2, 5]"), "settings should hold `key: value` pairs"),
    (PLAIN + "stage2: 5", "stage2 should hold `key: value` pairs"), (PLAIN + "blocks: [a]", "a block should hold"),
    (PLAIN.replace("[toy]", "[10]"), "the data set 10 or the bank 'Prototype' is no name"),
    (PLAIN.replace("[Prototype,", "[null,"), "the data set 'toy' or the bank None is no name"),
    (PLAIN.replace("[one,", "[1,"), "the model 1 is neither a name"),
    ("settings: {seeds: 1}", "names no cell")])
def test_a_wrong_yaml_is_told(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        read_sweep(written(tmp_path, text))


@pytest.mark.parametrize("text, sentence", [
    (PLAIN.replace("num_concepts: 5", "num_concept: 5"), "num_concept'.*no training script.*did you mean num_concepts"),
    (PLAIN + "stage1: {formatt: png}", "formatt'.*no stage 1 script.*did you mean format"),
    (PLAIN + "stage2: {batch: 3}", "batch'.*no stage 2 script.*did you mean batch_size"),
    (PLAIN.replace("weights: none", "wieghts: none"), "wieghts'.*no stage 2 script.*did you mean weights"),
    (PLAIN.replace("[Prototype,", "[{bank: Prototype, element_kind: patch},"), "element_kind 'patch'; did you")])
def test_a_setting_that_no_script_knows_is_told(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        sweep_steps.check_settings(read_sweep(written(tmp_path, text)))


def test_no_cell_and_no_place_to_write_are_told(tmp_path):
    (tmp_path / "file").touch()
    for flags, sentence in ((["--only", "Text"], "no cell of toy has 'Text' in its name"),
                            (["--save_dir", str(tmp_path / "file")], "cannot write to the output folder")):
        with pytest.raises(UserError, match=sentence):
            sweep.main(sweep.parser().settings([str(written(tmp_path, PLAIN)), *flags]))


def test_flags_become_words():
    assert [words_of("a", value) for value in (3, True, False, None, [0.1, 0.5])] == [
        ["--a", "3"], ["--a"], [], [], ["--a", "0.1,0.5"]]


def test_cells_that_fail_and_cells_that_are_done(tmp_path, monkeypatch, capsys):
    """Two of four cells fail, one by a `UserError` and one by a bug; the next start runs those two alone."""
    ran, broken = [], True

    def run(steps, cell):
        ran.append(cell.name)
        if broken and cell.bank == "Random":
            raise UserError("mend me") if cell.model_name == "one" else ZeroDivisionError("a bug")
        folder = tmp_path / cell.name
        folder.mkdir()
        (folder / "results.jsonl").touch()
        return folder

    monkeypatch.setattr(sweep_steps.Steps, "run", run)
    flags = [str(written(tmp_path, PLAIN)), "--save_dir", str(tmp_path / "out")]
    with pytest.raises(UserError) as error:
        sweep.main(sweep.parser().settings(flags))
    assert "2 of 4 cells failed" in str(error.value)
    assert "one, toy, Random, M = 3, small: mend me" in str(error.value)
    assert "two, toy, Random, M = 3, small: ZeroDivisionError: a bug" in str(error.value)
    assert len(ran) == 4
    broken = False
    sweep.main(sweep.parser().settings(flags))
    assert ran[4:] == ["one, toy, Random, M = 3, small", "two, toy, Random, M = 3, small"]
    entries = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert all(entry["folder"] and not entry["message"] for entry in entries)
    sweep.main(sweep.parser().settings(flags))
    assert len(ran) == 6 and "4 cells, 4 finished before" in capsys.readouterr().out


def test_a_preparation_that_failed_is_not_tried_again(tmp_path, monkeypatch):
    steps, tried = sweep_steps.Steps(read_sweep(written(tmp_path, PLAIN)), None), []

    def representations(cell, dataset, folders):
        tried.append(cell.model_name)
        raise UserError("no weights")

    representations.__name__ = "_representations"
    monkeypatch.setattr(steps, "_representations", representations)
    for cell in steps.sweep.cells[1:]:
        with pytest.raises(UserError, match="no weights"):
            steps.run(cell)
    assert tried == ["one", "two", "two"]  # with and without elements


def test_the_sweeps_of_the_repository_can_be_read():
    for file in sweep.YAMLS.glob("*.yaml"):
        if not file.stem.startswith("finetuning") and "checkpoints:" not in file.read_text():
            sweep_steps.check_settings(read_sweep(file))
    with pytest.raises(UserError, match="did you mean shapes"):
        sweep.find_sweep("shape")
