"""What the tests of machines share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # this package by its name, and bench


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where machines are built, once a session, and what is compiled is kept."""
    return tmp_path_factory.mktemp("machine")
