"""Executes every launch as machine code in several orders, and refuses what a GPU could not be trusted with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tests.machine.capture import Launch, captured
from tests.machine.compiling import Binary, Compiler, resources
from tests.machine.outcome import BENIGN, Order, Outcome

INTERPRETER = "interpreter"
# Operands above this are run once, where they are: no copies of files with holes.
MOST_COPIED_BYTES = 200 << 20
# The order of its output is that of its programs' atomic additions; the ranks that follow put it right.
DEPENDS_ON_ORDER_OF_PROGRAMS = {"maxima_candidates_kernel"}


class MachineFaultError(AssertionError):
    """A launch did what it may not, or its result depends on the order of its waves."""


class Machine(Protocol):
    """What executes binaries of one target."""

    target: str

    def run(self, binary: Binary, launch: Launch, order: Order) -> Outcome:
        """Execute a launch on the memory of its operands."""


@dataclass
class Record:
    """A launch that was executed."""

    kernel: str
    constants: dict[str, Any]
    dtypes: dict[str, str]
    grid: tuple[int, int, int]
    binary: Binary | None = None  # None: interpreted
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """What a log keeps of it, as JSON has it."""
        return {
            "kernel": self.kernel,
            "constants": {name: _plain(value) for name, value in self.constants.items()},
            "dtypes": self.dtypes,
            "grid": self.grid,
            "binary": self.binary.hash if self.binary else None,
            "resources": resources(self.binary) if self.binary else {},
            "instructions": [outcome.instructions for outcome in self.outcomes],
            "benign": sum(outcome.faults.get(BENIGN, 0) for outcome in self.outcomes),
            "seconds": [round(seconds, 3) for seconds in self.seconds],
        }


def _plain(value: Any) -> Any:
    """A number or a string as it is, a dtype by its name."""
    return value if isinstance(value, bool | int | float | str) else str(value).replace("fp", "float")


class Executor:
    """What ``capture.captured`` hands launches to; without a machine they are interpreted, and recorded.

    Attributes
    ----------
    records : list of Record
        A launch each, in order.
    """

    def __init__(
        self,
        machine: Machine | None,
        compiler: Compiler | None,
        orders: Sequence[Order],
        modules: str = "risfast.kernels",
    ) -> None:
        self.machine, self.compiler, self.orders = machine, compiler, tuple(orders)
        self.records: list[Record] = []
        self._modules = modules  # launches from other modules stay in the interpreter

    def __call__(self, launch: Launch, interpret: Callable[[], None]) -> None:
        """Execute a launch in every order; its memory holds what the first made of it."""
        if not launch.module.startswith(self._modules):
            interpret()
            return
        record = Record(
            launch.kernel,
            {name: value for name, value in launch.arguments.items() if not isinstance(value, torch.Tensor)},
            {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in launch.tensors().items()},
            launch.grid,
        )
        self.records.append(record)
        if self.compiler is None or self.machine is None:
            interpret()
            return
        record.binary = self.compiler.compile(launch)
        memory = launch.memory()
        if sum(part.nbytes for part in memory) > MOST_COPIED_BYTES:
            self._run(launch, record, self.orders[0])
            return
        before = [part.copy() for part in memory]
        result: list[np.ndarray] = []
        for order in self._orders_for(launch):
            for part, values in zip(memory, before, strict=True):
                part[:] = values
            self._run(launch, record, order)
            if not result:
                result = [part.copy() for part in memory]
            elif different := _differences(memory, result):
                raise MachineFaultError(f"{launch.kernel}: {different} bytes depend on the order, {order}")
        for part, values in zip(memory, result, strict=True):
            part[:] = values

    def _orders_for(self, launch: Launch) -> list[Order]:
        if launch.kernel in DEPENDS_ON_ORDER_OF_PROGRAMS:
            return [replace(order, programs_reversed=False) for order in self.orders]
        return list(self.orders)

    def _run(self, launch: Launch, record: Record, order: Order) -> None:
        assert self.machine is not None
        assert record.binary is not None
        start = time.perf_counter()
        outcome = self.machine.run(record.binary, launch, order)
        record.seconds.append(time.perf_counter() - start)
        record.outcomes.append(outcome)
        if outcome.errors:
            raise MachineFaultError(f"{launch.kernel}, {order}: {outcome.errors}\n{outcome.message}")


def _differences(memory: list[np.ndarray], result: list[np.ndarray]) -> int:
    return sum(int((part != values).sum()) for part, values in zip(memory, result, strict=True))


@contextmanager
def execute_launches(name: str, folder: Path, orders: Sequence[Order]) -> Iterator[Executor]:
    """Every launch of a kernel of risfast is executed as long as this lasts, or with "interpreter" recorded."""
    if name == INTERPRETER:
        executor = Executor(None, None, orders)
        with captured(executor):
            yield executor
        return
    machine = machine_of(name, folder)
    with Compiler(name, folder / "triton") as compiler:
        executor = Executor(machine, compiler, orders)
        with captured(executor):
            yield executor


def machine_of(name: str, folder: Path) -> Machine:
    """The machine of a target."""
    if name == "gfx942":
        from tests.machine.gfx942.machine import Machine as Gfx942

        return Gfx942(folder)
    if name == "sm_80":
        from tests.machine.sm80.machine import Machine as Sm80

        return Sm80(folder)
    raise ValueError(f"no machine for {name}")
