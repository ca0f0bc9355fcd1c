"""The sparsifier against a plain loop, on ties, zeros and counts that do not divide."""

import pytest
import torch

from iis.grid import RATIOS, dropped_count, kept_count
from IP_training.sparsify import _exactly, sort_ascending, sparsify


def plain_mask(row, ratio):
    """Keep k by |a|, the lower index among equals: sort indices by (−|a|, index)."""
    order = sorted(range(len(row)), key=lambda index: (-abs(row[index]), index))
    kept = set(order[:kept_count(len(row), ratio)])
    return [value if index in kept else 0.0 for index, value in enumerate(row)]


def plain_strict(row, ratio):
    """The release: values above the ⌊M·s⌋-th smallest |a|, counted from 0."""
    threshold = sorted(abs(value) for value in row)[dropped_count(len(row), ratio)]
    return [value if abs(value) > threshold else 0.0 for value in row]


def cases(num_concepts):
    torch.manual_seed(0)
    smooth = torch.randn(6, num_concepts)
    coarse = torch.randint(-2, 3, (20, num_concepts)).float()  # many ties, many zeros
    equal = torch.full((1, num_concepts), 0.5)
    return torch.cat([smooth, coarse, equal, -equal, torch.zeros(1, num_concepts)])


@pytest.mark.parametrize("num_concepts", [1, 7, 16, 90, 200])
@pytest.mark.parametrize("rule, plain", [("mask", plain_mask), ("strict", plain_strict)])
def test_equals_the_plain_loop(num_concepts, rule, plain):
    rows = cases(num_concepts)
    got = sparsify(rows.expand(len(RATIOS), -1, -1), RATIOS, rule)
    for g, ratio in enumerate(RATIOS):
        expected = torch.tensor([plain(row.tolist(), ratio) for row in rows])
        assert torch.equal(got[g], expected), ratio


def test_counts_under_both_protocols():
    rows = torch.randn(50, 200).expand(len(RATIOS), -1, -1)
    kept = (sparsify(rows, RATIOS, "mask") != 0).sum(-1)
    assert [set(counts.tolist()) for counts in kept] == [{200}, {180}, {140}, {100}, {60}, {20}, {10}, {4}]
    kept = (sparsify(rows, RATIOS, "strict") != 0).sum(-1)
    assert [set(counts.tolist()) for counts in kept] == [{199}, {179}, {139}, {99}, {59}, {19}, {9}, {3}]


def test_release_keeps_nothing_of_16_at_high_ratios():
    kept = (sparsify(torch.randn(3, 5, 16), (0.9, 0.95, 0.98), "strict") != 0).sum(-1)
    assert kept.tolist() == [[1] * 5, [0] * 5, [0] * 5]


def test_ties_go_to_the_lower_index():
    row = torch.tensor([[[1.0, -1.0, 1.0, 2.0]]])
    assert sparsify(row, (0.5,), "mask").tolist() == [[[1.0, 0.0, 0.0, 2.0]]]


def test_shrink_and_soft_by_hand():
    row = torch.tensor([[[3.0, -2.0, 1.0, 0.5]]])  # s = 0.5 zeroes 1 and 0.5, so τ = 1
    assert sparsify(row, (0.5,), "shrink").tolist() == [[[6.0, -2.0, 0.0, 0.0]]]
    assert sparsify(row, (0.5,), "soft").tolist() == [[[2.0, -1.0, 0.0, 0.0]]]
    assert sparsify(row, (0.0,), "shrink").tolist() == [[[9.0, -4.0, 1.0, 0.25]]]  # nothing zeroed: τ = 0


def test_gradient_passes_kept_entries_alone():
    row = torch.tensor([[[3.0, -2.0, 1.0, 0.5]]], requires_grad=True)
    sparsify(row, (0.5,), "mask").sum().backward()
    assert row.grad.tolist() == [[[1.0, 1.0, 0.0, 0.0]]]
    assert row.tolist() == [[[3.0, -2.0, 1.0, 0.5]]]  # the input is not written to


def test_the_branch_without_waiting_gives_the_same_mask():
    """What CUDA uses for every row, held against the plain loop here: it needs no device of its own."""
    rows = cases(16)
    for ratio in RATIOS:
        kept = kept_count(16, ratio)
        threshold = rows.abs().sort(-1).values[:, [16 - kept]]
        expected = torch.tensor([[value != 0 for value in plain_mask(row.tolist(), ratio)] for row in rows])
        got = _exactly(rows.abs(), threshold, torch.tensor([[kept]]))
        assert set(got.sum(-1).tolist()) == {kept}
        assert torch.equal(got & (rows != 0), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_sort_as_integers_is_the_sort(dtype):
    """Denormals, infinity and NaN (last, as torch has it) among ordinary magnitudes."""
    values = torch.cat([torch.randn(40, 50).abs(), torch.tensor([[0.0, 1e-7, 1e-40, torch.inf, torch.nan]] * 40)], 1)
    values = values[:, torch.randperm(55)].to(dtype)
    assert torch.equal(sort_ascending(values).nan_to_num(-1), values.sort(-1).values.nan_to_num(-1))
