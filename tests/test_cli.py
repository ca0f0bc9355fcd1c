"""Settings from a dataclass, YAML and the command line; exit statuses; files, folders, seeds and progress."""

import argparse
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from iis import cli, runtime
from iis.runtime import ROOT, UserError, claim_folder, make_output_folder, write_json, write_text, write_whole


@dataclass(kw_only=True)
class Place:
    """Where things are."""

    config_yaml: str | None = cli.setting(None, "YAML with any of these settings")
    data_path: Path = cli.setting(help="folder of images", also=("--data-path", "--root"))
    save_dir: Path | None = cli.setting(None, "output folder")


@dataclass(kw_only=True)
class Settings(Place):
    """How to train (100 % of it)"""

    kind: Literal["soft", "hard"] = cli.setting("soft", "which kind")
    choice: Literal["a", "b"] | None = cli.setting(None, "a or b")
    limit: float | None = cli.setting(None, "at most this")
    epochs: int = cli.setting(30, "passes, 100 % of the data", type=cli.positive)
    ratios: tuple[float, ...] = cli.setting((0.0, 0.5), "ratios")
    parts: tuple[str, ...] = cli.setting(("x",), "parts")
    folders: list[str] = cli.setting(("one",), "several words")
    dry_run: bool = cli.setting(False, "only print")

    def __post_init__(self) -> None:
        if self.limit == 13:
            raise UserError("--limit 13 brings bad luck")


def settings_of(*flags, **changes):
    return cli.parse(Settings, ["--data_path", "data", *map(str, flags)], **changes)


def test_defaults_and_every_type_of_flag():
    plain = settings_of()
    assert plain == Settings(data_path=Path.cwd() / "data", folders=("one",))
    given = settings_of("--kind", "hard", "--choice", "b", "--limit", "1e-3", "--epochs", "5", "--ratios", "0,0.25,",
                        "--parts", "x, y", "--folders", "one", "two", "--dry_run", "--save_dir", "~/out")
    assert given == Settings(data_path=Path.cwd() / "data", kind="hard", choice="b", limit=0.001, epochs=5,
                             ratios=(0.0, 0.25), parts=("x", "y"), folders=["one", "two"], dry_run=True,
                             save_dir=Path.home() / "out")


def test_both_spellings_and_other_names_of_a_flag():
    assert settings_of("--save-dir", "a").save_dir == settings_of("--save_dir=a").save_dir == Path.cwd() / "a"
    assert settings_of("--dry-run").dry_run and cli.parse(Settings, ["--root=x"]).data_path == Path.cwd() / "x"
    assert settings_of("--save-dir=a-b").save_dir.name == "a-b"  # only the flag's own name


@pytest.mark.parametrize("given, words", [
    (["--kind", "sfot"], "invalid choice: 'sfot'"), (["--choice", "c"], "invalid choice: 'c'"),
    (["--epochs", "0"], "0 is not a whole number above 0"), (["--ratios", "0,a"], "'0,a' is not a comma-separated"),
    (["--ratios", ","], "an empty list"), (["--limit", "low"], "invalid float value: 'low'"),
    (["--epoch", "3"], "unknown argument --epoch; did you mean --epochs"), (["--limit", "13"], "bad luck"),
    (["stray"], "unknown argument stray"),
    ("epoch: 3", "unknown key 'epoch'; did you mean epochs"), ("kind: sfot", "kind = 'sfot' is not one of soft, hard"),
    ("epochs: many", "epochs = 'many' is not a valid value"), ("ratios: [0, a]", "ratios = [0, 'a'] is not a valid"),
    ("dry_run: perhaps", "dry_run = 'perhaps' is a switch"), ("- a", "should hold `key: value` lines"),
    ("a: [", "is not valid YAML"), ("data_path: ${IIS_NOWHERE}", "uses ${IIS_NOWHERE}, which is not set")])
def test_a_bad_flag_or_yaml_is_one_sentence_that_names_the_file(tmp_path, given, words):
    yaml_line = isinstance(given, str)
    if yaml_line:
        (tmp_path / "run.yaml").write_text(given + "\n")
    with pytest.raises(UserError) as error:
        settings_of(*(["--config_yaml", tmp_path / "run.yaml"] if yaml_line else given))
    assert words in str(error.value) and ("run.yaml" in str(error.value)) == yaml_line and "\n" not in str(error.value)


def test_yaml_is_under_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data-path: images\nepochs: 3\nratios: [0, 0.9]\nparts: x,y\nfolders: [a, b]\ndry_run: true\n"
                    "kind: hard\nlimit:\nsave_dir: null\nchoice: b\n")
    given = cli.parse(Settings, ["--config_yaml", str(file), "--epochs", "4"])
    assert given == Settings(config_yaml=str(file), data_path=ROOT / "images", epochs=4, ratios=(0.0, 0.9), kind="hard",
                             parts=("x", "y"), folders=["a", "b"], dry_run=True, choice="b")
    mapped = cli.from_mapping(Settings, {**yaml.safe_load(file.read_text()), "epochs": "4", "config_yaml": str(file)})
    assert mapped == given
    for given, said in (({"epoch": 3}, "the sweep has the unknown key 'epoch'"), ({}, "required: --data_path"),
                        ({"epochs": 0}, "the sweep: epochs = 0 is not a valid value")):
        with pytest.raises(UserError, match=said):
            cli.from_mapping(Settings, given, "the sweep")
    file.write_text("epochs:\nratios:\n")  # no value: the default
    assert settings_of("--config_yaml", file).epochs == 30 and settings_of("--config_yaml", file).ratios == (0.0, 0.5)


def test_written_settings_are_a_yaml_that_gives_them_again(tmp_path):
    given = settings_of("--ratios", "0.1,0.2", "--save_dir", "out", "--dry_run", "--folders", "a", "b")
    cli.write_settings(given, tmp_path / "settings.yaml")
    again = cli.parse(Settings, ["--config_yaml", str(tmp_path / "settings.yaml"), "--dry_run"])
    again.config_yaml = None
    assert again == given


def test_help_has_a_group_per_class_and_shows_defaults(capsys):
    text = cli.parser_of(Settings, "What it does.").format_help()
    first, second = text.index("Where things are:"), text.index("How to train (100 % of it):")
    assert text.index("What it does.") < first < text.index("\n  --data_path") < second < text.index("\n  --kind {soft")
    assert all(words in text for words in ("(default: 30)", "(default: 0,0.5)", "passes, 100 % of the data", "{a,b}"))
    assert "(default: None)" not in text and "(default: False)" not in text
    with pytest.raises(SystemExit) as stopped:
        cli.parse(Settings, ["--help"])
    assert stopped.value.code == 0 and "--save_dir" in capsys.readouterr().out


def test_words_and_numbers():
    assert cli.numbers("0,0.1, 0.3,") == (0.0, 0.1, 0.3) and cli.words("train, val,") == ("train", "val")
    assert (cli.count("0"), cli.count("12"), cli.positive("1"), cli.part("1"), cli.part("0.2")) == (0, 12, 1, 1.0, 0.2)
    for function, bad in ((cli.positive, ("0", "-1", "1.5", "abc", "")), (cli.count, ("-1", "1.5", "x")),
                          (cli.part, ("0", "1.01", "-1", "nan", "inf", "half", ""))):
        for text in bad:
            with pytest.raises(argparse.ArgumentTypeError, match="is not a (whole )?number"):
                function(text)
    assert cli.path("~/x") == Path.home() / "x" and cli.path("a/../b") == Path.cwd() / "b"


@pytest.mark.parametrize("error, status, said", [
    (UserError("do this"), 2, "error: do this"), (KeyboardInterrupt(), 130, "stopped; start the same command again"),
    (signal.SIGTERM, 143, "stopped; start the same command again and it goes on where it was"),
    (OSError(28, "No space left", "/disk/file"), 1, "error: cannot write at /disk/file: No space left; free some"),
    (ModuleNotFoundError(name="no_such_package.part"), 2, "lacks the module no_such_package.part: install"),
    (FileNotFoundError(2, "gone", "/no/such/file"), None, ""), (ValueError("a bug of ours"), None, ""),
    (ModuleNotFoundError(name="iis.no_such_module"), None, "")])
def test_what_the_user_can_mend_is_one_sentence_and_a_status_and_bugs_keep_their_traceback(capsys, error, status, said):
    def main():
        if isinstance(error, signal.Signals):
            os.kill(os.getpid(), error)
        raise error

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit if status else type(error)) as stopped:
            cli.run_script(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == bool(status) and not out
    assert status is None or stopped.value.code == status


def test_variables_names_of_configurations_sizes_and_disks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IIS_SOMEWHERE", "/somewhere")
    (tmp_path / "a.yaml").write_text("# ${IIS_NOWHERE} in a comment needs no value\nroot: ${IIS_SOMEWHERE}/x\n")
    assert cli.read_yaml(tmp_path / "a.yaml") == {"root": "/somewhere/x"}
    assert cli.find_config(tmp_path / "a.yaml", "model_configs") == tmp_path / "a.yaml"
    assert cli.find_config("resnet50", "model_configs").name == "resnet50_IMAGENET1K_V1.yaml"
    with pytest.raises(UserError, match="no configuration resnet5x .*did you mean .*resnet"):
        cli.find_config("resnet5x", "model_configs")
    assert [cli.size(1), cli.size(1536), cli.size(2.5e9), cli.size(2e15)] == ["1 B", "1.5 kB", "2.5 GB", "2000.0 TB"]
    assert "NOT ENOUGH" in cli.disk(1e18, tmp_path / "not" / "there") and "NOT" not in cli.disk(1, tmp_path)
    cli.print_plan("stage 9", {"shapes": "a", "disk": "b"})
    assert capsys.readouterr().out == "dry run: stage 9\n  shapes:   a\n  disk:     b\n"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "a.txt"
    write_text(file, "old")

    def fails(temporary):
        temporary.write_text("half")
        raise ValueError

    with pytest.raises(ValueError):
        write_whole(file, fails)
    assert file.read_text() == "old" and [one.name for one in file.parent.iterdir()] == ["a.txt"]
    with pytest.raises((FileExistsError, NotADirectoryError)):
        write_text(file / "below a file", "x")
    write_json(file, {"ü": Path("x")})
    assert runtime.read_json(file) == {"ü": "x"}
    file.write_text("{")
    with pytest.raises(UserError, match="a.txt is not readable JSON"):
        runtime.read_json(file)


def test_a_folder_is_claimed_by_one_setting(tmp_path):
    claim_folder(tmp_path / "a", {"M": 20, "path": Path("x")})
    claim_folder(tmp_path / "a", {"M": 20, "path": Path("x")})
    with pytest.raises(UserError, match="holds results made with M = 20, and this run has M = 10; choose another"):
        claim_folder(tmp_path / "a", {"M": 10, "path": Path("x")})
    with pytest.raises(UserError, match="extra = None, and this run has extra = 1"):
        claim_folder(tmp_path / "a", {"M": 20, "path": Path("x"), "extra": 1})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        make_output_folder(tmp_path / "file" / "out")


def test_progress_in_a_file_is_lines_30_seconds_apart(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    bar = runtime.progress(range(100), desc="reading", unit="file")
    for _ in bar:
        clock[0] += 1.0
        bar.set_postfix_str("a note that is long " * 6, refresh=False)
    err = capsys.readouterr().err
    lines = err.rstrip("\n").split("\n")
    assert "\r" not in err and 4 <= len(lines) <= 6  # at 0, about 30, 60, 90, and the end
    assert all(line.startswith("reading: ") for line in lines) and "100/100" in lines[-1]
    assert all(line.count("a note") == 6 for line in lines[1:-1])  # nothing is cut off


def test_a_mapping_may_name_a_configuration(tmp_path):
    """As a sweep does: the YAML's values, then the mapping's own."""
    from extractor import visual_element_emb_extractor as script

    found = cli.from_mapping(script.Settings, {"config_yaml": "shapes_small", "batch_size": 7, "dataset": "shapes"})
    assert (found.model, found.batch_size, found.feature_layer) == ("demo/small_backbones.py:shapes_small", 7, "fc")
    (tmp_path / "second.yaml").write_text("config_yaml: shapes_small\n")
    with pytest.raises(UserError, match="shapes_small"):
        cli.from_mapping(script.Settings, {"config_yaml": str(tmp_path / "second.yaml")})


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_no_folder(value):
    from IP_training import IP_Prototype_training as script

    with pytest.raises(UserError, match="empty path"):
        cli.parse(script.Settings, ["--save_dir", value])
    with pytest.raises(UserError, match="save_dir"):
        cli.from_mapping(script.Settings, {"save_dir": value})
