"""The IIS from Python, without files: arrays in, a result out. The numbers are those of the scripts.

Nothing is written, no global setting is changed, and what a script prints as a warning is a `warnings.warn`. Only
here and in `iis/banks.py` does iis/ reach stage 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from iis.embedding_file import Embeddings, as_embeddings
from iis.grid import RATIOS
from iis.layers import HEAD_INPUT, Node, find_head, represent, resolve
from iis.lift import Lift, lift
from iis.plots import arr_figure
from iis.preprocessing import normalise, preprocessing, to_uint8
from iis.results import cell_of
from iis.runtime import UserError, choose_device, float32_products, progress
from iis.summary import summarise

if TYPE_CHECKING:
    from pandas import DataFrame

    from IP_training.banks import Bank, MakeBank

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Result:
    """What `score` found. iis: mean over seeds (0 to 0.98); std: over seeds, ddof 1, None for one seed; interval: 95 %
    bootstrap over validation images; curve: {sparsity ratio: mean ARR}; dense: mean top-1 of the dense heads, a
    fraction; remarks: what to know before using the number; summary: everything that `iis_computing.py` writes, with
    None for what is undefined (`iis.summary.summarise`); rows: the ledger, one dictionary per head."""

    iis: float
    std: float | None
    interval: tuple[float, float]
    curve: dict[float, float]
    dense: float
    remarks: list[str]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def area_log_k(self) -> float:
        """Area under ARR over log k, mean over seeds: 1 for a curve that never falls (`iis.equations.area_log_k`)."""
        return self.summary["area_log_k"]["mean"]

    def lift(self, control: Result) -> Lift:
        """Lift over the result of bank="random" on the same features with equal M, seeds and recipe. Raises `UserError`
        where these differ."""
        return lift(self.rows, control.rows, self.summary["bootstrap"]["draws"], "the control")

    def frame(self) -> DataFrame:
        """One row per ratio, the dense head first: accuracies and ARR, mean and std over seeds."""
        from pandas import DataFrame

        return DataFrame(self.summary["table"])

    def plot(self) -> Any:
        """The ARR curve as a matplotlib figure."""
        label = f"{self.summary['bank']}, M = {self.summary['num_concepts']}"
        curve = {"label": label, "ratios": self.summary["ratios"], "arr": self.summary["curves"]["best"]["arr"]}
        return arr_figure({f"IIS = {self.iis:.4f}": [curve]})


def score(x_train: Array, y_train: Array | Sequence, x_val: Array, y_val: Array | Sequence,
          bank: str | MakeBank | Bank | Array = "random", num_concepts: int = 200, *, seeds: int = 3,
          ratios: Sequence[float] = RATIOS, recipe: str = "published", learning_rates: Sequence[float] | None = None,
          epochs: int | None = None, batch_size: int | None = None, holdout: float = 0.0, sparsifier: str = "mask",
          draws: int = 1000, device: str | None = None, tf32: bool = False, show_progress: bool = True) -> Result:
    """The Inherent Interpretability Score of representations x (N, D), float16 to 64, with labels y (N,).

    bank: "random" (with `num_concepts`), what a function of `iis.banks` returns, or M x D concept vectors. Labels are
    class numbers or names. recipe: "published" or "converged"; it decides learning_rates, epochs and batch_size where
    they are None. draws: resamples of the bootstrap. tf32: whether products on CUDA may be TF32. Raises `UserError` (an
    Exception) for input without a meaning.
    """
    from IP_training.config import RECIPES, SPARSIFIERS, TrainingSettings
    from IP_training.inputs import Inputs, check_features
    from IP_training.run import identity_of, recipe_of, row_of, seed_of_run, seeds_at_once, shares_of
    from IP_training.shares import train_shares

    if missing := sorted(set(RATIOS) - set(ratios)):
        raise UserError(f"ratios lacks {missing}: the IIS is the area over {RATIOS}; more ratios may be added")
    if sparsifier not in SPARSIFIERS:  # anything else would be taken for "mask"
        raise UserError(f"sparsifier = {sparsifier!r}: use {', '.join(SPARSIFIERS)}")
    if recipe not in RECIPES:
        raise UserError(f"recipe = {recipe!r}: use {', '.join(RECIPES)}")
    for name, value in (("num_concepts", num_concepts), ("seeds", seeds), ("epochs", epochs),
                        ("batch_size", batch_size), ("draws", draws)):
        if value is None and name in ("epochs", "batch_size"):  # the recipe's
            continue
        if not isinstance(value, int | np.integer) or value < (2 if name == "draws" else 1):
            raise UserError(f"{name} = {value!r}: give a whole number, at least {2 if name == 'draws' else 1}")
    train, val = _labelled(x_train, y_train, x_val, y_val)
    for name, embeddings in (("train", train), ("val", val)):
        check_features(name, embeddings, f"x_{name}")
    settings = TrainingSettings(model_name="from Python", dataset="from Python", ratios=tuple(ratios), seeds=seeds,
                                recipe=recipe, n_epoch=epochs, batch_size=batch_size, holdout=holdout,
                                learning_rates=None if learning_rates is None else tuple(learning_rates),
                                sparsifier=sparsifier, tf32=tf32)
    settings.fit_batches(len(train))
    inputs, make_bank = Inputs(train, val, None, train.class_names), _bank_maker(bank, num_concepts, train.width)
    where, rows = choose_device(device, silent=True), []
    of_seeds = [seed_of_run(settings, number, len(train)) for number in settings.seed_numbers]
    with float32_products(tf32):
        banks = [make_bank(seed) for seed in of_seeds]
    for made in banks:
        if made.vectors_MD.shape[1] != train.width:
            raise UserError(f"the bank has D = {made.vectors_MD.shape[1]}, and x_train D = {train.width}: make it of "
                            "elements embedded as x_train was")
    most = max(map(len, banks))
    at_once, jobs = seeds_at_once(settings, inputs, most, 0, where)
    heads = seeds * len(settings.learning_rates) * (1 + len(settings.ratios))
    with float32_products(tf32), progress(total=settings.n_epoch * heads, desc="heads", unit="head epoch",
                                          disable=not show_progress) as bar:
        for start in range(0, seeds, at_once):
            together = slice(start, start + at_once)
            shares = [share for seed, made in zip(of_seeds[together], banks[together], strict=True)
                      for share in shares_of(settings, inputs, made, seed, min(at_once, seeds), where, jobs)]
            for share, trained, _ in train_shares(shares, inputs, recipe_of(settings), where, jobs,
                                                  most * inputs.num_classes, bar):
                made = banks[share.seed.number - of_seeds[0].number]
                identity = identity_of(settings, made.kind, len(made), inputs, {})
                rows += [{**identity, **row_of(head, share.bank_of(head)[0], sparsifier, 0.0)} for head in trained]
    rows.sort(key=cell_of)
    summary = summarise(rows, draws, "the result")
    for remark in summary["remarks"]:
        if remark.startswith("warning: "):
            warnings.warn(remark.removeprefix("warning: "), stacklevel=2)
    best = summary["curves"]["best"]
    return Result(summary["iis"]["mean"], summary["iis"]["std"], tuple(summary["bootstrap"]["interval_95"]),
                  dict(zip(summary["ratios"], np.mean(best["arr"], axis=0).tolist(), strict=True)),
                  summary["dense"]["mean"], summary["remarks"], summary, rows)


def embed(model: nn.Module, images: torch.Tensor | Sequence, node: str | None = None, *,
          settings: dict[str, Any] | None = None, batch_size: int = 32, device: str | None = None,
          tf32: bool = False, show_progress: bool = True) -> torch.Tensor:
    """Representations (N, D), float32 on the CPU, of N images at the input of the model's classification head.

    images: float (N, 3, H, W), normalised as the model expects; or PIL images, which are resized, cropped and
    normalised by `settings` (see `iis.preprocessing.preprocessing`; default: the model's own attribute `preprocessing`,
    else ImageNet's). node: the name of an earlier layer, pooled to (N, D). tf32: whether CUDA may use TF32. The model
    comes back in the mode and on the device it had.
    """
    ready = torch.is_tensor(images)
    if not hasattr(images, "__len__") or not len(images) or batch_size < 1:
        raise UserError("give at least one image, in a list or a tensor (N, 3, H, W), and a batch_size of at least 1")
    if ready and images.ndim != 4 or not ready and not hasattr(images[0], "convert"):
        raise UserError(f"images are {tuple(images.shape) if ready else type(images[0]).__name__}: give a float tensor "
                        "(N, 3, H, W), or a list of PIL images")
    settings = preprocessing(**(settings or getattr(model, "preprocessing", {})))
    if ready and not images.is_floating_point():
        raise UserError(f"images of type {images.dtype}: give floats, normalised as the model expects, or PIL images")
    modes, before = {part: part.training for part in model.modules()}, next(model.parameters()).device
    where, found = choose_device(device, silent=True), []
    model.eval().to(where)
    try:
        head = find_head(model)
        side = images.shape[-1] if ready else settings["crop"]
        place = Node(HEAD_INPUT, head) if node is None else resolve(model, head, node, side)
        with torch.inference_mode(), float32_products(tf32):
            for start in progress(range(0, len(images), batch_size), desc="embedding", unit="batch",
                                  disable=not show_progress):
                part = images[start:start + batch_size]
                if not ready:
                    pixels = torch.stack([to_uint8(image.convert("RGB"), settings) for image in part])
                    part = normalise(pixels, settings)
                found.append(represent(model, place, part.to(where, torch.float32)).float().cpu())  # (B, D)
    finally:
        model.to(before)
        for part, was_training in modes.items():
            part.training = was_training
    return torch.cat(found)


def _labelled(x_train: Array, y_train: Any, x_val: Array, y_val: Any) -> tuple[Embeddings, Embeddings]:
    """Both splits with labels counted over one list of classes."""
    y_train, y_val = (np.asarray(y.cpu() if torch.is_tensor(y) else y).ravel() for y in (y_train, y_val))
    classes = np.unique(y_train)
    if unknown := sorted(set(y_val.tolist()) - set(classes.tolist())):
        raise UserError(f"y_val has classes that y_train lacks: {unknown[:5]}")
    names = [str(name) for name in classes.tolist()]
    train, val = (as_embeddings(x, np.searchsorted(classes, y), names, name)
                  for name, x, y in (("x_train", x_train, y_train), ("x_val", x_val, y_val)))
    if train.width != val.width:
        raise UserError(f"x_train has D = {train.width} and x_val D = {val.width}")
    return train, val


def _bank_maker(bank: Any, num_concepts: int, width: int) -> Callable:
    from IP_training.banks import Bank, from_matrix, random

    if isinstance(bank, str):
        if bank != "random":
            raise UserError(f"bank = {bank!r}: give \"random\", a bank of iis.banks, or M x D vectors")
        return random(num_concepts, width)
    if callable(bank):
        return bank
    made = bank if isinstance(bank, Bank) else from_matrix(torch.as_tensor(bank), width)
    return lambda seed: made
