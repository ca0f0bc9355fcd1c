"""Stage 2 on a GPU: how near the whole loop, from JPEG files to a finished file, comes to the forward pass alone.

    python bench/cuda_embeddings.py --device cuda         # writes bench/results/cuda_embeddings.json

ResNet-50 and ViT-B/16 (random weights) in bf16, compiled, with JPEG files decoded on the device. Plain: the same
compiled model again and again on one batch that lies on the device. Fast: the loop of extractor/embed.py. The ratio is
the share of the forward-only rate that the loop reaches. Every second image is 500 x 375, the others have sizes of
their own, because images of one size are resized together; `--distinct` files are painted, the rest are links.
"""

import argparse
import os
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.segments import painted
from bench.timing import bench_parser, paired, peak_memory, report, start
from iis.cli import ScriptParser, count, positive, run_script

MUST_AND_AIM = (0.8, 0.95)


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "cuda_embeddings", pairs=3)
    script.set_defaults(device="cuda")
    script.add_argument("--models", default="resnet50,vit_b_16", help="of torchvision")
    script.add_argument("--images", type=positive, default=32768, help="how many; whole batches of them are taken")
    script.add_argument("--distinct", type=positive, default=512, help="files painted")
    script.add_argument("--batch_size", type=positive, default=256, help="images at a time")
    script.add_argument("--workers", type=count, default=16, help="processes that read")
    script.add_argument("--precision", choices=["fp32", "bf16"], default="bf16", help="of the forward pass")
    script.add_argument("--decoder", choices=["pil", "gpu"], default="gpu", help="who decodes")
    script.add_argument("--uncompiled", action="store_true", help="both sides without torch.compile")
    return script


def main(args: argparse.Namespace) -> Path:
    """Paint, then time each model."""
    device, results = start(args), {}
    args.images = max(1, args.images // args.batch_size) * args.batch_size
    with tempfile.TemporaryDirectory() as folder:
        paint_sizes(Path(folder, "in"), args.images, args.distinct)
        for model in args.models.split(","):
            result = measure(model, Path(folder), device, args)
            results[f"embeddings, {model} (forward only / whole loop)"] = result
    note = (f"{args.precision}, decoder {args.decoder}, {'un' * args.uncompiled}compiled; ratio: the share of the "
            "forward-only rate that the loop reaches")
    return report(args, "python bench/cuda_embeddings.py", results, dict.fromkeys(results, MUST_AND_AIM), note)


def measure(model: str, folder: Path, device: object, args: argparse.Namespace) -> dict:
    """Both sides of one model, prepared and compiled once."""
    import torch

    from extractor.batches import precise
    from extractor.embed import embed_together
    from extractor.targets import Target, prepared
    from iis.backbones import load_backbone
    from iis.datasets import folder_images
    from iis.layers import HEAD_INPUT, Node

    backbone = load_backbone(model, "none", device)
    if args.decoder == "gpu":
        backbone.preprocessing = {**backbone.preprocessing, "decoder": "gpu"}
    target = prepared(Target(backbone, Node(HEAD_INPUT, backbone.head), folder / f"{model}.pt", {"model": model},
                             args.precision, compiled=0 if args.uncompiled else args.batch_size))
    images, crop = folder_images(folder / "in", "painted", "train"), backbone.preprocessing["crop"]
    x = torch.randn(args.batch_size, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)

    def forward_only() -> None:
        with torch.inference_mode(), precise(device, args.precision):
            for _ in range(len(images) // args.batch_size):
                target.forward(x)

    def loop() -> None:
        target.file.unlink(missing_ok=True)
        with redirect_stdout(StringIO()):
            embed_together(images, [replace(target)], args.batch_size, args.workers, device)

    result = paired(forward_only, loop, args.pairs, device)
    rates = {"forward_images_s": len(images) / result["plain_s"],
             "loop_images_s": len(images) / result["fast_s"]}
    print(f"{model}: {rates['forward_images_s']:,.1f} images/s forward only, {rates['loop_images_s']:,.1f} "
          "through the whole loop")
    return {**result, **rates, "compiled": bool(getattr(target.forward, "works", False)), **peak_memory(device)}


def paint_sizes(folder: Path, images: int, distinct: int) -> None:
    """JPEG files in two class folders: every second 500 x 375, the others of 250 to 500 pixels a side."""
    image = painted(500, 500)
    for number in range(images):
        file = folder / f"class {number // 2 % 2}" / f"{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number >= distinct:
            same = number % distinct
            os.link(folder / f"class {same // 2 % 2}" / f"{same:06d}.jpg", file)
            continue
        size = (500, 375) if number % 2 == 0 else (500 - 37 * number % 251, 500 - 91 * number % 251)
        image.rotate(number % 360).crop((0, 0, *size)).save(file, quality=90)


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
