"""How much of the variance of the IIS is bank sample, head and stage-1 sample: trains what is missing, then shares.

    python reproduction/variance_shares.py --dataset shapes --model shapes_medium --banks 4 --heads 4 --stage1 3

Every bank seed is trained under every head seed (initial weights and batch order; --bank_seed of the training scripts),
and that for every stage-1 seed: which segments of an image are kept (not which images: those are the first of each
class). The dense head is each head seed's own. Writes variance_shares.md, .csv and .tex, and scores.csv with the IIS of
every run; ledgers lie beside them, and a killed run goes on.

Random-effects analysis of variance of scores (S, B, H): S stage-1 samples, in each of them B banks (nested: banks of
two samples are not related), all under the same H heads (crossed).

    score = mean + stage1_s + bank_b(s) + head_h + (stage1 × head)_sh + (bank × head)_b(s)h

    E[MS stage1]        = σ²_bh + H σ²_bank + B σ²_sh + B H σ²_stage1
    E[MS bank]          = σ²_bh + H σ²_bank
    E[MS head]          = σ²_bh + B σ²_sh + S B σ²_head
    E[MS stage1 × head] = σ²_bh + B σ²_sh
    E[MS bank × head]   = σ²_bh

Solved for the components (method of moments); one below 0 is set to 0 and named. With S = 1 the terms of stage 1 drop
out: the two-way design bank × head.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from iis.cli import positive, run_script, setting
from iis.names import elements_file, slug
from iis.results import LEDGER, read_ledger
from iis.runtime import UserError, numpy_rng, write_text
from iis.summary import summarise
from reproduction.lib.outputs import write_table
from reproduction.lib.runs import REPRODUCED
from reproduction.lib.sweeps import SCRIPTS, call_script
from reproduction.lib.tables import as_csv

USUAL = REPRODUCED / "variance"
SOURCES = ("stage-1 sample", "bank", "head", "stage-1 sample × head", "bank × head")
CAPTION = ("Method of moments; a variance estimated below 0 is given as 0 and marked *. Ranges: parametric bootstrap, "
           "what a design of this size would show if the estimates were true. Head: initial weights and batch order, "
           "of the dense head too. Bank × head is what neither explains alone.")


@dataclass(kw_only=True)
class Settings:
    """The design, and the output."""

    dataset: str = setting("shapes", "data set, embedded by stage 2")
    model: str = setting("shapes_medium", "backbone: a YAML of model_configs/")
    bank: Literal["Prototype", "Cluster", "End2End"] = setting("Prototype", "kind of bank")
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
    elements = [elements_of(settings, USUAL / "elements", sample) for sample in range(settings.stage1)]
    runs = [[run_of(settings, own, bank, folder / f"stage1_{sample}" / f"bank_{bank}")
             for bank in range(settings.banks)] for sample, own in enumerate(elements)]
    scores_SBH = np.array([[run["iis"]["per_seed"] for run in sample] for sample in runs])
    write_text(folder / "scores.csv", as_csv([
        dict(zip(("stage1_seed", "bank_seed", "head_seed", "iis"), (*place, float(score)), strict=True))
        for place, score in np.ndenumerate(scores_SBH)]))
    marks = ", ".join(sorted({mark for sample in runs for run in sample for mark in run["marks"]}))
    caption = (f"{settings.model} on {settings.dataset}, {settings.bank} bank, M = {settings.num_concepts}; "
               f"{len(elements)} stage-1 samples × {settings.banks} banks × {settings.heads} heads; mean IIS "
               f"{scores_SBH.mean():.4f}{f' ({marks})' if marks else ''}. {CAPTION}")
    print(write_table(folder, "variance_shares", *table(scores_SBH), caption))
    print(f"written: {folder}/variance_shares.csv")
    return folder


def table(scores_SBH: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line per source and one for all, as numbers and as people read them."""
    found = components(scores_SBH)
    ranges, total = share_intervals(found, scores_SBH.shape), sum(found.variance.values())
    lines, people = [], []
    for source, variance in {**found.variance, "all": total}.items():
        share, (low, high) = variance / total if total else float("nan"), ranges.get(source, (None, None))
        lines.append({"source": source, "variance": variance, "std": variance ** 0.5, "share": share, "share_low": low,
                      "share_high": high, "below_0": source in found.negative})
        people.append({"source": source, "std of the IIS": f"{variance ** 0.5:.4f}" + "*" * (source in found.negative),
                       "share, %": f"{100 * share:.1f}",
                       "95 % range": "-" if low is None else f"{100 * low:.0f} to {100 * high:.0f}"})
    return lines, people


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


def run_of(settings: Settings, elements: Path, bank: int, save_dir: Path) -> dict[str, Any]:
    """Summary of the heads under one bank seed, trained where they are missing."""
    ledger = call_script(import_module(f"IP_training.{SCRIPTS[settings.bank]}"), {
        "model_name": settings.model, "dataset": settings.dataset, "num_concepts": settings.num_concepts,
        "bank_seed": bank, "seeds": settings.heads, "n_epoch": settings.n_epoch, "concept_path": elements,
        "device": settings.device, "save_dir": save_dir}) / LEDGER
    rows = [row for row in read_ledger(ledger) if row["seed"] < settings.heads]  # an earlier run may have had more
    return summarise(rows, draws=2, where=str(ledger))


# ---- variance components ----


class Components(NamedTuple):
    """variance: {source: its variance, ≥ 0}; negative: sources whose estimate is below 0 and given as 0."""

    variance: dict[str, float]
    negative: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Each source's part of the sum; NaN where nothing varies."""
        total = sum(self.variance.values())
        return {source: value / total if total else float("nan") for source, value in self.variance.items()}


def mean_squares(scores_SBH: np.ndarray) -> dict[str, float]:
    """The mean squares of each source; those of stage 1 are absent for S = 1. Raises `UserError` below 2 banks or
    heads."""
    scores_SBH = np.asarray(scores_SBH, float)
    samples, banks, heads = scores_SBH.shape
    if min(banks, heads) < 2:
        raise UserError(f"scores of shape {scores_SBH.shape}: at least 2 banks and 2 heads are needed to tell them "
                        "apart")
    mean = scores_SBH.mean()
    of_sample, of_head = scores_SBH.mean((1, 2)), scores_SBH.mean((0, 1))  # (S,), (H,)
    of_bank, of_both = scores_SBH.mean(2), scores_SBH.mean(1)  # (S, B), (S, H)
    rest = scores_SBH - of_bank[:, :, None] - of_both[:, None, :] + of_sample[:, None, None]
    squares = {"bank": heads * ((of_bank - of_sample[:, None]) ** 2).sum() / (samples * (banks - 1)),
               "head": samples * banks * ((of_head - mean) ** 2).sum() / (heads - 1),
               "bank × head": (rest ** 2).sum() / (samples * (banks - 1) * (heads - 1))}
    if samples > 1:
        crossed = of_both - of_sample[:, None] - of_head + mean
        squares["stage-1 sample"] = banks * heads * ((of_sample - mean) ** 2).sum() / (samples - 1)
        squares["stage-1 sample × head"] = banks * (crossed ** 2).sum() / ((samples - 1) * (heads - 1))
    return {source: float(value) for source, value in squares.items()}


def components(scores_SBH: np.ndarray) -> Components:
    """Variance components of scores (S, B, H) by the method of moments. Raises `UserError` below 2 banks or heads."""
    samples, banks, heads = np.shape(scores_SBH)
    squares = mean_squares(scores_SBH)
    rest = squares["bank × head"]
    crossed = squares.get("stage-1 sample × head", rest)
    found = {"bank": (squares["bank"] - rest) / heads, "head": (squares["head"] - crossed) / (samples * banks),
             "bank × head": rest}
    if samples > 1:
        found |= {"stage-1 sample × head": (crossed - rest) / banks,
                  "stage-1 sample": (squares["stage-1 sample"] - squares["bank"] - crossed + rest) / (banks * heads)}
    return Components({source: max(found[source], 0.0) for source in SOURCES if source in found},
                      tuple(source for source in SOURCES if found.get(source, 0) < 0))


def simulate(variance: dict[str, float], shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Scores (S, B, H) drawn from normal sources with these variances."""
    samples, banks, heads = shape
    shapes = {"stage-1 sample": (samples, 1, 1), "bank": (samples, banks, 1), "head": (1, 1, heads),
              "stage-1 sample × head": (samples, 1, heads), "bank × head": shape}
    return sum((value ** 0.5 * rng.standard_normal(shapes[source]) for source, value in variance.items()),
               np.zeros(shape))


def share_intervals(found: Components, shape: tuple[int, int, int], draws: int = 2000
                    ) -> dict[str, tuple[float, float]]:
    """Parametric bootstrap: the central 95 % range of each share if the components found were the truth. A handful of
    levels leaves it wide."""
    rng = numpy_rng("variance shares", *shape)
    shares = [components(simulate(found.variance, shape, rng)).shares for _ in range(draws)]
    return {source: tuple(map(float, np.nanquantile([share[source] for share in shares], [0.025, 0.975])))
            for source in found.variance}


if __name__ == "__main__":
    run_script(main, Settings)
