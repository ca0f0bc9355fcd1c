"""The stacked heads: the fast step against autograd through the sparsifier, entry for entry."""

import pytest
import torch
from torch import nn

from IP_training.fused_step import can_fuse, fused_step
from IP_training.predictor import DenseHeads, InterpretationHeads, interpret

RATIOS = (0.0, 0.3, 0.9)


def heads(rule="mask", learned=None):
    made = InterpretationHeads(RATIOS, 20, 5, torch.Generator().manual_seed(0), rule, learned)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():  # away from the ones and zeros they start with
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("rule", ["mask", "strict"])
@pytest.mark.parametrize("coarse", [False, True])
def test_the_fast_step_equals_autograd(rule, coarse):
    generator = torch.Generator().manual_seed(2)
    z_BM = torch.randn(64, 20, generator=generator)
    z_BM = z_BM.round() if coarse else z_BM  # ties
    weights = torch.randn(3, 64, 5, generator=generator)
    fast, plain = heads(rule), heads(rule)
    out = fast(z_BM)
    expected = torch.baddbmm(plain.bias_GC[:, None], plain.interpretations(z_BM), plain.weight_GCM.mT)
    torch.testing.assert_close(out, expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, ours), (_, theirs) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("rule", ["mask", "strict"])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("learned", [None, torch.arange(20) < 12])
def test_the_step_written_out_equals_autograd(rule, coarse, learned):
    """Losses and gradients of double precision, with and without ties and columns that learn nothing."""
    generator = torch.Generator().manual_seed(3)
    z_BM = torch.randn(64, 20, generator=generator, dtype=torch.float64)
    z_BM = z_BM.round() if coarse else z_BM
    y_B = torch.randint(5, (64,), generator=generator)
    fused, plain = heads(rule, learned).double(), heads(rule, learned).double()
    if coarse:  # |a| ties only where scale and shift do not tell columns apart
        for made in (fused, plain):
            made.scale_GM.data.fill_(1.5), made.shift_GM.data.fill_(0.0)
    assert can_fuse(fused, z_BM) and not can_fuse(heads("shrink"), z_BM)
    losses_G = fused_step(fused, z_BM, y_B)
    logits_GBC = torch.baddbmm(plain.bias_GC[:, None], plain.interpretations(z_BM), plain.weight_GCM.mT)
    each_G = torch.stack([nn.functional.cross_entropy(logits_BC, y_B) for logits_BC in logits_GBC])
    each_G.sum().backward()
    torch.testing.assert_close(losses_G, 64 * each_G.detach())
    for (name, ours), (_, theirs) in zip(fused.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_the_dense_step_written_out_equals_autograd():
    fused, plain = (DenseHeads(2, 7, 3, torch.Generator().manual_seed(0)) for _ in range(2))
    h_BD, y_B = torch.randn(30, 7).half(), torch.arange(30) % 3  # features may lie in half precision
    losses_G = fused_step(fused, h_BD, y_B)
    each_G = torch.stack([nn.functional.cross_entropy(logits_BC, y_B) for logits_BC in plain(h_BD)])
    each_G.sum().backward()
    torch.testing.assert_close(losses_G, 30 * each_G.detach())
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_columns_without_learned_scale_and_shift_stay():
    learned = torch.tensor([True] * 12 + [False] * 8)
    made = heads(learned=learned)
    before = made.scale_GM.detach().clone()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    made(torch.randn(32, 20)).square().sum().backward()
    optimizer.step()
    assert torch.equal(made.scale_GM[:, 12:], before[:, 12:])
    assert not torch.equal(made.scale_GM[:, :12], before[:, :12])


def test_dense_heads_equal_linear_layers():
    made = DenseHeads(2, 7, 3, torch.Generator().manual_seed(0))
    made.weight_GCD.data[1] *= 2
    h_BD = torch.randn(5, 7)
    for g in range(2):
        torch.testing.assert_close(made(h_BD)[g], nn.functional.linear(h_BD, made.weight_GCD[g], made.bias_GC[g]))


def test_interpret_is_layernorm_of_the_projection_in_any_chunks():
    features_ND, bank_MD = torch.randn(50, 6), nn.functional.normalize(torch.randn(4, 6), dim=1)
    expected = nn.LayerNorm(4)(features_ND @ bank_MD.T)
    torch.testing.assert_close(interpret(features_ND, bank_MD), expected)
    torch.testing.assert_close(interpret(features_ND, bank_MD, rows=7), expected)
