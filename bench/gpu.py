"""Everything at ImageNet's shape on a GPU: the grid and End2End with and without TF32, and embeddings.

    python bench/gpu.py                      # at most --minutes; writes bench/results/gpu.json; not run on a GPU so far
    python bench/gpu.py --parts embeddings --models resnet50
    python bench/gpu.py --parts heads --profile                   # and where a step's time goes: gpu_profile.txt

Prints each part as it ends, then a table with what each must and should reach. A part that would not end in time, at
the speed it must reach, is left out. Heads and End2End: features drawn on the device (1,281,167 x 2048 in float16:
5.2 GB), `--epochs` of the 30 run and multiplied, one more before as a warm-up. End2End passes twice over `--fraction`
of the training set, and the second is multiplied. Embeddings, in bf16 and compiled: the ratio is the share of the
forward-only rate that the whole loop reaches, from JPEG files to a finished file. PIL decodes on the processor, so 0.8
needs many cores.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.embeddings import embedding, paint, target_of
from bench.grid import EPOCHS, Data, whole_grid
from bench.timing import BenchSettings, line_of, machine, paired, report, seconds, start
from extractor.batches import precise
from extractor.embed import prepared
from iis.backbones import load_backbone
from iis.cli import count, part, positive, run_script, setting, words
from iis.embedding_file import Embeddings
from iis.grid import LEARNING_RATES, RATIOS, Cell
from iis.runtime import float32_products, write_text
from IP_training.banks import Seed
from IP_training.end2end import learned_heads
from IP_training.inputs import Inputs
from IP_training.train_heads import Recipe, fit_grid

# Must, aim: seconds of 30 epochs; of embeddings the share of the forward-only rate.
TARGETS = {"heads, fp32": (75, 45), "heads, tf32": (40, 20), "End2End, fp32": (720, 180), "End2End, tf32": (300, 180)}
EMBEDDINGS = (0.8, 0.95)
# To plan with, and no measurements: images a second of the slower side, and seconds that a model takes to compile.
EMBEDDED, COMPILING = 2000, 60
PROFILED = 20  # steps


@dataclass(kw_only=True)
class Settings(BenchSettings):
    """Shape of ImageNet"""

    pairs: int = setting(2, "timed pairs of embeddings, after one as a warm-up", type=positive)
    device: str = setting("cuda", "where all runs")
    minutes: float = setting(8.0, "that all may take; parts that would not end in time are left out")
    profile: bool = setting(False, f"also write what {PROFILED} steps of the heads spend their time on, on the device "
                            "and on the host")
    parts: tuple[str, ...] = setting(("heads", "End2End", "embeddings"), "what to time", type=words)
    num_train: int = setting(1_281_167, "N", type=positive)
    num_val: int = setting(50_000, "validation images", type=positive)
    width: int = setting(2048, "D", type=positive)
    num_concepts: int = setting(200, "M", type=positive)
    num_classes: int = setting(1000, "C", type=positive)
    num_elements: int = setting(20_000, "E, of End2End", type=positive)
    batch_size: int = setting(1024, "samples per step", type=positive)
    epochs: int = setting(3, f"epochs of heads that are run; their mean is multiplied to {EPOCHS}", type=positive)
    fraction: float = setting(0.1, "of an End2End epoch that is run, twice", type=part)
    models: tuple[str, ...] = setting(("resnet50", "vit_b_16"), "of torchvision, to embed with", type=words)
    images: int = setting(32_768, "to embed; whole batches of them are taken", type=positive)
    distinct: int = setting(512, "of these painted; the others repeat them", type=positive)
    embedding_batch: int = setting(256, "images at a time", type=positive)
    workers: int = setting(16, "processes that read images", type=count)
    precision: Literal["fp32", "tf32", "bf16"] = setting("bf16", "of embeddings")
    uncompiled: bool = setting(False, "embeddings without torch.compile, on both sides")


def main(settings: Settings) -> Path:
    """Time the parts."""
    started, device, results, data, profiles = time.monotonic(), start(settings), {}, None, []
    for name, guess_s, measure in parts(settings, device):
        left_s = 60 * settings.minutes - (time.monotonic() - started)
        if guess_s > left_s:
            print(f"{name} is left out: it may take {guess_s:.0f} s of the {max(left_s, 0):.0f} s left of --minutes "
                  f"{settings.minutes:g}; run it alone with --parts", flush=True)
            continue
        if not name.startswith("embeddings"):
            data = data or Data.made_up(settings.num_train, settings.num_val, settings.width, settings.num_classes,
                                        settings.num_concepts, device, torch.float16)
            with float32_products(name.endswith("tf32")):
                results[name] = measure(data)
                if settings.profile and name.startswith("heads"):
                    profiles.append(f"{name}\n{profiled(settings, data, device)}")
        else:
            data = None  # its memory is wanted
            results[name] = measure()
        must, aim = TARGETS.get(name, EMBEDDINGS)
        line = line_of(name, {**results[name], "must": must, "aim": aim}, machine(settings.device))
        print(" | ".join(line.values()), flush=True)
    targets = {name: TARGETS.get(name, EMBEDDINGS) for name in results}
    out = report(settings, "gpu", results, targets, f"{EPOCHS} epochs, from {settings.epochs} (heads) and "
                 f"{settings.fraction:g} (End2End); random features; embeddings in {settings.precision}; "
                 f"{(time.monotonic() - started) / 60:.1f} minutes in all")
    if profiles:
        write_text(out.with_name(f"{out.stem}_profile.txt"), "\n".join(profiles))
    return out


def parts(settings: Settings, device: torch.device) -> Iterator[tuple[str, float, Callable[..., dict[str, Any]]]]:
    """(name, seconds it may take at the speed it must reach, function that measures it) of the parts asked for."""
    size = settings.num_train / Settings.num_train  # of the set that the targets are for
    for name, (must_s, _) in TARGETS.items():
        kind, run = name.split(",")[0], must_s / EPOCHS * size
        if kind in settings.parts and kind == "heads":
            yield name, (settings.epochs + 2) * run, partial(heads, settings, device=device)
        elif kind in settings.parts:
            yield name, 2 * settings.fraction * run + 5, partial(end2end, settings, device=device)
    for model in settings.models if "embeddings" in settings.parts else ():
        run = (settings.pairs + 1) * settings.images * (1 / EMBEDDED + 1 / EMBEDDED)
        yield (f"embeddings, {model} (forward only / whole loop)", run + (0 if settings.uncompiled else COMPILING),
               partial(embeddings, settings, model, device))


def heads(settings: Settings, data: Data, device: torch.device) -> dict[str, float]:
    """Seconds of 30 epochs of 24 + 3 heads, with evaluation and what is done once."""
    once = seconds(data.activations, device)
    whole_grid(data, settings.batch_size)()
    epoch = seconds(whole_grid(data, settings.batch_size, settings.epochs), device) / settings.epochs
    return {"seconds": once + EPOCHS * epoch, "epoch_s": epoch, "once_s": once}


def profiled(settings: Settings, data: Data, device: torch.device) -> str:
    """Tables of what some steps of all heads spend most time on: the device first, then the host."""
    rows = PROFILED * settings.batch_size
    few = replace(data, h_train=data.h_train[:rows], y_train=data.y_train[:rows], h_val=data.h_val[:1],
                  y_val=data.y_val[:1])
    whole_grid(few, settings.batch_size)()
    run, activities = whole_grid(few, settings.batch_size), [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        seconds(run, device)
    events = seen.key_averages()
    return "\n".join(f"{PROFILED} steps, by time on the {side}\n" + events.table(
        sort_by=f"self_{'cpu' if side == 'host' else 'device'}_time_total", row_limit=15, max_name_column_width=60)
        for side in ("device", "host"))


def end2end(settings: Settings, data: Data, device: torch.device) -> dict[str, float]:
    """Seconds of 30 epochs of all 24 cells, from a fraction of one; evaluation included."""
    rows, held = (max(1, round(settings.fraction * len(y_N))) for y_N in (data.y_train, data.y_val))
    y_train, y_val, names = data.y_train[:rows], data.y_val[:held], [""] * settings.num_classes
    elements_ED = torch.randn(settings.num_elements, settings.width)
    inputs = Inputs(*(Embeddings(h_ND, y_N, names, []) for h_ND, y_N in (
        (data.h_train[:rows], y_train), (data.h_val[:held], y_val), (elements_ED, torch.empty(0)))), names)
    groups_of, _ = learned_heads(inputs, settings.num_concepts, Seed(0, 0), device, "mask", "first")
    groups = groups_of([Cell(0, ratio, rate) for ratio in RATIOS for rate in LEARNING_RATES])
    fit = partial(fit_grid, groups, y_train, y_val, Recipe(1, settings.batch_size), 0)
    fit()
    epoch = seconds(fit, device) / settings.fraction
    return {"seconds": EPOCHS * epoch, "epoch_s": epoch}


def embeddings(settings: Settings, model: str, device: torch.device) -> dict[str, Any]:
    """The prepared model on one batch that lies on the device, against the whole loop."""
    size = settings.embedding_batch
    with tempfile.TemporaryDirectory() as folder:
        images = paint(Path(folder, "in"), settings.distinct)
        images = images.only([row % settings.distinct for row in range(max(1, settings.images // size) * size)])
        backbone = load_backbone(model, "none", device)
        target = prepared(target_of(backbone, Path(folder), settings.precision, 0 if settings.uncompiled else size))
        x = torch.randn(size, 3, *[backbone.preprocessing["crop"]] * 2, device=device)
        x = x.contiguous(memory_format=torch.channels_last)

        def forward_only() -> None:
            with torch.inference_mode(), precise(device, settings.precision):
                for _ in range(len(images) // size):
                    target.forward(x)

        loop = embedding([target], images, size, settings.workers, device)
        result = paired(forward_only, loop, settings.pairs, device)
    rates = {f"{side}_images_s": len(images) / result[f"{side}_s"] for side in ("plain", "fast")}
    return {**result, **rates, "compiled": bool(getattr(target.forward, "works", False))}


if __name__ == "__main__":
    run_script(main, Settings)
