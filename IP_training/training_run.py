"""One run of stage 3: any bank, all ratios x learning rates x seeds, and the dense heads → ledger and predictors.

Everything a bank differs in is the function that makes it. Finished cells are skipped; a killed run goes on at the
last saved epoch of the seed it was in.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from iis.advice import advice
from iis.config import write_settings
from iis.embedding_file import Embeddings
from iis.grid import DENSE, Cell, kept_count
from iis.ledger import LEDGER, add_rows, cell_of, pack_hits, read_ledger
from iis.names import slug
from iis.runtime import ROOT, choose_device, claim_folder, torch_rng
from IP_training.concept_banks import Bank
from IP_training.flags import PROTOCOLS, settle
from IP_training.grid_training import Recipe, Stack, Trained, train_stacks
from IP_training.inputs import Inputs, default_num_concepts, load_inputs
from IP_training.predictor import DenseHeads, InterpretationHeads, interpret
from IP_training.predictor_files import save_predictors

# Dense heads depend on features and seed alone: trained once, for all banks.
DENSE_HEADS = Path(os.environ.get("IIS_DENSE_HEADS", ROOT / "IP_training" / "dense_heads"))
MakeBank = Callable[[Inputs, int, int], Bank]  # (inputs, M, seed) → bank


def run(args: argparse.Namespace, kind: str, make_bank: MakeBank, bank_settings: dict[str, Any]) -> Path:
    """Train what the ledger lacks. Returns the folder with the ledger.

    kind: the bank's name in paths and ledger. bank_settings: what else decides the bank; it becomes part of every
    row and of the folder's manifest.
    """
    args, started = settle(args), time.monotonic()
    inputs = load_inputs(args)
    num_concepts = args.num_concepts or default_num_concepts(args.dataset)
    identity = _identity(args, kind, num_concepts, inputs, bank_settings)
    folder = args.save_dir or _default_folder(args, kind, num_concepts)
    claim_folder(folder, identity)
    device = choose_device(args.device)
    write_settings(args, folder / "settings.yaml")
    ledger = folder / LEDGER
    trained_cells = 0
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        missing = _missing(args, seed, read_ledger(ledger))
        if not missing:
            continue
        rows, heads, bank = _train_seed(args, inputs, make_bank, num_concepts, seed, missing, folder, device)
        add_rows(ledger, [{**identity, **row} for row in rows])
        save_predictors(folder, bank, heads, read_ledger(ledger), inputs.train.class_names, identity)
        _resume_file(folder, seed).unlink(missing_ok=True)
        trained_cells += len(rows)
    rows = read_ledger(ledger)
    for line in advice(rows):
        print(line)
    seconds = time.monotonic() - started
    print(f"stage 3: {trained_cells} heads trained, {len(rows)} in {ledger}, {seconds:.1f} s on {device}"
          + (f" ({seconds / trained_cells:.2f} s a head)" if trained_cells else " (all were done already)"))
    return folder


def _train_seed(args: argparse.Namespace, inputs: Inputs, make_bank: MakeBank, num_concepts: int, seed: int,
                missing: list[Cell], folder: Path, device: torch.device) -> tuple[list[dict], list[Trained], Bank]:
    """Train the missing cells of one seed together; dense heads come from the cache where they are known."""
    started = time.monotonic()
    train_labels, val_labels = inputs.train.labels_N.to(device), inputs.val.labels_N.to(device)
    known = _known_dense(args, inputs, missing)
    bank = make_bank(inputs, num_concepts, seed)
    bank_MD = bank.vectors_MD.to(device)
    z_train, z_val = interpret(inputs.train.features_ND, bank_MD), interpret(inputs.val.features_ND, bank_MD)  # (N, M)
    dense = [cell for cell in missing if cell.dense and cell not in known]
    h_train = h_val = None
    if dense:
        h_train = inputs.train.features_ND.to(device, torch.float32)
        h_val = inputs.val.features_ND.to(device, torch.float32)
    stacks = []
    for rate in args.learning_rates:
        cells = [cell for cell in missing if not cell.dense and cell.learning_rate == rate]
        if cells:
            heads = InterpretationHeads([cell.ratio for cell in cells], num_concepts, inputs.num_classes,
                                        torch_rng(seed, "head"), args.sparsifier).to(device)
            stacks.append(Stack(heads, cells, z_train, z_val))
        cells = [cell for cell in dense if cell.learning_rate == rate]
        if cells:
            heads = DenseHeads(1, inputs.train.width, inputs.num_classes, torch_rng(seed, "dense head")).to(device)
            stacks.append(Stack(heads, cells, h_train, h_val))
    recipe = Recipe(args.n_epoch, args.batch_size)
    trained = train_stacks(stacks, train_labels, val_labels, recipe, seed, _selection(args, inputs, seed),
                           _resume_file(folder, seed)) if stacks else []
    seconds = (time.monotonic() - started) / max(len(trained), 1)
    rows = [_row(head, num_concepts, args.sparsifier, bank, seconds) for head in trained]
    new_dense = [row for row in rows if row["ratio"] == DENSE]
    if new_dense:
        add_rows(_dense_folder(args, inputs) / LEDGER, new_dense)
    return rows + list(known.values()), trained, bank


def _row(head: Trained, num_concepts: int, sparsifier: str, bank: Bank, seconds: float) -> dict[str, Any]:
    """One ledger row: accuracies are fractions, epochs count from 1, seconds are this head's share."""
    cell, best = head.cell, head.best_epoch
    kept = None if cell.dense else kept_count(num_concepts, cell.ratio) - (sparsifier == "strict")  # strict: at most
    row = {"seed": cell.seed, "ratio": cell.ratio, "learning_rate": cell.learning_rate,
           "kept": kept, "top1": head.top1[best], "top5": head.top5[best], "best_epoch": best + 1,
           "last_top1": head.top1[-1], "last_top5": head.top5[-1], "select_top1": head.select_top1[best],
           "last_select_top1": head.select_top1[-1], "loss": head.loss[-1], "top1_by_epoch": head.top1,
           "loss_by_epoch": head.loss, "empty_concepts": None if cell.dense else bank.empty,
           "note": "nothing is kept: a constant prediction" if kept == 0 else None,
           "hits": pack_hits(head.hits)}
    return {**row, "seconds": round(seconds, 3), "date": datetime.datetime.now().isoformat(timespec="seconds"),
            "host": platform.node()}


def _missing(args: argparse.Namespace, seed: int, rows: list[dict[str, Any]]) -> list[Cell]:
    done = {cell_of(row) for row in rows}
    cells = [Cell(seed, ratio, rate) for ratio in (DENSE, *args.ratios) for rate in args.learning_rates]
    return [cell for cell in cells if cell not in done]


def _known_dense(args: argparse.Namespace, inputs: Inputs, missing: list[Cell]) -> dict[Cell, dict[str, Any]]:
    rows = {cell_of(row): row for row in read_ledger(_dense_folder(args, inputs) / LEDGER)}
    return {cell: rows[cell] for cell in missing if cell in rows}


def _dense_folder(args: argparse.Namespace, inputs: Inputs) -> Path:
    """One folder for everything a dense head depends on, apart from seed and learning rate."""
    parts = [args.model_name, args.dataset, inputs.train.content_hash[:8], inputs.val.content_hash[:8],
             f"e{args.n_epoch}", f"b{args.batch_size}", *([f"holdout{args.holdout:g}"] if args.holdout else [])]
    return DENSE_HEADS / slug("_".join(parts))


def _selection(args: argparse.Namespace, inputs: Inputs, seed: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`--holdout F`: a seeded split of train into rows to train on and rows to select on."""
    count = len(inputs.train)
    held = int(round(count * args.holdout))
    if not held:
        return None
    order = torch.randperm(count, generator=torch_rng(seed, "holdout"))
    return order[held:].sort().values, order[:held].sort().values


def _identity(args: argparse.Namespace, kind: str, num_concepts: int, inputs: Inputs,
              bank_settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that identifies the numbers of a run, apart from seed, ratio and learning rate."""
    def source(embeddings: Embeddings) -> dict[str, Any]:
        return {name: embeddings.provenance.get(name) for name in ("weights", "weights_hash", "node", "precision")}

    labels = torch.bincount(inputs.val.labels_N, minlength=inputs.num_classes)
    elements = inputs.elements
    return {"bank": kind, "num_concepts": num_concepts, "model": args.model_name, "dataset": args.dataset,
            "protocol": args.protocol, "sparsifier": args.sparsifier, **bank_settings,
            "elements": elements.provenance.get("elements") if elements else None,
            "elements_hash": elements.content_hash if elements else None,
            "train_hash": inputs.train.content_hash, "val_hash": inputs.val.content_hash, **source(inputs.train),
            "width": inputs.train.width, "num_classes": inputs.num_classes, "n_train": len(inputs.train),
            "n_val": len(inputs.val), "chance": float(labels.max() / labels.sum()), "epochs": args.n_epoch,
            "batch_size": args.batch_size, "holdout": args.holdout}


def _default_folder(args: argparse.Namespace, kind: str, num_concepts: int) -> Path:
    parts = [args.dataset, args.element_kind, f"M{num_concepts}"]
    parts += [args.protocol] if args.protocol != "paper" else []
    parts += [getattr(args, name) for name, value in PROTOCOLS[args.protocol].items()
              if getattr(args, name, value) != value]
    parts += [f"holdout{args.holdout:g}"] if args.holdout else []
    parts += [f"epochs{args.n_epoch}"] if args.n_epoch != 30 else []
    return ROOT / "IP_training" / f"IP_{kind}" / slug(args.model_name) / slug("_".join(parts))


def _resume_file(folder: Path, seed: int) -> Path:
    return folder / f"resume_seed{seed}.pt"
