"""Stage 3 through a script: what a run writes, the same ledger whatever happened on the way, dense heads of their own,
and what is refused before anything is trained."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from bank_runs import GRID, assert_plain, flags_of, ledger, predictors, refusal, run, stable
from conftest import ROOT, clusters

from iis.cli import parse
from iis.embedding_file import load_embeddings, save_embeddings
from iis.results import VOLATILE, read_ledger
from iis.runtime import UserError
from IP_training import IP_Bank_training, IP_End2End_training, IP_Prototype_training, train_heads
from IP_training import run as module
from IP_training.run import selection_of

SCRIPT = "IP_training/IP_Prototype_training.py"
SHORT = {"ratios": "0.5", "n_epoch": 1}
MEASURED = ("top1", "top5", "best_epoch", "last_top1", "last_top5", "select_top1", "last_select_top1", "loss", "hits",
            "top1_by_epoch", "loss_by_epoch")


def prototype(toy, out="out", **changes):
    return run(IP_Prototype_training, toy, out, **changes)


def refused(toy, **changes):
    return refusal(IP_Prototype_training, toy, **changes)


# ---- what a run writes ----


def test_a_run_writes_ledger_predictors_and_settings(toy, here):
    status, out, err = here(SCRIPT, *flags_of(toy, "out", seeds=2))
    assert status == 0 and f"stage 3: {2 * GRID} heads trained, {2 * GRID} in {toy}/out/results.jsonl" in out
    assert "note: heads trained for 10 steps in all" in out and "--recipe converged" in out
    assert "note: the best epoch is the last one (2) for s = 0" in out
    rows = ledger(toy / "out")
    assert len(rows) == 2 * GRID and {row["kept"] for row in rows} == {None, 20, 18, 14, 10, 6, 2, 1}
    assert {row["bank_size"] for row in rows if row["ratio"] >= 0} == {20}
    # Progress in a file is lines; the bar counts the epochs of all heads.
    [last] = [line for line in err.strip().split("\n") if "Prototype, seeds 0, 1: 100%" in line]
    assert f"{2 * GRID * 2}/{2 * GRID * 2}" in last and "\r" not in err
    tensors, described = predictors(toy / "out", 1)
    assert tensors["bank"].shape == (20, 12) and tensors["0.98/weight"].shape == (4, 20)
    assert len(described["concepts"]["all"]) == 20 and described["class_names"] == [f"class {c}" for c in range(4)]
    assert set(described["selected"]) == {"0", "0.1", "0.3", "0.5", "0.7", "0.9", "0.95", "0.98"}
    assert_plain(toy / "out")
    before = (toy / "out" / "results.jsonl").read_bytes()
    status, out, _ = here(SCRIPT, "--config_yaml", toy / "out" / "settings.yaml")  # the merged settings are a command
    assert status == 0 and "all were done already" in out
    assert (toy / "out" / "results.jsonl").read_bytes() == before
    status, _, err = here(SCRIPT, *flags_of(toy, "refused", in_channels=2048))
    assert status == 2 and "D = 12" in err and err.startswith("error: ") and err.count("\n") == 1


def test_release_protocol_keeps_one_fewer_and_says_when_nothing_is_left(toy, capsys):
    rows = ledger(prototype(toy, protocol="release", num_concepts=16))
    kept = {row["ratio"]: row["kept"] for row in rows if row["ratio"] >= 0}
    assert list(kept.values()) == [15, 14, 11, 7, 4, 1, 0, 0]
    assert "constant prediction" in capsys.readouterr().out
    assert {row["ratio"] for row in rows if row["note"]} == {0.95, 0.98}
    assert {row["prototypes"] for row in rows if row["ratio"] >= 0} == {"first"}
    paths = [path for [path] in predictors(toy / "out")[1]["concepts"]["all"]]
    assert paths == clusters(80, "elements").image_paths[:16]


def test_a_dry_run_prints_a_plan_and_makes_nothing(toy, capsys):
    before = sorted(toy.rglob("*"))
    for script, kind in ((IP_Bank_training, "Random"), (IP_End2End_training, "End2End")):
        run(script, toy, "out", "--dry-run", num_concepts=10, seeds=2)
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == f"dry run: stage 3, {kind} bank for toy on toy"
        plan = dict(line.strip().split(":", 1) for line in lines)
        assert plan["shapes"].strip().startswith("N = 300 + 200 images, D = 12, C = 4, M = 10")
        assert plan["heads"].strip() == ("24 predictors (8 ratios x 3 learning rates) and 3 dense heads, for each of 2 "
                                         "seeds; 2 epochs of 5 steps")
        assert plan["disk"].strip().startswith("6.3 kB in ")  # 2 seeds x 9 heads x 4 classes x (10 + 12) x 4 bytes
        assert plan["memory"].strip().startswith("20.0 kB of activations in float32, 24.0 kB of features")
    assert sorted(toy.rglob("*")) == before


# ---- whatever happened on the way ----


def test_seeds_ratios_and_rates_may_come_in_any_order(toy):
    whole = prototype(toy, "whole", seeds=2)
    for changes in ({"first_seed": 1, "ratios": "0.5,0.7"}, {"learning_rates": "0.01"}, {"seeds": 2}):
        parts = prototype(toy, "parts", **changes)
    for one, other in zip(stable(whole), stable(parts), strict=True):
        assert one["top1_by_epoch"] == pytest.approx(other["top1_by_epoch"], abs=0.006)


@pytest.mark.parametrize("script, changes", [(IP_Prototype_training, {}), (IP_End2End_training, {"ratios": "0,0.5"})])
def test_any_number_of_processes_gives_the_same_ledger(toy, script, changes, monkeypatch):
    rows = {}
    for jobs in (1, 2, 5):
        monkeypatch.setenv("IIS_DENSE_HEADS", str(toy / f"dense heads {jobs}"))
        rows[jobs] = ledger(run(script, toy, f"out{jobs}", seeds=2, jobs=jobs, **changes))
    for one, *others in zip(*rows.values(), strict=True):
        for other in others:
            assert {key for key in one if one[key] != other[key]} <= {*VOLATILE, *MEASURED}
            assert other["loss_by_epoch"] == pytest.approx(one["loss_by_epoch"], rel=1e-5)
            assert other["top1_by_epoch"] == pytest.approx(one["top1_by_epoch"], abs=0.006)  # an image may be a tie


def test_a_killed_share_goes_on_where_it_was_under_other_settings_of_jobs(toy, monkeypatch):
    """The state of the predictors is kept after two of three epochs. Another run would cut them otherwise; the share
    stays as it was, and its first epochs are not trained again."""
    monkeypatch.setattr(train_heads, "SAVE_EVERY_S", -1.0)
    calls, evaluate = [], train_heads.evaluate

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3 * 3 + 3 * 2 + 1:  # three groups: dense, three epochs; predictors, the third epoch
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(train_heads, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        prototype(toy, n_epoch=3, jobs=1)
    [file] = (toy / "out").glob("resume_seed0_predictors*.pt")
    assert len(train_heads.saved_cells(file)) == GRID - 3
    shares, train_shares = [], module.train_shares
    monkeypatch.setattr(module, "train_shares", lambda these, *others: (
        shares.extend(these), train_shares(these, *others))[1])
    monkeypatch.setattr(train_heads, "evaluate", lambda *arguments: calls.append(1) or evaluate(*arguments))
    calls.clear()
    prototype(toy, n_epoch=3, jobs=2)
    assert [(len(share.cells), share.resume_file) for share in shares] == [(GRID - 3, file)]
    assert len(calls) == 3 and not list((toy / "out").glob("*resume*"))  # one share: it trains in this process
    monkeypatch.setattr(train_heads, "evaluate", evaluate)
    monkeypatch.setenv("IIS_DENSE_HEADS", str(toy / "other dense heads"))
    assert stable(prototype(toy, "whole", n_epoch=3, jobs=1)) == stable(toy / "out")


def test_killed_and_started_again_gives_the_same_ledger(toy, monkeypatch):
    """By SIGKILL once the dense heads are there, then by SIGTERM once a seed is in the ledger, which says how to go
    on."""
    flags = [sys.executable, str(ROOT / SCRIPT), *flags_of(toy, "killed", seeds=4, n_epoch=15)]
    for number, found in ((signal.SIGKILL, lambda: list(toy.glob("dense_heads/*/dense_heads.jsonl"))),
                          (signal.SIGTERM, (toy / "killed" / "results.jsonl").exists)):
        process = subprocess.Popen(flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        stop = time.monotonic() + 60
        while not found() and process.poll() is None and time.monotonic() < stop:
            time.sleep(0.005)
        process.send_signal(number)
        said = process.communicate()[1].strip().split("\n")[-1]
        assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert said == "stopped; start the same command again and it goes on where it was"
    assert len(ledger(toy / "killed")) < 4 * GRID
    prototype(toy, "killed", seeds=4, n_epoch=15)
    monkeypatch.setenv("IIS_DENSE_HEADS", str(toy / "other dense heads"))
    assert stable(prototype(toy, "whole", seeds=4, n_epoch=15)) == stable(toy / "killed")
    assert not list(toy.glob("killed/resume*")) and not list(toy.glob("dense_heads/*/resume*"))


@pytest.mark.parametrize("script, changes", [(IP_Bank_training, {}), (IP_Bank_training, {"holdout": 0.2}),
                                             (IP_End2End_training, {"ratios": "0,0.5", "holdout": 0.2})])
def test_memory_mapped_half_precision_gives_the_ledger_of_resident_features(toy, script, changes, monkeypatch, capsys):
    for split in ("train", "val"):  # a file of half the size
        found = load_embeddings(toy / f"{split}.pt")
        found.features_ND = found.features_ND.half()
        save_embeddings(toy / f"{split}.pt", found)
    rows = {}
    for name, memory in (("resident", None), ("mapped", 0)):
        monkeypatch.setenv("IIS_DENSE_HEADS", str(toy / "dense" / name))
        rows[name] = stable(run(script, toy, name, feature_memory=memory, **changes))
        assert ("read from their file batch by batch" in capsys.readouterr().out) == (name == "mapped")
    assert rows["resident"] == rows["mapped"] and any(row["ratio"] == -1 for row in rows["mapped"])


@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_bare_features_and_a_bank_of_ones_own_give_the_same_numbers(toy, suffix):
    """The suite's Prototype bank, taken from its file and brought back with bare features and labels."""
    suite = prototype(toy, "suite")
    save = {"npy": lambda x, file: np.save(file, x.numpy()), "pt": torch.save}[suffix]
    bare = {"bank": toy / f"mine.{suffix}", "num_concepts": None, "concept_path": None}
    save(predictors(suite)[0]["bank"], bare["bank"])
    for split, count in (("train", 300), ("val", 200)):
        for name, values in ((f"{split}_pt", clusters(count, split).features_ND),
                             (f"{split}_labels", clusters(count, split).labels_N)):
            bare[name] = toy / f"bare_{name}.{suffix}"
            save(values, bare[name])
    own = run(IP_Bank_training, toy, "own", **bare)
    measured = ("seed", "ratio", "learning_rate", "top1_by_epoch", "loss_by_epoch", "hits", "top5")
    assert [[row[name] for name in measured] for row in ledger(suite)] == [
        [row[name] for name in measured] for row in ledger(own)]
    assert {row["bank_name"] for row in ledger(own)} == {"mine"}
    for missing in ("model_name", "dataset"):  # bare matrices do not say what they are of
        assert f"name it with --{missing}" in refusal(IP_Bank_training, toy, **{**bare, missing: None})


# ---- dense heads ----


def test_dense_heads_are_trained_once_for_all_banks_and_copied_into_each_ledger(toy, monkeypatch):
    trained, keep = [], module.Run.keep
    monkeypatch.setattr(module.Run, "keep", lambda self, share, *others: (
        trained.append((share.seed.number, len(share.cells))) if share.dense else None, keep(self, share, *others)))
    rows = {out: [row for row in stable(run(script, toy, out, seeds=2, ratios="0.5", **changes)) if row["ratio"] < 0]
            for script, out, changes in ((IP_Prototype_training, "a", {}), (IP_Bank_training, "b", {"bank_seed": 7}),
                                         (IP_End2End_training, "c", {"learning_rates": "0.01,0.5"}))}
    # The last two: the rate that no bank had asked for.
    assert sorted(trained[:2]) == [(0, 3), (1, 3)] and sorted(trained[2:]) == [(0, 1), (1, 1)]
    hits = {name: [(row["seed"], row["learning_rate"], row["hits"]) for row in some] for name, some in rows.items()}
    assert hits["a"] == hits["b"] and hits["c"][0] == hits["a"][1] and len(hits["c"]) == 4
    assert {row["bank"] for row in rows["b"]} == {"Random"} and {row["kept"] for row in rows["a"]} == {None}
    [folder] = toy.glob("dense_heads/*")
    assert not any("bank" in row for row in read_ledger(folder / "dense_heads.jsonl"))  # they belong to no bank
    tensors, described = predictors(folder, 1)
    val, best = clusters(200, "val"), described["selected"]["dense"]
    right = (val.features_ND @ tensors["dense/weight"].T + tensors["dense/bias"]).argmax(1) == val.labels_N
    assert float(right.double().mean()) == pytest.approx(best["top1"], abs=0.0051)
    for changes in ({"n_epoch": 1}, {"batch_size": 32}, {"holdout": 0.2}):  # another recipe, other dense heads
        prototype(toy, f"other{changes}", ratios="0.5", learning_rates="0.01", **changes)
        assert trained.pop() == (0, 1)
    prototype(toy, "there", ratios="0.5", dense_heads_dir=toy / "there too")
    assert trained[-1] == (0, 3) and list(toy.glob("there too/*/dense_heads.jsonl"))
    prototype(toy, "a", seeds=2, ratios="0.5", learning_rates="0.001,0.01,0.1,0.5")  # a rate more, of all heads
    assert len(ledger(toy / "a")) == 2 * 2 * 4 and trained[-1] == (0, 3)


def test_a_bank_that_is_refused_leaves_no_ledger_and_no_claimed_folder(toy):
    """Even where its dense heads are known or just trained; what another run has claimed stays claimed."""
    def refuse(seed):
        raise UserError("no bank for you")

    settings = parse(IP_Prototype_training.Settings, flags_of(toy, "out", **SHORT))
    from IP_training.inputs import load_inputs
    for _ in range(2):
        with pytest.raises(UserError, match="no bank for you"):
            module.train_bank(settings, "Mine", load_inputs(settings), refuse, 20, {})
        assert {file.name for file in (toy / "out").iterdir()} == {"settings.yaml"}
    prototype(toy, **SHORT)
    with pytest.raises(UserError, match="bank = 'Prototype', and this run has bank = 'Mine'"):
        module.train_bank(settings, "Mine", load_inputs(settings), refuse, 20, {})
    assert len(ledger(toy / "out")) == 6 and (toy / "out" / "manifest.json").exists()


# ---- settings ----


@pytest.mark.parametrize("script", [IP_Prototype_training, IP_Bank_training])
def test_bank_seed_draws_one_bank_for_all_seeds(toy, script):
    folder = run(script, toy, "fixed", seeds=2, bank_seed=5, ratios="0.5")
    (first, _), (second, _) = (predictors(folder, seed) for seed in (0, 1))
    assert torch.equal(first["bank"], second["bank"]) and not torch.equal(first["0.5/weight"], second["0.5/weight"])
    own = predictors(run(script, toy, "own", first_seed=5, ratios="0.5"), 5)[0]
    assert torch.equal(own["bank"], first["bank"])  # the bank of seed 5, as seed 5 draws it without the flag
    assert {row["bank_seed"] for row in ledger(folder)} == {5}
    assert not any("bank_seed" in row for row in ledger(toy / "own"))
    if script is IP_Prototype_training:  # a bank seed that is the seed changes nothing
        usual, named = (stable(run(script, toy, name, first_seed=5, ratios="0.5", **flags), "bank_seed")
                        for name, flags in (("own", {}), ("named", {"bank_seed": 5})))
        assert usual == named


def test_holdout_splits_train_and_tf32_is_put_back(toy):
    train, held = selection_of(0.25, 60, 0)
    assert len(held) == 15 and sorted([*train.tolist(), *held.tolist()]) == list(range(60))
    assert selection_of(0.0, 60, 0) is None and not torch.equal(held, selection_of(0.25, 60, 1)[1])
    for fraction in (0.001, 0.999):
        with pytest.raises(UserError, match="choose a fraction"):
            selection_of(fraction, 60, 0)
    folder = run(IP_Prototype_training, toy, "out", "--tf32", holdout=0.25, **SHORT)
    assert all(row["tf32"] for row in ledger(folder)) and not torch.backends.cuda.matmul.allow_tf32
    assert all(round(row["select_top1"] * 75, 6).is_integer() for row in ledger(folder))  # of the 75 held out


def test_yaml_is_under_the_command_line_and_other_settings_never_share_a_folder(toy):
    (toy / "run.yaml").write_text("n_epoch: 1\nratios: [0, 0.5]\nnum_concepts: 10\nseeds:\n")
    rows = ledger(prototype(toy, n_epoch=None, num_concepts=12, config_yaml=toy / "run.yaml"))
    assert {row["epochs"] for row in rows} == {1} and {row["num_concepts"] for row in rows} == {12} and len(rows) == 9
    written = yaml.safe_load((toy / "out" / "settings.yaml").read_text())
    assert written["ratios"] == [0.0, 0.5] and written["sparsifier"] == "mask" and "config_yaml" not in written
    with pytest.raises(UserError, match="num_concepts = 12, and this run has num_concepts = 10"):
        prototype(toy, n_epoch=None, num_concepts=None, config_yaml=toy / "run.yaml")
    assert json.loads((toy / "out" / "manifest.json").read_text())["num_concepts"] == 12
    (toy / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        prototype(toy, "file/out")


# ---- refusals ----


@pytest.mark.parametrize("changes, words", [
    ({"in_channels": 2048}, "D = 12"), ({"num_classes": 1000}, "4 classes"), ({"num_concepts": 0}, "at least 1"),
    ({"num_concepts": 81}, "80 visual elements"), ({"ratios": "0.5,1.0"}, "outside [0, 1)"),
    ({"ratios": "a,b"}, "is not a comma-separated list of numbers"),
    ({"concept_path": "none.pkl"}, "no file"), ({"seeds": 0}, "at least 1"), ({"learning_rates": "0.0"}, "above 0"),
    ({"holdout": 1.5}, "outside [0, 1)"), ({"device": "cuda:7"}, "CUDA"), ({"protocol": "papr"}, "protocol"),
    ({"prototypes": "last"}, "invalid choice: 'last'"), ({"num_concept": 3}, "--num_concepts"),
    ({"train_pt": None}, "no train representations"), ({"batch_size": 0}, "at least 1"),
    ({"bank_seed": -1}, "-1 is not a whole number, 0 or more")])
def test_bad_flags_are_one_sentence(toy, changes, words):
    assert words in refused(toy, **changes)


@pytest.mark.parametrize("case, words", [
    ("model", "differ in model"), ("node", "differ in node"), ("weights", "weights_hash"), ("width", "width"),
    ("classes", "different classes"), ("nan", "not finite"), ("constant", "constant"), ("truncated", "truncated"),
    ("dataset", "another data set"), ("labels", "labels"), ("bare", "--train_labels")])
def test_files_that_do_not_belong_together(toy, case, words):
    elements, train, val = clusters(80, "elements"), clusters(300, "train"), clusters(200, "val")
    if case in ("model", "node", "dataset"):
        elements.provenance[case] = "another"
    elif case == "weights":
        val.provenance["weights_hash"] = "another"
    elif case == "width":
        elements = clusters(80, "elements", width=13)
    elif case == "classes":
        val.class_names = ["class 0", "class 1", "class 2", "class X"]
    elif case in ("nan", "constant"):
        train.features_ND[slice(17, 18) if case == "nan" else slice(None)] = torch.nan if case == "nan" else 1.0
    elif case == "labels":
        train.labels_N[5] = 9
    for embeddings, name in ((elements, "elements.pkl"), (train, "train.pt"), (val, "val.pt")):
        save_embeddings(toy / name, embeddings)
    if case == "truncated":
        (toy / "train.pt").write_bytes((toy / "train.pt").read_bytes()[:4000])
    elif case == "bare":
        torch.save(train.features_ND, toy / "train.pt")
    assert words in refused(toy)
    if case == "dataset":  # as a control it may
        assert len(ledger(run(IP_Prototype_training, toy, "out", "--other_dataset", **SHORT))) == 6
