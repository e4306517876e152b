"""Every kernel test on machine code: all orders, offsets past 2^31, the reference grid. Half an hour or more.

With a line for each test: ``python -m pytest -p tests.machine.plugin --machine gfx942 --orders all tests/kernels
tests/machine/reference_grid.py``, and the same for ``tests/ops/test_cuda_path.py`` with RISFAST_TRITON=interpret, where
the operators of CPU tensors are those of a GPU.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.machine.building import compiler
from tests.machine.shipped import ROOT, environment_of_a_run

# These start processes of their own, or compile and launch nothing.
LEFT_OUT = ("test_kernels_process.py", "test_kernels_compile.py")
KERNELS = [path for path in sorted((ROOT / "tests/kernels").glob("test_*.py")) if path.name not in LEFT_OUT]
PARTS = {
    "kernels": ([*KERNELS, ROOT / "tests/machine/reference_grid.py"], {}),
    "the whole path": ([ROOT / "tests/ops/test_cuda_path.py"], {"RISFAST_TRITON": "interpret"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["gfx942", "sm_80"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(compiler() is None, reason="no C compiler: the machine cannot be built")
def test_every_kernel_test_passes_on_machine_code(part, machine):
    files, variables = PARTS[part]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.machine.plugin"]
    command += ["--machine", machine, "--orders", "all", *map(str, files)]
    environment = environment_of_a_run() | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-10000:]
