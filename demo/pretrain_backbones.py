"""Pre-train the three small backbones on `shapes`, in about a minute on two CPU cores.

    python demo/pretrain_backbones.py           # after demo/paint_shapes.py; 85 s of one core in all, two at a time

Val top-1 with seed 0: 65 % (small), 82 % (medium), 95 % (large).

Checkpoints are kept along the way as NAME_epochE.pth (plain state dicts), the last also as NAME.pth; NAME.json tells
the val top-1 of each, the seconds and the settings. A backbone that is done is kept. Images enter as everywhere in
the suite: divided by 255, ImageNet mean and std. Turning and mirroring keep every class rule, so they augment.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import nn
from torch.nn import functional as F

from demo import small_backbones
from demo.shapes_world import ATTRIBUTES
from iis.cli import ScriptParser, path, run_script
from iis.datasets import ImageSet, folder_images
from iis.runtime import (
    ROOT,
    UserError,
    available_cores,
    choose_device,
    nearest,
    read_json,
    seed_of,
    write_json,
    write_whole,
)

EPOCHS = {"shapes_small": 12, "shapes_medium": 14, "shapes_large": 14}
# These are taught every attribute beside the class, through heads that are thrown away: a class needs only warm or
# cool, and without this the representation keeps little of which colour it was.
TAUGHT_ATTRIBUTES = ("shapes_large",)
KEPT = (1, 2, 4, 8)  # and the last
BATCH, PEAK_RATE = 32, 0.005  # Adam, one cycle
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--models", nargs="+", default=list(EPOCHS), help="which of the backbones")
    script.add_argument("--epochs", type=int, help=f"passes over the images; left out: {EPOCHS}")
    script.add_argument("--seed", type=int, default=0, help="first weights, batch order and augmentation")
    script.add_argument("--device", help="cpu, cuda or cuda:N; left out: cuda when there is one")
    script.add_argument("--root", type=path, default=ROOT / "datasets" / "shapes", help="folder of `shapes`")
    script.add_argument("--out", type=path, default=ROOT / "demo" / "weights", help="folder for the checkpoints")
    return script


def main(settings: argparse.Namespace | None = None) -> None:
    """Train every backbone that is not done."""
    settings = settings or parser().settings()
    for name in settings.models:
        if name not in EPOCHS:
            raise UserError(f"--models {name} is not a built-in backbone{nearest(name, EPOCHS)}")
    if settings.epochs is not None and settings.epochs < 1:
        raise UserError(f"--epochs {settings.epochs} should be at least 1")
    if not (settings.root / "captions.json").exists():
        raise UserError(f"{settings.root} holds no finished `shapes`: run python demo/paint_shapes.py first")
    data = read_json(settings.root / "manifest.json")
    plans = {name: {"seed": settings.seed, "epochs": settings.epochs or EPOCHS[name], "data": data,
                    "attributes": name in TAUGHT_ATTRIBUTES}
             for name in reversed(EPOCHS) if name in settings.models}  # the slowest first
    missing = [name for name in plans if not is_done(name, plans[name], settings.out)]
    if not missing:
        return
    device = choose_device(settings.device)
    jobs = [(name, plans[name], settings.root, settings.out, device) for name in missing]
    if len(jobs) == 1 or device.type != "cpu":
        for job in jobs:
            pretrain(*job)
        return
    with ProcessPoolExecutor(min(len(jobs), available_cores()), get_context("spawn")) as pool:
        list(pool.map(pretrain, *zip(*jobs, strict=True)))


def is_done(name: str, plan: dict, out: Path) -> bool:
    """Whether `out` holds this backbone, trained to this plan; another plan there is a `UserError`."""
    if not (out / f"{name}.json").exists():
        return False
    before = read_json(out / f"{name}.json")
    for key, value in plan.items():
        if before.get(key) != value:
            raise UserError(f"{out} holds {name} trained with {key} = {before[key]}, and this run has {key} = {value}; "
                            f"choose another --out, or delete {name}.json there")
    if not all((out / file).exists() for file in [f"{name}.pth", *before["checkpoints"]]):
        return False
    print(f"{name}: done before, val top-1 {100 * before['val_top1']:.1f} %")
    return True


def load(images: ImageSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All images as floats, normalised, and their labels: (N, 3, 64, 64) and (N,)."""
    import numpy as np

    bytes_NHWC = torch.from_numpy(np.stack([np.asarray(images.open(index)) for index in range(len(images))]))
    images_NCHW = bytes_NHWC.to(device).permute(0, 3, 1, 2).float() / 255  # (N, 3, 64, 64), channels last in memory
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return (images_NCHW - mean) / std, torch.tensor(images.labels, device=device)


def pretrain(name: str, plan: dict, root: Path, out: Path, device: torch.device) -> None:
    """Train one backbone and write its checkpoints and, last, its JSON.

    One thread: on busy cores two threads wait for each other at every layer (several times slower), and the
    weights do not depend on the number of cores.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    torch.manual_seed(seed_of(plan["seed"], name))
    (images_NCHW, labels_N), val = (load(folder_images(root / split, "shapes", split), device)
                                    for split in ("train", "val"))
    net = getattr(small_backbones, name)().to(images_NCHW.device, memory_format=torch.channels_last)
    epochs, steps = plan["epochs"], -(-len(labels_N) // BATCH)
    extra, targets_NK = nn.ModuleList(), None
    if plan["attributes"]:
        extra.extend(nn.Linear(net.fc.in_features, len(words)) for words in ATTRIBUTES.values())
        extra, targets_NK = extra.to(device), attribute_targets(root).to(device)
    optimizer = torch.optim.Adam([*net.parameters(), *extra.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * steps)
    top1 = {}
    for epoch in range(1, epochs + 1):
        net.train()
        for rows_B in torch.randperm(len(labels_N)).to(labels_N.device).split(BATCH):
            h_BD = net[:-1](turned(images_NCHW[rows_B]))  # (B, D)
            loss = F.cross_entropy(net.fc(h_BD), labels_N[rows_B])
            if extra:
                loss = loss + torch.stack([F.cross_entropy(head(h_BD), targets_NK[rows_B, k])
                                           for k, head in enumerate(extra)]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch in KEPT or epoch == epochs:
            file = f"{name}_epoch{epoch}.pth"
            save(net, out / file)
            top1[file] = accuracy(net, *val)
            print(f"{name}: epoch {epoch:2d} of {epochs}, val top-1 {100 * top1[file]:.1f} %, "
                  f"{time.perf_counter() - start:.1f} s", flush=True)
    save(net, out / f"{name}.pth")
    write_json(out / f"{name}.json", {**plan, "val_top1": top1[file], "checkpoints": top1,
                                      "seconds": round(time.perf_counter() - start, 1)})


def attribute_targets(root: Path) -> torch.Tensor:
    """Of every training image, in the order of the class folders, the word of each attribute group: (N, K) int64."""
    images = read_json(root / "captions.json")["images"]
    names = folder_images(root / "train", "shapes", "train").names
    true = [images[f"train/{name}"]["concepts"] for name in names]
    return torch.tensor([[group.index(word) for group, word in zip(ATTRIBUTES.values(), words, strict=True)]
                         for words in true])


def turned(images_BCHW: torch.Tensor) -> torch.Tensor:
    """The batch, mirrored and turned by a random multiple of 90 degrees (one draw for the batch)."""
    turns, mirror = int(torch.randint(4, ())), int(torch.randint(2, ()))
    turned_BCHW = torch.rot90(images_BCHW, turns, (2, 3))
    return (turned_BCHW.flip(3) if mirror else turned_BCHW).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(net: nn.Module, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Top-1, a fraction."""
    net.eval()
    correct = [(net(images).argmax(1) == labels).sum()
            for images, labels in zip(images_NCHW.split(500), labels_N.split(500), strict=True)]
    return float(torch.stack(correct).sum()) / len(labels_N)


def save(net: nn.Module, file: Path) -> None:
    """Write the plain state dict, whole or not at all."""
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    write_whole(file, lambda temporary: torch.save(state, temporary))


if __name__ == "__main__":
    run_script(main)
