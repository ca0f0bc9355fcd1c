"""Does IIS order representations by their semantic content? Features made with a known share of attributes.

    python reproduction/score_truth.py                     # after demo/paint_shapes.py; about 15 minutes, busy machine

lib/known_attributes.py makes the features; the usual scripts train on them as on features made elsewhere, with a bank
of Prototypes (whole train images, 80 of each class), of Random directions, and of the true attributes' directions
(Own). If IIS measures semantic content, it rises with the share of attributes wherever accuracy is held equal, whatever
the rest is, and does not under the Random bank. Every draw has its own codes, turn, noise, bank and head. Writes
score_truth.md, .csv (with the other measures of lib/measures.py), .tex and score_truth.png, .pdf; a killed run goes on.
measures_truth.py then says which measure orders by the share.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from iis.cli import part, positive, run_script, setting
from iis.names import slug
from iis.runtime import ROOT, UserError, make_output_folder, progress, write_whole
from iis.statistics import mean_std, plus_minus
from reproduction.lib.figures import band, legend_below, panels, style
from reproduction.lib.known_attributes import RESTS, Captions, Images, controlled, linear_probe
from reproduction.lib.measures import measures_of
from reproduction.lib.outputs import write_figure, write_table
from reproduction.lib.runs import REPRODUCED, read_run
from reproduction.lib.statistics import associate
from reproduction.lib.sweeps import call_script

BANKS = {"Prototype": "Prototype", "Random": "Random", "Own": "true attributes"}  # and what tables call them
ELEMENTS_PER_CLASS = 80
CAPTION = ("IIS at M = {}, means over {} draws, by the share of true attributes in the features. ρ: Spearman's of "
           "share and mean IIS, its permutation p, and mean ± std of ρ over draws. n.c.: the dense head is close to "
           "chance, so the IIS means nothing and is left out of ρ.")


@dataclass(kw_only=True)
class Settings:
    """Features, training and output."""

    captions: Path = setting(ROOT / "datasets" / "shapes" / "captions.json",
                             "the true attributes of every image (demo/paint_shapes.py)")
    shares: tuple[float, ...] = setting((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "shares of attributes")
    rests: list[str] = setting(RESTS, f"what the rest may be: {', '.join(RESTS)}", choices=RESTS, metavar="REST")
    draws: int = setting(3, "how many times everything random is drawn anew", type=positive)
    target: float = setting(0.9, "linear accuracy that noise is set to, but for the rest `noise`", type=part)
    n_epoch: int = setting(30, "epochs per head", type=positive)
    without_anec: bool = setting(False, "fit no elastic nets for the accuracy at NEC")
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    save_dir: Path = setting(REPRODUCED / "score_truth", "output folder")


def main(settings: Settings) -> Path:
    """Make features, train what is missing, and write table and figure. Returns the output folder."""
    shares = sorted(set(settings.shares))
    if len(shares) < 3:
        raise UserError(f"--shares {','.join(f'{share:g}' for share in shares)}: a rank correlation needs 3 or more")
    folder = make_output_folder(settings.save_dir)
    images = Images.of(Captions(settings.captions))
    cells = [(rest, share, draw) for draw in range(settings.draws) for rest in settings.rests for share in shares]
    found = pd.DataFrame([line for cell in progress(cells, desc="features", unit="set")
                          for line in measure(settings, images, *cell)])
    print(write_table(folder, "score_truth", found, table(found),
                      CAPTION.format(images.train_has_NA.shape[1], settings.draws)))
    write_figure(folder, "score_truth", figure(found))
    print(f"written: {folder}/score_truth.csv, .md, .tex, .png, .pdf")
    return folder


def measure(settings: Settings, images: Images, rest: str, share: float, draw: int) -> list[dict[str, Any]]:
    """A line per bank of one set of features."""
    made = controlled(images, rest, share, draw, settings.target)
    folder = settings.save_dir / "features" / slug(f"{rest}_share{share:g}_draw{draw}")
    for name, values in {"train": made.train_ND.astype(np.float32), "val": made.val_ND.astype(np.float32),
                         "bank": made.directions_AD.astype(np.float32), "train_labels": images.train_labels_N,
                         "val_labels": images.val_labels_N}.items():  # as any other tool hands features over
        write_whole(folder / f"{name}.npy", lambda temporary, values=values: np.save(temporary, values))
    save_elements(folder / "elements.pkl", made.train_ND, images.train_labels_N)
    probe = float(np.nanmean(linear_probe(made.train_ND, images.train_has_NA, made.val_ND, images.val_has_NA)))
    lines = []
    trained = [train(settings, folder, bank, len(made.directions_AD), draw) for bank in BANKS]
    for bank, place in zip(BANKS, trained, strict=True):  # all are there: a lift needs the Random run
        run = read_run(place, draws=2)
        lines.append({"rest": rest, "share": share, "draw": draw, "bank": bank,
                      **measures_of(run, not settings.without_anec), "dense": run.dense,
                      "near_chance": not run.meaningful,
                      "probe_auroc": probe, "noise": made.noise, "marks": "; ".join(run.marks)})
    return lines


def save_elements(file: Path, train_ND: np.ndarray, labels_N: np.ndarray) -> None:
    """The first images of each class as an embedding file: a bank of prototypes is balanced over their classes."""
    import torch

    from iis.embedding_file import Embeddings, save_embeddings

    rows = np.concatenate([np.flatnonzero(labels_N == label)[:ELEMENTS_PER_CLASS] for label in np.unique(labels_N)])
    save_embeddings(file, Embeddings(
        torch.from_numpy(train_ND[rows].astype(np.float32)), torch.from_numpy(labels_N[rows]),
        [f"class {label:03d}" for label in np.unique(labels_N)], [f"train row {row}" for row in rows],
        {"elements": {"kind": "pictures"}}))


def train(settings: Settings, folder: Path, bank: str, count: int, draw: int) -> Path:
    """The usual script on these features; the folder of the ledger."""
    from IP_training import IP_Bank_training, IP_Prototype_training

    own = {"Prototype": {"concept_path": folder / "elements.pkl", "num_concepts": count},
           "Random": {"kind": "Random", "num_concepts": count}, "Own": {"bank": folder / "bank.npy"}}[bank]
    files = {key: folder / f"{name}.npy" for key, name in (("train_pt", "train"), ("train_labels", "train_labels"),
                                                           ("val_pt", "val"), ("val_labels", "val_labels"))}
    return call_script(IP_Prototype_training if bank == "Prototype" else IP_Bank_training, {
        "model_name": "controlled", "dataset": "controlled", **files, "seeds": 1, "first_seed": draw,
        "n_epoch": settings.n_epoch, "device": settings.device, **own,
        "dense_heads_dir": settings.save_dir / "dense_heads", "save_dir": folder / bank})


def by_share(found: pd.DataFrame, rest: str, bank: str, key: str = "iis") -> pd.DataFrame:
    """Values (draws × shares ascending); NaN where the dense head is close to chance (of an IIS)."""
    mine = found[(found["rest"] == rest) & (found["bank"] == bank)]
    values = mine[key].mask(mine["near_chance"]) if key == "iis" else mine[key]
    return mine.assign(value=values).pivot(index="draw", columns="share", values="value")


def table(found: pd.DataFrame) -> list[dict[str, Any]]:
    """A line per rest and bank, and per rest one of the accuracies and one of what a linear probe finds."""
    rows = []
    first = next(iter(BANKS))
    for rest in found["rest"].unique():
        for bank, key, label in (*((bank, "iis", f"IIS, {name}") for bank, name in BANKS.items()),
                                 (first, "dense", "dense top-1"), (first, "probe_auroc", "probe AUROC"),
                                 (first, "noise", "noise")):
            values = by_share(found, rest, bank, key)
            usable = values.dropna(axis="columns")
            whole = associate(list(usable), usable.mean())
            each = [rho for _, one in usable.iterrows() if (rho := associate(list(usable), one)["rho"]) is not None]
            rows.append({"rest": rest, "what": label,
                         **{f"share {share:g}": f"{values[share].mean():.3f}" if share in usable else "n.c."
                            for share in values},
                         "ρ": "-" if whole["rho"] is None else f"{whole['rho']:+.2f}",
                         "p": "-" if whole["rho"] is None else f"{whole['null_p']:.3f}",
                         "ρ over draws": plus_minus(*mean_std(each), 2) if each else "-"})
    return rows


def figure(found: pd.DataFrame) -> Any:
    """A panel per rest: IIS against share for every bank, mean ± std over draws, and the dense accuracy."""
    rests = list(found["rest"].unique())
    made, axes = panels(len(rests), "IIS of features with a known share of attributes", 3.5, 3.3, sharey=True)
    for panel, rest in zip(axes, rests, strict=True):
        for place, (bank, name) in enumerate(BANKS.items()):
            values = by_share(found, rest, bank)
            band(panel, values.columns, values.to_numpy(), f"IIS, bank: {name}", **style(place))
        dense = by_share(found, rest, next(iter(BANKS)), "dense")
        band(panel, dense.columns, dense.to_numpy(), "dense top-1", color="0.5", linestyle="--")
        panel.set(title=f"rest: {rest}", xlabel="share of true attributes in power")
    axes[0].set_ylabel("IIS (0 to 0.98), dense top-1 (0 to 1)")
    legend_below(made, axes)
    return made


if __name__ == "__main__":
    run_script(main, Settings)
