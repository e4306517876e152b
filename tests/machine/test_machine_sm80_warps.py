"""Instructions of sm_80 in which lanes, warps or programs work together, and each check with a fault to see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.machine.building import compiler
from tests.machine.outcome import ALL_ORDERS, FORWARD
from tests.machine.ptx_texts import execute, kernel_text
from tests.machine.sm80.decode import UnknownInstructionError
from tests.machine.sm80.machine import Machine
from tests.machine.sm80.program import program

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler: set CC, or install gcc or clang")

LANES = np.arange(32)
# Address of this thread's number in p0 and p1: %rd20, %rd21, of 4 bytes each.
PLACES = "mad.wide.s32 %rd20, %r0, 4, %rd0;\nmad.wide.s32 %rd21, %r0, 4, %rd1;\n"
LOAD, STORE = PLACES + "ld.global.b32 %r1, [%rd21];\n", "st.global.b32 [%rd20], %r2;\n"


@pytest.fixture(scope="session")
def machine(folder):
    return Machine(folder)


def numbers(count=32, seed=0):
    return np.random.default_rng(seed).integers(-(2**31), 2**31, count).astype(np.int32)


def no_faults(outcome):
    assert not outcome.errors, outcome.message


def result_of(machine, body, *given, count=32, dtype=np.int32, **options):
    result = np.zeros(count, dtype)
    no_faults(execute(machine, body, result, *given, **options))
    return result


# ---- Lanes ----


def test_threads_and_programs_know_their_numbers(machine):
    body = "mov.u32 %r1, %nctaid.x;\nmad.lo.s32 %r2, %r1, 1000, %r0;\nmad.wide.s32 %rd20, %r0, 4, %rd0;\n" + STORE
    result = result_of(machine, body, count=192, threads=64, programs=3)
    np.testing.assert_array_equal(result, 3000 + np.arange(192))


def shuffled(kind, values, distance, width):
    """The rule of shfl for segments of ``width`` lanes: a lane that would read past its segment's end keeps its own."""
    first = LANES // width * width
    if kind == "up":
        source = LANES - distance
        return values[np.where(source >= first, source, LANES)]
    source = {"down": LANES + distance, "bfly": LANES ^ distance, "idx": first + distance % width}[kind]
    return values[np.where(source < first + width, source, LANES)]


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("distance", [1, 4, 13])
@pytest.mark.parametrize("kind", ["up", "down", "bfly", "idx"])
def test_shuffles(machine, kind, distance, width):
    values, clamp = numbers(), (32 - width) << 8 | (0 if kind == "up" else 31)
    body = f"{LOAD}shfl.sync.{kind}.b32 %r2, %r1, {distance}, {clamp}, -1;\n{STORE}"
    np.testing.assert_array_equal(result_of(machine, body, values), shuffled(kind, values, distance, width))


REDUCTIONS = {"add.s32": np.sum, "min.s32": np.min, "max.s32": np.max, "or.b32": np.bitwise_or.reduce}
REDUCTIONS |= {"and.b32": np.bitwise_and.reduce, "xor.b32": np.bitwise_xor.reduce}


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions_of_a_warp(machine, kind):
    values = numbers()
    body = f"{LOAD}mov.b32 %r3, -1;\nredux.sync.{kind} %r2, %r1, %r3;\n{STORE}"
    expected = REDUCTIONS[kind](values.astype(np.int32) if kind != "add.s32" else values.astype(np.int64))
    np.testing.assert_array_equal(result_of(machine, body, values), np.full(32, expected).astype(np.int32))


@pytest.mark.parametrize("chosen", [[], [3], [3, 17, 31], list(range(32))])
def test_votes(machine, chosen):
    values = np.isin(LANES, chosen).astype(np.int32)
    body = LOAD + "setp.ne.s32 %p1, %r1, 0;\nvote.sync.ballot.b32 %r2, %p1, -1;\n" + STORE
    np.testing.assert_array_equal(result_of(machine, body, values, dtype=np.uint32), sum(1 << k for k in chosen))
    for kind, expected in (("all", all(values)), ("any", any(values)), ("uni", len(set(values)) == 1)):
        body = f"{LOAD}setp.ne.s32 %p1, %r1, 0;\nvote.sync.{kind}.pred %p2, %p1, -1;\nselp.b32 %r2, 1, 0, %p2;\n{STORE}"
        np.testing.assert_array_equal(result_of(machine, body, values), int(expected))


def test_lanes_that_part_meet_again(machine):
    """Each lane adds 1 .. its number in a loop, odd lanes on another path; the shuffle needs all of them."""
    body = f"""{LOAD}mov.b32 %r2, 0;
and.b32 %r3, %r1, 1;
setp.eq.s32 %p1, %r3, 0;
@%p1 bra $EVEN;
neg.s32 %r2, %r1;
$EVEN:
setp.le.s32 %p2, %r1, 0;
@%p2 bra $DONE;
$LOOP:
add.s32 %r2, %r2, %r1;
sub.s32 %r1, %r1, 1;
setp.gt.s32 %p3, %r1, 0;
@%p3 bra $LOOP;
$DONE:
shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;
{STORE}"""
    sums = LANES * (LANES + 1) // 2 - LANES * (LANES % 2)
    np.testing.assert_array_equal(result_of(machine, body, LANES.astype(np.int32)), sums[LANES ^ 1])


def test_a_shuffle_of_a_part_of_a_warp_is_seen(machine):
    body = f"{LOAD}setp.gt.s32 %p1, %r1, 7;\n@%p1 bra $END;\nshfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;\n{STORE}$END:\n"
    assert execute(machine, body, np.zeros(32, np.int32), LANES.astype(np.int32)).errors == {"divergent lanes": 1}


def test_registers_hold_garbage_at_first(machine):
    body = "mad.wide.s32 %rd20, %r0, 4, %rd0;\nst.global.b32 [%rd20], %r40;\n"
    first = result_of(machine, body)
    second = result_of(machine, body, order=replace(FORWARD, poison=0x01234567))
    assert (first != second).all()
    assert len(set(first)) == 32


# ---- Moves and memory ----


def test_words_are_packed_and_unpacked(machine):
    body = f"""{LOAD}mov.b32 {{%h1, %h2}}, %r1;
mov.b32 %r3, {{%h2, %h1}};
mov.b64 %rd30, {{%r1, %r3}};
mov.b64 {{_, %r2}}, %rd30;
{STORE}"""
    values = numbers().view(np.uint32)
    result = result_of(machine, body, values, dtype=np.uint32)
    np.testing.assert_array_equal(result, values << 16 | values >> 16)


@pytest.mark.parametrize("width", [2, 4])
def test_vectors_are_loaded_and_stored(machine, width):
    registers = [f"%r{k}" for k in range(10, 10 + width)]
    forward, backward = ", ".join(registers), ", ".join(registers[::-1])
    body = f"""mad.wide.s32 %rd20, %r0, {4 * width}, %rd0;
mad.wide.s32 %rd21, %r0, {4 * width}, %rd1;
ld.global.v{width}.b32 {{{forward}}}, [%rd21];
st.global.v{width}.b32 [%rd20], {{{backward}}};
"""
    values = numbers(32 * width)
    result = result_of(machine, body, values, count=32 * width)
    np.testing.assert_array_equal(result.reshape(-1, width), values.reshape(-1, width)[:, ::-1])


def test_a_guard_keeps_lanes_from_memory(machine):
    body = f"{LOAD}setp.lt.s32 %p1, %r1, 0;\n@!%p1 st.global.b32 [%rd20], %r1;\n"
    values = numbers()
    np.testing.assert_array_equal(result_of(machine, body, values), np.where(values >= 0, values, 0))


ATOMICS = {
    "add.u32": lambda a, b: a + b,
    "min.s32": min,
    "max.s32": max,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "exch.b32": lambda a, b: b,
}


@pytest.mark.parametrize("kind", ATOMICS)
def test_atomics_return_what_was_there(machine, kind):
    values = np.random.default_rng(1).integers(0, 1000, 64).astype(np.int32)
    memory = np.array([77], np.int32)
    body = f"{LOAD}atom.global.gpu.acq_rel.{kind} %r2, [%rd2], %r1;\n{STORE}"
    old = result_of(machine, body, values, memory, count=64, threads=64)
    current = 77
    for value, seen in zip(values.tolist(), old.tolist(), strict=True):
        assert seen == current
        current = ATOMICS[kind](current, value)
    assert memory[0] == current


def test_atomics_of_64_bits_are_signed_where_they_say_so(machine):
    values, memory = np.random.default_rng(2).integers(-(2**40), 2**40, 32), np.array([5], np.int64)
    body = """mad.wide.s32 %rd20, %r0, 8, %rd1;
ld.global.b64 %rd21, [%rd20];
atom.global.gpu.acq_rel.min.s64 %rd22, [%rd0], %rd21;
"""
    no_faults(execute(machine, body, memory, values))
    assert memory[0] == values.min()


# ---- Matrices ----


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_loaded_from_shared_memory(machine, count, transposed):
    """Rows are stored in a scrambled order; lane t gets entries 2 (t mod 4), 2 (t mod 4) + 1 of row t / 4."""
    matrices = np.random.default_rng(4).integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    registers = ", ".join(f"%r{10 + k}" for k in range(count))
    stores = "\n".join(f"st.global.b32 [%rd20+{128 * k}], %r{10 + k};" for k in range(count))
    # Row r of all 32 lies at 16 (r xor 5).
    body = f"""{PLACES}
mad.wide.s32 %rd21, %r0, 16, %rd1;
ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd21];
xor.b32 %r5, %r0, 5;
shl.b32 %r6, %r5, 4;
mov.b32 %r7, global_smem;
add.s32 %r8, %r7, %r6;
st.shared.v4.b32 [%r8], {{%r1, %r2, %r3, %r4}};
bar.warp.sync -1;
ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{registers}}}, [%r8];
{stores}
"""
    result = result_of(machine, body, matrices, count=32 * count, dtype=np.uint32, shared_bytes=512)
    expected = matrices[:count].swapaxes(1, 2) if transposed else matrices[:count]
    np.testing.assert_array_equal(result, np.ascontiguousarray(expected).view(np.uint32).ravel())


def multiplied_tf32(machine, a, b, c):
    """A [16, 8] B [8, 8] + C [16, 8] by one mma.sync, the fragments as the manual's figures have them."""
    group, within = LANES // 4, LANES % 4
    fragments = [a[group + 8 * (k % 2), within + 4 * (k // 2)] for k in range(4)]
    fragments += [b[within + 4 * k, group] for k in range(2)]
    fragments += [c[group + 8 * (k // 2), 2 * within + k % 2] for k in range(4)]
    given = np.array(fragments, np.float32)
    loads = "\n".join(f"ld.global.b32 %r{1 + k}, [%rd21+{128 * k}];" for k in range(10))
    stores = "\n".join(f"st.global.b32 [%rd20+{128 * k}], %r{20 + k};" for k in range(4))
    operands = "{%r20, %r21, %r22, %r23}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%r7, %r8, %r9, %r10}"
    body = f"{PLACES}{loads}\nmma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {operands};\n{stores}\n"
    result = result_of(machine, body, given, count=128, dtype=np.float32).reshape(4, 32)
    product = np.zeros((16, 8), np.float32)
    for k in range(4):
        product[group + 8 * (k // 2), 2 * within + k % 2] = result[k]
    return product


def test_tf32_products_of_whole_numbers_are_exact(machine):
    rng = np.random.default_rng(5)
    a, b, c = (rng.integers(-40, 40, shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    np.testing.assert_array_equal(multiplied_tf32(machine, a, b, c), a @ b + c)


def test_tf32_products_see_19_bits(machine):
    rng = np.random.default_rng(6)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    cut_a, cut_b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    zero = np.zeros((16, 8), np.float32)
    product = multiplied_tf32(machine, a, b, zero)
    np.testing.assert_array_equal(product, multiplied_tf32(machine, cut_a, cut_b, zero))
    exact = cut_a.astype(float) @ cut_b.astype(float)
    # Five addends and their sum are cut, twice, at 2^-24 and 2^-23 of the largest.
    bound = 2 * (5 * 2.0**-24 + 2.0**-23) * (np.abs(cut_a).astype(float) @ np.abs(cut_b).astype(float))
    assert (np.abs(product - exact) < bound).all()
    assert (product != exact.astype(np.float32)).any()


def test_float64_products(machine):
    rng = np.random.default_rng(7)
    a, b, c = rng.standard_normal((8, 4)), rng.standard_normal((4, 8)), rng.standard_normal((8, 8))
    group, within = LANES // 4, LANES % 4
    given = np.array([a[group, within], b[within, group], c[group, 2 * within], c[group, 2 * within + 1]])
    loads = "\n".join(f"ld.global.b64 %rd{30 + k}, [%rd21+{256 * k}];" for k in range(4))
    body = f"""mad.wide.s32 %rd20, %r0, 8, %rd0;
mad.wide.s32 %rd21, %r0, 8, %rd1;
{loads}
mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {{%rd40, %rd41}}, {{%rd30}}, {{%rd31}}, {{%rd32, %rd33}};
st.global.b64 [%rd20], %rd40;
st.global.b64 [%rd20+256], %rd41;
"""
    result = result_of(machine, body, given, count=64, dtype=np.float64).reshape(2, 32)
    product = np.zeros((8, 8))
    product[group, 2 * within], product[group, 2 * within + 1] = result
    np.testing.assert_allclose(product, a @ b + c, rtol=0, atol=1e-14)


# ---- What must be seen ----

# Every thread of two warps passes its number to the thread that counts down from the other end.
EXCHANGE = f"""{LOAD}mov.b32 %r7, global_smem;
shl.b32 %r8, %r0, 2;
add.s32 %r9, %r7, %r8;
st.shared.b32 [%r9], %r1;
bar.sync 0;
sub.s32 %r10, 252, %r8;
add.s32 %r11, %r7, %r10;
ld.shared.b32 %r2, [%r11];
{STORE}"""
TWO_WARPS = {"threads": 64, "shared_bytes": 256}


@pytest.mark.parametrize("order", ALL_ORDERS)
def test_warps_exchange_values_behind_a_barrier(machine, order):
    values = numbers(64)
    result = result_of(machine, EXCHANGE, values, count=64, order=order, **TWO_WARPS)
    np.testing.assert_array_equal(result, values[::-1])


@pytest.mark.parametrize("order", ALL_ORDERS)
def test_a_barrier_that_is_missing_is_seen(machine, order):
    outcome = execute(
        machine, EXCHANGE, np.zeros(64, np.int32), numbers(64), order=order, removed="bar.sync", **TWO_WARPS
    )
    assert "read/write race" in outcome.errors


def test_shared_memory_that_nothing_was_written_to_is_seen(machine):
    outcome = execute(machine, EXCHANGE, np.zeros(64, np.int32), numbers(64), removed="st.shared", **TWO_WARPS)
    assert outcome.errors == {"uninitialised read": 64}


def test_lanes_of_a_warp_need_a_barrier_too(machine):
    body = EXCHANGE.replace("bar.sync 0", "bar.warp.sync -1").replace("252", "124")
    values = numbers()
    np.testing.assert_array_equal(result_of(machine, body, values, shared_bytes=128), values[::-1])
    outcome = execute(machine, body, np.zeros(32, np.int32), values, shared_bytes=128, removed="bar.warp.sync")
    assert outcome.errors == {"race of lanes": 128}


# Two groups of copies, then both results; each thread reads what it copied itself.
COPIES = f"""{PLACES}mov.b32 %r7, global_smem;
shl.b32 %r8, %r0, 2;
add.s32 %r9, %r7, %r8;
cp.async.ca.shared.global [%r9], [%rd21], 0x4;
cp.async.commit_group;
cp.async.ca.shared.global [%r9+128], [%rd21], 0x4;
cp.async.commit_group;
cp.async.wait_group 1;
ld.shared.b32 %r2, [%r9];
{STORE}cp.async.wait_group 0;
ld.shared.b32 %r2, [%r9+128];
st.global.b32 [%rd20+128], %r2;
"""


@pytest.mark.parametrize("order", ALL_ORDERS)
def test_copies_arrive_when_they_are_waited_for(machine, order):
    values = numbers()
    result = result_of(machine, COPIES, values, count=64, shared_bytes=256, order=order)
    np.testing.assert_array_equal(result, np.tile(values, 2))


@pytest.mark.parametrize("removed", ["cp.async.wait_group 1", "cp.async.wait_group 0", "cp.async.commit_group"])
def test_a_wait_that_is_missing_is_seen(machine, removed):
    outcome = execute(machine, COPIES, np.zeros(64, np.int32), numbers(), shared_bytes=256, removed=removed)
    assert "copy not waited for" in outcome.errors


def test_copies_fill_up_with_zeros(machine):
    """The size of the source is the lane's number modulo 5; beyond it nothing is read."""
    body = COPIES.replace("0x4;", "0x4, %r20;").replace("cp.async.ca", "rem.u32 %r20, %r0, 5;\ncp.async.ca", 1)
    values = numbers()
    expected = values.view(np.uint8).reshape(32, 4) * (np.arange(4) < (LANES % 5)[:, None])
    result = result_of(machine, body, values, count=64, shared_bytes=256)
    np.testing.assert_array_equal(result, np.tile(expected.astype(np.uint8).ravel().view(np.int32), 2))


def test_copies_for_another_warp_need_a_barrier(machine):
    body = EXCHANGE.replace(
        "st.shared.b32 [%r9], %r1;",
        "cp.async.ca.shared.global [%r9], [%rd21], 0x4;\ncp.async.commit_group;\ncp.async.wait_group 0;",
    )
    values = numbers(64)
    result = result_of(machine, body, values, count=64, **TWO_WARPS)
    np.testing.assert_array_equal(result, values[::-1])
    outcome = execute(machine, body, np.zeros(64, np.int32), values, removed="bar.sync", **TWO_WARPS)
    assert "read/write race" in outcome.errors


def test_accesses_outside_of_an_operand_are_seen(machine):
    inside, more = np.zeros(31, np.int32), np.zeros(32, np.int32)
    body = LOAD + "mov.b32 %r2, 1;\n" + STORE
    assert execute(machine, body, more, inside).errors == {"read out of bounds": 1}
    assert execute(machine, body, inside, more).errors == {"write out of bounds": 1}
    no_faults(execute(machine, body, more, more.copy()))


def test_accesses_outside_of_shared_memory_are_seen(machine):
    outcome = execute(machine, EXCHANGE, np.zeros(64, np.int32), numbers(64), threads=64, shared_bytes=252)
    assert outcome.errors == {"write out of bounds": 1, "read out of bounds": 1}


def test_addresses_that_are_not_aligned_are_seen(machine):
    body = LOAD.replace("[%rd21]", "[%rd21+2]") + "mov.b32 %r2, %r1;\n" + STORE
    assert execute(machine, body, np.zeros(32, np.int32), numbers(40)).errors == {"misaligned": 32}


def test_two_programs_at_one_byte_are_seen(machine):
    body = "mad.wide.s32 %rd20, %r60, 4, %rd0;\nadd.s32 %r2, %r61, 1;\n" + STORE
    outcome = execute(machine, body, np.zeros(32, np.int32), programs=2)
    assert outcome.errors == {"programs share a byte": 32}  # the low byte of each number differs
    no_faults(execute(machine, body.replace("%r60", "%r0"), np.zeros(64, np.int32), programs=2))


def test_bytes_that_nothing_reads_need_not_be_there(machine):
    """A vector load of a written and an unwritten number, with and without the compiler's word on which counts."""
    body = f"""{PLACES}mov.b32 %r7, global_smem;
shl.b32 %r8, %r0, 3;
add.s32 %r9, %r7, %r8;
st.shared.b32 [%r9], %r0;
.pragma "used_bytes_mask 0xf";
ld.shared.v2.b32 {{%r2, %r3}}, [%r9];
{STORE}"""
    values = numbers()
    np.testing.assert_array_equal(result_of(machine, body, values, shared_bytes=256), LANES)
    without = body.replace('.pragma "used_bytes_mask 0xf";\n', "")
    outcome = execute(machine, without, np.zeros(32, np.int32), values, shared_bytes=256)
    assert outcome.errors == {"uninitialised read": 32}


@pytest.mark.parametrize(
    "line",
    [
        "add.sat.s32 %r1, %r2, %r3;",
        "tanh.approx.f32 %r1, %r2;",
        "bar.sync 1;",
        "bar.sync 0, 32;",
        "ld.acquire.gpu.global.b32 %r1, [%rd0];",
        "shfl.sync.up.b32 %r1, %r2, 1, 0, 255;",
        "wgmma.fence.sync.aligned;",
        "mov.u32 %r1, %clock;",
    ],
)
def test_an_unknown_instruction_raises_with_its_text(line):
    with pytest.raises(UnknownInstructionError, match=line.split()[0]):
        program(kernel_text(line))
