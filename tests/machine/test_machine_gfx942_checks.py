"""Each check of the gfx942 machine sees the fault that is planted for it, and nothing where there is none.

Small kernels are compiled as they are and with a fault in their source or in their machine code; so are shipped ones.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.machine.building import compiler
from tests.machine.compiling import Compiler, Edit, KernelCompilationError
from tests.machine.gfx942.machine import Machine
from tests.machine.gfx942_assembly import LANES, execute
from tests.machine.outcome import ALL_ORDERS, BACKWARD, BENIGN, FORWARD
from tests.machine.planted import (
    INCOMPLETE,
    LAUNCHES,
    RACE,
    READ,
    SHARED_BYTE,
    SOURCES,
    UNINITIALISED,
    WRITE,
    WRITES,
    copy_launch,
    exchange_launch,
    outputs,
    sums_launch,
    transpose_launch,
)

if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)
triton_is_installed = importlib.util.find_spec("triton") is not None
compiled = pytest.mark.skipif(not triton_is_installed, reason="Triton is not installed: its kernels are optional")


@pytest.fixture(scope="module")
def machine(folder):
    return Machine(folder)


@pytest.fixture(scope="module")
def compile_with(folder):
    """A function that compiles a launch, with faults if any."""
    with Compiler("gfx942", folder / "triton") as one:
        yield one.compile


def assert_clean(machine, binary, launch):
    """No fault in any order, and the same result."""
    results = []
    for order in ALL_ORDERS:
        outcome = machine.run(binary, launch, order)
        assert not outcome.errors, outcome.message
        results.append(outputs(launch))
    assert all(torch.equal(result, results[0]) for result in results)


by_name = pytest.mark.parametrize("make", LAUNCHES, ids=lambda make: make.__name__.removesuffix("_launch"))


@compiled
@by_name
def test_kernels_without_a_fault_are_clean(machine, compile_with, make):
    launch = make()
    assert_clean(machine, compile_with(launch), launch)


@compiled
def test_the_small_kernels_compute_what_they_say(machine, compile_with):
    launches = [copy_launch(), transpose_launch(), sums_launch(), exchange_launch()]
    for launch in launches:
        machine.run(compile_with(launch), launch, FORWARD)
    copied, transposed, summed, exchanged = (launch.tensors() for launch in launches)
    assert torch.equal(copied["y_ptr"], copied["x_ptr"] + 1)
    assert torch.equal(transposed["y_ptr"], 2 * transposed["x_ptr"].T)
    x = summed["x_ptr"].double()
    np.testing.assert_allclose(summed["y_ptr"], x - x.sum(1, keepdim=True), rtol=1e-5)
    assert torch.equal(exchanged["y_ptr"], exchanged["x_ptr"].flip(0))


# --- Faults in the source ---------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("name", SOURCES)
def test_a_fault_in_the_source_is_reported(machine, compile_with, name):
    make, edit, fault = SOURCES[name]
    launch = make()
    binary = compile_with(launch, edit)
    for order in (FORWARD, BACKWARD):
        assert fault in machine.run(binary, launch, order).errors


@compiled
def test_a_fault_that_cannot_be_planted_raises(compile_with):
    with pytest.raises(KernelCompilationError, match="no 'mask=never'"):
        compile_with(copy_launch(), Edit("copy_kernel", "mask=never", ""))


# --- Faults in the machine code ---------------------------------------------------------------------------------------


def without(binary, pattern, place=None):
    """The binary whose lines of this pattern, or the one at ``place`` of them, do nothing."""
    count = Counter()

    def taken_out(match):
        count["lines"] += 1
        return match[0] if place is not None and count["lines"] - 1 != place else "\ts_nop 0"

    text = re.sub(pattern, taken_out, binary.text, flags=re.MULTILINE)
    assert count["lines"] > (place or 0), f"no line {pattern}"
    return replace(binary, text=text, hash=f"{binary.hash} without {pattern} {place}")


BARRIER, LDS_WRITE = r"^\ts_barrier.*$", r"^\tds_write.*$"


@compiled
@pytest.mark.parametrize("make", [transpose_launch, sums_launch, exchange_launch])
def test_a_barrier_without_which_the_result_changes_is_missed(machine, compile_with, make):
    launch = make()
    binary = compile_with(launch)
    machine.run(binary, launch, FORWARD)
    right = outputs(launch)
    changing = 0
    for place in range(len(re.findall(BARRIER, binary.text, flags=re.MULTILINE))):
        broken = without(binary, BARRIER, place)
        for order in ALL_ORDERS:
            launch = make()  # nothing left in memory of what was right
            errors = machine.run(broken, launch, order).errors
            if not torch.equal(outputs(launch), right):
                changing += 1
                assert {RACE, WRITES, UNINITIALISED, INCOMPLETE} & set(errors), (place, order)
    assert changing > 0


@compiled
@pytest.mark.parametrize("make", [transpose_launch, sums_launch])
def test_shared_memory_read_before_it_is_written_is_reported(machine, compile_with, make):
    launch = make()
    assert UNINITIALISED in machine.run(without(compile_with(launch), LDS_WRITE, 0), launch, FORWARD).errors


@compiled
@pytest.mark.parametrize(
    ("make", "counter"), [(exchange_launch, "vmcnt"), (transpose_launch, "lgkmcnt"), (sums_launch, "lgkmcnt")]
)
def test_waits_left_out_before_another_wave_reads_are_reported(machine, compile_with, make, counter):
    launch = make()
    broken = without(compile_with(launch), rf"^\ts_waitcnt .*{counter}.*$")
    assert INCOMPLETE in machine.run(broken, launch, FORWARD).errors


# --- The checks themselves, in assembly -------------------------------------------------------------------------------


def floats(count):
    return torch.zeros(count)


def test_bounds_are_those_of_the_view_by_byte(folder):
    # 64 lanes read four bytes each: 255 bytes are too few, one byte before the start is outside as well.
    bytes_ = torch.zeros(300, dtype=torch.uint8)
    load = "global_load_dword v5, v1, s[4:5]"
    assert execute(folder, load, bytes_[:256]).errors == {}
    assert execute(folder, load, bytes_[:255]).errors == {READ: 1}
    assert execute(folder, f"{load} offset:-1", bytes_[:256]).errors == {READ: 1}
    store = """
        v_mov_b32_e32 v5, 0
        global_store_dword v1, v5, s[4:5]
    """
    assert execute(folder, store, bytes_[:254]).errors == {WRITE: 1}


def test_lanes_that_are_off_touch_nothing(folder):
    masked = """
        s_mov_b64 exec, 15
        global_load_dword v5, v1, s[4:5]
    """
    assert execute(folder, masked, floats(4)).errors == {}
    assert execute(folder, masked, floats(3)).errors == {READ: 1}


def test_the_message_says_where(folder):
    outcome = execute(folder, "global_load_dword v5, v1, s[4:5]", floats(63))
    assert re.search(r"read out of bounds: global memory, line 6, program 0, wave 0, lane 63", outcome.message)


def test_bounds_and_initialisation_of_shared_memory(folder):
    write, read = "v_mov_b32_e32 v5, 0\nds_write_b32 v1, v5\n", "ds_read_b32 v6, v1"
    assert execute(folder, f"{write}{read}", shared=256).errors == {}
    assert execute(folder, write, shared=252).errors == {WRITE: 1}
    assert execute(folder, f"{read}", shared=256).errors == {UNINITIALISED: LANES}
    assert execute(folder, f"{write}{read} offset:2", shared=258).errors == {UNINITIALISED: 1}


SAME_PLACE = "v_and_b32_e32 v3, 63, v0\nv_lshlrev_b32_e32 v3, 2, v3\n"  # of every wave


@pytest.mark.parametrize("order", ALL_ORDERS, ids=lambda order: order.waves)
def test_waves_need_a_barrier_between_a_write_and_a_read(folder, order):
    def errors(wait, barrier):
        """The first wave writes, the second reads."""
        body = f"""
            {SAME_PLACE}
            v_cmp_gt_u32_e64 s[20:21], 64, v0
            s_and_saveexec_b64 s[22:23], s[20:21]
            ds_write_b32 v3, v0
            {wait}
            s_mov_b64 exec, -1
            {barrier}
            s_andn2_b64 exec, exec, s[20:21]
            ds_read_b32 v6, v3
        """
        return execute(folder, body, waves=2, shared=256, order=order).errors

    assert errors("s_waitcnt lgkmcnt(0)", "s_barrier") == {}
    assert errors("s_nop 0", "s_barrier") == {INCOMPLETE: 256}
    # With the last wave first, memory is read before it is written.
    assert set(errors("s_waitcnt lgkmcnt(0)", "s_nop 0")) & {RACE, UNINITIALISED}


@pytest.mark.parametrize(("value", "errors"), [("v0", {WRITES: 64}), ("v3", {})])
def test_waves_may_only_write_equal_values_to_one_place(folder, value, errors):
    body = f"{SAME_PLACE}global_store_dword v3, {value}, s[4:5]"
    outcome = execute(folder, body, floats(64), waves=2)
    assert outcome.errors == errors
    assert BENIGN in outcome.faults  # some bytes of different numbers are equal


def test_waits_count_back_to_the_write(folder):
    # Two stores in flight: vmcnt(1) waits for the first alone.
    body = """
        v_xor_b32_e32 v3, 64, v0
        v_lshlrev_b32_e32 v3, 2, v3
        global_store_dword v1, v0, s[4:5]
        global_store_dword v1, v0, s[6:7]
        s_waitcnt vmcnt({})
        s_barrier
        global_load_dword v6, v3, s[{}]
    """
    operands = floats(128), floats(128)
    assert execute(folder, body.format(1, "4:5"), *operands, waves=2).errors == {}
    assert execute(folder, body.format(1, "6:7"), *operands, waves=2).errors == {INCOMPLETE: 512}
    assert execute(folder, body.format(0, "6:7"), *operands, waves=2).errors == {}
    assert execute(folder, body.format(2, "4:5"), *operands, waves=2).errors == {INCOMPLETE: 512}


def test_programs_may_read_the_same_but_not_write_what_another_touches(folder):
    read, write = "global_load_dword v5, v1, s[4:5]\n", "v_add_u32_e32 v6, s2, v0\nglobal_store_dword v1, v6, s[4:5]\n"
    assert execute(folder, read, floats(64), programs=3).errors == {}
    assert SHARED_BYTE in execute(folder, write, floats(64), programs=2).errors
    assert (
        SHARED_BYTE
        in execute(
            folder, f"s_cmp_eq_u32 s2, 0\ns_cbranch_scc1 .LBB0_1\n{read}.LBB0_1:\n{write}", floats(64), programs=2
        ).errors
    )
    atomic = """
        v_mov_b32_e32 v3, 0
        global_atomic_add v3, v0, s[4:5]
    """
    assert execute(folder, atomic, floats(64), programs=3).errors == {}


def test_garbage_differs_between_orders(folder):
    out = [torch.zeros(64, dtype=torch.int32) for _ in range(2)]
    for values, order in zip(out, (FORWARD, BACKWARD), strict=True):
        execute(folder, "global_store_dword v1, v77, s[4:5]", values, order=order)
    assert not torch.equal(*out)


@compiled
def test_a_barrier_of_triton_does_not_wait_for_stores_to_global_memory(machine, compile_with):
    # tl.debug_barrier() waits for shared memory alone on this target: a kernel whose waves exchange numbers through
    # global memory needs a wait of its own before it.
    launch = exchange_launch()
    wait = Edit("exchange_kernel", "tl.store(y_ptr + i, tl.load(scratch_ptr + i, volatile=True))", "pass")
    assert INCOMPLETE in machine.run(compile_with(launch, wait), launch, FORWARD).errors
