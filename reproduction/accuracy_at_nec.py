"""Accuracy at 5, 10, … 30 non-zero weights per class (NEC, VLG-CBM's measure), by the elastic net on each bank.

    python reproduction/accuracy_at_nec.py --sweep shapes
    python reproduction/accuracy_at_nec.py --model_root IP_training/IP_*/resnet20 --save_dir results/nec

Banks are read from the runs' predictors/ (of End2End that of the smallest ratio); only the layer is fitted. Results are
kept in nec.json beside each ledger, seed by seed: λ, weights, passes, and where a level is not reached, why. Writes nec
(.csv, .md, .tex) and nec_DATASET.png, .pdf; with --path vlg, which is VLG-CBM's own path, nec_vlg instead of nec.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    import torch

    from IP_training.encoder import Encoder

from iis.cli import positive, run_script, setting
from iis.names import slug
from iis.processes import in_processes, jobs_that_fit
from iis.runtime import UserError, choose_device, each, float32_products, progress, read_json, write_json
from reproduction.lib.figures import legend_below, panels, style
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.points import finished, groups, marked, percent, seeds_of
from reproduction.lib.run_files import images_of
from reproduction.lib.runs import Run, Source, find_runs, output_folder

Levels = Sequence[dict[str, Any]]  # of `nec.over_seeds`
Seeds = Sequence[Levels]  # of `nec.accuracy_at_levels`
CAPTION = ("Top-1, %, of a linear layer with exactly NEC non-zero weights per class on average, mean ± std over {}: "
           "elastic net (alpha 0.99) on standardised activations, solved to {:g} of its penalty, {}, pruned to the "
           "largest, bias as fitted. Empty: a seed does not reach the level (the .csv says why). ANEC: the mean over "
           "the levels in brackets, which all banks of the data set with as many concepts reach. The bank alone "
           "depends on the seed. Validation images choose no layer; without --holdout they chose epoch and learning "
           "rate of an End2End bank, and the words of a Text bank.")
CHOSEN = {"refined": "at the largest λ with enough weights",
          "vlg": "the sparsest with enough weights of VLG-CBM's {lams} λ"}


@dataclass(kw_only=True)
class Settings(Source):
    """Fitting."""

    path: Literal["refined", "vlg"] = setting("refined", "where the solutions lie: refined around each level, or at "
                                              "VLG-CBM's own 150 λ")
    seeds: int | None = setting(None, "only the first N seeds of every ledger (default: all)", type=positive)
    device: str | None = setting(None, "cpu, cuda, cuda:N (default: cuda if there is one)")


def main(settings: Settings) -> None:
    """Measure what is missing, then write the table and a figure per data set."""
    from reproduction.lib.nec import PATHS, cache_name, over_seeds, reached_by_all, rows_of

    folder, device, first = output_folder(settings), choose_device(settings.device), settings.seeds
    runs = finished(find_runs(settings, draws=2))  # no bootstrap is shown here
    found, failed = each(lambda run: (run, measure(run, device, settings.path, first)),
                         progress(runs, desc="accuracy at NEC", unit="run"))
    if not found:
        raise UserError("; ".join(failed) or "all runs here are variants of another one")
    groups([run for run, _ in found])  # titles
    rivals: dict[tuple[str, int], list[Seeds]] = {}
    for run, seeds in found:
        rivals.setdefault(rows_of(run), []).append(seeds)
    measured = [(run, over_seeds(seeds, reached_by_all(rivals[rows_of(run)]))) for run, seeds in found]
    lines = [{"dataset": run.dataset, "bank": run.title, "model": run.model, "seeds": len(run.summary["seeds"][:first]),
              "dense": run.dense, **line, "marks": "; ".join(run.marks)} for run, levels in measured for line in levels]
    people = [{"data set": run.dataset, "bank": run.title, "model": run.model, "dense": percent(run.dense),
               **{f"NEC {line['nec']}".replace("NEC ANEC", "ANEC"): percent(line["top1"], line["top1_std"])
                  + (f" ({line['levels']})" if line["levels"] else "") for line in levels},
               "marks": "; ".join(run.marks)} for run, levels in measured]
    name, path = Path(cache_name(settings.path)).stem, PATHS[settings.path]
    print(write_table(folder, name, lines, people, CAPTION.format(
        seeds_of([run for run, _ in measured], first), path["tolerance"], CHOSEN[settings.path].format(**path))))
    for run, levels in measured:
        for line in levels:
            if line["reason"]:
                print(f"not reached: {run.title}, {run.model}, NEC {line['nec']}: {line['reason']}")
    for dataset in dict.fromkeys(run.dataset for run, _ in measured):
        figure = curves(dataset, [(run, levels) for run, levels in measured if run.dataset == dataset])
        write_figure(folder, f"{name}_{slug(dataset)}", figure)
    print(f"written: {folder}/{name}.*, {name}_DATASET.png and .pdf")
    if failed:
        raise UserError(f"left out {len(failed)} of {len(runs)} runs: {'; '.join(failed)}")


def measure(run: Run, device: "torch.device", path_name: str, first: int | None = None) -> Seeds:
    """The lines of `nec.accuracy_at_levels` of each of the first seeds (None: all): those of the file beside the ledger
    that still hold, else fitted now, each seed in a process of its own."""
    from IP_training.elastic_net import bytes_of_fit
    from reproduction.lib.nec import LEVELS, PATHS, accuracy_at_levels, cache_name

    file, path = run.folder / cache_name(path_name), PATHS[path_name]
    kept = read_json(file) if file.exists() else {}
    missing: dict[str, tuple[dict[str, Any], Encoder]] = {}  # seed: (what its lines depend on, its bank's encoder)
    for seed in map(str, run.summary["seeds"][:first]):
        encoder = run.bank(int(seed)).encoder
        depends = {"path": path, "levels": list(LEVELS), **encoder.fingerprint(),
                   **{name: run.identity[name] for name in ("train_hash", "val_hash")}}
        if kept.get(seed, {}).get("depends") != depends:
            missing[seed] = depends, encoder
    if missing:
        splits = [(split.features_ND, split.labels_N) for split in (images_of(run, "train"), images_of(run, "val"))]
        classes, concepts = run.identity["num_classes"], max(len(encoder) for _, encoder in missing.values())
        tasks = [lambda _, encoder=encoder: accuracy_at_levels(*splits, encoder.to(device), classes, LEVELS, path)
                 for _, encoder in missing.values()]
        memory = bytes_of_fit(sum(len(labels_N) for _, labels_N in splits), splits[0][0].shape[1], concepts, classes)
        # On a GPU one after another: a forked process cannot use it.
        jobs = jobs_that_fit(len(tasks), memory, None if device.type == "cpu" else 1)
        with float32_products():
            for index, lines in in_processes(tasks, jobs):
                seed = list(missing)[index]
                kept[seed] = {"depends": missing[seed][0], "levels": lines}
                write_json(file, kept)
    return [kept[str(seed)]["levels"] for seed in run.summary["seeds"][:first]]


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
