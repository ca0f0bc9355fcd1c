"""Random and a bank of one's own: the script, and the same numbers give the same IIS wherever they were made."""

import numpy as np
import pytest
import torch
from bank_runs import GRID, assert_plain, ledger, own_caches, predictors, refusal, run  # noqa: F401
from conftest import clusters
from safetensors.torch import save_file

from iis.runtime import UserError
from iis.summary import summarise
from IP_training import IP_Bank_training, IP_Prototype_training
from IP_training.other_banks import file_bank, random_bank


def own(toy, *switches, out="own", **changes):
    return run(IP_Bank_training, toy, out, *switches, **{"num_concepts": None, "concept_path": None, **changes})


def refused(toy, **changes):
    return refusal(IP_Bank_training, toy, **{"num_concepts": None, "concept_path": None, **changes})


def measured(folder):
    """What must not depend on where the numbers came from."""
    return [(row["seed"], row["ratio"], row["learning_rate"], row["top1_by_epoch"], row["loss_by_epoch"], row["hits"])
            for row in ledger(folder)]


def test_random_rows_have_unit_length_and_change_with_the_seed():
    bank = random_bank(50, 12, 0)
    torch.testing.assert_close(bank.vectors_MD.norm(dim=1), torch.ones(50))
    assert torch.equal(bank.vectors_MD, random_bank(50, 12, 0).vectors_MD)
    assert not torch.isclose(bank.vectors_MD, random_bank(50, 12, 1).vectors_MD).any(1).all()
    assert bank.vectors_MD.mean(0).abs().max() < 4 / (50 * 12) ** 0.5 and len(bank.evidence) == 50


def test_random_runs_through_its_script(toy):
    """More directions than there are elements: a Random bank needs none."""
    rows = ledger(run(IP_Bank_training, toy, num_concepts=100, seeds=2, concept_path=toy / "none.pkl"))
    assert len(rows) == 2 * GRID and {row["bank"] for row in rows} == {"Random"}
    one, other = (predictors(toy / "out", seed)[0]["bank"] for seed in (0, 1))
    assert one.shape == (100, 12) and not torch.equal(one, other)
    assert_plain(toy / "out")


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
def test_a_bank_of_ones_own_gives_the_same_iis(toy, suffix):
    """The suite's Prototype bank, taken from its file and brought back with bare features and labels."""
    run(IP_Prototype_training, toy, "suite")
    bank_MD, file = predictors(toy / "suite")[0]["bank"], toy / f"mine.{suffix}"
    {"npy": lambda: np.save(file, bank_MD.numpy()), "pt": lambda: torch.save(bank_MD, file),
     "safetensors": lambda: save_file({"anything": bank_MD}, file)}[suffix]()
    bare = {}
    for split, count in (("train", 300), ("val", 200)):
        images = clusters(count, split)
        np.save(toy / f"{split}.npy", images.features_ND.numpy())
        np.save(toy / f"{split}_labels.npy", images.labels_N.numpy())
        bare |= {f"{split}_pt": toy / f"{split}.npy", f"{split}_labels": toy / f"{split}_labels.npy"}
    own(toy, bank=file, **bare)
    assert torch.equal(predictors(toy / "own")[0]["bank"], bank_MD)
    assert measured(toy / "suite") == measured(toy / "own")
    suite, mine = (summarise(ledger(toy / name), 10) for name in ("suite", "own"))
    assert suite["iis"] == mine["iis"] and suite["bootstrap"] == mine["bootstrap"]
    assert {row["bank_name"] for row in ledger(toy / "own")} == {"mine"}


def test_rows_are_scaled_to_length_1_and_keep_their_names(toy):
    matrix = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    torch.save(matrix, toy / "bank.pt")
    (toy / "names.txt").write_text("edge\n\ncorner\n nothing \nVögel\n", encoding="utf-8")
    bank = file_bank(toy / "bank.pt", 2, toy / "names.txt")
    torch.testing.assert_close(bank.vectors_MD, torch.tensor([[0.6, 0.8], [0.0, -1.0], [0.0, 0.0], [1.0, 0.0]]))
    assert bank.evidence == [["edge"], ["corner"], ["nothing"], ["Vögel"]] and bank.empty == 1
    assert file_bank(toy / "bank.pt", 2).evidence[3] == ["concept 3"]


def test_names_reach_the_predictors_and_empty_concepts_the_ledger(toy):
    np.save(toy / "bank.npy", np.eye(12)[:3] * [[1], [0], [5]])
    (toy / "names.txt").write_text("one\ntwo\nthree\n")
    own(toy, bank=toy / "bank.npy", bank_names=toy / "names.txt", ratios="0,0.5")
    assert predictors(toy / "own")[1]["concepts"]["all"] == [["one"], ["two"], ["three"]]
    assert {row["empty_concepts"] for row in ledger(toy / "own") if row["ratio"] >= 0} == {1}


def test_another_matrix_under_the_same_name_is_another_bank(toy):
    for value in (1.0, 2.0):
        np.save(toy / "bank.npy", np.eye(12) * value)
        own(toy, bank=toy / "bank.npy", ratios="0.5")  # the same directions: the same bank
    np.save(toy / "bank.npy", np.eye(12)[::-1])
    with pytest.raises(UserError, match="bank_hash"):
        own(toy, bank=toy / "bank.npy", ratios="0.5")


@pytest.mark.parametrize("matrix, words", [
    (np.ones((5, 13)), "has D = 13, and the representations have D = 12"),
    (np.ones((12, 5)), "looks transposed"),
    (np.full((5, 12), np.nan), "not finite"),
    (np.full((5, 12), 1e300), "not finite"),  # beyond float32, which the bank is computed in
    (np.ones(12), "M x D"), (np.ones((0, 12)), "M x D"),
    (np.zeros((5, 12)), "all zero"),
    (np.array([{}]), "cannot be read as tensors"),
])
def test_a_matrix_that_is_no_bank(toy, matrix, words):
    np.save(toy / "bank.npy", matrix, allow_pickle=matrix.dtype == object)
    assert words in refused(toy, bank=toy / "bank.npy")


def test_flags_that_contradict_the_file(toy):
    np.save(toy / "bank.npy", np.eye(12))
    (toy / "names.txt").write_text("one\ntwo\n")
    assert "2 names for the 12 concepts" in refused(toy, bank=toy / "bank.npy", bank_names=toy / "names.txt")
    assert "no file" in refused(toy, bank=toy / "bank.npy", bank_names=toy / "none.txt")
    assert "has 12" in refused(toy, bank=toy / "bank.npy", num_concepts=200)
    assert "no file" in refused(toy, bank=toy / "none.npy")
    assert "needs --bank" in refused(toy, kind="Own")
    assert "both --bank FILE and Own" in refused(toy, bank=toy / "bank.npy", kind="Combined")
    assert "--bank FILE" in refused(toy, bank_names=toy / "names.txt")
    save_file({"a": torch.eye(12), "b": torch.eye(12)}, toy / "two.safetensors")
    assert "M x D" in refused(toy, bank=toy / "two.safetensors")
    assert "at least 1" in refused(toy, kind="Random", num_concepts=0)
