"""Does the IIS order representations by their semantic content? Features made with a known share of attributes.

    python reproduction/score_truth.py                     # after demo/paint_shapes.py; about 15 minutes, busy machine

rooms/controlled_features.py makes the features; the usual scripts train on them as on features made elsewhere,
with a bank of Prototypes (whole train images, 80 of each class), of Random directions, and of the true attributes'
directions (Own), at M = the number of attributes. Were IIS a measure of semantic content, it would rise with the share
of attributes wherever accuracy is held equal, whatever the rest is, and would not under the Random bank. ρ is
Spearman's between share and mean IIS, p its two-sided permutation value (shares whose dense head is near chance are
left out); every draw has its own codes, turn, noise, bank and head. Writes score_truth.md, .csv, .tex and
score_truth.png, .pdf; a killed run goes on where it was.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from iis.cli import ScriptParser, numbers, path, positive, run_script
from iis.equations import too_close_to_chance
from iis.names import slug
from iis.plots import COLOURS, MARKERS
from iis.results import LEDGER, read_ledger
from iis.runtime import ROOT, UserError, make_output_folder, write_whole
from iis.statistics import mean_std
from iis.summary import summarise
from reproduction.lib.association import associate
from reproduction.lib.attribute_auroc import Captions, linear_probe
from reproduction.lib.controlled_features import RESTS, Images, controlled
from reproduction.lib.outputs import new_figure, write_figure, write_table
from reproduction.lib.scripts import call_script
from reproduction.lib.tables import plus_minus

BANKS = ("Prototype", "Random", "Own")
SHOWN = {"Own": "true attributes"}
ELEMENTS_PER_CLASS = 80


def parser() -> ScriptParser:
    """The flags of this script."""
    script = ScriptParser(description=__doc__.splitlines()[0])
    script.add_argument("--captions", type=path, default=ROOT / "datasets" / "shapes" / "captions.json",
                      help="the true attributes of every image (demo/paint_shapes.py)")
    script.add_argument("--shares", type=numbers, default=(0, 0.2, 0.4, 0.6, 0.8, 1), help="shares of attributes")
    script.add_argument("--rests", nargs="+", choices=RESTS, default=RESTS, metavar="REST", help="what the rest may be: "
                      f"{', '.join(RESTS)}")
    script.add_argument("--draws", type=positive, default=3, help="how many times everything random is drawn anew")
    script.add_argument("--target", type=float, default=0.9, help="linear accuracy that noise is set to, but for the "
                      "rest `noise`")
    script.add_argument("--n_epoch", type=positive, default=30, help="epochs per head")
    script.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    script.add_argument("--save_dir", type=path, default=ROOT / "results" / "reproduction" / "score_truth",
                      help="output folder")
    return script


def main(args: argparse.Namespace) -> Path:
    """Make features, train what is missing, and write table and figure. Returns the output folder."""
    from IP_training.training_run import dense_heads_in

    if len(set(args.shares)) < 3:
        raise UserError(f"--shares {','.join(f'{share:g}' for share in args.shares)}: a rank correlation needs "
                        "3 or more")
    if not 0 < args.target < 1:
        raise UserError(f"--target {args.target:g} is no accuracy to aim at: it must lie between 0 and 1")
    make_output_folder(args.save_dir)
    images = images_of(Captions(args.captions))
    cells = [(rest, share, draw) for draw in range(args.draws) for rest in args.rests
             for share in sorted(set(args.shares))]
    folder = args.save_dir
    with dense_heads_in(folder / "dense_heads"):
        lines = [line for cell in tqdm(cells, "features", unit="set") for line in measure(args, images, *cell)]
    print(write_table(folder, "score_truth", lines, table(lines), (
        f"IIS at M = {images.train_has_NA.shape[1]}, means over {args.draws} draws, by the share of true attributes "
        "in the features. ρ: Spearman's of share and mean IIS, its permutation p, and mean ± std of ρ over draws. "
        "n.c.: the dense head is near chance, so the IIS means nothing and is left out of ρ.")))
    write_figure(folder, "score_truth", draw_figure(lines))
    print(f"written: {folder}/score_truth.csv, .md, .tex, .png, .pdf")
    return folder


def images_of(captions: Captions) -> Images:
    """Attributes and classes of every image that the captions name."""
    both = {}
    for split in ("train", "val"):
        names = captions.names(split)
        both[split] = captions.has(split, names), [name.split("/")[0] for name in names]
    classes = sorted(set(both["train"][1]))
    labels = {split: np.array([classes.index(name) for name in both[split][1]]) for split in both}
    return Images(both["train"][0], both["val"][0], labels["train"], labels["val"])


def measure(args: argparse.Namespace, images: Images, rest: str, share: float, draw: int) -> list[dict[str, Any]]:
    """A line per bank of one set of features."""
    made = controlled(images, rest, share, draw, args.target)
    folder = args.save_dir / "features" / slug(f"{rest}_share{share:g}_draw{draw}")
    chosen = np.concatenate([np.flatnonzero(images.train_labels_N == label)[:ELEMENTS_PER_CLASS]
                             for label in range(images.train_labels_N.max() + 1)])
    save_features(folder, {"train": made.train_ND, "val": made.val_ND, "bank": made.directions_AD,
                           "elements": made.train_ND[chosen]}, images, chosen)
    probe = float(np.nanmean(linear_probe(made.train_ND, images.train_has_NA, made.val_ND, images.val_has_NA)))
    lines = []
    for bank in BANKS:
        rows = read_ledger(train(args, folder, bank, len(made.directions_AD), draw) / LEDGER)
        result = summarise(rows, draws=2, where=str(folder))
        dense = result["dense"]["mean"]
        lines.append({"rest": rest, "share": share, "draw": draw, "bank": bank, "iis": result["iis"]["mean"],
                      "iis_chance_corrected": result["iis_chance_corrected"]["mean"], "dense": dense,
                      "near_chance": too_close_to_chance(dense, result["chance"], result["n_val"]),
                      "probe_auroc": probe, "noise": made.noise})
    return lines


def save_features(folder: Path, matrices: dict[str, np.ndarray], images: Images, chosen: np.ndarray) -> None:
    """Bare matrices and their labels, as any other tool would hand them over, and the elements beside."""
    labels = {"train": images.train_labels_N, "val": images.val_labels_N}
    files = {**{name: matrix.astype(np.float32) for name, matrix in matrices.items() if name != "elements"},
             **{f"{name}_labels": values for name, values in labels.items()}}
    for name, values in files.items():
        write_whole(folder / f"{name}.npy", lambda temporary, values=values: np.save(temporary, values))
    save_elements(folder / "elements.pkl", matrices["elements"], images.train_labels_N[chosen], chosen)


def save_elements(file: Path, features_ED: np.ndarray, labels_E: np.ndarray, rows: np.ndarray) -> None:
    """The elements as an embedding file, because a bank of prototypes is balanced over their classes."""
    import torch

    from iis.embedding_file import Embeddings, save_embeddings

    classes = [f"class {label:03d}" for label in range(labels_E.max() + 1)]
    features = torch.from_numpy(features_ED.astype(np.float32))
    names = [f"train row {row}" for row in rows]
    save_embeddings(file, Embeddings(features, torch.from_numpy(labels_E), classes, names,
                                     {"elements": {"kind": "pictures"}}))


def train(args: argparse.Namespace, folder: Path, bank: str, count: int, draw: int) -> Path:
    """The usual script on these features; the folder of the ledger."""
    from IP_training import IP_Bank_training, IP_Prototype_training

    own = {"Prototype": {"concept_path": folder / "elements.pkl", "num_concepts": count},
           "Random": {"kind": "Random", "num_concepts": count}, "Own": {"bank": folder / "bank.npy"}}[bank]
    return call_script(IP_Prototype_training if bank == "Prototype" else IP_Bank_training, {
        "model_name": "controlled", "dataset": "controlled", "train_pt": folder / "train.npy", "seeds": 1,
        "train_labels": folder / "train_labels.npy", "val_pt": folder / "val.npy", "first_seed": draw,
        "val_labels": folder / "val_labels.npy", "n_epoch": args.n_epoch, "device": args.device, **own,
        "save_dir": folder / bank})


def curve(lines: list[dict[str, Any]], rest: str, bank: str, key: str = "iis") -> dict[float, np.ndarray]:
    """{share: values over draws}, shares ascending; NaN where the dense head is near chance (of an IIS)."""
    mine = [line for line in lines if line["rest"] == rest and line["bank"] == bank]
    return {share: np.array([np.nan if key.startswith("iis") and line["near_chance"] else line[key]
                             for line in mine if line["share"] == share])
            for share in sorted({line["share"] for line in mine})}


def table(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line per rest and bank, and per rest one of the accuracies and one of what a linear probe finds."""
    shown = []
    for rest in dict.fromkeys(line["rest"] for line in lines):
        for bank, key, label in (*((bank, "iis", f"IIS, {SHOWN.get(bank, bank)}") for bank in BANKS),
                                 (BANKS[0], "dense", "dense top-1"), (BANKS[0], "probe_auroc", "probe AUROC"),
                                 (BANKS[0], "noise", "noise")):
            values = curve(lines, rest, bank, key)
            usable = {share: row for share, row in values.items() if not np.isnan(row).any()}
            found = associate(list(usable), [row.mean() for row in usable.values()])
            each = [associate(list(usable), list(one)) for one in np.array(list(usable.values())).T]
            each = [one.rho for one in each if one and one.rho is not None]
            known = found is not None and found.rho is not None
            shown.append({"rest": rest, "what": label,
                          **{f"share {share:g}": "n.c." if np.isnan(row).any() else f"{row.mean():.3f}"
                             for share, row in values.items()},
                          "ρ": f"{found.rho:+.2f}" if known else "-", "p": f"{found.null_p:.3f}" if known else "-",
                          "ρ over draws": plus_minus(*mean_std(each), 2) if each else "-"})
    return shown


def draw_figure(lines: list[dict[str, Any]]) -> Any:
    """A panel per rest: IIS against share for every bank, mean ± std over draws, and the dense accuracy."""
    rests = list(dict.fromkeys(line["rest"] for line in lines))
    figure, axes = new_figure(max(7.0, 3.5 * len(rests)), 4.2, columns=len(rests), sharey=True)
    for panel, rest in zip(axes[0], rests, strict=True):
        for bank, colour, marker in zip(BANKS, COLOURS, MARKERS, strict=False):
            _line(panel, curve(lines, rest, bank), f"IIS, bank: {SHOWN.get(bank, bank)}", color=colour, marker=marker)
        _line(panel, curve(lines, rest, BANKS[0], "dense"), "dense top-1", color="0.5", linestyle="--")
        panel.set(title=f"rest: {rest}", xlabel="share of true attributes in power")
        panel.grid(alpha=0.25)
    axes[0, 0].set_ylabel("IIS (0 to 0.98), dense top-1 (0 to 1)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=4 if len(rests) > 1 else 2, frameon=False)
    return figure


def _line(panel: Any, values: dict[float, np.ndarray], label: str, **style: Any) -> None:
    mean = np.array([row.mean() for row in values.values()])
    panel.plot(list(values), mean, label=label, markersize=4.5, **style)
    if all(len(row) > 1 for row in values.values()):
        std = np.array([row.std(ddof=1) for row in values.values()])
        panel.fill_between(list(values), mean - std, mean + std, color=style["color"], alpha=0.18, linewidth=0)


if __name__ == "__main__":
    run_script(lambda: main(parser().settings()))
