"""Each check of the sm_80 machine sees the fault that is planted in a compiled kernel, and nothing where there is none.

Faults in hand-written PTX are in test_machine_sm80_warps.py.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.machine.building import compiler

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: its kernels are optional", allow_module_level=True)
if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)

from tests.machine.compiling import Compiler, resources
from tests.machine.outcome import ALL_ORDERS, BACKWARD, FORWARD
from tests.machine.planted import (
    LAUNCHES,
    RACE,
    SOURCES,
    UNINITIALISED,
    WRITES,
    exchange_launch,
    outputs,
    product_launch,
    sums_launch,
    transpose_launch,
)
from tests.machine.ptx_texts import assembler_says
from tests.machine.sm80.machine import Machine

IN_FLIGHT = "copy not waited for"
RACES = {RACE, WRITES, UNINITIALISED, IN_FLIGHT, "race of lanes"}
by_name = pytest.mark.parametrize("make", LAUNCHES, ids=lambda make: make.__name__.removesuffix("_launch"))


@pytest.fixture(scope="module")
def machine(folder):
    return Machine(folder)


@pytest.fixture(scope="module")
def compile_with(folder):
    """A function that compiles a launch, with faults if any."""
    with Compiler("sm_80", folder / "triton") as one:
        yield one.compile


@by_name
def test_kernels_without_a_fault_are_clean(machine, compile_with, make):
    launch = make()
    binary = compile_with(launch)
    results = []
    for order in ALL_ORDERS:
        outcome = machine.run(binary, launch, order)
        assert not outcome.errors, outcome.message
        results.append(outputs(launch))
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_small_kernels_compute_what_they_say(machine, compile_with):
    launches = [transpose_launch(), exchange_launch(), product_launch(), sums_launch()]
    for launch in launches:
        machine.run(compile_with(launch), launch, FORWARD)
    transposed, exchanged, multiplied, summed = (launch.tensors() for launch in launches)
    assert torch.equal(transposed["y_ptr"], 2 * transposed["x_ptr"].T)
    assert torch.equal(exchanged["y_ptr"], exchanged["x_ptr"].flip(0))
    x, w = multiplied["x_ptr"].double(), multiplied["w_ptr"].double()
    # tf32 keeps 11 bits of each factor.
    assert ((multiplied["y_ptr"] - x @ w).abs() <= 2.0**-10 * (x.abs() @ w.abs())).all()
    x = summed["x_ptr"].double()
    torch.testing.assert_close(summed["y_ptr"].double(), x - x.sum(1, keepdim=True), rtol=1e-5, atol=0)


@by_name
def test_the_assembler_counts_what_the_binary_needs(compile_with, make):
    binary = compile_with(make())
    used = resources(binary)
    assert f"Used {used['registers']} registers" in assembler_says(binary.text)
    assert used["spills"] == 0


@pytest.mark.parametrize("name", SOURCES)
def test_a_fault_in_the_source_is_reported(machine, compile_with, name):
    make, edit, fault = SOURCES[name]
    launch = make()
    binary = compile_with(launch, edit)
    for order in (FORWARD, BACKWARD):
        assert fault in machine.run(binary, launch, order).errors


def executed_without(machine, binary, make, number, order):
    """The errors of a fresh launch without one instruction, and what it made."""
    launch, broken = make(), machine.program(binary).without(number)
    return machine.run_program(broken, binary, launch, order).errors, outputs(launch)


@pytest.mark.parametrize("make", [transpose_launch, sums_launch, exchange_launch, product_launch])
def test_a_barrier_without_which_the_result_changes_is_missed(machine, compile_with, make):
    launch = make()
    binary = compile_with(launch)
    machine.run(binary, launch, FORWARD)
    right = outputs(launch)
    changing = 0
    for number in machine.program(binary).index("bar.sync"):
        for order in ALL_ORDERS:
            errors, result = executed_without(machine, binary, make, number, order)
            if not torch.equal(result, right):
                changing += 1
                assert RACES & set(errors), (number, order)
    assert changing > 0


@pytest.mark.parametrize("make", [transpose_launch, sums_launch])
def test_shared_memory_read_before_it_is_written_is_reported(machine, compile_with, make):
    binary = compile_with(make())
    first = machine.program(binary).index("st.shared")[0]
    errors, _ = executed_without(machine, binary, make, first, FORWARD)
    assert UNINITIALISED in errors


def test_each_wait_for_copies_that_is_left_out_is_reported(machine, compile_with):
    binary = compile_with(product_launch())
    waits = machine.program(binary).index("cp.async.wait_group")
    for number in waits:
        errors, _ = executed_without(machine, binary, product_launch, number, FORWARD)
        assert errors or number == waits[-1]  # after the loop nothing is read any more
    errors, _ = executed_without(machine, binary, product_launch, waits[0], FORWARD)
    assert IN_FLIGHT in errors
