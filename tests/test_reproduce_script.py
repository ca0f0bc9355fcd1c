"""reproduction/reproduce.sh with a Python that only records what it was asked to run."""

import os
import shutil
import signal
import subprocess
import time

from conftest import ROOT

FAKE = """#!/usr/bin/env bash
echo "$1" >> ran
case $1 in
    */finetuning.py) echo "finetuning_cifar10: 2 of 2 cells finished"; echo $$ > lane; exec sleep 30 ;;
    */arr_curves.py) trap 'exit 130' INT; while :; do sleep 0.05; done ;;
    */explain.py) exit 1 ;;
esac
"""


def start(folder, fake):
    """The script in a copy of its own, in a session of its own."""
    (folder / "reproduction").mkdir()
    shutil.copy(ROOT / "reproduction" / "reproduce.sh", folder / "reproduction")
    (folder / "python").write_text(fake)
    (folder / "python").chmod(0o755)
    return subprocess.Popen(["bash", "reproduction/reproduce.sh"], cwd=folder, start_new_session=True, text=True,
                            env={**os.environ, "PYTHON": str(folder / "python")}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT,
                            # A shell that starts the tests in the background has Ctrl-C ignored, which is inherited.
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "Z" not in subprocess.run(["ps", "-o", "stat=", "-p", str(process_id)], text=True,
                                     capture_output=True).stdout


def test_ctrl_c_stops_all_of_it(tmp_path):
    script = start(tmp_path, FAKE)
    for _ in range(200):
        if (tmp_path / "lane").exists() and "arr_curves" in (tmp_path / "ran").read_text():
            break
        time.sleep(0.05)
    lane = int((tmp_path / "lane").read_text())
    assert alive(lane)
    os.killpg(script.pid, signal.SIGINT)  # as the terminal does
    script.communicate(timeout=20)
    assert script.returncode == 130
    assert (tmp_path / "ran").read_text().split()[-1] != "reproduction/report.py"
    for _ in range(100):
        if not alive(lane):
            break
        time.sleep(0.05)
    assert not alive(lane)  # fine-tuning beside the tables


def test_a_table_that_fails_does_not_stop_the_others(tmp_path):
    script = start(tmp_path, FAKE.replace("exec sleep 30", "exit 0").replace("while :; do sleep 0.05; done", "exit 0"))
    text = script.communicate(timeout=20)[0]
    assert script.returncode == 1 and "error: not made: explain --run" in text
    assert (tmp_path / "ran").read_text().split()[-1] == "reproduction/report.py"
    assert "\nfinetuning_cifar10: 2 of 2 cells finished\n" in text


def test_caltech101_unpacks_checks_trains_and_tabulates_in_this_order(tmp_path):
    """Every script and sweep that it names is there; without IIS_DATA it says so."""
    (tmp_path / "reproduction").mkdir()
    shutil.copy(ROOT / "reproduction" / "caltech101.sh", tmp_path / "reproduction")
    (tmp_path / "python").write_text('#!/usr/bin/env bash\necho "$@" >> ran\n[ "$1" != -m ] || mkdir -p "$5/test"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "IIS_DATA": "/data"}
    run = ["bash", "reproduction/caltech101.sh"]
    subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True)
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert ran[0][:4] == ["-m", "zipfile", "-e", "/data/caltech101.zip"]
    assert [words[0] for words in ran[1:7]] == ["extractor/check_backbone.py"] * 6
    for script, *words in ran[1:]:
        assert (ROOT / script).is_file(), script
        named = words[:1] if script.endswith(("/sweep.py", "/finetuning.py")) else [
            words[place + 1] for place, word in enumerate(words) if word == "--sweep"]
        assert all((ROOT / "reproduction" / "sweeps" / f"{name}.yaml").is_file() for name in named), words
    for sweep in ("caltech101", "caltech101_converged"):  # which_bank shows what accuracy_at_nec has kept
        order = [f"reproduction/{name}.py" for name in ("sweep", "accuracy_at_nec", "which_bank")]
        assert [script for script, *words in ran if script in order and sweep in words] == order
    assert ["reproduction/sweep.py", "caltech101_depth"] in ran[:ran.index(
        ["reproduction/along_depth.py", "--sweep", "caltech101_depth"])]
    subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True)
    again = (tmp_path / "ran").read_text().splitlines()[len(ran):]
    assert not any(line.startswith("-m") for line in again)  # unpacked already
    del environment["IIS_DATA"]
    failed = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert failed.returncode and "IIS_DATA" in failed.stderr
