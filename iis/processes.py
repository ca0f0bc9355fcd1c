"""Independent tasks in processes of one thread each, as many as there are cores.

Processes, because threads gain little here and lose much. Two processes that train heads do 1.9 times the work of one
where two threads do 1.0 times; and beside another busy process PyTorch's threads spin while they wait for each other:
the same heads then take thirty times as long (bench/busy.py).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from iis.runtime import UserError, available_bytes, available_cores

Result = TypeVar("Result")
Advance = Callable[[int], None]  # a task calls it with the steps it has done since the last call
MOST = 4  # processes per core, whatever was asked for
POLL_S = 0.5  # between two updates of the progress bar
PR_SET_PDEATHSIG = 1  # Linux: the signal a process gets when its parent dies


def threads_wanted() -> int:
    """Threads of a process that works alone: OMP_NUM_THREADS; without it one, or all once a GPU does the small work."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if text.isdecimal():
        return max(1, int(text))
    return available_cores() if cuda_in_use() else 1


def cuda_in_use() -> bool:
    """Whether this process works with a GPU."""
    torch = sys.modules.get("torch")  # not imported for this: stage 1 does without it
    return torch is not None and torch.cuda.is_initialized()


def jobs_that_fit(tasks: int, bytes_each: float = 0, asked: int | None = None, ranks: int = 1) -> int:
    """How many processes to run `tasks` in: `asked`, else one per core as far as half of the free memory holds
    `bytes_each` for each; one where OMP_NUM_THREADS asks for threads. ranks: processes like this one, of torchrun,
    that share the machine. One where processes cannot be forked: outside Linux, in a process that is one of several
    already, and once CUDA is in use."""
    if sys.platform != "linux" or multiprocessing.parent_process() is not None or cuda_in_use():
        return 1
    if asked is None:
        asked = available_cores() // ranks if threads_wanted() == 1 else 1
        if bytes_each:
            asked = min(asked, int(available_bytes() / 2 // (ranks * bytes_each)))
    return max(1, min(asked, tasks, MOST * available_cores()))


def in_processes(tasks: Sequence[Callable[[Advance], Result]], jobs: int, bar: Any = None,
                 threads: int | None = None) -> Iterator[tuple[int, Result]]:
    """(index, result) of every task, as they end. A task is called with the function that advances `bar` (tqdm).

    jobs: processes, at most one per task; 1 runs the tasks here, one after another, in `threads` (default:
    `threads_wanted`). Several are forked: they see what this one has in memory without a copy, and what they change
    stays theirs. Each has one thread: OpenMP's others do not survive a fork, and it would wait for them for ever.
    Raises what a task raises, and `UserError` where the system ends a process. No process outlives this one.
    """
    advance: Advance = bar.update if bar is not None else lambda steps: None
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        forked = multiprocessing.parent_process() is not None  # and so without OpenMP's other threads
        with thread_limit(1 if forked else threads or threads_wanted()):
            for index, task in enumerate(tasks):
                yield index, task(advance)
        return
    context, others = multiprocessing.get_context("fork"), set(multiprocessing.active_children())
    counter, shown, finished = context.Value("q", 0), 0, False
    pool = ProcessPoolExecutor(jobs, context, _begin, (tasks, counter, os.getpid()))
    try:
        try:
            index_of = {pool.submit(_run, index): index for index in range(len(tasks))}
        except OSError as error:  # too many processes or open files; those that began wait for work
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
                child.join()
            raise UserError(f"{jobs} processes cannot be started ({error.strerror}); start the same command again with "
                            "a smaller --jobs or --workers") from None
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        for future in index_of:
            future.add_done_callback(ended.put)
        while index_of:
            try:
                future = ended.get(timeout=POLL_S)
            except queue.Empty:
                future = None
            now = counter.get_obj().value  # without its lock, which a process may have taken along when it ended
            advance(now - shown)
            shown = now
            if future:
                yield index_of.pop(future), pickle.loads(future.result())  # what `_run` wrote, from no file
        finished = True
    except BrokenProcessPool:
        raise UserError("the system ended a process, most likely for want of memory; start the same command again with "
                        "a smaller --jobs or --workers, it goes on where it stopped") from None
    finally:
        for child in () if finished else set(multiprocessing.active_children()) - others:
            child.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """So many threads in PyTorch, BLAS and OpenMP; what was, afterwards."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    with threadpool_limits(threads):
        if torch:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


# ---- in a process ----

_tasks: Sequence[Callable[[Advance], Any]] = ()
_counter: Any = None
_limit: Any = None


def _begin(tasks: Sequence[Callable[[Advance], Any]], counter: Any, parent: int) -> None:
    global _tasks, _counter, _limit
    _tasks, _counter, _limit = tasks, counter, thread_limit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent answers it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    _limit.__enter__()  # kept in a variable, or it would end at once


def _advance(steps: int) -> None:
    with _counter.get_lock():
        _counter.value += steps


def _run(index: int) -> bytes:
    # SIGTERM ends a task, and never a result half sent, for whose rest the parent would wait.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        # Plain pickle: PyTorch's own way to pass tensors keeps a file open for each.
        return pickle.dumps(_tasks[index](_advance), pickle.HIGHEST_PROTOCOL)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
