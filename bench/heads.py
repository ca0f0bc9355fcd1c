"""What the speed remarks in IP_training/ rest on: pairs timed side by side in one process, median of several.

    python bench/heads.py                     # about half a minute; writes bench/results/heads.json

Each line is plain / fast: above 1 the fast side wins. Times of a machine are worth little; the ratios travel.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from iis.config import DoorParser, path
from iis.runtime import ROOT, run_door, write_json


def parser() -> DoorParser:
    """The flags of this door."""
    door = DoorParser(description=__doc__.splitlines()[0])
    door.add_argument("--pairs", type=int, default=9, help="timed pairs, after one warm-up of each side")
    door.add_argument("--batch_size", type=int, default=1024, help="samples per step")
    door.add_argument("--num_concepts", type=int, default=200, help="M")
    door.add_argument("--num_classes", type=int, default=10, help="C")
    door.add_argument("--threads", type=int, default=1, help="of PyTorch; 1 is the steadiest")
    door.add_argument("--out", type=path, default=ROOT / "bench" / "results" / "heads.json", help="the ratios as JSON")
    return door


def main(args: argparse.Namespace) -> None:
    """Time every pair."""
    import torch

    torch.set_num_threads(args.threads)
    results = {name: ratio(*sides, args.pairs) for name, sides in pairs(args).items()}
    for name, result in results.items():
        print(f"{name}: {result['ratio']:.2f} x (plain {1e3 * result['plain_s']:.1f} ms, "
              f"fast {1e3 * result['fast_s']:.1f} ms)")
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    write_json(args.out, {"settings": settings, "machine": platform.processor() or platform.machine(),
                          "torch": torch.__version__, "results": json.loads(json.dumps(results))})


def pairs(args: argparse.Namespace) -> dict[str, tuple[Callable, Callable]]:
    """{what: (plain, fast)} on a stack of 8 heads, one per sparsity ratio."""
    import torch

    from iis.grid import RATIOS
    from IP_training.predictor import InterpretationHeads
    from IP_training.sparsify import sort_ascending

    generator = torch.Generator().manual_seed(0)
    heads = InterpretationHeads(RATIOS, args.num_concepts, args.num_classes, generator)
    z_BM = torch.randn(args.batch_size, args.num_concepts, generator=generator)
    magnitude = torch.randn(len(RATIOS), args.batch_size, args.num_concepts, generator=generator).abs()

    def step(forward: Callable) -> None:
        heads.zero_grad(set_to_none=True)
        forward(z_BM).square().mean().backward()

    def through_autograd(z: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(heads.bias_GC[:, None], heads.interpretations(z), heads.weight_GCM.mT)

    return {"sort (torch.sort / sort_ascending)": (lambda: magnitude.sort(-1), lambda: sort_ascending(magnitude)),
            "step of 8 heads (autograd / MaskedLinear)": (lambda: step(through_autograd), lambda: step(heads))}


def ratio(plain: Callable, fast: Callable, count: int) -> dict[str, float]:
    """Median over pairs of plain / fast, and the median seconds of each side."""
    plain(), fast()
    timed = [(_seconds(plain), _seconds(fast)) for _ in range(count)]
    return {"ratio": statistics.median(first / second for first, second in timed),
            "plain_s": statistics.median(first for first, _ in timed),
            "fast_s": statistics.median(second for _, second in timed)}


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_door(lambda: main(parser().settings()))
