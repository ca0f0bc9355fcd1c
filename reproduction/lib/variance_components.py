"""How much of the spread of a score comes from each of its sources: random-effects analysis of variance.

A cube (S, B, H): S stage-1 samples, in each of them B banks (nested: banks of two samples are not related), all under
the same H heads (crossed).

    score = mean + stage1_s + bank_b(s) + head_h + (stage1 × head)_sh + (bank × head)_b(s)h

    E[MS stage1]        = σ²_bh + H σ²_bank + B σ²_sh + B H σ²_stage1
    E[MS bank]          = σ²_bh + H σ²_bank
    E[MS head]          = σ²_bh + B σ²_sh + S B σ²_head
    E[MS stage1 × head] = σ²_bh + B σ²_sh
    E[MS bank × head]   = σ²_bh

Solved for the components (method of moments); one below 0 is set to 0 and named. With S = 1 the terms of stage 1 drop
out: the two-way design bank × head.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from iis.runtime import UserError, numpy_rng

SOURCES = ("stage-1 sample", "bank", "head", "stage-1 sample × head", "bank × head")


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
