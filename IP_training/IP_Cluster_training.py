"""Train interpretation predictors on a Cluster bank: k-means centres of the visual elements (paper, section 3).

    cd IP_training
    python IP_Cluster_training.py --model_name resnet50 --num_concepts 200 --save_dir ./IP_Cluster/resnet50

reads stage 2's embeddings as IP_Prototype_training.py does; k-means is fitted once per seed and kept.
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
    script.add_argument("--kmeans", choices=("sklearn", "fast"), default="sklearn", help="scikit-learn's k-means, or one "
                      "from the same initial centres that takes less than half its time on wide representations; its "
                      "inertia is the same to rounding")
    return script


def main(args: argparse.Namespace) -> Path:
    """Fit the centres of each seed and train the grid. Returns the folder of the ledger."""
    from IP_training import clusters
    from IP_training.concept_banks import check_enough
    from IP_training.inputs import concepts_wanted, load_inputs
    from IP_training.stacks import fixed
    from IP_training.training_run import run

    apply_protocol(args)
    inputs, num_concepts = load_inputs(args), concepts_wanted(args)
    check_enough(inputs.elements, num_concepts)
    plan = fixed(lambda inputs, count, seed: clusters.cluster_bank(inputs.elements, count, seed.number,
                                                                   args.element_choice, clusters.CENTRES, args.kmeans))
    return run(args, "Cluster", inputs, plan, num_concepts,
               {"element_choice": args.element_choice, **({"kmeans": args.kmeans} if args.kmeans != "sklearn" else {})})


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
