"""Accuracy at 5, 10, … 30 non-zero weights per class (NEC, VLG-CBM's measure), from the elastic-net path on each bank.

    python reproduction/accuracy_at_nec.py --sweep shapes
    python reproduction/accuracy_at_nec.py --model_root IP_training/IP_*/resnet20 --save_dir results/nec

Banks are read from the runs' predictors/ (of End2End that of the smallest ratio); only the layer is fitted. What was
measured is kept in nec.json beside each ledger, seed by seed. Writes nec (.csv, .md, .tex) and nec_DATASET.png, .pdf.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import torch

from iis.cli import ScriptParser, run_script
from iis.plots import COLOURS, MARKERS
from iis.runtime import UserError, choose_device, each, make_output_folder, read_json, write_json
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.points import finished, groups, seeds_said, slug
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, add_source_flags, find_runs, output_folder
from reproduction.lib.tables import plus_minus


def parser() -> ScriptParser:
    """The flags of this script."""
    script = add_source_flags(ScriptParser(description=__doc__.splitlines()[0]))
    script.add_argument("--device", help="cpu, cuda, cuda:N (default: cuda if there is one)")
    return script


def main(args: argparse.Namespace) -> None:
    """Measure what is not kept yet, then write the table and a figure per data set."""
    from tqdm import tqdm

    folder, device = make_output_folder(output_folder(args)), choose_device(args.device)
    runs = finished(find_runs(args, draws=2))  # no bootstrap is shown here
    measured, failed = each(lambda run: (run, measure(run, device)), tqdm(runs, desc="accuracy at NEC", unit="run"))
    if not measured:
        raise UserError("; ".join(failed) or "all runs here are variants of another one")
    by_folder = {run.folder: seeds for run, seeds in measured}
    found = groups([run for run, _ in measured])
    lines = [line for (_, bank), mine in found.items() for run in mine for line in lines_of(run, bank, by_folder)]
    print(write_table(folder, "nec", lines, shown(lines), caption([run for run, _ in measured])))
    names = {dataset: f"nec_{slug(dataset)}" for dataset, _ in found}
    for dataset, name in names.items():
        write_figure(folder, name, figure([line for line in lines if line["dataset"] == dataset]))
    print(f"written: {folder}/nec.* and as .png and .pdf {', '.join(names.values())}")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(runs)} runs: {'; '.join(failed)}")


def measure(run: Run, device: "torch.device") -> dict[int, list[dict[str, Any]]]:
    """Per seed the lines of `nec.accuracy_at_levels`: those of nec.json that still hold, else fitted now."""
    from iis.embedding_file import load_tensors
    from reproduction.lib.nec import CACHE, LEVELS, PATH, accuracy_at_levels

    file = run.folder / CACHE
    kept = read_json(file) if file.exists() else {}
    splits: list[tuple[torch.Tensor, torch.Tensor]] = []
    result = {}
    for seed in run.summary["seeds"]:
        bank_MD = bank_of(load_tensors(run.folder / "predictors" / f"seed_{seed}.safetensors"))
        depends = {"path": PATH, "levels": list(LEVELS), "bank": hash_of(bank_MD),
                   **{name: run.identity[name] for name in ("train_hash", "val_hash")}}
        if kept.get(str(seed), {}).get("depends") != depends:
            if not splits:
                found = [images_of(run, split) for split in ("train", "val")]
                splits = [(split.features_ND, split.labels_N) for split in found]
            lines = accuracy_at_levels(*splits, bank_MD.to(device), run.identity["num_classes"])
            kept[str(seed)] = {"depends": depends, "levels": lines}
            write_json(file, kept)
        result[seed] = kept[str(seed)]["levels"]
    return result


def bank_of(tensors: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """The bank (M, D) of a predictor file; where every ratio has its own, that of the smallest ratio."""
    own = sorted((name for name in tensors if name.endswith("/bank")), key=lambda name: float(name.split("/")[0]))
    if "bank" not in tensors and not own:
        raise UserError("a predictor file holds no bank; run stage 3 again")
    return tensors["bank" if "bank" in tensors else own[0]].float()


def hash_of(bank_MD: "torch.Tensor") -> str:
    """What tells one bank from another."""
    import torch

    from iis.embedding_file import content_hash

    return content_hash(bank_MD, torch.zeros(0, dtype=torch.int64))


def lines_of(run: Run, bank: str, by_folder: dict[Path, dict[int, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One line per level and one for ANEC: mean and std over seeds; accuracies are fractions."""
    from reproduction.lib.nec import over_seeds

    seeds = list(by_folder[run.folder].values())
    start = {"dataset": run.summary["dataset"], "bank": bank, "model": run.model, "seeds": len(seeds),
             "dense": run.summary["dense"]["mean"]}
    return [{**start, **line} for line in over_seeds(seeds)]


def shown(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line per model and bank, a column per level, in percent."""
    table: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in lines:
        row = table.setdefault((line["dataset"], line["bank"], line["model"]), {
            "data set": line["dataset"], "bank": line["bank"], "model": line["model"],
            "dense": f"{100 * line['dense']:.1f}"})
        row[f"NEC {line['nec']}" if line["nec"] != "ANEC" else "ANEC"] = _cell(line)
    return list(table.values())


def _cell(line: dict[str, Any]) -> str:
    if line["top1"] is None:
        return ""
    text = plus_minus(100 * line["top1"], None if line["top1_std"] is None else 100 * line["top1_std"], 1)
    short = line["used"] is not None and line["used"] < line["nec"] - 1e-9
    return f"{text} ({line['used']:.1f})" if short else text


def caption(runs: Sequence[Run]) -> str:
    """What the numbers are."""
    return (f"Top-1, %, of a linear layer with exactly NEC non-zero weights per class on average, mean ± std over "
            f"{seeds_said(runs)}: elastic net (alpha 0.99) on standardised activations, the sparsest solution of a "
            "path of 16 λ (down to 1/1000 of the largest) with enough weights, pruned to the largest, bias as fitted. "
            "Empty: NEC is more than M. In brackets the weights per class of the path's densest solution, where it "
            "has fewer than NEC: it then stands unpruned. The bank alone depends on "
            "the seed. Validation images choose no layer; without --holdout they chose the epoch and learning rate "
            "of an End2End bank, and the words of a Text bank (Combined too, where it holds one).")


def figure(lines: Sequence[dict[str, Any]]) -> Any:
    """Accuracy against NEC, a panel per model, a line per bank with its std; dotted: the dense head."""
    models, banks = (list(dict.fromkeys(line[name] for line in lines)) for name in ("model", "bank"))
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    made, grid = new_figure(max(5.0, 3.3 * columns), 3.2 * rows + 0.25 * len(banks) / columns + 0.4, rows, columns)
    for axes, model in zip(grid.flat, models, strict=False):
        for number, bank in enumerate(banks):
            mine = [line for line in lines if (line["model"], line["bank"]) == (model, bank)
                    and line["nec"] != "ANEC" and line["top1"] is not None]
            axes.errorbar([line["nec"] for line in mine], [100 * line["top1"] for line in mine],
                          [100 * (line["top1_std"] or 0) for line in mine], label=bank, capsize=2, markersize=4.5,
                          color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], linewidth=1.5,
                          linestyle="-" if number < len(COLOURS) else "--")
        dense = next(line["dense"] for line in lines if line["model"] == model)
        axes.axhline(100 * dense, color="0.4", linewidth=1, linestyle=":", label="dense head")
        axes.set(title=model, xlabel="non-zero weights per class (NEC)", ylabel="top-1, %")
        axes.grid(alpha=0.25)
    for axes in list(grid.flat)[len(models):]:
        axes.set_axis_off()
    made.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, columns * 2),
                frameon=False, fontsize=8)
    return made


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
