"""Train interpretation predictors together with their bank: elements joined into slots by Gumbel-softmax (End2End).

    cd IP_training
    python IP_End2End_training.py --model_name resnet50 --num_concepts 200 --save_dir ./IP_End2End/resnet50

reads stage 2's embeddings as IP_Prototype_training.py does. Every cell of the grid learns a bank of its own, up to
20,000 elements x M numbers; as many cells train together as half of the free memory holds.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import run_script, setting
from IP_training.config import ElementSettings


@dataclass(kw_only=True)
class Settings(ElementSettings):
    """End2End bank"""

    test_assignment: Literal["argmax", "gumbel"] | None = setting(
        None, "slot of an element at test time: its largest logit, or with Gumbel noise on as the release (default: "
        "protocol)")


def main(settings: Settings) -> Path:
    """Train the grid; each head learns its bank. Returns the folder of the ledger."""
    from IP_training.banks import check_enough
    from IP_training.end2end import cell_bytes, learned_heads
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.run import train_groups

    inputs, num_concepts = load_inputs(settings), concepts_wanted(settings)
    check_enough(inputs.elements, num_concepts)
    choices = settings.element_choice, settings.test_assignment
    return train_groups(settings, "End2End", inputs,
                        lambda seeds, device, jobs: (learned_heads(inputs, num_concepts, seed, device,
                                                                   settings.sparsifier, *choices) for seed in seeds),
                        num_concepts, dict(zip(("element_choice", "test_assignment"), choices, strict=True)),
                        cell_bytes(inputs.elements, num_concepts))


if __name__ == "__main__":
    run_script(main, Settings)
