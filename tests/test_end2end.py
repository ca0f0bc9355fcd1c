"""End2End: forward and gradients against the plain straight-through form, slot sums by loops, what stays of a cell."""

import math

import pytest
import torch
from bank_runs import ledger, run
from conftest import clusters
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from iis.embedding_file import load_embeddings
from iis.grid import Cell
from iis.runtime import torch_rng
from IP_training import IP_End2End_training
from IP_training import end2end as module
from IP_training import run as run_module
from IP_training.banks import unit_rows
from IP_training.end2end import (
    End2EndHeads,
    assigned,
    gumbel_noise,
    learned_bank,
    slot_sums,
    slots_of,
    unit_slots,
)
from IP_training.predictor import interpret
from IP_training.sparsify import sparsify
from IP_training.train_heads import HeadGroup, Recipe, fit_grid

TRAIN, VAL, ELEMENTS = clusters(300, "train"), clusters(200, "val"), clusters(40, "elements")
UNIT_ED = unit_rows(ELEMENTS.features_ND)
RATIOS = (0.0, 0.5, 0.9)


def heads_of(ratios=RATIOS, **settings):
    return End2EndHeads(ratios, UNIT_ED, 10, 4, 0, torch_rng(0, "head"), **settings)


def noise_at(what, step, seed=0, shape=(40, 10)):
    return gumbel_noise(seed, what, step, shape, torch.device("cpu"))


def fit(groups, epochs):
    return fit_grid(groups, TRAIN.labels_N, VAL.labels_N, Recipe(epochs, 64), seed=0)


def group_of(heads):
    return HeadGroup(heads, [Cell(0, ratio, 0.01) for ratio in heads.ratios], TRAIN.features_ND, VAL.features_ND)


def test_logits_and_every_gradient_equal_autograd_through_the_plain_form():
    """LayerNorm of q, ÷ 0.1, noise, y_hard − y_soft.detach() + y_soft, unit length, projection, LayerNorm, mask,
    Linear: in double precision, for two steps with noise of their own."""
    heads = heads_of((0.0, 0.5)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    h, y_GB = TRAIN.features_ND[:30].double(), TRAIN.labels_N[:30].expand(2, -1)
    for step in range(2):
        heads.zero_grad()
        ours_GCB = heads(h)
        nn.functional.cross_entropy(ours_GCB, y_GB).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in heads.named_parameters()}
        heads.zero_grad()
        noise, logits = noise_at("train", step).double(), []
        for g, ratio in enumerate((0.0, 0.5)):
            q = nn.functional.layer_norm(heads.q_GEM[g], (10,), heads.q_scale_GM[g], heads.q_shift_GM[g])
            soft = (q / 0.1 + noise).softmax(-1)
            hard = nn.functional.one_hot(soft.argmax(-1), 10)
            sums = (hard - soft.detach() + soft).T @ UNIT_ED.double()
            bank = sums / torch.where(hard.any(0), sums.norm(dim=1), torch.inf)[:, None]
            a = nn.functional.layer_norm(h @ bank.T, (10,), heads.scale[g], heads.shift[g])
            logits.append(heads.weight[g] @ sparsify(a[None], [ratio])[0].T + heads.bias[g, :, None])
        torch.testing.assert_close(ours_GCB, torch.stack(logits))
        nn.functional.cross_entropy(torch.stack(logits), y_GB).backward()
        for name, parameter in heads.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)
        assert gradients["q_GEM"].abs().max() > 1e-5
    assert heads.steps == 2


def test_noise_is_gumbel_and_depends_on_seed_and_step_alone():
    first = noise_at("train", 0, shape=(500, 40))
    assert noise_at("train", 0, shape=(500, 40)) is first  # groups share it
    for what, step, seed in (("train", 1, 0), ("train", 0, 1), ("test", 0, 0)):
        assert not torch.equal(noise_at(what, step, seed, (500, 40)), first)
    assert torch.equal(noise_at("train", 0, shape=(500, 40)), first)  # drawn anew
    # A standard Gumbel has mean 0.5772 and standard deviation π/√6; 20,000 draws are within 5 errors of 0.009.
    assert float(first.mean()) == pytest.approx(0.5772, abs=0.045)
    assert float(first.std()) == pytest.approx(math.pi / 6 ** 0.5, abs=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cells", "count", "slots", "width"), [(1, 5, 3, 4), (3, 200, 7, 10), (2, 30, 50, 1)])
def test_slot_sums_equal_additions_by_index(cells, count, slots, width, dtype):
    """With empty slots: all of cell 0 joins the last one, and 30 elements leave some of 50 empty."""
    generator = torch_rng(0)
    slots_GE = torch.randint(slots, (cells, count), generator=generator)
    slots_GE[0] = slots - 1
    elements_ED = torch.randn(count, width, generator=generator, dtype=dtype)
    expected = torch.zeros(cells, slots, width, dtype=dtype)
    for sums_MD, slots_E in zip(expected, slots_GE, strict=True):
        sums_MD.index_add_(0, slots_E, elements_ED)
    found = slot_sums(slots_GE, elements_ED, slots)
    torch.testing.assert_close(found, expected)  # in double precision to 1e-7
    assert not found[0, :-1].any()


def test_slots_and_unit_slots_by_hand():
    elements = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    slots = torch.tensor([[0, 2, 2, 0, 0], [1, 1, 1, 1, 1]])
    assert slot_sums(slots, elements, 3)[..., 0].tolist() == [[25, 0, 6], [0, 31, 0]]
    assert assigned(slots[0], 3) == [[0, 3, 4], [], [1, 2]]
    # LayerNorm of (1, 3, 2) is (−1.22, 1.22, 0); over the temperature 0.1: (−12.2, 12.2, 0). Equal logits: the first.
    q, one, none = torch.tensor([[[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]]), torch.ones(1, 3), torch.zeros(1, 3)
    assert slots_of(q, one, none).tolist() == [[1, 0]]
    assert slots_of(q, -one, torch.tensor([[0.0, 0.0, 0.1]])).tolist() == [[0, 2]]  # a shift of 0.1 / 0.1 = 1
    assert slots_of(q, one, none, torch.tensor([[0.0, 0.0, 12.3], [0.0, 1.0, 0.0]])).tolist() == [[2, 1]]
    sums = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], requires_grad=True)  # an empty slot: a zero row, no gradient
    units = unit_slots(sums)
    torch.testing.assert_close(units.detach(), torch.tensor([[[0.6, 0.8], [0.0, 0.0]]]))
    units.backward(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    # d(x/‖x‖)ᵀ e₁ = (e₁ − 0.6 x̂)/5 = (0.64, −0.48)/5
    torch.testing.assert_close(sums.grad, torch.tensor([[[0.128, -0.096], [0.0, 0.0]]]))


def test_test_time_is_argmax_or_noisy_and_computed_once():
    heads, noisy = heads_of(), heads_of(test_assignment="gumbel")
    plain = nn.functional.layer_norm(heads.q_GEM.detach(), (10,), eps=1e-5).argmax(-1)
    assert torch.equal(heads.assignment(), plain)
    noisy.steps = 7
    parameters = noisy.q_GEM, noisy.q_scale_GM, noisy.q_shift_GM
    assert torch.equal(noisy.assignment(), slots_of(*parameters, noise_at("test", 7)))
    assert not torch.equal(noisy.assignment(), plain)
    first = heads.eval().banks()
    assert heads.banks() is first and heads.steps == 0
    heads.q_GEM.data.neg_()
    heads.train()
    assert not torch.equal(heads.eval().banks(), first)


def test_q_learns_and_what_is_kept_of_a_cell_predicts_and_explains_the_same():
    heads = heads_of()
    before = heads.q_GEM.detach().argmax(-1)
    head = fit([group_of(heads)], 12)[0]
    assert head.loss[-1] < 0.6 * head.loss[0] and head.top1[-1] > 0.6  # chance is 0.25
    assert not torch.equal(before[0], heads.q_GEM[0].argmax(-1))
    assert "elements_ED" not in heads.state_dict()  # the resume file goes without them
    state = heads.state_of(1)
    a = interpret(VAL.features_ND, state["bank"]) * state["scale"] + state["shift"]
    logits = sparsify(a[None], [0.5])[0] @ state["weight"].T + state["bias"]
    torch.testing.assert_close(logits.T, heads.eval()(VAL.features_ND)[1].detach(), rtol=1e-4, atol=1e-4)
    bank = learned_bank(ELEMENTS, range(40), state)
    assert bank.empty == 10 - len(state["slots"].unique())
    for slot, members in enumerate(assigned(state["slots"], 10)):  # nearest first
        order = sorted(members, key=lambda member, slot=slot: -float(UNIT_ED[member] @ bank.vectors_MD[slot]))
        assert bank.evidence[slot] == [ELEMENTS.image_paths[member] for member in order]


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


def test_as_many_cells_at_a_time_as_memory_holds(toy, monkeypatch):
    """80 elements x 20 concepts: a cell takes 6 such arrays of floats, and half of the memory is for cells."""
    assert module.cell_bytes(ELEMENTS, 20) == 4 * 10 * len(ELEMENTS) * 20
    rows, sizes, train_shares = {}, [], run_module.train_shares
    monkeypatch.setattr(run_module, "train_shares", lambda shares, *others: (
        sizes.append([len(share.cells) for share in shares]) or train_shares(shares, *others)))
    elements = load_embeddings(toy / "elements.pkl")
    for room in (10**9, 2 * 4 * module.cell_bytes(elements, 20), 1):
        monkeypatch.setattr(run_module, "available_bytes", lambda device=None, room=room: room)
        monkeypatch.setenv("IIS_DENSE_HEADS", str(toy / f"dense {room}"))
        rows[room] = ledger(run(IP_End2End_training, toy, f"out {room}", ratios="0,0.5,0.9",
                                learning_rates="0.01,0.1", jobs=1))
    assert sizes == [[2, 6], [2, 3, 3], [2] + [1] * 6]  # the first are the dense heads
    for one, *others in zip(*rows.values(), strict=True):
        for other in others:
            assert other["loss_by_epoch"] == pytest.approx(one["loss_by_epoch"], rel=1e-5)
            assert other["top1_by_epoch"] == pytest.approx(one["top1_by_epoch"], abs=0.006)
