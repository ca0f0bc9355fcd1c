"""How activations a = h · bankᵀ are normalised before they are sparsified, column block by column block.

    layer      LayerNorm over the block's columns of each sample; scale and shift are learned with the head
    standard   minus the training mean, over the training standard deviation of each column; nothing is learned
               (Text, as LF-CBM)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

EPSILON = 1e-5  # LayerNorm's
KINDS = ("layer", "standard")


@dataclass
class Normaliser:
    """blocks: (kind, number of columns) from left to right. mean_M, std_M (M,): 0 and 1 in `layer` columns."""

    blocks: tuple[tuple[str, int], ...]
    mean_M: torch.Tensor
    std_M: torch.Tensor

    @property
    def learned_M(self) -> torch.Tensor:
        """Which columns have a learned scale and shift, (M,) bool."""
        return torch.tensor([kind == "layer" for kind, columns in self.blocks for _ in range(columns)])

    def __call__(self, a_BM: torch.Tensor) -> torch.Tensor:
        """Normalised activations (B, M), before scale and shift."""
        parts = []
        for (kind, columns), a, mean, std in zip(self.blocks, *map(self._split, (a_BM, self.mean_M, self.std_M)),
                                                 strict=True):
            layer = kind == "layer"
            parts.append(nn.functional.layer_norm(a, (columns,), eps=EPSILON) if layer else (a - mean) / std)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _split(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return values.split([columns for _, columns in self.blocks], dim=-1)


def fit_normaliser(blocks: Sequence[tuple[str, int]], train_features_ND: torch.Tensor, bank_MD: torch.Tensor,
                   train_rows: torch.Tensor | None = None, chunk: int = 65536) -> Normaliser:
    """The normaliser of a bank (on its device), with the means and deviations (ddof 1) of the training activations.

    train_rows: the rows that are trained on, under `--holdout`; else all. A constant column has deviation 1.
    """
    if sum(columns for _, columns in blocks) != len(bank_MD) or not {kind for kind, _ in blocks} <= set(KINDS):
        raise ValueError(f"{blocks} does not describe the {len(bank_MD)} columns of the bank")
    standard_M = torch.tensor([kind == "standard" for kind, columns in blocks for _ in range(columns)],
                              device=bank_MD.device)
    mean_M, std_M = bank_MD.new_zeros(len(bank_MD)), bank_MD.new_ones(len(bank_MD))
    if standard_M.any():
        rows = torch.arange(len(train_features_ND)) if train_rows is None else train_rows
        mean, squares = 0.0, 0.0
        for part in rows.split(chunk):
            mean = mean + _activations(train_features_ND, part, bank_MD[standard_M]).sum(0) / len(rows)
        for part in rows.split(chunk):
            squares = squares + (_activations(train_features_ND, part, bank_MD[standard_M]) - mean).square().sum(0)
        std = (squares / max(len(rows) - 1, 1)).sqrt()
        mean_M[standard_M], std_M[standard_M] = mean.float(), torch.where(std > 0, std, 1.0).float()
    return Normaliser(tuple(blocks), mean_M, std_M)


def _activations(features_ND: torch.Tensor, rows: torch.Tensor, bank_MD: torch.Tensor) -> torch.Tensor:
    return (features_ND[rows].to(bank_MD.device, torch.float32) @ bank_MD.T).double()
