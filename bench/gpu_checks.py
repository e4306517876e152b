"""What only a GPU can show: the kernel tests on it, graphs, streams, a second device, and the memory checker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu_scenarios import Setting, covariances
from risfast.detect import FixedDetections, detect_fixed

ROOT = Path(__file__).resolve().parents[1]
_TESTS = "tests/kernels/test_kernels_*.py", "tests/ops/test_cuda_path.py"
_LEFT_OUT = (
    "compile.py",
    "process.py",
    "offsets.py",
)  # ends of the names of those that need no GPU, and run without one
# One node for each kernel, small enough for the checker.
_CHECKED_NODES = (
    "tests/ops/test_cuda_path.py::test_capon_matches_brute_force[spherical-dense-mirrored]",
    "tests/ops/test_cuda_path.py::test_capon_matches_brute_force[spherical-chebyshev-mirrored]",
    "tests/ops/test_cuda_path.py::test_capon_matches_brute_force[fresnel-lag-mirrored]",
    "tests/ops/test_cuda_path.py::test_low_rank_capon_matches_brute_force[spherical-dense-3]",
    "tests/ops/test_cuda_path.py::test_gradients_match_plain_torch[mvdr_spectrum-spherical-chebyshev-max]",
    "tests/ops/test_cuda_path.py::test_gradients_match_plain_torch[mvdr_spectrum-fresnel-lag-max]",
    "tests/ops/test_cuda_path.py::test_detection_finds_what_the_cpu_finds[fresnel-False]",
)


def _pytest(arguments: list[str], seconds: float, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """A run of pytest in a process of its own, on the GPU, that is ended after so many seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RISFAST_TEST_DEVICE": "cuda", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *arguments]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=max(seconds, 1), check=False
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return {"state": f"not finished in {seconds:.0f} s", "tail": output[-400:], "seconds": seconds}
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    state = "passed" if done.returncode == 0 else "FAILED"
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    found = {"state": state, "summary": lines[-1], "failed": failed, "seconds": time.perf_counter() - start}
    if prefix:
        errors = re.findall(r"ERROR SUMMARY: (\d+) error", done.stdout + done.stderr)
        found["checker_errors"] = sum(map(int, errors)) if errors else "no summary"
    return found


def kernel_tests(seconds: float, dry_run: bool) -> dict[str, Any]:
    """Every kernel test and the whole CUDA path against the float64 brute force."""
    files = sorted(str(p.relative_to(ROOT)) for pattern in _TESTS for p in ROOT.glob(pattern))
    files = [name for name in files if not name.endswith(_LEFT_OUT)]
    if dry_run:
        return {"state": "dry run: named, not run", "summary": ", ".join(files)}
    return _pytest(files, seconds)


def memory_checker(seconds: float, dry_run: bool) -> dict[str, Any]:
    """compute-sanitizer's memcheck on one node for each kernel."""
    tool = shutil.which("compute-sanitizer")
    if dry_run or tool is None:
        state = "dry run: named, not run" if dry_run else "compute-sanitizer is not on the path"
        return {"state": state, "nodes": list(_CHECKED_NODES)}
    prefix = (tool, "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all")
    return _pytest(list(_CHECKED_NODES), seconds, prefix)


def _detect(setting: Setting, matrix: torch.Tensor) -> FixedDetections:
    options = {"wavefront": "fresnel", "options": setting.options}
    return detect_fixed(matrix, setting.array, setting.grid, factored=False, **options)


def _same(actual: FixedDetections, expected: FixedDetections) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def graph_replay(setting: Setting) -> dict[str, Any]:
    """Detection captured once, replayed on other covariances, against the same call as it is made."""
    R = covariances(setting, 2, "fresnel")
    first, second = R[:1].clone(), R[1:2].clone()
    expected = _detect(setting, second)
    if setting.device.type != "cuda":
        return {"state": "same" if _same(_detect(setting, second), expected) else "DIFFERENT", "how": "called twice"}
    slot = first.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _detect(setting, slot)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _detect(setting, slot)
    slot.copy_(second)
    graph.replay()
    torch.cuda.synchronize()
    return {"state": "same" if _same(found, expected) else "DIFFERENT", "how": "captured, input changed, replayed"}


def two_streams(setting: Setting) -> dict[str, Any]:
    """The same work on two streams at once, against one after the other."""
    R = covariances(setting, 2, "fresnel")
    parts = [R[:1].contiguous(), R[1:2].contiguous()]
    expected = [_detect(setting, part) for part in parts]
    if setting.device.type != "cuda":
        found = [_detect(setting, part) for part in parts]
        same = all(_same(*pair) for pair in zip(found, expected, strict=True))
        return {"state": "same" if same else "DIFFERENT", "how": "one after the other: there are no streams"}
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    same = True
    for _ in range(5):
        found = []
        for stream, part in zip(streams, parts, strict=True):
            with torch.cuda.stream(stream):
                found.append(_detect(setting, part))
        torch.cuda.synchronize()
        same &= all(_same(*pair) for pair in zip(found, expected, strict=True))
    return {"state": "same" if same else "DIFFERENT", "how": "two streams at once, five times"}


def second_device(setting: Setting) -> dict[str, Any]:
    """The same call on the second GPU while the first one is current."""
    if setting.device.type != "cuda" or torch.cuda.device_count() < 2:
        return {"state": "there is no second device"}
    R = covariances(setting, 2, "fresnel")
    expected = _detect(setting, R)
    found = _detect(setting, R.to("cuda:1"))
    on_second = all(field.device == torch.device("cuda", 1) for field in found)
    moved = FixedDetections(*(field.to(setting.device) for field in found))
    close = torch.equal(moved.number, expected.number) and torch.allclose(moved.power, expected.power, rtol=1e-5)
    return {"state": "same" if on_second and close else "DIFFERENT"}


CHECKS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "CUDA graph": graph_replay,
    "two streams": two_streams,
    "second device": second_device,
}
