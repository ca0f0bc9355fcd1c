"""A function over 0 … count - 1 in several processes, in order, that leaves nobody behind when it is stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from iis.runtime import UserError

_function: Callable[[int], Any] | None = None  # in a worker: what it applies


def map_in_processes(function: Callable[[int], Any], count: int, workers: int) -> Iterator[Any]:
    """function(0), …, function(count - 1), in order. `function` is pickled once per worker, not once per call.

    Raises what `function` raises, and `UserError` when the system ends a worker (out of memory).
    """
    # Workers are forked from a clean server process: forking this one would copy its threads' locks, and a fresh
    # interpreter for each would import scikit-image once per worker (half a second each).
    clean = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if clean else "spawn")
    if clean:
        context.set_forkserver_preload(["skimage.segmentation.slic_superpixels", "PIL.Image", "tqdm"])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(function,))
    try:
        # Chunks keep the queue's cost (0.2 ms a call) below that of a 32 x 32 image.
        yield from pool.map(_call, range(count), chunksize=min(16, max(1, count // (8 * workers))))
    except BrokenProcessPool:
        raise UserError("the system ended a worker process, most likely for want of memory; start the same command "
                        "again with fewer --workers, it goes on where it stopped") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[int], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _call(index: int) -> Any:
    return _function(index)
