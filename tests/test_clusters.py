"""Cluster: k-means against a plain loop of Lloyd's, evidence, the cache, and the refusals."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import clusters

from iis.embedding_file import content_hash
from iis.runtime import UserError
from IP_training.clusters import cached_centres, chosen_elements, cluster_bank, cluster_centres
from IP_training.concept_banks import unit_rows
from IP_training.fast_kmeans import lloyd


def elements(count=80):
    found = clusters(count, "elements")
    found.content_hash = content_hash(found.features_ND, found.labels_N)
    return found


def test_separated_groups_are_found_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]])
    centres, nearest = cluster_centres(rows, 2, seed=0, count=3)
    order = centres[:, 0].argsort()  # the lone element first
    # The mean of the other three is (2.4, 1.4)/3, of length √7.72/3.
    expected = torch.tensor([[-1.0, 0.0], [2.4 / 7.72 ** 0.5, 1.4 / 7.72 ** 0.5]])
    torch.testing.assert_close(centres[order], expected)
    assert nearest[order[0]][0] == 3 and nearest[order[1]] == [2, 1, 0]  # cosines 0.997, 0.921, 0.864


def test_centres_are_where_lloyds_plain_loop_stays():
    """Centres are the means of the elements nearest to them: one more plain step moves nothing."""
    rows = unit_rows(elements().features_ND)
    centres, _ = cluster_centres(rows, 6, seed=0)
    from sklearn.cluster import KMeans

    from iis.runtime import seed_of
    raw = KMeans(6, n_init=1, random_state=seed_of(0, "k-means") % 2 ** 32).fit(rows.numpy())
    x, c = rows.numpy().astype(float), raw.cluster_centers_.astype(float)
    owner = [min(range(6), key=lambda m, row=row: float(((row - c[m]) ** 2).sum())) for row in x]
    assert set(owner) == set(range(6))
    for m in range(6):
        mean = np.mean([row for row, own in zip(x, owner, strict=True) if own == m], axis=0)
        np.testing.assert_allclose(centres[m].numpy(), mean / np.linalg.norm(mean), atol=1e-4)


def test_nearest_elements_against_a_plain_loop():
    rows = unit_rows(elements().features_ND)
    centres, nearest = cluster_centres(rows, 5, seed=1, count=4)
    for centre, near in zip(centres, nearest, strict=True):
        assert near == sorted(range(80), key=lambda row, centre=centre: float((rows[row] - centre).norm()))[:4]


def test_seeds_move_it_and_one_seed_gives_the_same():
    rows = unit_rows(elements().features_ND)
    one, same, other = (cluster_centres(rows, 10, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_cache_fits_once_per_key(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return torch.eye(3), [[0, 1], [1, 2], [2, 0]]

    for key in ({"seed": 0, "m": 3}, {"m": 3, "seed": 0}, {"seed": 1, "m": 3}):
        centres, nearest = cached_centres(tmp_path / "centres", key, make)
        assert torch.equal(centres, torch.eye(3)) and nearest == [[0, 1], [1, 2], [2, 0]]
    assert len(calls) == 2 and len(list((tmp_path / "centres").iterdir())) == 2


def test_the_bank_is_the_same_from_the_cache(tmp_path, monkeypatch):
    found = elements()
    first = cluster_bank(found, 8, 0, folder=tmp_path)
    monkeypatch.setattr("IP_training.clusters.cluster_centres", lambda *_: pytest.fail("fitted twice"))
    again = cluster_bank(found, 8, 0, folder=tmp_path)
    assert torch.equal(first.vectors_MD, again.vectors_MD) and first.evidence == again.evidence
    assert first.kind == "Cluster" and first.empty == 0 and len(first.evidence) == 8
    assert set(sum(first.evidence, [])) <= set(found.image_paths)


def test_which_elements():
    found = elements()
    assert chosen_elements(found, 0, "first", most=30) == list(range(30))
    assert chosen_elements(found, 0) == list(range(80))
    rows = chosen_elements(found, 0, most=30)
    assert len(set(rows)) == 30 and max(Counter(found.labels_N[rows].tolist()).values()) == 8
    assert rows != chosen_elements(found, 1, most=30)


def test_refusals():
    with pytest.raises(UserError, match="num_concepts 81"):
        cluster_bank(elements(), 81, 0)
    with pytest.raises(UserError, match="more than the 4 elements"):
        cluster_centres(torch.eye(4), 5, 0)
    with pytest.raises(UserError, match="only 2 of the 6 elements differ"):
        cluster_centres(torch.eye(2).repeat(3, 1), 4, 0)


def test_fast_is_scikit_learn_from_the_same_centres():
    """Separated groups: the labels are the same; a cloud without groups: the inertia within 0.1 %."""
    from sklearn.cluster import KMeans

    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(12, 40, generator=generator)
    for spread, rows in ((0.1, 600), (3.0, 900)):
        x = unit_rows(middles[torch.arange(rows) % 12] + spread * torch.randn(rows, 40, generator=generator))
        start = x[torch.randperm(rows, generator=generator)[:12]]
        theirs = KMeans(12, init=start.numpy(), n_init=1).fit(x.numpy())
        ours = lloyd(x, start)
        assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-3)
        exact = float((x - ours.centres_MD[ours.labels_E]).double().square().sum())
        assert ours.inertia == pytest.approx(exact, rel=1e-4)
        nearest = torch.cdist(x.double(), ours.centres_MD.double()).min(1)
        assert float((nearest.values ** 2).sum()) == pytest.approx(exact, rel=1e-4)  # labels are the nearest centres
        if spread < 1:
            assert (ours.labels_E.numpy() == theirs.labels_).all()


def test_fast_fills_an_empty_cluster_as_scikit_learn_does():
    """A centre that no element is near takes the element farthest from its own."""
    from sklearn.cluster import KMeans

    x = torch.tensor([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [1.1, 0.0], [5.0, 0.0]])
    start = torch.tensor([[0.0, 0.0], [1.0, 0.0], [50.0, 50.0]])
    ours, theirs = lloyd(x, start), KMeans(3, init=start.numpy(), n_init=1).fit(x.numpy())
    torch.testing.assert_close(ours.centres_MD, torch.tensor([[0.05, 0.0], [1.05, 0.0], [5.0, 0.0]]))
    assert ours.labels_E.tolist() == theirs.labels_.tolist() == [0, 0, 1, 1, 2]


def test_fast_starts_where_scikit_learn_does():
    rows = unit_rows(elements(300).features_ND)
    slow, fast = (cluster_centres(rows, 6, 0, method=method)[0] for method in ("sklearn", "fast"))
    torch.testing.assert_close(slow, fast, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="only 2 of the 6 elements differ"):
        cluster_centres(torch.eye(2).repeat(3, 1), 4, 0, method="fast")
