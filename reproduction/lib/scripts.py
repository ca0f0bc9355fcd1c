"""A script run in this process, with flags as a mapping."""

from __future__ import annotations

from typing import Any

from iis.cli import ScriptParser


def call_script(script: Any, flags: dict[str, Any]) -> Any:
    """What `main` of a script (its module) returns for these flags, taken as its command line would be.

    None and False leave a flag out, True sets a switch, a list becomes a comma-separated value.
    """
    settings: ScriptParser = script.parser()
    return script.main(settings.settings([word for key, value in flags.items() for word in words_of(key, value)]))


def words_of(key: str, value: Any) -> list[str]:
    """A flag as words of a command line."""
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{key}"]
    return [f"--{key}", ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
