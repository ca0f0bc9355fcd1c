"""Stage 2 in images per second: the loop one would write, against extractor/embed.py with the same resampler.

    python bench/embeddings.py                # under 2 minutes; writes bench/results/embeddings.json

JPEG files of 500 x 375 -> ResNet-50 (random weights) at 224 pixels -> features. Plain: PIL, torchvision's transforms
and a DataLoader that hands on float tensors; the model as it is; a list of features, joined at the end. Suite: from
the same files to a finished embedding file, in fp32 and under --precision bf16.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.segments import painted
from bench.timing import bench_parser, paired, report, start
from iis.cli import ScriptParser, count, positive, run_script
from iis.runtime import UserError

FP32, BF16 = "embeddings (plain / suite)", "embeddings (plain / suite, bf16)"
CLOSE = 1e-4  # of the largest feature


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "embeddings", pairs=3)
    script.add_argument("--model", default="resnet50", help="of torchvision")
    script.add_argument("--images", type=positive, default=64, help="how many")
    script.add_argument("--batch_size", type=positive, default=32, help="images at a time")
    script.add_argument("--workers", type=count, default=4, help="of either side; the suite starts one per 4 cores at "
                      "most, where the model runs on the CPU too")
    return script


def main(args: argparse.Namespace) -> Path:
    """Paint, compare the features, then time."""
    import torch

    from iis.backbones import load_backbone

    device = start(args)
    with tempfile.TemporaryDirectory() as folder:
        paint(Path(folder, "in"), args.images)
        load = lambda: load_backbone(args.model, "none", device)  # noqa: E731
        plain_backbone = load()
        plain = lambda: plain_features(Path(folder, "in"), plain_backbone, device, args)  # noqa: E731
        suite = {precision: suite_features(Path(folder), load(), device, args, precision)
                 for precision in ("fp32", "bf16")}
        expected, largest = plain(), {}
        for precision, embed in suite.items():
            largest[precision] = float((embed() - expected).abs().max() / expected.abs().max())
        if largest["fp32"] > CLOSE:
            raise UserError(f"the features differ by {largest['fp32']:.1e} of the largest: a timing would mean nothing")
        results = {name: paired(plain, suite[precision], args.pairs, device)
                   for name, precision in ((FP32, "fp32"), (BF16, "bf16"))}
    for result in results.values():
        result.update(plain_images_s=args.images / result["plain_s"],
                      fast_images_s=args.images / result["fast_s"])
        print(f"{result['plain_images_s']:.1f} and {result['fast_images_s']:.1f} images/s")
    note = (f"largest difference of a feature, in units of the largest feature: {largest['fp32']:.1e} in fp32, "
            f"{largest['bf16']:.1e} in bf16; {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    return report(args, "python bench/embeddings.py", results, {FP32: (1.3, 1.3), BF16: (1.3, 3)}, note)


def paint(folder: Path, images: int) -> None:
    """JPEG files of 500 x 375 in two class folders."""
    image = painted(500, 375)
    for number in range(images):
        file = folder / f"class {number % 2}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.rotate(number % 360).save(file, quality=90)


def plain_features(folder: Path, backbone, device, args: argparse.Namespace):
    """(N, D) on the CPU, class by class."""
    import torch
    from torchvision import datasets, transforms

    geometry = backbone.preprocessing
    transform = transforms.Compose([
        transforms.Resize(geometry["resize"], transforms.InterpolationMode(geometry["interpolation"])),
        transforms.CenterCrop(geometry["crop"]), transforms.ToTensor(),
        transforms.Normalize(geometry["mean"], geometry["std"])])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(folder, transform), args.batch_size,
                                         num_workers=args.workers)
    features, found = [], []
    hook = backbone.module.get_submodule(backbone.head).register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for images, _ in loader:
            backbone.module(images.to(device))
            features.append(found.pop().cpu())
    hook.remove()
    return torch.cat(features)


def suite_features(folder: Path, backbone, device, args: argparse.Namespace, precision: str):
    """A function that embeds anew and gives the file's features (N, D)."""
    from contextlib import redirect_stdout
    from io import StringIO

    from extractor.embed import embed_together
    from extractor.targets import Target, prepared
    from iis.datasets import folder_images
    from iis.embedding_file import load_embeddings
    from iis.layers import HEAD_INPUT, Node

    # Prepared once, as for a whole data set: 0.3 s, which a million images do not feel and 64 would.
    target = prepared(Target(backbone, Node(HEAD_INPUT, backbone.head), folder / f"{precision}.pt",
                             {"model": backbone.model}, precision))
    images = folder_images(folder / "in", "painted", "train")

    def run():
        target.file.unlink(missing_ok=True)
        with redirect_stdout(StringIO()):
            embed_together(images, [target], args.batch_size, args.workers, device)
        return load_embeddings(target.file).features_ND

    return run


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
