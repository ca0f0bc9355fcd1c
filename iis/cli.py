"""Scripts and their settings: defaults <- YAML <- command line, and errors in one sentence.

A script declares its settings as a dataclass: a field, its default, one sentence. Flags, `--help` and checks are made
from it (a base class is a group of flags, its docstring the group's title):

    @dataclass(kw_only=True)
    class Settings:
        dataset: str = setting("shapes", "a YAML of dataset_configs/")

    def main(settings: Settings) -> None: ...

    if __name__ == "__main__":
        run_script(main, Settings)
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from iis.runtime import CANNOT_WRITE, ROOT, UserError, nearest, write_text

# ---- fields and their types ----


def setting(default: Any = dataclasses.MISSING, help: str = "", **options: Any) -> Any:
    """A field of a settings dataclass. Without a default the flag is required.

    options: `type` (a function of the text, where the annotation says too little), `choices`, `metavar`, `also`
    (other spellings of the flag, e.g. ("--backbone",)), and `positional` (a word without a flag).
    """
    return dataclasses.field(default=default, metadata={"help": help, **options})


def path(text: str) -> Path:
    """A path: on the command line it resolves against the caller's folder, in YAML against the repository."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def given_path(text: str) -> Path:
    """`path` of a setting: "" (a shell variable that is not set) would be the caller's folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty path: name a file or folder, or leave the setting out")
    return path(text)


def numbers(text: str) -> tuple[float, ...]:
    """A comma-separated list of numbers, e.g. `0,0.1,0.3`."""
    try:
        values = tuple(float(part) for part in str(text).split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None
    if not values:
        raise argparse.ArgumentTypeError("an empty list of numbers")
    return values


def words(text: str) -> tuple[str, ...]:
    """A comma-separated list of words, e.g. `train,val`."""
    return tuple(part.strip() for part in str(text).split(",") if part.strip())


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


CONVERTERS = {Path: given_path, tuple[float, ...]: numbers, tuple[str, ...]: words}


# ---- from a dataclass to a parser, and back ----


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default  # 0 is shown, and equals False: hence `is`
        if default is None or default is False or default == () or "(default" in (action.help or ""):
            return action.help
        if isinstance(default, tuple):  # as it is typed
            shown = ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in default)
            return f"{action.help} (default: {shown})"
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one sentence."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {Path(sys.argv[0]).name} --help)")


def parser_of(settings: type, description: str = "") -> argparse.ArgumentParser:
    """The parser of a settings dataclass."""
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=_Help)
    hints = typing.get_type_hints(settings)
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for base in reversed(settings.__mro__):  # the most general settings first
        own = [name for name in base.__dict__.get("__annotations__", ()) if name in fields]
        group = parser.add_argument_group((base.__doc__ or base.__name__).splitlines()[0].rstrip(".")) if own else None
        for name in own:
            _add_flag(group, fields.pop(name), hints[name])
    return parser


def _add_flag(group: Any, field: dataclasses.Field, hint: Any) -> None:
    options = dict(field.metadata)
    options["help"] = options["help"].replace("%", "%%")
    positional, names = options.pop("positional", False), (f"--{field.name}", *options.pop("also", ()))
    if type(None) in typing.get_args(hint):  # X | None, which may be a types.UnionType or a typing.Optional
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        options.setdefault("choices", typing.get_args(hint))
        hint = str
    if typing.get_origin(hint) is list:  # --flag A B C
        options, hint = {"nargs": "+", **options}, typing.get_args(hint)[0]
    if hint is bool:
        options["action"] = "store_true"
    else:
        options.setdefault("type", CONVERTERS.get(hint, hint))
    if positional:
        group.add_argument(field.name, **options)
        return
    if field.default is dataclasses.MISSING:
        options["required"] = True
    else:
        options["default"] = field.default
    group.add_argument(*names, dest=field.name, **options)


def parse(settings: type, argv: Sequence[str] | None = None, description: str = "") -> Any:
    """An instance of the dataclass: defaults <- the YAML named by `--config_yaml`, if any <- the command line (default:
    this process's), where `--flag-name` is `--flag_name`.

    Raises `UserError` for an unknown flag or key (naming the nearest), a bad value or a missing file.
    """
    parser = parser_of(settings, description)
    argv = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    if "config_yaml" in _actions(parser):
        first = _Parser(add_help=False, allow_abbrev=False)
        first.add_argument("--config_yaml")
        _take_config(parser, first.parse_known_args(argv)[0].config_yaml)
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]}{nearest(unknown[0], known)}")
    return settings(**vars(values))


def from_mapping(settings: type, given: Mapping[str, Any], where: str = "the settings") -> Any:
    """An instance from keys and values, read as a YAML file's: defaults <- the YAML that the key config_yaml names, if
    any <- the others. None leaves a setting at its default."""
    parser = parser_of(settings)
    if "config_yaml" in _actions(parser):
        _take_config(parser, given.get("config_yaml"))
    _set_defaults(parser, given, where)
    return settings(**vars(parser.parse_args([])))


def _take_config(parser: argparse.ArgumentParser, name: str | None) -> None:
    """Let the values of this YAML, if any, be the defaults."""
    if name is None:
        return
    file = find_config(name, "model_configs")
    given = read_yaml(file)
    if given.get("config_yaml") is not None:
        raise UserError(f"{file} names another configuration, {given['config_yaml']!r}: write all into one file")
    _set_defaults(parser, given, str(file))


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def _set_defaults(parser: argparse.ArgumentParser, given: Mapping[str, Any], where: str) -> None:
    """Let these values be the defaults. Raises `UserError` for an unknown key or a bad value."""
    actions = _actions(parser)
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise UserError(f"{where} has the unknown key {key!r}{nearest(key, actions)}")
        if value is not None:  # `key:` without a value leaves the default, as write_settings' null does
            action = actions[name]
            action.default, action.required = _converted(action, value, where), False
            if not action.option_strings:
                action.nargs = "?"  # a positional that is given already


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    """A value of a YAML file as the flag would give it."""
    if isinstance(action.const, bool):
        if not isinstance(value, bool):
            raise UserError(f"{where}: {action.dest} = {value!r} is a switch: write true or false")
        return value
    if action.nargs == "+" and isinstance(value, list | tuple):
        return [one for entry in value for one in _converted(action, entry, where)]
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    try:
        if isinstance(value, dict):
            raise ValueError
        converted = action.type(text) if action.type else text
        if action.type is given_path:
            converted = (ROOT / Path(text).expanduser()).resolve()
    except (ValueError, argparse.ArgumentTypeError):
        raise UserError(f"{where}: {action.dest} = {value!r} is not a valid value") from None
    if action.choices is not None and converted not in action.choices:
        raise UserError(f"{where}: {action.dest} = {value!r} is not one of {', '.join(map(str, action.choices))}")
    return [converted] if action.nargs == "+" else converted


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


# ---- YAML files ----


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping with `${NAME}` replaced by environment variables; an unset one is a `UserError`."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text: save it as UTF-8") from None

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{file} uses ${{{match[1]}}}, which is not set: export {match[1]}=… "
                            "(the README says what it holds), or write the path into the file")
        return os.environ[match[1]]

    # Comments may name a variable without needing it.
    lines = [re.sub(r"\$\{(\w+)\}", variable, line) if not line.lstrip().startswith("#") else line
             for line in text.split("\n")]
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


def write_settings(settings: Any, file: Path) -> None:
    """Write the merged settings of a run beside its results, as YAML that `--config_yaml` takes again."""
    plain = {key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
             for key, value in sorted(vars(settings).items()) if key not in ("config_yaml", "dry_run")}
    write_text(file, yaml.safe_dump(plain, sort_keys=True, allow_unicode=True))


# ---- running ----


def run_script(main: Callable[..., Any], settings: type | None = None) -> None:
    """Run a script with the settings of its command line; what the user can mend becomes one sentence.

    Exit status 2 for a `UserError` or a package that is not installed, 1 for a full or read-only disk or a file where
    a folder should be, 130 for Ctrl-C, 143 for SIGTERM. Anything else is a bug of ours and keeps its traceback.
    """
    parent = os.getpid()

    def terminated(*_: Any) -> None:
        if os.getpid() != parent:  # a worker process: its parent says what to do
            os._exit(143)
        raise _Terminated

    signal.signal(signal.SIGTERM, terminated)
    try:
        if settings is None:
            main()
        else:
            main(parse(settings, description=(sys.modules[main.__module__].__doc__ or "").partition("\n")[0]))
    except UserError as error:
        sys.exit(_say(f"error: {error}", 2))
    except ModuleNotFoundError as error:
        if (ROOT / str(error.name).split(".")[0]).exists():
            raise  # ours
        sys.exit(_say(f"error: this Python ({sys.executable}) lacks the module {error.name}: install requirements.txt, "
                      "or take the one that `make demo` or `make test` sets up in .venv", 2))
    except KeyboardInterrupt as error:
        sys.exit(_say("stopped; start the same command again and it goes on where it was",
                      143 if isinstance(error, _Terminated) else 130))
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        place = f" at {error.filename}" if error.filename else ""
        sys.exit(_say(f"error: cannot write{place}: {error.strerror}; free some space or choose another "
                      "output folder, then start the same command again", 1))


class _Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler's time is up, or someone stopped the process."""


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


# ---- dry runs: what a script would do; nothing is made ----


def print_plan(what: str, lines: Mapping[str, str]) -> None:
    """Print what a script would do."""
    print(f"dry run: {what}")
    for name, text in lines.items():
        print(f"  {name + ':':9} {text}")


def disk(needed: float, folder: Path) -> str:
    """What would be written and what is free where it would go."""
    place = next(parent for parent in (Path(folder), *Path(folder).resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    return f"{size(needed)} in {folder} ({size(free)} free{', which is NOT ENOUGH' if needed > free else ''})"


def size(count: float) -> str:
    """Bytes for people: 1536 -> 1.5 kB; units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
