"""The kernel tests in processes of their own, where Triton was imported before its interpreter was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")
import triton.language as tl  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
KERNELS, OPS = ROOT / "tests" / "kernels", ROOT / "tests" / "ops"
INTERPRETED = {"TRITON_INTERPRET": "1"}
# Processes beside each other, the longest first: their files, and what their environment says.
PARTS = {
    "adjoints, peaks and refinement": (
        ["kernels_synthesis", "kernels_peaks", "kernels_forms", "kernels_refine", "kernels_adjoint_offsets"],
        INTERPRETED,
    ),
    "the whole path": (["cuda_path"], INTERPRETED | {"RISFAST_TRITON": "interpret"}),
    "maps": (
        ["kernels_interpreter", "kernels_launch", "kernels_inverse", "kernels_lowrank", "kernels_offsets"],
        INTERPRETED,
    ),
}


def run(names, environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str((OPS if name == "cuda_path" else KERNELS) / f"test_{name}.py") for name in names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def has_run_here(part):
    """Where the interpreter is on in this process, the kernel tests run by themselves; the path does not."""
    return not isinstance(tl.sum, triton.runtime.jit.JITFunction) and PARTS[part][1] == INTERPRETED


@pytest.fixture(scope="module")
def runs():
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {part: pool.submit(run, *given) for part, given in PARTS.items() if not has_run_here(part)}


def test_every_kernel_test_has_its_process():
    names = {path.stem.removeprefix("test_") for path in KERNELS.glob("test_kernels_*.py")} | {"cuda_path"}
    assert sorted(names - {"kernels_process", "kernels_compile"}) == sorted(
        n for part, _ in PARTS.values() for n in part
    )


@pytest.mark.parametrize("part", PARTS)
def test_kernels_hold_in_the_interpreter(runs, part):
    if part not in runs:
        pytest.skip("the interpreter is on in this process, where these tests run by themselves")
    done = runs[part].result()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
