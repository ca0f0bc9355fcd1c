"""What every script needs at run time: clear errors, a device, seeds, and files written whole or not at all."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # imported where it is used: stage 1 and --help do without its two seconds
    import torch

ROOT = Path(__file__).resolve().parents[1]  # the repository: defaults resolve against it


# Errors of the disk that the user can mend; the last three are a file where a folder should be, or the reverse.
CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR,
                errno.EISDIR)


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what to do; exit status 2."""


def nearest(word: str, choices: Iterable[str], count: int = 3) -> str:
    """"; did you mean A, B or C?" for the nearest of `choices`, or the choices themselves when none is near."""
    choices = sorted(map(str, choices))
    near = difflib.get_close_matches(str(word), choices, n=count, cutoff=0.5) or choices[:12]
    if not near:
        return ""
    return "; did you mean " + (" or ".join([", ".join(near[:-1]), near[-1]]) if near[1:] else near[0]) + "?"


def choose_device(name: str | None = None, silent: bool = False) -> torch.device:
    """The device asked for, else cuda when there is one, else the CPU with one line that says so (unless silent)."""
    import torch

    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if not silent:
            print("device: cpu (no CUDA device found; everything runs, only slower)", file=sys.stderr)
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device: use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):  # mps, meta, xpu …
        raise UserError(f"--device {name} is not supported: use cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise UserError(f"--device {name} was asked for, but PyTorch sees {count} CUDA device(s) here; "
                            "leave --device out to run on what there is")
    return device


@contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """Matrix products and convolutions of float32 numbers in full float32; with `tf32`, those on CUDA in TF32 (10 bits
    of mantissa). What was set before, afterwards.

    PyTorch's own default is TF32 for convolutions alone, which moves features by 1e-3 of the largest. All that may
    compute on CUDA runs in here. PyTorch has an older and, since 2.9, a newer interface for this: both are set, because
    its compiler reads the older one and raises where the two disagree, and the newer one has a default of its own.
    """
    import torch

    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    newer = [part for part in (cuda, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None),
                               getattr(torch.backends.mkldnn, "matmul", None)) if hasattr(part, "fp32_precision")]
    before = [part.fp32_precision for part in newer]
    older = _older(torch.get_float32_matmul_precision, "highest"), _older(lambda: cudnn.allow_tf32, True)
    torch.set_float32_matmul_precision("highest")  # on CPUs too, where "medium" means bfloat16
    cuda.allow_tf32 = cudnn.allow_tf32 = tf32
    for part in newer[:3]:
        part.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older[0])
        cudnn.allow_tf32 = older[1]
        for part, value in zip(newer, before, strict=True):
            part.fp32_precision = value


def _older(read: Callable[[], Any], usual: Any) -> Any:
    """A setting of the older interface; PyTorch's own where the user has set only the newer one, and PyTorch raises."""
    try:
        return read()
    except RuntimeError:
        return usual


def available_cores() -> int:
    """Cores this process may use: fewer than the machine's under a job scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes(device: torch.device | None = None) -> int:
    """Free memory in bytes: of the GPU, or of the machine, page cache included; 4 GiB where the system does not say."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().split("\n")
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30


def keep_freed_memory() -> None:
    """Let glibc keep freed arrays for the next step instead of returning them to the system, which hands them out again
    page by page. An epoch of the grid takes up to a fifth less. Does nothing where there is no glibc."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(-1, 2**29)  # M_TRIM_THRESHOLD
    mallopt(-3, 2**28)  # M_MMAP_THRESHOLD


def progress(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar; where stderr is a file, a line every 30 s instead."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(items, **options)
    lines = {"mininterval": 30.0, "maxinterval": 30.0, "file": _Lines(), "ascii": True}
    return tqdm(items, **lines | options)


class _Lines:
    """stderr, with each of tqdm's updates on a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_rng(*parts: object) -> np.random.Generator:
    """A numpy generator that depends on the parts alone, e.g. `numpy_rng(seed, "prototypes")`."""
    return np.random.default_rng(seed_of(*parts))


def torch_rng(*parts: object) -> torch.Generator:
    """A CPU torch generator that depends on the parts alone; drawn on the CPU so that devices agree."""
    import torch

    return torch.Generator().manual_seed(seed_of(*parts))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary)` beside `path`, then move it into place: a reader sees all of it or none.

    Errors pass through, and leave nothing behind at `path` that was not there before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The last suffix stays last: PIL and numpy read the format from it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        # torch and safetensors say of a full disk only that a write failed.
        if not isinstance(error, OSError) and shutil.disk_usage(path.parent).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write JSON, readable by a person, whole or not at all; NaN and infinity, which JSON lacks, as null."""
    write_text(path, json.dumps(without_nan(data), indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def without_nan(data: Any) -> Any:
    """Dictionaries and lists with None for every NaN and infinity; tuples become lists, as in JSON."""
    if isinstance(data, dict):
        return {name: without_nan(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); delete it and run the stage again") from None


def read_lines(path: Path) -> list[str]:
    """Lines of a text in UTF-8 without the blanks around them, empty ones left out; `UserError` for another encoding.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from None


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """The results of all items that worked, and the `UserError` sentences of the others: one unfinished run does
    not hide the rest."""
    results, failed = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            failed.append(str(error))
    return results, failed


def make_output_folder(folder: Path) -> Path:
    """Create `folder` and prove that it can be written to, before hours are spent."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_bytes(b"0")
        probe.unlink()
    except (OSError, FileExistsError) as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to the output folder {folder} ({reason}); choose another one") from None
    return folder


def claim_folder(folder: Path, settings: dict[str, Any], what: str = "results") -> None:
    """Write `manifest.json` into a new folder, or refuse to go on in one made under other settings.

    Two settings never share a folder: the error says which setting differs and how. `settings` must
    survive JSON.
    """
    folder = make_output_folder(folder)
    manifest = folder / "manifest.json"
    settings = json.loads(json.dumps(settings, default=str))
    if not manifest.exists():
        write_json(manifest, settings)
        return
    before = read_json(manifest)
    for key in sorted({*before, *settings}):
        if before.get(key) != settings.get(key):
            raise UserError(f"{folder} holds {what} made with {key} = {before.get(key)!r}, and this run has "
                            f"{key} = {settings.get(key)!r}; choose another output folder, or delete that one")
