"""How much of the spread of a score comes from each of its sources: random-effects analysis of variance.

A cube (S, B, H): S stage-1 samples, in each of them B banks (nested: bank 0 of one sample is no kin of bank 0 of
another), all under the same H heads (crossed).

    score = mean + stage1_s + bank_b(s) + head_h + (stage1 × head)_sh + (bank × head)_b(s)h

Expected mean squares of the balanced design (with σ² of the last term as the residual):

    E[MS stage1]        = σ²_bh + H σ²_bank + B σ²_sh + B H σ²_stage1
    E[MS bank]          = σ²_bh + H σ²_bank
    E[MS head]          = σ²_bh + B σ²_sh + S B σ²_head
    E[MS stage1 × head] = σ²_bh + B σ²_sh
    E[MS bank × head]   = σ²_bh

Solved for the components (method of moments); one below 0 is set to 0 and named. With S = 1 the terms of stage 1 drop
out and what is left is the two-way design bank × head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iis.runtime import UserError, numpy_rng

SOURCES = ("stage-1 sample", "bank", "head", "stage-1 sample × head", "bank × head")


@dataclass(frozen=True)
class Components:
    """variance: {source: its variance, ≥ 0}; negative: sources whose estimate was below 0 and is given as 0."""

    variance: dict[str, float]
    negative: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Each source's part of the sum, as a fraction; NaN where nothing varies."""
        total = sum(self.variance.values())
        return {source: value / total if total else float("nan") for source, value in self.variance.items()}


def mean_squares(scores_SBH: np.ndarray) -> dict[str, float]:
    """The mean squares of each source. Those of stage 1 are absent for S = 1."""
    scores_SBH = np.asarray(scores_SBH, float)
    if scores_SBH.ndim != 3 or min(scores_SBH.shape[1:]) < 2:
        raise UserError(f"scores of shape {scores_SBH.shape}: at least 2 banks and 2 heads are needed to tell them "
                        "apart")
    samples, banks, heads = scores_SBH.shape
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
    found = {"bank": (squares["bank"] - rest) / heads, "bank × head": rest}
    if samples > 1:
        crossed = squares["stage-1 sample × head"]
        found |= {"head": (squares["head"] - crossed) / (samples * banks),
                  "stage-1 sample × head": (crossed - rest) / banks,
                  "stage-1 sample": (squares["stage-1 sample"] - squares["bank"] - crossed + rest) / (banks * heads)}
    else:
        found["head"] = (squares["head"] - rest) / banks
    ordered = {source: found[source] for source in SOURCES if source in found}
    return Components({source: max(value, 0.0) for source, value in ordered.items()},
                      tuple(source for source, value in ordered.items() if value < 0))


def simulate(variance: dict[str, float], shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Scores (S, B, H) drawn from normal sources with these variances."""
    samples, banks, heads = shape
    shapes = {"stage-1 sample": (samples, 1, 1), "bank": (samples, banks, 1), "head": (1, 1, heads),
              "stage-1 sample × head": (samples, 1, heads), "bank × head": shape}
    return sum((value ** 0.5 * rng.standard_normal(shapes[source]) for source, value in variance.items()),
               np.zeros(shape))


def share_intervals(found: Components, shape: tuple[int, int, int], draws: int = 2000, level: float = 0.95
                    ) -> dict[str, tuple[float, float]]:
    """Parametric bootstrap: the central `level` range of each share when the components found were the truth.

    A design of a handful of levels leaves it wide; that is the point of showing it.
    """
    rng = numpy_rng("variance shares", *shape)
    shares = [components(simulate(found.variance, shape, rng)).shares for _ in range(draws)]
    edges = [(1 - level) / 2, (1 + level) / 2]
    return {source: tuple(map(float, np.nanquantile([share[source] for share in shares], edges)))
            for source in found.variance}
