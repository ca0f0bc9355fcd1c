"""The scripts of the banks: what each stores, what tells its settings apart, and what it refuses."""

import numpy as np
import pytest
import torch
from bank_runs import GRID, assert_plain, ledger, predictors, refusal, run, save_clip, stable, text_flags
from safetensors.torch import load_file

from iis.cli import from_mapping
from iis.runtime import UserError
from iis.summary import summarise
from IP_training import (
    IP_Bank_training,
    IP_Cluster_training,
    IP_End2End_training,
    IP_Prototype_training,
    IP_Text_training,
    banks,
    end2end,
)

SHORT = {"ratios": "0.5", "n_epoch": 1}


def combined(toy, out="out", **changes):
    return run(IP_Bank_training, toy, out, kind="Combined", **changes)


@pytest.mark.parametrize("script, kind, changes", [
    (IP_Prototype_training, "Prototype", {}), (IP_Cluster_training, "Cluster", {}),
    (IP_End2End_training, "End2End", {}),
    (IP_End2End_training, "End2End", {"test_assignment": "gumbel"}),  # the stored bank, not a fresh draw, predicts
    (IP_Bank_training, "Random", {"concept_path": "none.pkl"})])  # Random needs no elements
def test_every_bank_gives_a_curve_that_its_stored_predictors_repeat(toy, script, kind, changes, monkeypatch):
    fits, fit = [], banks.cluster_centres
    monkeypatch.setattr(banks, "cluster_centres", lambda *args: fits.append(args[2]) or fit(*args))
    rows = ledger(run(script, toy, seeds=2, jobs=1, **changes))  # one process, so that calls can be counted
    assert fits == ([0, 1] if kind == "Cluster" else [])  # once per seed
    assert len(rows) == 2 * GRID and {row["bank"] for row in rows} == {kind}
    assert_plain(toy / "out")
    for seed in (0, 1):  # one bank a seed: the same seconds in all its rows; none of a dense head or a learned bank
        took = {row["bank_seconds"] for row in rows if row["seed"] == seed and row["ratio"] >= 0}
        assert len(took) == 1 and all((0 <= value < 60) if kind != "End2End" else value is None for value in took)
    assert {row["bank_seconds"] for row in rows if row["ratio"] < 0} == {None}
    result = summarise(rows, 10)
    assert 0 < result["iis"]["mean"] < 1 and len(result["iis"]["per_seed"]) == 2
    (one, described), (other, _) = (predictors(toy / "out", seed) for seed in (0, 1))
    if kind != "End2End":
        assert one["bank"].shape == (20, 12) and not torch.equal(one["bank"], other["bank"])
        return
    for ratio, chosen in described["selected"].items():  # a bank per cell
        bank, slots, evidence = one[f"{ratio}/bank"], one[f"{ratio}/slots"], described["concepts"][ratio]
        assert bank.shape == (20, 12) and ((bank.norm(dim=1) - 1).abs().lt(1e-5) | bank.norm(dim=1).eq(0)).all()
        cell = (0, float(ratio), chosen["learning_rate"])
        row = next(row for row in rows if (row["seed"], row["ratio"], row["learning_rate"]) == cell)
        # empty slots, counted another way than the ledger does
        assert row["empty_concepts"] == 20 - len(slots.unique()) == evidence.count([]) and sum(map(len, evidence)) == 80
    assert len({one[f"{ratio}/slots"].numpy().tobytes() for ratio in ("0", "0.5", "0.98")}) == 3


@pytest.mark.parametrize("script", [IP_Cluster_training, IP_End2End_training])
def test_the_protocol_decides_which_elements_a_bank_is_made_of(toy, monkeypatch, script):
    """Where there are more than may be used (30 of 80 here)."""
    seen, chosen = [], banks.chosen_elements
    for module in (banks, end2end):
        monkeypatch.setattr(module, "chosen_elements", lambda elements, seed, choice: seen.append(
            chosen(elements, seed, choice, most=30)) or seen[-1])
    for protocol, choice in (("paper", "balanced"), ("release", "first")):
        rows = ledger(run(script, toy, protocol, num_concepts=12, protocol=protocol, **SHORT))
        assert {row["element_choice"] for row in rows} == {choice}
    assert len(seen[0]) == 30 and seen[0] != seen[1] == list(range(30))
    settings = [from_mapping(script.Settings, {"protocol": protocol}) for protocol in ("paper", "release")]
    assert [one.sparsifier for one in settings] == ["mask", "strict"]  # a protocol fills what no flag says
    own = from_mapping(script.Settings, {"protocol": "release", "element_choice": "balanced"})
    assert own.element_choice == "balanced"


def test_gumbel_at_test_time_is_the_releases(toy):
    flags = {**SHORT, "sparsifier": "mask"}
    paper, release, own = (stable(run(IP_End2End_training, toy, out, **flags, **changes), "protocol", "element_choice")
                           for out, changes in (("paper", {}), ("release", {"protocol": "release"}),
                                                ("own", {"test_assignment": "gumbel"})))
    assert release == own  # 80 elements are all used, so the choice of elements changes nothing
    assert [row["loss"] for row in paper] == [row["loss"] for row in release]  # training does not know of it
    assert [row["hits"] for row in paper] != [row["hits"] for row in release]
    with pytest.raises(UserError, match="test_assignment = 'argmax'"):
        run(IP_End2End_training, toy, "paper", **flags, test_assignment="gumbel")


def test_a_folder_without_save_dir_tells_settings_apart(toy):
    save_clip(toy)
    torch.save(torch.eye(12), toy / "mine.pt")
    for script, switches, changes in (
            (IP_Cluster_training, (), {}),
            (IP_Prototype_training, ("--tf32",), {"bank_seed": 7, "sparsifier": "strict"}),
            (IP_End2End_training, (), {"protocol": "release", "test_assignment": "argmax"}),
            (IP_Bank_training, (), {"kind": "Combined", "parts": "Cluster,Random", "holdout": 0.1}),
            (IP_Bank_training, (), {"num_concepts": None, "bank": toy / "mine.pt"}),
            (IP_Text_training, ("--sparsity_ratio",), text_flags(toy)),
            (IP_Text_training, ("--lam", "0.01", "--n_iters", "5"), text_flags(toy))):
        run(script, toy, None, *switches, **{**SHORT, "save_root": toy / "root", **changes})
    folders = sorted(str(file.parent.relative_to(toy / "root")) for file in toy.rglob("settings.yaml"))
    assert folders == ["IP_Cluster/toy/toy_segments_M20_epochs1_batch64",
                       "IP_Combined/toy/toy_segments_Cluster_Random_M20_holdout0.1_epochs1_batch64",
                       "IP_End2End/toy/toy_segments_M20_release_argmax_epochs1_batch64",
                       "IP_Own/toy/toy_mine_M12_epochs1_batch64",
                       "IP_Prototype/toy/toy_segments_M20_strict_epochs1_batch64_bank7_tf32",
                       "IP_Text/toy/toy_words_Mall_epochs1_batch64",
                       "IP_Text/toy/toy_words_Mall_epochs1_batch64_elastic_lam0.01"]


def test_visual_and_textual_share_seven_concepts(toy):
    save_clip(toy)
    rows = ledger(combined(toy, **text_flags(toy, num_concepts=7)))
    assert len(rows) == GRID and {row["bank_size"] for row in rows if row["ratio"] >= 0} == {7}
    assert rows[0]["parts"] == ["Prototype", "Text"] and rows[0]["clip"] == "toy CLIP"
    tensors, described = predictors(toy / "out")
    assert [lines[0].split(": ")[0] for lines in described["concepts"]["all"]] == ["Prototype"] * 4 + ["Text"] * 3
    assert described["blocks"]["all"] == [["layer", 4], ["standard", 3]]
    assert torch.equal(tensors["mean"][:4], torch.zeros(4)) and torch.equal(tensors["std"][:4], torch.ones(4))
    assert (tensors["std"][4:] != 1).all()
    for ratio in ("0", "0.5"):  # nothing is learned where the training moments standardise
        assert torch.equal(tensors[f"{ratio}/scale"][4:], torch.ones(3)) and not tensors[f"{ratio}/shift"][4:].any()
        assert not torch.equal(tensors[f"{ratio}/scale"][:4], torch.ones(4))
    assert_plain(toy / "out", slice(0, 4))


def test_the_parts_are_the_banks_of_their_own_scripts_and_own_goes_in_whole(toy):
    """Three LayerNorm blocks stay three; Cluster and Random share what Own leaves."""
    own = banks.unit_rows(torch.randn(5, 12, generator=torch.Generator().manual_seed(0)))
    torch.save(own, toy / "own.pt")
    more = {"ratios": "0.5", "first_seed": 1}
    combined(toy, parts="Cluster,Own,Random", num_concepts=26, bank=toy / "own.pt", **more)
    run(IP_Cluster_training, toy, "cluster", num_concepts=11, **more)
    run(IP_Bank_training, toy, "random", num_concepts=10, **more)
    whole, cluster, random = (load_file(toy / name / "predictors" / "seed_1.safetensors")["bank"]
                              for name in ("out", "cluster", "random"))
    assert torch.equal(whole, torch.cat([cluster, own, random]))
    assert predictors(toy / "out", 1)[1]["blocks"]["all"] == [["layer", 11], ["layer", 5], ["layer", 10]]


def test_names_reach_the_predictors_empty_concepts_the_ledger_and_a_matrix_its_hash(toy):
    (toy / "names.txt").write_text("one\ntwo\nthree\n")
    flags = {"num_concepts": None, "concept_path": None, "bank": toy / "bank.npy", **SHORT}
    for factor in (1.0, 2.0):  # the same directions: one bank
        np.save(toy / "bank.npy", factor * np.eye(12)[:3] * [[1], [0], [5]])
        folder = run(IP_Bank_training, toy, "own", bank_names=toy / "names.txt", **flags)
    assert predictors(folder)[1]["concepts"]["all"] == [["one"], ["two"], ["three"]]
    assert {row["empty_concepts"] for row in ledger(folder) if row["ratio"] >= 0} == {1}
    np.save(toy / "bank.npy", np.eye(12)[::-1][:3])
    with pytest.raises(UserError, match="bank_hash"):
        run(IP_Bank_training, toy, "own", **flags)


@pytest.mark.parametrize("script", [IP_Cluster_training, IP_End2End_training])
def test_numbers_that_the_elements_cannot_give(toy, script):
    for changes, words in (({"num_concepts": 81}, "80 visual elements"), ({"num_concepts": 0}, "at least 1"),
                           ({"concept_path": toy / "none.pkl"}, "no file"),
                           ({"element_choice": "last"}, "invalid choice: 'last'")):
        assert words in refusal(script, toy, **changes)


@pytest.mark.parametrize("changes, words", [
    ({"parts": "Prototyp,Random"}, "did you mean Prototype"), ({"parts": "Random"}, "at least two"),
    ({"parts": "Random,Cluster,Random"}, "names Random twice"),
    ({"parts": "Random,Cluster,Prototype", "num_concepts": 2}, "too few for the parts Random, Cluster, Prototype"),
    ({"parts": "Cluster,Random", "num_concepts": 200}, "80 visual elements"), ({"num_concepts": 8}, "textual_emb"),
    ({"parts": "Prototype,Own"}, "both --bank FILE and Own"), ({"bank": "bank.npy"}, "both --bank FILE and Own"),
    ({"parts": "Prototype,Own", "bank": "bank.npy", "num_concepts": 12}, "the bank of your own has 12"),
    ({"kind": "Own"}, "needs --bank"), ({"kind": "Random", "bank": "bank.npy", "num_concepts": 200}, "has 12"),
    ({"kind": "Random", "bank_names": "names.txt"}, "--bank FILE"),
    ({"kind": "Random", "num_concepts": 0}, "at least 1")])
def test_flags_of_the_bank_script_that_contradict_each_other(toy, changes, words):
    np.save(toy / "bank.npy", np.eye(12))
    files = {name: toy / file for name, file in changes.items() if name in ("bank", "bank_names")}
    assert words in refusal(IP_Bank_training, toy, **{"kind": "Combined", "activation_dir": toy, **changes, **files})


def test_parts_without_a_combined_bank_are_refused(toy):
    assert "--kind Combined" in refusal(IP_Bank_training, toy, parts="Prototype,Random", num_concepts=12)
