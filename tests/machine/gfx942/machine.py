"""Runs a compiled launch: its arguments as the GPU gets them, its programs in a chosen order."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.machine.arguments import kernel_arguments
from tests.machine.gfx942.decode import Instruction, decode
from tests.machine.gfx942.opcodes import c_source
from tests.machine.jobs import STATUS, Extent, extents_of, i32, library, order_fields, u32, u64
from tests.machine.outcome import FAULT_NAMES, MESSAGE_BYTES, Order, Outcome

if TYPE_CHECKING:
    from tests.machine.capture import Launch
    from tests.machine.compiling import Binary


class _Job(ctypes.Structure):
    """Mirrors ``struct job`` of run.c."""

    _fields_ = [
        ("code", ctypes.POINTER(Instruction)),
        ("length", i32),
        ("extents", ctypes.POINTER(Extent)),
        ("extent_count", i32),
        ("grid", u32 * 3),
        ("waves", i32),
        ("shared_bytes", u32),
        ("user", ctypes.POINTER(u32)),
        ("user_count", i32),
        ("group_id", i32 * 3),
        ("order", i32),
        ("programs_reversed", i32),
        ("seed", u32),
        ("poison", u32),
        ("noise", i32),
        ("first", u32),
        ("step", u32),
        ("status", i32),
        ("line", i32),
        ("instructions", u64),
        ("faults", u32 * len(FAULT_NAMES)),
        ("message", ctypes.c_char * MESSAGE_BYTES),
    ]


@dataclass(frozen=True)
class Program:
    """A binary, decoded."""

    binary: Binary

    @cached_property
    def code(self) -> ctypes.Array[Instruction]:
        """Its instructions; raises UnknownOpcodeError."""
        return decode(self.binary.text, self.binary.name)

    def directive(self, name: str) -> int:
        """A number of the kernel's descriptor, 0 where the text does not give it."""
        found = re.search(rf"\.amdhsa_{name} (\d+)", self.binary.text)
        return int(found[1]) if found else 0


class Machine:
    """gfx942, executed; its library is built into ``folder`` when it is first used."""

    target = "gfx942"

    def __init__(self, folder: Path) -> None:
        self._run = library("gfx942", c_source(), _Job, folder).run
        self._programs: dict[str, Program] = {}

    def program(self, binary: Binary) -> Program:
        """A binary, decoded once."""
        if binary.hash not in self._programs:
            self._programs[binary.hash] = Program(binary)
        return self._programs[binary.hash]

    def run(self, binary: Binary, launch: Launch, order: Order) -> Outcome:
        """Execute all programs of a launch on the memory of its operands."""
        program = self.program(binary)
        arguments = kernel_arguments(binary.signature, launch.arguments)
        needed = program.directive("kernarg_size")
        if needed > len(arguments):
            raise ValueError(f"the kernel takes {needed} bytes of arguments, the signature gives {len(arguments)}")
        extents = extents_of(launch.extents(), (arguments.ctypes.data, len(arguments)))
        count = program.directive("user_sgpr_count")
        user = _user_registers(arguments, count, program.directive("user_sgpr_kernarg_preload_length"))
        x, y, z = launch.grid
        job = _Job(
            code=program.code,
            length=len(program.code),
            extents=extents,
            extent_count=len(extents),
            grid=(x + launch.first, y, z),
            waves=binary.warps,
            shared_bytes=binary.shared,
            user=user.ctypes.data_as(ctypes.POINTER(u32)),
            user_count=count,
            group_id=_group_registers(program, count),
            **order_fields(order),
            first=launch.first,
        )
        self._run(ctypes.byref(job))
        if job.status:
            raise RuntimeError(f"{launch.kernel}: {STATUS[job.status]}, line {job.line}")
        return Outcome.of(job.faults, job.message.decode(), job.instructions)


def _user_registers(arguments: np.ndarray, count: int, preloaded: int) -> np.ndarray:
    """Scalar registers at the start: the address of the arguments, then the arguments that are loaded ahead."""
    registers = np.zeros(count, np.uint32)
    registers[:2] = np.array([arguments.ctypes.data], np.uint64).view(np.uint32)
    registers[2 : 2 + preloaded] = arguments[: 4 * preloaded].view(np.uint32)
    return registers


def _group_registers(program: Program, first: int) -> tuple[int, int, int]:
    """The scalar register of the program's number along each axis, or -1: those that are asked for, in order."""
    places = []
    for axis in "xyz":
        asked = program.directive(f"system_sgpr_workgroup_id_{axis}")
        places.append(first if asked else -1)
        first += asked
    return places[0], places[1], places[2]
