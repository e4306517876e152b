"""The kernel tests in a process of their own, where Triton was imported before its interpreter was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")


@pytest.mark.parametrize(
    "name", ["interpreter", "inverse", "lowrank", "synthesis", "peaks", "refine", "offsets", "adjoint_offsets"]
)
def test_kernels_hold_in_the_interpreter(name):
    import triton
    import triton.language as tl

    if not isinstance(tl.sum, triton.runtime.jit.JITFunction):
        pytest.skip("the interpreter is on in this process, where the kernel tests run by themselves")
    file = Path(__file__).with_name(f"test_kernels_{name}.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(file.parent.parent), "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=file.parent.parent, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
