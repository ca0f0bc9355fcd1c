"""A bank made elsewhere: a bare M x D matrix (CAVs, CRAFT), or the file of a sparse autoencoder with its encoder.

Tensors are found by the names that releases give them (SAELens, EleutherAI's sparsify, dictionary_learning, OpenAI's).
An encoder is read as they compute it: max(W (h − b_dec) + b_enc, 0), of which `k` keeps the largest, or `threshold`
those above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from iis.embedding_file import content_hash, load_tensors, read_tensors
from iis.runtime import UserError, read_json, read_lines
from IP_training.banks import Bank, from_matrix
from IP_training.encoder import Encoder

# By falling preference. `X.weight` is of nn.Linear, which stores (out, in): a square decoder of this name is D x M.
DECODERS = ("W_dec", "decoder.weight", "decoder", "dictionary", "W_d")
ENCODERS = ("W_enc", "encoder.weight", "encoder", "W_e")
BIASES = ("b_enc", "encoder.bias", "latent_bias", "b_e")
CENTRES = ("b_dec", "pre_bias", "decoder.bias", "bias", "b_d")
TRANSPOSED = ("decoder.weight", "W_enc")  # which are D x M where M = D, and their shape does not say


def from_file(file: Path, width: int, names: Path | None = None, route: str = "decoder", k: int | None = None) -> Bank:
    """The bank of a .npy, .pt or .safetensors file, for representations of D = width.

    names: see `read_names`. route: "encoder" takes the file's encoder for activations; k: codes of it that stay (by
    default as the file says). Raises `UserError` for files that are unclear, and as `from_matrix` does.
    """
    where, lines = f"--bank {file}", names and read_names(names)
    tensors = tensors_of(file)
    if not isinstance(tensors, dict) or len(tensors) == 1 and not found(tensors, DECODERS):
        if route == "encoder":
            raise UserError(f"--route encoder: {where} holds one matrix and no encoder; use --route decoder")
        return from_matrix(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors, width, lines, where)
    listed = ", ".join(f"{name} {'x'.join(map(str, value.shape)) or 'number'}" for name, value in tensors.items())
    if (name := found(tensors, DECODERS)) is None:
        raise UserError(f"{where} holds several tensors ({listed or 'none'}), and none has the name of a dictionary: "
                        f"call the M x D matrix {DECODERS[0]}, or save it alone")
    bank = from_matrix(oriented(tensors[name], name, width), width, lines, f"{where}, {name}")
    if route == "encoder":
        encoder = encoder_of(tensors, len(bank), width, k, f"{where} ({listed})")
        return Bank(bank.kind, bank.vectors_MD, bank.evidence, encoder=encoder)
    return bank


def tensors_of(file: Path) -> torch.Tensor | dict[str, torch.Tensor]:
    """The tensors of a file by name, numbers (such as k) as tensors; or the bare tensor, or whatever else it holds."""
    if not (file := Path(file)).is_file():
        return load_tensors(file)  # refuses
    data = read_tensors(file)
    if isinstance(data, dict):
        data = next((data[name] for name in ("state_dict", "model") if isinstance(data.get(name), dict)), data)
        numbers = {name: torch.tensor(float(value), dtype=torch.float64) for name, value in data.items()
                   if isinstance(value, int | float)}
        return {str(name): value.to_dense() for name, value in {**data, **numbers}.items() if torch.is_tensor(value)}
    return data.to_dense() if torch.is_tensor(data) else data


def found(tensors: dict[str, torch.Tensor], names: Sequence[str]) -> str | None:
    """The first of these names that there is."""
    return next((name for name in names if name in tensors), None)


def oriented(matrix: torch.Tensor, name: str, width: int) -> torch.Tensor:
    """The matrix as M x D: turned where its shape says so or, being square, its name."""
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    turned = name in TRANSPOSED if square else matrix.ndim == 2 and matrix.shape[1] != width == matrix.shape[0]
    return matrix.T if turned else matrix


def encoder_of(tensors: dict[str, torch.Tensor], size: int, width: int, k: int | None, where: str) -> Encoder:
    """The encoder among the tensors of a dictionary of M = size. Raises `UserError` where there is none, or its parts
    do not fit."""
    if (name := found(tensors, ENCODERS)) is None:
        raise UserError(f"--route encoder: {where} has no encoder; use --route decoder, or add {ENCODERS[0]}")
    weight_MD = oriented(tensors[name], name, width).float().contiguous()
    parts: dict[str, Any] = {field: tensors[one].float().flatten() for field, names in
                             (("bias_M", BIASES), ("centre_D", CENTRES)) if (one := found(tensors, names))}
    threshold = tensors["threshold"].float().flatten() if "threshold" in tensors else None
    if k is None and threshold is not None and not bool((threshold < 0).all()):  # -1: not known yet
        parts |= {"rule": "threshold", "threshold_M": threshold.expand(size) if len(threshold) == 1 else threshold}
    elif (k := k or k_of(tensors, where)) is not None:
        parts |= {"rule": "topk", "k": k}
    else:
        parts |= {"rule": "relu"}
    fits = {"weight": (weight_MD, (size, width)), "bias": (parts.get("bias_M"), (size,)),
            "threshold": (parts.get("threshold_M"), (size,)), "centre": (parts.get("centre_D"), (width,))}
    for what, (tensor, shape) in fits.items():
        if tensor is not None and (tensor.shape != shape or not torch.isfinite(tensor).all()):
            raise UserError(f"--route encoder: in {where} the encoder's {what} does not fit {size} concepts and "
                            f"D = {width}, or is not finite")
    if not 1 <= parts.get("k", 1) <= size:
        raise UserError(f"--route encoder: {where} keeps k = {parts['k']} of {size} codes; give another --sae_k")
    return Encoder(weight_MD, **parts)


def k_of(tensors: dict[str, torch.Tensor], where: str) -> int | None:
    """The k of a file; None where it has none. Raises `UserError` for one that is no whole number."""
    if "k" not in tensors or tensors["k"].numel() != 1:
        return None
    if not (k := float(tensors["k"])).is_integer():
        raise UserError(f"--route encoder: {where} keeps k = {k:g} codes, which is no whole number; give --sae_k")
    return int(k)


def read_names(file: Path) -> list[str] | dict[int, str]:
    """Names of concepts: a line each, or JSON, a list or a mapping of the concept's number (from 0) to its name."""
    if not file.is_file():
        raise UserError(f"there is no file {file} with the concepts' names")
    if file.suffix != ".json":
        return read_lines(file)
    data = read_json(file)
    if isinstance(data, list):
        return [str(name) for name in data]
    if isinstance(data, dict) and all(number.isdecimal() for number in data):
        return {int(number): str(name) for number, name in data.items()}
    raise UserError(f"--bank_names {file} holds neither a list of names nor a mapping of concept numbers to names")


def identity_of_own(file: Path, bank: Bank) -> dict[str, Any]:
    """What identifies a bank made elsewhere in the ledger: the file's name, and hashes of its matrix and encoder."""
    own = {"bank_name": file.stem, "bank_hash": content_hash(bank.vectors_MD, torch.arange(len(bank)))}
    if not bank.encoder.sparse:
        return own
    return {**own, "route": "encoder", "sae_rule": bank.encoder.rule, "sae_k": bank.encoder.k,
            "encoder": bank.encoder.fingerprint()}
