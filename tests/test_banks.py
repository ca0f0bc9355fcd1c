"""Banks: unit rows, balanced choice, k-means against plain code, matrices of one's own, and what is refused."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import clusters
from safetensors.torch import save_file

from iis.runtime import UserError, seed_of
from IP_training import banks
from IP_training.banks import Seed, balanced_choice, chosen_elements, cluster_centres, shares, unit_rows
from IP_training.dictionary_file import from_file

ELEMENTS = clusters(80, "elements")
ROWS = unit_rows(ELEMENTS.features_ND)
SEED, OTHER = Seed(0, 0), Seed(1, 1)


def test_unit_rows_by_hand_and_zero_rows_stay_zero():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-15]], dtype=torch.float64))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]]))


def test_balanced_choice_is_even_without_replacement_and_moves_with_the_seed():
    labels = [0] * 50 + [1] * 50 + [2] * 2
    chosen = balanced_choice(labels, 22, 0)
    assert len(set(chosen)) == 22
    # Class 2 runs dry after two rounds; the other two share the rest evenly.
    assert Counter(labels[row] for row in chosen) == {0: 10, 1: 10, 2: 2}
    assert balanced_choice(labels, 22, 0) == chosen != balanced_choice(labels, 22, 1)
    assert sorted(balanced_choice(labels, 200, 0)) == list(range(102))  # no more than there are


def test_release_takes_the_first_rows_and_paper_spreads_over_classes():
    elements, order = clusters(80, "elements"), ELEMENTS.labels_N.argsort(stable=True)
    elements.features_ND, elements.labels_N = elements.features_ND[order], elements.labels_N[order]
    elements.image_paths = [elements.image_paths[row] for row in order]
    first, paper, other = (make(seed) for make, seed in ((banks.prototypes(elements, 12, "first"), SEED),
                                                         (banks.prototypes(elements, 12), SEED),
                                                         (banks.prototypes(elements, 12), OTHER)))
    assert {paths[0].split("/")[0] for paths in first.evidence} == {"class 0"}
    torch.testing.assert_close(first.vectors_MD, unit_rows(elements.features_ND[:12]))
    assert Counter(paths[0].split("/")[0] for paths in paper.evidence) == {f"class {label}": 3 for label in range(4)}
    for vector, [path] in zip(paper.vectors_MD, paper.evidence, strict=True):  # the evidence is the row's image
        assert torch.equal(vector, unit_rows(elements.features_ND)[elements.image_paths.index(path)])
    assert paper.evidence != other.evidence and paper.empty == 0 and paper.blocks == (("layer", 12),)


def test_centres_are_where_lloyds_plain_loop_stays():
    """Centres are the means of the elements nearest to them: one more plain step moves nothing."""
    from sklearn.cluster import KMeans
    raw = KMeans(6, n_init=1, random_state=seed_of(0, "k-means") % 2 ** 32).fit(ROWS.numpy())
    x, c = ROWS.numpy().astype(float), raw.cluster_centers_.astype(float)
    owner = [min(range(6), key=lambda m, row=row: float(((row - c[m]) ** 2).sum())) for row in x]
    assert set(owner) == set(range(6))
    centres = cluster_centres(ROWS, 6, seed=0)
    for m in range(6):
        mean = np.mean([row for row, own in zip(x, owner, strict=True) if own == m], axis=0)
        np.testing.assert_allclose(centres[m].numpy(), mean / np.linalg.norm(mean), atol=1e-4)


def test_the_evidence_of_a_centre_is_its_nearest_elements_and_seeds_move_it():
    make = banks.clusters(ELEMENTS, 5)
    bank, same, other = make(SEED), make(SEED), make(OTHER)
    assert bank.kind == "Cluster" and torch.equal(bank.vectors_MD, same.vectors_MD)
    assert not torch.equal(bank.vectors_MD, other.vectors_MD)
    for centre, near in zip(bank.vectors_MD, bank.evidence, strict=True):
        order = sorted(range(80), key=lambda row, centre=centre: float((ROWS[row] - centre).norm()))
        assert near == [ELEMENTS.image_paths[row] for row in order[:9]]


def test_which_elements():
    assert chosen_elements(ELEMENTS, 0, "first", most=30) == list(range(30))
    assert chosen_elements(ELEMENTS, 0) == list(range(80))
    rows = chosen_elements(ELEMENTS, 0, most=30)
    assert len(set(rows)) == 30 and max(Counter(ELEMENTS.labels_N[rows].tolist()).values()) == 8
    assert rows == sorted(rows) != chosen_elements(ELEMENTS, 1, most=30)


def test_too_many_concepts_or_none_are_refused():
    for bank in (banks.prototypes, banks.clusters):
        for count in (81, 0):
            with pytest.raises(UserError, match=f"num_concepts {count}"):
                bank(ELEMENTS, count)
    with pytest.raises(UserError, match="only 2 of the 6 elements differ"):
        cluster_centres(torch.eye(2).repeat(3, 1), 4, 0)


def test_random_rows_have_unit_length_and_change_with_the_seed():
    make = banks.random(50, 12)
    bank = make(SEED)
    torch.testing.assert_close(bank.vectors_MD.norm(dim=1), torch.ones(50))
    assert torch.equal(bank.vectors_MD, make(Seed(4, 0)).vectors_MD)  # the bank's number decides, not the seed's
    assert not torch.isclose(bank.vectors_MD, make(OTHER).vectors_MD).any(1).all()
    assert bank.vectors_MD.mean(0).abs().max() < 4 / (50 * 12) ** 0.5 and len(bank.evidence) == 50


def test_rows_of_a_matrix_are_scaled_to_length_1_and_keep_their_names(tmp_path):
    matrix = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    torch.save(matrix, tmp_path / "bank.pt")
    np.save(tmp_path / "bank.npy", matrix.numpy())
    save_file({"anything": matrix}, tmp_path / "bank.safetensors")
    (tmp_path / "names.txt").write_text("edge\n\ncorner\n nothing \nVögel\n", encoding="utf-8")
    for suffix in ("pt", "npy", "safetensors"):
        bank = from_file(tmp_path / f"bank.{suffix}", 2, tmp_path / "names.txt")
        torch.testing.assert_close(bank.vectors_MD, torch.tensor([[0.6, 0.8], [0.0, -1.0], [0.0, 0.0], [1.0, 0.0]]))
        assert bank.evidence == [["edge"], ["corner"], ["nothing"], ["Vögel"]] and bank.empty == 1
    assert from_file(tmp_path / "bank.pt", 2).evidence[3] == ["concept 3"]
    third = torch.full((1, 3), 3 ** -0.5)  # length 1 but for rounding: it stays, bit for bit
    assert torch.equal(banks.from_matrix(third, 3).vectors_MD, third)


@pytest.mark.parametrize("matrix, words", [
    (np.ones((5, 13)), "has D = 13, and the representations have D = 12"), (np.ones((12, 5)), "looks transposed"),
    (np.full((5, 12), np.nan), "not finite"), (np.full((5, 12), 1e300), "not finite, or beyond float32"),
    (np.ones(12), "M x D"), (np.ones((0, 12)), "M x D"), (np.zeros((5, 12)), "all zero"),
    (np.array([{}]), "cannot be read as tensors")])
def test_a_matrix_that_is_no_bank(tmp_path, matrix, words):
    np.save(tmp_path / "bank.npy", matrix, allow_pickle=matrix.dtype == object)
    with pytest.raises(UserError, match=words):
        from_file(tmp_path / "bank.npy", 12)


def test_files_of_a_bank_that_do_not_fit(tmp_path):
    np.save(tmp_path / "bank.npy", np.eye(12))
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    save_file({"a": torch.eye(12), "b": torch.eye(12)}, tmp_path / "two.safetensors")
    for file, names, words in (("bank.npy", "names.txt", "2 names for the 12 concepts"),
                               ("bank.npy", "none.txt", "no file .*none.txt"), ("none.npy", None, "no file"),
                               ("two.safetensors", None, "several tensors .a 12x12, b 12x12.")):
        with pytest.raises(UserError, match=words):
            from_file(tmp_path / file, 12, names and tmp_path / names)


def test_combined_stacks_its_parts_and_keeps_their_blocks():
    assert [shares(7, 2), shares(200, 3), shares(6, 2), shares(3, 3)] == [[4, 3], [67, 67, 66], [3, 3], [1, 1, 1]]
    own = banks.from_matrix(torch.eye(12)[:2], 12, ["up", "down"])
    own.blocks = (("standard", 2),)
    bank = banks.combined([banks.random(3, 12), lambda seed: own])(SEED)
    assert torch.equal(bank.vectors_MD, torch.cat([banks.random(3, 12)(SEED).vectors_MD, torch.eye(12)[:2]]))
    assert bank.blocks == (("layer", 3), ("standard", 2)) and bank.evidence[2:] == [
        ["Random: random direction 2"], ["Own: up"], ["Own: down"]]
