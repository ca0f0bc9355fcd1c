"""The recipe of the heads: the study's shorter runs are exactly the runs they stand for; --recipe fills what is left
out."""

import csv
import json

import numpy as np
import pytest
from bank_runs import ledger, refusal, run
from conftest import clusters

import iis
from iis.cli import parse
from iis.grid import LEARNING_RATES
from iis.results import VOLATILE
from iis.runtime import UserError
from iis.summary import summarise
from IP_training import IP_Bank_training, IP_Prototype_training
from IP_training.config import TrainingSettings
from IP_training.inputs import Inputs
from reproduction import recipe

RATES = (*LEARNING_RATES, 1.0)


@pytest.fixture
def study(toy, monkeypatch):
    """study(bank, epochs, …) -> (rows of the study on the toy files, its settings), in batches of 64."""
    parts = [clusters(count, split) for split, count in (("train", 300), ("val", 200), ("elements", 80))]

    def load_inputs(settings, with_elements):
        settings.model_name, settings.dataset = "toy", "toy"
        return Inputs(*parts[:2], parts[2] if with_elements else None, parts[0].class_names)

    monkeypatch.setattr(recipe, "load_inputs", load_inputs)

    def made(bank="Prototype", epochs=(2, 5), folder="study", **changes):
        settings = recipe.Settings(**{"dataset": "toy", "models": ("toy",), "num_concepts": 20, "seeds": 2,
                                      "epochs": epochs, "learning_rates": RATES, "device": "cpu", **changes})
        return recipe.trained(settings, "toy", bank, 64, toy / folder), settings

    return made


def comparable(rows):
    """Rows without what only the study keeps, and what two runs of one seed may differ in."""
    more = (*VOLATILE, "milestones", "hits_after", "top5_by_epoch", "select_top1_by_epoch", "prototypes", "elements")
    return [{key: value for key, value in row.items() if key not in more} for row in rows]


@pytest.mark.parametrize(("bank", "script", "holdout"), [
    ("Prototype", IP_Prototype_training, 0.0), ("Random", IP_Bank_training, 0.25)])
def test_the_beginning_of_a_long_run_is_the_short_run(toy, study, bank, script, holdout):
    rows, _ = study(bank, holdout=holdout, seeds=1)
    for epochs in (2, 5):
        short = ledger(run(script, toy, f"epochs{epochs}", seeds=1, n_epoch=epochs, holdout=holdout,
                           learning_rates=",".join(map(str, RATES))))
        assert comparable(recipe.shortened(row, epochs) for row in rows) == comparable(short)


def test_a_table_line_is_the_summary_of_that_run_and_curves_pass_through_it(study):
    rows, settings = study(epochs=(2, 5, 30), learning_rates=RATES)
    lines = {(line["largest_rate"], line["epochs"]): line for line in recipe.compared({1024: rows}, settings)}
    assert list(lines) == [(cap, epochs) for cap in (0.1, 1.0) for epochs in (2, 5, 30)]
    curves = recipe.by_epoch(rows, [0.1, 1.0], 30)
    for (cap, epochs), line in lines.items():
        own = summarise(recipe.at(rows, cap, epochs), draws=2)
        assert line["iis"] == own["iis"]["mean"] and line["iis_last"] == own["iis_last"]["mean"]
        assert line["steps"] == epochs  # of 300 images in batches of 1024
        np.testing.assert_allclose(curves[cap][:, epochs - 1], own["iis"]["per_seed"], atol=1e-12)
        for name in ("iis", "dense", "sparse"):
            delta = line[f"{name}_delta"]
            assert delta == pytest.approx(line[name] - lines[0.1, 30][name])
            assert line[f"{name}_low"] <= delta <= line[f"{name}_high"]
    assert [lines[0.1, 30][f"iis_{name}"] for name in ("delta", "low", "high")] == [0, 0, 0]
    assert lines[1.0, 2]["sparse"] >= lines[0.1, 2]["sparse"] < lines[0.1, 30]["sparse"]  # more to choose from
    assert lines[0.1, 2]["at_last_epoch"] == sum(row["best_epoch"] == 2 for row in recipe.select(
        recipe.at(rows, 0.1, 2)).values())


def test_the_selection_images_choose_and_the_validation_images_count():
    """Two rates, three epochs, by hand: 0.5 twice is the smaller rate and its earlier epoch."""
    curves = {0.1: ([0.2, 0.5, 0.5], [0.9, 0.6, 0.8]), 1.0: ([0.3, 0.4, 0.5], [0.1, 0.2, 0.3])}
    rows = [{"seed": 0, "ratio": 0.0, "learning_rate": rate, "select_top1_by_epoch": chosen, "top1_by_epoch": counted}
            for rate, (chosen, counted) in curves.items()]
    assert recipe.selected_top1(rows).tolist() == [0.1, 0.6, 0.6]


def test_main_goes_on_and_some_images_are_balanced(study, toy, capsys):
    study()  # which sets the inputs
    flags = ["--dataset", "toy", "--models", "toy", "--num_concepts", "20", "--seeds", "1", "--epochs", "30",
             "--learning_rates", "0.001,0.01,0.1,1", "--num_train", "100", "--device", "cpu", "--batch_sizes",
             "50,1024", "--save_dir", str(toy / "table"), "--banks", "Random"]
    folder = recipe.main(parse(recipe.Settings, flags))
    with open(folder / "recipe.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert [(line["batch_size"], line["largest_rate"], line["steps"]) for line in lines] == [
        ("50", "0.1", "60"), ("50", "1.0", "60"), ("1024", "0.1", "30"), ("1024", "1.0", "30")]
    assert {line["n_train"] for line in lines} == {"100"} and float(lines[2]["iis_delta"]) == 0
    assert (folder / "recipe.png").exists() and not list(folder.rglob("resume*"))
    before = (folder / "toy_Random_b50" / "results.jsonl").read_bytes()
    recipe.main(parse(recipe.Settings, flags))
    assert (folder / "toy_Random_b50" / "results.jsonl").read_bytes() == before
    for name, value in (("--epochs", "10"), ("--learning_rates", "0.1,1"), ("--batch_sizes", "32"),
                        ("--banks", "Text")):
        with pytest.raises(UserError, match=name):
            recipe.main(parse(recipe.Settings, [*flags, name, value]))


# ---- --recipe ----


@pytest.mark.parametrize(("rows", "holdout", "batch_size"), [
    (100, 0, 32), (400, 0, 32), (639, 0, 32), (640, 0, 64), (4000, 0, 256), (4000, 0.5, 128), (50_000, 0, 1024),
    (1_281_167, 0, 1024)])
def test_the_converged_recipe_takes_at_least_ten_steps_an_epoch(rows, holdout, batch_size):
    settings = TrainingSettings(recipe="converged", holdout=holdout)
    settings.fit_batches(rows)
    assert settings.batch_size == batch_size and settings.n_epoch == 300
    assert batch_size == 32 or rows * (1 - holdout) / batch_size >= 10
    assert max(settings.learning_rates) > max(LEARNING_RATES)


def test_the_published_recipe_is_the_default_and_flags_win(toy):
    usual = TrainingSettings()
    usual.fit_batches(100)
    assert (usual.learning_rates, usual.n_epoch, usual.batch_size) == (LEARNING_RATES, 30, 1024)
    own = TrainingSettings(recipe="converged", learning_rates=(0.5,), n_epoch=7, batch_size=9)
    own.fit_batches(100)
    assert (own.learning_rates, own.n_epoch, own.batch_size) == ((0.5,), 7, 9)
    changes = {"ratios": "0.5", "learning_rates": "0.1", "batch_size": None, "save_root": toy / "root"}
    plain = run(IP_Prototype_training, toy, None, n_epoch=1, **changes)
    other = run(IP_Prototype_training, toy, None, "--recipe", "converged", n_epoch=2, **changes)
    assert (plain.name, other.name) == ("toy_segments_M20_epochs1", "toy_segments_M20_converged_epochs2")
    assert not any("recipe" in row for row in ledger(plain)) and {row["batch_size"] for row in ledger(plain)} == {1024}
    assert {(row["recipe"], row["batch_size"], row["epochs"]) for row in ledger(other)} == {("converged", 32, 2)}
    assert "recipe" not in json.loads((plain / "manifest.json").read_text())
    assert "n_epoch" in refusal(IP_Prototype_training, toy, n_epoch=0)


def test_the_python_call_knows_the_recipes():
    train, val = clusters(60, "train"), clusters(40, "val")
    data = train.features_ND, train.labels_N, val.features_ND, val.labels_N
    with pytest.raises(UserError, match="published, converged"):
        iis.score(*data, recipe="paper")
    result = iis.score(*data, "random", 8, seeds=1, epochs=2, recipe="converged", draws=2, show_progress=False)
    assert {(row["recipe"], row["epochs"], row["batch_size"]) for row in result.rows} == {("converged", 2, 32)}
    assert {row["learning_rate"] for row in result.rows} == {0.001, 0.01, 0.1, 0.3, 1.0}
