"""Shared test set-up."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode adds nothing to sys.path. The oracles, what tests share (helpers/), and tests whose cases
# other tests take up are imported by name.
TESTS = Path(__file__).parent
sys.path[:0] = [
    str(TESTS),
    str(TESTS / "helpers"),
    *(str(p) for p in sorted({t.parent for t in TESTS.glob("*/test_*.py")})),
]
