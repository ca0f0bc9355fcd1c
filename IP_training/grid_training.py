"""Train stacked heads in one pass over the data per epoch: no DataLoader, permutation batches, losses summed.

A stack holds the heads of one learning rate and one input. All stacks of a seed see the same batch in the same
step; each loss depends on its original head alone and Adam works entry by entry, so every head is exactly the head
trained alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from iis.grid import Cell
from iis.runtime import UserError, torch_rng, write_whole
from IP_training.fused_step import can_fuse, fused_step, logits_of
from IP_training.streamed import Streamed, gathered

SAVE_EVERY_S = 30.0  # how much work a killed run may lose


@dataclass(frozen=True)
class Recipe:
    """How heads train (release): cross-entropy, Adam without weight decay, ExponentialLR."""

    epochs: int = 30
    batch_size: int = 1024  # the last partial batch is kept
    decay: float = 0.99  # of the learning rate, per epoch


@dataclass
class Stack:
    """`cells[g]` is head g of `heads`, a module (B, W) → logits (G, B, C) with `state_of(g)`; one learning rate.

    train (N, W) and val (V, W) are its inputs, resident where the heads are or read there from a file; stacks may
    share them.
    """

    heads: nn.Module
    cells: list[Cell]
    train: torch.Tensor | Streamed
    val: torch.Tensor | Streamed


@dataclass
class Trained:
    """What one head achieved. Curves are per epoch; `correct` (V,) and `state` belong to the best epoch."""

    cell: Cell
    loss: list[float] = field(default_factory=list)
    select_top1: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    top5: list[float] = field(default_factory=list)
    best_epoch: int = -1  # from 0; the earliest of equals
    correct: np.ndarray | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)


def train_stacks(stacks: Sequence[Stack], train_labels: torch.Tensor, val_labels: torch.Tensor, recipe: Recipe,
                 seed: int, selection: tuple[torch.Tensor, torch.Tensor] | None = None,
                 resume_file: Path | None = None, progress: bool = True) -> list[Trained]:
    """Train all heads of one seed and return them in the order of their stacks.

    train_labels (N,), val_labels (V,) int64 on the heads' device. selection: (rows used to train, rows used to
    select), both indices into N, for `--holdout`; without it the best epoch is chosen by validation top-1 (the
    release's selection). resume_file: where the state is kept between epochs; it is removed by the caller once
    the results are in the ledger.
    """
    device = train_labels.device
    optimizers = [torch.optim.Adam(stack.heads.parameters(), lr=stack.cells[0].learning_rate) for stack in stacks]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, recipe.decay) for optimizer in optimizers]
    trained = [[Trained(cell) for cell in stack.cells] for stack in stacks]
    rows = selection[0] if selection else torch.arange(len(train_labels))
    first = _restore(resume_file, stacks, optimizers, schedules, trained)
    saved = time.monotonic()
    bar = tqdm(range(first, recipe.epochs), desc=f"seed {seed}", unit="epoch", initial=first, total=recipe.epochs,
               disable=not progress)
    for epoch in bar:
        order = rows[torch.randperm(len(rows), generator=torch_rng(seed, "batch order", epoch))].to(device)
        losses = _train_epoch(stacks, optimizers, train_labels, order, recipe.batch_size)
        for schedule in schedules:
            schedule.step()
        for stack, heads, loss in zip(stacks, trained, losses, strict=True):
            correct, top5 = evaluate(stack.heads, stack.val, val_labels)
            select = correct
            if selection:
                held = selection[1].to(device)
                select, _ = evaluate(stack.heads, stack.train[held], train_labels[held])
            _note_epoch(stack.heads, heads, epoch, loss, correct, top5, select)
        bar.set_postfix_str("best " + " ".join(f"{heads[0].cell.learning_rate:g}:{max(heads[0].top1):.3f}"
                                               for heads in trained), refresh=False)
        if resume_file and time.monotonic() - saved > SAVE_EVERY_S and epoch + 1 < recipe.epochs:
            _save(resume_file, epoch + 1, stacks, optimizers, schedules, trained)
            saved = time.monotonic()
    return [head for heads in trained for head in heads]


def _train_epoch(stacks: Sequence[Stack], optimizers: Sequence[torch.optim.Optimizer], labels: torch.Tensor,
                 order: torch.Tensor, batch_size: int) -> list[np.ndarray]:
    """One epoch over `order`; the mean training loss of every head, a (G,) array per stack."""
    sums = [torch.zeros(len(stack.cells), device=labels.device) for stack in stacks]
    inputs = {id(stack.train): stack.train for stack in stacks}  # stacks may share them
    # New memory for every batch would cost more than the copy: the system hands it out page by page.
    kept = {key: x_NW.new_empty(min(batch_size, len(order)), x_NW.shape[1]) for key, x_NW in inputs.items()}
    for batch in order.split(batch_size):
        y_B = labels[batch]
        x_of = {key: gathered(x_NW, batch, kept[key][:len(batch)]) for key, x_NW in inputs.items()}  # (B, W)
        for stack, loss_sum in zip(stacks, sums, strict=True):
            loss_sum += _losses_with_gradients(stack.heads, x_of[id(stack.train)], y_B)
        for optimizer in optimizers:
            optimizer.step()
    return [(loss_sum / len(order)).cpu().numpy() for loss_sum in sums]


def _losses_with_gradients(heads: nn.Module, x_BW: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Each head's loss summed over the batch, (G,); its parameters get the gradient of the mean."""
    if can_fuse(heads, x_BW):
        return fused_step(heads, x_BW, y_B)
    heads.zero_grad(set_to_none=True)
    logits = heads(x_BW)  # (G, B, C)
    loss_GB = nn.functional.cross_entropy(logits.transpose(1, 2), y_B.expand(len(logits), -1), reduction="none")
    loss_GB.mean(1).sum().backward()
    return loss_GB.detach().sum(1)


@torch.no_grad()
def evaluate(heads: nn.Module, inputs: torch.Tensor | Streamed, labels: torch.Tensor,
             rows: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-1 correctness (G, V) bool and top-5 accuracy (G,) of every head, `rows` samples at a time (0: as suits the
    device). Among equal logits the lower class is first; a logit that is not a number is last.
    """
    heads.eval()
    correct, top5 = [], 0
    rows = rows or (1024 if inputs.device.type == "cpu" else 4096)
    for x, y in zip(inputs.split(rows), labels.split(rows), strict=True):
        ahead_GB = classes_ahead(logits_of(heads, x), y)
        correct.append(ahead_GB == 0)
        top5 = top5 + (ahead_GB < 5).sum(1)
    heads.train()
    return torch.cat(correct, 1), top5 / len(labels)


def classes_ahead(logits_GCB: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """How many classes come before the true one in the order of their logits, (G, B): cheaper than `topk`."""
    count, num_classes = len(logits_GCB), logits_GCB.shape[1]
    own_G1B = logits_GCB.gather(1, y_B.expand(count, 1, -1))
    behind = torch.le(logits_GCB, own_G1B, out=torch.empty_like(logits_GCB))  # floats add up faster than bools
    classes_C1 = torch.arange(num_classes, device=y_B.device)[:, None]
    behind.masked_fill_((logits_GCB == own_G1B) & (classes_C1 < y_B), 0.0)
    return num_classes - behind.sum(1)


def _note_epoch(module: nn.Module, heads: list[Trained], epoch: int, loss: np.ndarray, correct: torch.Tensor,
                top5: torch.Tensor, select: torch.Tensor) -> None:
    top1, select_top1 = correct.double().mean(1).tolist(), select.double().mean(1).tolist()
    for g, head in enumerate(heads):
        head.loss.append(float(loss[g]))
        head.top1.append(top1[g])
        head.top5.append(float(top5[g]))
        head.select_top1.append(select_top1[g])
        if head.best_epoch < 0 or select_top1[g] > head.select_top1[head.best_epoch]:
            head.best_epoch = epoch
            head.correct = correct[g].cpu().numpy()
            head.state = module.state_of(g)


def _save(file: Path, epoch: int, stacks: Sequence[Stack], optimizers: Sequence[Any], schedules: Sequence[Any],
          trained: list[list[Trained]]) -> None:
    state = {"epoch": epoch, "cells": [_key(stack.cells) for stack in stacks],
             "heads": [stack.heads.state_dict() for stack in stacks],
             "optimizers": [optimizer.state_dict() for optimizer in optimizers],
             "schedules": [schedule.state_dict() for schedule in schedules],
             "trained": [[{**vars(head), "cell": None, "correct": torch.from_numpy(head.correct)} for head in heads]
                         for heads in trained]}
    write_whole(file, lambda temporary: torch.save(state, temporary))


def _restore(file: Path | None, stacks: Sequence[Stack], optimizers: Sequence[Any], schedules: Sequence[Any],
             trained: list[list[Trained]]) -> int:
    """Take up the state of a killed run; the epoch to go on with (0 where there is nothing to take up)."""
    if file is None or not file.exists():
        return 0
    device = next(stacks[0].heads.parameters()).device
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except Exception:
        raise UserError(f"{file} cannot be read; delete it and start again") from None
    if state["cells"] != [_key(stack.cells) for stack in stacks]:
        return 0  # another part of the grid was under way
    for index, stack in enumerate(stacks):
        stack.heads.load_state_dict(state["heads"][index])
        optimizers[index].load_state_dict(state["optimizers"][index])
        schedules[index].load_state_dict(state["schedules"][index])
        for head, kept in zip(trained[index], state["trained"][index], strict=True):
            vars(head).update({**kept, "cell": head.cell, "correct": kept["correct"].cpu().numpy()})
    return state["epoch"]


def _key(cells: Sequence[Cell]) -> list[list[float]]:
    return [[cell.seed, cell.ratio, cell.learning_rate] for cell in cells]
