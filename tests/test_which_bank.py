"""Banks against networks: ranks and their tests against Demšar's paper, matching of banks, and the table on ledgers
whose numbers are worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bank_runs import ledger
from conftest import clusters
from made_sweep import call, correct_of, made_ledger, rows_of, trained

from iis.embedding_file import save_embeddings
from iis.results import add_rows
from iis.runtime import UserError, write_json
from IP_training import IP_End2End_training, IP_Prototype_training
from reproduction import which_bank
from reproduction.lib.bank_geometry import effective_rank, matched_cosine, stability
from reproduction.lib.measures import stored_levels
from reproduction.lib.nec import LEVELS, PATHS
from reproduction.lib.runs import read_run
from reproduction.lib.statistics import critical_difference, friedman

# AUC of C4.5, with m, with cf, with both, on 14 data sets (Demšar 2006, Table 6). The last digit of "voting" is ours:
# the paper prints a tie there and ranks 2 and 3.
DEMSAR = [(.763, .768, .771, .798), (.599, .591, .590, .569), (.954, .971, .968, .967), (.628, .661, .654, .657),
          (.882, .888, .886, .898), (.936, .931, .916, .931), (.661, .668, .609, .685), (.583, .583, .563, .625),
          (.775, .838, .866, .875), (1.0, 1.0, 1.0, 1.0), (.940, .962, .965, .962), (.619, .666, .614, .669),
          (.972, .981, .9751, .975), (.957, .978, .946, .970)]


# ---- ranks ----


def test_critical_difference_against_the_published_table():
    published = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]  # q of 2 to 10 at 0.05
    found = [critical_difference(k, 6) / (k * (k + 1) / 36) ** 0.5 for k in range(2, 11)]
    assert found == pytest.approx(published, abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)  # his example
    assert critical_difference(4, 14, 0.10) == pytest.approx(2.291 * (20 / 84) ** 0.5, abs=5e-4)


def test_friedman_on_demsars_example():
    found = friedman(DEMSAR)
    assert found.mean_ranks == pytest.approx([44 / 14, 2, 40.5 / 14, 27.5 / 14])
    # 12 · 14 / (4 · 5) · (Σ rank² − 4 · 25 / 4) = 9.28 as printed; over 1 − Σ(t³ − t) / (14 · 60), ties of 2 (three
    # times) and of 4
    plain = 8.4 * ((44**2 + 28**2 + 40.5**2 + 27.5**2) / 14**2 - 25)
    assert plain == pytest.approx(9.28, abs=5e-3) and found.chi2 == pytest.approx(plain / (1 - (3 * 6 + 60) / 840))
    assert 0.01 < found.p < 0.02


def test_ranks_with_ties_and_where_less_is_better():
    values = [[3.0, 3.0, 1.0], [2.0, 5.0, 5.0 - 1e-14]]  # the last two tie but for rounding
    assert friedman(values).mean_ranks == pytest.approx([(1.5 + 3) / 2, (1.5 + 1.5) / 2, (3 + 1.5) / 2])
    assert friedman(values, more_is_better=False).mean_ranks == pytest.approx([1.75, 2.5, 1.75])
    for few in ([[1.0, 2.0], [2.0, 1.0]], [[1.0, 2.0, 3.0]], [[1.0] * 3] * 4):  # two banks, one network, all alike
        assert friedman(few)[1:] == (None, None)


def test_what_is_incomplete_is_left_out():
    values = np.arange(12.0).reshape(3, 4)
    values[:2, 3] = np.nan  # a bank that two of three networks lack
    assert which_bank.complete(values) == ([0, 1, 2], [0, 1, 2])
    values[0] = np.nan  # a network without any
    assert which_bank.complete(values) == ([1, 2], [0, 1, 2])
    assert which_bank.complete(np.full((2, 2), np.nan)) == ([], [])


def test_bars_join_runs_of_banks_closer_than_the_critical_difference():
    def cliques(ranks, cd):
        found = SimpleNamespace(mean_ranks=np.array(ranks))
        return which_bank.Ranks("toy", 8, "iis", list("abcd"), ["net"], found, cd, "").cliques
    assert cliques([3.1, 2.0, 2.9, 1.5], 1.25) == [(1.5, 2.0), (2.0, 3.1)]
    assert cliques([4, 2, 3, 1], 1.0) == [] and cliques([4, 2, 3, 1], 4) == [(1.0, 4.0)]


# ---- vectors ----


def test_rows_in_another_order_and_flipped_match_whole():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(6, 4))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    other = (bank * [[1], [-1], [1], [-1], [1], [1]])[rng.permutation(6)]
    assert matched_cosine(bank, other).matched == pytest.approx(1)
    assert matched_cosine(bank, other).any_two == pytest.approx(np.mean([abs(a @ b) for a in bank for b in bank]))
    assert matched_cosine(bank, bank[:3]).matched == pytest.approx(0.5)  # three of six have no partner
    # the best pairing, not each row's best: 0.8 + 0, against 1 + 0.6 that share a partner
    one, two = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]]), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert matched_cosine(one, two) == pytest.approx(((1 + 0) / 2, 1.6 / 4))
    assert matched_cosine(np.eye(3), np.zeros((3, 3))) == (0, 0)
    assert stability([np.eye(2)]) is None
    assert stability([np.eye(2), np.eye(2), np.array([[0.6, 0.8], [0.0, 0.0]])]) == pytest.approx(
        ((1 + 0.4 + 0.4) / 3, (0.5 + 0.35 + 0.35) / 3))


def test_effective_rank_and_accuracy_at_kept_by_hand():
    assert [effective_rank(bank) for bank in (np.eye(4), np.ones((5, 3)))] == pytest.approx([4, 1])
    # singular values 2 and 1: shares 2/3 and 1/3, entropy 0.6365
    assert effective_rank(np.diag([2.0, 1.0])) == pytest.approx(np.exp(2 / 3 * np.log(1.5) + np.log(3) / 3))
    counts, accuracies = [16, 4, 1, 1], np.array([0.9, 0.7, 0.3, 0.3])
    # linear in log k: 2 is halfway between 1 and 4
    assert [which_bank.accuracy_at(kept, counts, accuracies) for kept in (4, 2, 8)] == pytest.approx([0.7, 0.5, 0.8])
    assert np.isnan(which_bank.accuracy_at(32, counts, accuracies))
    assert which_bank.mean_of([{"a": 1}, {"a": None}, {"a": 2}, {}], "a") == 1.5
    assert which_bank.mean_of([{}], "a") is None


# ---- the table ----

NETS = {"net_a": (0.5, {"Prototype": 0.44, "Cluster": 0.45, "Random": 0.40}),
        "net_b": (0.8, {"Prototype": 0.72, "Cluster": 0.72, "Random": 0.64}),
        "net_c": (0.8, {"Prototype": 0.68, "Cluster": 0.70, "Random": 0.72})}


def save_bank(folder, seeds):
    """The predictors of a made ledger, as far as the table reads them: the bank (M, D) of each seed."""
    from iis.embedding_file import save_tensors

    for seed, bank in enumerate(seeds):
        file = folder / "predictors" / f"seed_{seed}.safetensors"
        save_tensors(file, {"bank": torch.tensor(np.ascontiguousarray(bank), dtype=torch.float32)})
        words = [["word"]] * len(bank)
        write_json(file.with_suffix(".json"), {"concepts": {"all": words}, "blocks": {"all": [["layer", len(bank)]]}})


def add_to_rows(folder, **values):
    """values: name → a number per seed, for the predictors' rows."""
    add_rows(folder / "results.jsonl", [
        {**row, **{name: of[row["seed"]] if row["ratio"] >= 0 else None for name, of in values.items()}}
        for row in ledger(folder)])


def save_nec(folder, values, levels=LEVELS):
    lines = [{"nec": level, "top1": values if level in levels else None, "reason": ""} for level in LEVELS]
    run = read_run(folder, draws=2)
    write_json(folder / "nec.json", {str(seed): {"levels": lines, "depends": {
        "path": PATHS["refined"], "train_hash": "t", "val_hash": "v", **run.bank(seed).encoder.fingerprint()}}
        for seed in range(2)})


def test_accuracy_at_nec_of_another_bank_is_not_believed(tmp_path):
    place = made_ledger(tmp_path, "net", 0.8, 0.6, train_hash="t", val_hash="v")
    save_bank(place, [np.eye(20), np.eye(20)])
    save_nec(place, 0.5)
    assert len(stored_levels(read_run(place, draws=2))) == 2
    save_bank(place, [np.eye(20), np.eye(20)[::-1]])  # seed 1 was trained again
    assert stored_levels(read_run(place, draws=2)) is None


def made_banks(folder):
    """A cells.json of three banks on three networks at M = 20, with banks, NEC and seconds; a variant; a checkpoint."""
    cells, features = [], {"train_hash": "t", "val_hash": "v"}
    for model, (dense, banks) in NETS.items():
        for bank, top1 in banks.items():
            place = made_ledger(folder / bank / model, model, dense, top1, bank=bank, **features)
            save_bank(place, [np.eye(20), np.eye(20)[::-1] if bank == "Prototype" else np.eye(20) * 0.5])
            save_nec(place, top1, LEVELS[:3] if (model, bank) == ("net_a", "Random") else LEVELS)
            if bank != "Random":
                add_to_rows(place, bank_seconds=[1.0, 2.0], seconds=[0.5, 0.5])
            cells.append({"model": model, "variant": "", "folder": str(place), "message": None})
    for name, model, variant in (("shrink", "net_a", "shrink"), ("epoch", "net_c_epoch2", "")):
        place = made_ledger(folder / name, model, 0.8, 0.7, **features)
        cells.append({"model": model, "variant": variant, "folder": str(place), "message": None})
    write_json(folder / "sweep" / "cells.json", cells)
    return folder / "sweep" / "cells.json"


def test_table_and_ranks_by_hand(tmp_path, capsys):
    call(which_bank, "--sweep", made_banks(tmp_path), "--save_dir", tmp_path / "out", "--draws", 20)
    lines = rows_of(tmp_path / "out" / "which_bank.csv")
    assert [(line["model"], line["bank"]) for line in lines] == [
        (model, bank) for model in NETS for bank in ("Prototype", "Cluster", "Random")]  # no variant, no checkpoint
    by = {(line["model"], line["bank"]): line for line in lines}
    first = by["net_a", "Prototype"]
    assert float(first["iis"]) == pytest.approx(0.98 * 0.88) and float(first["anec"]) == pytest.approx(0.44)
    assert float(first["lift"]) == pytest.approx(0.98 * 0.08)
    assert first["anec_levels"] == "5 to 15" and by["net_b", "Prototype"]["anec_levels"] == "5 to 30"
    assert float(first["stability"]) == 1 and float(by["net_a", "Cluster"]["stability"]) == 0.5
    assert float(first["effective_rank"]) == pytest.approx(20, rel=1e-5) and float(first["top1_at_kept"]) == (
        pytest.approx(0.44))
    assert (float(first["bank_seconds"]), float(first["head_seconds"])) == (1.5, 0.5)
    assert by["net_a", "Random"]["bank_seconds"] == "" and by["net_a", "Random"]["ncc"] == ""  # old rows; no features
    ranks = {(line["measure"], line["bank"]): line for line in rows_of(tmp_path / "out" / "which_bank_ranks.csv")}
    # net_a: C P R; net_b: C = P, R; net_c: R C P
    for measure in ("iis", "area_log_k", "anec"):
        assert [float(ranks[measure, bank]["mean_rank"]) for bank in ("Prototype", "Cluster", "Random")] == (
            pytest.approx([(2 + 1.5 + 3) / 3, (1 + 1.5 + 2) / 3, (3 + 3 + 1) / 3]))
    # ranks' sums 6.5, 4.5, 7: 12 / (3 · 3 · 4) · 111.5 − 36 = 7/6, over 1 − 6 / (3 · 24)
    assert float(ranks["iis", "Cluster"]["chi2"]) == pytest.approx(7 / 6 / (1 - 6 / 72))
    assert float(ranks["iis", "Cluster"]["critical_difference"]) == pytest.approx(2.343 * (12 / 18) ** 0.5, abs=1e-3)
    assert ranks["iis", "Cluster"]["networks"] == "3" and ("ncc", "Cluster") not in ranks
    said = capsys.readouterr().out
    assert "With 3 networks" in said and "9 of 9 lines have no ncc" in said and "3 of 9 lines have no bank_seconds" in (
        said)
    assert "| toy | net_a | 20 | Prototype |" in (tmp_path / "out" / "which_bank.md").read_text()
    assert all((tmp_path / "out" / f"which_bank_toy_M20.{suffix}").stat().st_size for suffix in ("png", "pdf"))


def test_a_bank_or_network_that_is_missing_is_named(tmp_path, capsys):
    index = made_banks(tmp_path)
    (tmp_path / "Cluster" / "net_c" / "results.jsonl").unlink()
    for name in ("Prototype", "Random"):  # at 0.8 of 0.79 chance nothing has a meaning
        add_to_rows(tmp_path / name / "net_c")
        add_rows(tmp_path / name / "net_c" / "results.jsonl",
                 [{**row, "chance": 0.79, "hits": correct_of(row["top1"])} for row in ledger(
                     tmp_path / name / "net_c")])
    call(which_bank, "--sweep", index, "--save_dir", tmp_path / "out", "--draws", 20)
    ranks = rows_of(tmp_path / "out" / "which_bank_ranks.csv")
    assert {line["networks"] for line in ranks} == {"2"} and {line["banks"] for line in ranks} == {"3"}
    assert "IIS: network net_c" in capsys.readouterr().out


def test_two_runs_of_one_bank_and_no_run_at_all(tmp_path, capsys):
    made_banks(tmp_path)
    again = made_ledger(tmp_path / "again", "net_a", 0.5, 0.44, train_hash="t", val_hash="v")
    save_bank(again, [np.eye(20)] * 2)
    call(which_bank, "--model_root", tmp_path / "Prototype" / "net_a", again, "--save_dir", tmp_path / "out")
    assert len(rows_of(tmp_path / "out" / "which_bank.csv")) == 1
    said = capsys.readouterr().out
    assert f"left out: {again}" in said and "no ranks" in said
    with pytest.raises(UserError, match="no ledger of other"):
        call(which_bank, "--model_root", again, "--dataset", "other")
    (again / "predictors" / "seed_0.safetensors").unlink()
    with pytest.raises(UserError, match="with the bank"):
        call(which_bank, "--model_root", again)


def test_trained_banks_with_their_seconds_and_ncc(toy):
    """A bank per ratio (End2End) and one for all; settings that differ are in the title."""
    short = {"num_concepts": 8, "learning_rates": 0.1, "seeds": 2}
    folders = [trained(IP_Prototype_training, toy, "IP_Prototype/net/toy_a", **short),
               trained(IP_Prototype_training, toy, "IP_Prototype/net/toy_b", **short, n_epoch=3),
               trained(IP_End2End_training, toy, "IP_End2End/net/toy_c", **short, n_epoch=1)]
    call(which_bank, "--model_root", *folders, "--save_dir", toy / "out", "--draws", 20)
    by = {line["bank"]: line for line in rows_of(toy / "out" / "which_bank.csv")}
    assert set(by) == {"Prototype, 2 epochs", "Prototype, 3 epochs", "End2End"}  # the one End2End has no rival
    own = by["Prototype, 2 epochs"]
    assert 0 <= float(own["bank_seconds"]) < 60 and by["End2End"]["bank_seconds"] == ""
    assert all(0 < float(line["head_seconds"]) < 60 and 0 < float(line["ncc"]) <= 8 for line in by.values())
    assert 0 < float(own["stability"]) <= 1 and float(own["stability"]) == float(by["Prototype, 3 epochs"]["stability"])
    save_embeddings(toy / "val.pt", clusters(200, "val", seed=3))  # other features: no NCC, and the line stays
    call(which_bank, "--model_root", folders[0], "--save_dir", toy / "out", "--draws", 20)
    line, = rows_of(toy / "out" / "which_bank.csv")
    assert line["ncc"] == "" and line["effective_rank"]
