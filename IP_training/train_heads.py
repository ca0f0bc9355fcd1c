"""Train head groups: all of them in one pass over the data per epoch.

`train_heads` is the training loop. `fit_grid` stands around it: it evaluates after every epoch, keeps the best state of
each head, and goes on where a killed run stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iis.grid import Cell
from iis.runtime import UserError, torch_rng, write_whole
from IP_training.cuda_graph import Captured

SAVE_EVERY_S = 30.0  # how much work a killed run may lose


@dataclass(frozen=True)
class Recipe:
    """How heads train (release): cross-entropy, Adam without weight decay, ExponentialLR."""

    epochs: int = 30
    batch_size: int = 1024  # the last partial batch is kept
    decay: float = 0.99  # of the learning rate, per epoch
    milestones: tuple[int, ...] = ()  # epochs after which `Trained.correct_after` is kept


@dataclass
class HeadGroup:
    """Heads of one input and one learning rate: `cells[g]` is head g of `heads`, a module (B, W) → logits (G, C, B).

    train (N, W) and val (V, W): on the heads' device, or memory-mapped, of any float type; groups may share them.
    """

    heads: nn.Module
    cells: list[Cell]
    train: torch.Tensor
    val: torch.Tensor


def by_learning_rate(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by learning rate, each group in the order of its ratios."""
    rates = sorted({cell.learning_rate for cell in cells})
    return [sorted(cell for cell in cells if cell.learning_rate == rate) for rate in rates]


def train_heads(groups: Sequence[HeadGroup], y_N: torch.Tensor, rows: torch.Tensor, recipe: Recipe, seed: int,
                optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
                first_epoch: int = 0) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Train on `rows` (of N); yields after every epoch, with the mean training loss of each head, (G,) per group.

    Losses share no parameter and Adam works entry by entry, so each head is exactly the head trained alone.
    """
    inputs = {id(group.train): group.train for group in groups}  # each read once
    sizes = [len(group.cells) for group in groups]

    def step(y_B: torch.Tensor, *x: torch.Tensor) -> torch.Tensor:
        x_of = dict(zip(inputs, x, strict=True))
        losses = [group.heads.backward(x_of[id(group.train)], y_B) for group in groups]
        optimizer.step()
        return torch.cat(losses)  # of all heads

    step = Captured(step) if all(group.heads.capturable for group in groups) else step
    for epoch in range(first_epoch, recipe.epochs):
        order = rows[torch.randperm(len(rows), generator=torch_rng(seed, "batch order", epoch))]
        losses = torch.zeros(sum(sizes), device=y_N.device)
        for batch, x in read(list(inputs.values()), order, recipe.batch_size, y_N.device):
            losses += len(batch) * step(y_N[batch], *x)
        schedule.step()
        yield epoch, (losses / len(order)).split(sizes)


def read(inputs: Sequence[torch.Tensor], rows: torch.Tensor, batch_size: int,
         device: torch.device) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """(rows, those rows of every input), on the device, for every batch of `rows`. What a GPU needs from the CPU's
    memory or a file is read a batch ahead, in a thread."""
    batches = list(zip(rows.split(batch_size), rows.to(device).split(batch_size), strict=True))  # on CPU and device

    def gathered(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return batch[1], [gather(x, *batch) for x in inputs]

    if all(x.device == device for x in inputs):
        yield from map(gathered, batches)
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(gathered, batches[0])
        for following in [*batches[1:], None]:
            found = ahead.result()
            ahead = following and reader.submit(gathered, following)
            yield found


def gather(x: torch.Tensor, rows: torch.Tensor, on_device: torch.Tensor) -> torch.Tensor:
    """Some rows as float32 on the device; x may be a memory-mapped file on the CPU. The rows are given on both, because
    to fetch them from a GPU would wait for all it has to do."""
    if x.device == on_device.device:
        return x.index_select(0, on_device).float()
    # Page-locked, the copy runs beside the GPU's work, and half precision travels as such.
    return x.index_select(0, rows).pin_memory().to(on_device.device, non_blocking=True).float()


@dataclass
class Trained:
    """What one head achieved. Curves are per epoch; `correct` (V,) and `state` belong to the best epoch.
    `correct_after` holds, per milestone, the `correct` of a run of so many epochs: it is the beginning of this one."""

    cell: Cell
    loss: list[float] = field(default_factory=list)
    select_top1: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    top5: list[float] = field(default_factory=list)
    best_epoch: int = -1  # from 0; the earliest of equals
    correct: torch.Tensor | None = None
    correct_after: dict[int, torch.Tensor] = field(default_factory=dict)
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def add_epoch(self, loss: float, top1: float, top5: float, select_top1: float) -> bool:
        """Note an epoch; whether it is the best so far on the selection images."""
        self.loss.append(loss)
        self.top1.append(top1)
        self.top5.append(top5)
        self.select_top1.append(select_top1)
        better = self.best_epoch < 0 or select_top1 > self.select_top1[self.best_epoch]
        if better:
            self.best_epoch = len(self.top1) - 1
        return better


def fit_grid(groups: Sequence[HeadGroup], y_N: torch.Tensor, y_V: torch.Tensor, recipe: Recipe, seed: int,
             selection: tuple[torch.Tensor, torch.Tensor] | None = None, resume_file: Path | None = None,
             advance: Callable[[int], None] = lambda epochs: None) -> list[Trained]:
    """Train all heads of one seed; the results in the order of groups and cells.

    y_N (N,), y_V (V,) int64 on the heads' device. selection: (rows to train on, rows to select on), both indices into
    N, for `--holdout`; without it validation top-1 selects the epoch (the release's rule). resume_file: where the state
    is kept between epochs; the caller removes it once the results are in the ledger. advance: is told of epochs done.
    """
    rows, held = selection or (torch.arange(len(y_N)), None)
    optimizer = adam(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, recipe.decay)
    trained = [[Trained(cell) for cell in group.cells] for group in groups]
    resuming = resume_file is not None and resume_file.exists()
    first, saved = _restore(resume_file, groups, optimizer, trained) if resuming else 0, time.monotonic()
    advance(first)
    for epoch, losses in train_heads(groups, y_N, rows, recipe, seed, optimizer, schedule, first):
        for group, heads, loss in zip(groups, trained, losses, strict=True):
            correct, top5 = evaluate(group.heads, group.val, y_V)
            select = correct if held is None else evaluate(group.heads, group.train, y_N, held)[0]
            top1, select = correct.double().mean(1), select.double().mean(1)
            measured = torch.stack([loss.double(), top1, top5.double(), select], 1).tolist()  # the only wait for a GPU
            for g, head in enumerate(heads):
                if head.add_epoch(*measured[g]):
                    head.correct, head.state = correct[g].cpu(), group.heads.state_of(g)
                if epoch + 1 in recipe.milestones:
                    head.correct_after[epoch + 1] = head.correct
        advance(1)
        if resume_file and epoch + 1 < recipe.epochs and time.monotonic() - saved > SAVE_EVERY_S:
            _save(resume_file, epoch + 1, groups, optimizer, trained)
            saved = time.monotonic()
    return [head for heads in trained for head in heads]


def adam(groups: Sequence[HeadGroup]) -> torch.optim.Adam:
    """One Adam for all groups, each at its learning rate. On a GPU the rates are tensors there: a captured step reads
    them anew in every epoch."""
    device = next(groups[0].heads.parameters()).device
    on_gpu = device.type == "cuda"
    rates = [group.cells[0].learning_rate for group in groups]
    return torch.optim.Adam([{"params": list(group.heads.parameters()),
                              "lr": torch.tensor(rate, device=device) if on_gpu else rate}
                             for group, rate in zip(groups, rates, strict=True)], fused=True, capturable=on_gpu)


@torch.no_grad()
def evaluate(heads: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor | None = None,
             batch_size: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-1 correctness (G, V) bool and top-5 accuracy (G,) of every head on `rows` (all unless said).

    batch_size 0: as suits the device. Among equal logits the lower class is first. NaN among an image's logits makes
    it wrong in both.
    """
    heads.eval()
    correct, top5 = [], 0
    batch_size = batch_size or (1024 if labels.device.type == "cpu" else 4096)
    rows = torch.arange(len(labels)) if rows is None else rows
    for some, [x] in read([inputs], rows, batch_size, labels.device):
        ahead_GB = classes_ahead(heads(x), labels[some])
        correct.append(ahead_GB == 0)
        top5 = top5 + (ahead_GB < 5).sum(1)
    heads.train()
    return torch.cat(correct, 1), top5 / len(rows)


def classes_ahead(logits_GCB: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """How many classes come before the true one in the order of their logits, (G, B): cheaper than `topk`. Infinity
    where a logit of the image is NaN."""
    count, num_classes = len(logits_GCB), logits_GCB.shape[1]
    true_G1B = logits_GCB.gather(1, y_B.expand(count, 1, -1))
    behind = torch.le(logits_GCB, true_G1B, out=torch.empty_like(logits_GCB))  # floats add up faster than bools
    classes_C1 = torch.arange(num_classes, device=y_B.device)[:, None]
    behind.masked_fill_((logits_GCB == true_G1B) & (classes_C1 < y_B), 0.0)
    # The largest of numbers is NaN if one of them is. isnan of all logits would take several times as long.
    return (num_classes - behind.sum(1)).masked_fill_(logits_GCB.amax(1).isnan(), torch.inf)


def _cells(groups: Sequence[HeadGroup]) -> list[list[list[float]]]:
    return [[[cell.seed, cell.ratio, cell.learning_rate] for cell in group.cells] for group in groups]


def saved_cells(file: Path) -> list[Cell]:
    """The cells of the heads whose state a file keeps. Raises `UserError` where it cannot be read."""
    return [Cell(*cell) for group in _load(file, "cpu", mmap=True)["cells"] for cell in group]  # reads no tensor


def _load(file: Path, device: torch.device | str, mmap: bool = False) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location=device, weights_only=True, mmap=mmap)
        if not state["cells"] or not {"epoch", "heads", "optimizer", "trained"} <= state.keys():
            raise ValueError
    except Exception:
        raise UserError(f"{file} cannot be read; delete it and start again") from None
    return state


def _save(file: Path, epoch: int, groups: Sequence[HeadGroup], optimizer: torch.optim.Optimizer,
          trained: Sequence[Sequence[Trained]]) -> None:
    """Keep the state before `epoch`. The schedule needs none: it multiplies the optimizer's rates."""
    state = {"epoch": epoch, "cells": _cells(groups), "heads": [group.heads.state_dict() for group in groups],
             "optimizer": optimizer.state_dict(),
             "trained": [[{**vars(head), "cell": None} for head in heads] for heads in trained]}
    write_whole(file, lambda temporary: torch.save(state, temporary))


def _restore(file: Path, groups: Sequence[HeadGroup], optimizer: torch.optim.Optimizer,
             trained: Sequence[Sequence[Trained]]) -> int:
    """Take up the state of a killed run; the epoch to go on with, 0 where the file is of other heads."""
    state = _load(file, next(groups[0].heads.parameters()).device)
    if state["cells"] != _cells(groups):
        return 0
    optimizer.load_state_dict(state["optimizer"])
    for group, heads, kept, found in zip(groups, state["heads"], state["trained"], trained, strict=True):
        group.heads.load_state_dict(heads)
        for head, values in zip(found, kept, strict=True):
            vars(head).update({**values, "cell": head.cell, "correct": values["correct"].cpu()})
    return state["epoch"]
