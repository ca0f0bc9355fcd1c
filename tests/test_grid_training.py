"""The stacked trainer: each head equals the head trained alone, and two invariances hold."""

import pytest
import torch
from conftest import clusters
from torch import nn

from iis.grid import DENSE, RATIOS, Cell
from iis.runtime import torch_rng
from IP_training.concept_banks import prototype_bank
from IP_training.grid_training import Recipe, Stack, classes_ahead, evaluate, train_stacks
from IP_training.predictor import DenseHeads, InterpretationHeads, interpret
from IP_training.sparsify import sparsify

RECIPE = Recipe(epochs=3, batch_size=64)
TRAIN, VAL, ELEMENTS = clusters(300, "train"), clusters(200, "val"), clusters(80, "elements")


def bank(num_concepts=20):
    return prototype_bank(ELEMENTS, num_concepts, seed=0).vectors_MD


def stack(ratios, rate, bank_MD, features=1.0, first=None, seed=0):
    heads = InterpretationHeads(ratios, len(bank_MD), 4, torch_rng(seed, "head"))
    if first is not None:
        heads.weight_GCM.data[:] = first
    inputs = [interpret(features * split.features_ND, bank_MD) for split in (TRAIN, VAL)]
    return Stack(heads, [Cell(seed, ratio, rate) for ratio in ratios], *inputs)


def train(stacks, **changes):
    return train_stacks(stacks, TRAIN.labels_N, VAL.labels_N, RECIPE, seed=0, progress=False, **changes)


def test_a_cell_of_the_grid_equals_the_cell_trained_alone():
    bank_MD = bank()
    dense = [Stack(DenseHeads(1, 12, 4, torch_rng(0, "dense head")), [Cell(0, DENSE, rate)], TRAIN.features_ND,
                   VAL.features_ND) for rate in (0.001, 0.1)]
    whole = train([stack(RATIOS, 0.01, bank_MD), stack(RATIOS, 0.1, bank_MD), *dense])
    by_cell = {head.cell: head for head in whole}
    for cell in (Cell(0, 0.0, 0.01), Cell(0, 0.7, 0.1), Cell(0, 0.98, 0.01)):
        alone = train([stack([cell.ratio], cell.learning_rate, bank_MD)])[0]
        assert alone.top1 == by_cell[cell].top1
        for name, value in alone.state.items():
            torch.testing.assert_close(value, by_cell[cell].state[name], rtol=1e-5, atol=1e-6)


def test_the_stack_equals_a_plain_loop():
    """One head, torch's own modules, one optimiser, plain code."""
    bank_MD, ratio, rate = bank(), 0.5, 0.01
    ours = train([stack([ratio], rate, bank_MD)])[0]
    norm, linear = nn.LayerNorm(20), nn.Linear(20, 4)
    nn.init.trunc_normal_(linear.weight, std=0.02, generator=torch_rng(0, "head"))
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.Adam([*norm.parameters(), *linear.parameters()], lr=rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    accuracies = []

    def forward(h):
        return linear(sparsify(norm(h @ bank_MD.T)[None], [ratio])[0])

    for epoch in range(RECIPE.epochs):
        order = torch.randperm(300, generator=torch_rng(0, "batch order", epoch))
        for start in range(0, 300, RECIPE.batch_size):
            batch = order[start:start + RECIPE.batch_size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(TRAIN.features_ND[batch]), TRAIN.labels_N[batch]).backward()
            optimizer.step()
        schedule.step()
        accuracies.append(float((forward(VAL.features_ND).argmax(1) == VAL.labels_N).double().mean()))
    assert ours.top1 == pytest.approx(accuracies, abs=0.006)  # one of 200 images
    best = accuracies.index(max(accuracies))
    if best == RECIPE.epochs - 1:
        torch.testing.assert_close(ours.state["weight"], linear.weight.data, rtol=1e-4, atol=1e-5)


def test_scaling_the_representation_changes_no_accuracy():
    ours = train([stack(RATIOS, 0.01, bank())])
    scaled = train([stack(RATIOS, 0.01, bank(), features=8.0)])
    for first, second in zip(ours, scaled, strict=True):
        assert first.top1 == pytest.approx(second.top1, abs=0.006)  # LayerNorm's eps of 1e-5 moves one image at most


def test_permuting_the_bank_and_the_first_head_changes_nothing():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    first = nn.init.trunc_normal_(torch.empty(4, 20), std=0.02, generator=torch_rng(0, "head"))
    plain = train([stack(RATIOS, 0.01, bank())])
    permuted = train([stack(RATIOS, 0.01, bank()[order], first=first[:, order])])
    for one, other in zip(plain, permuted, strict=True):
        assert one.top1 == pytest.approx(other.top1, abs=0.006)
        if one.best_epoch == other.best_epoch:
            ours = one.state["weight"][:, order]
            torch.testing.assert_close(ours, other.state["weight"], rtol=1e-3, atol=1e-4)


def test_a_restored_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    import IP_training.grid_training as module

    bank_MD, file = bank(), tmp_path / "resume.pt"
    undisturbed = train([stack(RATIOS, 0.01, bank_MD)])
    monkeypatch.setattr(module, "SAVE_EVERY_S", -1.0)
    real, calls = module._train_epoch, []

    def killed_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_train_epoch", killed_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        train([stack(RATIOS, 0.01, bank_MD)], resume_file=file)
    again = train([stack(RATIOS, 0.01, bank_MD)], resume_file=file)
    assert len(calls) == 4  # two epochs, the killed one, and only that one again
    for one, other in zip(undisturbed, again, strict=True):
        assert (one.top1, one.top5, one.loss, one.best_epoch) == (other.top1, other.top5, other.loss, other.best_epoch)
        assert (one.correct == other.correct).all()
        assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_holdout_selects_without_looking_at_validation():
    rows = torch.arange(300)
    selection = (rows[60:], rows[:60])
    ours = train([stack([0.0], 0.01, bank())], selection=selection)[0]
    assert len(ours.select_top1) == 3
    assert all((60 * value) % 1 == pytest.approx(0, abs=1e-9) for value in ours.select_top1)  # of 60 images
    assert ours.best_epoch == ours.select_top1.index(max(ours.select_top1))


def test_classes_ahead_by_hand():
    nan = torch.nan
    logits_BC = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 2.0, 2.0], [nan, nan, nan], [0.0, nan, 1.0]])
    ahead = [classes_ahead(logits_BC.T[None], torch.full((5,), label))[0].tolist() for label in range(3)]
    # among equals the lower class is first; a class with NaN is not known to be behind, and its own is last
    assert ahead == [[0, 0, 2, 3, 2], [2, 1, 0, 3, 3], [1, 2, 1, 3, 1]]


@pytest.mark.parametrize("rule", ["mask", "strict", "shrink"])
def test_evaluation_is_argmax_and_topk(rule):
    heads = InterpretationHeads(RATIOS, 20, 8, torch_rng(0, "head"), rule)
    for parameter in heads.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch_rng(1, "noise"))
    z_VM, y_V = torch.randn(50, 20), torch.arange(50) % 8
    correct, top5 = evaluate(heads, z_VM, y_V, rows=7)
    logits = torch.baddbmm(heads.bias_GC[:, None], heads.interpretations(z_VM), heads.weight_GCM.mT)
    assert torch.equal(correct, logits.argmax(-1) == y_V)
    assert torch.equal(top5, (logits.topk(5).indices == y_V[:, None]).any(-1).float().mean(1))
