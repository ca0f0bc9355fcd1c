"""What every benchmark shares: both sides in one process, taking turns; the median of their ratios; JSON that says how.

Times of a machine are worth little; ratios of pairs travel, because what slows the machine slows both sides.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iis.cli import ScriptParser, count, path, positive
from iis.runtime import ROOT, choose_device, write_json

Job = Callable[[], Any] | Sequence[tuple[Callable[[], Any], float]]  # or parts: (function, how often the job has it)
RESULTS = ROOT / "bench" / "results"


def bench_parser(description: str, name: str, pairs: int = 5, threads: int = 0) -> ScriptParser:
    """The flags all benchmarks have. name: of the JSON in bench/results/."""
    script = ScriptParser(description=description)
    script.add_argument("--pairs", type=positive, default=pairs, help="timed pairs, after one warm-up of each side")
    script.add_argument("--threads", type=count, default=threads, help="of PyTorch (0: as it chooses)")
    script.add_argument("--device", default="cpu", help="where both sides run")
    script.add_argument("--out", type=path, default=RESULTS / f"{name}.json", help="the result as JSON")
    return script


def start(args: argparse.Namespace) -> Any:
    """Set the threads; the torch device of --device."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    return choose_device(args.device)


def paired(plain: Job, fast: Job, pairs: int, device: Any = None) -> dict[str, float]:
    """{"ratio", "lowest", "highest", "plain_s", "fast_s"}: plain / fast over `pairs` pairs, after a warm-up of each
    (of the fast side alone where the plain one comes in parts: that is for jobs of many seconds)."""
    if callable(plain):
        plain()
    job_seconds(fast, device)
    timed = [(job_seconds(plain, device), job_seconds(fast, device)) for _ in range(pairs)]
    ratios = [first / second for first, second in timed]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
            "plain_s": statistics.median(first for first, _ in timed),
            "fast_s": statistics.median(second for _, second in timed)}


def job_seconds(job: Job, device: Any = None) -> float:
    """Seconds of a job: every part runs once and counts `times`."""
    return sum(times * seconds(part, device) for part, times in ([(job, 1)] if callable(job) else job))


def median_seconds(function: Callable, count: int, device: Any = None) -> float:
    """Median seconds of `count` calls, after a warm-up."""
    function()
    return statistics.median(seconds(function, device) for _ in range(count))


def seconds(function: Callable, device: Any = None) -> float:
    """Seconds of one call, the device's work included."""
    _wait(device)
    began = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - began


def report(args: argparse.Namespace, command: str, results: dict[str, dict[str, Any]],
           targets: dict[str, tuple[float, float]] | None = None, note: str = "") -> Path:
    """Print and write what was measured. targets: {result: (must, aim)}, the ratios or the seconds asked for."""
    for name, (must, aim) in (targets or {}).items():
        if name in results:
            results[name].update(must=must, aim=aim)
    for name, result in results.items():
        print(f"{name}: " + sentence(result))
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    write_json(args.out, {"command": command, "settings": settings, "note": note, "machine": machine(args.device),
                          "results": results})
    return args.out


def sentence(result: dict[str, Any]) -> str:
    """One result in words."""
    wanted = f", must {result['must']:g}, aim {result['aim']:g}" if "must" in result else ""
    if "ratio" in result:
        return (f"{result['ratio']:.2f} x (plain {readable(result['plain_s'])}, fast {readable(result['fast_s'])}"
                f"{wanted})")
    return f"{readable(result['seconds'])}{wanted and f' ({wanted[2:]})'}"


def machine(device: str) -> dict[str, Any]:
    """What a figure depends on beside the code: the device and the versions."""
    import numpy
    import torch

    found = {"device": device, "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
             "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    if str(device).startswith("cuda"):
        found.update(gpu=torch.cuda.get_device_name(device), cuda=torch.version.cuda)
    return found


def peak_memory(device: Any) -> dict[str, float]:
    """{"peak_gib"} of what torch took on the GPU; nothing for a CPU."""
    import torch

    return {"peak_gib": torch.cuda.max_memory_allocated(device) / 2 ** 30} if str(device).startswith("cuda") else {}


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def readable(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.2f} ms"


def _wait(device: Any) -> None:
    if device is not None and str(device).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
