"""Maps as gfx942 machine code: every shipped configuration, executed."""

from __future__ import annotations

from tests.machine.checks_of_shipped import ShippedConfigurations


class TestMaps(ShippedConfigurations):
    machine, file, most_registers = "gfx942", "shipped_maps.py", 512
