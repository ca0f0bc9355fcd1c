"""Peak memory of stages 2 and 3 on features of ImageNet's shape, in a process of their own.

    python bench/memory.py                    # a tenth of 1.28 million rows; writes bench/results/memory.json
    python bench/memory.py --fraction 0.5     # half of them: 8 GB of disk while it runs

Each stage runs at the fraction and at half of it; what it needs for all rows is the straight line through both.
Stage 2: painted images of 8 x 8 through one linear layer to D numbers: reading, placing, finishing are the real ones.
Stage 3: float16 features, read from their file (--feature_memory 0); Random bank, M = 200, and the dense head.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import bench_parser, report
from iis.cli import ScriptParser, part, path, positive, run_script
from iis.runtime import make_output_folder

ROWS, VALIDATION = 1_280_000, 25  # of ImageNet's train; a validation row for every 25
STAGE2, STAGE3 = "stage 2, peak of memory", "stage 3, peak of memory"
MUST = {STAGE2: 2, STAGE3: 24}  # GiB


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "memory")
    script.add_argument("--fraction", type=part, default=0.1, help=f"of {ROWS:,} rows")
    script.add_argument("--width", type=positive, default=2048, help="D")
    script.add_argument("--classes", type=positive, default=1000, help="C")
    script.add_argument("--scratch", type=path, default=path(tempfile.gettempdir()), help="folder for the files, which "
                      "are removed")
    script.add_argument("--child", choices=("stage2", "stage3"), help=argparse.SUPPRESS)
    script.add_argument("--rows", type=positive, help=argparse.SUPPRESS)
    return script


def main(args: argparse.Namespace) -> Path | None:
    """Run each stage twice in processes of their own."""
    if args.child:
        {"stage2": stage2, "stage3": stage3}[args.child](args)
        return None
    make_output_folder(args.scratch)
    results = {}
    for name, stage in ((STAGE2, "stage2"), (STAGE3, "stage3")):
        small, large = (_child(args, stage, max(50, int(share * args.fraction * ROWS))) for share in (0.5, 1))
        slope = max(0.0, (large["peak_gib"] - small["peak_gib"]) / (large["rows"] - small["rows"]))
        large.update(peak_gib_at_half=small["peak_gib"], must_gib=MUST[name],
                     peak_gib_at_all_rows=large["peak_gib"] + slope * (ROWS - large["rows"]))
        results[name] = large
        print(f"{name}: {large['peak_gib']:.2f} GiB at {large['rows']:,} rows, {small['peak_gib']:.2f} at half; "
              f"{large['peak_gib_at_all_rows']:.2f} at {ROWS:,} by the straight line (must be below {MUST[name]})")
    return report(args, "python bench/memory.py", results, note="peak resident set, pages of mapped files included; "
                  "a straight line through two sizes tells all rows")


def _child(args: argparse.Namespace, stage: str, rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="iis-memory", dir=args.scratch) as folder:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, __file__, "--child", stage, "--rows", str(rows), "--scratch", folder,
                               "--width", str(args.width), "--classes", str(args.classes)], capture_output=True,
                              text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        peak = json.loads(done.stdout.splitlines()[-1])
        return {"rows": rows, "peak_gib": peak, "seconds": time.perf_counter() - began}


def _say_peak() -> None:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 30))


def stage2(args: argparse.Namespace) -> None:
    """Embed `rows` painted images."""
    import torch
    from PIL import Image
    from torch import nn

    from extractor.embed import embed
    from iis.backbones import Backbone
    from iis.datasets import ImageSet
    from iis.layers import HEAD_INPUT, Node
    from iis.preprocessing import preprocessing

    class Painted(ImageSet):
        def open(self, index: int) -> Image.Image:
            return Image.new("RGB", (8, 8), (index % 251, index % 241, index % 239))

    net = nn.Sequential(nn.Flatten(), nn.Linear(192, args.width), nn.ReLU(), nn.Linear(args.width, 2)).eval()
    backbone = Backbone("painted", net.requires_grad_(False), "3", args.width, 2, preprocessing(8, 8), "none", "0")
    names = [f"n{row % 1000:08d}/n{row % 1000:08d}_{row:08d}.JPEG" for row in range(args.rows)]
    images = Painted("painted", "train", ["a", "b"], [row % 2 for row in range(args.rows)], names, args.scratch)
    embed(images, backbone, Node(HEAD_INPUT, "3"), args.scratch / "x.pt", {"model": "painted"}, 256, 0,
          torch.device("cpu"))
    _say_peak()


def stage3(args: argparse.Namespace) -> None:
    """Train one ratio and the dense head for one epoch on `rows` generated rows of float16."""
    import numpy as np
    import torch

    from extractor.mapped import mapped
    from iis.embedding_file import Embeddings, save_embeddings
    from IP_training import IP_Bank_training, training_run

    rng = np.random.default_rng(0)
    for split, rows in (("train", args.rows), ("val", max(2, args.rows // VALIDATION))):
        raw = args.scratch / "raw.f16"
        labels = np.arange(rows) % args.classes
        with open(raw, "wb") as handle:
            for start in range(0, rows, 4096):
                block = rng.standard_normal((min(4096, rows - start), args.width), dtype=np.float32)
                block[:, 0] += labels[start:start + 4096]
                handle.write(block.astype(np.float16).tobytes())
        with mapped(raw, rows, args.width, np.float16) as features:
            save_embeddings(args.scratch / f"{split}.pt", Embeddings(
                torch.from_numpy(features), torch.from_numpy(labels), [f"{c:04d}" for c in range(args.classes)],
                [f"n{label:08d}/{row:08d}.JPEG" for row, label in enumerate(labels)]))
        del features
        raw.unlink()
    training_run.DENSE_HEADS = args.scratch / "dense_heads"
    script = IP_Bank_training
    script.main(script.parser().settings([
        "--kind", "Random", "--model_name", "generated", "--dataset", "generated", "--train_pt",
        str(args.scratch / "train.pt"), "--val_pt", str(args.scratch / "val.pt"), "--num_concepts", "200", "--ratios",
        "0.5", "--learning_rates", "0.01", "--seeds", "1", "--n_epoch", "1", "--device", "cpu", "--feature_memory", "0",
        "--save_dir", str(args.scratch / "out")]))
    _say_peak()


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
