"""Launches of small kernels without a fault, and of a shipped one, and the faults to plant in their sources."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.machine.capture import Launch
from tests.machine.compiling import Edit

PLANTED = Path(__file__).parent / "planted_kernels.py"
READ, WRITE = "read out of bounds", "write out of bounds"
UNINITIALISED, SHARED_BYTE = "uninitialised read", "programs share a byte"
RACE, WRITES, INCOMPLETE = "read/write race", "write/write race", "read before write is complete"


def launch_of(kernel, programs, warps, **arguments):
    """A launch of a planted kernel, or of a shipped one by ``module.kernel``."""
    module, _, name = kernel.rpartition(".")
    module, file = (f"risfast.kernels.{module}", "") if module else (PLANTED.stem, str(PLANTED))
    return Launch(module, name, file, arguments, {"num_warps": warps}, (programs, 1, 1))


def part_of(size):
    """Numbers in the middle of a larger storage: what lies around them belongs to somebody else."""
    whole = torch.arange(3 * size, dtype=torch.float32)
    return whole[size : 2 * size]


def copy_launch():
    return launch_of("copy_kernel", 2, 1, x_ptr=part_of(200), y_ptr=torch.zeros(600)[200:400], size=200, BLOCK=128)


def transpose_launch():
    x = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    return launch_of("transpose_kernel", 1, 4, x_ptr=x, y_ptr=torch.zeros(64, 64), BLOCK=64)


def sums_launch():
    x = torch.rand(5, 256, generator=torch.Generator().manual_seed(0))
    return launch_of("sums_kernel", 1, 4, x_ptr=x, y_ptr=torch.zeros(5, 256), ROWS=5, BLOCK=256)


def exchange_launch():
    x = torch.rand(256, generator=torch.Generator().manual_seed(0))
    return launch_of("exchange_kernel", 1, 4, x_ptr=x, y_ptr=torch.zeros(256), scratch_ptr=torch.zeros(256), BLOCK=256)


def numbered_launch():
    return launch_of("numbered_kernel", 3, 1, y_ptr=torch.zeros(300, dtype=torch.int32), size=300, BLOCK=128)


def stencil_launch():
    """The shipped stencil kernel on five candidates."""
    numbers = {name: torch.rand(5, 3).double() for name in ("point_ptr", "step_ptr", "low_ptr", "high_ptr")}
    numbers |= {"stencil_ptr": torch.rand(19, 3).double(), "around_ptr": torch.zeros(5, 19, 3).double()}
    return launch_of("descent.stencil_kernel", 2, 4, **numbers, scale=0.5, size=285, BLOCK=256)


def product_launch():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(32, 128, generator=generator), torch.rand(128, 32, generator=generator) - 0.5
    return launch_of("product_kernel", 1, 4, x_ptr=x, w_ptr=w, y_ptr=torch.zeros(32, 32), K=128, BLOCK=32)


def outputs(launch):
    """What the kernel wrote."""
    return torch.cat(
        [tensor.flatten().double() for name, tensor in launch.tensors().items() if name not in ("x_ptr", "w_ptr")]
    )


LAUNCHES = [
    copy_launch,
    transpose_launch,
    sums_launch,
    exchange_launch,
    numbered_launch,
    product_launch,
    stencil_launch,
]
# The launch, the fault, and what must be reported.
SOURCES = {
    "a load mask too wide": (
        copy_launch,
        Edit("copy_kernel", "x_ptr + i, mask=i < size", "x_ptr + i, mask=i < size + 3"),
        READ,
    ),
    "a load without a mask": (copy_launch, Edit("copy_kernel", "mask=i < size, other=0.0", "mask=None"), READ),
    "a store mask too wide": (
        copy_launch,
        Edit("copy_kernel", "x + 1.0, mask=i < size", "x + 1.0, mask=i < size + 1"),
        WRITE,
    ),
    "programs on the same bytes": (
        numbered_launch,
        Edit("numbered_kernel", "tl.program_id(0) * BLOCK +", ""),
        SHARED_BYTE,
    ),
    "programs that overlap": (numbered_launch, Edit("numbered_kernel", "* BLOCK", "* (BLOCK - 1)"), SHARED_BYTE),
    "no barrier": (exchange_launch, Edit("exchange_kernel", "tl.debug_barrier()", "pass"), RACE),
    "a shipped kernel's load mask too wide": (
        stencil_launch,
        Edit("stencil_kernel", "stencil_ptr + i % 57, mask=there", "stencil_ptr + i % 59, mask=there"),
        READ,
    ),
    "a shipped kernel's store mask too wide": (
        stencil_launch,
        Edit("stencil_kernel", "mask=there)", "mask=i < size + 2)", last=True),
        WRITE,
    ),
}
