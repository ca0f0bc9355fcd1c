"""Training: each head of a group equals the head trained alone and a plain loop; invariances; resume; evaluation."""

import math

import pytest
import torch
from conftest import clusters
from torch import nn

from iis.grid import DENSE, RATIOS, Cell
from iis.runtime import UserError, torch_rng
from IP_training import train_heads as module
from IP_training.banks import Seed, prototypes, unit_rows
from IP_training.end2end import End2EndHeads
from IP_training.predictor import InterpretationHeads, LinearHeads, interpret
from IP_training.sparsify import sparsify
from IP_training.train_heads import HeadGroup, Recipe, classes_ahead, evaluate, fit_grid

RECIPE = Recipe(epochs=3, batch_size=64)
TRAIN, VAL, ELEMENTS = clusters(300, "train"), clusters(200, "val"), clusters(80, "elements")
BANK = prototypes(ELEMENTS, 20)(Seed(0, 0)).vectors_MD


def predictors(ratios=RATIOS, rate=0.01, bank_MD=BANK, factor=1.0, first=None):
    heads = InterpretationHeads(ratios, len(bank_MD), 4, torch_rng(0, "head"))
    if first is not None:
        heads.weight.data[:] = first
    z_train, z_val = (interpret(factor * split.features_ND, bank_MD) for split in (TRAIN, VAL))
    return HeadGroup(heads, [Cell(0, ratio, rate) for ratio in ratios], z_train, z_val)


def dense(rate=0.01):
    return HeadGroup(LinearHeads(1, 12, 4, torch_rng(0, "dense head")), [Cell(0, DENSE, rate)], TRAIN.features_ND,
                     VAL.features_ND)


def learned(ratios=(0.0, 0.5, 0.9), rate=0.01):
    heads = End2EndHeads(ratios, unit_rows(ELEMENTS.features_ND), 10, 4, 0, torch_rng(0, "head"))
    return HeadGroup(heads, [Cell(0, ratio, rate) for ratio in ratios], TRAIN.features_ND, VAL.features_ND)


def fit(groups, **changes):
    return fit_grid(groups, TRAIN.labels_N, VAL.labels_N, RECIPE, seed=0, **changes)


@pytest.mark.parametrize("kind", ["predictors", "dense", "learned"])
def test_a_head_of_the_grid_equals_the_head_trained_alone(kind):
    """Losses share no parameter; learned banks share their noise too."""
    groups = {"predictors": [predictors(rate=0.01), predictors(rate=0.1), dense()],
              "dense": [dense(0.001), dense(0.1), predictors()],
              "learned": [learned(rate=0.01), learned(rate=0.1)]}[kind]
    whole = {head.cell: head for head in fit(groups)}
    assert list(whole) == [cell for group in groups for cell in group.cells]  # the order of groups and cells
    for cell in {"predictors": (Cell(0, 0.0, 0.01), Cell(0, 0.7, 0.1), Cell(0, 0.98, 0.01)),
                 "dense": (Cell(0, DENSE, 0.001), Cell(0, DENSE, 0.1)),
                 "learned": (Cell(0, 0.0, 0.01), Cell(0, 0.9, 0.1))}[kind]:
        group = dense(cell.learning_rate) if kind == "dense" else globals()[kind]([cell.ratio], cell.learning_rate)
        [alone] = fit([group])
        assert alone.top1 == whole[cell].top1 and torch.equal(alone.correct, whole[cell].correct)
        assert alone.loss == pytest.approx(whole[cell].loss, rel=1e-5)
        if kind != "learned":  # equal but for the order of sums, which an argmax may magnify
            for name, value in alone.state.items():
                torch.testing.assert_close(value, whole[cell].state[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.5, DENSE])
def test_a_head_equals_a_plain_loop(ratio):
    """torch's own modules, one optimizer, plain code."""
    linear = nn.Linear(12 if ratio == DENSE else 20, 4)
    norm = nn.Identity() if ratio == DENSE else nn.LayerNorm(20)
    nn.init.trunc_normal_(linear.weight, std=0.02,
                          generator=torch_rng(0, "dense head" if ratio == DENSE else "head"))
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.Adam([*norm.parameters(), *linear.parameters()], lr=0.01)

    def forward(h):
        return linear(h) if ratio == DENSE else linear(sparsify(norm(h @ BANK.T)[None], [ratio])[0])

    top1, top5, losses = [], [], []
    for epoch in range(3):
        order, total = torch.randperm(300, generator=torch_rng(0, "batch order", epoch)), 0.0
        for start in range(0, 300, 64):  # the last batch has 44 rows
            batch = order[start:start + 64]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(forward(TRAIN.features_ND[batch]), TRAIN.labels_N[batch])
            loss.backward()
            optimizer.step()
            total += len(batch) * loss.item()
        optimizer.param_groups[0]["lr"] *= 0.99
        losses.append(total / 300)
        logits = forward(VAL.features_ND)
        top1.append(float((logits.argmax(1) == VAL.labels_N).double().mean()))
        top5.append(float((logits.topk(4).indices == VAL.labels_N[:, None]).any(1).double().mean()))
    group = dense() if ratio == DENSE else predictors([ratio])
    [ours] = fit([group])
    assert ours.loss == pytest.approx(losses, rel=1e-5)
    assert ours.top1 == pytest.approx(top1, abs=0.006) and ours.top5 == top5  # one of 200 images may be a tie
    assert ours.best_epoch == ours.top1.index(max(ours.top1))
    torch.testing.assert_close(group.heads.weight.data[0], linear.weight.data, rtol=1e-4, atol=1e-5)


def test_scaling_the_representation_and_permuting_the_bank_change_nothing():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    first = nn.init.trunc_normal_(torch.empty(4, 20), std=0.02, generator=torch_rng(0, "head"))
    plain = fit([predictors()])
    scaled, permuted = fit([predictors(factor=8.0)]), fit([predictors(bank_MD=BANK[order], first=first[:, order])])
    for ours, larger, other in zip(plain, scaled, permuted, strict=True):
        assert ours.top1 == pytest.approx(larger.top1, abs=0.006)  # LayerNorm's eps of 1e-5 moves one image at most
        assert ours.top1 == pytest.approx(other.top1, abs=0.006)
        if ours.best_epoch == other.best_epoch:
            torch.testing.assert_close(ours.state["weight"][:, order], other.state["weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [predictors, learned])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch, kind):
    """Through the resume file: parameters, Adam's moments, the schedule, curves, best states, and the next noise."""
    undisturbed, file = fit([kind(), dense(0.1)]), tmp_path / "resume.pt"
    monkeypatch.setattr(module, "SAVE_EVERY_S", -1.0)
    calls = []

    def killed_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) == 5:  # two groups are evaluated after each epoch
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(module, "evaluate", killed_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit([kind(), dense(0.1)], resume_file=file)
    again = fit([kind(), dense(0.1)], resume_file=file)
    assert len(calls) == 7  # only the third epoch again
    for one, other in zip(undisturbed, again, strict=True):
        for name in ("cell", "top1", "top5", "loss", "select_top1", "best_epoch"):
            assert getattr(one, name) == getattr(other, name)
        assert torch.equal(one.correct, other.correct) and one.state.keys() == other.state.keys()
        assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    fit([kind()], resume_file=file)  # another part of the grid starts afresh
    assert len(calls) == 10
    file.write_bytes(b"half a file")
    for state in (None, {"x": 1}, {"cells": []}):
        if state is not None:
            torch.save(state, file)
        with pytest.raises(UserError, match="resume.pt cannot be read; delete it"):
            fit([kind()], resume_file=file)


def test_holdout_selects_without_looking_at_validation():
    train, held = torch.arange(60, 300), torch.arange(60)
    [ours] = fit([predictors([0.0])], selection=(train, held))
    assert all(math.isclose((60 * value) % 1, 0, abs_tol=1e-9) for value in ours.select_top1)  # of 60 images
    assert ours.best_epoch == ours.select_top1.index(max(ours.select_top1))
    other = fit_grid([predictors([0.0])], TRAIN.labels_N.clone().index_fill_(0, held, 0), VAL.labels_N, RECIPE, 0,
                     (train, held))[0]
    assert other.loss == ours.loss and other.top1 == ours.top1  # their labels train nothing


def test_classes_ahead_by_hand():
    inf, nan = torch.inf, torch.nan
    logits_BC = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 2.0, 2.0], [inf, -inf, 0.0], [nan, nan, nan],
                              [0.0, nan, 1.0], [inf, nan, -inf]])
    ahead = [classes_ahead(logits_BC.T[None], torch.full((7,), label))[0].tolist() for label in range(3)]
    # among equals the lower class is first
    assert ahead == [[0, 0, 2, 0, *[inf] * 3], [2, 1, 0, 2, *[inf] * 3], [1, 2, 1, 1, *[inf] * 3]]


@pytest.mark.parametrize("classes", [3, 8])
def test_an_image_with_a_nan_logit_is_wrong_in_top1_and_top5(classes):
    """Wherever the NaN is: the true class, another, the first, the last, all; with fewer than five classes too."""
    y_V, logits_GVC = torch.arange(50) % classes, torch.zeros(2, 50, classes)
    logits_GVC[:, torch.arange(50), y_V] = 1.0  # all right
    broken = {3: [y_V[3]], 10: [(y_V[10] + 1) % classes], 20: [0], 30: [classes - 1], 40: range(classes)}
    for row, columns in broken.items():
        logits_GVC[1, row, list(columns)] = torch.nan

    class Given(nn.Module):
        def forward(self, rows_B1):
            return logits_GVC[:, rows_B1[:, 0].long()].mT

    correct, top5 = evaluate(Given(), torch.arange(50.0)[:, None], y_V, batch_size=16)
    assert correct[0].all() and set((~correct[1]).nonzero().flatten().tolist()) == set(broken)
    assert top5.tolist() == pytest.approx([1.0, 0.9])


@pytest.mark.parametrize("rule", ["mask", "strict", "shrink"])
def test_evaluation_is_argmax_and_topk(rule):
    heads = InterpretationHeads(RATIOS, 20, 8, torch_rng(0, "head"), rule)
    for parameter in heads.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch_rng(1, "noise"))
    z_VM, y_V, rows = torch.randn(50, 20, generator=torch_rng(2)), torch.arange(50) % 8, torch.arange(3, 41)
    for some, batch_size in ((None, 7), (rows, 0)):
        correct, top5 = evaluate(heads, z_VM, y_V, some, batch_size)
        z, y = (z_VM, y_V) if some is None else (z_VM[rows], y_V[rows])
        logits = torch.baddbmm(heads.bias[:, None], heads.interpretations(z), heads.weight.mT)  # (G, V, C)
        assert torch.equal(correct, logits.argmax(-1) == y)
        assert torch.equal(top5, (logits.topk(5).indices == y[:, None]).any(-1).float().mean(1))
    assert heads.training
