"""One run of stage 3: any bank, all ratios x learning rates x seeds, and the dense heads → ledger and predictors.

Everything a bank differs in is its `Plan` (stacks.py). Finished cells are skipped; a killed run goes on at the last
saved epoch of the group of heads it was in.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from iis.cli import write_settings
from iis.grid import DENSE, Cell
from iis.names import slug
from iis.results import LEDGER, add_rows, cell_of, merged, read_ledger
from iis.runtime import ROOT, UserError, choose_device, claim_folder, torch_rng
from iis.summary import advice
from iis.tally import tally
from IP_training.flags import PROTOCOLS
from IP_training.grid_training import Recipe, train_stacks
from IP_training.inputs import Inputs
from IP_training.predictor_files import save_predictors
from IP_training.rows import identity_of, row_of
from IP_training.stacks import Plan, Seed, dense_stacks
from IP_training.stage3_plan import tell_stage3

# Dense heads depend on features and seed alone: trained once, for all banks.
DENSE_HEADS = Path(os.environ.get("IIS_DENSE_HEADS", ROOT / "IP_training" / "dense_heads"))


def run(args: argparse.Namespace, kind: str, inputs: Inputs, plan: Plan, num_concepts: int | None,
        bank_settings: dict[str, Any]) -> Path:
    """Train what the ledger lacks. Returns the folder with the ledger.

    kind: the bank's name in paths and ledger. bank_settings: what else decides the bank; it becomes part of every
    row and of the folder's manifest. num_concepts: M, or None where the bank itself decides.
    args: as `apply_protocol` leaves them.
    """
    started = time.monotonic()
    identity = identity_of(args, kind, num_concepts, inputs, bank_settings)
    folder = args.save_dir or default_folder(args, kind, num_concepts, identity)
    if "dry_run" in args:
        tell_stage3(args, kind, inputs, num_concepts, folder)
        return folder
    with claimed(folder, identity, LEDGER), tf32_products(args.tf32):
        device = choose_device(args.device)
        write_settings(args, folder / "settings.yaml")
        trained = 0
        for number in range(args.first_seed, args.first_seed + args.seeds):
            seed = Seed(number, device, args.sparsifier, selection_of(args.holdout, len(inputs.train), number),
                        args.bank_seed)
            trained += _train_seed(args, inputs, plan, num_concepts, seed, folder, identity)
    rows = read_ledger(folder / LEDGER)
    for line in advice(rows):
        print(line)
    tally(trained)
    seconds = time.monotonic() - started
    print(f"stage 3: {trained} heads trained, {len(rows)} in {folder / LEDGER}, {seconds:.1f} s on {device}"
          + (f" ({seconds / trained:.2f} s a head)" if trained else " (all were done already)"))
    return folder


@contextmanager
def claimed(folder: Path, identity: dict[str, Any], results: str) -> Iterator[None]:
    """`claim_folder`, given back where a new run is refused before it has written `results`: who then does as the
    sentence says, for example lowers a cut-off, finds the folder free."""
    manifest = folder / "manifest.json"
    new = not manifest.exists()
    claim_folder(folder, identity)
    try:
        yield
    except UserError:
        if new and not (folder / results).exists():
            manifest.unlink(missing_ok=True)
        raise


@contextmanager
def tf32_products(on: bool) -> Iterator[None]:
    """Let CUDA's matrix products use TF32, and put the setting back afterwards; off, as torch has it."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = before or on
    try:
        yield
    finally:
        matmul.allow_tf32 = before


@contextmanager
def dense_heads_in(folder: Path) -> Iterator[None]:
    """Keep dense heads in `folder` meanwhile: where no other run will ever see these features."""
    global DENSE_HEADS
    before, DENSE_HEADS = DENSE_HEADS, folder
    try:
        yield
    finally:
        DENSE_HEADS = before


def _train_seed(args: argparse.Namespace, inputs: Inputs, plan: Plan, num_concepts: int | None, seed: Seed,
                folder: Path, identity: dict[str, Any]) -> int:
    """Train the missing cells of one seed, group by group; known dense heads are copied. How many were trained."""
    ledger, shared = folder / LEDGER, _dense_folder(args, inputs) / LEDGER
    done = {cell_of(row) for row in read_ledger(ledger)}
    known = {cell_of(row): row for row in read_ledger(shared)}
    cells = [Cell(seed.number, ratio, rate) for ratio in args.ratios for rate in args.learning_rates]
    dense = [Cell(seed.number, DENSE, rate) for rate in args.learning_rates]
    cells, dense = ([cell for cell in some if cell not in done] for some in (cells, dense))
    # Copied only together with the first results, or alone where nothing else is missing: a bank that is refused
    # must leave no ledger behind.
    copied = [{**identity, **known[cell]} for cell in dense if cell in known]
    stacks = dense_stacks(inputs, seed, [cell for cell in dense if cell not in known])
    labels = [split.labels_N.to(seed.device) for split in (inputs.train, inputs.val)]
    recipe, trained = Recipe(args.n_epoch, args.batch_size), 0
    resume_file = folder / f"resume_seed{seed.number}.pt"
    for group in plan(inputs, num_concepts, seed, cells) if cells else [None]:
        started = time.monotonic()
        stacks = [*(group.stacks if group else []), *stacks]  # the dense heads go along with the first group
        if not stacks:
            if copied:
                add_rows(ledger, copied)
            break
        heads = train_stacks(stacks, *labels, recipe, seed.number, seed.selection, resume_file)
        banks = [(None, None) if head.cell.dense else group.bank_of(head) for head in heads]
        seconds = (time.monotonic() - started) / len(heads)
        rows = [row_of(head, bank, args.sparsifier, seconds) for head, (bank, _) in zip(heads, banks, strict=True)]
        if of_dense := [row for row in rows if row["ratio"] == DENSE]:
            add_rows(shared, of_dense)
        rows = [*copied, *({**identity, **row} for row in rows)]
        # The ledger last: what it names as done has its predictors, whenever a run is killed.
        save_predictors(folder, heads, banks, merged(read_ledger(ledger), rows), inputs.class_labels, identity)
        add_rows(ledger, rows)
        resume_file.unlink(missing_ok=True)
        stacks, copied, trained = [], [], trained + len(heads)
    return trained


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
    order = torch.randperm(count, generator=torch_rng(seed, "holdout"))
    return order[held:].sort().values, order[:held].sort().values


def _dense_folder(args: argparse.Namespace, inputs: Inputs) -> Path:
    """One folder for everything a dense head depends on, apart from seed and learning rate."""
    parts = [args.model_name, args.dataset, inputs.train.content_hash[:8], inputs.val.content_hash[:8],
             f"e{args.n_epoch}", f"b{args.batch_size}", *([f"holdout{args.holdout:g}"] if args.holdout else []),
             *(["tf32"] if args.tf32 else [])]
    return DENSE_HEADS / slug("_".join(parts))


def default_folder(args: argparse.Namespace, kind: str, num_concepts: int | None, identity: dict[str, Any]) -> Path:
    """IP_training/IP_KIND/MODEL/… with what tells this setting from others."""
    words = identity.get("concept_set")  # named where it is not the data set's own list
    parts = [args.dataset, *([args.element_kind] if identity["elements_hash"] else []),
             *identity.get("parts", []), *([identity["bank_name"]] if "bank_name" in identity else []),
             *([words] if words not in (None, f"{args.dataset}_filtered") else []), f"M{num_concepts or 'all'}"]
    parts += [args.protocol] if args.protocol != "paper" else []
    parts += [str(getattr(args, name)) for name, value in PROTOCOLS[args.protocol].items()
              if getattr(args, name, value) != value]
    parts += [f"holdout{args.holdout:g}"] if args.holdout else []
    parts += [f"epochs{args.n_epoch}"] if args.n_epoch != 30 else []
    parts += [f"bank{args.bank_seed}"] if args.bank_seed is not None else []
    parts += [f"kmeans_{identity['kmeans']}"] if "kmeans" in identity else []
    parts += ["tf32"] if args.tf32 else []
    return ROOT / "IP_training" / f"IP_{kind}" / slug(args.model_name) / slug("_".join(parts))
