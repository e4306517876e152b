"""Shared test set-up."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode adds nothing to sys.path; the oracles live beside the tests and are imported by name.
sys.path.insert(0, str(Path(__file__).parent))
