"""Every stage beside busy neighbours: its script alone on the machine, then beside one busy process per core.

    python bench/busy.py                      # about 3 minutes on 2 cores; writes bench/results/busy.json

Each script runs as a user starts it, with its start of Python and PyTorch, on made-up data. With one neighbour per core
a script gets half of the machine: twice the time is its share. More is time lost by threads that wait for each other.
"""

import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.segments import painted
from bench.timing import BenchSettings, report, seconds, spread
from iis.cli import positive, run_script, setting
from iis.runtime import ROOT, UserError, available_cores

AT_MOST = 3, 2.5  # must and aim: times the quiet run's seconds
CLASSES, WIDTH = 10, 64  # of the features of stage 3: small heads, for which threads have the least to do


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Sizes: each script should take 5 to 15 s when it is quiet"""

    pairs: int = setting(1, "timed pairs, a quiet and a busy run each", type=positive)
    neighbours: int = setting(available_cores(), "busy processes of one thread", type=positive)
    stages: int = setting(4, "only the first so many", type=positive)
    images: int = setting(30, "of 500 x 375 that stage 1 cuts; stage 2 embeds their segments", type=positive)
    rows: int = setting(10_000, "features that stage 3 trains on", type=positive)
    epochs: int = setting(5, "of stage 3", type=positive)


def main(settings: Settings) -> Path:
    """Run every script quiet and busy, in turn."""
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(settings, folder)
        for what, command in commands(settings, folder).items():
            if int(what.split()[1][0]) > settings.stages:
                break
            timed = []
            for pair in range(settings.pairs):
                quiet_s = seconds(partial(run, command, folder / f"quiet{pair}"))
                with neighbours(settings.neighbours):
                    timed.append((quiet_s, seconds(partial(run, command, folder / f"busy{pair}"))))
            results[what] = {**spread([busy_s / quiet_s for quiet_s, busy_s in timed]),
                             **{side: statistics.median(values) for side, values in
                                zip(("quiet_s", "busy_s"), zip(*timed, strict=True), strict=True)}}
    return report(settings, "busy", results, dict.fromkeys(results, AT_MOST),
                  f"beside {settings.neighbours} busy processes")


def commands(settings: Settings, folder: Path) -> dict[str, str]:
    """{what: command line}, in the order in which one makes what the next needs; OUT stands for a run's own folder."""
    grid = (f"--model_name made_up --dataset made_up --train_pt {folder}/train.pt --val_pt {folder}/val.pt "
            f"--device cpu --num_concepts 200 --n_epoch {settings.epochs} --dense_heads_dir OUT/dense_heads")
    return {
        "stage 1: segments": f"extractor/segment_extractor.py --data_root {folder}/images --save_root OUT/segments",
        "stage 2: elements, ResNet-18": "extractor/visual_element_emb_extractor.py --model resnet18 --weights none "
        f"--device cpu --data-path {folder}/quiet0/segments --save_root OUT/embs",
        "stage 3: Random bank": f"IP_training/IP_Bank_training.py --kind Random {grid} --save_dir OUT/banks/random",
        "stage 3: Cluster bank": f"IP_training/IP_Cluster_training.py {grid} --concept_path {folder}/elements.pkl "
        "--save_dir OUT/banks/cluster",
        "stage 4: two ledgers": "iis_computing.py --model_root OUT/banks --bootstrap 20000"}


def run(command: str, out: Path) -> None:
    """One script from its start to its end. Raises `UserError` with its last line where it fails."""
    script, *flags = command.replace("OUT", str(out)).split()
    done = subprocess.run([sys.executable, ROOT / script, *flags], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise UserError(f"{script} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """`count` processes that compute without end, for as long as the block runs."""
    processes = [multiprocessing.get_context("fork").Process(target=_spin, args=(os.getpid(),), daemon=True)
                 for _ in range(count)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            if process.pid:
                process.kill()
                process.join()


def _spin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    while os.getppid() == parent:  # however that one may end
        sum(range(100_000))


def make_inputs(settings: Settings, folder: Path) -> None:
    """Images for stage 1, and for stage 3 features of train, val and elements with classes that can be told apart."""
    import torch

    from iis.embedding_file import Embeddings, save_embeddings

    image = painted()
    for number in range(settings.images):
        place = folder / "images" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.jpg")
    generator = torch.Generator().manual_seed(0)
    centres_CD = torch.randn(CLASSES, WIDTH, generator=generator)
    for file, count in (("train.pt", settings.rows), ("val.pt", settings.rows // 5), ("elements.pkl", settings.rows)):
        labels_N = torch.arange(count) % CLASSES
        features_ND = centres_CD[labels_N] + 2 * torch.randn(count, WIDTH, generator=generator)
        save_embeddings(folder / file, Embeddings(features_ND, labels_N, [f"class {c}" for c in range(CLASSES)],
                                                  [f"{file}/{row}.jpg" for row in range(count)]))


if __name__ == "__main__":
    run_script(main, Settings)
