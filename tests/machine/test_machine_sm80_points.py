"""Inverses, synthesis, peaks, suppression, forms and Newton steps as PTX of sm_80: every shipped configuration.

The launches run in a process of their own (shipped_points.py under tests/machine/plugin.py), in two orders of waves and
programs, with garbage in registers and shared memory.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.machine.building import compiler
from tests.machine.shipped import cases_in, results, run_file

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: its kernels are optional", allow_module_level=True)
if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)

# The same kernels run as gfx942's code on every landing; two to four minutes more are for a command of their own.
pytestmark = pytest.mark.slow
FILE = "shipped_points.py"
every_case = pytest.mark.parametrize("case", cases_in(FILE), ids=lambda case: case.name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_file("sm_80", FILE, tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def found(run):
    return results(run[0])


def test_every_test_of_the_shipped_configurations_passes(run):
    rows, output = run
    assert rows
    assert not [row["test"] for row in rows if row["result"] == "failed"], output[-10000:]


@every_case
def test_the_machine_code_is_right(found, case):
    assert found[case.name].tests, "no launch of this case: see shipped.py"
    assert not found[case.name].failed


@every_case
def test_nothing_is_spilled(found, case):
    resources = found[case.name].resources
    assert resources["spills"] == 0
    assert 0 < resources["registers"] <= 255
