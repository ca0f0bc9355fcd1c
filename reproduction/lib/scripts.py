"""A script called from this process, with its settings as a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from iis.cli import from_mapping


def call_script(script: Any, settings: Mapping[str, Any]) -> Any:
    """What `main` of a script (its module) returns for these settings; None leaves one at its default."""
    if not hasattr(script, "Settings"):  # TRANSITION: delete with words_of, once every script has Settings
        words = [word for key, value in settings.items() for word in words_of(key, value)]
        return script.main(script.parser().settings(words))
    return script.main(from_mapping(script.Settings, settings, f"a call of {script.__name__}"))


def setting_names(script: Any) -> set[str]:
    """The settings that a script knows."""
    if not hasattr(script, "Settings"):  # TRANSITION
        return set(script.parser().flags())
    return {field.name for field in dataclasses.fields(script.Settings)}


def words_of(key: str, value: Any) -> list[str]:  # TRANSITION
    """A flag as words of a command line."""
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{key}"]
    return [f"--{key}", ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
