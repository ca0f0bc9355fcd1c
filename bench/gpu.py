"""Everything at ImageNet's shape on a GPU: the grid and End2End with and without TF32, and embeddings.

    python bench/gpu.py                      # writes bench/results/gpu.json; not run on a GPU so far
    python bench/gpu.py --parts embeddings --models resnet50

Prints a table with what each part must and should reach. Heads and End2End: features drawn on the device (1,281,167 x
2048 in float16: 5.2 GB), `--epochs` of the 30 run and multiplied, one more before as a warm-up. End2End trains as many
cells together as the script would, and passes over `--fraction` of the training set. Embeddings, in bf16 and compiled:
the ratio is the share of the forward-only rate that the whole loop reaches, from JPEG files to a finished file. PIL
decodes on the processor, so 0.8 needs many cores.
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.embeddings import embedding, paint, target_of
from bench.grid import EPOCHS, Data, whole_grid
from bench.timing import BenchSettings, paired, report, seconds, start
from extractor.batches import precise
from extractor.embed import prepared
from iis.backbones import load_backbone
from iis.cli import count, part, positive, run_script, setting, words
from iis.embedding_file import Embeddings
from iis.grid import LEARNING_RATES, RATIOS, Cell
from IP_training.banks import Seed
from IP_training.end2end import learned_groups
from IP_training.inputs import Inputs
from IP_training.run import tf32_products
from IP_training.train_heads import Recipe, fit_grid

# Must, aim: seconds of 30 epochs; of embeddings the share of the forward-only rate.
TARGETS = {"heads, fp32": (75, 45), "heads, tf32": (40, 20), "End2End, fp32": (720, 180), "End2End, tf32": (300, 180)}
EMBEDDINGS = (0.8, 0.95)


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Shape of ImageNet"""

    pairs: int = setting(3, "timed pairs of embeddings", type=positive)
    device: str = setting("cuda", "where all runs")
    parts: tuple[str, ...] = setting(("heads", "End2End", "embeddings"), "what to time", type=words)
    num_train: int = setting(1_281_167, "N", type=positive)
    num_val: int = setting(50_000, "validation images", type=positive)
    width: int = setting(2048, "D", type=positive)
    num_concepts: int = setting(200, "M", type=positive)
    num_classes: int = setting(1000, "C", type=positive)
    num_elements: int = setting(20_000, "E, of End2End", type=positive)
    batch_size: int = setting(1024, "samples per step", type=positive)
    epochs: int = setting(3, f"epochs of heads that are run; their mean is multiplied to {EPOCHS}", type=positive)
    fraction: float = setting(0.1, "of an End2End epoch that is run", type=part)
    models: tuple[str, ...] = setting(("resnet50", "vit_b_16"), "of torchvision, to embed with", type=words)
    images: int = setting(32_768, "to embed; whole batches of them are taken", type=positive)
    distinct: int = setting(512, "of these painted; the others repeat them", type=positive)
    embedding_batch: int = setting(256, "images at a time", type=positive)
    workers: int = setting(16, "processes that read images", type=count)
    precision: Literal["fp32", "bf16"] = setting("bf16", "of embeddings")
    uncompiled: bool = setting(False, "embeddings without torch.compile, on both sides")


def main(settings: Settings) -> Path:
    """Time the parts."""
    device, results = start(settings), {}
    if {"heads", "End2End"} & set(settings.parts):
        data = Data.made_up(settings.num_train, settings.num_val, settings.width, settings.num_classes,
                            settings.num_concepts, device, torch.float16)
        for name, measure in (("heads", heads), ("End2End", end2end)):
            for precision in ("fp32", "tf32") if name in settings.parts else ():
                with tf32_products(precision == "tf32"):
                    results[f"{name}, {precision}"] = measure(settings, data, device)
        del data
    if "embeddings" in settings.parts:
        results |= embeddings(settings, device)
    targets = {name: TARGETS.get(name, EMBEDDINGS) for name in results}
    return report(settings, "gpu", results, targets, f"{EPOCHS} epochs, from {settings.epochs} (heads) and "
                 f"{settings.fraction:g} (End2End); random features; embeddings in {settings.precision}")


def heads(settings: Settings, data: Data, device: torch.device) -> dict[str, float]:
    """Seconds of 30 epochs of 24 + 3 heads, with evaluation and what is done once."""
    once = seconds(data.activations, device)
    whole_grid(data, settings.batch_size)()
    epoch = seconds(whole_grid(data, settings.batch_size, settings.epochs), device) / settings.epochs
    return {"seconds": once + EPOCHS * epoch, "epoch_s": epoch, "once_s": once}


def end2end(settings: Settings, data: Data, device: torch.device) -> dict[str, float]:
    """Seconds of 30 epochs of all 24 cells, from a fraction of one; evaluation included."""
    rows, held = (max(1, round(settings.fraction * len(y_N))) for y_N in (data.y_train, data.y_val))
    y_train, y_val, names = data.y_train[:rows], data.y_val[:held], [""] * settings.num_classes
    elements_ED = torch.randn(settings.num_elements, settings.width)
    inputs = Inputs(*(Embeddings(h_ND, y_N, names, []) for h_ND, y_N in (
        (data.h_train[:rows], y_train), (data.h_val[:held], y_val), (elements_ED, torch.empty(0)))), names)
    cells, spent = [Cell(0, ratio, rate) for ratio in RATIOS for rate in LEARNING_RATES], 0.0
    recipe = Recipe(1, settings.batch_size)
    for groups, _ in learned_groups(inputs, settings.num_concepts, Seed(0, 0), cells, device, "mask", "first"):
        spent += seconds(partial(fit_grid, groups, y_train, y_val, recipe, 0, show=False), device)
    epoch = spent / settings.fraction
    return {"seconds": EPOCHS * epoch, "epoch_s": epoch}


def embeddings(settings: Settings, device: torch.device) -> dict[str, dict]:
    """The prepared model on one batch that lies on the device, against the whole loop."""
    results, size = {}, settings.embedding_batch
    with tempfile.TemporaryDirectory() as folder:
        images = paint(Path(folder, "in"), settings.distinct)
        images = images.only([row % settings.distinct for row in range(max(1, settings.images // size) * size)])
        for model in settings.models:
            backbone = load_backbone(model, "none", device)
            target = prepared(target_of(backbone, Path(folder), settings.precision, 0 if settings.uncompiled else size))
            x = torch.randn(size, 3, *[backbone.preprocessing["crop"]] * 2, device=device)
            x = x.contiguous(memory_format=torch.channels_last)

            def forward_only(target=target, x=x) -> None:
                with torch.inference_mode(), precise(device, settings.precision):
                    for _ in range(len(images) // size):
                        target.forward(x)

            loop = embedding([target], images, size, settings.workers, device)
            result = paired(forward_only, loop, settings.pairs, device)
            rates = {f"{side}_images_s": len(images) / result[f"{side}_s"] for side in ("plain", "fast")}
            results[f"embeddings, {model} (forward only / whole loop)"] = {
                **result, **rates, "compiled": bool(getattr(target.forward, "works", False))}
    return results


if __name__ == "__main__":
    run_script(main, Settings)
