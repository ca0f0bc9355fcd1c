"""Accuracy at 5, 10, … 30 non-zero weights per class (NEC, VLG-CBM's measure), from the elastic-net path on each bank.

    python reproduction/accuracy_at_nec.py --sweep shapes
    python reproduction/accuracy_at_nec.py --model_root IP_training/IP_*/resnet20 --save_dir results/nec

Banks are read from the runs' predictors/ (of End2End that of the smallest ratio); only the layer is fitted. Results are
kept in nec.json beside each ledger, seed by seed. Writes nec (.csv, .md, .tex) and nec_DATASET.png, .pdf.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import torch

from iis.cli import run_script, setting
from iis.names import slug
from iis.processes import in_processes, jobs_that_fit
from iis.runtime import UserError, choose_device, each, float32_products, progress, read_json, write_json
from reproduction.lib.figures import legend_below, panels, style
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import finished, groups, marked, percent, seeds_of
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder

Levels = Sequence[dict[str, Any]]  # of `nec.over_seeds`
CAPTION = ("Top-1, %, of a linear layer with exactly NEC non-zero weights per class on average, mean ± std over {}: "
           "elastic net (alpha 0.99) on standardised activations, the sparsest solution of a path of 16 λ (down to "
           "1/1000 of the largest) with enough weights, pruned to the largest, bias as fitted. Empty: NEC is more than "
           "M. In brackets: weights per class of the path's densest solution, unpruned, where it has fewer than NEC. "
           "The bank alone depends on the seed. Validation images choose no layer; without --holdout they chose epoch "
           "and learning rate of an End2End bank, and the words of a Text bank.")


@dataclass(kw_only=True)
class Settings(Source):
    """Fitting."""

    device: str | None = setting(None, "cpu, cuda, cuda:N (default: cuda if there is one)")


def main(settings: Settings) -> None:
    """Measure what is missing, then write the table and a figure per data set."""
    from reproduction.lib.nec import over_seeds, short

    folder, device = output_folder(settings), choose_device(settings.device)
    runs = finished(find_runs(settings, draws=2))  # no bootstrap is shown here
    measured, failed = each(lambda run: (run, over_seeds(measure(run, device))),
                            progress(runs, desc="accuracy at NEC", unit="run"))
    if not measured:
        raise UserError("; ".join(failed) or "all runs here are variants of another one")
    groups([run for run, _ in measured])  # titles
    lines = [{"dataset": run.dataset, "bank": run.title, "model": run.model, "seeds": len(run.summary["seeds"]),
              "dense": run.dense, **line, "marks": "; ".join(run.marks)} for run, levels in measured for line in levels]
    people = [{"data set": run.dataset, "bank": run.title, "model": run.model, "dense": percent(run.dense),
               **{f"NEC {line['nec']}".replace("NEC ANEC", "ANEC"): percent(line["top1"], line["top1_std"])
                  + (f" ({line['used']:.1f})" if short(line) else "") for line in levels},
               "marks": "; ".join(run.marks)} for run, levels in measured]
    print(write_table(folder, "nec", lines, people, CAPTION.format(seeds_of([run for run, _ in measured]))))
    for dataset in dict.fromkeys(run.dataset for run, _ in measured):
        figure = curves(dataset, [(run, levels) for run, levels in measured if run.dataset == dataset])
        write_figure(folder, f"nec_{slug(dataset)}", figure)
    print(f"written: {folder}/nec.*, nec_DATASET.png and .pdf")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(runs)} runs: {'; '.join(failed)}")


def measure(run: Run, device: "torch.device") -> list[Levels]:
    """The lines of `nec.accuracy_at_levels` per seed: those of nec.json that still hold, else fitted now, each seed in
    a process of its own."""
    import torch

    from iis.embedding_file import content_hash
    from IP_training.elastic_net import bytes_of_fit
    from reproduction.lib.nec import CACHE, LEVELS, PATH, accuracy_at_levels

    file = run.folder / CACHE
    kept = read_json(file) if file.exists() else {}
    missing: dict[str, tuple[dict[str, Any], torch.Tensor]] = {}  # seed: (what its lines depend on, its bank)
    for seed in map(str, run.summary["seeds"]):
        bank_MD = run.bank(int(seed)).vectors_MD
        bank_hash = content_hash(bank_MD, torch.zeros(0, dtype=torch.int64))
        depends = {"path": PATH, "levels": list(LEVELS), "bank": bank_hash,
                   **{name: run.identity[name] for name in ("train_hash", "val_hash")}}
        if kept.get(seed, {}).get("depends") != depends:
            missing[seed] = depends, bank_MD
    if missing:
        splits = [(split.features_ND, split.labels_N) for split in (images_of(run, "train"), images_of(run, "val"))]
        classes, concepts = run.identity["num_classes"], max(len(bank_MD) for _, bank_MD in missing.values())
        tasks = [lambda _, bank_MD=bank_MD: accuracy_at_levels(*splits, bank_MD.to(device), classes)
                 for _, bank_MD in missing.values()]
        memory = bytes_of_fit(sum(len(labels_N) for _, labels_N in splits), bank_MD.shape[1], concepts, classes)
        # On a GPU one after another: a forked process cannot use it.
        jobs = jobs_that_fit(len(tasks), memory, None if device.type == "cpu" else 1)
        with float32_products():
            for index, lines in in_processes(tasks, jobs):
                seed = list(missing)[index]
                kept[seed] = {"depends": missing[seed][0], "levels": lines}
                write_json(file, kept)
    return [kept[str(seed)]["levels"] for seed in run.summary["seeds"]]


def curves(dataset: str, measured: Sequence[tuple[Run, Levels]]) -> Any:
    """Accuracy against NEC, a panel per model, a line per bank with its std; dotted: the dense head."""
    models, banks = (list(dict.fromkeys(getattr(run, name) for run, _ in measured)) for name in ("model", "title"))
    figure, axes = panels(len(models), f"{dataset}: accuracy at NEC", 3.3, 3.2)
    for one, model in zip(axes, models, strict=True):
        mine = [(run, levels) for run, levels in measured if run.model == model]
        for run, levels in mine:
            drawn = [line for line in levels if line["nec"] != "ANEC" and line["top1"] is not None]
            one.errorbar([line["nec"] for line in drawn], [100 * line["top1"] for line in drawn],
                         [100 * (line["top1_std"] or 0) for line in drawn], label=marked(run.title, run), capsize=2,
                         markersize=4.5, linewidth=1.5, **style(banks.index(run.title)))
        one.axhline(100 * mine[-1][0].dense, color="0.4", linewidth=1, linestyle=":", label="dense head")
        one.set(title=model, xlabel="non-zero weights per class (NEC)", ylabel="top-1, %")
    legend_below(figure, axes)
    return figure


if __name__ == "__main__":
    run_script(main, Settings)
