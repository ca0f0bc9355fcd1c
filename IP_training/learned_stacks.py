"""The plan of End2End: every cell learns a bank of its own, as many cells at a time as fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

from iis.grid import Cell
from iis.runtime import torch_rng
from IP_training.clusters import chosen_elements
from IP_training.concept_banks import Bank, check_enough, unit_rows
from IP_training.end2end import End2EndHeads, GumbelNoise, available_bytes, chunk_cells, learned_bank
from IP_training.grid_training import Stack, Trained
from IP_training.inputs import Inputs
from IP_training.normalise import Normaliser, fit_normaliser
from IP_training.stacks import Group, Plan, Seed, by_learning_rate


def learned(choice: str = "balanced", test_assignment: str = "argmax") -> Plan:
    """choice: which elements, "balanced" over classes or the "first"; test_assignment: "argmax" or "gumbel".

    Under --bank_seed the elements and the first q are the bank's; noise and batches stay the seed's own.
    """

    def plan(inputs: Inputs, num_concepts: int | None, seed: Seed, cells: list[Cell]) -> Iterator[Group]:
        check_enough(inputs.elements, num_concepts)
        rows = chosen_elements(inputs.elements, seed.of_bank.number, choice)
        elements_ED = unit_rows(inputs.elements.features_ND[rows]).to(seed.device)
        h_train, h_val = inputs.resident(seed.device)
        noise = GumbelNoise(seed.number, seed.device)
        most = chunk_cells(len(rows), num_concepts, available_bytes(seed.device))

        def bank_of(head: Trained) -> tuple[Bank, Normaliser]:
            bank = learned_bank(inputs.elements, rows, head.state)
            return bank, fit_normaliser(bank.blocks, inputs.train.features_ND, bank.vectors_MD)

        cells = sorted(cells, key=lambda cell: (cell.learning_rate, cell.ratio))
        for start in range(0, len(cells), most):
            stacks = []
            for same_rate in by_learning_rate(cells[start:start + most]):
                heads = End2EndHeads([cell.ratio for cell in same_rate], elements_ED, num_concepts, inputs.num_classes,
                                     seed.of_bank.number, torch_rng(seed.number, "head"), seed.sparsifier,
                                     test_assignment, noise)
                stacks.append(Stack(heads.to(seed.device), same_rate, h_train, h_val))
            yield Group(stacks, bank_of)

    return plan
