"""Ledger rows: what identifies a run, and what a trained head achieved."""

from __future__ import annotations

import argparse
import datetime
import platform
from typing import Any

import torch

from iis.grid import kept_count
from iis.results import pack_correct
from IP_training.concept_banks import Bank
from IP_training.grid_training import Trained
from IP_training.inputs import Inputs


def identity_of(args: argparse.Namespace, kind: str, num_concepts: int | None, inputs: Inputs,
                bank_settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that identifies the numbers of a run, apart from seed, ratio and learning rate."""
    source = {name: inputs.train.provenance.get(name) for name in ("weights", "weights_hash", "node", "precision")}
    labels = torch.bincount(inputs.val.labels_N, minlength=inputs.num_classes)
    elements = inputs.elements
    return {"bank": kind, "num_concepts": num_concepts, "model": args.model_name, "dataset": args.dataset,
            "protocol": args.protocol, "sparsifier": args.sparsifier, **bank_settings,
            "elements": elements.provenance.get("elements") if elements else None,
            "elements_hash": elements.content_hash if elements else None,
            "train_hash": inputs.train.content_hash, "val_hash": inputs.val.content_hash, **source,
            "width": inputs.train.width, "num_classes": inputs.num_classes, "n_train": len(inputs.train),
            "n_val": len(inputs.val), "chance": float(labels.max() / labels.sum()), "epochs": args.n_epoch,
            "batch_size": args.batch_size, "holdout": args.holdout,
            **({} if args.bank_seed is None else {"bank_seed": args.bank_seed}),
            **({"tf32": True} if args.tf32 else {})}


def row_of(head: Trained, bank: Bank | None, sparsifier: str, seconds: float) -> dict[str, Any]:
    """One ledger row: accuracies are fractions, epochs count from 1, seconds are this head's share.

    bank: None for the dense head. kept: how many concepts stay (under `strict` at most).
    """
    cell, best = head.cell, head.best_epoch
    kept = None if bank is None else kept_count(len(bank), cell.ratio) - (sparsifier == "strict")
    row = {"seed": cell.seed, "ratio": cell.ratio, "learning_rate": cell.learning_rate, "kept": kept,
           "bank_size": len(bank) if bank else None, "empty_concepts": bank.empty if bank else None,
           "top1": head.top1[best], "top5": head.top5[best], "best_epoch": best + 1,
           "last_top1": head.top1[-1], "last_top5": head.top5[-1], "select_top1": head.select_top1[best],
           "last_select_top1": head.select_top1[-1], "loss": head.loss[-1], "top1_by_epoch": head.top1,
           "loss_by_epoch": head.loss, "note": "nothing is kept: a constant prediction" if kept == 0 else None,
           "hits": pack_correct(head.correct)}
    return {**row, "seconds": round(seconds, 3), "date": datetime.datetime.now().isoformat(timespec="seconds"),
            "host": platform.node()}
