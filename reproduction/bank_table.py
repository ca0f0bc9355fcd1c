"""All banks of one data set side by side: IIS, accuracy at an equal number of kept concepts, effective rank.

    python reproduction/bank_table.py --dataset cifar10 --save_dir results/cifar10

reads the ledgers below IP_training/IP_*/MODEL/DATASET_* and the banks in their predictors/; writes banks.csv and prints
the table in Markdown. Banks of different size are compared at `--kept` concepts: the accuracy there is interpolated
between the two nearest ratios, linearly in log k.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import ScriptParser, path, run_script
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, each, make_output_folder, write_text
from iis.summary import summarise
from reproduction.lib.tables import as_csv, as_markdown, plus_minus

ORDER = ("Prototype", "Cluster", "End2End", "Text", "Combined", "Random")


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--dataset", default="cifar10", help="data set whose ledgers are read")
    script.add_argument("--root", type=path, default=ROOT / "IP_training", help="folder of IP_BANK/MODEL/…")
    script.add_argument("--kept", type=int, default=4, help="number of kept concepts to compare banks at")
    script.add_argument("--save_dir", type=path, required=True, help="where banks.csv goes")
    return script


def main(args: argparse.Namespace) -> None:
    """Fold the ledgers into one table."""
    ledgers = sorted(args.root.glob(f"IP_*/*/{args.dataset}_*/{LEDGER}"))
    if not ledgers:
        raise UserError(f"there is no ledger of {args.dataset} below {args.root}; run ip_train.sh first")
    lines, failed = each(lambda file: line_of(file, args.kept), ledgers)
    if not lines:
        raise UserError("; ".join(failed))
    lines.sort(key=_place)
    folder = make_output_folder(args.save_dir)
    write_text(folder / "banks.csv", as_csv(lines))
    print(as_markdown([
        {**{name: line[name] for name in ("model", "protocol", "M", "bank", "elements", "seeds")},
         "IIS": plus_minus(line["iis"], line["iis_std"]),
         f"top-1 at {args.kept} kept, %": plus_minus(line["top1_at_kept"], line["top1_at_kept_std"], 2),
         "effective rank": f"{line['effective_rank']:.1f}", "empty": f"{line['empty']:.1f}"} for line in lines]))
    print(f"written: {folder}/banks.csv")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(ledgers)} ledgers: {'; '.join(failed)}")


def _place(line: dict[str, Any]) -> tuple:
    bank = ORDER.index(line["bank"]) if line["bank"] in ORDER else len(ORDER)
    return line["model"], line["protocol"], str(line["M"]).rjust(9), bank, line["elements"]


def line_of(file: Path, kept: int) -> dict[str, Any]:
    """One ledger as one line: means over seeds, standard deviations with ddof 1."""
    rows = read_ledger(file)
    result = summarise(rows, where=str(file))
    curves = np.array(result["curves"]["best"]["accuracy"])  # (R, S)
    at_kept = [100 * accuracy_at(kept, result["kept"], curve) for curve in curves]
    predictors = [file.parent / "predictors" / f"seed_{seed}.safetensors" for seed in result["seeds"]]
    ranks = [rank for predictor in predictors for rank in _ranks(predictor)]
    elements = rows[0]["elements"] or {}
    return {"model": result["model"], "protocol": result["protocol"], "M": result["num_concepts"],
            "bank": result["bank"], "elements": elements.get("kind", "-"), "seeds": len(result["seeds"]),
            "dense": result["dense"]["mean"], "iis": result["iis"]["mean"], "iis_std": result["iis"]["std"],
            "bootstrap_low": result["bootstrap"]["interval_95"][0], "kept": kept,
            "bootstrap_high": result["bootstrap"]["interval_95"][1], "top1_at_kept": float(np.mean(at_kept)),
            "top1_at_kept_std": float(np.std(at_kept, ddof=1)) if len(at_kept) > 1 else None,
            "effective_rank": float(np.mean(ranks)),
            "empty": float(np.mean([row["empty_concepts"] for row in rows if row["empty_concepts"] is not None]))}


def accuracy_at(kept: int, counts: list[int], accuracies: np.ndarray) -> float:
    """Accuracy with `kept` concepts, linear in log k between the nearest ratios; NaN outside what was trained."""
    pairs = sorted({count: accuracy for count, accuracy in zip(counts, accuracies, strict=True) if count > 0}.items())
    known = [count for count, _ in pairs]
    if not known[0] <= kept <= known[-1]:
        return float("nan")
    return float(np.interp(np.log(kept), np.log(known), [accuracy for _, accuracy in pairs]))


def effective_rank(bank_MD: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007): 1 for one direction, at most
    min(M, D)."""
    values = np.linalg.svd(bank_MD, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _ranks(file: Path) -> list[float]:
    """Effective rank of the banks in a predictor file: one, or one per ratio where each has its own."""
    from safetensors.numpy import load_file

    return [effective_rank(value) for name, value in load_file(file).items() if name.split("/")[-1] == "bank"]


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
