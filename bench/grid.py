"""One epoch of the published grid, 3 seeds of 8 ratios x 3 learning rates and 3 dense heads, against a head at a time.

    python bench/grid.py                      # some 15 minutes on two cores; writes bench/results/grid.json
    python bench/grid.py --widths 64 --classes 10 --pairs 1

The plain side follows the recipe as it is written: features in a list of tensors, a DataLoader, one (ratio, learning
rate) after another, in every step the product with the bank, LayerNorm, and torch.sort of every row. It runs two
predictors and a dense head, and is multiplied to the whole grid. The fast side is stage 3 with all heads, in as many
processes as there are cores, and, to see what these give, in one. Both evaluate on validation once an epoch; the fast
side runs `--epochs`, starting the processes included, and is divided by them. What it does once per run and not per
epoch (h · bankᵀ and LayerNorm) is timed apart and a thirtieth of it, a run's epochs, added.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import DataLoader

from bench.timing import BenchSettings, Job, paired, report, start
from iis.cli import count, positive, run_script, setting
from iis.embedding_file import Embeddings
from iis.grid import LEARNING_RATES, RATIOS, dropped_count
from iis.runtime import available_cores
from IP_training.banks import Bank, Seed
from IP_training.config import TrainingSettings
from IP_training.inputs import Inputs
from IP_training.predictor import interpret
from IP_training.run import shares_of
from IP_training.shares import train_shares
from IP_training.train_heads import Recipe

TARGETS = {10: (30, 60), 100: (18, 25)}  # C: must and aim on two cores, beside a DataLoader with 4 workers
EPOCHS, SEEDS = 30, 3  # of a run
PLAIN_RATIOS = (0.5, 0.9)  # of the heads that stand for all


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between."""
    return tuple(map(count, text.split(",")))


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Shape of the grid"""

    pairs: int = setting(3, "timed pairs", type=positive)
    threads: int = setting(1, "of PyTorch in a process, on both sides: with more, the plain side too is slower",
                           type=positive)
    widths: tuple[int, ...] = setting((64, 2048), "D", type=counts)
    classes: tuple[int, ...] = setting((10, 100), "C", type=counts)
    workers: tuple[int, ...] = setting((4, 0), "worker processes of the plain DataLoader", type=counts)
    jobs: int = setting(available_cores(), "processes of the fast side", type=positive)
    epochs: int = setting(3, "of the fast side", type=positive)
    num_train: int = setting(50_000, "N", type=positive)
    num_val: int = setting(10_000, "validation images", type=positive)
    num_concepts: int = setting(200, "M", type=positive)
    batch_size: int = setting(1024, "samples per step", type=positive)


@dataclass
class Data:
    """Random features (N, D), labels (N,), and a bank (M, D)."""

    h_train: torch.Tensor
    y_train: torch.Tensor
    h_val: torch.Tensor
    y_val: torch.Tensor
    bank_MD: torch.Tensor
    num_classes: int

    @classmethod
    def made_up(cls, num_train: int, num_val: int, width: int, num_classes: int, num_concepts: int,
                device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> "Data":
        """Drawn on the device."""
        generator = torch.Generator(device).manual_seed(0)
        splits = [made for rows in (num_train, num_val)
                  for made in (torch.randn(rows, width, generator=generator, device=device, dtype=dtype),
                               torch.randint(num_classes, (rows,), generator=generator, device=device))]
        bank_MD = torch.randn(num_concepts, width, generator=generator, device=device)
        return cls(*splits, torch.nn.functional.normalize(bank_MD, dim=1), num_classes)

    def inputs(self) -> Inputs:
        """As stage 3 has them."""
        names = [str(label) for label in range(self.num_classes)]
        return Inputs(*(Embeddings(h_ND, y_N, names, []) for h_ND, y_N in ((self.h_train, self.y_train),
                                                                          (self.h_val, self.y_val))), None, names)

    def activations(self) -> list[torch.Tensor]:
        """What stage 3 computes once: (N, M) of train and of val."""
        return [interpret(h_ND, self.bank_MD) for h_ND in (self.h_train, self.h_val)]


def main(settings: Settings) -> Path:
    """Time every shape with every number of workers."""
    start(settings)
    results, targets = {}, {}
    for width, num_classes in itertools.product(settings.widths, settings.classes):
        data = Data.made_up(settings.num_train, settings.num_val, width, num_classes, settings.num_concepts)
        fast, alone = ([(whole_grid(data, settings.batch_size, settings.epochs, SEEDS, jobs), 1 / settings.epochs),
                        (data.activations, SEEDS / EPOCHS)] for jobs in (settings.jobs, 1))
        shape = f"D = {width}, C = {num_classes}"
        for workers in settings.workers:
            name = f"grid epoch, {shape}, {workers} workers"
            results[name] = paired(one_by_one(settings, data, workers), fast, settings.pairs)
            if workers == 4 and num_classes in TARGETS:
                targets[name] = TARGETS[num_classes]
        if settings.jobs > 1:
            name = f"grid epoch, {shape} (1 process / {settings.jobs})"
            results[name] = paired(alone, fast, settings.pairs)
            targets[name] = (1.7, 2) if settings.jobs == 2 else (1, settings.jobs)
    return report(settings, "grid", results, targets,
                  f"the plain side ran 2 + 1 heads and was multiplied to {SEEDS} x (24 + 3)")


def whole_grid(data: Data, batch_size: int, epochs: int = 1, seeds: int = 1, jobs: int = 1) -> Callable[[], list]:
    """Stage 3 with all heads of some seeds: 24 predictors and 3 dense heads each."""
    inputs, device, bank = data.inputs(), data.bank_MD.device, Bank("Random", data.bank_MD, [])
    shares = [share for number in range(seeds) for share in
              shares_of(TrainingSettings(), inputs, bank, Seed(number, number), seeds, device, jobs)]
    weights = len(bank) * data.num_classes
    return lambda: list(train_shares(shares, inputs, Recipe(epochs, batch_size), device, jobs, weights))


def one_by_one(settings: Settings, data: Data, workers: int) -> Job:
    """One epoch of some heads, one after another; each stands for an equal share of the 24 of each
    seed, or of its 3."""
    train, val = (DataLoader(list(zip(h_ND.unbind(), y_N.unbind(), strict=True)), settings.batch_size, shuffle=shuffle,
                             num_workers=workers)
                  for h_ND, y_N, shuffle in ((data.h_train, data.y_train, True), (data.h_val, data.y_val, False)))
    share = SEEDS * len(RATIOS) * len(LEARNING_RATES) / len(PLAIN_RATIOS)
    return [*((partial(PlainHead(data, ratio).epoch, train, val), share) for ratio in PLAIN_RATIOS),
            (partial(PlainHead(data, None).epoch, train, val), SEEDS * len(LEARNING_RATES))]


class PlainHead:
    """One head as the recipe writes it: h · bankᵀ → LayerNorm → sort, threshold, mask → Linear; dense (ratio None):
    Linear alone."""

    def __init__(self, data: Data, ratio: float | None, learning_rate: float = 0.01) -> None:
        self.bank_MD = None if ratio is None else data.bank_MD
        width = data.bank_MD.shape[ratio is None]
        self.norm, self.linear = torch.nn.LayerNorm(width), torch.nn.Linear(width, data.num_classes)
        self.dropped = 0 if ratio is None else dropped_count(width, ratio)
        learned = [*self.linear.parameters(), *(self.norm.parameters() if ratio is not None else [])]
        self.optimizer = torch.optim.Adam(learned, lr=learning_rate)

    def logits(self, h_BD: torch.Tensor) -> torch.Tensor:
        """(B, C)."""
        if self.bank_MD is None:
            return self.linear(h_BD)
        a_BM = self.norm(h_BD @ self.bank_MD.T)
        magnitude = a_BM.detach().abs()
        threshold_B1 = magnitude.sort(dim=1).values[:, self.dropped, None]
        return self.linear(a_BM * (magnitude >= threshold_B1))

    def epoch(self, train: DataLoader, val: DataLoader) -> None:
        """Train and evaluate once."""
        for h_BD, y_B in train:
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.logits(h_BD), y_B).backward()
            self.optimizer.step()
        top1 = top5 = 0
        with torch.no_grad():
            for h_BD, y_B in val:
                best = self.logits(h_BD).topk(min(5, self.linear.out_features), dim=1).indices  # (B, 5)
                top1 += (best[:, 0] == y_B).sum().item()
                top5 += (best == y_B[:, None]).any(1).sum().item()


if __name__ == "__main__":
    run_script(main, Settings)
