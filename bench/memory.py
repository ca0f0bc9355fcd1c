"""Peak memory of stages 2 and 3 on features of ImageNet's shape, each in a process of its own.

    python bench/memory.py                    # a tenth of 1.28 million rows: 2 minutes; bench/results/memory.json
    python bench/memory.py --fraction 1 --stages 3      # all rows: 6 GB of disk while it runs, below $TMPDIR

Each stage runs at the fraction and at half of it; what it needs for all rows is the straight line through both (from a
tenth on: below 65,536 rows, stage 3 works on all of them at once). At --fraction 1 it runs on all rows alone.
Stage 2: painted images of 8 x 8 through one linear layer to D numbers: reading, placing, finishing are the real ones.
Stage 3: float16 features, memory-mapped from their file (--feature_memory 0); Random bank, M = 200, and the dense head.
Pages of memory-mapped files are not counted: the system takes them back when it needs them.
"""

import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import BenchSettings, report
from iis.cli import part, positive, run_script, setting, words

ROWS, VALIDATION = 1_280_000, 25  # of ImageNet's train; a validation row for every 25
MUST = 2, 24  # GiB, of stages 2 and 3
NOISY = 16  # a row of so many has noise, the others are zeros


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Shape of the features"""

    fraction: float = setting(0.1, f"of {ROWS:,} rows", type=part)
    width: int = setting(2048, "D", type=positive)
    classes: int = setting(1000, "C", type=positive)
    stages: tuple[str, ...] = setting(("2", "3"), "which of them", type=words)


def main(settings: Settings) -> Path:
    """Run each stage at two sizes."""
    results, targets = {}, {}
    for number, stage, before, must in (("2", stage2, None, MUST[0]), ("3", stage3, features, MUST[1])):
        if number not in settings.stages:
            continue
        rows, half = (max(50, int(share * settings.fraction * ROWS)) for share in (1, 0.5))
        peaks = {count: alone(settings, stage, before, count) for count in ([half, rows] if rows < ROWS else [rows])}
        results |= {f"stage {number}, peak of memory, {count:,} images": {"gib": gib} for count, gib in peaks.items()}
        name = f"stage {number}, peak of memory, {rows:,} images"
        if rows < ROWS:
            name = f"stage {number}, peak of memory, {ROWS:,} images (straight line)"
            grown = max(0.0, peaks[rows] - peaks[half])
            results[name] = {"gib": peaks[rows] + grown / (rows - half) * (ROWS - rows)}
        targets[name] = must, must
    return report(settings, "memory", results, targets, "without pages of mapped files")


def alone(settings: Settings, stage: Callable, before: Callable | None, rows: int) -> float:
    """The peak, GiB, of a stage in a process of its own; `before` makes its inputs in another."""
    with (tempfile.TemporaryDirectory() as folder,
          ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool):
        if before:
            pool.submit(before, settings, rows, Path(folder)).result()
        return pool.submit(peak, stage, settings, rows, Path(folder)).result()


def peak(stage: Callable, *given: object) -> float:
    """GiB of this process's own memory at most, while the stage runs; from Linux's /proc."""
    found = [0]

    def watch() -> None:
        while True:
            found.append(int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    stage(*given)
    return max(found) / 2**20


def stage2(settings: Settings, rows: int, folder: Path) -> None:
    """Embed `rows` painted images."""
    import torch
    from PIL import Image
    from torch import nn

    from extractor.embed import Target, embed_together
    from iis.backbones import Backbone
    from iis.datasets import ImageSet
    from iis.layers import HEAD_INPUT, Node
    from iis.preprocessing import preprocessing

    class Painted(ImageSet):
        def open(self, index: int) -> Image.Image:
            return Image.new("RGB", (8, 8), (index % 251, index % 241, index % 239))

    net = nn.Sequential(nn.Flatten(), nn.Linear(192, settings.width), nn.ReLU(), nn.Linear(settings.width, 2)).eval()
    backbone = Backbone("painted", net.requires_grad_(False), "3", settings.width, 2, preprocessing(8, 8), "none", "0")
    names = [f"n{row % 1000:08d}/n{row % 1000:08d}_{row:08d}.JPEG" for row in range(rows)]
    images = Painted("painted", "train", ["a", "b"], [row % 2 for row in range(rows)], names, folder)
    target = Target(backbone, Node(HEAD_INPUT, "3"), folder / "x.pt", {"model": "painted"})
    embed_together(images, [target], 256, 0, torch.device("cpu"))


def features(settings: Settings, rows: int, folder: Path) -> None:
    """Write `rows` rows of float16 for train, and a part of that for val: noise in one of `NOISY` rows, zeros in the
    others, which take no disk until they are copied into the embedding file."""
    import numpy as np
    import torch

    from iis.embedding_file import Embeddings, save_embeddings

    noise = np.random.default_rng(0).standard_normal((4096, settings.width), np.float32).astype(np.float16)
    for split, count in (("train", rows), ("val", max(2, rows // VALIDATION))):
        labels = np.arange(count) % settings.classes
        features_ND = np.memmap(folder / f"{split}.f16", np.float16, "w+", shape=(count, settings.width))
        for start in range(0, count, NOISY * len(noise)):
            block = features_ND[start:start + NOISY * len(noise):NOISY]
            block[:] = noise[:len(block)]
        save_embeddings(folder / f"{split}.pt", Embeddings(
            torch.from_numpy(features_ND), torch.from_numpy(labels), [f"{c:04d}" for c in range(settings.classes)],
            [f"n{label:08d}/{row:08d}.JPEG" for row, label in enumerate(labels)]))
        (folder / f"{split}.f16").unlink()


def stage3(settings: Settings, rows: int, folder: Path) -> None:
    """Train one ratio and the dense head for one epoch on these features."""
    from iis.cli import parse
    from IP_training import IP_Bank_training

    IP_Bank_training.main(parse(IP_Bank_training.Settings, [
        "--kind", "Random", "--model_name", "made_up", "--dataset", "made_up", "--train_pt", str(folder / "train.pt"),
        "--val_pt", str(folder / "val.pt"), "--num_concepts", "200", "--ratios", "0.5", "--learning_rates", "0.01",
        "--seeds", "1", "--n_epoch", "1", "--device", "cpu", "--feature_memory", "0", "--dense_heads_dir",
        str(folder / "dense_heads"), "--save_dir", str(folder / "out")]))



if __name__ == "__main__":
    run_script(main, Settings)
