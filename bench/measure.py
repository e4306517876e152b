"""Clocks and memory: interleaved timing, peak resident memory of a call, and what the run was made on.

``python -m bench.measure '<json>'`` measures the peak memory of one operator call in a process of its own.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)
_SAMPLE_SECONDS = 1e-3


def limit_threads(count: int) -> None:
    """Hold every library to so many threads; for those that read it once, before they are imported."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(count)
    import torch

    torch.set_num_threads(count)


@dataclass
class Times:
    """Seconds of each call, by the wall clock and by the processor's clock of this process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians and minima, in seconds, and how many calls they are of."""
        return {
            "calls": len(self.cpu),
            "cpu_median_s": statistics.median(self.cpu),
            "cpu_min_s": min(self.cpu),
            "wall_median_s": statistics.median(self.wall),
            "wall_min_s": min(self.wall),
        }


def interleaved(calls: Mapping[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, Times]:
    """Time several calls in turn, each of them so many times a round, after one call of each that is not counted.

    The garbage collector runs between rounds, not within calls.
    """
    times = {name: Times() for name in calls}
    for call, _ in calls.values():
        call()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            gc.collect()
            for name, (call, repeats) in calls.items():
                for _ in range(repeats):
                    wall, cpu = time.perf_counter(), time.process_time()
                    call()
                    times[name].cpu.append(time.process_time() - cpu)
                    times[name].wall.append(time.perf_counter() - wall)
    finally:
        if was_enabled:
            gc.enable()
    return times


@dataclass
class Peak:
    """Peak of resident memory above what was resident before, in bytes; ``method`` says how it was seen."""

    bytes: float = math.nan
    method: str = "not measured: neither a high-water mark that can be reset nor psutil"


def synchronised(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, ended by waiting for the GPU where there is one: a launch returns before its work is done."""
    import torch

    if not torch.cuda.is_available():
        return call

    def finished() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return finished


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def _reset_high_water_mark() -> bool:
    """Linux: set the high-water mark of resident memory back to what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _status_bytes("VmHWM")
    except OSError:
        return False
    return True


def _release_free_memory() -> None:
    """Return freed memory to the system, so that a call cannot hide in what an earlier one left to the allocator."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak resident memory of a block above what was resident when it began.

    On Linux by the kernel's high-water mark; elsewhere, with psutil, by sampling every millisecond, which misses
    shorter peaks. It leaves out pages that were resident before and are used again, and memory of other processes.
    """
    peak = Peak()
    _release_free_memory()
    if _reset_high_water_mark():
        before = _status_bytes("VmRSS")
        yield peak
        peak.bytes, peak.method = max(0, _status_bytes("VmHWM") - before), "high-water mark"
    elif importlib.util.find_spec("psutil") is None:
        yield peak
    else:
        with _sampled(peak):
            yield peak


@contextmanager
def _sampled(peak: Peak) -> Iterator[None]:
    """The highest resident memory that a thread saw while the block ran."""
    import psutil

    process, stop = psutil.Process(), threading.Event()
    before = seen = process.memory_info().rss

    def sample() -> None:
        nonlocal seen
        while not stop.wait(_SAMPLE_SECONDS):
            seen = max(seen, process.memory_info().rss)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield
    finally:
        stop.set()
        sampler.join()
    peak.bytes, peak.method = seen - before, "sampled"


def probe(operation: str, wavefront: str, grid: str, batch: int, method: str, budget_mb: int | None) -> dict[str, Any]:
    """Memory and time of the first call of an operator in this process, plans and tables included."""
    from bench.scenarios import Scenario, operator_call, problem_of

    # A small call at another size loads the libraries, whose code is not the call's memory.
    operator_call(problem_of(Scenario(operation, wavefront, "training", 1)), method)()
    problem = problem_of(Scenario(operation, wavefront, grid, batch))
    call = operator_call(problem, method, None if budget_mb is None else budget_mb << 20)
    with peak_memory() as peak:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
    parts = result if isinstance(result, tuple) else (result,)
    return {
        "operation": operation,
        "wavefront": wavefront,
        "grid": grid,
        "batch": batch,
        "method": method,
        "budget_mb": budget_mb,
        "peak_mb": peak.bytes / 2**20,
        "outputs_mb": sum(part.untyped_storage().nbytes() for part in parts) / 2**20,
        "first_call_s": seconds,
        "seen_by": peak.method,
    }


def probe_in_process(**request: Any) -> dict[str, Any]:
    """:func:`probe` in a fresh process, whose allocator holds nothing back."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.measure", json.dumps(request)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the memory probe failed:\n{done.stderr}")
    return dict(json.loads(done.stdout))


def cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part."""
    found = {"python": platform.python_version(), "system": platform.system()}
    for name in ("risfast", "torch", "numpy", "scipy", "acoular", "numba", "scikit-image"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if found["risfast"] == "not installed":  # run from a checkout
        import risfast

        found["risfast"] = risfast.__version__
    return found


if __name__ == "__main__":
    limit_threads(1)
    print(json.dumps(probe(**json.loads(sys.argv[1]))))
