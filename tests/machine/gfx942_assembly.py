"""Short assembly texts executed on the gfx942 machine: what the tests of opcodes and checks are written in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.machine.capture import Launch
from tests.machine.compiling import Binary
from tests.machine.gfx942.machine import Machine
from tests.machine.outcome import FORWARD, Order, Outcome

# The address of every operand goes to a pair of scalars from s4 on; v0 is the number of the lane in its program, v1
# four times and v2 eight times that.
PROLOGUE = "v_lshlrev_b32_e32 v1, 2, v0\nv_lshlrev_b32_e32 v2, 3, v0\n"
LANES = 64


def binary_of(body: str, operands: int, *, waves: int = 1, shared: int = 0) -> Binary:
    """A kernel of this body, which takes ``operands`` addresses."""
    loads = "".join(f"s_load_dwordx2 s[{4 + 2 * k}:{5 + 2 * k}], s[0:1], {8 * k}\n" for k in range(operands))
    descriptor = f".amdhsa_kernarg_size {8 * operands}\n.amdhsa_user_sgpr_count 2\n"
    descriptor += ".amdhsa_system_sgpr_workgroup_id_x 1\n"
    text = f"kernel:\n{loads}s_waitcnt lgkmcnt(0)\n{PROLOGUE}{body}\ns_endpgm\n.Lfunc_end0:\n{descriptor}"
    signature = {f"operand_{k}": "*fp32" for k in range(operands)}
    return Binary("gfx942", text, "kernel", text, b"", signature, waves, shared)


def execute(
    folder: Path,
    body: str,
    *operands: torch.Tensor,
    waves: int = 1,
    shared: int = 0,
    programs: int = 1,
    order: Order = FORWARD,
) -> Outcome:
    """Run a body on operands; their addresses are in s[4:5], s[6:7] and so on, the program's number in s2."""
    arguments: dict[str, Any] = {f"operand_{k}": operand for k, operand in enumerate(operands)}
    launch = Launch("tests", "kernel", "", arguments, {}, (programs, 1, 1))
    binary = binary_of(body, len(operands), waves=waves, shared=shared)
    return Machine(folder).run(binary, launch, order)


# --- Numpy's arrays as operands: a number for each lane of four waves -------------------------------------------------

WAVES = 4
COUNT = WAVES * LANES
NUMPY = {"u32": np.uint32, "i32": np.int32, "f32": np.float32, "u64": np.uint64, "i64": np.int64, "f64": np.float64}
UNSIGNED = {4: np.uint32, 8: np.uint64}
FLOAT_EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, -2.5, math.inf, -math.inf, math.nan]
EDGES = {
    "f32": np.array(
        [*FLOAT_EDGES, 1e-45, -1.1754942e-38, 1.1754944e-38, 3.4028235e38, 16777217.0, 2147483648.0], np.float32
    ),
    "f64": np.array(
        [*FLOAT_EDGES, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 4294967295.5, -2147483649.0]
    ),
    "u32": np.array([0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFF, 0x8000, 0x12345678], np.uint32),
    "u64": np.array([0, 1, 63, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF], np.uint64),
}
EDGES["i32"], EDGES["i64"] = EDGES["u32"].view(np.int32), EDGES["u64"].view(np.int64)


def operands(kinds, seed=0):
    """A column of numbers for each type: every pair of edges as far as there is room, then anything."""
    rng = np.random.default_rng(seed)
    found = []
    for place, kind in enumerate(kinds):
        dtype, edges = NUMPY[kind], EDGES[kind]
        if kind[0] == "f":
            values = (rng.standard_normal(COUNT) * 2.0 ** rng.integers(-40, 40, COUNT)).astype(dtype)
        else:
            values = rng.integers(0, 1 << 63, COUNT, np.uint64).astype(UNSIGNED[dtype().nbytes]).view(dtype)
            values[COUNT // 2 :] >>= dtype(3 * place)  # smaller ones too
        head = min(COUNT // 2, len(edges) ** min(len(kinds), 2))
        values[:head] = edges[np.arange(head) // len(edges) ** place % len(edges)]
        found.append(values)
    return found


def tensor(values):
    """The bytes of an array, as an operand."""
    return torch.from_numpy(np.ascontiguousarray(values).view(np.uint8).copy())


def registers(number, kind):
    return f"v[{number}:{number + 1}]" if NUMPY[kind]().nbytes == 8 else f"v{number}"


def width_and_address(kind):
    return ("dwordx2", "v2") if NUMPY[kind]().nbytes == 8 else ("dword", "v1")


def load(number, kind, scalars):
    width, address = width_and_address(kind)
    return f"global_load_{width} {registers(number, kind)}, {address}, {pair(scalars, 64)}\n"


def store(number, kind, scalars):
    width, address = width_and_address(kind)
    return f"global_store_{width} {address}, {registers(number, kind)}, {pair(scalars, 64)}\n"


def run(folder, instructions, sources, results, given):
    """Sources in v10, v12, v14, ..., results from v20, v22, ...; returns an array for each result."""
    out = [tensor(np.zeros(COUNT, NUMPY[kind])) for kind in results]
    body = "".join(load(10 + 2 * k, kind, 4 + 2 * k) for k, kind in enumerate(sources))
    body += f"""
        s_waitcnt vmcnt(0)
        {instructions}
    """
    first = 4 + 2 * len(sources)
    body += "".join(store(20 + 2 * k, kind, first + 2 * k) for k, kind in enumerate(results))
    outcome = execute(folder, body, *map(tensor, given), *out, waves=WAVES)
    assert not outcome.faults, outcome.message
    return [values.numpy().view(NUMPY[kind]) for values, kind in zip(out, results, strict=True)]


def assert_same(actual, expected, ulps=0):
    """Equal to the bit, -0 unlike 0, any NaN like any other; or within a few units in the last place."""
    expected = np.asarray(expected).astype(actual.dtype)
    if actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    there = ~np.isnan(actual)
    np.testing.assert_array_equal(np.signbit(actual[there]), np.signbit(expected[there]))
    if ulps:
        np.testing.assert_array_max_ulp(actual[there], expected[there], ulps)
    else:
        np.testing.assert_array_equal(actual[there], expected[there])


def pair(first, bits):
    return f"s[{first}:{first + 1}]" if bits == 64 else f"s{first}"


def span(first, count):
    return f"v[{first}:{first + count - 1}]" if count > 1 else f"v{first}"
