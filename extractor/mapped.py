"""A file of floats as a matrix that can be read from end to end without staying in memory."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

EVERY_S = 0.02  # at 2 GB/s some 40 MB are read in between


@contextmanager
def mapped(file: Path, rows: int, width: int, dtype: type = np.float32) -> Iterator[np.ndarray]:
    """The file as an array (rows, width), to be read only, while the block runs.

    Pages that were read are given back while others are: whoever reads the array once, as torch.save does, needs no
    memory for it, though the system would call every page of the file this process's until it needs it elsewhere.
    """
    with open(file, "rb") as handle:
        # ACCESS_COPY, because torch wants arrays that could be written to.
        pages = mmap.mmap(handle.fileno(), rows * width * np.dtype(dtype).itemsize, access=mmap.ACCESS_COPY)
    done = threading.Event()
    thread = threading.Thread(target=_give_back, args=(pages, done), daemon=True)
    thread.start()
    try:
        yield np.frombuffer(pages, dtype).reshape(rows, width)
    finally:
        done.set()
        thread.join()  # the map itself goes with its last array


def _give_back(pages: mmap.mmap, done: threading.Event) -> None:
    while hasattr(pages, "madvise") and hasattr(mmap, "MADV_DONTNEED") and not done.wait(EVERY_S):
        pages.madvise(mmap.MADV_DONTNEED)
