"""pytest plugin: launches of kernels in any test run as machine code, and the test judges what that made.

``python -m pytest -p tests.machine.plugin --machine gfx942 tests/kernels`` executes instead of interpreting; without
``--machine`` nothing changes. It needs a process of its own: the interpreter, into which launches are caught, is asked
for before Triton is imported, and torch says that it is AMD's or NVIDIA's, as default precisions depend on it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.machine.building import compiler

# "interpreter" executes nothing: it only keeps the log.
MACHINES = ("gfx942", "sm_80", "interpreter")
ORDERS = ("one", "two", "all")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("machine")
    group.addoption("--machine", choices=MACHINES, help="execute kernels as machine code of this target")
    group.addoption("--orders", choices=ORDERS, default="two", help="orders of waves and programs (default: two)")
    group.addoption("--machine-log", type=Path, help="append a line of JSON for every test: result, error, launches")


def pytest_configure(config: pytest.Config) -> None:
    """Start the machine and its compiler, for the whole run."""
    name = config.getoption("--machine")
    if name is None:
        return
    if "triton" in sys.modules:
        raise pytest.UsageError("Triton is imported already: --machine needs its interpreter from the start")
    if name != "interpreter" and compiler() is None:
        raise pytest.UsageError("--machine needs a C compiler: set CC, or install gcc or clang")
    prepare_process(name)
    stack = ExitStack()
    config.add_cleanup(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    executor = stack.enter_context(executing(name, folder, config.getoption("--orders")))
    if log := config.getoption("--machine-log"):
        config.pluginmanager.register(_Log(executor, name, log), "machine-log")


def prepare_process(name: str) -> None:
    """Ask for Triton's interpreter, and make torch that of the target's vendor."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if name == "gfx942":
        torch.version.hip = "6.4"


def executing(name: str, folder: Path, orders: str) -> Any:
    """A context in which every launch is executed; it gives the executor."""
    from tests.machine.execution import execute_launches
    from tests.machine.outcome import ALL_ORDERS, FORWARD, TWO_ORDERS

    return execute_launches(name, folder, {"one": (FORWARD,), "two": TWO_ORDERS, "all": ALL_ORDERS}[orders])


class _Log:
    """Writes a line for every test: its result, the largest error that its judge saw, and its launches."""

    def __init__(self, executor: Any, machine: str, path: Path) -> None:
        self._executor, self._machine, self._path = executor, machine, path
        self._result = ""
        self._looked_at: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the worst of a test's phases, and write after the last."""
        if report.when == "setup" or report.outcome != "passed":
            self._result = report.outcome
        if report.when != "teardown":
            return
        row = {
            "test": report.nodeid,
            "result": self._result,
            "properties": dict(report.user_properties),
            "launches": [self._summary(record) for record in self._executor.records],
        }
        self._executor.records.clear()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _summary(self, record: Any) -> dict[str, Any]:
        from tests.machine.shipped import cases_of

        summary = record.summary()
        found = self._disagreements(record.binary) if record.binary is not None else []
        return summary | {"cases": cases_of(summary, self._machine), "disagreements": found}

    def _disagreements(self, binary: Any) -> list[str]:
        """Where the executed text is not what the code object holds; looked at once a binary."""
        from tests.machine.gfx942.disassembly import disagreements, disassembler

        if binary.hash not in self._looked_at:
            tool = disassembler() if self._machine == "gfx942" else None
            self._looked_at[binary.hash] = disagreements(binary, tool) if tool is not None else []
        return self._looked_at[binary.hash]


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> object:
    """Keep the shipped tiles where tests take larger ones for the interpreter's sake."""
    if request.config.getoption("--machine") is None or fixturedef.argname != "large_tiles":
        return None
    fixturedef.cached_result = (None, fixturedef.cache_key(request), None)
    return True
