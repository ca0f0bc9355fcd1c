"""Stage 3 through its script: resume, refusals, and the same ledger whatever happened on the way."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, clusters, prototype_flags, run_script
from safetensors.torch import load_file

from iis.embedding_file import save_embeddings
from iis.results import VOLATILE, read_ledger
from iis.runtime import UserError
from IP_training.IP_Prototype_training import main, parser

DOOR = "IP_training/IP_Prototype_training.py"


@pytest.fixture(autouse=True)
def own_dense_heads(monkeypatch, tmp_path):
    """Dense heads are cached per features; a test keeps its own cache."""
    monkeypatch.setenv("IIS_DENSE_HEADS", str(tmp_path / "dense_heads"))


def refusal(flags):
    """The sentence a script refuses these flags with (in this process: starting one takes seconds)."""
    with pytest.raises(UserError) as error:
        main(parser().settings([str(flag) for flag in flags]))
    return str(error.value)


def stable(folder):
    """The ledger without what two runs of one seed may differ in."""
    return [{key: value for key, value in row.items() if key not in VOLATILE}
            for row in read_ledger(folder / "results.jsonl")]


def test_a_run_writes_ledger_predictors_and_settings(toy):
    done = run_script(DOOR, *prototype_flags(toy, toy / "out", seeds=2))
    assert done.returncode == 0, done.stderr
    rows = stable(toy / "out")
    assert len(rows) == 2 * (8 + 1) * 3
    assert {row["kept"] for row in rows} == {None, 20, 18, 14, 10, 6, 2, 1}
    tensors = load_file(toy / "out" / "predictors" / "seed_1.safetensors")
    assert tensors["bank"].shape == (20, 12) and tensors["0.98/weight"].shape == (4, 20)
    assert tensors["dense/weight"].shape == (4, 12)
    described = json.loads((toy / "out" / "predictors" / "seed_1.json").read_text())
    assert len(described["concepts"]["all"]) == 20
    assert set(described["selected"]) == {"dense", "0", "0.1", "0.3", "0.5", "0.7", "0.9", "0.95", "0.98"}
    again = run_script(DOOR, *prototype_flags(toy, toy / "out", seeds=2))
    assert again.returncode == 0 and "all were done already" in again.stdout


def test_the_stored_predictor_gives_the_accuracy_of_the_ledger(toy):
    """bank, scale, shift, weight and bias from the file, applied in plain code."""
    run_script(DOOR, *prototype_flags(toy, toy / "out"))
    tensors, val = load_file(toy / "out" / "predictors" / "seed_0.safetensors"), clusters(200, "val")
    selected = json.loads((toy / "out" / "predictors" / "seed_0.json").read_text())["selected"]
    for ratio, kept in (("0", 20), ("0.9", 2)):
        part = {name: tensors[f"{ratio}/{name}"] for name in ("scale", "shift", "weight", "bias")}
        a = torch.nn.functional.layer_norm(val.features_ND @ tensors["bank"].T, (20,), part["scale"], part["shift"])
        mask = torch.zeros_like(a).scatter_(1, a.abs().topk(kept).indices, 1.0)
        right = ((a * mask) @ part["weight"].T + part["bias"]).argmax(1) == val.labels_N
        assert float(right.double().mean()) == pytest.approx(selected[ratio]["top1"], abs=0.006)


def test_seeds_ratios_and_rates_may_come_in_any_order(toy):
    run_script(DOOR, *prototype_flags(toy, toy / "whole", seeds=2))
    for changes in ({"first_seed": 1, "ratios": "0.5,0.7"}, {"learning_rates": "0.01"}, {"seeds": 2}):
        assert run_script(DOOR, *prototype_flags(toy, toy / "parts", **changes)).returncode == 0
    for one, other in zip(stable(toy / "whole"), stable(toy / "parts"), strict=True):
        assert one["top1_by_epoch"] == pytest.approx(other["top1_by_epoch"], abs=0.006)


def test_killed_at_any_moment_and_started_again_gives_the_same_ledger(toy):
    flags = prototype_flags(toy, toy / "killed", seeds=3, n_epoch=40)
    assert run_script(DOOR, *prototype_flags(toy, toy / "whole", seeds=3, n_epoch=40),
                    IIS_DENSE_HEADS=str(toy / "other cache")).returncode == 0
    for delay in (3.0, 4.0, 5.0):
        process = subprocess.Popen([sys.executable, str(ROOT / DOOR), *map(str, flags)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run_script(DOOR, *flags).returncode == 0
    assert stable(toy / "whole") == stable(toy / "killed")
    assert not list((toy / "killed").glob("resume*"))


def test_release_protocol_keeps_one_fewer_and_says_when_nothing_is_left(toy):
    done = run_script(DOOR, *prototype_flags(toy, toy / "out", protocol="release", num_concepts=16))
    assert done.returncode == 0, done.stderr
    kept = {row["ratio"]: row["kept"] for row in stable(toy / "out") if row["ratio"] >= 0}
    assert list(kept.values()) == [15, 14, 11, 7, 4, 1, 0, 0]
    assert "constant prediction" in done.stdout
    notes = {row["ratio"] for row in stable(toy / "out") if row["note"]}
    assert notes == {0.95, 0.98}


@pytest.mark.parametrize("changes, words", [
    ({"in_channels": 2048}, "D = 12"), ({"num_classes": 1000}, "4 classes"),
    ({"num_concepts": 81}, "80 visual elements"), ({"ratios": "0.5,1.0"}, "outside [0, 1)"),
    ({"ratios": "a,b"}, "numbers"), ({"concept_path": "none.pkl"}, "no file"),
    ({"seeds": 0}, "at least 1"), ({"learning_rates": "0.0"}, "above 0"), ({"holdout": 1.5}, "outside [0, 1)"),
    ({"device": "cuda:7"}, "CUDA"), ({"protocol": "papr"}, "protocol"), ({"num_concept": 3}, "--num_concepts"),
])
def test_bad_flags_are_one_sentence(toy, changes, words):
    assert words in refusal(prototype_flags(toy, toy / "out", **changes))
    assert not (toy / "out" / "results.jsonl").exists()


def test_a_refusal_reaches_the_user_as_one_line_and_a_status(toy):
    done = run_script(DOOR, *prototype_flags(toy, toy / "out", in_channels=2048))
    assert done.returncode == 2 and "D = 12" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("case, words", [
    ("model", "differ in model"), ("node", "differ in node"), ("weights", "weights_hash"), ("width", "width"),
    ("classes", "different classes"), ("nan", "not finite"), ("constant", "constant"), ("truncated", "truncated"),
    ("dataset", "another data set"), ("labels", "labels"), ("bare", "--train_labels"),
])
def test_files_that_do_not_belong_together(toy, case, words):
    elements, train, val = clusters(80, "elements"), clusters(300, "train"), clusters(200, "val")
    if case in ("model", "node"):
        elements.provenance[case] = "another"
    elif case == "weights":
        val.provenance["weights_hash"] = "another"
    elif case == "width":
        elements = clusters(80, "elements", width=13)
    elif case == "classes":
        val.class_names = ["class 0", "class 1", "class 2", "class X"]
    elif case == "nan":
        train.features_ND[17, 3] = float("nan")
    elif case == "constant":
        train.features_ND[:] = 1.0
    elif case == "dataset":
        elements.provenance["dataset"] = "another"
    elif case == "labels":
        train.labels_N[5] = 9
    for embeddings, name in ((elements, "elements.pkl"), (train, "train.pt"), (val, "val.pt")):
        save_embeddings(toy / name, embeddings)
    if case == "truncated":
        (toy / "train.pt").write_bytes((toy / "train.pt").read_bytes()[:4000])
    elif case == "bare":
        torch.save(train.features_ND, toy / "train.pt")
    assert words in refusal(prototype_flags(toy, toy / "out"))


def test_bare_features_and_labels_give_the_same_numbers(toy):
    run_script(DOOR, *prototype_flags(toy, toy / "ours"))
    for split, count in (("train", 300), ("val", 200)):
        torch.save(clusters(count, split).features_ND, toy / f"bare_{split}.pt")
        torch.save(clusters(count, split).labels_N, toy / f"bare_{split}_labels.pt")
    bare = {"train_pt": toy / "bare_train.pt", "val_pt": toy / "bare_val.pt",
            "train_labels": toy / "bare_train_labels.pt", "val_labels": toy / "bare_val_labels.pt"}
    done = run_script(DOOR, *prototype_flags(toy, toy / "bare", **bare))
    assert done.returncode == 0, done.stderr
    ours, theirs = ([row["top1_by_epoch"] for row in stable(toy / name)] for name in ("ours", "bare"))
    assert ours == theirs


def test_another_setting_never_shares_a_folder(toy):
    run_script(DOOR, *prototype_flags(toy, toy / "out"))
    done = run_script(DOOR, *prototype_flags(toy, toy / "out", num_concepts=10))
    assert done.returncode == 2 and "num_concepts = 20" in done.stderr
    assert len(read_ledger(toy / "out" / "results.jsonl")) == 27


def test_an_output_folder_that_cannot_be_written_is_said_first(toy):
    (toy / "file").write_text("in the way")
    done = run_script(DOOR, *prototype_flags(toy, toy / "file" / "out"))
    assert done.returncode == 2 and "cannot write" in done.stderr


def test_yaml_settings_and_unknown_keys(toy):
    yaml = toy / "run.yaml"
    yaml.write_text("n_epoch: 1\nratios: [0, 0.5]\nnum_concepts: 10\n")
    done = run_script(DOOR, *prototype_flags(toy, toy / "out", n_epoch=None, num_concepts=12, config_yaml=yaml))
    assert done.returncode == 0, done.stderr
    rows = stable(toy / "out")
    assert {row["epochs"] for row in rows} == {1} and {row["num_concepts"] for row in rows} == {12}
    yaml.write_text("n_epochs: 1\n")
    done = run_script(DOOR, *prototype_flags(toy, toy / "out2", config_yaml=yaml))
    assert done.returncode == 2 and "'n_epochs'" in done.stderr and "n_epoch" in done.stderr
