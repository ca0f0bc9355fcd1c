"""One epoch of the whole grid (8 ratios x 3 learning rates and 3 dense heads) against one head at a time.

    python bench/grid_epoch.py                # some 6 minutes on two cores; writes bench/results/grid_epoch.json
    python bench/grid_epoch.py --shapes 64x10 --pairs 1

The plain side follows the recipe as it is written: features in a list of tensors, a DataLoader, one (ratio, learning
rate) after another, in every step the product with the bank, LayerNorm, and torch.sort of every row. It runs
`--plain_heads` heads, of which one is dense, and is multiplied to the whole grid. The fast side is the trainer of
IP_training/ with all heads. Both evaluate on validation once. What the fast side does once per run and not per epoch
(h · bankᵀ and LayerNorm's statistics) is timed apart and a thirtieth of it, a run's epochs, added.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import Job, bench_parser, paired, report, start
from iis.cli import ScriptParser, count, positive, run_script
from iis.runtime import UserError

TARGETS = {10: {4: (12, 30), 0: (6, 15)}, 100: {4: (12, 25), 0: (6, 12)}}  # C: {workers: (must, aim)}


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "grid_epoch", pairs=3)
    script.add_argument("--shapes", default="64x10,2048x10,64x100", help="D x C of each")
    script.add_argument("--workers", default="4,0", help="worker processes of the plain DataLoader")
    script.add_argument("--num_train", type=positive, default=50_000, help="N")
    script.add_argument("--num_val", type=count, default=10_000, help="validation images (0: no evaluation)")
    script.add_argument("--num_concepts", type=positive, default=200, help="M")
    script.add_argument("--batch_size", type=positive, default=1024, help="samples per step")
    script.add_argument("--plain_heads", type=positive, default=3, choices=(2, 3, 4),
                      help="heads the plain side runs: one dense, the others IPs")
    return script


def main(args: argparse.Namespace) -> None:
    """Time every shape with every number of workers."""
    start(args)
    results, targets = {}, {}
    try:
        numbers_of_workers = [count(text) for text in args.workers.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--workers {args.workers}: {error}") from None
    for shape in args.shapes.split(","):
        width, num_classes = sizes(shape)
        data = made_up(args, width, num_classes)
        fast = grid(args, data, num_classes)
        for workers in numbers_of_workers:
            name = f"grid epoch, D = {width}, C = {num_classes}, {workers} workers"
            results[name] = paired(loop(args, data, num_classes, workers), fast, args.pairs)
            targets[name] = TARGETS.get(num_classes, {}).get(workers)
    report(args, "python bench/grid_epoch.py", results, {name: pair for name, pair in targets.items() if pair},
           f"the plain side ran {args.plain_heads} heads and was multiplied to 24 + 3")


def sizes(shape: str) -> tuple[int, int]:
    """D and C of "64x10"; `UserError` for anything else."""
    try:
        width, num_classes = map(positive, shape.split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise UserError(f"--shapes has {shape!r}; write D and C as 64x10") from None
    return width, num_classes


def made_up(args: argparse.Namespace, width: int, num_classes: int) -> dict:
    """Random features with labels, and a bank: {"train": (h_ND, y_N), "val": …, "bank": bank_MD}."""
    import torch

    generator = torch.Generator().manual_seed(0)
    splits = {name: (torch.randn(count, width, generator=generator),
                     torch.randint(num_classes, (count,), generator=generator))
              for name, count in (("train", args.num_train), ("val", args.num_val))}
    bank_MD = torch.nn.functional.normalize(torch.randn(args.num_concepts, width, generator=generator), dim=1)
    return {**splits, "bank": bank_MD}


def grid(args: argparse.Namespace, data: dict, num_classes: int) -> Job:
    """The trainer with all heads: one epoch, and a thirtieth of what a run does once."""
    from iis.grid import DENSE, LEARNING_RATES, RATIOS, Cell
    from iis.runtime import torch_rng
    from IP_training.grid_training import Recipe, Stack, train_stacks
    from IP_training.predictor import DenseHeads, InterpretationHeads, interpret

    (h_train, y_train), (h_val, y_val), bank_MD = data["train"], data["val"], data["bank"]

    def once() -> list:
        return [interpret(h_ND, bank_MD) for h_ND in (h_train, h_val)]

    z_train, z_val = once()
    stacks = [Stack(InterpretationHeads(RATIOS, len(bank_MD), num_classes, torch_rng(0, "head")),
                    [Cell(0, ratio, rate) for ratio in RATIOS], z_train, z_val) for rate in LEARNING_RATES]
    stacks += [Stack(DenseHeads(1, h_train.shape[1], num_classes, torch_rng(0, "dense head")),
                     [Cell(0, DENSE, rate)], h_train, h_val) for rate in LEARNING_RATES]
    recipe = Recipe(epochs=1, batch_size=args.batch_size)
    return [(lambda: train_stacks(stacks, y_train, y_val, recipe, seed=0, progress=False), 1), (once, 1 / 30)]


def loop(args: argparse.Namespace, data: dict, num_classes: int, workers: int) -> Job:
    """One epoch of some heads, one after another, each standing for an equal share of the grid's 24 or 3."""
    from torch.utils.data import DataLoader

    def loader(split: str, shuffle: bool) -> DataLoader:
        h_ND, y_N = data[split]
        pairs = list(zip(h_ND.unbind(), y_N.unbind(), strict=True))
        return DataLoader(pairs, args.batch_size, shuffle=shuffle, num_workers=workers)

    train, val = loader("train", True), loader("val", False)
    heads = [PlainHead(data["bank"], num_classes, ratio, 0.01) for ratio in (0.5, 0.9, 0.3)[:args.plain_heads - 1]]
    dense = PlainHead(None, num_classes, None, 0.01, width=data["bank"].shape[1])
    return [*((epoch(head, train, val), 24 / len(heads)) for head in heads), (epoch(dense, train, val), 3)]


def epoch(head: "PlainHead", train: object, val: object) -> Callable[[], None]:
    """Train and evaluate one head."""
    import torch

    def run() -> None:
        for h_BD, y_B in train:
            head.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head.logits(h_BD), y_B)
            loss.backward()
            head.optimizer.step()
        top1 = top5 = 0
        with torch.no_grad():
            for h_BD, y_B in val:
                best = head.logits(h_BD).topk(min(5, head.num_classes), dim=1).indices  # (B, 5)
                top1 += (best[:, 0] == y_B).sum().item()
                top5 += (best == y_B[:, None]).any(1).sum().item()

    return run


class PlainHead:
    """One head as the recipe writes it: h · bankᵀ → LayerNorm → sort, threshold, mask → Linear; or Linear alone."""

    def __init__(self, bank_MD: object, num_classes: int, ratio: float | None, rate: float, width: int = 0) -> None:
        import torch

        from iis.grid import dropped_count

        self.bank_MD, self.num_classes = bank_MD, num_classes
        width = width if bank_MD is None else len(bank_MD)
        self.norm, self.linear = torch.nn.LayerNorm(width), torch.nn.Linear(width, num_classes)
        self.dropped = 0 if ratio is None else dropped_count(width, ratio)
        learned = [*(self.norm.parameters() if bank_MD is not None else []), *self.linear.parameters()]
        self.optimizer = torch.optim.Adam(learned, lr=rate)

    def logits(self, h_BD: object) -> object:
        """(B, C)."""
        if self.bank_MD is None:
            return self.linear(h_BD)
        a_BM = self.norm(h_BD @ self.bank_MD.T)
        magnitude = a_BM.detach().abs()
        threshold_B1 = magnitude.sort(dim=1).values[:, self.dropped, None]
        return self.linear(a_BM * (magnitude >= threshold_B1))


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
