"""One training step of stage 3's heads in parts: the sparsifier's sort, 8 predictors, 3 dense heads.

    python bench/heads.py                     # about 10 s; writes bench/results/heads.json

Each line is plain / fast: above 1 the fast side wins.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from bench.timing import BenchSettings, Job, paired, report, start
from iis.cli import positive, run_script, setting
from iis.grid import LEARNING_RATES, RATIOS
from IP_training.predictor import InterpretationHeads, LinearHeads, autograd_backward
from IP_training.sparsify import sort_ascending


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Shape of a step"""

    pairs: int = setting(9, "timed pairs, after one warm-up of each side", type=positive)
    threads: int = setting(1, "of PyTorch: one is the steadiest", type=positive)
    batch_size: int = setting(1024, "samples per step", type=positive)
    num_concepts: int = setting(200, "M", type=positive)
    width: int = setting(2048, "D", type=positive)


def main(settings: Settings) -> Path:
    """Time every pair."""
    start(settings)
    magnitude = torch.randn(len(RATIOS), settings.batch_size, settings.num_concepts).abs()  # (G, B, M)
    sides = {"sort (torch.sort / sort_ascending)": (lambda: magnitude.sort(-1), lambda: sort_ascending(magnitude)),
             "sort (numpy, as floats / as integers)": (lambda: np.sort(magnitude.numpy(), axis=-1),
                                                       lambda: sort_ascending(magnitude)),
             **steps(settings, 10), **steps(settings, 100)}
    return report(settings, "heads", {name: paired(*pair, settings.pairs) for name, pair in sides.items()})


def steps(settings: Settings, num_classes: int) -> dict[str, tuple[Job, Job]]:
    """{what: (plain, fast)}: forward and backward of the predictors and of the dense heads of a seed."""
    generator = torch.Generator().manual_seed(0)
    heads = InterpretationHeads(RATIOS, settings.num_concepts, num_classes, generator)
    dense = LinearHeads(len(LEARNING_RATES), settings.width, num_classes, generator)
    z_BM = torch.randn(settings.batch_size, settings.num_concepts, generator=generator)
    h_BD = torch.randn(settings.batch_size, settings.width, generator=generator)
    y_B = torch.randint(num_classes, (settings.batch_size,), generator=generator)

    def classes_last() -> None:
        dense.zero_grad()
        x_GBD = h_BD.expand(len(dense.weight), -1, -1)
        logits_GBC = torch.baddbmm(dense.bias[:, None], x_GBD, dense.weight.mT)  # (G, B, C)
        cross_entropy(logits_GBC.mT, y_B.expand(len(logits_GBC), -1)).backward()

    return {f"step of 8 predictors, C = {num_classes} (autograd / gradient written down)":
            (lambda: autograd_backward(heads, z_BM, y_B), lambda: heads.backward(z_BM, y_B)),
            f"step of 3 dense heads, C = {num_classes} (classes last / first)":
            (classes_last, lambda: dense.backward(h_BD, y_B))}


if __name__ == "__main__":
    run_script(main, Settings)
