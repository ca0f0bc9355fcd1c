"""Fixtures that many tests share: small embeddings with a known structure, and scripts run as users run them."""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

from iis.embedding_file import Embeddings, content_hash, save_embeddings

ROOT = Path(__file__).resolve().parents[1]
# Tests send Ctrl-C to what they start, which would inherit that it is ignored, as it is for jobs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The arrays here are tiny, and CI's cores are shared: threads would wait for one another, those of BLAS too.
torch.set_num_threads(1)
threadpool_limits(1)

# Dense heads are kept for later runs, in this process and in those it starts: nothing of it lands in the repository.
# Set before any test imports IP_training; the folder goes with the process.
CACHES = tempfile.TemporaryDirectory(prefix="iis_tests_")
os.environ["IIS_DENSE_HEADS"] = f"{CACHES.name}/dense_heads"


@pytest.fixture(autouse=True)
def own_dense_heads(monkeypatch, tmp_path):
    """A test keeps its dense heads to itself."""
    monkeypatch.setenv("IIS_DENSE_HEADS", str(tmp_path / "dense_heads"))


PROVENANCE = {"model": "toy", "weights": "toy", "weights_hash": "0123", "node": "head_input", "preprocessing": {},
              "precision": "fp32", "dataset": "toy"}


def clusters(count: int, split: str, width: int = 12, classes: int = 4, seed: int = 0) -> Embeddings:
    """`count` noisy samples around `classes` centres in `width` dimensions, the same centres for every split."""
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(len(split) + 10 * seed))
    labels = torch.arange(count) % classes
    elements = {"kind": "segments"} if split == "elements" else None
    features = centres[labels] + 1.5 * noise
    return Embeddings(features, labels, [f"class {label}" for label in range(classes)],
                      [f"class {int(label)}/{split}_{row}.png" for row, label in enumerate(labels)],
                      {**PROVENANCE, "split": split, "elements": elements}, content_hash=content_hash(features, labels))


@pytest.fixture
def toy(tmp_path):
    """A folder with train.pt (300), val.pt (200) and elements.pkl (80) of one toy backbone."""
    for split, count, name in (("train", 300, "train.pt"), ("val", 200, "val.pt"), ("elements", 80, "elements.pkl")):
        save_embeddings(tmp_path / name, clusters(count, split))
    return tmp_path


def run_script(script: str, *flags: object, cwd: Path = ROOT, root: Path = ROOT, **environment: str):
    """Run a script of the tree at `root` as a user would; the finished process with its output as text."""
    return subprocess.run([sys.executable, str(root / script), *map(str, flags)], cwd=cwd, text=True, timeout=280,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


@pytest.fixture
def here(monkeypatch, capsys):
    """`run_script` in this process, without the three seconds of starting one: here(script, *flags) -> (exit status,
    stdout, stderr)."""
    def call(script: str, *flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, flags)])
        before, status = signal.getsignal(signal.SIGTERM), 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
        finally:
            signal.signal(signal.SIGTERM, before)
        return status, *capsys.readouterr()
    return call


def prototype_flags(folder: Path, save_dir: Path, **changes: object) -> list[object]:
    """Flags of a short Prototype run on the `toy` files."""
    flags = {"model_name": "toy", "dataset": "toy", "concept_path": folder / "elements.pkl", "device": "cpu",
             "train_pt": folder / "train.pt", "val_pt": folder / "val.pt", "num_concepts": 20, "seeds": 1, "n_epoch": 2,
             "batch_size": 64, "save_dir": save_dir, **changes}
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", value)]
