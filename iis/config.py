"""Settings: defaults <- YAML <- command line. One parser class for every door, and the types of its flags."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from iis.dry_run import tell
from iis.runtime import ROOT, UserError, nearest, write_text


def path(text: str) -> Path:
    """A path flag: on the command line it resolves against the caller's folder, in YAML against the repository."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def numbers(text: str) -> tuple[float, ...]:
    """A comma-separated list of numbers, e.g. `0,0.1,0.3`."""
    try:
        values = tuple(float(part) for part in str(text).split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None
    if not values:
        raise argparse.ArgumentTypeError("an empty list of numbers")
    return values


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def count(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number, 0 or more")
    return int(text)


def part(text: str) -> float:
    """A part of a whole: above 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most 1")
    return value


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, but not where there is none to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default  # 0 is told, and equals False: hence `is`
        if default is None or default is False or default == () or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class DoorParser(argparse.ArgumentParser):
    """argparse with what all doors share: both `--flag_name` and `--flag-name`, no abbreviations, defaults
    in `--help`, errors in one sentence that name the nearest flag, `--dry_run`, and `--config_yaml` where a door adds
    it. plans: whether the door itself tells what `--dry_run` asks; if not, its settings are told here."""

    plans = False
    _dry_run: argparse.Action | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {Path(sys.argv[0]).name} --help)")

    def flags(self) -> dict[str, argparse.Action]:
        """Every flag by its YAML key (`--val_resize_size` is `val_resize_size`)."""
        return {action.dest: action for action in self._actions
                if action.option_strings and action.dest not in ("help", "dry_run")}

    def settings(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse: defaults <- the YAML named by `--config_yaml`, if any <- command line.

        Raises `UserError` for an unknown flag or key (naming the nearest), a bad value or a missing file.
        """
        argv = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
        if "--dry_run" not in self._option_string_actions:  # a door may have its own
            self._dry_run = self.add_argument("--dry_run", action="store_true", help="only say what would run; nothing "
                                              "is made")
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config_yaml")
        config = first.parse_known_args(argv)[0].config_yaml
        if config is not None and "config_yaml" in self.flags():
            self.take_yaml(find_config(config, "model_configs"))
        settings, unknown = self.parse_known_args(argv)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"unknown argument {unknown[0]}{nearest(unknown[0], known)}")
        if self._dry_run is None:
            return settings
        if settings.dry_run and not self.plans:
            told = {name: str(value) for name, value in vars(settings).items() if value not in (None, "")}
            tell(f"{self.prog}, {self.description}", {name: text for name, text in told.items() if name != "dry_run"})
            sys.exit(0)
        if not settings.dry_run:  # it decides no result: neither settings.yaml nor a manifest should hold it
            del settings.dry_run
        return settings

    def take_yaml(self, file: Path) -> None:
        """Let the keys of a YAML be the defaults. Raises `UserError` for an unknown key or a bad value."""
        flags, defaults = self.flags(), {}
        for key, value in read_yaml(file).items():
            if key.replace("-", "_") not in flags:
                raise UserError(f"{file} has the unknown key {key!r}{nearest(key, flags)}")
            action = flags[key.replace("-", "_")]
            defaults[action.dest] = _yaml_value(action, value, file)
            action.required = False
        self.set_defaults(**defaults)


def _yaml_value(action: argparse.Action, value: Any, file: Path) -> Any:
    if value is None or isinstance(action.const, bool):  # a switch is written true or false
        return value
    if action.type is path:
        return (ROOT / str(value)).resolve()
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        converted = action.type(text) if action.type else text
    except (ValueError, argparse.ArgumentTypeError):
        raise UserError(f"{file}: {action.dest} = {value!r} is not a valid value") from None
    if action.choices is not None and converted not in action.choices:
        raise UserError(f"{file}: {action.dest} = {value!r} is not one of {', '.join(map(str, action.choices))}")
    return converted


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping with `${NAME}` replaced by environment variables; an unset one is a `UserError`."""
    text = Path(file).read_text(encoding="utf-8")

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{file} uses ${{{match[1]}}}, which is not set: export {match[1]}=… "
                            "(the README says what it holds), or write the path into the file")
        return os.environ[match[1]]

    # Comments may name a variable without needing it.
    lines = [re.sub(r"\$\{(\w+)\}", variable, line) if not line.lstrip().startswith("#") else line
             for line in text.splitlines()]
    try:
        data = yaml.safe_load("\n".join(lines)) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{file} should hold `key: value` lines")
    return data


def find_config(name: str | Path, folder: str) -> Path:
    """The YAML called `name`: a file, or a name in `folder`, e.g. `resnet50` for
    `model_configs/resnet50_IMAGENET1K_V1.yaml` when only one file starts with `resnet50_`."""
    given = path(str(name))
    if given.is_file():
        return given
    known = sorted((ROOT / folder).glob("*.yaml"))
    stem = Path(name).name.removesuffix(".yaml")
    exact = [file for file in known if file.stem == stem]
    starting = [file for file in known if file.stem.startswith(f"{stem}_IMAGENET")]
    for matches in (exact, starting):
        if len(matches) == 1:
            return matches[0]
    raise UserError(f"there is no configuration {name} (neither a file nor a name in {folder}/)"
                    f"{nearest(stem, [file.stem for file in known])}")


def write_settings(settings: argparse.Namespace, file: Path) -> None:
    """Write the merged settings of a run beside its results, as YAML that `--config_yaml` takes again."""
    plain = {key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
             for key, value in sorted(vars(settings).items()) if key != "config_yaml"}
    write_text(file, yaml.safe_dump(plain, sort_keys=True, allow_unicode=True))
