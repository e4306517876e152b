"""Clocks and memory: interleaved timing, peak resident memory of a call, and what the run was made on."""

from __future__ import annotations

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
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.worker import release_free_memory, reset_high_water_mark, resident_bytes, timed

ROOT = Path(__file__).resolve().parents[1]
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)


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


def risfast_tree() -> Path:
    """The folder that the risfast of this process was imported from."""
    import risfast

    return Path(risfast.__file__).resolve().parents[1]


@contextmanager
def saved(job: dict[str, Any]) -> Iterator[Path]:
    """The file of a job, alone in a folder that goes with it."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.save(job, Path(folder) / "job.pt")
        yield Path(folder) / "job.pt"


class Worker:
    """A job of risfast in a process of its own, in a tree of its own: see :mod:`bench.worker`.

    Attributes
    ----------
    first : dict
        Processor seconds and MiB of the first call, imports included.
    """

    def __init__(self, job: Path, tree: Path, threads: int = 1, **environment: str) -> None:
        names = {name: str(threads) for name in THREAD_VARIABLES}
        self._place = job.with_name("result.pt")
        # The folder of the script stays off the path: it is of this tree, and its files have plain names.
        command = [sys.executable, "-P", str(ROOT / "bench" / "worker.py"), str(job), str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=job.parent,
            env={**os.environ, **names, "PYTHONPATH": str(tree), **environment},
        )
        self.first: dict[str, Any] = self._answer()
        imported = Path(self.first["package"]).parents[1]
        if imported != tree.resolve():
            self.close()
            raise RuntimeError(f"the worker of {tree} imported risfast from {imported}")

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"a worker ended with status {self._process.wait()}; its message stands above")
        return json.loads(line)

    def order(self, text: str) -> Any:
        """Send an order and wait for the answer."""
        assert self._process.stdin is not None
        print(text, file=self._process.stdin, flush=True)
        return self._answer()

    def result(self) -> Any:
        """What the job gives, as tensors alone."""
        import torch

        self.order(f"result {self._place}")
        return torch.load(self._place)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def interleaved(calls: Mapping[str, tuple[Callable[[], Any] | Worker, int]], rounds: int) -> dict[str, Times]:
    """Time several calls in turn, each of them so many times a round, after one call of each that is not counted.

    Workers time themselves. The garbage collector runs between rounds, not within calls.
    """
    times = {name: Times() for name in calls}

    def turn(call: Callable[[], Any] | Worker) -> dict[str, float]:
        sample: dict[str, float] = call.order("time") if isinstance(call, Worker) else timed(call)
        return sample

    for call, _ in calls.values():
        turn(call)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            gc.collect()
            for name, (call, repeats) in calls.items():
                for _ in range(repeats):
                    sample = turn(call)
                    times[name].cpu.append(sample["cpu"])
                    times[name].wall.append(sample["wall"])
    finally:
        if was_enabled:
            gc.enable()
    return times


@dataclass
class Peak:
    """Peak of resident memory above what was resident before, in bytes; NaN where the system does not tell."""

    bytes: float = math.nan


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


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak resident memory of a block above what was resident when it began (Linux's high-water mark).

    It leaves out pages that were resident before and are used again, and memory of other processes.
    """
    peak = Peak()
    release_free_memory()
    before = resident_bytes("VmRSS") if reset_high_water_mark() else None
    yield peak
    if before is not None:
        peak.bytes = max(0, resident_bytes("VmHWM") - before)


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
    for name in ("risfast", "torch", "numpy", "scipy", "scikit-image", "acoular", "pyroomacoustics", "numba"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if found["risfast"] == "not installed":  # run from a checkout
        import risfast

        found["risfast"] = risfast.__version__
    return found
