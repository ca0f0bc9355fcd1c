"""Train interpretation predictors on a Text bank: words that CLIP sees in the images (paper, section 3; LF-CBM).

    cd IP_training
    python IP_Text_training.py --dataset imagenet --concept_set ../concept_library/textual/imagenet_filtered.txt \
        --backbone resnet50 --activation_dir ../extractor/embs/resnet50/ --feature_layer layer4 --sparsity_ratio

after extractor/textual_emb_extractor.py. With --sparsity_ratio activations are sparsified and the whole grid trains, as
for every bank (one ratio with --sparsity_ratio_value); without it, LF-CBM's own final layer: sparse weights, by the
elastic net, written to elastic_net.json.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.cli import ScriptParser, run_script
from IP_training.flags import apply_protocol, training_parser
from IP_training.text_inputs import add_text_flags


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_text_flags(training_parser(__doc__.splitlines()[0]))
    script.flags()["num_concepts"].help = "keep the M concepts of largest validation similarity (default: all that pass)"
    final = script.add_argument_group("final layer (published flags)")
    final.add_argument("--sparsity_ratio", action="store_true", help="sparsify activations, without a weight penalty; "
                       "left out, the elastic-net layer")
    final.add_argument("--sparsity_ratio_value", type=float, help="one ratio instead of the whole grid")
    final.add_argument("--lam", type=float, default=0.0007, help="elastic net: weight of the penalty")
    final.add_argument("--n_iters", type=int, default=1000, help="elastic net: most passes over train")
    final.add_argument("--saga_batch_size", type=int, default=256, help="elastic net: samples per step")
    return script


def main(args: argparse.Namespace) -> Path:
    """Build the bank of each seed and train the grid, or the elastic-net layer. Returns the folder of the results."""
    from IP_training.elastic_run import run_elastic_net
    from IP_training.inputs import load_inputs
    from IP_training.stacks import fixed
    from IP_training.text_inputs import load_text_inputs, make_text_bank, text_settings
    from IP_training.training_run import run

    if args.sparsity_ratio_value is not None:
        args.ratios = (args.sparsity_ratio_value,)
    apply_protocol(args)
    inputs = load_inputs(args, with_elements=False)
    text = load_text_inputs(args, inputs)
    make, settings = make_text_bank(args, text), text_settings(args, text)
    if args.sparsity_ratio or args.sparsity_ratio_value is not None:
        return run(args, "Text", inputs, fixed(make), args.num_concepts, settings)
    return run_elastic_net(args, "Text", inputs, make, args.num_concepts, settings)


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
