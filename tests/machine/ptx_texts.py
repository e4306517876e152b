"""PTX written for tests: kernels around a few instructions, and NVIDIA's assembler to hold them against."""

from __future__ import annotations

import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from tests.machine.outcome import FORWARD, Order, Outcome
from tests.machine.sm80.machine import Machine
from tests.machine.sm80.program import Program, program

HEADER = ".version 8.7\n.target sm_80\n.address_size 64\n"


def kernel_text(body: str, pointers: int = 1, threads: int = 32, name: str = "kernel", shared: bool = False) -> str:
    """A kernel with pointers p0, p1, ... in %rd0, %rd1, ..., and %r0 = the number of the thread in the grid.

    ``body`` may use registers %p0.., %h0.. (16 bits), %r1.., %rd8.. and up, and labels.
    """
    declared = ",\n".join(f".param .u64 p{k}" for k in range(pointers))
    loads = "\n".join(f"ld.param.b64 %rd{k}, [p{k}];" for k in range(pointers))
    return f"""{HEADER}{".extern .shared .align 16 .b8 global_smem[];" if shared else ""}
.visible .entry {name}(
{declared}
)
.reqntid {threads}
{{
.reg .pred %p<16>;
.reg .b16 %h<16>;
.reg .b32 %r<64>;
.reg .b64 %rd<64>;
{loads}
mov.u32 %r60, %tid.x;
mov.u32 %r61, %ctaid.x;
mad.lo.s32 %r0, %r61, {threads}, %r60;
{body}
ret;
}}
"""


def assembler_says(text: str) -> str:
    """What ptxas -v says of a text; raises CalledProcessError where it refuses it."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "text.ptx")
        source.write_text(text, encoding="utf-8")
        command = [str(tool), "-v", "--gpu-name=sm_80", str(source), "-o", str(Path(folder, "text.cubin"))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@lru_cache(maxsize=256)
def _accepted(text: str) -> Program:
    assembler_says(text)
    return program(text)


def execute(
    machine: Machine,
    body: str,
    *arrays: np.ndarray,
    threads: int = 32,
    shared_bytes: int = 0,
    programs: int = 1,
    order: Order = FORWARD,
    removed: str | None = None,
) -> Outcome:
    """Execute ``body``, which ptxas must accept, on arrays at p0, p1, ...; without what begins ``removed``."""
    code = _accepted(kernel_text(body, len(arrays), threads, shared=bool(shared_bytes)))
    if removed is not None:
        places = code.index(removed)
        assert places, f"nothing to remove: {removed}"
        code = code.without(*places)
    arguments = np.array([array.ctypes.data for array in arrays], np.uint64).view(np.uint8)
    extents = [(array.ctypes.data, array.nbytes) for array in arrays]
    return machine.execute(
        code,
        arguments,
        extents,
        grid=(programs, 1, 1),
        warps=threads // 32,
        shared_bytes=shared_bytes,
        order=order,
    )
