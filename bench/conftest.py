"""Set-up of the benchmarks: threads, the registry that ratios come from, and the closing table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bench.contest import Registry

# pytest's importlib mode adds nothing to sys.path; appended, so that an installed risfast comes first.
sys.path.append(str(Path(__file__).resolve().parents[1]))

_REGISTRY: pytest.StashKey[Registry] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Hold the threads before the files under test import torch and numba, which read the environment once."""
    from bench.measure import limit_threads

    limit_threads(int(os.environ.get("RISFAST_BENCH_THREADS", "1")))
    from bench.contest import Registry

    config.stash[_REGISTRY] = Registry()


@pytest.fixture
def contest(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """:func:`bench.contest.enter` with the benchmark of this test and the registry of this session."""
    from bench.contest import enter

    registry = request.config.stash[_REGISTRY]
    return lambda *args, **kwargs: enter(benchmark, registry, *args, **kwargs)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of the session."""
    from bench.contest import summary_lines

    lines = summary_lines(config.stash[_REGISTRY])
    if lines:
        terminalreporter.section("risfast beside its peers: time, speed, peak memory, error at peaks / elsewhere")
        for line in lines:
            terminalreporter.write_line(line)
