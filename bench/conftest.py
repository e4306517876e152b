"""Set-up of the benchmarks: threads, clock, the registry that ratios come from, the closing table and its picture."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bench.contest import Registry

# pytest's importlib mode adds nothing to sys.path; appended, so that an installed risfast comes first.
sys.path.append(str(Path(__file__).resolve().parents[1]))

PICTURE = Path("risfast-benchmark.png")
_REGISTRY: pytest.StashKey[Registry] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Hold the threads before the files under test import torch and numba, which read the environment once."""
    from bench.measure import limit_threads

    limit_threads(int(os.environ.get("RISFAST_BENCH_THREADS", "1")))
    from bench.contest import Registry

    config.stash[_REGISTRY] = Registry()
    config.option.benchmark_columns = getattr(config.option, "benchmark_columns", None) or ["min", "median", "rounds"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as full unless it is asked for; take processor time where the work is on the CPU."""
    if "full" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: item.path.name != "bench_rows.py")  # the operators first
    for item in items:
        if item.path.name != "bench_gpu.py":
            marker = item.get_closest_marker("benchmark")
            options = {"timer": time.process_time, **(marker.kwargs if marker else {})}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


@pytest.fixture
def registry(request: pytest.FixtureRequest) -> Registry:
    """What was timed in this session."""
    return request.config.stash[_REGISTRY]


@pytest.fixture
def contest(benchmark: Any, registry: Registry) -> Callable[..., Any]:
    """:func:`bench.contest.enter` with the benchmark of this test and the registry of this session."""
    from bench.contest import enter

    return lambda *args, **kwargs: enter(benchmark, registry, *args, **kwargs)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of the session and draw it."""
    import torch

    from bench.contest import picture, summary_lines
    from bench.measure import cpu_model

    entries = config.stash[_REGISTRY]
    if not entries.entries:
        return
    terminalreporter.section("a scene: processor time, peak memory, worst error against float64, ratio")
    for line in summary_lines(entries):
        terminalreporter.write_line(line)
    if not torch.cuda.is_available():
        terminalreporter.write_line("GPU: none here; `python bench/gpu.py` measures on one")
    picture(entries, f"risfast beside its peers, a scene, {cpu_model()}, {torch.get_num_threads()} thread(s)", PICTURE)
    terminalreporter.write_line(f"picture: {PICTURE.resolve()}")
