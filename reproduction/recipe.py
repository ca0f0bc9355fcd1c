"""How the IIS moves with the recipe of the heads: the largest learning rate allowed, the epochs, the batch size.

    python reproduction/recipe.py --dataset shapes --models shapes_small,shapes_medium,shapes_large --num_concepts 64
    python reproduction/recipe.py --dataset cifar10 --models resnet20 --num_concepts 16

Every head of the grid trains once, for the most epochs. The learning rate falls by the epoch, whatever the number of
epochs, and the best epoch is selected: so the first 30 epochs of a run are the run of 30, and every combination of
rates and epochs follows from one training. Δ is the difference to the published recipe, paired over seeds and
validation images, with a 95 % interval over both.

Writes recipe.csv, .md, .tex, and recipe.png: the IIS against the epochs. The ledgers lie beside them, and a killed run
goes on. --num_train N trains on N images of each data set, balanced over classes. --holdout F selects rate and epoch
on a fraction F of train instead of on validation.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import count, positive, run_script, setting, words
from iis.equations import accuracy_retention, area
from iis.grid import DENSE, LEARNING_RATES
from iis.names import slug
from iis.results import LEDGER, add_rows, cell_of, pack_correct, read_ledger, select, unpack_correct
from iis.runtime import UserError, choose_device, claim_folder, float32_products, keep_freed_memory, progress
from iis.statistics import bootstrap_means, interval, over_seeds, plus_minus
from iis.summary import summarise
from IP_training import banks
from IP_training.config import TrainingSettings
from IP_training.inputs import Inputs, load_inputs
from IP_training.run import identity_of, recipe_of, row_of, seed_of_run, seeds_at_once, shares_of
from IP_training.shares import train_shares
from IP_training.train_heads import Recipe
from reproduction.lib.figures import band, legend_below, panels, style
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.runs import REPRODUCED

PUBLISHED = (Recipe.batch_size, max(LEARNING_RATES), Recipe.epochs)
BANKS = ("Prototype", "Random")
CAPTION = ("Rates: 0.001 to the largest named. IIS: mean ± std over seeds; Δ to the published recipe (batches of "
           f"{PUBLISHED[0]}, rates to {PUBLISHED[1]:g}, {PUBLISHED[2]} epochs), with a 95 % interval over seeds and "
           "validation images. Last epoch: the IIS without selection of the epoch. Sparse: mean top-1 over the ratios. "
           "At the edge: selected heads with the largest rate; at the last epoch: whose best epoch is the last.")
Config = tuple[int, float, int]  # batch size, largest rate, epochs


def wholes(text: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers above 0."""
    return tuple(sorted({positive(word) for word in words(text)}))


@dataclass(kw_only=True)
class Settings:
    """What is trained, and the output."""

    dataset: str = setting("shapes", "data set, embedded by stage 2")
    models: tuple[str, ...] = setting(("shapes_medium",), "folders of extractor/embs/")
    banks: tuple[str, ...] = setting(BANKS, f"of {', '.join(BANKS)}", type=words)
    num_concepts: int = setting(64, "M", type=positive)
    learning_rates: tuple[float, ...] = setting((1e-3, 1e-2, 1e-1, 0.3, 1.0), "the published ones, and larger ones")
    epochs: tuple[int, ...] = setting((30, 100, 300), "epochs that are compared", type=wholes)
    batch_sizes: tuple[int, ...] = setting((1024,), "samples per step that are compared", type=wholes)
    seeds: int = setting(3, "how many", type=positive)
    num_train: int = setting(0, "training images, balanced over classes; 0: all", type=count)
    holdout: float = setting(0.0, "select on this fraction of train instead of on validation", metavar="F")
    jobs: int | None = setting(None, "processes on a CPU (default: one per core)", type=positive)
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    save_dir: Path | None = setting(None, "output folder (default: its own below results/reproduction/recipe)")


def main(settings: Settings) -> Path:
    """Train what is missing, then write table and figure. Returns their folder."""
    for name, needed in (("learning_rates", LEARNING_RATES), ("epochs", PUBLISHED[2:]), ("batch_sizes", PUBLISHED[:1])):
        if missing := sorted(set(needed) - set(getattr(settings, name))):
            raise UserError(f"--{name} lacks {', '.join(f'{one:g}' for one in missing)} of the published recipe, with "
                            "which all others are compared")
    if unknown := sorted(set(settings.banks) - set(BANKS)):
        raise UserError(f"--banks {unknown[0]} is not known here: use {', '.join(BANKS)}")
    folder = settings.save_dir or REPRODUCED / "recipe" / slug("_".join([
        settings.dataset, f"M{settings.num_concepts}", *([f"n{settings.num_train}"] * bool(settings.num_train)),
        *([f"holdout{settings.holdout:g}"] * bool(settings.holdout))]))
    keep_freed_memory()
    lines, shown, curves = [], [], {}
    for model in settings.models:
        for bank in settings.banks:
            rows_of = {batch: trained(settings, model, bank, batch, folder / f"{model}_{bank}_b{batch}")
                       for batch in settings.batch_sizes}
            own = [{"dataset": settings.dataset, "model": model, "bank": bank, **line}
                   for line in compared(rows_of, settings)]
            lines += own
            shown += [in_words(line) for line in own]
            curves[f"{model}, {bank}"] = by_epoch(rows_of[PUBLISHED[0]], caps(settings), max(settings.epochs))
    what = "on validation" if not settings.holdout else f"on {100 * settings.holdout:g} % of train"
    print(write_table(folder, "recipe", lines, shown, f"M = {settings.num_concepts}, {settings.seeds} seeds, "
                      f"n = {lines[0]['n_train']:,} training images; selected {what}. {CAPTION}"))
    draw(folder, curves, settings)
    print(f"written: {folder}/recipe.csv")
    return folder


def caps(settings: Settings) -> list[float]:
    """The largest rates that are compared: the published one and those above."""
    return sorted(rate for rate in settings.learning_rates if rate >= PUBLISHED[1])


# ---- training ----


def trained(settings: Settings, model: str, bank: str, batch_size: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of all heads with their curves, trained where the ledger in `folder` lacks them."""
    training = TrainingSettings(model_name=model, dataset=settings.dataset, num_concepts=settings.num_concepts,
                                learning_rates=settings.learning_rates, seeds=settings.seeds,
                                n_epoch=max(settings.epochs), batch_size=batch_size, holdout=settings.holdout,
                                jobs=settings.jobs, device=settings.device)
    inputs = load_inputs(training, with_elements=bank == "Prototype")
    if settings.num_train:
        inputs.train = some_of(inputs, settings.num_train)
    make_bank = (banks.prototypes(inputs.elements, settings.num_concepts) if bank == "Prototype"
                 else banks.random(settings.num_concepts, inputs.train.width))
    identity = identity_of(training, bank, settings.num_concepts, inputs, {"milestones": list(settings.epochs)})
    claim_folder(folder, identity, "heads")
    ledger, device = folder / LEDGER, choose_device(settings.device, silent=True)
    done = {cell_of(row) for row in read_ledger(ledger)}
    cells = settings.seeds * len(training.learning_rates) * (1 + len(training.ratios))
    recipe = replace(recipe_of(training), milestones=settings.epochs)
    at_once, jobs = seeds_at_once(training, inputs, settings.num_concepts, 0, device)
    with float32_products(), progress(total=recipe.epochs * cells, initial=recipe.epochs * len(done),
                                      desc=f"{model}, {bank}, batches of {batch_size}", unit="head epoch",
                                      disable=len(done) == cells) as bar:
        for start in range(0, settings.seeds, at_once):
            seeds = [seed_of_run(training, number, len(inputs.train))
                     for number in training.seed_numbers[start:start + at_once]]
            shares = []
            for seed in seeds:
                for share in shares_of(training, inputs, make_bank(seed), seed, len(seeds), device, jobs):
                    share.cells = [cell for cell in share.cells if cell not in done]
                    if share.cells:
                        first = share.cells[0]
                        share.resume_file = folder / f"resume_{seed.number}_{first.ratio:g}_{first.learning_rate:g}.pt"
                        shares.append(share)
            for share, heads, seconds in train_shares(shares, inputs, recipe, device, jobs,
                                                      settings.num_concepts * inputs.num_classes, bar):
                add_rows(ledger, [{**identity, **row_of(head, share.bank_of(head)[0], training.sparsifier, seconds),
                                   "top5_by_epoch": head.top5, "select_top1_by_epoch": head.select_top1,
                                   "hits_after": {epoch: pack_correct(correct.cpu().numpy())
                                                  for epoch, correct in head.correct_after.items()}} for head in heads])
                share.resume_file.unlink(missing_ok=True)
    return read_ledger(ledger)


def some_of(inputs: Inputs, number: int) -> Any:
    """`number` of the training images, balanced over classes: the same for every seed."""
    from iis.embedding_file import Embeddings, content_hash

    train = inputs.train
    if number > len(train):
        raise UserError(f"--num_train {number}: there are {len(train)} training images")
    rows = sorted(banks.balanced_choice(train.labels_N, number, 0, "recipe"))
    features_ND, labels_N = train.features_ND[rows], train.labels_N[rows]
    return Embeddings(features_ND, labels_N, train.class_names, [train.image_paths[row] for row in rows],
                      train.provenance, content_hash=content_hash(features_ND, labels_N))


def shortened(row: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The row of the same head trained for `epochs` (one of the milestones) epochs only."""
    best, last = int(np.argmax(row["select_top1_by_epoch"][:epochs])), epochs - 1  # the earliest of equals
    select_top1, top1, top5, loss = (row[f"{name}_by_epoch"][:epochs] for name in ("select_top1", "top1", "top5",
                                                                                   "loss"))
    return {**row, "epochs": epochs, "best_epoch": best + 1, "top1": top1[best], "top5": top5[best],
            "select_top1": select_top1[best], "last_top1": top1[last], "last_top5": top5[last],
            "last_select_top1": select_top1[last], "loss": loss[last], "top1_by_epoch": top1, "loss_by_epoch": loss,
            "top5_by_epoch": top5, "select_top1_by_epoch": select_top1, "hits": row["hits_after"][str(epochs)]}


# ---- comparing ----


def compared(rows_of: dict[int, list[dict[str, Any]]], settings: Settings) -> list[dict[str, Any]]:
    """A line per batch size, largest rate and number of epochs. rows_of: {batch size: rows of the longest runs}."""
    configs = [(batch, cap, epochs) for batch in rows_of for cap in caps(settings) for epochs in settings.epochs]
    rows = {config: at(rows_of[config[0]], *config[1:]) for config in configs}
    draws = {config: found for config, found in zip(configs, bootstrapped(list(rows.values())), strict=True)}
    summaries = {config: summarise(rows[config], draws=2) for config in configs}
    return [line_of(config, rows[config], summaries[config], summaries[PUBLISHED], draws[config], draws[PUBLISHED])
            for config in configs]


def at(rows: Sequence[dict[str, Any]], cap: float, epochs: int) -> list[dict[str, Any]]:
    """The ledger of a run with rates up to `cap` and so many epochs."""
    return [shortened(row, epochs) for row in rows if row["learning_rate"] <= cap]


def bootstrapped(ledgers: Sequence[Sequence[dict[str, Any]]], draws: int = 1000) -> list[dict[str, np.ndarray]]:
    """IIS, dense and mean sparse top-1 (percent) of every seed in the same resamples of the images, (B, R) each, of
    every ledger."""
    first = ledgers[0][0]
    seeds, ratios = (sorted({row[name] for row in ledgers[0]}) for name in ("seed", "ratio"))  # the dense head first
    selected = [select(rows) for rows in ledgers]
    correct_RKN = np.array([[unpack_correct(chosen[seed, ratio]["hits"], first["n_val"]) for chosen in selected
                             for ratio in ratios] for seed in seeds])
    accuracy_BRK = bootstrap_means(correct_RKN, draws)
    found = []
    for some in np.split(accuracy_BRK, len(ledgers), axis=-1):
        dense, sparse = some[..., 0], some[..., 1:]
        found.append({"iis": area(ratios[1:], accuracy_retention(sparse, dense)), "dense": 100 * dense,
                      "sparse": 100 * sparse.mean(-1)})
    return found


def line_of(config: Config, rows: Sequence[dict[str, Any]], summary: dict[str, Any], base: dict[str, Any],
            draws: dict[str, np.ndarray], base_draws: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a recipe gives, and how far it is from the published one. Accuracies in percent."""
    chosen, first = list(select(rows).values()), rows[0]
    mine, published = values_of(summary), values_of(base)
    line = {"batch_size": config[0], "largest_rate": config[1], "epochs": config[2], "n_train": first["n_train"],
            "holdout": first["holdout"], "steps": config[2] * -(-first["n_train"] // config[0]),
            "iis_std": summary["iis"]["std"], "iis_last": summary["iis_last"]["mean"],
            "iis_chance_corrected": summary["iis_chance_corrected"]["mean"],
            "dense_at_edge": sum(row["learning_rate"] == config[1] for row in chosen if row["ratio"] == DENSE),
            "sparse_at_edge": sum(row["learning_rate"] == config[1] for row in chosen if row["ratio"] != DENSE),
            "at_last_epoch": sum(row["best_epoch"] == config[2] for row in chosen), "heads": len(chosen),
            "marks": ", ".join(summary["marks"])}
    for name, value in mine.items():
        low, high = interval(over_seeds(draws[name] - base_draws[name]))
        line |= {name: value, f"{name}_delta": value - published[name], f"{name}_low": low, f"{name}_high": high}
    return line


def values_of(summary: dict[str, Any]) -> dict[str, float]:
    """IIS, dense and mean sparse top-1 in percent: means over seeds."""
    return {"iis": summary["iis"]["mean"], "dense": 100 * summary["dense"]["mean"],
            "sparse": 100 * float(np.mean(summary["curves"]["best"]["accuracy"]))}


def in_words(line: dict[str, Any]) -> dict[str, Any]:
    """A line as people read it."""
    published = (line["batch_size"], line["largest_rate"], line["epochs"]) == PUBLISHED

    def change(name: str, digits: int) -> str:
        return "published" if published else (
            f"{line[f'{name}_delta']:+.{digits}f} [{line[f'{name}_low']:+.{digits}f}, "
            f"{line[f'{name}_high']:+.{digits}f}]")

    return {"model": line["model"], "bank": line["bank"], "batch": line["batch_size"],
            "rates to": f"{line['largest_rate']:g}", "epochs": line["epochs"], "steps": line["steps"],
            "IIS": plus_minus(line["iis"], line["iis_std"]), "Δ IIS": change("iis", 4),
            "last epoch": f"{line['iis_last']:.4f}", "dense, %": f"{line['dense']:.2f}", "Δ dense": change("dense", 2),
            "sparse, %": f"{line['sparse']:.2f}", "Δ sparse": change("sparse", 2),
            "at the edge": f"{line['dense_at_edge'] + line['sparse_at_edge']} of {line['heads']}",
            "at the last epoch": f"{line['at_last_epoch']} of {line['heads']}"}


# ---- the figure ----


def by_epoch(rows: Sequence[dict[str, Any]], largest: Sequence[float], epochs: int) -> dict[float, np.ndarray]:
    """{largest rate: IIS of every seed had its run ended after each epoch, (R, epochs)}."""
    seeds, ratios = (sorted({row[name] for row in rows}) for name in ("seed", "ratio"))
    found = {}
    for cap in largest:
        accuracy = np.array([[selected_top1([row for row in rows if (row["seed"], row["ratio"]) == (seed, ratio)
                                             and row["learning_rate"] <= cap])
                              for ratio in ratios] for seed in seeds])[..., :epochs]  # (R, 1 + S, epochs)
        retention = accuracy_retention(accuracy[:, 1:].transpose(0, 2, 1), accuracy[:, 0])
        found[cap] = area(ratios[1:], retention)
    return found


def selected_top1(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Top-1 (T,) of what is selected among these rates had the runs ended after each of T epochs."""
    select_LT, top1_LT = (np.array([row[name] for row in sorted(rows, key=cell_of)])
                          for name in ("select_top1_by_epoch", "top1_by_epoch"))
    best_LT = np.maximum.accumulate(select_LT, axis=1)
    # The epoch of a rate's best so far: the last one at which the running best rose.
    rose_LT = np.diff(best_LT, axis=1, prepend=-1.0) > 0
    epoch_LT = np.maximum.accumulate(np.where(rose_LT, np.arange(select_LT.shape[1]), 0), axis=1)
    rate_T = best_LT.argmax(0)  # among equals the smaller rate
    times = np.arange(select_LT.shape[1])
    return top1_LT[rate_T, epoch_LT[rate_T, times]]


def draw(folder: Path, curves: dict[str, dict[float, np.ndarray]], settings: Settings) -> None:
    """recipe.png and .pdf: the IIS against the epochs, a line per largest rate."""
    figure, axes = panels(len(curves), f"IIS against epochs, {settings.dataset}, M = {settings.num_concepts}")
    for one, (title, by_cap) in zip(axes, curves.items(), strict=True):
        for place, (cap, iis_RT) in enumerate(by_cap.items()):
            band(one, np.arange(1, iis_RT.shape[1] + 1), iis_RT, f"rates to {cap:g}",
                 **{**style(place), "marker": None})
        one.axvline(PUBLISHED[2], color="0.6", linewidth=0.8, linestyle=":")
        one.set(xscale="log", title=title, xlabel="epochs", ylabel="IIS")
        low = min(float(iis_RT[:, 9:].min()) for iis_RT in by_cap.values())  # the first epochs lie far below
        one.set_ylim(bottom=low - 0.005)
    legend_below(figure, axes)
    write_figure(folder, "recipe", figure)


if __name__ == "__main__":
    run_script(main, Settings)
