"""Runs a compiled launch: its arguments as the GPU gets them, its programs in a chosen order."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.machine.arguments import kernel_arguments
from tests.machine.jobs import STATUS, Extent, extents_of, i32, library, order_fields, u32, u64
from tests.machine.outcome import FAULT_NAMES, MESSAGE_BYTES, Order, Outcome
from tests.machine.sm80 import opcodes
from tests.machine.sm80.program import EncodedInstruction, Program, program

if TYPE_CHECKING:
    from tests.machine.capture import Launch
    from tests.machine.compiling import Binary

HERE = Path(__file__).parent


class _Job(ctypes.Structure):
    """Mirrors ``struct job`` of scheduler.c."""

    _fields_ = [
        ("code", ctypes.POINTER(EncodedInstruction)),
        ("length", u32),
        ("extents", ctypes.POINTER(Extent)),
        ("extent_count", u32),
        ("registers", ctypes.c_void_p),
        ("register_bytes", u32),
        ("parameters", ctypes.c_void_p),
        ("grid", u32 * 3),
        ("warps", u32),
        ("shared_bytes", u32),
        ("order", u32),
        ("programs_reversed", u32),
        ("seed", u32),
        ("poison", u32),
        ("noise", i32),
        ("first", u32),
        ("step", u32),
        ("status", i32),
        ("instructions", u64),
        ("faults", u32 * len(FAULT_NAMES)),
        ("message", ctypes.c_char * MESSAGE_BYTES),
    ]


def c_source() -> str:
    """The whole C text of the machine."""
    by_hand = (HERE / "instructions.c").read_text(encoding="utf-8")
    scheduler = (HERE / "scheduler.c").read_text(encoding="utf-8")
    return "\n".join((by_hand, opcodes.source(), scheduler))


class Machine:
    """sm_80, executed; its library is built into ``folder`` when it is first used."""

    target = "sm_80"

    def __init__(self, folder: Path) -> None:
        self._run = library("sm80", c_source(), _Job, folder).run
        self._programs: dict[str, Program] = {}

    def program(self, binary: Binary) -> Program:
        """A binary's PTX, decoded once; raises UnknownInstructionError."""
        if binary.hash not in self._programs:
            self._programs[binary.hash] = program(binary.text)
        return self._programs[binary.hash]

    def run(self, binary: Binary, launch: Launch, order: Order) -> Outcome:
        """Execute all programs of a launch on the memory of its operands."""
        return self.run_program(self.program(binary), binary, launch, order)

    def run_program(self, code: Program, binary: Binary, launch: Launch, order: Order) -> Outcome:
        """The same with other code than the binary's own."""
        x, y, z = launch.grid
        return self.execute(
            code,
            kernel_arguments(binary.signature, launch.arguments),
            launch.extents(),
            grid=(x + launch.first, y, z),
            warps=binary.warps,
            shared_bytes=binary.shared,
            order=order,
            first=launch.first,
        )

    def execute(
        self,
        code: Program,
        arguments: np.ndarray,
        extents: list[tuple[int, int]],
        *,
        grid: tuple[int, int, int] = (1, 1, 1),
        warps: int = 1,
        shared_bytes: int = 0,
        order: Order = Order(),  # noqa: B008 -- frozen
        first: int = 0,
    ) -> Outcome:
        """Execute decoded PTX with the bytes of its arguments; ``extents`` are addresses and sizes it may touch."""
        if code.parameter_bytes > len(arguments):
            raise ValueError(f"the kernel takes {code.parameter_bytes} bytes of arguments, given are {len(arguments)}")
        registers = code.first_registers(order.poison)
        regions = extents_of(extents)
        job = _Job(
            code=code.code,
            length=len(code.code),
            extents=regions,
            extent_count=len(regions),
            registers=registers.ctypes.data,
            register_bytes=len(registers),
            parameters=arguments.ctypes.data,
            grid=grid,
            warps=warps,
            shared_bytes=shared_bytes,
            **order_fields(order),
            first=first,
        )
        self._run(ctypes.byref(job))
        if job.status:
            raise RuntimeError(STATUS[job.status])
        return Outcome.of(job.faults, job.message.decode(), job.instructions)
