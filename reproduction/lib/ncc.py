"""NCC, the number of contributing concepts (M-CBM, arXiv 2603.07343): how few concepts make up a logit.

    NCC = mean over images and classes of the fewest concepts m whose Σ |a_m · w_cm| ≥ τ · Σ over all m      τ = 0.95

a: sparsified activations, as the head gets them; w: its weights. NEC, the non-zero weights per class, is τ = 1 where no
activation is 0. Fewer is better. No concept contributes to a logit without contributions: it counts 0, as in M-CBM's
own evaluation. Here heads exist already, one per sparsity ratio; M-CBM fits elastic nets to reach a given NCC.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from iis.grid import DENSE
from iis.runtime import UserError
from IP_training.config import TrainingSettings
from reproduction.lib.explanation import load_predictor
from reproduction.lib.run_files import settings_of
from reproduction.lib.runs import Run

SHARE = 0.95  # τ of the paper
BLOCK = 2**23  # contributions at a time: 64 MiB of float64
EXACT = 1e-9  # of the sum: 19 of 20 equal contributions are 0.95 of it, whatever rounding says


class Head(NamedTuple):
    """Inputs (N, M) that a linear head sees, and its weights (C, M)."""

    x_NM: torch.Tensor
    weight_CM: torch.Tensor


def contributing_concepts(x_NM: torch.Tensor, weight_CM: torch.Tensor, share: float = SHARE) -> torch.Tensor:
    """For every image the mean over classes of the fewest concepts with `share` of Σ |a·w|, (N,) float64; at share 1
    those that contribute at all. Raises `ValueError` for a share outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} is not in (0, 1]")
    weight_CM, parts = weight_CM.double().abs(), []
    for x_BM in x_NM.split(max(1, BLOCK // weight_CM.numel())):
        given_BCM = x_BM.double().abs()[:, None] * weight_CM
        if share == 1:
            parts.append((given_BCM > 0).sum(-1).double().mean(1))
            continue
        sums_BCM = given_BCM.sort(dim=-1, descending=True).values.cumsum(-1)
        all_BC1 = sums_BCM[..., -1:]
        # Those before the share is reached, and the one that reaches it; none where there is nothing to share.
        count_BC = (sums_BCM < (share - EXACT) * all_BC1).sum(-1) + 1
        parts.append((count_BC * (all_BC1[..., 0] > 0)).double().mean(1))
    return torch.cat(parts)


def head_of(run: Run, seed: int, ratio: float, features_ND: torch.Tensor) -> Head:
    """The stored head of a seed at a ratio (`DENSE`: on the raw representation, D wide) with what it sees of
    representations (N, D). Raises `UserError` where it is gone."""
    if ratio != DENSE:
        predictor = load_predictor(run.folder, seed, ratio)
        return Head(predictor.interpretations(features_ND), predictor.weight_CM)
    from safetensors.torch import load_file

    file = dense_folder(run) / "predictors" / f"seed_{seed}.safetensors"
    if not file.is_file():
        raise UserError(f"there is no file {file} with the dense heads of {run.folder}; run stage 3 again")
    return Head(features_ND.float(), load_file(file)["dense/weight"])


def dense_folder(run: Run) -> Path:
    """Where stage 3 kept the dense heads of a run."""
    identity = run.identity
    settings = TrainingSettings(
        model_name=identity["model"], dataset=identity["dataset"], n_epoch=identity["epochs"],
        batch_size=identity["batch_size"], holdout=identity["holdout"], tf32=identity.get("tf32", False),
        dense_heads_dir=settings_of(run.folder).get("dense_heads_dir"))
    return settings.dense_folder(identity["train_hash"], identity["val_hash"])
