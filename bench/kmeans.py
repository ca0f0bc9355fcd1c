"""The Cluster bank's k-means, `--kmeans fast` against scikit-learn's KMeans, from the same initial centres.

    python bench/kmeans.py                    # about two minutes; writes bench/results/kmeans.json

Rows of length 1, groups in noise as embeddings have them; both sides with one set of threads and one initialisation,
which is not timed (k-means++ is the same code on both sides).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import bench_parser, paired, report, start
from iis.cli import ScriptParser, positive, run_script
from iis.runtime import UserError


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "kmeans", pairs=3)
    script.add_argument("--num_elements", type=positive, default=20_000, help="E")
    script.add_argument("--width", type=positive, default=2048, help="D")
    script.add_argument("--num_concepts", type=positive, default=200, help="M")
    return script


def main(args: argparse.Namespace) -> None:
    """Time both and compare their inertia."""
    import torch
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    from IP_training.fast_kmeans import lloyd

    if args.num_concepts < 2 or args.num_elements < args.num_concepts:
        raise UserError(f"--num_elements {args.num_elements} --num_concepts {args.num_concepts}: k-means needs 2 or "
                        "more centres, and as many elements")
    start(args)
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(5 * args.num_concepts, args.width, generator=generator)
    groups = torch.randint(len(middles), (args.num_elements,), generator=generator)
    noise = torch.randn(args.num_elements, args.width, generator=generator)
    x_ED = torch.nn.functional.normalize(middles[groups] + 1.5 * noise, dim=1)
    first_MD = x_ED[torch.randperm(len(x_ED), generator=generator)[:args.num_concepts]]
    fits = {}

    def plain() -> None:
        fits["plain"] = KMeans(args.num_concepts, init=first_MD.numpy(), n_init=1).fit(x_ED.numpy())

    def fast() -> None:
        fits["fast"] = lloyd(x_ED, first_MD)

    with threadpool_limits(torch.get_num_threads()):
        result = paired(plain, fast, args.pairs)
    theirs, ours = fits["plain"], fits["fast"]
    result.update(inertia=ours.inertia / theirs.inertia_ - 1, rounds=[int(theirs.n_iter_), ours.rounds],
                  same_labels=float((ours.labels_E.numpy() == theirs.labels_).mean()))
    if abs(result["inertia"]) > 1e-3:
        raise SystemExit(f"the inertia differs by {result['inertia']:.2%}")
    shape = f"k-means, {args.num_elements} x {args.width} -> {args.num_concepts}"
    report(args, "python bench/kmeans.py", {shape: result}, {shape: (2, 5)},
           "inertia: how far it is from scikit-learn's, as a fraction; rounds: scikit-learn's, ours")


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
