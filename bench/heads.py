"""What the speed remarks of stage 3 rest on: the sort of the sparsifier, and one training step of 8 heads.

    python bench/heads.py                     # about half a minute; writes bench/results/heads.json

Each line is plain / fast: above 1 the fast side wins.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import Job, bench_parser, paired, report, start
from iis.cli import ScriptParser, positive, run_script


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "heads", pairs=9, threads=1)  # one thread is the steadiest
    script.add_argument("--batch_size", type=positive, default=1024, help="samples per step")
    script.add_argument("--num_concepts", type=positive, default=200, help="M")
    script.add_argument("--num_classes", type=positive, default=10, help="C")
    return script


def main(args: argparse.Namespace) -> None:
    """Time every pair."""
    start(args)
    report(args, "python bench/heads.py",
           {name: paired(*sides, args.pairs) for name, sides in sides_of(args).items()})


def sides_of(args: argparse.Namespace) -> dict[str, tuple[Job, Job]]:
    """{what: (plain, fast)} on a stack of 8 heads, one per sparsity ratio."""
    import numpy as np
    import torch

    from iis.grid import RATIOS
    from IP_training.fused_step import fused_step
    from IP_training.predictor import InterpretationHeads
    from IP_training.sparsify import sort_ascending

    generator = torch.Generator().manual_seed(0)
    heads = InterpretationHeads(RATIOS, args.num_concepts, args.num_classes, generator)
    z_BM = torch.randn(args.batch_size, args.num_concepts, generator=generator)
    y_B = torch.randint(args.num_classes, (args.batch_size,), generator=generator)
    magnitude = torch.randn(len(RATIOS), args.batch_size, args.num_concepts, generator=generator).abs()

    def step(logits_GBC: torch.Tensor) -> None:
        heads.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits_GBC.transpose(1, 2), y_B.expand(len(logits_GBC), -1)).backward()

    def through_autograd() -> None:
        x_GBM = heads.interpretations(z_BM)
        step(torch.baddbmm(heads.bias_GC[:, None], x_GBM, heads.weight_GCM.mT))

    return {"sort (torch.sort / sort_ascending)": (lambda: magnitude.sort(-1), lambda: sort_ascending(magnitude)),
            "sort (numpy, as floats / as integers)": (lambda: np.sort(magnitude.numpy(), axis=-1),
                                                      lambda: sort_ascending(magnitude)),
            "step of 8 heads (autograd / MaskedLinear)": (through_autograd, lambda: step(heads(z_BM))),
            "step of 8 heads (autograd / fused_step)": (through_autograd, lambda: fused_step(heads, z_BM, y_B))}


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
