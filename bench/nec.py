"""Accuracy at NEC with many classes: λ solved, passes over the data and seconds of a seed; extrapolated to ImageNet.

    OMP_NUM_THREADS=1 python bench/nec.py                                              # writes bench/results/nec.json
    OMP_NUM_THREADS=1 python bench/nec.py --num_classes 1000 --images 5000 --num_concepts 50

The images are clusters in a space whose directions differ in variance, the bank random directions. The seconds at
ImageNet are an extrapolation: as many passes, each as long as one at its M = 200 and C = 1000 on 16,384 random rows,
times N; what a step takes beside its pass is left out. It is made only from a problem of more classes than the
solver's `PRECISE`: with fewer most of the work is in products, which are no passes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.timing import BenchSettings, report, seconds, start
from iis.cli import positive, run_script, setting
from IP_training.elastic_net import PRECISE, ElasticNet, Fit
from reproduction.lib.nec import LEVELS, Layer, at_levels

N, M, C, ROWS = 1_281_167, 200, 1000, 16_384  # of ImageNet; of the pass that is timed


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Size of a problem"""

    num_classes: int = setting(100, "C", type=positive)
    images: int = setting(4_000, "N, of training", type=positive)
    num_concepts: int = setting(60, "M", type=positive)
    width: int = setting(256, "D", type=positive)


class Counted(ElasticNet):
    """A problem that notes the passes of what it solves."""

    def solve(self, lam: float, *args: object, **kwargs: object) -> Fit:
        fit = super().solve(lam, *args, **kwargs)
        self.notes = [*getattr(self, "notes", []), fit.passes]
        print(f"λ {lam:.3g}: {fit.passes} passes, {int((fit.W_CM != 0).sum())} weights", flush=True)
        return fit


def main(settings: Settings) -> Path:
    """Solve all levels of one seed."""
    device, generator = start(settings), torch.Generator().manual_seed(0)
    spread_D = torch.arange(1, settings.width + 1).pow(-0.5)
    y_N = torch.arange(settings.images) % settings.num_classes
    centres_CD = torch.randn(settings.num_classes, settings.width, generator=generator)
    h_ND = (centres_CD[y_N] + torch.randn(settings.images, settings.width, generator=generator)) * spread_D
    x_NM = h_ND @ torch.randn(settings.width, settings.num_concepts, generator=generator)
    problem = Counted(((x_NM - x_NM.mean(0)) / x_NM.std(0)).to(device), y_N.to(device), settings.num_classes)
    layers: dict[int, Layer | str] = {}
    taken = seconds(lambda: layers.update(at_levels(problem)), device)
    reached = [level for level in LEVELS if isinstance(layers[level], Layer)]
    passes = sum(problem.notes)
    name = (f"accuracy at NEC, C = {settings.num_classes:,}, N = {settings.images:,}, M = {settings.num_concepts}: "
            f"{len(problem.notes)} λ, {passes} passes")
    print(f"levels reached: {reached}; {passes / len(problem.notes):.1f} passes for one λ")
    large = ElasticNet(torch.randn(ROWS, M, generator=generator).to(device), (torch.arange(ROWS) % C).to(device), C)
    large.largest_lam()  # warm-up
    one = seconds(large.largest_lam, device)
    results = {name: {"seconds": taken}, f"one pass, C = {C:,}, N = {ROWS:,}, M = {M}": {"seconds": one}}
    if settings.num_classes > PRECISE:
        results[f"{passes} such passes at N = {N:,} (extrapolated)"] = {"seconds": passes * one * N / ROWS}
    return report(settings, "nec", results)


if __name__ == "__main__":
    run_script(main, Settings)
