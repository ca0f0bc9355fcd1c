"""LF-CBM's final layer on a bank: standardised activations, sparse weights by the elastic net. A comparison."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from iis.cli import tell, write_settings
from iis.embedding_file import save_tensors
from iis.runtime import UserError, choose_device, write_json
from IP_training.inputs import Inputs
from IP_training.rows import identity_of
from IP_training.stacks import MakeBank, Seed
from IP_training.training_run import claimed, default_folder, selection_of, tf32_products


def run_elastic_net(args: argparse.Namespace, kind: str, inputs: Inputs, make_bank: MakeBank,
                    num_concepts: int | None, bank_settings: dict[str, Any]) -> Path:
    """Fit one layer per seed, write elastic_net.json (accuracy, non-zero weights, objective) and the weights.

    Activations are standardised by the moments of train, because one λ treats all concepts alike.
    """
    from IP_training.elastic_net import fit_elastic_net
    from IP_training.normalise import fit_normaliser
    from IP_training.predictor import interpret

    if args.lam < 0:
        raise UserError(f"--lam {args.lam:g}: a penalty is at least 0")
    identity = {**identity_of(args, kind, num_concepts, inputs, bank_settings), "final_layer": "elastic net",
                "lam": args.lam, "n_iters": args.n_iters, "saga_batch_size": args.saga_batch_size}
    usual = default_folder(args, kind, num_concepts, identity)
    folder = args.save_dir or usual.with_name(f"{usual.name}_elastic_lam{args.lam:g}")
    if "dry_run" in args:
        tell(f"stage 3, elastic net on a {kind} bank", {
            "shapes": f"N = {len(inputs.train):,} + {len(inputs.val):,} images, D = {inputs.train.width}, "
                      f"C = {inputs.num_classes}; at most {args.n_iters} passes for each of {args.seeds} seeds",
            "disk": f"a few MB in {folder}", "time": "not foreseen: it stops where the objective does"})
        return folder
    with claimed(folder, identity, "elastic_net.json"), tf32_products(args.tf32):
        write_settings(args, folder / "settings.yaml")
        device, results = choose_device(args.device), []
        for number in range(args.first_seed, args.first_seed + args.seeds):
            started = time.monotonic()
            seed = Seed(number, device, args.sparsifier, selection_of(args.holdout, len(inputs.train), number),
                        args.bank_seed)
            bank = make_bank(inputs, num_concepts, seed.of_bank)
            bank_MD = bank.vectors_MD.to(device)
            normaliser = fit_normaliser([("standard", len(bank))], inputs.train.features_ND, bank_MD, seed.train_rows)
            x_train, x_val = (interpret(split.features_ND, bank_MD, normaliser) for split in (inputs.train, inputs.val))
            rows = slice(None) if seed.train_rows is None else seed.train_rows
            fit = fit_elastic_net(x_train[rows], inputs.train.labels_N[rows].to(device), inputs.num_classes, args.lam,
                                  n_iters=args.n_iters, batch_size=args.saga_batch_size, seed=number)
            right = (x_val @ fit.W_CM.T + fit.b_C).argmax(1) == inputs.val.labels_N.to(device)
            nonzero = int((fit.W_CM != 0).sum())
            results.append({"seed": number, "top1": float(right.double().mean()), "bank_size": len(bank),
                            "nonzero": nonzero, "nec": nonzero / inputs.num_classes, "objective": float(fit.objective),
                            "epochs": fit.epochs, "seconds": round(time.monotonic() - started, 2)})
            save_tensors(folder / f"elastic_net_seed{number}.safetensors", {
                "bank": bank.vectors_MD, "weight": fit.W_CM, "bias": fit.b_C, "mean": normaliser.mean_M,
                "std": normaliser.std_M})
            print(f"elastic net, seed {number}: top-1 {100 * results[-1]['top1']:.2f} %, {nonzero} non-zero weights "
                  f"({results[-1]['nec']:.1f} a class) of {len(bank)} concepts, {fit.epochs} passes")
        write_json(folder / "elastic_net.json", {"identity": identity, "results": results})
    print(f"written: {folder}/elastic_net.json")
    return folder
