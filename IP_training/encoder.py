"""From representations to activations: `Encoder`, the one place where a bank turns h into a.

    projection     a = h · bankᵀ, as all banks do unless said
    relu           a = max(u, 0)                           with u = W (h − centre) / scale + bias
    topk           the k largest of max(u, 0), the others 0
    threshold      u where it is above the concept's threshold, else 0 (JumpReLU, and BatchTopK after training)
    lasso          codes a >= 0 with which a · W rebuilds (h − centre) at length 1, at a penalty on Σ a (SpLiCE)

All but the first give sparse codes: most are 0. A further rule is one function in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn.functional import normalize

from iis.embedding_file import content_hash
from IP_training.sparse_codes import nonnegative_codes

PROJECTION = "projection"


@dataclass(frozen=True)
class Encoder:
    """Activations (B, M) of representations (B, D).

    weight_MD: for a projection the bank itself. bias_M, centre_D: None is 0. k: of `topk`. threshold_M: of `threshold`.
    penalty: of `lasso`.
    """

    weight_MD: torch.Tensor
    rule: str = PROJECTION
    bias_M: torch.Tensor | None = None
    centre_D: torch.Tensor | None = None
    threshold_M: torch.Tensor | None = None
    scale: float = 1.0
    k: int | None = None
    penalty: float | None = None

    def __call__(self, h_BD: torch.Tensor) -> torch.Tensor:
        """Activations (B, M), float32, on the encoder's device."""
        x_BD = h_BD.to(self.weight_MD.device, torch.float32)
        x_BD = x_BD if self.centre_D is None else x_BD - self.centre_D
        return RULES[self.rule](self, x_BD if self.scale == 1 else x_BD / self.scale)

    def __len__(self) -> int:
        return len(self.weight_MD)

    @property
    def sparse(self) -> bool:
        """Whether it gives codes, with zeros of their own."""
        return self.rule != PROJECTION

    def size_M(self, size_D: torch.Tensor) -> torch.Tensor:
        """How large the numbers are that an activation adds up, (M,), for representations of mean |h| = size_D: what
        its rounding error goes with."""
        size_D = size_D if self.centre_D is None else size_D + self.centre_D.abs()
        size_M = self.weight_MD.abs() @ (size_D / self.scale)
        return size_M if self.bias_M is None else size_M + self.bias_M.abs()

    def to(self, device: torch.device) -> Encoder:
        """The encoder on a device."""
        return replace(self, **{name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name: with `numbers`, all there is to store."""
        return {one.name: value for one in fields(self) if torch.is_tensor(value := getattr(self, one.name))}

    def numbers(self) -> dict[str, Any]:
        """The rest, plain values, None left out."""
        return {name: value for name, value in vars(self).items() if value is not None and not torch.is_tensor(value)}

    def fingerprint(self) -> dict[str, Any]:
        """What tells it from others, as plain values; of a projection {"bank": the hash of the bank} alone."""
        nothing = torch.zeros(0, dtype=torch.int64)
        hashes = {name: content_hash(value, nothing) for name, value in self.tensors().items()}
        return {"bank": hashes.pop("weight_MD"), **({"encoder": {**hashes, **self.numbers()}} if self.sparse else {})}


def as_encoder(bank: Encoder | torch.Tensor) -> Encoder:
    """Vectors (M, D) stand for the projection on them."""
    return bank if isinstance(bank, Encoder) else Encoder(bank)


def stored_encoder(tensors: dict[str, torch.Tensor], numbers: dict[str, Any] | None, own: str = "") -> Encoder:
    """The encoder of a bank among the tensors of a predictors' file. own: what their names begin with; numbers: what
    the JSON beside it says, None for a projection."""
    if numbers is None:
        return Encoder(tensors[f"{own}bank"].float())
    start = f"{own}encoder/"
    return Encoder(**{name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)},
                   **numbers)


def linear(encoder: Encoder, x_BD: torch.Tensor) -> torch.Tensor:
    """W x + bias."""
    u_BM = x_BD @ encoder.weight_MD.T
    return u_BM if encoder.bias_M is None else u_BM + encoder.bias_M


def keep_largest(codes: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest along the last axis, 0 elsewhere. Differentiable."""
    values, index = codes.topk(min(count, codes.shape[-1]), dim=-1)
    return torch.zeros_like(codes).scatter(-1, index, values)


def above_threshold(encoder: Encoder, x_BD: torch.Tensor) -> torch.Tensor:
    """W x + bias where it is above 0 and the threshold, else 0."""
    u_BM = linear(encoder, x_BD)
    return u_BM * (u_BM > encoder.threshold_M.clamp_min(0))


# What makes activations (B, M) of an encoder and its centred, scaled input (B, D).
RULES: dict[str, Callable[[Encoder, torch.Tensor], torch.Tensor]] = {
    PROJECTION: linear,
    "relu": lambda encoder, x_BD: linear(encoder, x_BD).relu(),
    "topk": lambda encoder, x_BD: keep_largest(linear(encoder, x_BD).relu(), encoder.k),
    "threshold": above_threshold,
    "lasso": lambda encoder, x_BD: nonnegative_codes(normalize(x_BD, dim=1), encoder.weight_MD, encoder.penalty),
}
