"""Inverses, adjoints, peaks and refinement as PTX of sm_80: every shipped configuration, executed."""

from __future__ import annotations

import pytest

from tests.machine.checks_of_shipped import ShippedConfigurations

# The same kernels run as gfx942's code with the other tests; minutes more are for a command of their own.
pytestmark = pytest.mark.slow


class TestPoints(ShippedConfigurations):
    machine, file, most_registers = "sm_80", "shipped_points.py", 255
