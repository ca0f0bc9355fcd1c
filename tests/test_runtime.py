import pytest

from iis.cli import run_script
from iis.runtime import write_text


def test_a_file_where_a_folder_should_be_is_one_sentence_and_status_1(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: write_text(tmp_path / "taken" / "out.txt", "text"))
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write at {tmp_path / 'taken'}")


def test_a_missing_input_that_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        run_script(lambda: open("/no/such/file"))


def test_a_package_that_is_not_installed_is_one_sentence_and_ours_a_traceback(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: __import__("no_such_package"))
    assert stopped.value.code == 2 and "lacks the module no_such_package: install" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        run_script(lambda: __import__("iis.no_such_module"))
