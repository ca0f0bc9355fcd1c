"""Train interpretation predictors together with their bank: elements joined into slots by Gumbel-softmax (End2End).

    cd IP_training
    python IP_End2End_training.py --model_name resnet50 --num_concepts 200 --save_dir ./IP_End2End/resnet50

reads stage 2's embeddings as IP_Prototype_training.py does. Every cell of the grid learns a bank of its own, up to
20,000 elements x M numbers; as many cells train together as half of the free memory holds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, run_script
from IP_training.flags import add_element_choice, apply_protocol, training_parser


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_element_choice(training_parser(__doc__.splitlines()[0]))
    script.add_argument("--test_assignment", choices=("argmax", "gumbel"), help="slot of an element at test time: its "
                      "largest logit, or with Gumbel noise on as the release (default: protocol)")
    return script


def main(args: argparse.Namespace) -> Path:
    """Train the grid; banks are learned on the way. Returns the folder of the ledger."""
    from IP_training.concept_banks import check_enough
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.learned_stacks import learned
    from IP_training.training_run import run

    apply_protocol(args)
    inputs, num_concepts = load_inputs(args), concepts_wanted(args)
    check_enough(inputs.elements, num_concepts)
    return run(args, "End2End", inputs, learned(args.element_choice, args.test_assignment), num_concepts,
               {"element_choice": args.element_choice, "test_assignment": args.test_assignment})


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
