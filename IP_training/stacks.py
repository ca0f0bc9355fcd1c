"""From cells of the grid to stacks of heads: what a kind of bank differs in, as one function each.

A `Plan` takes the missing cells of a seed and yields `Group`s, one after another so that only one need be in memory:
stacks that train together, and the bank of each trained head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from iis.grid import Cell
from iis.runtime import torch_rng
from IP_training.concept_banks import Bank
from IP_training.grid_training import Stack, Trained
from IP_training.inputs import Inputs
from IP_training.normalise import Normaliser, fit_normaliser
from IP_training.predictor import DenseHeads, InterpretationHeads, interpret


@dataclass
class Seed:
    """One seed's run: its number, where it runs, how it sparsifies, (under --holdout) which rows train, and (under
    --bank_seed) the number its bank is drawn with instead of its own."""

    number: int
    device: torch.device
    sparsifier: str
    selection: tuple[torch.Tensor, torch.Tensor] | None = None
    bank_seed: int | None = None

    @property
    def of_bank(self) -> Seed:
        """The seed that whatever draws a bank is given."""
        return self if self.bank_seed is None else replace(self, number=self.bank_seed)

    @property
    def train_rows(self) -> torch.Tensor | None:
        """Rows of train that may be used to fit anything; None for all."""
        return self.selection[0] if self.selection else None


@dataclass
class Group:
    """Stacks that train together, and the bank (with its normaliser) of each head when it is trained."""

    stacks: list[Stack]
    bank_of: Callable[[Trained], tuple[Bank, Normaliser]]


MakeBank = Callable[[Inputs, int | None, Seed], Bank]  # (inputs, M, seed) → bank
Plan = Callable[[Inputs, int | None, Seed, list[Cell]], Iterator[Group]]


def fixed(make_bank: MakeBank) -> Plan:
    """The plan of a bank that is made once per seed and does not change while heads train."""

    def plan(inputs: Inputs, num_concepts: int | None, seed: Seed, cells: list[Cell]) -> Iterator[Group]:
        bank = make_bank(inputs, num_concepts, seed.of_bank)
        bank_MD = bank.vectors_MD.to(seed.device)
        normaliser = fit_normaliser(bank.blocks, inputs.train.features_ND, bank_MD, seed.train_rows)
        z_train, z_val = (interpret(split.features_ND, bank_MD, normaliser) for split in (inputs.train, inputs.val))
        stacks = []
        for same_rate in by_learning_rate(cells):
            heads = InterpretationHeads([cell.ratio for cell in same_rate], len(bank), inputs.num_classes,
                                        torch_rng(seed.number, "head"), seed.sparsifier, normaliser.learned_M)
            stacks.append(Stack(heads.to(seed.device), same_rate, z_train, z_val))
        yield Group(stacks, lambda head: (bank, normaliser))

    return plan


def dense_stacks(inputs: Inputs, seed: Seed, cells: list[Cell]) -> list[Stack]:
    """The dense heads, on the raw representation."""
    if not cells:
        return []
    h_train, h_val = inputs.resident(seed.device)
    return [Stack(DenseHeads(len(same_rate), inputs.train.width, inputs.num_classes,
                             torch_rng(seed.number, "dense head")).to(seed.device), same_rate, h_train, h_val)
            for same_rate in by_learning_rate(cells)]


def by_learning_rate(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells grouped by learning rate, each group in the order of its ratios."""
    rates = sorted({cell.learning_rate for cell in cells})
    return [sorted(cell for cell in cells if cell.learning_rate == rate) for rate in rates]
