"""Fine-tuning by interpretability maximisation (paper, section 4.1, Eq. 8):

    loss = CE(original head on h) + λ · CE(interpretation predictor on h · bankᵀ, at ratio s)

The backbone, its original head and the predictor train together. The bank is made of the same M visual elements all
along, embedded anew before each epoch; no gradient goes through it. Under the other objectives no gradient of the
predictor reaches the backbone, which then trains by CE(original head) alone. All else is the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from iis.backbones import Backbone, replace_head
from iis.datasets import ImageSet, UnreadableImage
from iis.grid import DENSE, Cell
from iis.layers import HEAD_INPUT, Node, represent
from iis.preprocessing import normalise, to_uint8
from iis.runtime import UserError, progress, seed_of, torch_rng, write_whole
from IP_training.banks import balanced_choice, unit_rows
from IP_training.predictor import EPSILON, InterpretationHeads, LinearHeads, interpret
from IP_training.train_heads import HeadGroup, Recipe, fit_grid

if TYPE_CHECKING:
    from IP_training.IP_Finetuning import Settings

MOMENTUM = 0.9
EVAL_BATCH = 500  # images without gradients at a time


def losses(module: nn.Module, node: Node, predictor: InterpretationHeads, bank_MD: torch.Tensor, x: torch.Tensor,
           y_B: torch.Tensor, through: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two cross-entropies of Eq. 8, and which images each head gets right, (B,) bool.

    x: (B, 3, H, W), normalised. through: whether the predictor's gradient reaches the backbone.
    """
    h_BD = represent(module, node, x)
    dense_BC = module.get_submodule(node.module)(h_BD)
    z_BM = F.layer_norm((h_BD if through else h_BD.detach()) @ bank_MD.T, (len(bank_MD),), eps=EPSILON)
    ip_BC = predictor(z_BM)[0].T
    return (F.cross_entropy(dense_BC, y_B), F.cross_entropy(ip_BC, y_B), dense_BC.argmax(1) == y_B,
            ip_BC.argmax(1) == y_B)


class _Means:
    """Means of the `losses` of batches, over their images; summed on the device, so that no batch waits for it."""

    def __init__(self) -> None:
        self.sums, self.seen = 0.0, 0

    def add(self, dense: torch.Tensor, ip: torch.Tensor, dense_correct: torch.Tensor, ip_correct: torch.Tensor) -> None:
        count = len(dense_correct)
        self.seen += count
        self.sums += torch.stack([count * dense.detach(), count * ip.detach(), dense_correct.sum(),
                                  ip_correct.sum()]).double()

    def named(self, prefix: str = "") -> dict[str, float]:
        names = (f"{prefix}{name}" for name in ("dense_loss", "ip_loss", "dense_top1", "ip_top1"))
        return dict(zip(names, (self.sums / self.seen).tolist(), strict=True))


class FineTuning:
    """One run: a backbone, its predictor, their optimizers and the log of finished epochs."""

    def __init__(self, backbone: Backbone, train: Feed, val: Feed, elements: torch.Tensor, recipe: Settings,
                 device: torch.device, new_head: bool = False) -> None:
        """new_head: put a head for the data set's classes in the place of the original one, and fit it first."""
        self.new_head, self.num_classes = new_head, len(train.images.class_names)
        self.recipe, self.train, self.val, self.elements, self.device = recipe, train, val, elements, device
        self.settings, self.node = backbone.preprocessing, Node(HEAD_INPUT, backbone.head)
        # Channels last is a quarter faster for convolutions on a CPU, and what a GPU's tensor cores want.
        if new_head:
            replace_head(backbone.module, backbone.head, self.num_classes)
        self.module = backbone.module.requires_grad_(True).to(memory_format=torch.channels_last)
        self.predictor = InterpretationHeads([recipe.sparsity], len(elements), self.num_classes,
                                             torch_rng(recipe.seed, "fine-tuning head")).to(device)
        decay = recipe.weight_decay if recipe.objective == "weight_decay" else 0.0
        weights = self.module.parameters()
        own = (torch.optim.SGD(weights, recipe.learning_rate, MOMENTUM, weight_decay=decay)
               if recipe.optimizer == "sgd" else torch.optim.AdamW(weights, recipe.learning_rate, weight_decay=decay))
        self.optimizers = [own, torch.optim.Adam(self.predictor.parameters(), recipe.ip_learning_rate)]
        self.steps = -(-len(train.rows) // recipe.batch_size)  # an epoch
        self.log: list[dict[str, Any]] = []

    def run(self, state_file: Path, finished: Callable[[list[dict[str, Any]]], None] = lambda log: None) -> None:
        """All epochs, from the one after the last in `state_file`. `finished(log)` is called after each; the first
        entry of the log, epoch 0, is the backbone as it came with the predictor fitted to it.

        Raises `UserError` for a loss that is not finite.
        """
        self._restore(state_file)
        if not self.log:
            self._fit_heads()
            self._end_epoch({}, state_file, finished)
        done = len(self.log) - 1
        with progress(total=self.steps * self.recipe.epochs, initial=self.steps * done, unit="step",
                      desc=f"{self.recipe.objective}, seed {self.recipe.seed}") as bar:  # closed before a message
            for epoch in range(done, self.recipe.epochs):
                self._end_epoch(self._epoch(epoch, bar), state_file, finished)
                last = self.log[-1]
                bar.set_postfix_str(f"val original head {last['dense_top1']:.4f} IP {last['ip_top1']:.4f}")

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        recipe, bank_MD = self.recipe, self.bank()
        through = recipe.objective == "interpretability"
        rows, seed = self.train.rows, (recipe.seed, "fine-tuning", epoch)
        order = rows[torch.randperm(len(rows), generator=torch_rng(*seed, "batch order"))]
        generator = torch_rng(*seed, "augmentation")
        means = _Means()
        self.module.train()  # batch norm learns on; what a layer draws (drop path) follows from seed and epoch
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_of(*seed, "layers"))
            for step, (batch, pixels) in enumerate(self.train.batches(order, recipe.batch_size)):
                self._set_rates((epoch * self.steps + step) / (recipe.epochs * self.steps))
                x = self._input(augmented(pixels, recipe.mirror, recipe.shift, generator))
                dense, ip, *correct = self._losses(x, self.train.labels_N[batch], bank_MD, through)
                loss = dense + recipe.interpretability_weight * ip
                if not torch.isfinite(loss):
                    raise UserError(f"the loss is {loss.item()} in epoch {epoch + 1}, step {step + 1}: choose another "
                                    f"--save_dir and a smaller --learning_rate than {recipe.learning_rate:g} or "
                                    f"--ip_learning_rate than {recipe.ip_learning_rate:g}")
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                loss.backward()
                for optimizer in self.optimizers:
                    optimizer.step()
                means.add(dense, ip, *correct)
                bar.update()
        return means.named("train_")

    def _losses(self, x: torch.Tensor, y_B: torch.Tensor, bank_MD: torch.Tensor, through: bool) -> tuple:
        return losses(self.module, self.node, self.predictor, bank_MD, x, y_B.to(self.device), through)

    def _set_rates(self, progress: float) -> None:
        """Half a cosine from the first learning rate (progress 0) to 0 (1): a function of the step, so that a resumed
        run needs no schedule's state."""
        first = self.recipe.learning_rate, self.recipe.ip_learning_rate
        for optimizer, rate in zip(self.optimizers, first, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2

    def _input(self, pixels: torch.Tensor) -> torch.Tensor:
        x = normalise(pixels.to(self.device), self.settings)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def bank(self) -> torch.Tensor:
        """The M elements as the backbone sees them now: unit vectors (M, D). Leaves the backbone in eval mode."""
        self.module.eval()
        return unit_rows(torch.cat([represent(self.module, self.node, self._input(part))
                                    for part in self.elements.split(EVAL_BATCH)]))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Top-1 and mean cross-entropy of both heads on the images of `val`, with the bank as it is now."""
        bank_MD, means = self.bank(), _Means()
        for rows, pixels in self.val.batches(self.val.rows, EVAL_BATCH):
            means.add(*self._losses(self._input(pixels), self.val.labels_N[rows], bank_MD, False))
        return means.named()

    def _fit_heads(self) -> None:
        """Fit the predictor, and a new head, to the frozen backbone by stage 3's recipe: from random weights their
        first gradients would move the backbone for nothing."""
        recipe, bank_MD, parts, labels = self.recipe, self.bank(), [], []
        with torch.no_grad():
            for rows, pixels in self.train.batches(self.train.rows, EVAL_BATCH):
                parts.append(represent(self.module, self.node, self._input(pixels)))
                labels.append(self.train.labels_N[rows])
        h_ND, y_N = torch.cat(parts), torch.cat(labels).to(self.device)
        inputs = {self.predictor: (recipe.sparsity, interpret(h_ND, bank_MD))}
        if self.new_head:
            linear = LinearHeads(1, h_ND.shape[1], self.num_classes, torch_rng(recipe.seed, "fine-tuning new head"))
            inputs[linear.to(self.device)] = DENSE, h_ND
        # Their last epoch is used, so what they are "validated" on decides nothing.
        fit_grid([HeadGroup(heads, [Cell(recipe.seed, ratio, recipe.ip_learning_rate)], x_NW, x_NW[:1])
                  for heads, (ratio, x_NW) in inputs.items()], y_N, y_N[:1], Recipe(), recipe.seed)
        if self.new_head:
            self.module.get_submodule(self.node.module).load_state_dict(linear.state_of(0))

    def _end_epoch(self, measured: dict[str, float], file: Path, finished: Callable) -> None:
        self.log.append({"epoch": len(self.log), **self.evaluate(), **measured})
        state = {"log": self.log, "module": self.module.state_dict(), "predictor": self.predictor.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        write_whole(file, lambda temporary: torch.save(state, temporary))
        finished(self.log)

    def _restore(self, file: Path) -> None:
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except Exception:
            raise UserError(f"{file} cannot be read; delete it and start again") from None
        self.module.load_state_dict(state["module"])
        self.predictor.load_state_dict(state["predictor"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.log = state["log"]


# ---- images ----


def chosen_images(images: ImageSet, count: int, seed: int) -> ImageSet:
    """`count` of the images, balanced over classes and seeded, in their own order; all for 0 or too large a count."""
    if not 0 < count < len(images):
        return images
    return images.only(sorted(balanced_choice(images.labels, count, seed, "fine-tuning pictures")))


def held_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """(the rest, a `share` of the images, balanced over classes and seeded), each in its own order. Raises `UserError`
    where either is empty."""
    count = round(share * len(images))
    if not 0 < count < len(images):
        raise UserError(f"--holdout {share:g} leaves {count} of {len(images)} training images to evaluate on and "
                        f"{len(images) - count} to train on; choose another")
    held = set(balanced_choice(images.labels, count, seed, "fine-tuning holdout"))
    rows = range(len(images))
    return images.only([row for row in rows if row not in held]), images.only(sorted(held))


def chosen_elements(elements: ImageSet, settings: dict[str, Any], count: int,
                    seed: int) -> tuple[torch.Tensor, list[str]]:
    """M readable elements, balanced over classes and seeded: uint8 (M, 3, H, W) and their names. M is `count`, or
    all where there are fewer. Raises `UserError` where none can be read."""
    tensors, names = [], []
    for row in balanced_choice(elements.labels, len(elements), seed, "fine-tuning bank"):
        if len(names) == count:
            break
        try:
            tensors.append(to_uint8(elements.open(row), settings))
        except UnreadableImage:
            continue
        names.append(elements.names[row])
    if not names:
        raise UserError(f"none of the {len(elements)} elements in {elements.root} can be read: run stage 1 again")
    return torch.stack(tensors), names


class _Decoded(Dataset):
    """Batch i: its rows and uint8 (B, 3, H, W), without the images that cannot be read; None where none can."""

    def __init__(self, images: ImageSet, settings: dict[str, Any], batches: Sequence[torch.Tensor]) -> None:
        self.images, self.settings, self.batches = images, settings, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        rows, pixels = [], []
        for row in self.batches[i].tolist():
            try:
                pixels.append(to_uint8(self.images.open(row), self.settings))
                rows.append(row)
            except UnreadableImage:
                continue
        return (torch.tensor(rows), torch.stack(pixels)) if rows else None


class Feed:
    """Batches of N labelled images as uint8, from memory where they take at most `cache_gb`, else from disk.

    labels_N (N,) int64. `rows`: those that can be read, as far as known: all until they have been read once.
    """

    def __init__(self, images: ImageSet, settings: dict[str, Any], workers: int = 0, cache_gb: float = 4.0) -> None:
        self.images, self.settings, self.labels_N = images, settings, torch.tensor(images.labels)
        self.workers = min(workers, os.cpu_count() or 1)
        self.rows, self.cache = torch.arange(len(images)), None
        side = settings["crop"]
        if len(images) * 3 * side * side <= cache_gb * 1e9:
            cache, read = torch.empty(len(images), 3, side, side, dtype=torch.uint8), []
            for rows, pixels in progress(self.batches(self.rows, 256), desc=f"reading {images.split}", unit="batch",
                                         total=-(-len(images) // 256), leave=False):
                cache[rows] = pixels
                read.append(rows)
            if not read:
                raise UserError(f"none of the {len(images)} {images.split} images of {images.dataset} can be read")
            self.rows, self.cache = torch.cat(read).sort().values, cache
            if len(self.rows) < len(images):
                print(f"{len(images) - len(self.rows)} {images.split} images cannot be read and are left out")

    def batches(self, order: torch.Tensor, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(rows (B,), uint8 (B, 3, H, W)) for the rows of `order`, one after another; what cannot be read is left
        out, so B may be smaller than `batch_size`."""
        parts = order.split(batch_size)
        if self.cache is not None:
            yield from ((rows, self.cache[rows]) for rows in parts)
            return
        decoded = _Decoded(self.images, self.settings, parts)
        yield from filter(None, DataLoader(decoded, batch_size=None, num_workers=self.workers))


def augmented(pixels: torch.Tensor, mirror: float, shift: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 (B, 3, H, W), each image mirrored with probability `mirror` and moved by up to `shift` pixels each way,
    with zeros from outside. Draws on the CPU from `generator`."""
    count, _, height, width = pixels.shape
    if mirror:
        flip_B = torch.rand(count, generator=generator) < mirror
        pixels = torch.where(flip_B[:, None, None, None], pixels.flip(3), pixels)
    if shift:
        moves_2B = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
        y_BH, x_BW = (moves + torch.arange(size) for moves, size in zip(moves_2B, (height, width), strict=True))
        padded = torch.nn.functional.pad(pixels, [shift] * 4)
        each = torch.arange(count)[:, None, None]
        pixels = padded.permute(0, 2, 3, 1)[each, y_BH[:, :, None], x_BW[:, None]].permute(0, 3, 1, 2)  # (B, 3, H, W)
    return pixels
