"""One run of stage 3: inputs → banks → activations → shares of heads → ledger and predictors.

A seed's dense heads depend on features and seed alone, and are kept for all banks. Finished cells are skipped; a killed
run goes on at the last saved epoch of the heads that were training.
"""

from __future__ import annotations

import datetime
import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from iis.cli import disk, print_plan, size, write_settings
from iis.embedding_file import save_tensors
from iis.grid import DENSE, Cell, held_count, kept_count
from iis.processes import in_processes, jobs_that_fit
from iis.results import LEDGER, add_rows, cell_of, merged, pack_correct, read_ledger, select
from iis.runtime import (
    UserError,
    available_bytes,
    choose_device,
    claim_folder,
    float32_products,
    keep_freed_memory,
    progress,
    read_json,
    torch_rng,
    write_json,
)
from iis.summary import remarks_on_rows
from IP_training.banks import Bank, MakeBank, Seed
from IP_training.config import TrainingSettings
from IP_training.inputs import Inputs
from IP_training.predictor import InterpretationHeads, LinearHeads, Normaliser, interpret, interpret_train
from IP_training.shares import BankOf, GroupsOf, Share, shares_each, split, train_shares
from IP_training.train_heads import HeadGroup, Recipe, Trained, by_learning_rate, saved_cells

DENSE_LEDGER = "dense_heads.jsonl"
ABANDONED_S = 600.0  # an older half-written file belongs to no run that still writes it
# Called with seeds, the device and how many processes may be used. Gives for each seed what makes its heads, and what
# gives a trained head's bank.
Prepare = Callable[[Sequence[Seed], torch.device, int], Iterable[tuple[GroupsOf, BankOf]]]


def train_bank(settings: TrainingSettings, kind: str, inputs: Inputs, make_bank: MakeBank, num_concepts: int | None,
               bank_settings: dict[str, Any], most_concepts: int = 200) -> Path:
    """Train what the ledger lacks on a bank that is made once per seed. Returns the folder with the ledger.

    kind: the bank's name in paths and ledger. bank_settings: what else decides the bank; it becomes part of every row
    and of the folder's manifest. num_concepts: M, or None where the bank itself decides, on at most `most_concepts`.
    """

    def prepare(seeds: Sequence[Seed], device: torch.device, jobs: int) -> Iterator[tuple[GroupsOf, BankOf]]:
        banks = dict(in_processes([lambda advance, seed=seed: timed(make_bank, seed) for seed in seeds], jobs))
        for index, seed in enumerate(seeds):
            yield predictors_on(inputs, banks[index], seed, device, settings.sparsifier)

    return train_groups(settings, kind, inputs, prepare, num_concepts, bank_settings, most_concepts=most_concepts)


def timed(make_bank: MakeBank, seed: Seed) -> Bank:
    """The bank of a seed, which knows how many seconds it took to make."""
    started = time.monotonic()
    bank = make_bank(seed)
    return replace(bank, seconds=round(time.monotonic() - started, 4))


def train_groups(settings: TrainingSettings, kind: str, inputs: Inputs, prepare: Prepare, num_concepts: int | None,
                 bank_settings: dict[str, Any], cell_bytes: float = 0, most_concepts: int = 200) -> Path:
    """`train_bank` for heads that may learn their own bank (End2End). cell_bytes: memory that a head takes."""
    started, trained, device = time.monotonic(), 0, choose_device(settings.device, silent=settings.dry_run)
    identity = identity_of(settings, kind, num_concepts, inputs, bank_settings)
    folder = settings.save_dir or settings.default_folder(identity)
    if settings.dry_run:
        print_training_plan(settings, kind, inputs, num_concepts, most_concepts, folder)
        return folder
    keep_freed_memory()
    most_concepts = num_concepts or most_concepts
    at_once, jobs = seeds_at_once(settings, inputs, most_concepts, cell_bytes, device)
    run = Run(settings, inputs, identity, folder, prepare, device, jobs, cell_bytes, most_concepts)
    with claimed(folder, identity, LEDGER), float32_products(settings.tf32):
        write_settings(settings, folder / "settings.yaml")
        seeds = [seed_of_run(settings, number, len(inputs.train)) for number in settings.seed_numbers]
        for start in range(0, len(seeds), at_once):
            trained += run.train(seeds[start:start + at_once])
    rows = read_ledger(folder / LEDGER)
    for line in remarks_on_rows(rows):
        print(line)
    seconds = time.monotonic() - started
    print(f"stage 3: {trained} heads trained, {len(rows)} in {folder / LEDGER}, {seconds:.1f} s on {device}"
          + (f", {jobs} processes" if jobs > 1 else "")
          + (f" ({seconds / trained:.2f} s a head)" if trained else " (all were done already)"))
    return folder


def seeds_at_once(settings: TrainingSettings, inputs: Inputs, num_concepts: int, cell_bytes: float,
                  device: torch.device) -> tuple[int, int]:
    """How many seeds are in memory at once, each with activations of its own, and how many processes train them."""
    if device.type != "cpu":
        return 1, 1
    heads = settings.seeds * len(settings.learning_rates) * (1 + len(settings.ratios))
    jobs = jobs_that_fit(heads, cell_bytes, settings.jobs)
    activations_bytes = 4 * num_concepts * (len(inputs.train) + len(inputs.val))
    return (1 if jobs == 1 else max(1, int(available_bytes() / 2 // activations_bytes))), jobs


@dataclass
class Run:
    """The grid of one bank on one representation: what of it is missing, and where it goes. Only this process writes
    ledgers and predictors.

    jobs: processes that train. cell_bytes: memory that a head takes beside what all share (0: next to none).
    """

    settings: TrainingSettings
    inputs: Inputs
    identity: dict[str, Any]
    folder: Path
    prepare: Prepare
    device: torch.device
    jobs: int
    cell_bytes: float
    most_concepts: int

    def ledger(self, dense: bool) -> Path:
        """The ledger of the run, or the one of the dense heads, which all banks share."""
        if not dense:
            return self.folder / LEDGER
        hashes = (split.content_hash for split in (self.inputs.train, self.inputs.val))
        return self.settings.dense_folder(*hashes) / DENSE_LEDGER

    def train(self, seeds: Sequence[Seed]) -> int:
        """Train what the ledgers lack of these seeds; how many heads that were."""
        shares = self.shares(seeds)
        heads, weights = sum(len(share.cells) for share in shares), self.most_concepts * self.inputs.num_classes
        what = f"{self.identity['bank']}, seeds " + ", ".join(str(seed.number) for seed in seeds)
        with progress(total=self.settings.n_epoch * heads, desc=what, unit="head epoch",
                      disable=not shares) as bar:  # closed before a message about a stop
            for share, found, seconds in train_shares(shares, self.inputs, recipe_of(self.settings), self.device,
                                                      self.jobs, weights, bar):
                self.keep(share, found, seconds)
                bar.set_postfix_str(f"seed {share.seed.number}: {'dense' if share.dense else 'predictors'} "
                                    f"{max(max(head.top1) for head in found):.3f}", refresh=False)
        self.copy_dense_rows(seeds)
        for seed, dense in itertools.product(seeds, (True, False)):  # what killed runs have left
            folder = self.ledger(dense).parent
            left = [] if dense else list(folder.glob(f"resume_seed{seed.number}_*.pt"))
            left += [file for file in folder.glob(f".resume_seed{seed.number}_*.tmp.pt") if age(file) > ABANDONED_S]
            for file in left:
                file.unlink(missing_ok=True)
        return heads

    def shares(self, seeds: Sequence[Seed]) -> list[Share]:
        """The missing heads, dense ones first: they take longest where D is large."""
        left, shares = self.missing(seeds, dense=False), []
        for seed, cells in self.missing(seeds, dense=True):
            shares += self.cut(seed, cells, dense_heads(self.inputs, seed, self.device), lambda count: 1)
        most = self.cell_bytes and max(1, int(available_bytes(self.device) / 2 // (self.jobs * self.cell_bytes)))
        prepared = self.prepare([seed for seed, _ in left], self.device, self.jobs)
        for (seed, cells), heads in zip(left, prepared, strict=True):
            shares += self.cut(seed, cells, heads, lambda count: shares_each(len(left), count, self.jobs, most))
        return shares

    def cut(self, seed: Seed, cells: list[Cell], heads: tuple[GroupsOf, BankOf],
            parts: Callable[[int], int]) -> list[Share]:
        """A seed's cells in shares: first those whose state a killed run has kept, then the others, in `parts(count)`.
        """
        folder, shares = self.ledger(cells[0].dense).parent, []
        kind = "dense" if cells[0].dense else "predictors"
        for file in sorted(folder.glob(f"resume_seed{seed.number}_{kind}*.pt")):
            kept = saved_cells(file)
            if set(kept) <= set(cells):
                shares.append(Share(seed, kept, *heads, file))
                cells = [cell for cell in cells if cell not in kept]
        for part in split(cells, parts(len(cells))) if cells else ():
            name = f"resume_seed{seed.number}_{kind}_{part[0].ratio:g}_{part[0].learning_rate:g}.pt"  # no two alike
            shares.append(Share(seed, part, *heads, folder / name))
        return shares

    def missing(self, seeds: Sequence[Seed], dense: bool) -> list[tuple[Seed, list[Cell]]]:
        """(seed, its cells that the ledger lacks), of the seeds where it lacks any."""
        done = {cell_of(row) for row in read_ledger(self.ledger(dense))}
        cells = dense_cells if dense else predictor_cells
        left = [(seed, [cell for cell in cells(self.settings, seed.number) if cell not in done]) for seed in seeds]
        return [(seed, some) for seed, some in left if some]

    def keep(self, share: Share, heads: Sequence[Trained], seconds: float) -> None:
        """Write the predictors and rows of trained heads. Rows of dense heads go without the identity: they belong to
        no bank."""
        banks, ledger, identity = [share.bank_of(head) for head in heads], self.ledger(share.dense), self.identity
        if share.dense:
            identity = {key: identity[key] for key in ("model", "dataset")}
        rows = [{**(identity if bank else {}), **row_of(head, bank, self.settings.sparsifier, seconds)}
                for head, (bank, _) in zip(heads, banks, strict=True)]
        # The ledger last: what it names as done has its predictors, whenever a run is killed.
        save_predictors(ledger.parent, heads, banks, merged(read_ledger(ledger), rows), self.inputs.class_labels,
                        identity)
        add_rows(ledger, rows)
        share.resume_file.unlink(missing_ok=True)

    def copy_dense_rows(self, seeds: Sequence[Seed]) -> None:
        """Every ledger has a copy of the rows of its dense heads."""
        done = {cell_of(row) for row in read_ledger(self.ledger(False))}
        wanted = {cell for seed in seeds for cell in dense_cells(self.settings, seed.number)} - done
        rows = [{**self.identity, **row} for row in read_ledger(self.ledger(True)) if cell_of(row) in wanted]
        if rows:
            add_rows(self.ledger(False), rows)


# ---- groups of heads ----


def dense_cells(settings: TrainingSettings, number: int) -> list[Cell]:
    """The dense heads of seed `number`."""
    return [Cell(number, DENSE, rate) for rate in settings.learning_rates]


def predictor_cells(settings: TrainingSettings, number: int) -> list[Cell]:
    """The predictors of seed `number`."""
    return [Cell(number, ratio, rate) for ratio in settings.ratios for rate in settings.learning_rates]


def dense_heads(inputs: Inputs, seed: Seed, device: torch.device) -> tuple[GroupsOf, BankOf]:
    """Dense heads, on the raw representation: one group per learning rate."""
    h_train, h_val = inputs.resident(device)

    def groups_of(cells: Sequence[Cell]) -> list[HeadGroup]:
        return [HeadGroup(LinearHeads(len(same_rate), inputs.train.width, inputs.num_classes,
                                      torch_rng(seed.number, "dense head")).to(device), same_rate, h_train, h_val)
                for same_rate in by_learning_rate(cells)]

    return groups_of, lambda head: (None, None)


def predictors_on(inputs: Inputs, bank: Bank, seed: Seed, device: torch.device,
                  sparsifier: str) -> tuple[GroupsOf, BankOf]:
    """Predictors on a bank that stays as it is: activations are computed once for all heads."""
    normaliser, z_train, z_val = activations(inputs, bank, seed, device)
    if bank.encoder.sparse:  # the normaliser leaves a code of 0 as it is
        bank = replace(bank, nonzero=sum(int(part.count_nonzero()) for part in z_train.split(65536)) / len(z_train))

    def groups_of(cells: Sequence[Cell]) -> list[HeadGroup]:
        return [HeadGroup(InterpretationHeads([cell.ratio for cell in same_rate], len(bank), inputs.num_classes,
                                              torch_rng(seed.number, "head"), sparsifier,
                                              normaliser.learned_M).to(device), same_rate, z_train, z_val)
                for same_rate in by_learning_rate(cells)]

    return groups_of, lambda head: (bank, normaliser)


def shares_of(settings: TrainingSettings, inputs: Inputs, bank: Bank, seed: Seed, seeds: int, device: torch.device,
              jobs: int) -> list[Share]:
    """All heads of a seed, one of `seeds` that train at once in `jobs` processes, with nothing kept on disk."""
    cells = predictor_cells(settings, seed.number)
    predictors = predictors_on(inputs, bank, seed, device, settings.sparsifier)
    return [Share(seed, dense_cells(settings, seed.number), *dense_heads(inputs, seed, device)),
            *(Share(seed, part, *predictors) for part in split(cells, shares_each(seeds, len(cells), jobs)))]


def activations(inputs: Inputs, bank: Bank, seed: Seed,
                device: torch.device) -> tuple[Normaliser, torch.Tensor, torch.Tensor]:
    """The bank's normaliser, fitted to the rows that are trained on, and the activations of train (N, M) and val."""
    encoder = bank.encoder.to(device)
    normaliser, z_train = interpret_train(bank.blocks, inputs.train.features_ND, encoder, seed.train_rows)
    return normaliser, z_train, interpret(inputs.val.features_ND, encoder, normaliser)


def age(file: Path) -> float:
    """Seconds since a file was written; 0 where it is gone."""
    return time.time() - file.stat().st_mtime if file.exists() else 0.0


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
    held = held_count(count, holdout)
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
            **({"tf32": True} if settings.tf32 else {}),
            **({"recipe": settings.recipe} if settings.recipe != "published" else {})}


def row_of(head: Trained, bank: Bank | None, sparsifier: str, seconds: float) -> dict[str, Any]:
    """One ledger row: accuracies are fractions, epochs count from 1, seconds are this head's share.

    bank: None for the dense head. kept: how many concepts stay (under `strict` at most). nonzero_codes: of a bank with
    sparse codes, how many of a training image are not 0 on average, before anything is dropped. bank_seconds: what its
    bank took to make, the same in every row of a seed; None for a dense head and for End2End, whose `seconds` include
    it.
    """
    cell, best = head.cell, head.best_epoch
    kept = None if bank is None else kept_count(len(bank), cell.ratio) - (sparsifier == "strict")
    return {"seed": cell.seed, "ratio": cell.ratio, "learning_rate": cell.learning_rate, "kept": kept,
            "bank_size": len(bank) if bank else None, "empty_concepts": bank.empty if bank else None,
            **({} if bank is None or bank.nonzero is None else {"nonzero_codes": round(bank.nonzero, 4)}),
            "top1": head.top1[best], "top5": head.top5[best], "best_epoch": best + 1,
            "last_top1": head.top1[-1], "last_top5": head.top5[-1], "select_top1": head.select_top1[best],
            "last_select_top1": head.select_top1[-1], "loss": head.loss[-1], "top1_by_epoch": head.top1,
            "loss_by_epoch": head.loss, "note": "nothing is kept: a constant prediction" if kept == 0 else None,
            "hits": pack_correct(head.correct.numpy()), "seconds": round(seconds, 3),
            "bank_seconds": bank.seconds if bank else None,
            "date": datetime.datetime.now().isoformat(timespec="seconds"), "host": platform.node()}


# ---- files ----


def save_predictors(folder: Path, trained: Sequence[Trained], banks: Sequence[tuple[Bank | None, Normaliser | None]],
                    rows: Sequence[dict[str, Any]], class_names: Sequence[str], identity: dict[str, Any]) -> None:
    """Write the newly trained heads that the ledger selects, so that explanations need no retraining; heads selected
    earlier stay. banks[i]: bank and normaliser of trained[i]; (None, None) for a dense head.

    `predictors/seed_R.safetensors` holds, per ratio s: `s/weight` (C, M), `s/bias` (C,), `s/scale` and `s/shift` (M,)
    of the normaliser; and `bank` (M, D), `mean`, `std` (M,), or `s/bank` … where every ratio has a bank of its own.
    `encoder/NAME` are the tensors of an encoder that is no projection (its numbers are in the JSON).
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
            if bank.encoder.sparse:
                tensors |= {f"{own}encoder/{key}": value for key, value in bank.encoder.tensors().items()}
                text.setdefault("encoders", {})[own.rstrip("/") or "all"] = bank.encoder.numbers()
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


def print_training_plan(settings: TrainingSettings, kind: str, inputs: Inputs, num_concepts: int | None,
                        most_concepts: int, folder: Path) -> None:
    """`--dry_run`: shapes, disk and memory; nothing is made."""
    rows, width, classes = len(inputs.train), inputs.train.width, inputs.num_classes
    concepts, images = num_concepts or most_concepts, rows + len(inputs.val)
    rates, trained = len(settings.learning_rates), rows - held_count(rows, settings.holdout)
    elements = f", {len(inputs.elements):,} elements" if inputs.elements is not None else ""
    print_plan(f"stage 3, {kind} bank for {settings.model_name} on {settings.dataset}", {
        "shapes": f"N = {rows:,} + {len(inputs.val):,} images, D = {width}, C = {classes}, "
                  f"M = {num_concepts or f'at most {most_concepts:,}'}{elements}",
        "heads": f"{len(settings.ratios) * rates} predictors ({len(settings.ratios)} ratios x {rates} learning rates) "
                 f"and {rates} dense heads, for each of {settings.seeds} seeds; {settings.n_epoch} epochs of "
                 f"{-(-trained // settings.batch_size):,} steps",
        "disk": disk(4 * settings.seeds * (len(settings.ratios) + 1) * classes * (concepts + width), folder),
        "memory": f"{size(4 * concepts * images)} of activations in float32, "
                  f"{size(inputs.train.features_ND.element_size() * width * images)} of features in their file"})
