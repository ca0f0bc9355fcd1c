"""One run of stage 3: inputs → dense heads → bank → activations → heads → ledger and predictors.

A seed's dense heads depend on features and seed alone: they come first, and are kept for all banks. Finished cells are
skipped; a killed run goes on at the last saved epoch of the heads that were training.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from iis.cli import disk, print_plan, size, write_settings
from iis.embedding_file import save_tensors
from iis.grid import DENSE, Cell, kept_count
from iis.results import LEDGER, add_rows, cell_of, merged, pack_correct, read_ledger, select
from iis.runtime import (
    UserError,
    choose_device,
    choose_threads,
    claim_folder,
    keep_freed_memory,
    read_json,
    torch_rng,
    write_json,
)
from iis.summary import remarks_on_rows
from IP_training.banks import Bank, MakeBank, Seed
from IP_training.config import TrainingSettings
from IP_training.inputs import Inputs
from IP_training.predictor import InterpretationHeads, LinearHeads, Normaliser, fit_normaliser, interpret
from IP_training.train_heads import HeadGroup, Recipe, Trained, by_learning_rate, fit_grid

BankOf = Callable[[Trained], tuple[Bank, Normaliser]]
DENSE_LEDGER = "dense_heads.jsonl"
# Called with a seed, the cells still to train and the device. Yields groups that train together, and a function that
# gives a trained head's bank; one pair at a time, so that only one need be in memory.
MakeGroups = Callable[[Seed, list[Cell], torch.device], Iterator[tuple[list[HeadGroup], BankOf]]]


def train_bank(settings: TrainingSettings, kind: str, inputs: Inputs, make_bank: MakeBank, num_concepts: int | None,
               bank_settings: dict[str, Any]) -> Path:
    """Train what the ledger lacks on a bank that is made once per seed. Returns the folder with the ledger.

    kind: the bank's name in paths and ledger. bank_settings: what else decides the bank; it becomes part of every row
    and of the folder's manifest. num_concepts: M, or None where the bank itself decides.
    """

    def make_groups(seed: Seed, cells: list[Cell],
                    device: torch.device) -> Iterator[tuple[list[HeadGroup], BankOf]]:
        yield predictor_groups(inputs, make_bank(seed), seed, cells, device, settings.sparsifier)

    return train_groups(settings, kind, inputs, make_groups, num_concepts, bank_settings)


def train_groups(settings: TrainingSettings, kind: str, inputs: Inputs, make_groups: MakeGroups,
                 num_concepts: int | None, bank_settings: dict[str, Any]) -> Path:
    """`train_bank` for heads that may learn their own bank (End2End)."""
    started, trained, device = time.monotonic(), 0, choose_device(settings.device, silent=settings.dry_run)
    identity = identity_of(settings, kind, num_concepts, inputs, bank_settings)
    folder = settings.save_dir or settings.default_folder(identity)
    if settings.dry_run:
        print_training_plan(settings, kind, inputs, num_concepts, folder)
        return folder
    keep_freed_memory()
    choose_threads(inputs.num_classes * (num_concepts or 200))
    with claimed(folder, identity, LEDGER), tf32_products(settings.tf32):
        write_settings(settings, folder / "settings.yaml")
        for number in settings.seed_numbers:
            seed = seed_of_run(settings, number, len(inputs.train))
            dense_rows, fresh = train_dense(settings, inputs, seed, device)
            trained += fresh + _train_seed(settings, inputs, seed, make_groups, dense_rows, folder / LEDGER, identity,
                                           device)
    rows = read_ledger(folder / LEDGER)
    for line in remarks_on_rows(rows):
        print(line)
    seconds = time.monotonic() - started
    print(f"stage 3: {trained} heads trained, {len(rows)} in {folder / LEDGER}, {seconds:.1f} s on {device}"
          + (f" ({seconds / trained:.2f} s a head)" if trained else " (all were done already)"))
    return folder


def train_dense(settings: TrainingSettings, inputs: Inputs, seed: Seed,
                device: torch.device) -> tuple[list[dict[str, Any]], int]:
    """The ledger rows of a seed's dense heads, found where all banks keep them or else trained, and how many were
    trained now."""
    ledger = settings.dense_folder(inputs.train.content_hash, inputs.val.content_hash) / DENSE_LEDGER
    cells = dense_cells(settings, seed.number)
    known = {cell_of(row): row for row in read_ledger(ledger)}
    missing = [cell for cell in cells if cell not in known]
    if missing:
        groups = dense_groups(inputs, seed, missing, device)
        rows = _train_and_keep(settings, inputs, seed, groups, lambda head: (None, None), ledger, "dense heads",
                               {"model": settings.model_name, "dataset": settings.dataset})
        known = {cell_of(row): row for row in rows}
    return [known[cell] for cell in cells], len(missing)


def _train_seed(settings: TrainingSettings, inputs: Inputs, seed: Seed, make_groups: MakeGroups,
                dense_rows: list[dict[str, Any]], ledger: Path, identity: dict[str, Any], device: torch.device) -> int:
    """Train the predictors of one seed that the ledger lacks; how many they were."""
    done = {cell_of(row) for row in read_ledger(ledger)}
    cells = [cell for cell in predictor_cells(settings, seed.number) if cell not in done]
    copied = [{**identity, **row} for row in dense_rows if cell_of(row) not in done]
    for groups, bank_of in make_groups(seed, cells, device) if cells else ():
        _train_and_keep(settings, inputs, seed, groups, bank_of, ledger, f"{identity['bank']} predictors", identity,
                        copied)
        copied = []
    if copied:  # only dense heads were missing
        add_rows(ledger, copied)
    return len(cells)


def _train_and_keep(settings: TrainingSettings, inputs: Inputs, seed: Seed, groups: Sequence[HeadGroup],
                    bank_of: Callable[[Trained], tuple[Bank | None, Normaliser | None]], ledger: Path, what: str,
                    identity: dict[str, Any], more_rows: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Train heads and write their predictors and rows, with `more_rows`; all rows of the ledger. Rows of dense heads
    go without the identity: they belong to no bank."""
    started, resume_file = time.monotonic(), ledger.with_name(f"resume_seed{seed.number}.pt")
    device = next(groups[0].heads.parameters()).device
    heads = fit_grid(groups, inputs.train.labels_N.to(device), inputs.val.labels_N.to(device), recipe_of(settings),
                     seed.number, seed.selection, resume_file, what=what)
    banks = [bank_of(head) for head in heads]
    seconds = (time.monotonic() - started) / len(heads)
    rows = [*more_rows, *({**(identity if bank else {}), **row_of(head, bank, settings.sparsifier, seconds)}
                          for head, (bank, _) in zip(heads, banks, strict=True))]
    # The ledger last: what it names as done has its predictors, whenever a run is killed.
    save_predictors(ledger.parent, heads, banks, merged(read_ledger(ledger), rows), inputs.class_labels, identity)
    rows = add_rows(ledger, rows)
    resume_file.unlink(missing_ok=True)
    return rows


# ---- groups of heads ----


def dense_cells(settings: TrainingSettings, number: int) -> list[Cell]:
    """The dense heads of seed `number`."""
    return [Cell(number, DENSE, rate) for rate in settings.learning_rates]


def predictor_cells(settings: TrainingSettings, number: int) -> list[Cell]:
    """The predictors of seed `number`."""
    return [Cell(number, ratio, rate) for ratio in settings.ratios for rate in settings.learning_rates]


def dense_groups(inputs: Inputs, seed: Seed, cells: Sequence[Cell], device: torch.device) -> list[HeadGroup]:
    """Dense heads, on the raw representation: one group per learning rate."""
    h_train, h_val = inputs.resident(device)
    return [HeadGroup(LinearHeads(len(same_rate), inputs.train.width, inputs.num_classes,
                                 torch_rng(seed.number, "dense head")).to(device), same_rate, h_train, h_val)
            for same_rate in by_learning_rate(cells)]


def predictor_groups(inputs: Inputs, bank: Bank, seed: Seed, cells: Sequence[Cell], device: torch.device,
                     sparsifier: str) -> tuple[list[HeadGroup], BankOf]:
    """Predictors on a bank that stays as it is: activations are computed once for all heads."""
    normaliser, z_train, z_val = activations(inputs, bank, seed, device)
    groups = [HeadGroup(InterpretationHeads([cell.ratio for cell in same_rate], len(bank), inputs.num_classes,
                                            torch_rng(seed.number, "head"), sparsifier,
                                            normaliser.learned_M).to(device), same_rate, z_train, z_val)
              for same_rate in by_learning_rate(cells)]
    return groups, lambda head: (bank, normaliser)


def activations(inputs: Inputs, bank: Bank, seed: Seed,
                device: torch.device) -> tuple[Normaliser, torch.Tensor, torch.Tensor]:
    """The bank's normaliser, fitted to the rows that are trained on, and the activations of train (N, M) and val."""
    bank_MD = bank.vectors_MD.to(device)
    normaliser = fit_normaliser(bank.blocks, inputs.train.features_ND, bank_MD, seed.train_rows)
    return normaliser, *(interpret(split.features_ND, bank_MD, normaliser) for split in (inputs.train, inputs.val))


def recipe_of(settings: TrainingSettings) -> Recipe:
    """The recipe that the settings name."""
    return Recipe(settings.n_epoch, settings.batch_size)


def seed_of_run(settings: TrainingSettings, number: int, count: int) -> Seed:
    """Seed `number` of a run on `count` training rows."""
    return Seed(number, number if settings.bank_seed is None else settings.bank_seed,
                selection_of(settings.holdout, count, number))


def selection_of(holdout: float, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`--holdout F`: a seeded split of train into rows to train on and rows to select on; None for F = 0.

    Raises `UserError` where either part would be empty.
    """
    held = int(round(count * holdout))
    if not holdout:
        return None
    if not 0 < held < count:
        raise UserError(f"--holdout {holdout:g} leaves {held} of {count} training rows to select on and {count - held} "
                        "to train on; choose a fraction that leaves both some")
    selected, trained = torch.randperm(count, generator=torch_rng(seed, "holdout")).tensor_split([held])
    return trained.sort().values, selected.sort().values


# ---- the ledger ----


def identity_of(settings: TrainingSettings, kind: str, num_concepts: int | None, inputs: Inputs,
                bank_settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that identifies the numbers of a run, apart from seed, ratio and learning rate."""
    source = {name: inputs.train.provenance.get(name) for name in ("weights", "weights_hash", "node", "precision")}
    elements = inputs.elements
    return {"bank": kind, "num_concepts": num_concepts, "model": settings.model_name, "dataset": settings.dataset,
            "protocol": settings.protocol, "sparsifier": settings.sparsifier, **bank_settings,
            "elements": elements.provenance.get("elements") if elements else None,
            "elements_hash": elements.content_hash if elements else None,
            "train_hash": inputs.train.content_hash, "val_hash": inputs.val.content_hash, **source,
            "width": inputs.train.width, "num_classes": inputs.num_classes, "n_train": len(inputs.train),
            "n_val": len(inputs.val), "chance": inputs.chance, "epochs": settings.n_epoch,
            "batch_size": settings.batch_size, "holdout": settings.holdout,
            **({} if settings.bank_seed is None else {"bank_seed": settings.bank_seed}),
            **({"tf32": True} if settings.tf32 else {})}


def row_of(head: Trained, bank: Bank | None, sparsifier: str, seconds: float) -> dict[str, Any]:
    """One ledger row: accuracies are fractions, epochs count from 1, seconds are this head's share.

    bank: None for the dense head. kept: how many concepts stay (under `strict` at most).
    """
    cell, best = head.cell, head.best_epoch
    kept = None if bank is None else kept_count(len(bank), cell.ratio) - (sparsifier == "strict")
    return {"seed": cell.seed, "ratio": cell.ratio, "learning_rate": cell.learning_rate, "kept": kept,
            "bank_size": len(bank) if bank else None, "empty_concepts": bank.empty if bank else None,
            "top1": head.top1[best], "top5": head.top5[best], "best_epoch": best + 1,
            "last_top1": head.top1[-1], "last_top5": head.top5[-1], "select_top1": head.select_top1[best],
            "last_select_top1": head.select_top1[-1], "loss": head.loss[-1], "top1_by_epoch": head.top1,
            "loss_by_epoch": head.loss, "note": "nothing is kept: a constant prediction" if kept == 0 else None,
            "hits": pack_correct(head.correct.numpy()), "seconds": round(seconds, 3),
            "date": datetime.datetime.now().isoformat(timespec="seconds"), "host": platform.node()}


# ---- files ----


def save_predictors(folder: Path, trained: Sequence[Trained], banks: Sequence[tuple[Bank | None, Normaliser | None]],
                    rows: Sequence[dict[str, Any]], class_names: Sequence[str], identity: dict[str, Any]) -> None:
    """Write the newly trained heads that the ledger selects, so that explanations need no retraining; heads selected
    earlier stay. banks[i]: bank and normaliser of trained[i]; (None, None) for a dense head.

    `predictors/seed_R.safetensors` holds, per ratio s: `s/weight` (C, M), `s/bias` (C,), `s/scale` and `s/shift` (M,)
    of the normaliser; and `bank` (M, D), `mean`, `std` (M,), or `s/bank` … where every ratio has a bank of its own.
    `predictors/seed_R.json`: what each concept looks like, how blocks of concepts are normalised, the class names, and
    what was selected.
    """
    seed = trained[0].cell.seed
    file = folder / "predictors" / f"seed_{seed}.safetensors"
    described = file.with_suffix(".json")
    tensors, text = ({}, {"selected": {}, "concepts": {}, "blocks": {}})
    if file.exists() and described.exists():
        try:
            tensors, text = load_file(file), read_json(described)
        except SafetensorError:
            message = f"{file} is damaged; delete it and start again: its heads are lost, the ledger is not"
            raise UserError(message) from None
    best = {cell_of(row): row for row in select([row for row in rows if row["seed"] == seed]).values()}
    for head, (bank, normaliser) in zip(trained, banks, strict=True):
        if head.cell not in best:
            continue
        name = "dense" if head.cell.dense else f"{head.cell.ratio:g}"
        own = f"{name}/" if "bank" in head.state else ""  # a learned bank belongs to its cell
        tensors |= {f"{name}/{key}": value for key, value in head.state.items()}
        if bank is not None:
            tensors |= {f"{own}bank": bank.vectors_MD, f"{own}mean": normaliser.mean_M, f"{own}std": normaliser.std_M}
            text["concepts"][own.rstrip("/") or "all"] = bank.evidence
            text["blocks"][own.rstrip("/") or "all"] = [list(block) for block in bank.blocks]
        row = best[head.cell]
        text["selected"][name] = {key: row[key] for key in ("learning_rate", "best_epoch", "kept", "top1", "top5")}
    save_tensors(file, tensors)
    write_json(described, {"identity": identity, "seed": seed, "class_names": list(class_names), **text})


@contextmanager
def claimed(folder: Path, identity: dict[str, Any], results: str) -> Iterator[None]:
    """Claim the folder; release it if validation fails before any result, so that the corrected command can reuse
    it."""
    manifest = folder / "manifest.json"
    new = not manifest.exists()
    claim_folder(folder, identity)
    try:
        yield
    except UserError:
        if new and not (folder / results).exists():
            manifest.unlink()
        raise


@contextmanager
def tf32_products(on: bool) -> Iterator[None]:
    """Let CUDA's matrix products use TF32, and put the setting back afterwards."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, matmul.allow_tf32 or on
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def print_training_plan(settings: TrainingSettings, kind: str, inputs: Inputs, num_concepts: int | None,
                        folder: Path) -> None:
    """`--dry_run`: shapes, disk and memory; nothing is made."""
    rows, width, classes = len(inputs.train), inputs.train.width, inputs.num_classes
    concepts, images = num_concepts or 200, rows + len(inputs.val)  # Text: as many as pass
    rates = len(settings.learning_rates)
    elements = f", {len(inputs.elements):,} elements" if inputs.elements is not None else ""
    print_plan(f"stage 3, {kind} bank for {settings.model_name} on {settings.dataset}", {
        "shapes": f"N = {rows:,} + {len(inputs.val):,} images, D = {width}, C = {classes}, "
                  f"M = {num_concepts or 'as many concepts as pass, here taken as 200'}{elements}",
        "heads": f"{len(settings.ratios) * rates} predictors ({len(settings.ratios)} ratios x {rates} learning rates) "
                 f"and {rates} dense heads, for each of {settings.seeds} seeds; {settings.n_epoch} epochs of "
                 f"{-(-rows // settings.batch_size):,} steps",
        "disk": disk(4 * settings.seeds * (len(settings.ratios) + 1) * classes * (concepts + width), folder),
        "memory": f"{size(4 * concepts * images)} of activations in float32, "
                  f"{size(inputs.train.features_ND.element_size() * width * images)} of features in their file"})
