"""Stage 2 in images per second: the loop one would write, against extractor/embed.py with the same resampler.

    python bench/embeddings.py                # some 5 minutes; writes bench/results/embeddings.json
    python bench/embeddings.py --together shufflenet_v2_x0_5,mobilenet_v3_small,resnet18    # about a minute;
                                              # each model by itself, against one decode for all: together.json

JPEG files of 500 x 375 -> ResNet-50 (random weights) at 224 pixels -> features. Plain: PIL, torchvision's transforms
and a DataLoader that hands on float tensors; the model as it is; a list of features, joined at the end. Suite: from
the same files to a finished embedding file, in fp32 and under --precision bf16; on a CPU that is a process per core.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torchvision import datasets, transforms

from bench.segments import painted
from bench.timing import BenchSettings, paired, report, start
from extractor.embed import Target, embed_together, prepared
from iis.backbones import Backbone, load_backbone
from iis.cli import count, positive, run_script, setting
from iis.datasets import ImageSet, folder_images
from iis.embedding_file import load_embeddings
from iis.layers import HEAD_INPUT, Node
from iis.runtime import UserError

FP32, BF16 = "embeddings (plain / suite)", "embeddings (plain / suite, bf16)"
TOGETHER = "several backbones (one after another / one decode)"


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Models and images"""

    pairs: int = setting(3, "timed pairs, after one warm-up of each side", type=positive)
    model: str = setting("resnet50", "of torchvision")
    together: tuple[str, ...] = setting((), "time these models with one decode instead", metavar="A,B,C")
    images: int = setting(256, "how many; on a CPU a process of the suite takes 64 at a time", type=positive)
    batch_size: int = setting(32, "images at a time", type=positive)
    workers: int = setting(4, "processes that read for the plain loop; of the suite's at most, and one per core",
                           type=count)


def main(settings: Settings) -> Path:
    """Paint, compare the features, then time."""
    device = start(settings)
    with tempfile.TemporaryDirectory() as folder:
        images = paint(Path(folder, "in"), settings.images)
        return (together if settings.together else against_plain)(settings, images, Path(folder), device)


def against_plain(settings: Settings, images: ImageSet, folder: Path, device: torch.device) -> Path:
    """The plain loop against the suite's, in fp32 and bf16."""
    backbone = load_backbone(settings.model, "none", device)

    def plain() -> torch.Tensor:
        return plain_features(images.root, backbone, device, settings)

    results, off, expected = {}, {}, plain()
    for name, precision in ((FP32, "fp32"), (BF16, "bf16")):
        # Prepared once, as for a whole data set: 0.3 s, which a million images do not feel and 64 would.
        target = prepared(target_of(load_backbone(settings.model, "none", device), folder, precision))
        suite = embedding([target], images, settings.batch_size, settings.workers, device)
        suite()
        difference = load_embeddings(target.file).features_ND - expected
        off[precision] = float(difference.abs().max() / expected.abs().max())
        if precision == "fp32" and off[precision] > 1e-4:
            raise UserError(f"the features differ by {off[precision]:.1e} of the largest: a timing would mean nothing")
        results[name] = paired(plain, suite, settings.pairs, device)
    note = (f"{len(images)} images; largest difference of a feature, in units of the largest feature: "
            f"{off['fp32']:.1e} in fp32, {off['bf16']:.1e} in bf16")
    return report(settings, "embeddings", results, {FP32: (1, 1.3), BF16: (1, 3)}, note)


def together(settings: Settings, images: ImageSet, folder: Path, device: torch.device) -> Path:
    """Several backbones one after another, against one decode for all; their files must be the same bit for bit."""
    backbones = [load_backbone(model, "none", device) for model in settings.together]
    apart, joint = ([target_of(backbone, folder / side) for backbone in backbones] for side in ("apart", "joint"))
    *each, one_decode = (embedding(targets, images, settings.batch_size, settings.workers, device)
                         for targets in (*([target] for target in apart), joint))
    result = paired(lambda: [embed() for embed in each], one_decode, settings.pairs, device)
    for one, other in zip(apart, joint, strict=True):
        if load_embeddings(one.file).content_hash != load_embeddings(other.file).content_hash:
            raise UserError(f"the features of {one.file.stem} differ: the timing means nothing")
    return report(settings, "embeddings", {TOGETHER: result}, file="together",
                  note=f"{len(backbones)} backbones, bit for bit the same files")


def target_of(backbone: Backbone, folder: Path, precision: str = "fp32", compiled: int = 0) -> Target:
    """The file of a backbone's representations."""
    return Target(backbone, Node(HEAD_INPUT, backbone.head), folder / f"{backbone.model}_{precision}.pt",
                  {"model": backbone.model}, precision, compiled=compiled)


def embedding(targets: list[Target], images: ImageSet, batch_size: int, workers: int,
              device: torch.device) -> Callable[[], None]:
    """A function that embeds anew, in silence."""
    def run() -> None:
        for target in targets:
            target.file.unlink(missing_ok=True)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            embed_together(images, targets, batch_size, workers, device)

    return run


def paint(folder: Path, images: int) -> ImageSet:
    """JPEG files of 500 x 375 in two class folders."""
    image = painted()
    for number in range(images):
        file = folder / f"class {number % 2}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.rotate(number % 360).save(file, quality=90)
    return folder_images(folder, "painted", "train")


def plain_features(folder: Path, backbone: Backbone, device: torch.device, settings: Settings) -> torch.Tensor:
    """(N, D) on the CPU, class by class."""
    geometry = backbone.preprocessing
    transform = transforms.Compose([
        transforms.Resize(geometry["resize"], transforms.InterpolationMode(geometry["interpolation"])),
        transforms.CenterCrop(geometry["crop"]), transforms.ToTensor(),
        transforms.Normalize(geometry["mean"], geometry["std"])])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(folder, transform), settings.batch_size,
                                         num_workers=settings.workers)
    features, found = [], []
    hook = backbone.module.get_submodule(backbone.head).register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for images, _ in loader:
            backbone.module(images.to(device))
            features.append(found.pop().cpu())
    hook.remove()
    return torch.cat(features)


if __name__ == "__main__":
    run_script(main, Settings)
