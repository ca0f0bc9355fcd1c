"""How much of the variance of the IIS is bank sample, head and stage-1 sample: trains what is missing, then shares.

    python reproduction/variance_shares.py --dataset shapes --model shapes_medium --stage1 8 --banks 4 --heads 3

A stage-1 seed decides which segments of an image are kept, not which images: those are the first of each class, so the
shares hold for these images. Every stage-1 sample has banks of its own: the seed of a bank is made of both numbers,
because banks of one seed would take the same rows, and so the same images, from every sample. Every bank is trained
under every head seed (initial weights and batch order); the dense head is each head seed's own. Writes
variance_shares.md, .csv and .tex, and scores.csv with the IIS of every run; ledgers lie beside them, and a killed run
goes on.

Random-effects analysis of variance of scores (S, B, H): S stage-1 samples, in each of them B banks (nested: drawn
independently of the banks of other samples), all under the same H heads (crossed).

    score = mean + stage1_s + bank_b(s) + head_h + (stage1 × head)_sh + (bank × head)_b(s)h

    E[MS stage1]        = σ²_bh + H σ²_bank + B σ²_sh + B H σ²_stage1
    E[MS bank]          = σ²_bh + H σ²_bank
    E[MS head]          = σ²_bh + B σ²_sh + S B σ²_head
    E[MS stage1 × head] = σ²_bh + B σ²_sh
    E[MS bank × head]   = σ²_bh

Solved for the components (method of moments). σ²_stage1 is the variance over samples of the mean over all banks of a
sample, σ²_bank that over the banks of one sample. Segments that two samples have in common by chance are part of
drawing samples. Were banks drawn with one seed for all samples, though, what banks of one seed have in common would
be in MS bank and not in MS stage1, and σ²_stage1 would come out too low by 1/B of it: at 0, mostly.

Limits: with normal sources the mean squares are independent multiples of χ². The 95 % limits of a share are the
smallest and the largest under which an estimate as high, or as low, as the one found has probability 2.5 %, simulated
with the other sources in the proportion found. They are as good where the estimate is at or below 0. With S = 1 the
terms of stage 1 drop out: the two-way design bank × head.
"""

import sys
from collections.abc import Callable
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
APART = 1000  # between the bank seeds of two stage-1 samples
DRAWS = 4000
CAPTION = ("Banks are nested in stage-1 samples and crossed with heads; method of moments; a variance estimated below "
           "0 is given as 0 and marked *. Limits: the smallest and the largest share under which an estimate as high, "
           "or as low, has probability 2.5 %, by simulation. Stage-1 sample: which segments of the same images are "
           "kept. Head: initial weights and batch order, of the dense head too. Bank × head is what neither explains "
           "alone.")


@dataclass(kw_only=True)
class Settings:
    """The design, and the output."""

    dataset: str = setting("shapes", "data set, embedded by stage 2")
    model: str = setting("shapes_medium", "backbone: a YAML of model_configs/")
    bank: Literal["Prototype", "Cluster", "End2End"] = setting("Prototype", "kind of bank")
    num_concepts: int = setting(64, "M", type=positive)
    stage1: int = setting(8, "stage-1 seeds, 0 … (1: stage 1 as it is)", type=positive)
    banks: int = setting(4, "banks of each stage-1 sample", type=positive)
    heads: int = setting(3, "head seeds, 0 …", type=positive)
    n_epoch: int = setting(30, "epochs per head", type=positive)
    device: str | None = setting(None, "cpu, cuda or cuda:N (default: cuda when there is one)")
    save_dir: Path | None = setting(None, "output folder (default: its own below results/reproduction/variance)")


def main(settings: Settings) -> Path:
    """Train what is missing and write the table. Returns its folder."""
    if min(settings.banks, settings.heads) < 2:
        raise UserError(f"--banks {settings.banks} --heads {settings.heads}: at least 2 of each are needed to tell "
                        "them apart")
    if settings.banks > APART:
        raise UserError(f"--banks {settings.banks}: at most {APART}")
    folder = settings.save_dir or USUAL / slug(
        f"{settings.dataset}_{settings.model}_{settings.bank}_M{settings.num_concepts}")
    elements = [elements_of(settings, USUAL / "elements", sample) for sample in range(settings.stage1)]
    runs = [[run_of(settings, own, bank_seed(sample, bank), folder / f"stage1_{sample}")
             for bank in range(settings.banks)] for sample, own in enumerate(elements)]
    scores_SBH = np.array([[run["iis"]["per_seed"] for run in sample] for sample in runs])
    write_text(folder / "scores.csv", as_csv([
        {"stage1_seed": sample, "bank_seed": bank_seed(sample, bank), "head_seed": head, "iis": float(score)}
        for (sample, bank, head), score in np.ndenumerate(scores_SBH)]))
    marks = ", ".join(sorted({mark for sample in runs for run in sample for mark in run["marks"]}))
    caption = (f"{settings.model} on {settings.dataset}, {settings.bank} bank, M = {settings.num_concepts}; "
               f"{len(elements)} stage-1 samples × {settings.banks} banks × {settings.heads} heads; mean IIS "
               f"{scores_SBH.mean():.4f}{f' ({marks})' if marks else ''}. {CAPTION}")
    print(write_table(folder, "variance_shares", *table(scores_SBH), caption))
    print(f"written: {folder}/variance_shares.csv")
    return folder


def bank_seed(sample: int, bank: int) -> int:
    """The seed of a bank of a stage-1 sample: another one for every pair."""
    return APART * sample + bank


def table(scores_SBH: np.ndarray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line per source and one for all, as numbers and as people read them."""
    found = components(scores_SBH)
    limits, total = share_limits(scores_SBH), sum(found.variance.values())
    lines, people = [], []
    for source, variance in {**found.variance, "all": total}.items():
        share, (low, high) = variance / total if total else float("nan"), limits.get(source, (None, None))
        lines.append({"source": source, "variance": variance, "std": variance ** 0.5, "share": share, "share_low": low,
                      "share_high": high, "below_0": source in found.negative})
        people.append({"source": source, "std of the IIS": f"{variance ** 0.5:.4f}" + "*" * (source in found.negative),
                       "share, %": f"{100 * share:.1f}",
                       "95 % limits": "-" if low is None else f"{100 * low:.0f} to {100 * high:.0f}"})
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


def run_of(settings: Settings, elements: Path, bank: int, folder: Path) -> dict[str, Any]:
    """Summary of the heads under the bank of seed `bank`, trained where they are missing."""
    ledger = call_script(import_module(f"IP_training.{SCRIPTS[settings.bank]}"), {
        "model_name": settings.model, "dataset": settings.dataset, "num_concepts": settings.num_concepts,
        "bank_seed": bank, "seeds": settings.heads, "n_epoch": settings.n_epoch, "concept_path": elements,
        "device": settings.device, "save_dir": folder / f"bank_{bank}"}) / LEDGER
    rows = [row for row in read_ledger(ledger) if row["seed"] < settings.heads]  # an earlier run may have had more
    return summarise(rows, draws=2, where=str(ledger))


# ---- variance components ----


class Components(NamedTuple):
    """variance: {source: its variance, ≥ 0}; negative: sources whose estimate is below 0 and given as 0."""

    variance: dict[str, float]
    negative: tuple[str, ...]


def mean_squares(scores_SBH: np.ndarray) -> dict[str, float]:
    """The mean squares in the order of SOURCES; those of stage 1 are absent for S = 1. Raises `UserError` below 2 banks
    or heads."""
    scores_SBH = np.asarray(scores_SBH, float)
    samples, banks, heads = scores_SBH.shape
    if min(banks, heads) < 2:
        raise UserError(f"scores of shape {scores_SBH.shape}: at least 2 banks and 2 heads are needed to tell them "
                        "apart")
    mean = scores_SBH.mean()
    of_sample, of_head = scores_SBH.mean((1, 2)), scores_SBH.mean((0, 1))  # (S,), (H,)
    of_bank, of_both = scores_SBH.mean(2), scores_SBH.mean(1)  # (S, B), (S, H)
    rest = scores_SBH - of_bank[:, :, None] - of_both[:, None, :] + of_sample[:, None, None]
    crossed = of_both - of_sample[:, None] - of_head + mean
    squares = {"stage-1 sample": banks * heads * ((of_sample - mean) ** 2).sum(),
               "bank": heads * ((of_bank - of_sample[:, None]) ** 2).sum(),
               "head": samples * banks * ((of_head - mean) ** 2).sum(),
               "stage-1 sample × head": banks * (crossed ** 2).sum(), "bank × head": (rest ** 2).sum()}
    return {source: float(squares[source]) / degree for source, degree in degrees(scores_SBH.shape).items()}


def degrees(shape: tuple[int, int, int]) -> dict[str, int]:
    """Degrees of freedom of each mean square of scores (S, B, H)."""
    samples, banks, heads = shape
    found = {"stage-1 sample": samples - 1, "bank": samples * (banks - 1), "head": heads - 1,
             "stage-1 sample × head": (samples - 1) * (heads - 1), "bank × head": samples * (banks - 1) * (heads - 1)}
    return {source: degree for source, degree in found.items() if degree}


def expectations(shape: tuple[int, int, int]) -> np.ndarray:
    """(K, K): expected mean squares = this @ variances, the five lines of the page's head; both in the order of SOURCES
    (without those of stage 1 for S = 1)."""
    samples, banks, heads = shape
    found = np.array([[banks * heads, heads, 0, banks, 1], [0, heads, 0, 0, 1], [0, 0, samples * banks, banks, 1],
                      [0, 0, 0, banks, 1], [0, 0, 0, 0, 1]], float)
    kept = [SOURCES.index(source) for source in degrees(shape)]
    return found[np.ix_(kept, kept)]


def components(scores_SBH: np.ndarray) -> Components:
    """Variance components of scores (S, B, H) by the method of moments. Raises `UserError` below 2 banks or heads."""
    squares = mean_squares(scores_SBH)
    found = dict(zip(squares, solve(squares, np.shape(scores_SBH)).tolist(), strict=True))
    return Components({source: max(value, 0.0) for source, value in found.items()},
                      tuple(source for source, value in found.items() if value < 0))


def solve(squares: dict[str, float], shape: tuple[int, int, int]) -> np.ndarray:
    """The variances (K,) whose expected mean squares these are; some may be below 0."""
    return np.linalg.solve(expectations(shape), list(squares.values()))


def share_limits(scores_SBH: np.ndarray, level: float = 0.95, draws: int = DRAWS) -> dict[str, tuple[float, float]]:
    """Limits of each source's share of the variance, as the page's head says; NaN where nothing varies.

    The share of an estimate is that of the variances as solved: one below 0 counts as what it is. Their sum is never
    below 0, because every mean square has a part in it that is not.
    """
    shape, tail = np.shape(scores_SBH), (1 - level) / 2
    squares = mean_squares(scores_SBH)
    expected_KK, degree_K = expectations(shape), np.array(list(degrees(shape).values()))
    variance_K, inverse_KK = solve(squares, shape), np.linalg.inv(expected_KK)
    if not variance_K.sum() > 0:
        return dict.fromkeys(squares, (float("nan"), float("nan")))
    # The same draws for every share that is tried.
    chi_BK = numpy_rng("variance shares", *shape).chisquare(degree_K, (draws, len(degree_K))) / degree_K

    def below(k: int, share: float) -> float:
        """How probable an estimate is that is at most as high as the one found, if this were the share of source k."""
        others_K = np.where(np.arange(len(degree_K)) == k, 0, variance_K.clip(0))
        if not others_K.any():  # nothing says in which proportion
            others_K = np.arange(len(degree_K)) != k
        true_K = (1 - share) * others_K / others_K.sum()
        true_K[k] = share
        drawn_BK = chi_BK * (expected_KK @ true_K) @ inverse_KK.T
        return float((drawn_BK[:, k] <= variance_K[k] / variance_K.sum() * drawn_BK.sum(1)).mean())

    return {source: (largest(lambda share, k=k: below(k, share) > 1 - tail),
                     largest(lambda share, k=k: below(k, share) >= tail)) for k, source in enumerate(squares)}


def largest(holds: Callable[[float], bool], steps: int = 12) -> float:
    """The share up to which a condition holds, by halving [0, 1]; 0 where it never does."""
    if holds(1.0) or not holds(0.0):
        return float(holds(1.0))
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


if __name__ == "__main__":
    run_script(main, Settings)
