"""Every kernel test on machine code: all orders, offsets past 2^31, the reference grid. Half an hour or more.

``python -m pytest -p tests.machine.plugin --machine gfx942 --orders all tests/kernels tests/ops/test_cuda_path.py
tests/machine/reference_grid.py``, with RISFAST_TRITON=interpret, is the same with a line for each test.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machine.building import compiler

ROOT = Path(__file__).resolve().parents[2]
# These start processes of their own, or compile and launch nothing.
LEFT_OUT = ("test_kernels_process.py", "test_kernels_compile.py")


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["gfx942", "sm_80"])
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(compiler() is None, reason="no C compiler: the machine cannot be built")
def test_every_kernel_test_passes_on_machine_code(machine):
    files = [ROOT / "tests/ops/test_cuda_path.py", ROOT / "tests/machine/reference_grid.py"]
    files += [path for path in sorted((ROOT / "tests/kernels").glob("test_*.py")) if path.name not in LEFT_OUT]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.machine.plugin"]
    command += ["--machine", machine, "--orders", "all", *map(str, files)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), "RISFAST_TRITON": "interpret"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-10000:]
