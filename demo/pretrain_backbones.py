"""Pre-train the three small backbones on `shapes`, in about a minute on two CPU cores, or several nets of each.

    python demo/pretrain_backbones.py           # after demo/paint_shapes.py; 85 s of one core in all, two at a time
    python demo/pretrain_backbones.py --tiny_clip    # and demo/train_tiny_clip.py beside them
    python demo/pretrain_backbones.py --nets 5       # seeds 0 to 4 of each: replicates, for what one net cannot say

NAME is shapes_large for seed 0 and shapes_large_seed1 for seed 1. Another processor rounds differently, so one seed
gives another net there. Checkpoints are plain state dicts: NAME_epochE.pth along the way, and the last also as
NAME.pth. NAME.json holds the val top-1 of each, the seconds and the settings. A finished backbone is kept. Turning and
mirroring keep every class rule, so they augment.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from demo import small_backbones
from demo.shapes_world import ATTRIBUTES
from iis.cli import positive, run_script, setting
from iis.datasets import folder_images
from iis.preprocessing import normalise, preprocessing
from iis.processes import Advance, in_processes, jobs_that_fit
from iis.runtime import ROOT, UserError, choose_device, float32_products, read_json, seed_of, write_json, write_whole

EPOCHS = {"shapes_small": 12, "shapes_medium": 14, "shapes_large": 14}
# These are taught every attribute beside the class, through heads that are thrown away: a class needs only warm or
# cool, and without this the representation keeps little of which colour it was.
TAUGHT_ATTRIBUTES = ("shapes_large",)
KEPT = (1, 2, 4, 8)  # and the last
BATCH, PEAK_RATE = 32, 0.005  # Adam, one cycle
BYTES = 1e9  # of a process that trains one of them


@dataclass(kw_only=True)
class ShapesSettings:
    """Training on `shapes`"""

    seed: int = setting(0, "first weights, batch order, augmentation, and which words of a caption are dropped")
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda where there is one)")
    root: Path = setting(ROOT / "datasets" / "shapes", "folder of `shapes`")
    out: Path = setting(ROOT / "demo" / "weights", "folder for the checkpoints")


@dataclass(kw_only=True)
class Settings(ShapesSettings):
    """Backbones"""

    models: tuple[str, ...] = setting(tuple(EPOCHS), "which of the backbones")
    nets: int = setting(1, "nets of each, from seed --seed on", type=positive)
    epochs: int | None = setting(None, f"passes over the images (default: {EPOCHS})", type=positive)
    tiny_clip: bool = setting(False, "train the tiny CLIP beside them, as demo/train_tiny_clip.py does")


def main(settings: Settings) -> None:
    """Train every backbone that is not done."""
    for name in settings.models:
        if name not in EPOCHS:
            raise UserError(f"--models {name} is not one of {', '.join(EPOCHS)}")
    seeds = range(settings.seed, settings.seed + settings.nets)
    plans = {net_name(name, seed): (name, plan_of(settings, settings.epochs or EPOCHS[name], seed=seed,
                                                  attributes=name in TAUGHT_ATTRIBUTES))
             for name in reversed(EPOCHS) if name in settings.models for seed in seeds}  # the slowest first
    device, tasks = choose_device(settings.device), []
    if settings.tiny_clip:  # takes longer than any backbone
        from demo import train_tiny_clip

        clip = {field.name: getattr(settings, field.name) for field in fields(ShapesSettings)}
        clip = train_tiny_clip.Settings(**clip, epochs=settings.epochs or train_tiny_clip.Settings.epochs)
        tasks.append(lambda advance: train_tiny_clip.main(clip))
    for net, (name, plan) in plans.items():
        if before := done_before(settings.out / f"{net}.json", settings.out / f"{net}.pth", plan):
            print(f"{net}: done before, val top-1 {100 * before['val_top1']:.1f} %")
        else:
            tasks.append(partial(pretrain, name, plan, settings.root, settings.out, device))
    jobs = jobs_that_fit(len(tasks), BYTES) if device.type == "cpu" else 1
    with float32_products():
        for _ in in_processes(tasks, jobs):
            pass


def net_name(name: str, seed: int) -> str:
    """shapes_large for seed 0, shapes_large_seed1 for seed 1."""
    return f"{name}_seed{seed}" if seed else name


def plan_of(settings: ShapesSettings, epochs: int, **more: int) -> dict:
    """What decides the weights. Raises `UserError` where `shapes` is not painted."""
    if not (settings.root / "captions.json").exists():
        raise UserError(f"{settings.root} holds no finished `shapes`: run python demo/paint_shapes.py first")
    return {"seed": settings.seed, "epochs": epochs, "data": read_json(settings.root / "manifest.json"), **more}


def done_before(report: Path, weights: Path, plan: dict) -> dict:
    """The report of a finished training, written last; {} where there is none. Another plan is a `UserError`."""
    if not report.exists():
        return {}
    before = read_json(report)
    for key, value in plan.items():
        if before.get(key) != value:
            raise UserError(f"{report.parent} holds {report.stem} trained with {key} = {before.get(key)}, and this run "
                            f"has {key} = {value}; choose another --out, or delete {report.name} there")
    files = [weights, *(report.parent / name for name in before.get("checkpoints", ()))]
    return before if all(file.exists() for file in files) else {}


def load(root: Path, split: str, device: torch.device, exact: dict) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """All images of a split, normalised as `exact` says, their labels and names: (N, 3, 64, 64), (N,) and N names."""
    images = folder_images(root / split, "shapes", split)
    bytes_NHWC = torch.from_numpy(np.stack([np.asarray(images.open(index)) for index in range(len(images))]))
    images_NCHW = normalise(bytes_NHWC.to(device).permute(0, 3, 1, 2), exact)  # channels last in memory
    return images_NCHW, torch.tensor(images.labels, device=device), [f"{split}/{name}" for name in images.names]


def pretrain(name: str, plan: dict, root: Path, out: Path, device: torch.device, advance: Advance) -> None:
    """Train the backbone `name` and write its checkpoints and, last, its JSON."""
    start, title = time.perf_counter(), net_name(name, plan["seed"])
    torch.manual_seed(seed_of(plan["seed"], name))
    (images_NCHW, labels_N, names), val = (load(root, split, device, preprocessing(64, 64))
                                           for split in ("train", "val"))
    net = getattr(small_backbones, name)().to(device, memory_format=torch.channels_last)
    epochs, steps = plan["epochs"], -(-len(labels_N) // BATCH)
    extra, targets_NK = nn.ModuleList(), None
    if plan["attributes"]:
        extra.extend(nn.Linear(net.fc.in_features, len(words)) for words in ATTRIBUTES.values())
        extra, targets_NK = extra.to(device), attribute_targets(root, names).to(device)
    optimizer = torch.optim.Adam([*net.parameters(), *extra.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * steps)
    top1 = {}
    for epoch in range(1, epochs + 1):
        net.train()
        for rows_B in torch.randperm(len(labels_N)).to(device).split(BATCH):
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
            file = f"{title}_epoch{epoch}.pth"
            save(net, out / file)
            top1[file] = accuracy(net, *val[:2])
            print(f"{title}: epoch {epoch:2d} of {epochs}, val top-1 {100 * top1[file]:.1f} %, "
                  f"{time.perf_counter() - start:.1f} s", flush=True)
    save(net, out / f"{title}.pth")
    write_json(out / f"{title}.json", {**plan, "val_top1": top1[file], "checkpoints": top1,
                                      "seconds": round(time.perf_counter() - start, 1)})


def attribute_targets(root: Path, names: list[str]) -> torch.Tensor:
    """The place of each image's word in every attribute group: (N, K) int64."""
    images = read_json(root / "captions.json")["images"]
    return torch.tensor([[group.index(word)
                          for group, word in zip(ATTRIBUTES.values(), images[name]["concepts"], strict=True)]
                         for name in names])


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
    run_script(main, Settings)
