"""The Inherent Interpretability Score from Python: `iis.score`, `iis.embed`, `iis.banks` (docs/notebook.ipynb)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["banks", "embed", "score"]


def __getattr__(name: str) -> Any:
    """Load what is asked for, so that scripts which need no PyTorch start without it."""
    if name == "banks":
        return import_module("iis.banks")
    if name in ("score", "embed", "Result"):
        from iis import python_call

        return getattr(python_call, name)
    raise AttributeError(f"module 'iis' has no attribute {name!r}")
