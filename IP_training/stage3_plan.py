"""What stage 3 would train, for `--dry_run`: shapes from the files, time from a few steps on random numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from iis.cli import disk, duration, measured, size, tell
from iis.grid import DENSE, Cell
from iis.runtime import choose_device, torch_rng
from IP_training.grid_training import Recipe, Stack, train_stacks
from IP_training.inputs import Inputs
from IP_training.predictor import DenseHeads, InterpretationHeads

STEPS = 3  # batches timed; a validation split in proportion beside them


def tell_stage3(args: argparse.Namespace, kind: str, inputs: Inputs, num_concepts: int | None, folder: Path) -> None:
    """Say what `run` would do. End2End learns a bank per head, which costs more than is timed here: said so."""
    device = choose_device(args.device)
    rows, width, classes = len(inputs.train), inputs.train.width, inputs.num_classes
    concepts = num_concepts or 200  # Text: as many as pass
    heads, dense = len(args.ratios) * len(args.learning_rates), len(args.learning_rates)
    steps = -(-rows // args.batch_size)
    timed = min(STEPS, steps)
    batch = min(args.batch_size, rows)
    seconds = measured(lambda: _some_steps(args, concepts, width, classes, batch, timed,
                                           max(1, timed * batch * len(inputs.val) // rows), device))
    total = seconds / timed * steps * args.n_epoch * args.seeds
    activations = 4 * concepts * (rows + len(inputs.val))
    features = inputs.train.features_ND.element_size() * width * (rows + len(inputs.val))
    elements = f", {len(inputs.elements):,} elements" if inputs.elements is not None else ""
    unsure = ("; it learns a bank for every head, which this does not time: expect several times as long"
              if kind == "End2End" else "; making the bank and reading the features come on top")
    tell(f"stage 3, {kind} bank for {args.model_name} on {args.dataset}", {
        "shapes": f"N = {rows:,} + {len(inputs.val):,} images, D = {width}, C = {classes}, "
                  f"M = {num_concepts or 'as many concepts as pass, here taken as 200'}{elements}",
        "heads": f"{heads} predictors ({len(args.ratios)} ratios x {len(args.learning_rates)} learning rates) and "
                 f"{dense} dense heads, for each of {args.seeds} seeds; {args.n_epoch} epochs of {steps:,} steps",
        "disk": disk(4 * args.seeds * (len(args.ratios) + 1) * classes * (concepts + width), folder),
        "memory": f"{size(activations)} of activations in float32, {size(features)} of features in their file",
        "time": f"about {duration(total)} on {device} ({1e3 * seconds / timed:.0f} ms a step of all heads, by "
                f"measurement of {timed}{unsure})"})


def _some_steps(args: argparse.Namespace, concepts: int, width: int, classes: int, batch: int, steps: int,
                validation: int, device: torch.device) -> None:
    """An epoch of all heads over `steps` batches of random numbers."""
    stacks, generator = [], torch_rng("dry run")
    for columns, ratios in ((concepts, args.ratios), (width, [DENSE])):
        train, val = (torch.randn(count, columns, generator=generator).to(device)
                      for count in (steps * batch, validation))
        for rate in args.learning_rates:
            cells = [Cell(0, ratio, rate) for ratio in ratios]
            heads = (DenseHeads(1, width, classes, generator) if ratios == [DENSE]
                     else InterpretationHeads(args.ratios, concepts, classes, generator, args.sparsifier))
            stacks.append(Stack(heads.to(device), cells, train, val))
    labels = [torch.randint(classes, (count,), generator=generator).to(device) for count in (steps * batch, validation)]
    train_stacks(stacks, *labels, Recipe(1, batch), 0, progress=False)
