"""One epoch of End2End at ImageNet's shape on a GPU, for all 24 cells, multiplied to 30 epochs.

    python bench/cuda_end2end.py --device cuda            # fp32; writes bench/results/cuda_end2end_fp32.json
    python bench/cuda_end2end.py --device cuda --tf32     # writes bench/results/cuda_end2end_tf32.json

Random features and elements, drawn on the device. As many cells train together as the script would let
(`chunk_cells`); every group passes over `--fraction` of the training set once, and the epoch is their sum divided by
it. Slots are summed both ways, by additions and by a product with the one-hot matrix, before that.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cuda_heads import WHOLE, add_shape, made_up, precision
from bench.timing import RESULTS, bench_parser, median_seconds, peak_memory, report, seconds, start
from iis.cli import ScriptParser, part, positive, run_script

TARGETS = {False: (720, 180), True: (300, 180)}  # seconds: must, aim; by --tf32


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_shape(bench_parser(__doc__.splitlines()[0], "cuda_end2end", pairs=5))
    script.set_defaults(device="cuda", out=None, num_val=50_000)
    script.add_argument("--num_elements", type=positive, default=20_000, help="E")
    script.add_argument("--fraction", type=part, default=0.1, help="of an epoch that is run")
    return script


def main(args: argparse.Namespace) -> None:
    """Time the sums over slots, then the epoch."""
    import torch

    from IP_training.training_run import tf32_products

    device = start(args)
    args.out = args.out or RESULTS / f"cuda_end2end_{precision(args)}.json"
    elements_ED = torch.nn.functional.normalize(torch.randn(args.num_elements, args.width, device=device), dim=1)
    with tf32_products(args.tf32):
        results = slots(args, elements_ED)
        name = f"End2End, ImageNet's shape, {WHOLE} epochs, {precision(args)}"
        results[name] = epoch(args, elements_ED)
    report(args, "python bench/cuda_end2end.py" + " --tf32" * args.tf32, results, {name: TARGETS[args.tf32]},
           f"{args.fraction:g} of one epoch was run and multiplied to {WHOLE}; random features")


def slots(args: argparse.Namespace, elements_ED: object) -> dict[str, dict]:
    """Sums over the slots of one cell, both ways."""
    import torch

    from IP_training.end2end import slot_sums

    slots_GE = torch.randint(args.num_concepts, (1, len(elements_ED)), device=elements_ED.device)
    return {f"sums over slots, {name}":
            {"seconds": median_seconds(lambda product=product: slot_sums(slots_GE, elements_ED, args.num_concepts,
                                                                         product), args.pairs, elements_ED.device)}
            for name, product in (("additions", False), ("product", True))}


def epoch(args: argparse.Namespace, elements_ED: object) -> dict:
    """Seconds of 30 epochs of all cells, from a fraction of one; evaluation included."""
    from iis.grid import LEARNING_RATES, RATIOS, Cell
    from iis.runtime import torch_rng
    from IP_training.end2end import End2EndHeads, GumbelNoise, available_bytes, chunk_cells
    from IP_training.grid_training import Recipe, Stack, train_stacks
    from IP_training.stacks import by_learning_rate

    device, data = elements_ED.device, made_up(args, elements_ED.device)
    (h_train, y_train), (h_val, y_val) = data["train"], data["val"]
    rows = max(1, round(args.fraction * len(y_train)))
    held = max(1, round(args.fraction * len(y_val)))
    cells = sorted((Cell(0, ratio, rate) for ratio in RATIOS for rate in LEARNING_RATES),
                   key=lambda cell: (cell.learning_rate, cell.ratio))
    most, noise, spent = chunk_cells(len(elements_ED), args.num_concepts, available_bytes(device)), None, 0.0
    for first in range(0, len(cells), most):
        noise = GumbelNoise(0, device)
        stacks = [Stack(End2EndHeads([cell.ratio for cell in same], elements_ED, args.num_concepts, args.num_classes,
                                     0, torch_rng(0, "head"), noise=noise).to(device), same, h_train[:rows],
                        h_val[:held]) for same in by_learning_rate(cells[first:first + most])]
        # Stacks share their input only as one tensor.
        for stack in stacks[1:]:
            stack.train, stack.val = stacks[0].train, stacks[0].val

        def run(stacks: list = stacks) -> None:
            train_stacks(stacks, y_train[:rows], y_val[:held], Recipe(1, args.batch_size), seed=0, progress=False)

        spent += seconds(run, device)
    return {"seconds": WHOLE * spent / args.fraction, "epoch_s": spent / args.fraction, "cells_together": most,
            **peak_memory(device)}


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
