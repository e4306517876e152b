"""A process that runs one job of risfast as often as it is told to, in the tree that PYTHONPATH names.

It takes the job from a file and its orders, one a line, from standard input; each answer is a line of JSON. It may run
in an earlier commit: it uses nothing but public names that are older than the benchmarks.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident_bytes(key: str) -> int:
    """VmRSS (resident now) or VmHWM (its high-water mark) of this process, on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def reset_high_water_mark() -> bool:
    """Set the high-water mark of resident memory back to what is resident now; False where there is none."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        resident_bytes("VmHWM")
    except OSError:
        return False
    return True


def release_free_memory() -> None:
    """Return freed memory to the system, so that a call cannot hide in what an earlier one left to the allocator."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


FUNCTIONS = {
    "mvdr": ("risfast.ops", "mvdr_spectrum"),
    "mvdr_lowrank": ("risfast.ops", "mvdr_spectrum_lowrank"),
    "music": ("risfast.ops", "music_spectrum"),
    "refine": ("risfast.ops.refinement", "refine_peaks"),
    "detect": ("risfast", "detect_sources"),
    "detect_lowrank": ("risfast", "detect_sources_lowrank"),
}


def call_of(job: dict[str, Any]) -> Callable[[], Any]:
    """The public function of risfast that a job names, on its tensors; nothing else is imported."""
    if job["operation"] == "peaks":
        return _peaks(job)
    from risfast.geometry import PlanarArray, SearchGrid

    module, name = FUNCTIONS[job["operation"]]
    function = getattr(importlib.import_module(module), name)
    array, matrix = PlanarArray(job["positions_m"], job["wavelength_m"]), job["matrix"]
    options = {"wavefront": job["wavefront"], **job.get("options", {})}
    asked = "n_sources" if job["operation"] == "music" else "loading"
    options[asked] = job[asked]
    if job["operation"] == "refine":
        low, high, factored = job["low"], job["high"], job["factored"]
        return lambda: function(matrix, array, low, high, factored=factored, points=job["points"], **options)
    grid = SearchGrid(job["azimuth_rad"], job["elevation_rad"], job["range_m"])
    return lambda: function(matrix, array, grid, **options)


def _peaks(job: dict[str, Any]) -> Callable[[], Any]:
    """Maxima of a volume, and those that suppression leaves, as grid indices [K, 3]."""
    from risfast.ops import local_maxima_3d, nms_3d

    def call() -> Any:
        found = local_maxima_3d(job["volume"], window=job["window"], k=job["candidates"])
        index, value = found.index[0], found.value[0]
        kept = nms_3d(job["grid_points"][tuple(index.T)], value, separation=job["separation"], k=job["kept"])
        return index[kept.index[: int(kept.count)]]

    return call


def plain(result: Any) -> Any:
    """A result as tensors alone, which any commit can read: sources become (position, power)."""
    if isinstance(result, list):
        return [(sources.position, sources.power) for sources in result]
    return tuple(result) if isinstance(result, tuple) else result


def _first(job: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The first call, imports and plans included: its processor seconds, and the memory that it adds at its peak."""
    if "warm" in job:  # loads the libraries, whose code is not the call's memory
        call_of(job["warm"])()
    release_free_memory()
    seen = reset_high_water_mark()
    before, start = resident_bytes("VmRSS") if seen else 0, time.process_time()
    call = call_of(job)
    result = call()
    seconds = time.process_time() - start
    peak = resident_bytes("VmHWM") - before if seen else None
    outputs = sum(part.untyped_storage().nbytes() for part in result) if isinstance(result, tuple) else 0
    del result
    import risfast

    # MiB, and None where the system does not tell.
    memory = {"first_mib": None if peak is None else peak / 2**20, "outputs_mib": outputs / 2**20}
    return call, {"first_s": seconds, **memory, "package": risfast.__file__}


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call by the processor's clock of this process and by the wall clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


class _LaunchedError(Exception):
    """The call has reached a launch."""


def _files_to_a_launch(call: Callable[[], Any]) -> list[str]:
    """Source files that Python passes through between a call and its first launch, in order (Triton's interpreter)."""
    from triton.runtime.interpreter import GridExecutor

    passed: dict[str, None] = {}

    def look(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code is GridExecutor.__call__.__code__:
            raise _LaunchedError
        path = Path(frame.f_code.co_filename)
        folder = next((name for name in ("risfast", "kernels") if name in path.parts), None)
        if event == "call" and folder is not None:
            passed["/".join(path.parts[path.parts.index(folder) :])] = None

    sys.setprofile(look)
    try:
        call()
    except _LaunchedError:
        return list(passed)
    finally:
        sys.setprofile(None)
    raise RuntimeError("the call launched no kernel; TRITON_INTERPRET=1 and RISFAST_TRITON=interpret make it")


def main() -> None:
    """``python worker.py JOB THREADS``, then orders until standard input ends: time, files, result PATH."""
    import torch

    torch.set_num_threads(int(sys.argv[2]))
    job = torch.load(sys.argv[1])
    call, first = _first(job)
    gc.collect()
    gc.disable()
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        order, _, path = line.strip().partition(" ")
        answer: Any = True
        if order == "time":
            answer = timed(call)
        elif order == "files":
            answer = _files_to_a_launch(call)
        else:
            torch.save(plain(call()), path)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
