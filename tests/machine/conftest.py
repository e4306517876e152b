"""What the tests of machines share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where machines are built, once a session, and what is compiled is kept."""
    return tmp_path_factory.mktemp("machine")
