"""The Combined bank: parts stacked, an equal share of M from each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from iis.runtime import UserError
from IP_training import clusters
from IP_training.concept_banks import Bank, check_enough, prototype_bank
from IP_training.inputs import Inputs
from IP_training.other_banks import combined_bank, file_bank, own_settings, random_bank
from IP_training.stacks import MakeBank, Seed
from IP_training.text_inputs import load_text_inputs, make_text_bank, text_settings


def shares(total: int, count: int) -> list[int]:
    """`total` in `count` parts that differ by at most one, larger first: 200 in 3 is 67, 67, 66."""
    return [total // count + (index < total % count) for index in range(count)]


def plan_combined(args: argparse.Namespace, inputs: Inputs, parts: Sequence[str],
                  num_concepts: int) -> tuple[MakeBank, dict[str, Any]]:
    """The function that makes the Combined bank of a seed, and what identifies it in the ledger.

    A bank of one's own (`Own`) goes in whole; the other parts share what is left of M evenly.
    """
    own = file_bank(args.bank, inputs.train.width, args.bank_names) if "Own" in parts else None
    made = [part for part in parts if part != "Own"]
    left = num_concepts - (len(own) if own else 0)
    if left < len(made):
        raise UserError(f"--num_concepts {num_concepts} is too few for the parts {', '.join(parts)}"
                        + (f": the bank of your own has {len(own)}" if own else ""))
    settings: dict[str, Any] = {"prototypes": args.prototypes, "element_choice": args.element_choice}
    settings |= own_settings(args.bank, own) if own else {}
    make_text = None
    if "Text" in parts:
        text = load_text_inputs(args, inputs)
        make_text, settings = make_text_bank(args, text), {**settings, **text_settings(args, text)}
    counts = dict(zip(made, shares(left, len(made)), strict=True))
    for part in {"Prototype", "Cluster"} & set(made):
        check_enough(inputs.elements, counts[part])

    def make(inputs: Inputs, total: int | None, seed: Seed) -> Bank:
        kinds = {"Prototype": lambda m: prototype_bank(inputs.elements, m, seed.number, args.prototypes),
                 "Cluster": lambda m: clusters.cluster_bank(inputs.elements, m, seed.number, args.element_choice,
                                                           clusters.CENTRES),
                 "Random": lambda m: random_bank(m, inputs.train.width, seed.number),
                 "Text": lambda m: make_text(inputs, m, seed), "Own": lambda m: own}
        return combined_bank([kinds[part](counts.get(part)) for part in parts])

    return make, settings
