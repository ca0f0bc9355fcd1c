"""The whole grid at ImageNet's shape on a GPU: 24 predictors and 3 dense heads, 30 epochs, random features.

    python bench/cuda_heads.py --device cuda              # fp32; writes bench/results/cuda_heads_fp32.json
    python bench/cuda_heads.py --device cuda --tf32       # writes bench/results/cuda_heads_tf32.json

Features are drawn on the device (1,281,167 x 2048 in float16: 5.2 GB). `--epochs` of the 30 are run and multiplied;
the first is not timed. Before that, three ways to the threshold of every row are timed at the shape of one step:
torch.sort, kthvalue and topk (of the entries that stay, or that go, whichever are fewer).
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import RESULTS, bench_parser, median_seconds, report, start
from iis.cli import ScriptParser, positive, run_script

TARGETS = {False: (75, 45), True: (40, 20)}  # seconds: must, aim; by --tf32
WHOLE = 30  # epochs of a run


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "cuda_heads", pairs=5)
    script.set_defaults(device="cuda", out=None)
    return add_shape(script)


def add_shape(script: ScriptParser) -> ScriptParser:
    """The sizes of ImageNet, as flags."""
    script.add_argument("--tf32", action="store_true", help="matrix products in TF32")
    script.add_argument("--num_train", type=positive, default=1_281_167, help="N")
    script.add_argument("--num_val", type=positive, default=50_000, help="validation images")
    script.add_argument("--width", type=positive, default=2048, help="D")
    script.add_argument("--num_concepts", type=positive, default=200, help="M")
    script.add_argument("--num_classes", type=positive, default=1000, help="C")
    script.add_argument("--batch_size", type=positive, default=1024, help="samples per step")
    script.add_argument("--epochs", type=positive, default=3, help="epochs run; their mean is multiplied to 30")
    return script


def main(args: argparse.Namespace) -> None:
    """Time the selection, then the run."""
    from IP_training.training_run import tf32_products

    device = start(args)
    args.out = args.out or RESULTS / f"cuda_heads_{precision(args)}.json"
    with tf32_products(args.tf32):
        results = {name: {"seconds": median_seconds(select, args.pairs, device)}
                   for name, select in selections(args, device).items()}
        name = f"heads, ImageNet's shape, {WHOLE} epochs, {precision(args)}"
        results[name] = whole_run(args, device)
    report(args, "python bench/cuda_heads.py" + " --tf32" * args.tf32, results, {name: TARGETS[args.tf32]},
           f"{args.epochs} epochs were run and multiplied to {WHOLE}; random features")


def precision(args: argparse.Namespace) -> str:
    """"fp32" or "tf32"."""
    return "tf32" if args.tf32 else "fp32"


def selections(args: argparse.Namespace, device: object) -> dict[str, Callable]:
    """Ways to the threshold of each row of 24 heads, for one step."""
    import torch

    from iis.grid import RATIOS, dropped_count

    shape = (3 * len(RATIOS), args.batch_size, args.num_concepts)
    magnitude = torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(0))
    dropped = [dropped_count(args.num_concepts, ratio) for ratio in RATIOS]

    def by_topk(rows: torch.Tensor, count: int) -> torch.Tensor:
        kept = rows.shape[-1] - count
        few, largest = (kept, True) if kept <= count else (count + 1, False)
        return rows.topk(few, largest=largest).values[..., -1]

    def each(threshold: Callable) -> Callable:
        return lambda: [threshold(magnitude[place::len(RATIOS)], count) for place, count in enumerate(dropped)]

    return {"threshold of 24 heads, torch.sort": lambda: magnitude.sort(-1),
            "threshold of 24 heads, kthvalue": each(lambda rows, count: rows.kthvalue(count + 1).values),
            "threshold of 24 heads, topk": each(by_topk)}


def made_up(args: argparse.Namespace, device: object) -> dict:
    """Random float16 features and labels on the device: {"train": (h_ND, y_N), "val": …}."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    return {name: (torch.randn(count, args.width, generator=generator, device=device, dtype=torch.float16),
                   torch.randint(args.num_classes, (count,), generator=generator, device=device))
            for name, count in (("train", args.num_train), ("val", args.num_val))}


def whole_run(args: argparse.Namespace, device: object) -> dict:
    """Seconds of 30 epochs of 24 + 3 heads, evaluation and what is done once included."""
    import torch

    from bench.timing import peak_memory, seconds
    from iis.grid import DENSE, LEARNING_RATES, RATIOS, Cell
    from iis.runtime import torch_rng
    from IP_training.grid_training import Recipe, Stack, train_stacks
    from IP_training.predictor import DenseHeads, InterpretationHeads, interpret

    data = made_up(args, device)
    (h_train, y_train), (h_val, y_val) = data["train"], data["val"]
    bank_MD = torch.nn.functional.normalize(torch.randn(args.num_concepts, args.width, device=device), dim=1)
    activations = []
    once = seconds(lambda: activations.extend(interpret(h_ND, bank_MD) for h_ND in (h_train, h_val)), device)
    stacks = [Stack(InterpretationHeads(RATIOS, args.num_concepts, args.num_classes, torch_rng(0, "head")).to(device),
                    [Cell(0, ratio, rate) for ratio in RATIOS], *activations) for rate in LEARNING_RATES]
    stacks += [Stack(DenseHeads(1, args.width, args.num_classes, torch_rng(0, "dense head")).to(device),
                     [Cell(0, DENSE, rate)], h_train, h_val) for rate in LEARNING_RATES]

    def epochs(count: int) -> Callable:
        recipe = Recipe(epochs=count, batch_size=args.batch_size)
        return lambda: train_stacks(stacks, y_train, y_val, recipe, seed=0, progress=False)

    seconds(epochs(1), device)  # warm-up
    epoch = seconds(epochs(args.epochs), device) / args.epochs
    return {"seconds": once + WHOLE * epoch, "epoch_s": epoch, "once_s": once, **peak_memory(device)}


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
