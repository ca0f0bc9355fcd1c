"""The Combined bank: an equal share of M from each part, stacked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from iis.runtime import UserError
from IP_training import clusters
from IP_training.concept_banks import Bank, check_enough, prototype_bank
from IP_training.inputs import Inputs
from IP_training.other_banks import combined_bank, random_bank
from IP_training.stacks import MakeBank, Seed
from IP_training.text_inputs import load_text_inputs, make_text_bank, text_settings


def shares(total: int, count: int) -> list[int]:
    """`total` in `count` parts that differ by at most one, larger first: 200 in 3 is 67, 67, 66."""
    return [total // count + (index < total % count) for index in range(count)]


def plan_combined(args: argparse.Namespace, inputs: Inputs, parts: Sequence[str],
                  num_concepts: int) -> tuple[MakeBank, dict[str, Any]]:
    """The function that makes the Combined bank of a seed, and what identifies it in the ledger."""
    if num_concepts < len(parts):
        raise UserError(f"--num_concepts {num_concepts} is too few for {len(parts)} parts")
    settings: dict[str, Any] = {"prototypes": args.prototypes, "element_choice": args.element_choice}
    make_text = None
    if "Text" in parts:
        text = load_text_inputs(args, inputs)
        make_text, settings = make_text_bank(args, text), {**settings, **text_settings(args, text)}
    counts = shares(num_concepts, len(parts))
    for part, count in zip(parts, counts, strict=True):
        if part in ("Prototype", "Cluster"):
            check_enough(inputs.elements, count)

    def make(inputs: Inputs, total: int | None, seed: Seed) -> Bank:
        kinds = {"Prototype": lambda m: prototype_bank(inputs.elements, m, seed.number, args.prototypes),
                 "Cluster": lambda m: clusters.cluster_bank(inputs.elements, m, seed.number, args.element_choice,
                                                           clusters.CENTRES),
                 "Random": lambda m: random_bank(m, inputs.train.width, seed.number),
                 "Text": lambda m: make_text(inputs, m, seed)}
        return combined_bank([kinds[part](count) for part, count in zip(parts, counts, strict=True)])

    return make, settings
