"""End2End: the soft path by gradcheck, the hard one against plain loops, and a cell equal to the cell alone."""

import math

import pytest
import torch
from conftest import clusters
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from iis.grid import Cell
from iis.runtime import torch_rng
from IP_training.concept_banks import unit_rows
from IP_training.end2end import (
    End2EndHeads,
    GumbelNoise,
    SlotSums,
    assigned,
    chunk_cells,
    empty_slots,
    learned_bank,
    slot_sums,
    unit_slots,
)
from IP_training.grid_training import Recipe, Stack, train_stacks

TRAIN, VAL, ELEMENTS = clusters(300, "train"), clusters(200, "val"), clusters(40, "elements")
UNIT_ED = unit_rows(ELEMENTS.features_ND)
RATIOS = (0.0, 0.5, 0.9)


def heads_of(ratios=RATIOS, num_concepts=10, **settings):
    return End2EndHeads(ratios, UNIT_ED, num_concepts, 4, 0, torch_rng(0, "head"), **settings)


def stack_of(ratios=RATIOS, rate=0.01, **settings):
    return Stack(heads_of(ratios, **settings), [Cell(0, ratio, rate) for ratio in ratios], TRAIN.features_ND,
                 VAL.features_ND)


def train(stacks, epochs=3, **changes):
    return train_stacks(stacks, TRAIN.labels_N, VAL.labels_N, Recipe(epochs, 64), seed=0, progress=False, **changes)


def toy(seed=0, cells=2, elements=5, slots=3, width=4):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(cells, elements, slots, generator=generator, dtype=torch.float64),
            torch.randn(elements, width, generator=generator, dtype=torch.float64),
            torch.randn(cells, slots, width, generator=generator, dtype=torch.float64))


def test_soft_sums_by_gradcheck():
    logits, elements, _ = toy()
    assert torch.autograd.gradcheck(lambda x: SlotSums.apply(x, elements, False), logits.requires_grad_())


def test_the_whole_soft_path_by_gradcheck_with_fixed_noise():
    heads = End2EndHeads((0.0,), UNIT_ED[:6].double(), 4, 3, 0, torch_rng(0, "head")).double()
    heads.hard = False
    names = ["q_GEM", "q_scale_GM", "q_shift_GM", "scale_GM", "shift_GM", "weight_GCM", "bias_GC"]
    h = TRAIN.features_ND[:5].double()

    def loss(*values):
        heads.steps = 0  # the same noise at every call
        logits = torch.func.functional_call(heads, dict(zip(names, values, strict=True)), h)
        return nn.functional.cross_entropy(logits[0], torch.tensor([0, 1, 2, 0, 1]))

    values = [getattr(heads, name).detach().clone().requires_grad_() for name in names]
    values[0] = (20 * values[0].detach()).requires_grad_()  # logits of moderate size: their gradient is not all zero
    gradient = torch.autograd.grad(loss(*values), values[0])[0]
    assert gradient.abs().max() > 1e-4
    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-6)


def test_straight_through_equals_the_plain_form():
    """Forward and gradient of y_hard − y_soft.detach() + y_soft."""
    logits, elements, upstream = toy()
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    SlotSums.apply(ours, elements, True).backward(upstream)
    soft = plain.softmax(-1)
    hard = nn.functional.one_hot(plain.argmax(-1), 3).double()
    sums = (hard - soft.detach() + soft).mT @ elements
    sums.backward(upstream)
    torch.testing.assert_close(SlotSums.apply(logits, elements, True), sums.detach())
    torch.testing.assert_close(ours.grad, plain.grad)
    assert plain.grad.abs().max() > 0.01


def test_training_forward_is_the_hard_assignment_of_noisy_logits():
    """A plain loop over elements: LayerNorm, ÷ 0.1, noise, the largest slot; sums of length 1."""
    heads = heads_of((0.0, 0.5))
    with torch.no_grad():
        heads.q_scale_GM.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
        heads.q_shift_GM.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(2))
    for step in range(2):
        noise = GumbelNoise(0).at("train", step, (40, 10))
        banks = heads.banks().detach()
        for g in range(2):
            expected = torch.zeros(10, 12)
            for element in range(40):
                row = heads.q_GEM[g, element].detach()
                row = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
                row = (row * heads.q_scale_GM[g].detach() + heads.q_shift_GM[g].detach()) / 0.1 + noise[element]
                expected[max(range(10), key=lambda slot, row=row: float(row[slot]))] += UNIT_ED[element]
            for slot in range(10):
                if expected[slot].any():
                    expected[slot] /= expected[slot].norm()
            torch.testing.assert_close(banks[g], expected)
    assert heads.steps == 2


def test_noise_is_gumbel_and_depends_on_seed_and_step_alone():
    noise = GumbelNoise(0)
    first = noise.at("train", 0, (500, 40))
    assert noise.at("train", 0, (500, 40)) is first
    assert not torch.equal(noise.at("train", 1, (500, 40)), first)
    assert torch.equal(GumbelNoise(0).at("train", 0, (500, 40)), first)
    assert not torch.equal(GumbelNoise(1).at("train", 0, (500, 40)), first)
    # A standard Gumbel has mean 0.5772 and standard deviation π/√6; 20,000 draws are within 5 errors of 0.009.
    assert float(first.mean()) == pytest.approx(0.5772, abs=0.045)
    assert float(first.std()) == pytest.approx(math.pi / 6 ** 0.5, abs=0.06)


@pytest.mark.parametrize("by_product", [None, True])  # on the CPU, and as on CUDA
def test_slot_sums_by_a_plain_loop(by_product):
    slots = torch.tensor([[0, 2, 2, 0, 0], [1, 1, 1, 1, 1]])
    elements = toy()[1]
    sums = slot_sums(slots, elements, 3, by_product)
    for g in range(2):
        for slot in range(3):
            expected = sum((elements[e] for e in range(5) if slots[g, e] == slot), torch.zeros(4).double())
            torch.testing.assert_close(sums[g, slot], expected)
    assert not sums[0, 1].any() and empty_slots(slots, 3) == [1, 2]
    assert assigned(slots[0], 3) == [[0, 3, 4], [], [1, 2]]


def test_an_empty_slot_is_a_zero_row_without_a_gradient():
    sums = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], requires_grad=True)
    units = unit_slots(sums)
    torch.testing.assert_close(units.detach(), torch.tensor([[[0.6, 0.8], [0.0, 0.0]]]))
    units.backward(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    # d(x/‖x‖)ᵀ e₁ = (e₁ − 0.6 x̂)/5 = (0.64, −0.48)/5
    torch.testing.assert_close(sums.grad, torch.tensor([[[0.128, -0.096], [0.0, 0.0]]]))


def test_test_time_is_argmax_or_noisy_and_computed_once(monkeypatch):
    heads = heads_of()
    plain = nn.functional.layer_norm(heads.q_GEM.detach(), (10,), eps=1e-5).argmax(-1)
    assert torch.equal(heads.assignment(), plain)
    noisy = heads_of(test_assignment="gumbel")
    noisy.steps = 7
    assert torch.equal(noisy.assignment(), noisy.logits(GumbelNoise(0).at("test", 7, (40, 10))).argmax(-1))
    assert not torch.equal(noisy.assignment(), plain)
    heads.eval()
    first = heads.banks()
    assert heads.banks() is first and heads.steps == 0
    with torch.no_grad():
        heads.q_GEM.neg_()
    heads.train()
    assert not torch.equal(heads.eval().banks(), first)


def test_a_cell_of_the_grid_equals_the_cell_trained_alone():
    noise = GumbelNoise(0)
    whole = {head.cell: head for head in train([stack_of(rate=0.01, noise=noise), stack_of(rate=0.1, noise=noise)])}
    for cell in (Cell(0, 0.0, 0.01), Cell(0, 0.9, 0.1)):
        alone = train([stack_of([cell.ratio], cell.learning_rate)])[0]
        assert alone.top1 == whole[cell].top1
        assert alone.loss == pytest.approx(whole[cell].loss, rel=1e-5)


def test_q_learns_and_the_loss_falls():
    stack = stack_of((0.0,), 0.01)
    before = stack.heads.q_GEM.detach().clone()
    head = train([stack], epochs=15)[0]
    assert head.loss[-1] < 0.6 * head.loss[0] and head.top1[-1] > 0.6  # chance is 0.25
    assert (stack.heads.q_GEM.detach() - before).abs().max() > 0.05
    assert not torch.equal(before[0].argmax(-1), stack.heads.q_GEM[0].argmax(-1))


def test_a_restored_module_draws_the_next_noise():
    one, other = heads_of(), heads_of()
    for _ in range(3):
        one.banks()
    other.load_state_dict(one.state_dict())
    assert other.steps == 3 and torch.equal(one.banks(), other.banks())
    assert "elements_ED" not in one.state_dict()


def test_what_is_kept_of_a_cell_predicts_the_same():
    heads = heads_of()
    train_stacks([Stack(heads, [Cell(0, ratio, 0.01) for ratio in RATIOS], TRAIN.features_ND, VAL.features_ND)],
                 TRAIN.labels_N, VAL.labels_N, Recipe(2, 64), seed=0, progress=False)
    state = heads.state_of(1)
    from IP_training.predictor import interpret
    from IP_training.sparsify import sparsify

    a = interpret(VAL.features_ND, state["bank"]) * state["scale"] + state["shift"]
    logits = sparsify(a[None], [0.5])[0] @ state["weight"].T + state["bias"]
    heads.eval()
    torch.testing.assert_close(logits, heads(VAL.features_ND)[1].detach(), rtol=1e-4, atol=1e-4)
    bank = learned_bank(ELEMENTS, range(40), state)
    assert bank.empty == empty_slots(state["slots"][None], 10)[0]
    for slot, members in enumerate(assigned(state["slots"], 10)):
        assert sorted(bank.evidence[slot]) == sorted(ELEMENTS.image_paths[member] for member in members)
        cosines = [float(UNIT_ED[ELEMENTS.image_paths.index(path)] @ bank.vectors_MD[slot])
                   for path in bank.evidence[slot]]
        assert cosines == sorted(cosines, reverse=True)


def test_a_step_never_waits_for_the_device():
    """No value of a tensor is read, and no shape depends on one (at ratio 0; other ratios add sparsify's own)."""
    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
                                    torch.ops.aten.is_nonzero.default), function
            return function(*args, **(kwargs or {}))

    heads = heads_of((0.0,))
    with Refuse():
        heads(TRAIN.features_ND[:20]).square().sum().backward()
    assert heads.q_GEM.grad.any()


def test_chunks():
    # 20,000 x 200 floats of 4 bytes, 8 arrays: 128 MB a cell.
    assert chunk_cells(20_000, 200, 1_280_000_000) == 10 and chunk_cells(20_000, 200, 1) == 1


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    """Through the resume file: q, its moments and the next noise."""
    import IP_training.grid_training as module

    undisturbed, file = train([stack_of()]), tmp_path / "resume.pt"
    monkeypatch.setattr(module, "SAVE_EVERY_S", -1.0)
    real, calls = module._train_epoch, []

    def killed_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_train_epoch", killed_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        train([stack_of()], resume_file=file)
    again = train([stack_of()], resume_file=file)
    assert len(calls) == 4
    for one, other in zip(undisturbed, again, strict=True):
        assert (one.top1, one.loss, one.best_epoch) == (other.top1, other.loss, other.best_epoch)
        assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
