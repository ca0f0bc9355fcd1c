"""Train interpretation predictors on a bank of prototypes: M of the visual elements (paper, section 3).

    cd IP_training
    python IP_Prototype_training.py --model_name resnet50 --in_channels 2048 \
        --concept_path ../extractor/embs/resnet50/visual_element_emb.pkl --num_concepts 200 --num_classes 1000 \
        --n_epoch 30 --train_pt ../extractor/embs/resnet50/imagenet_train_resnet50_layer4.pt \
        --val_pt ../extractor/embs/resnet50/imagenet_val_resnet50_layer4.pt --save_dir ./IP_Prototype/resnet50

writes results.jsonl (the ledger), predictors/, settings.yaml and manifest.json into --save_dir.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, run_script
from IP_training.flags import apply_protocol, training_parser


def parser() -> ScriptParser:
    """The flags of this script."""
    script = training_parser(__doc__.splitlines()[0])
    script.add_argument("--prototypes", choices=("balanced", "first"),
                      help="balanced over classes and seeded, or the first M rows as the release (default: protocol)")
    return script


def main(args: argparse.Namespace) -> Path:
    """Build the bank of each seed and train the grid. Returns the folder of the ledger."""
    from IP_training.concept_banks import check_enough, prototype_bank
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.stacks import fixed
    from IP_training.training_run import run

    apply_protocol(args)
    inputs, num_concepts = load_inputs(args), concepts_wanted(args)
    check_enough(inputs.elements, num_concepts)
    plan = fixed(lambda inputs, count, seed: prototype_bank(inputs.elements, count, seed.number, args.prototypes))
    return run(args, "Prototype", inputs, plan, num_concepts, {"prototypes": args.prototypes})


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
