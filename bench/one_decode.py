"""Several backbones over one data set: embedded one after another, against each image decoded once for all.

    python bench/one_decode.py                # about a minute; writes bench/results/one_decode.json

Small nets on JPEG files of 500 x 375, resized alike: reading is what they wait for. The same features either way.
"""

import argparse
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.embeddings import paint
from bench.timing import bench_parser, paired, report, start
from iis.cli import ScriptParser, count, positive, run_script
from iis.runtime import UserError

RESULT = "several backbones (one after another / one decode)"


def parser() -> ScriptParser:
    """The flags of this script."""
    script = bench_parser(__doc__.splitlines()[0], "one_decode", pairs=3)
    script.add_argument("--models", default="shufflenet_v2_x0_5,mobilenet_v3_small,resnet18", help="of torchvision")
    script.add_argument("--images", type=positive, default=96, help="how many")
    script.add_argument("--batch_size", type=positive, default=32, help="images at a time")
    script.add_argument("--workers", type=count, default=0, help="reading processes")
    return script


def main(args: argparse.Namespace) -> Path:
    """Compare the files, then time."""
    from extractor.embed import embed_together
    from extractor.targets import Target
    from iis.backbones import load_backbone
    from iis.datasets import folder_images
    from iis.embedding_file import load_embeddings
    from iis.layers import HEAD_INPUT, Node

    device, models = start(args), args.models.split(",")
    with tempfile.TemporaryDirectory() as folder:
        paint(Path(folder, "in"), args.images)
        images = folder_images(Path(folder, "in"), "painted", "train")
        backbones = [load_backbone(model, "none", device) for model in models]

        def targets(side: str) -> list[Target]:
            made = [Target(backbone, Node(HEAD_INPUT, backbone.head), Path(folder, side, f"{backbone.model}.pt"),
                           {"model": backbone.model}) for backbone in backbones]
            for target in made:
                target.file.unlink(missing_ok=True)
            return made

        def embed(groups: list[list[Target]]) -> None:
            with redirect_stdout(StringIO()):
                for group in groups:
                    embed_together(images, group, args.batch_size, args.workers, device)

        sides = (lambda: embed([[target] for target in targets("apart")]), lambda: embed([targets("together")]))
        result = paired(*sides, args.pairs, device)
        for backbone in backbones:
            apart, together = (load_embeddings(Path(folder, side, f"{backbone.model}.pt")).content_hash
                               for side in ("apart", "together"))
            if apart != together:
                raise UserError(f"the features of {backbone.model} differ: the timing means nothing")
    return report(args, "python bench/one_decode.py", {RESULT: result},
                  note=f"{len(models)} backbones, bit for bit the same files")


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
