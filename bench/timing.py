"""What every benchmark shares: two sides in turn, the median of their ratios, JSON with machine, processor and command.

Times belong to a machine. Ratios of pairs carry over, because what slows the machine slows both sides.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iis.cli import count, positive, setting
from iis.runtime import ROOT, choose_device, keep_freed_memory, read_json, write_json
from reproduction.lib.tables import as_markdown

Job = Callable[[], Any] | Sequence[tuple[Callable[[], Any], float]]  # or parts: (function, how often the job has it)
UNITS = {"ratio": "×", "seconds": "s", "gib": "GiB"}  # of a result
RESULTS = ROOT / "bench" / "results"


@dataclass(kw_only=True)
class BenchSettings:
    """Measuring"""

    pairs: int = setting(5, "timed pairs, after one warm-up of each side", type=positive)
    threads: int = setting(0, "of PyTorch (0: as it chooses)", type=count)
    device: str = setting("cpu", "where both sides run")
    out: Path | None = setting(None, "the result as JSON (default: bench/results/, under the script's name)")


def start(settings: BenchSettings) -> Any:
    """Set the threads, and memory as stage 3 has it; the torch device of --device."""
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_freed_memory()
    return choose_device(settings.device)


def paired(plain: Job, fast: Job, pairs: int, device: Any = "cpu") -> dict[str, float]:
    """{"ratio", "lowest", "highest", "plain_s", "fast_s"}: plain / fast over `pairs` pairs, after one as a warm-up."""
    timed = [(job_seconds(plain, device), job_seconds(fast, device)) for _ in range(1 + pairs)][1:]
    plain_s, fast_s = (statistics.median(side) for side in zip(*timed, strict=True))
    return {**spread([first / second for first, second in timed]), "plain_s": plain_s, "fast_s": fast_s}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """{"ratio": their median, "lowest", "highest"}."""
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def job_seconds(job: Job, device: Any = "cpu") -> float:
    """Seconds of a job: every part runs once and counts as often as the job has it."""
    return sum(times * seconds(part, device) for part, times in ([(job, 1)] if callable(job) else job))


def seconds(function: Callable[[], Any], device: Any = "cpu") -> float:
    """Seconds of one call, the device's work included."""
    import torch

    wait = torch.cuda.synchronize if str(device).startswith("cuda") else lambda: None
    wait()
    began = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - began


def report(settings: BenchSettings, name: str, results: dict[str, dict[str, Any]],
           targets: dict[str, tuple[float, float]] | None = None, note: str = "", file: str = "") -> Path:
    """Write what bench/`name`.py measured, as `file`.json if given, and print it as a table. targets: {result: (must,
    aim)}, in the result's unit."""
    for result, (must, aim) in (targets or {}).items():
        results[result].update(must=must, aim=aim)
    out = settings.out or RESULTS / f"{file or name}.json"
    write_json(out, {"command": " ".join([f"python bench/{name}.py", *sys.argv[1:]]), "note": note,
                     "machine": machine(settings.device), "results": results})
    print(markdown([out]))
    return out


def markdown(files: Sequence[Path]) -> str:
    """What was measured as a Markdown table, one line per result; "" for no file."""
    lines = [line_of(name, result, written["machine"]) for written in map(read_json, files)
             for name, result in written["results"].items()]
    return as_markdown(lines) if lines else ""


def line_of(name: str, result: dict[str, Any], machine: dict[str, Any]) -> dict[str, str]:
    """One line of the table. A result has seconds, GiB, a ratio plain / here ("plain_s", "fast_s"), or a ratio busy /
    quiet ("quiet_s", "busy_s"). Of a ratio plain / here must and aim are the least, of all others the most."""
    unit = next(unit for key, unit in UNITS.items() if key in result)
    busy, least = "busy_s" in result, "plain_s" in result
    before = readable(result["plain_s"]) if least else f"{readable(result['quiet_s'])} quiet" if busy else "–"
    here = (f"{result['gib']:.2f} GiB" if "gib" in result else f"{readable(result['busy_s'])} busy" if busy
            else readable(result["fast_s" if least else "seconds"]))
    ratio = (f"**{result['ratio']:.1f} ×** ({result['lowest']:.1f} – {result['highest']:.1f})" if "ratio" in result
             else "–")
    bounds = {what: f"{'' if least else '≤ '}{result[what]:g} {unit}" if what in result else "–"
              for what in ("must", "aim")}
    return {"measured": name, "plain": before, "here": here, "ratio (of pairs)": ratio, **bounds,
            "machine": ", ".join(filter(None, [machine.get("gpu"), processor_of(machine)]))}


def processor_of(machine: dict[str, Any]) -> str:
    """The processor with its vector units, cores and PyTorch's threads, in words."""
    cores, threads = (f"{machine[what]} {what if machine[what] > 1 else what[:-1]}" for what in ("cores", "threads"))
    return f"{machine['processor']} ({machine['vectors']}), {cores}, {threads}"


def readable(value: float) -> str:
    """Seconds for people."""
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.2f} ms"


def machine(device: str) -> dict[str, Any]:
    """What a figure depends on beside the code: device, processor and its vector units, threads, load, versions."""
    import numpy
    import torch

    lines = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    found = {"device": device, "processor": processor, "vectors": torch.backends.cpu.get_cpu_capability(),
             "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
             "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    if device.startswith("cuda"):
        found.update(gpu=torch.cuda.get_device_name(device), cuda=torch.version.cuda)
    return found
