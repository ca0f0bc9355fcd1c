"""Tasks in processes: results, progress, threads, errors, and no process left behind."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from iis import processes
from iis.processes import in_processes, jobs_that_fit, threads_wanted
from iis.runtime import ROOT, UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


class Bar:
    """Counts what a progress bar would show."""

    n = 0

    def update(self, steps: int) -> None:
        self.n += steps


def task(number: int):
    def run(advance):
        advance(number)
        made = torch.ones(10**6)[torch.arange(10**6)].sum() * number  # large enough for two threads
        return number, os.getpid(), torch.get_num_threads(), torch.full((2,), float(made) / 10**6)
    return run


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_task_runs_once_on_one_thread(jobs, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    usual, bar = torch.get_num_threads(), Bar()
    torch.set_num_threads(2)
    torch.randn(300, 300) @ torch.randn(300, 300)  # OpenMP has a second thread now, which no fork takes along
    found = dict(in_processes([task(number) for number in range(7)], jobs, bar))
    assert [found[index][0] for index in range(7)] == list(range(7))
    assert {threads for _, _, threads, _ in found.values()} == {1}
    assert all(torch.equal(tensor, torch.full((2,), float(index))) for index, (*_, tensor) in found.items())
    assert bar.n == sum(range(7))
    assert ({pid for _, pid, _, _ in found.values()} == {os.getpid()}) == (jobs == 1)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(usual)


def test_processes_do_not_take_over_the_threads_of_their_parent(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(400, 400).exp()  # OpenMP's threads start: a second thread would wait for them for ever, when forked
        found = [threads for _, (_, _, threads, _) in in_processes([task(1), task(2)], 2)]
    finally:
        torch.set_num_threads(before)
    assert found == [1, 1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_comes_back_as_it_is(jobs):
    def fails(advance):
        raise UserError("--ratios 7 is outside [0, 1)")

    with pytest.raises(UserError, match="^--ratios 7"):
        list(in_processes([task(1), fails, task(2)], jobs))


def test_a_killed_process_is_a_sentence():
    with pytest.raises(UserError, match="memory"):
        list(in_processes([lambda advance: os.kill(os.getpid(), signal.SIGKILL)] * 2, 2))


def test_processes_that_cannot_be_started_are_a_sentence(monkeypatch):
    """The second fork fails, as under a limit on processes; the first is not left behind."""
    forks, fork = [], os.fork

    def limited():
        forks.append(1)
        if len(forks) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    with pytest.raises(UserError, match="^3 processes cannot be started"):
        list(in_processes([task(number) for number in range(3)], 3))
    assert not multiprocessing.active_children()


def test_threads_and_jobs(monkeypatch):
    monkeypatch.setattr(processes, "available_cores", lambda: 8)
    monkeypatch.setattr(processes, "available_bytes", lambda: 1000)
    for text, expected in (("", 1), ("4", 4), ("2,1", 2), ("many", 1), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert threads_wanted() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert jobs_that_fit(100) == 1 and jobs_that_fit(100, asked=4) == 4  # one process of two threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert jobs_that_fit(100) == 8
    assert jobs_that_fit(3) == 3
    assert jobs_that_fit(100, bytes_each=200) == 2  # of half of 1000 bytes
    assert jobs_that_fit(100, bytes_each=10_000) == 1
    assert jobs_that_fit(100, asked=7) == 7 and jobs_that_fit(100, asked=10**9) == 4 * 8
    assert jobs_that_fit(0) == 1


def test_processes_in_a_process_run_in_it():
    (_, inner), = in_processes([lambda advance: jobs_that_fit(10, asked=4)] * 1, 1)
    assert inner == 4
    found = [inner for _, inner in in_processes([lambda advance: jobs_that_fit(10, asked=4)] * 2, 2)]
    assert found == [1, 1]


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")  # "pid (name) state …"; Z: ended, and nobody has asked how
    try:
        return stat.read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_parent(by, tmp_path):
    script = tmp_path / "sleeps.py"
    script.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from iis.cli import run_script
from iis.processes import in_processes

def sleeps(advance):
    open({str(tmp_path)!r} + f"/{{os.getpid()}}.pid", "w").close()
    time.sleep(60)

def main():
    list(in_processes([sleeps] * 2, 2))

run_script(main)
""")
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    while len(children := [int(file.stem) for file in tmp_path.glob("*.pid")]) < 2:
        time.sleep(0.05)
    parent.send_signal(by)
    error = parent.communicate(timeout=20)[1]
    assert parent.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[by]
    assert "Traceback" not in error
    for _ in range(100):
        if not any(is_running(child) for child in children):
            return
        time.sleep(0.05)
    raise AssertionError(f"{children} are still there")
