"""How much of the variance of the IIS is bank sample, head and stage-1 sample: trains what is missing, then shares.

    python reproduction/variance_shares.py --dataset shapes --model shapes_medium --banks 4 --heads 4 --stage1 3

Every bank seed is trained under every head seed (initial weights and batch order; --bank_seed of the training scripts),
and that for every stage-1 seed: which segments of an image are kept (not which images: those are the first of each
class). The dense head is each head seed's own. Writes variance_shares.md, .csv and .tex, and scores.csv with the IIS of
every run; ledgers lie beside them, and a killed run goes on where it was.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import ScriptParser, path, positive, run_script
from iis.names import elements_file, slug
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, write_text
from iis.summary import summarise
from reproduction.lib.outputs import write_table
from reproduction.lib.scripts import call_script
from reproduction.lib.tables import as_csv
from reproduction.lib.variance_components import components, share_intervals

WITHOUT_ELEMENTS = ("Random",)
CAPTION = ("Method of moments; a variance estimated below 0 is given as 0 and marked *. Ranges: parametric bootstrap, "
           "what a design of this size would show if the estimates were true. Head: initial weights and batch order, "
           "of the dense head too. Bank × head is what neither explains alone.")


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--dataset", default="shapes", help="data set, embedded by stage 2")
    script.add_argument("--model", default="shapes_medium", help="backbone: a YAML of model_configs/")
    script.add_argument("--bank", default="Prototype", choices=("Prototype", "Cluster", "End2End", "Random"),
                      help="kind of bank (Random has no stage-1 sample)")
    script.add_argument("--num_concepts", type=positive, default=64, help="M")
    script.add_argument("--banks", type=positive, default=4, help="bank seeds, 0 …")
    script.add_argument("--heads", type=positive, default=4, help="head seeds, 0 …")
    script.add_argument("--stage1", type=positive, default=3, help="stage-1 seeds, 0 … (1: stage 1 as it is)")
    script.add_argument("--n_epoch", type=positive, default=30, help="epochs per head")
    script.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    script.add_argument("--save_dir", type=path, help="output folder (default: its own below "
                      "results/reproduction/variance)")
    return script


def main(args: argparse.Namespace) -> Path:
    """Train what is missing and write the table. Returns its folder."""
    if min(args.banks, args.heads) < 2:
        raise UserError(f"--banks {args.banks} --heads {args.heads}: at least 2 of each are needed to tell them apart")
    samples = 1 if args.bank in WITHOUT_ELEMENTS else args.stage1
    usual = ROOT / "results" / "reproduction" / "variance"
    folder = args.save_dir or usual / slug(f"{args.dataset}_{args.model}_{args.bank}_M{args.num_concepts}")
    elements = [None] if args.bank in WITHOUT_ELEMENTS else [
        elements_of(args, usual / "elements", sample) for sample in range(samples)]
    scores_SBH = np.array([[scores_of(args, folder, elements[sample], sample, bank) for bank in range(args.banks)]
                           for sample in range(samples)])
    cells = [dict(zip(("stage1_seed", "bank_seed", "head_seed"), place, strict=True), iis=float(scores_SBH[place]))
             for place in itertools.product(*map(range, scores_SBH.shape))]
    write_text(folder / "scores.csv", as_csv(cells))
    lines, shown = table(scores_SBH)
    what = (f"{args.model} on {args.dataset}, {args.bank} bank, M = {args.num_concepts}; {samples} stage-1 samples × "
            f"{args.banks} banks × {args.heads} heads; mean IIS {scores_SBH.mean():.4f}.")
    print(write_table(folder, "variance_shares", lines, shown, f"{what} {CAPTION}"))
    print(f"written: {folder}/variance_shares.csv")
    return folder


def table(scores_SBH: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line per source, as numbers and as people read them."""
    found = components(scores_SBH)
    ranges = share_intervals(found, scores_SBH.shape)
    lines = [{"source": source, "variance": value, "std": value ** 0.5, "share": found.shares[source],
              "share_low": ranges[source][0], "share_high": ranges[source][1], "below_0": source in found.negative}
             for source, value in found.variance.items()]
    total = sum(found.variance.values())
    lines.append({"source": "all", "variance": total, "std": total ** 0.5, "share": 1.0 if total else float("nan"),
                  "share_low": None, "share_high": None, "below_0": False})
    shown = [{"source": line["source"], "std of the IIS": f"{line['std']:.4f}" + ("*" if line["below_0"] else ""),
              "share, %": f"{100 * line['share']:.1f}", "95 % range": "-" if line["share_low"] is None else
              f"{100 * line['share_low']:.0f} to {100 * line['share_high']:.0f}"} for line in lines]
    return lines, shown


def elements_of(args: argparse.Namespace, root: Path, sample: int) -> Path:
    """Embedded segments of a stage-1 seed: stage 2's own file for seed 0, else made here with the same settings."""
    from extractor import segment_extractor, visual_element_emb_extractor
    from iis.embedding_file import load_embeddings

    usual = elements_file(args.model, args.dataset, "segments")
    if not usual.is_file():
        raise UserError(f"there are no embedded segments {usual}: run concept_extract.sh and emb_extractor.sh with "
                        f"DATASET={args.dataset} MODELS={args.model} first")
    made = load_embeddings(usual).provenance["elements"]
    if sample == made["seed"]:
        return usual
    folder = root / args.dataset / f"segments_seed{sample}"
    same = {key: made[key] for key in ("segment_choice", "bounding_box", "image_per_class", "format")}
    call_script(segment_extractor, {"dataset": args.dataset, "save_root": folder, "seed": sample, **same})
    place = root / args.dataset / f"embs_seed{sample}"
    call_script(visual_element_emb_extractor, {"config_yaml": args.model, "dataset": args.dataset, "data_path": folder,
                                             "model_name": args.model, "save_root": place, "device": args.device})
    return elements_file(args.model, args.dataset, "segments", root=place)


def scores_of(args: argparse.Namespace, folder: Path, elements: Path | None, sample: int, bank: int) -> list[float]:
    """IIS of each head seed (H,) under one bank seed."""
    import importlib

    name = "IP_Bank_training" if args.bank in WITHOUT_ELEMENTS else f"IP_{args.bank}_training"
    ledger = call_script(importlib.import_module(f"IP_training.{name}"), {
        "model_name": args.model, "dataset": args.dataset, "num_concepts": args.num_concepts, "bank_seed": bank,
        "seeds": args.heads, "n_epoch": args.n_epoch, "concept_path": elements, "device": args.device,
        "kind": "Random" if name == "IP_Bank_training" else None,
        "save_dir": folder / f"stage1_{sample}" / f"bank_{bank}"}) / LEDGER
    rows = [row for row in read_ledger(ledger) if row["seed"] < args.heads]  # an earlier run may have had more
    return summarise(rows, draws=2, where=str(ledger))["iis"]["per_seed"]


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
