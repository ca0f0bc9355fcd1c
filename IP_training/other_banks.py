"""Banks that need no visual elements of their own: Random (the control), Combined, and a matrix from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from iis.embedding_file import content_hash, load_tensors
from iis.runtime import UserError, torch_rng
from IP_training.concept_banks import Bank, unit_rows


def random_bank(num_concepts: int, width: int, seed: int) -> Bank:
    """M random unit directions of D = width: what any bank must be compared with."""
    directions = torch.randn(num_concepts, width, generator=torch_rng(seed, "random directions"))
    return Bank("Random", unit_rows(directions), [[f"random direction {m}"] for m in range(num_concepts)])


def combined_bank(banks: Sequence[Bank]) -> Bank:
    """Banks stacked (paper, Table 4: visual and textual); each block is normalised by its own rule."""
    return Bank("Combined", torch.cat([bank.vectors_MD for bank in banks]),
                [[f"{bank.kind}: {line}" for line in lines] for bank in banks for lines in bank.evidence],
                tuple(block for bank in banks for block in bank.blocks))


def file_bank(file: Path, width: int, names: Path | None = None) -> Bank:
    """An M x D matrix made elsewhere (CAVs, CRAFT, an SAE's dictionary): .npy, .pt or .safetensors, rows scaled to 1.

    Rows that have length 1 already stay as they are, bit for bit. names: a text file with a name a line. Raises
    `UserError` for another shape or width, values that float32 cannot hold, zeros alone, or another number of names.
    """
    matrix = load_tensors(file)
    if not torch.is_tensor(matrix) or matrix.ndim != 2 or not len(matrix):
        shape = tuple(matrix.shape) if torch.is_tensor(matrix) else type(matrix).__name__
        raise UserError(f"--bank {file} holds {shape}; one matrix of M x D is needed")
    if matrix.shape[1] != width:
        raise UserError(f"--bank {file} has D = {matrix.shape[1]}, and the representations have D = {width}; make the "
                        "bank in the space of these representations" + (" (it looks transposed)"
                                                                       if matrix.shape[0] == width else ""))
    vectors_MD = matrix.to(torch.float32)
    if not torch.isfinite(vectors_MD).all():
        raise UserError(f"--bank {file} holds values that are not finite, or beyond float32")
    if not vectors_MD.any():
        raise UserError(f"--bank {file} is all zero; a concept needs a direction")
    lines = [f"concept {m}" for m in range(len(matrix))]
    if names is not None:
        if not names.is_file():
            raise UserError(f"there is no file {names} with the concepts' names")
        lines = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(lines) != len(matrix):
            raise UserError(f"{names} has {len(lines)} names for the {len(matrix)} concepts of {file}")
    unit = (vectors_MD.norm(dim=1, keepdim=True) - 1).abs() <= 1e-6  # scaling these again would only round them
    return Bank("Own", torch.where(unit, vectors_MD, unit_rows(vectors_MD)), [[line] for line in lines])


def own_settings(file: Path, bank: Bank) -> dict[str, str]:
    """What identifies a bank of one's own in the ledger: the file's name and a hash of the matrix."""
    return {"bank_name": file.stem, "bank_hash": content_hash(bank.vectors_MD, torch.arange(len(bank)))}
