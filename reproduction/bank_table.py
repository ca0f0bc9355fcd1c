"""All banks of one data set side by side: scores, accuracy at an equal number of kept concepts, effective rank.

    python reproduction/bank_table.py --dataset cifar10 --save_dir results/cifar10

reads the ledgers below IP_training/IP_*/MODEL/ and the banks in their predictors/; writes banks.csv and prints its main
columns. Banks of different size are compared at `--kept` concepts: the accuracy there is interpolated between the two
nearest ratios, linearly in log k.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import run_script, setting
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, each, make_output_folder, write_text
from iis.statistics import mean_std
from reproduction.lib.points import bank_place, beside_iis, groups
from reproduction.lib.runs import Run, read_run
from reproduction.lib.tables import as_csv, as_markdown

PRINTED = ["model", "protocol", "M", "title", "seeds", "iis", "iis_std", "lift", "area_log_k", "top1_at_kept",
           "top1_at_kept_std", "effective_rank", "empty", "marks"]


@dataclass(kw_only=True)
class Settings:
    """Ledgers that are read, and the output."""

    dataset: str = setting("cifar10", "data set whose ledgers are read")
    root: Path = setting(ROOT / "IP_training", "folder of IP_BANK/MODEL/…")
    kept: int = setting(4, "number of kept concepts to compare banks at")
    save_dir: Path = setting(help="where banks.csv goes")


def main(settings: Settings) -> None:
    """Fold the ledgers into one table."""
    files = sorted(settings.root.glob(f"IP_*/*/{settings.dataset}_*/{LEDGER}"))  # cifar10_* is cifar10_corrupted too
    runs, failed = each(lambda file: read_run(file.parent), files)
    runs = [run for run in runs if run.dataset == settings.dataset]
    groups(runs)  # titles
    lines, without_bank = each(lambda run: line_of(run, settings.kept), runs)
    failed += without_bank
    if not lines:
        raise UserError("; ".join(failed) or f"there is no ledger of {settings.dataset} below {settings.root}; run "
                        "ip_train.sh first")
    lines.sort(key=lambda line: (line["model"], line["protocol"], str(line["M"]).rjust(9), bank_place(line["bank"]),
                                 line["elements"]))
    folder = make_output_folder(settings.save_dir)
    write_text(folder / "banks.csv", as_csv(lines))
    print(as_markdown(pd.DataFrame(lines)[PRINTED].round(4)))
    print(f"written: {folder}/banks.csv")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(files)} ledgers: {'; '.join(failed)}")


def line_of(run: Run, kept: int) -> dict[str, Any]:
    """One ledger as one line: means over seeds, standard deviations with ddof 1; top-1 in percent."""
    summary = run.summary
    at_kept, std = mean_std([100 * accuracy_at(kept, summary["kept"], curve)
                             for curve in summary["curves"]["best"]["accuracy"]])
    ranks = [effective_rank(bank.vectors_MD.numpy()) for seed in summary["seeds"] for bank in run.banks(seed).values()]
    empty = [row["empty_concepts"] for row in read_ledger(run.folder / LEDGER) if row["empty_concepts"] is not None]
    low, high = summary["bootstrap"]["interval_95"]
    return {"model": run.model, "protocol": summary["protocol"], "M": summary["num_concepts"],
            "bank": summary["bank"], "elements": run.elements, "seeds": len(summary["seeds"]), "dense": run.dense,
            "iis": run.iis, "iis_std": summary["iis"]["std"], "bootstrap_low": low, "bootstrap_high": high,
            **beside_iis(run), "kept": kept, "top1_at_kept": at_kept, "top1_at_kept_std": std,
            "effective_rank": float(np.mean(ranks)),
            "empty": float(np.mean(empty)), "title": run.title, "marks": "; ".join(run.marks)}


def accuracy_at(kept: int, counts: list[int], accuracies: np.ndarray) -> float:
    """Accuracy with `kept` concepts, linear in log k between the nearest ratios; NaN outside what was trained."""
    known = sorted((np.log(count), accuracy) for count, accuracy in zip(counts, accuracies, strict=True) if count > 0)
    return float(np.interp(np.log(kept), *zip(*known, strict=True), left=np.nan, right=np.nan))


def effective_rank(bank_MD: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007): 1 for one direction, at most
    min(M, D)."""
    values = np.linalg.svd(bank_MD, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


if __name__ == "__main__":
    run_script(main, Settings)
