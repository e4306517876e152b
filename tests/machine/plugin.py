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

ORDERS = ("one", "two", "all")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("machine")
    group.addoption("--machine", choices=["gfx942", "sm_80"], help="execute kernels as machine code of this target")
    group.addoption("--orders", choices=ORDERS, default="two", help="orders of waves and programs (default: two)")
    group.addoption("--machine-log", type=Path, help="append a line of JSON for every launch")


def pytest_configure(config: pytest.Config) -> None:
    """Start the machine and its compiler, for the whole run."""
    name = config.getoption("--machine")
    if name is None:
        return
    if "triton" in sys.modules:
        raise pytest.UsageError("Triton is imported already: --machine needs its interpreter from the start")
    if compiler() is None:
        raise pytest.UsageError("--machine needs a C compiler: set CC, or install gcc or clang")
    prepare_process(name)
    stack = ExitStack()
    config.add_cleanup(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    executor = stack.enter_context(executing(name, folder, config.getoption("--orders")))
    if log := config.getoption("--machine-log"):
        config.pluginmanager.register(_Log(executor, log), "machine-log")


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
    """Writes the launches of every test."""

    def __init__(self, executor: Any, path: Path) -> None:
        self._executor, self._path = executor, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After each phase of a test, its launches."""
        records = self._executor.records
        with self._path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps({"test": report.nodeid, "launch": record.summary()}) + "\n")
            if report.when == "call":
                file.write(json.dumps({"test": report.nodeid, "result": report.outcome}) + "\n")
        records.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> object:
    """Keep the shipped tiles where tests take larger ones for the interpreter's sake."""
    if request.config.getoption("--machine") is None or fixturedef.argname != "large_tiles":
        return None
    fixturedef.cached_result = (None, fixturedef.cache_key(request), None)
    return True
