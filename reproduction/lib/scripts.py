"""A script called from this process, with its settings as a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from iis.cli import from_mapping


def call_script(script: Any, settings: Mapping[str, Any]) -> Any:
    """What `main` of a script (its module) returns for these settings; None leaves one at its default."""
    return script.main(from_mapping(script.Settings, settings, f"a call of {script.__name__}"))


def setting_names(script: Any) -> set[str]:
    """The settings that a script knows."""
    return {field.name for field in dataclasses.fields(script.Settings)}
