"""What a predictor is made of: normalise, sparsify, Linear, each against plain code; the written-out step against
autograd."""

import numpy as np
import pytest
import torch
from conftest import clusters
from torch import nn

from iis.grid import RATIOS, dropped_count, kept_count
from IP_training.banks import unit_rows
from IP_training.encoder import RULES, Encoder, linear
from IP_training.predictor import InterpretationHeads, LinearHeads, fit_normaliser, interpret, interpret_train
from IP_training.sparsify import _exactly, keep_mask, sort_ascending, sparsify

# ---- sparsify ----


def plain_mask(row, ratio):
    """Keep k by |a|, the lower index among equals: sort indices by (−|a|, index)."""
    order = sorted(range(len(row)), key=lambda index: (-abs(row[index]), index))
    kept = set(order[:kept_count(len(row), ratio)])
    return [value if index in kept else 0.0 for index, value in enumerate(row)]


def plain_strict(row, ratio):
    """The release: values above the ⌊M·s⌋-th smallest |a|, counted from 0."""
    threshold = sorted(abs(value) for value in row)[dropped_count(len(row), ratio)]
    return [value if abs(value) > threshold else 0.0 for value in row]


def plain_shrink(row, ratio):
    """Eq. 4 as printed: a · max(|a| − τ, 0), τ the largest |a| that the mask zeroes."""
    dropped = dropped_count(len(row), ratio)
    tau = sorted(abs(value) for value in row)[dropped - 1] if dropped else 0.0
    return [value * max(abs(value) - tau, 0.0) for value in row]


PLAIN = {"mask": plain_mask, "strict": plain_strict, "shrink": plain_shrink}


def cases(num_concepts):
    """Smooth rows, rows with many ties and zeros, equal ones, zeros."""
    generator = torch.Generator().manual_seed(0)
    equal = torch.full((1, num_concepts), 0.5)
    return torch.cat([torch.randn(6, num_concepts, generator=generator),
                      torch.randint(-2, 3, (20, num_concepts), generator=generator).float(), equal, -equal, 0 * equal])


@pytest.mark.parametrize("num_concepts", [1, 7, 16, 90, 200])
@pytest.mark.parametrize("rule", PLAIN)
def test_equals_the_plain_loop(num_concepts, rule):
    rows = cases(num_concepts)
    got = sparsify(rows.expand(len(RATIOS), -1, -1), RATIOS, rule)
    for g, ratio in enumerate(RATIOS):
        expected = torch.tensor([PLAIN[rule](row.tolist(), ratio) for row in rows])
        torch.testing.assert_close(got[g], expected, rtol=1e-6 if rule == "shrink" else 0, atol=0)


def test_by_hand():
    assert sparsify(torch.tensor([[[1.0, -1.0, 1.0, 2.0]]]), (0.5,)).tolist() == [[[1.0, 0.0, 0.0, 2.0]]]
    row = torch.tensor([[[3.0, -2.0, 1.0, 0.5]]], requires_grad=True)  # s = 0.5 zeroes 1 and 0.5, so τ = 1
    assert sparsify(row, (0.5,), "shrink").tolist() == [[[6.0, -2.0, 0.0, 0.0]]]
    assert sparsify(row, (0.0,), "shrink").tolist() == [[[9.0, -4.0, 1.0, 0.25]]]  # nothing zeroed: τ = 0
    sparsify(row, (0.5,)).sum().backward()
    assert row.grad.tolist() == [[[1.0, 1.0, 0.0, 0.0]]]  # the threshold is a constant
    assert row.tolist() == [[[3.0, -2.0, 1.0, 0.5]]]  # the input is not written to
    assert keep_mask(row, (0.0,)) is None and keep_mask(row, (0.0,), "strict").tolist() == [[[1.0, 1.0, 1.0, 0.0]]]


def test_the_branch_for_a_device_gives_the_same_mask():
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
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([[0.0, 1e-7, 1e-40, torch.inf, torch.nan]] * 40)
    values = torch.cat([torch.randn(40, 50, generator=generator).abs(), special], 1)
    values = values[:, torch.randperm(55, generator=generator)].to(dtype)
    assert torch.equal(sort_ascending(values).nan_to_num(-1), values.sort(-1).values.nan_to_num(-1))


# ---- normalise ----

TRAIN, VAL = clusters(300, "train"), clusters(200, "val")
BANK = unit_rows(torch.randn(7, 12, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("blocks", [(("layer", 7),), (("standard", 7),), (("layer", 3), ("standard", 4))])
@pytest.mark.parametrize("rows", [None, torch.arange(0, 300, 2)], ids=["all", "holdout"])
@pytest.mark.parametrize("chunk", [64, 65536])
def test_every_block_is_normalised_by_its_own_rule(blocks, rows, chunk):
    """LayerNorm, or the moments of the training rows (by numpy); features may lie in half precision."""
    half = TRAIN.features_ND.half()
    normaliser = fit_normaliser(blocks, half, BANK, rows, chunk)
    train, val = (x.double().numpy() @ BANK.double().numpy().T for x in (half, VAL.features_ND))
    train = train if rows is None else train[rows.numpy()]
    expected = (val - train.mean(0)) / np.std(train, axis=0, ddof=1)
    count = dict(blocks).get("layer", 0)  # the first columns
    if count:
        part = val[:, :count]
        expected[:, :count] = (part - part.mean(1, keepdims=True)) / np.sqrt(part.var(1, keepdims=True) + 1e-5)
    z = interpret(VAL.features_ND, BANK, normaliser, chunk)
    assert z.dtype == torch.float32
    np.testing.assert_allclose(z.numpy(), expected, atol=2e-5)
    assert normaliser.learned_M.tolist() == [True] * count + [False] * (7 - count)


@pytest.mark.parametrize("rows", [None, torch.arange(0, 300, 2)], ids=["all", "holdout"])
@pytest.mark.parametrize("kind", ["layer", "standard", "scale"])
def test_train_is_interpreted_with_every_activation_computed_once(kind, rows, monkeypatch):
    bank, seen = Encoder(BANK, "relu", scale=2.0), []
    expected = fit_normaliser([(kind, 7)], TRAIN.features_ND, bank, rows, 64)
    z_NM = interpret(TRAIN.features_ND, bank, expected, 64)
    monkeypatch.setitem(RULES, "relu", lambda encoder, x_BD: seen.append(len(x_BD)) or linear(encoder, x_BD).relu())
    normaliser, found_NM = interpret_train([(kind, 7)], TRAIN.features_ND, bank, rows, 64)
    assert seen == [64, 64, 64, 64, 44]
    torch.testing.assert_close(found_NM, z_NM)
    torch.testing.assert_close((normaliser.mean_M, normaliser.std_M), (expected.mean_M, expected.std_M))


@pytest.mark.parametrize("scale", [1e-5, 1, 1e5])
def test_a_column_that_is_constant_up_to_rounding_is_not_scaled_up(scale):
    """float32's noise around 0.1, and around 0 where products cancel out; a spread of 0.01 % is no noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5000, 12, generator=generator)
    steps = torch.randint(-2, 3, (5000, 2), generator=generator)  # in units of the last place
    features[:, :2] = 0.1 + 7.5e-9 * steps * torch.tensor([1, 1000])
    across = torch.nn.functional.normalize(torch.randn(12, generator=generator) * (torch.arange(12) > 1), dim=0)
    features -= torch.outer(features @ across, across)
    bank = torch.stack([torch.eye(12)[0], torch.eye(12)[1], across, torch.eye(12)[11]])
    normaliser = fit_normaliser([("standard", 4)], scale * features, bank)
    assert (normaliser.std_M == 1).tolist() == [True, False, True, False]
    z = interpret(scale * features, bank, normaliser)
    assert z[:, [0, 2]].abs().max() < 1e-6 * max(scale, 1)
    assert z[:, [1, 3]].std(0).tolist() == pytest.approx([1, 1], 0.01)


def test_a_constant_column_is_zero_and_blocks_must_fit_the_bank():
    empty = torch.cat([BANK[:6], torch.zeros(1, 12)])
    z = fit_normaliser([("standard", 7)], TRAIN.features_ND, empty)(VAL.features_ND @ empty.T)
    assert torch.isfinite(z).all() and not z[:, 6].any()
    for blocks in ([("layer", 6)], [("other", 7)]):
        with pytest.raises(ValueError, match="7 columns"):
            fit_normaliser(blocks, TRAIN.features_ND, BANK)
    torch.testing.assert_close(interpret(VAL.features_ND, BANK, chunk=7),  # LayerNorm over all unless said
                               nn.LayerNorm(7)(VAL.features_ND @ BANK.T).detach())


# ---- heads ----

LEARNED = torch.arange(20) < 12
CHOSEN = (0.0, 0.3, 0.9)


def heads(rule="mask", learned=None, ratios=CHOSEN):
    made = InterpretationHeads(ratios, 20, 5, torch.Generator().manual_seed(0), rule, learned)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():  # away from the ones and zeros they start with
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("rule", ["mask", "strict", "shrink"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("learned", [None, LEARNED], ids=["all learned", "some learned"])
def test_the_gradient_written_down_is_autograds(rule, ties, learned):
    """Losses and every gradient in double precision."""
    z = torch.randn(64, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.arange(64) % 5
    ours, plain = heads(rule, learned).double(), heads(rule, learned).double()
    if ties:  # |a| ties only where scale and shift do not tell columns apart
        z = z.round()
        for made in (ours, plain):
            made.scale.data.fill_(1.5), made.shift.data.fill_(0.0)
    losses = ours.backward(z, y)
    expected = torch.stack([nn.functional.cross_entropy(logits_CB.T, y) for logits_CB in plain(z)])
    expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-12)
    for (name, mine), (_, theirs) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        if learned is not None and name in ("scale", "shift"):
            assert not mine.grad[:, 12:].any() and mine.grad[:, :12].any()
            theirs.grad[:, 12:] = 0
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_dense_heads_are_linear_layers_that_start_equal():
    made = LinearHeads(2, 7, 3, torch.Generator().manual_seed(0))
    assert torch.equal(made.weight[0], made.weight[1]) and not made.bias.any()
    made.weight.data[1] *= 2
    x_GBD = torch.randn(2, 5, 7)
    for x in (x_GBD[0], x_GBD[0].half(), x_GBD):  # one input for all heads, of any type, or one each
        for g, logits_CB in enumerate(made(x)):
            expected = nn.functional.linear((x[g] if x.ndim == 3 else x).float(), made.weight[g], made.bias[g])
            torch.testing.assert_close(logits_CB.T, expected)
