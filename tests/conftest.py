"""Shared test set-up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# pytest's importlib mode adds nothing to sys.path. The oracles, what tests share (helpers/), and tests whose cases
# other tests take up are imported by name.
TESTS = Path(__file__).parent
sys.path[:0] = [
    str(TESTS),
    str(TESTS / "helpers"),
    *(str(p) for p in sorted({t.parent for t in TESTS.glob("*/test_*.py")})),
]

# Files of `pytest -m quick`: a first look in minutes, without kernels, training and evaluation.
QUICK = {
    *("test_geometry.py", "test_setup.py", "test_sources.py", "test_steering.py", "test_logging.py", "test_losses.py"),
    *("test_io_samples.py", "test_io_audio.py", "test_io_export.py", "test_io_setups.py", "test_reference.py"),
    *("test_matching.py", "test_metrics.py", "test_significance.py", "test_plots.py", "test_views.py"),
    *("test_cli.py", "test_imports.py", "test_docstrings.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests."""
    for item in items:
        if item.path.name in QUICK and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)
