"""How much of the variance of the IIS is bank sample, head and stage-1 sample: trains what is missing, then shares.

    python reproduction/variance_shares.py --dataset shapes --model shapes_medium --banks 4 --heads 4 --stage1 3

Every bank seed is trained under every head seed (initial weights and batch order; --bank_seed of the training scripts),
and that for every stage-1 seed: which segments of an image are kept (not which images: those are the first of each
class). The dense head is each head seed's own. Writes variance_shares.md, .csv and .tex, and scores.csv with the IIS of
every run; ledgers lie beside them, and a killed run goes on.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import positive, run_script, setting
from iis.names import elements_file, slug
from iis.results import LEDGER, read_ledger
from iis.runtime import UserError, write_text
from iis.summary import summarise
from reproduction.lib.outputs import write_table
from reproduction.lib.runs import REPRODUCED
from reproduction.lib.sweeps import call_script
from reproduction.lib.tables import as_csv
from reproduction.lib.variance_components import components, share_intervals

USUAL = REPRODUCED / "variance"
WITHOUT_ELEMENTS = ("Random",)
CAPTION = ("Method of moments; a variance estimated below 0 is given as 0 and marked *. Ranges: parametric bootstrap, "
           "what a design of this size would show if the estimates were true. Head: initial weights and batch order, "
           "of the dense head too. Bank × head is what neither explains alone.")


@dataclass(kw_only=True)
class Settings:
    """The design, and the output."""

    dataset: str = setting("shapes", "data set, embedded by stage 2")
    model: str = setting("shapes_medium", "backbone: a YAML of model_configs/")
    bank: Literal["Prototype", "Cluster", "End2End", "Random"] = setting(
        "Prototype", "kind of bank (Random has no stage-1 sample)")
    num_concepts: int = setting(64, "M", type=positive)
    banks: int = setting(4, "bank seeds, 0 …", type=positive)
    heads: int = setting(4, "head seeds, 0 …", type=positive)
    stage1: int = setting(3, "stage-1 seeds, 0 … (1: stage 1 as it is)", type=positive)
    n_epoch: int = setting(30, "epochs per head", type=positive)
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    save_dir: Path | None = setting(None, "output folder (default: its own below results/reproduction/variance)")


def main(settings: Settings) -> Path:
    """Train what is missing and write the table. Returns its folder."""
    if min(settings.banks, settings.heads) < 2:
        raise UserError(f"--banks {settings.banks} --heads {settings.heads}: at least 2 of each are needed to tell "
                        "them apart")
    folder = settings.save_dir or USUAL / slug(
        f"{settings.dataset}_{settings.model}_{settings.bank}_M{settings.num_concepts}")
    elements = [None] if settings.bank in WITHOUT_ELEMENTS else [
        elements_of(settings, USUAL / "elements", sample) for sample in range(settings.stage1)]
    runs = [[run_of(settings, folder, own, sample, bank) for bank in range(settings.banks)]
            for sample, own in enumerate(elements)]
    scores_SBH = np.array([[run["iis"]["per_seed"] for run in sample] for sample in runs])
    cells = [dict(zip(("stage1_seed", "bank_seed", "head_seed"), place, strict=True), iis=float(scores_SBH[place]))
             for place in np.ndindex(scores_SBH.shape)]
    write_text(folder / "scores.csv", as_csv(cells))
    lines, people = table(scores_SBH)
    marks = ", ".join(sorted({mark for sample in runs for run in sample for mark in run["marks"]}))
    what = (f"{settings.model} on {settings.dataset}, {settings.bank} bank, M = {settings.num_concepts}; "
            f"{len(elements)} stage-1 samples × {settings.banks} banks × {settings.heads} heads; mean IIS "
            f"{scores_SBH.mean():.4f}{f' ({marks})' if marks else ''}.")
    print(write_table(folder, "variance_shares", lines, people, f"{what} {CAPTION}"))
    print(f"written: {folder}/variance_shares.csv")
    return folder


def table(scores_SBH: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line per source, as numbers and as people read them."""
    found = components(scores_SBH)
    ranges, total = share_intervals(found, scores_SBH.shape), sum(found.variance.values())
    lines = [{"source": source, "variance": value, "std": value ** 0.5, "share": found.shares.get(
                  source, 1.0 if total else float("nan")),
              **dict(zip(("share_low", "share_high"), ranges.get(source, (None, None)), strict=True)),
              "below_0": source in found.negative} for source, value in {**found.variance, "all": total}.items()]
    return lines, [{
        "source": line["source"], "std of the IIS": f"{line['std']:.4f}" + "*" * line["below_0"],
        "share, %": f"{100 * line['share']:.1f}", "95 % range": "-" if line["share_low"] is None else
        f"{100 * line['share_low']:.0f} to {100 * line['share_high']:.0f}"} for line in lines]


def elements_of(settings: Settings, root: Path, sample: int) -> Path:
    """Embedded segments of a stage-1 seed: stage 2's own file for seed 0, else made here with the same settings."""
    from extractor import segment_extractor, visual_element_emb_extractor
    from iis.embedding_file import load_embeddings

    dataset, model = settings.dataset, settings.model
    usual = elements_file(model, dataset, "segments")
    if not usual.is_file():
        raise UserError(f"there are no embedded segments {usual}: run concept_extract.sh and emb_extractor.sh with "
                        f"DATASET={dataset} MODELS={model} first")
    made = load_embeddings(usual).provenance["elements"]
    if sample == made["seed"]:
        return usual
    folder, place = root / dataset / f"segments_seed{sample}", root / dataset / f"embs_seed{sample}"
    same = {key: made[key] for key in ("segment_choice", "bounding_box", "image_per_class", "format")}
    call_script(segment_extractor, {"dataset": dataset, "save_root": folder, "seed": sample, **same})
    call_script(visual_element_emb_extractor, {"config_yaml": model, "dataset": dataset, "data_path": folder,
                                               "model_name": model, "save_root": place, "device": settings.device})
    return elements_file(model, dataset, "segments", root=place)


def run_of(settings: Settings, folder: Path, elements: Path | None, sample: int, bank: int) -> dict[str, Any]:
    """Summary of the heads under one bank seed, trained where they are missing."""
    name = "IP_Bank_training" if settings.bank in WITHOUT_ELEMENTS else f"IP_{settings.bank}_training"
    ledger = call_script(import_module(f"IP_training.{name}"), {
        "model_name": settings.model, "dataset": settings.dataset, "num_concepts": settings.num_concepts,
        "bank_seed": bank, "seeds": settings.heads, "n_epoch": settings.n_epoch, "concept_path": elements,
        "device": settings.device, "kind": "Random" if name == "IP_Bank_training" else None,
        "save_dir": folder / f"stage1_{sample}" / f"bank_{bank}"}) / LEDGER
    rows = [row for row in read_ledger(ledger) if row["seed"] < settings.heads]  # an earlier run may have had more
    return summarise(rows, draws=2, where=str(ledger))


if __name__ == "__main__":
    run_script(main, Settings)
