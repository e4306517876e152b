"""Scalar opcodes of the gfx942 machine against Python's integers; branches; the execution mask."""

from __future__ import annotations

import numpy as np
import pytest

from tests.machine.building import compiler
from tests.machine.gfx942.opcodes import opcode_numbers
from tests.machine.gfx942_assembly import LANES, assert_same, execute, pair, tensor
from tests.machine.test_machine_gfx942_lanes import MATRICES
from tests.machine.test_machine_gfx942_vector import (
    COMPARISONS,
    INEXACT,
    STARTING,
    TABLE,
    leading_zeros,
    trailing_zeros,
)

if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)


# --- Scalars ----------------------------------------------------------------------------------------------------------

PROGRAMS = 96


def run_scalar(folder, text, given, wide_result):
    """A program for each column of operands, in s[20:21], s[22:23] and (a condition, also in SCC) s[24:25].

    Returns the result, which the text leaves in s[26:27], SCC, and the execution mask.
    """
    out = [tensor(np.zeros(PROGRAMS, np.uint64)) for _ in range(3)]
    body = "s_lshl_b32 s3, s2, 3\n"
    body += "".join(f"s_load_dwordx2 s[{20 + 2 * k}:{21 + 2 * k}], s[{4 + 2 * k}:{5 + 2 * k}], s3\n" for k in range(3))
    body += f"""
            s_waitcnt lgkmcnt(0)
            s_mov_b64 s[26:27], s[22:23]
            s_cmp_lg_u32 s24, 0
            {text}
            s_cselect_b32 s28, 1, 0
        """
    body += """
        s_mov_b32 s29, 0
        s_mov_b64 s[30:31], exec
        s_mov_b64 exec, 1
        v_mov_b32_e32 v3, s3
    """
    for k, scalar in enumerate((26, 28, 30)):
        body += f"""
            v_mov_b32_e32 v4, s{scalar}
            v_mov_b32_e32 v5, s{scalar + 1}
            global_store_dwordx2 v3, v[4:5], s[{10 + 2 * k}:{11 + 2 * k}]
        """
    outcome = execute(folder, body, *map(tensor, given), *out, programs=PROGRAMS)
    assert not outcome.faults, outcome.message
    result, scc, mask = (values.numpy().view(np.uint64) for values in out)
    return result if wide_result else result & 0xFFFFFFFF, scc, mask


def signed(x, bits):
    return x - (1 << bits) if x >> (bits - 1) else x


def s32(x):
    return signed(x & 0xFFFFFFFF, 32)


def overflows(x):
    return not -(1 << 31) <= x < 1 << 31


def scalar_field(x, packed, is_signed):
    offset, width = packed & 31, packed >> 16 & 127
    if not is_signed:
        return x >> offset & ((1 << min(width, 63)) - 1)
    if width == 0:
        return 0
    return signed(x >> offset & ((1 << width) - 1), width) if width < 32 else s32(x) >> offset


def bit_count(x):
    return int(x).bit_count()


# (bits of the result, bits of each source, result of (a, b, d, scc), scc of (result, a, b, d, scc) or None: as before),
# where d is the former value of the destination.
def not_zero(r, a, b, d, c):
    return r != 0


MASK = {32: (1 << 32) - 1, 64: (1 << 64) - 1}
SCALARS = {
    "s_mov_b32": (32, "32", lambda a, b, d, c: a, None),
    "s_mov_b64": (64, "64", lambda a, b, d, c: a, None),
    "s_cmov_b32": (32, "32", lambda a, b, d, c: a if c else d, None),
    "s_cmov_b64": (64, "64", lambda a, b, d, c: a if c else d, None),
    "s_cselect_b32": (32, "32 32", lambda a, b, d, c: a if c else b, None),
    "s_cselect_b64": (64, "64 64", lambda a, b, d, c: a if c else b, None),
    "s_brev_b32": (32, "32", lambda a, b, d, c: int(f"{a:032b}"[::-1], 2), None),
    "s_abs_i32": (32, "32", lambda a, b, d, c: abs(s32(a)), not_zero),
    "s_bcnt1_i32_b32": (32, "32", lambda a, b, d, c: bit_count(a), not_zero),
    "s_bcnt1_i32_b64": (32, "64", lambda a, b, d, c: bit_count(a), not_zero),
    "s_ff1_i32_b32": (32, "32", lambda a, b, d, c: trailing_zeros(a), None),
    "s_ff1_i32_b64": (32, "64", lambda a, b, d, c: trailing_zeros(a), None),
    "s_flbit_i32_b32": (32, "32", lambda a, b, d, c: leading_zeros(a), None),
    "s_flbit_i32_b64": (32, "64", lambda a, b, d, c: 64 - a.bit_length() if a else -1, None),
    "s_sext_i32_i8": (32, "32", lambda a, b, d, c: signed(a & 0xFF, 8), None),
    "s_sext_i32_i16": (32, "32", lambda a, b, d, c: signed(a & 0xFFFF, 16), None),
    "s_bitset0_b32": (32, "32", lambda a, b, d, c: d & ~(1 << (a & 31)), None),
    "s_bitset1_b32": (32, "32", lambda a, b, d, c: d | 1 << (a & 31), None),
    "s_add_u32": (32, "32 32", lambda a, b, d, c: a + b, lambda r, a, b, d, c: a + b > MASK[32]),
    "s_addc_u32": (32, "32 32", lambda a, b, d, c: a + b + c, lambda r, a, b, d, c: a + b + c > MASK[32]),
    "s_sub_u32": (32, "32 32", lambda a, b, d, c: a - b, lambda r, a, b, d, c: b > a),
    "s_subb_u32": (32, "32 32", lambda a, b, d, c: a - b - c, lambda r, a, b, d, c: b + c > a),
    "s_add_i32": (32, "32 32", lambda a, b, d, c: a + b, lambda r, a, b, d, c: overflows(s32(a) + s32(b))),
    "s_sub_i32": (32, "32 32", lambda a, b, d, c: a - b, lambda r, a, b, d, c: overflows(s32(a) - s32(b))),
    "s_mul_i32": (32, "32 32", lambda a, b, d, c: a * b, None),
    "s_mul_hi_u32": (32, "32 32", lambda a, b, d, c: a * b >> 32, None),
    "s_mul_hi_i32": (32, "32 32", lambda a, b, d, c: s32(a) * s32(b) >> 32, None),
    "s_absdiff_i32": (32, "32 32", lambda a, b, d, c: abs(s32(s32(a) - s32(b))), not_zero),
    "s_max_i32": (32, "32 32", lambda a, b, d, c: max(s32(a), s32(b)), lambda r, a, b, d, c: s32(a) > s32(b)),
    "s_min_i32": (32, "32 32", lambda a, b, d, c: min(s32(a), s32(b)), lambda r, a, b, d, c: s32(a) < s32(b)),
    "s_max_u32": (32, "32 32", lambda a, b, d, c: max(a, b), lambda r, a, b, d, c: a > b),
    "s_min_u32": (32, "32 32", lambda a, b, d, c: min(a, b), lambda r, a, b, d, c: a < b),
    "s_lshl_b32": (32, "32 32", lambda a, b, d, c: a << (b & 31), not_zero),
    "s_lshr_b32": (32, "32 32", lambda a, b, d, c: a >> (b & 31), not_zero),
    "s_ashr_i32": (32, "32 32", lambda a, b, d, c: s32(a) >> (b & 31), not_zero),
    "s_lshl_b64": (64, "64 32", lambda a, b, d, c: a << (b & 63), not_zero),
    "s_lshr_b64": (64, "64 32", lambda a, b, d, c: a >> (b & 63), not_zero),
    "s_ashr_i64": (64, "64 32", lambda a, b, d, c: signed(a, 64) >> (b & 63), not_zero),
    "s_bfe_u32": (32, "32 32", lambda a, b, d, c: scalar_field(a, b, False), not_zero),
    "s_bfe_i32": (32, "32 32", lambda a, b, d, c: scalar_field(a, b, True), not_zero),
    "s_bfm_b32": (32, "32 32", lambda a, b, d, c: ((1 << (a & 31)) - 1) << (b & 31), None),
    "s_bfm_b64": (64, "32 32", lambda a, b, d, c: ((1 << (a & 63)) - 1) << (b & 63), None),
    "s_pack_ll_b32_b16": (32, "32 32", lambda a, b, d, c: (a & 0xFFFF) | b << 16, None),
}
for _bits in (32, 64):
    _two = f"{_bits} {_bits}"
    SCALARS |= {
        f"s_not_b{_bits}": (_bits, f"{_bits}", lambda a, b, d, c: ~a, not_zero),
        f"s_and_b{_bits}": (_bits, _two, lambda a, b, d, c: a & b, not_zero),
        f"s_or_b{_bits}": (_bits, _two, lambda a, b, d, c: a | b, not_zero),
        f"s_xor_b{_bits}": (_bits, _two, lambda a, b, d, c: a ^ b, not_zero),
        f"s_andn2_b{_bits}": (_bits, _two, lambda a, b, d, c: a & ~b, not_zero),
        f"s_orn2_b{_bits}": (_bits, _two, lambda a, b, d, c: a | ~b, not_zero),
        f"s_nand_b{_bits}": (_bits, _two, lambda a, b, d, c: ~(a & b), not_zero),
        f"s_nor_b{_bits}": (_bits, _two, lambda a, b, d, c: ~(a | b), not_zero),
        f"s_xnor_b{_bits}": (_bits, _two, lambda a, b, d, c: ~(a ^ b), not_zero),
    }
for _by in (1, 2, 3, 4):
    SCALARS[f"s_lshl{_by}_add_u32"] = (
        32,
        "32 32",
        lambda a, b, d, c, k=_by: (a << k) + b,
        lambda r, a, b, d, c, k=_by: (a << k) + b > MASK[32],
    )


def scalar_operands():
    """Two columns and a condition; the condition is 0 or 1."""
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 1 << 63, (2, PROGRAMS), np.uint64) * np.uint64(2) + np.uint64(1)
    edges = np.array([0, 1, 31, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 63], np.uint64)
    a[:64], b[:64] = np.repeat(edges, 8), np.tile(edges, 8)
    b[64:80] = (np.arange(16, dtype=np.uint64) * 3 << np.uint64(16)) | np.arange(16, dtype=np.uint64)  # fields
    return a, b, rng.integers(0, 2, PROGRAMS).astype(np.uint64)


@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_opcode_and_its_condition(folder, name):
    bits, sources, function, condition = SCALARS[name]
    widths = [int(width) for width in sources.split()]
    a, b, c = scalar_operands()
    places = ", ".join(pair(20 + 2 * k, width) for k, width in enumerate(widths))
    result, scc, _ = run_scalar(folder, f"{name} {pair(26, bits)}, {places}", [a, b, c], bits == 64)
    for k in range(PROGRAMS):
        x, y = (int(v[k]) & MASK[width] for v, width in zip((a, b), [*widths, 32], strict=False))
        old = int(b[k]) & MASK[bits]
        expected = function(x, y, old, int(c[k])) & MASK[bits]
        assert int(result[k]) == expected, (name, hex(x), hex(y), int(c[k]))
        expected_scc = int(c[k]) if condition is None else int(condition(expected, x, y, old, int(c[k])))
        assert int(scc[k]) == expected_scc, (name, hex(x), hex(y), int(c[k]))


SCALAR_RELATIONS = {"eq": "__eq__", "lg": "__ne__", "gt": "__gt__", "ge": "__ge__", "lt": "__lt__", "le": "__le__"}


@pytest.mark.parametrize("relation", SCALAR_RELATIONS)
@pytest.mark.parametrize("kind", ["i32", "u32", "u64"])
def test_scalar_comparisons(folder, relation, kind):
    if kind == "u64" and relation not in ("eq", "lg"):
        pytest.skip("64 bits are compared for equality alone")
    bits = int(kind[1:])
    a, b, c = scalar_operands()
    text = f"s_cmp_{relation}_{kind} {pair(20, bits)}, {pair(22, bits)}"
    _, scc, _ = run_scalar(folder, text, [a, b, c], False)
    for k in range(PROGRAMS):
        x, y = (int(v[k]) & MASK[bits] for v in (a, b))
        x, y = (s32(x), s32(y)) if kind == "i32" else (x, y)
        assert int(scc[k]) == getattr(x, SCALAR_RELATIONS[relation])(y)


@pytest.mark.parametrize("name", ["s_bitcmp0_b32", "s_bitcmp1_b32", "s_bitcmp0_b64", "s_bitcmp1_b64"])
def test_scalar_bits(folder, name):
    bits = int(name[-2:])
    a, b, c = scalar_operands()
    _, scc, _ = run_scalar(folder, f"{name} {pair(20, bits)}, s22", [a, b, c], False)
    bit = [int(x) >> (int(y) & (bits - 1)) & 1 for x, y in zip(a, b, strict=True)]
    assert_same(scc, np.array(bit) == int(name[8]))


@pytest.mark.parametrize("constant", [0, 5, 0x7FFF, 0x8000, 0xFFFF])
def test_constants_of_16_bits(folder, constant):
    a, b, c = scalar_operands()
    extended = signed(constant, 16)
    low = [int(x) & MASK[32] for x in b]
    for text, expected, condition in (
        (f"s_movk_i32 s26, {constant:#x}", [extended] * PROGRAMS, c),
        (f"s_addk_i32 s26, {constant:#x}", [x + extended for x in low], [overflows(s32(x) + extended) for x in low]),
        (f"s_mulk_i32 s26, {constant:#x}", [x * extended for x in low], c),
    ):
        result, scc, _ = run_scalar(folder, text, [a, b, c], False)
        assert_same(result, np.array([x & MASK[32] for x in expected], np.uint64))
        assert_same(scc, np.asarray(condition))
    for kind, value in (("i32", extended), ("u32", constant)):
        _, scc, _ = run_scalar(folder, f"s_cmpk_gt_{kind} s26, {constant:#x}", [a, b, c], False)
        assert_same(scc, np.array([(s32(x) if kind == "i32" else x) > value for x in low]))


SAVE = {
    "and": lambda a, e: a & e,
    "or": lambda a, e: a | e,
    "xor": lambda a, e: a ^ e,
    "andn1": lambda a, e: ~a & e,
    "andn2": lambda a, e: a & ~e,
    "orn1": lambda a, e: ~a | e,
    "orn2": lambda a, e: a | ~e,
    "nand": lambda a, e: ~(a & e),
    "nor": lambda a, e: ~(a | e),
    "xnor": lambda a, e: ~(a ^ e),
}


@pytest.mark.parametrize("name", SAVE)
def test_the_execution_mask_is_saved_and_changed(folder, name):
    a, b, c = scalar_operands()
    text = f"""
        s_mov_b64 exec, s[22:23]
        s_{name}_saveexec_b64 s[26:27], s[20:21]
    """
    result, scc, mask = run_scalar(folder, text, [a, b, c], True)
    assert_same(result, b)
    assert_same(mask, SAVE[name](a, b))
    assert_same(scc, mask != 0)


@pytest.mark.parametrize("special", ["vcc", "m0", "exec"])
def test_special_registers_hold_what_is_written(folder, special):
    a, b, c = scalar_operands()
    wide = special != "m0"
    text = f"""
        s_mov_b{64 if wide else 32} {special}, {pair(20, 64 if wide else 32)}
        s_mov_b{64 if wide else 32} {pair(26, 64 if wide else 32)}, {special}
    """
    result, _, _ = run_scalar(folder, text, [a, b, c], wide)
    assert_same(result, a if wide else a & np.uint64(0xFFFFFFFF))


@pytest.mark.parametrize(
    ("branch", "prepare", "taken"),
    [
        ("s_branch", "", True),
        ("s_cbranch_scc0", "s_cmp_eq_u32 0, 1", True),
        ("s_cbranch_scc0", "s_cmp_eq_u32 1, 1", False),
        ("s_cbranch_scc1", "s_cmp_eq_u32 1, 1", True),
        ("s_cbranch_vccz", "s_mov_b64 vcc, 0", True),
        ("s_cbranch_vccz", "s_mov_b64 vcc, 16", False),
        ("s_cbranch_vccnz", "s_mov_b64 vcc, 16", True),
        ("s_cbranch_execz", "s_mov_b64 exec, 0", True),
        ("s_cbranch_execz", "s_mov_b64 exec, 1", False),
        ("s_cbranch_execnz", "s_mov_b64 exec, 1", True),
    ],
)
def test_branches(folder, branch, prepare, taken):
    out = tensor(np.zeros(LANES, np.uint32))
    body = f"""
        v_mov_b32_e32 v5, 1
        {prepare}
        {branch} .LBB0_1
        s_mov_b64 exec, -1
        v_mov_b32_e32 v5, 2
        .LBB0_1:
        s_mov_b64 exec, -1
        global_store_dword v1, v5, s[4:5]
    """
    execute(folder, body, out)
    assert (out.numpy().view(np.uint32) == (1 if taken else 2)).all()


# --- All of them ------------------------------------------------------------------------------------------------------

# Opcodes that are in no table of the tests: each has a test of its own, or every test runs it.
ELSEWHERE = {
    "s_barrier", "s_endpgm", "s_nop", "s_waitcnt", "v_nop", "v_accvgpr_mov_b32", "v_accvgpr_write_b32",
    "v_cndmask_b32", "v_cmp_class_f32", "v_cmp_class_f64", "v_fmac_f32", "v_fmac_f64", "v_fmaak_f32", "v_fmamk_f32",
    "v_sin_f32", "v_cos_f32", "v_mbcnt_lo_u32_b32", "v_mbcnt_hi_u32_b32", "v_mad_u64_u32", "v_mad_i64_i32",
    "v_readfirstlane_b32", "v_readlane_b32", "v_writelane_b32", "s_movk_i32", "s_addk_i32", "s_mulk_i32",
}  # fmt: skip
FAMILIES = ("ds_", "global_", "buffer_", "s_load_", "s_cmp", "s_bitcmp", "s_branch", "s_cbranch", "v_div_", "v_pk_")
CARRIES = {f"v_{name}_co_u32" for name in ("add", "sub", "subrev", "addc", "subb", "subbrev")}


def test_every_opcode_has_a_test():
    tables = set(TABLE) | set(INEXACT) | set(STARTING) | set(SCALARS) | {name for name, _, _ in COMPARISONS}
    tables |= set(MATRICES) | {f"s_{name}_saveexec_b64" for name in SAVE} | ELSEWHERE | CARRIES
    known = set(opcode_numbers())
    assert not {name for name in known - tables if not name.startswith(FAMILIES)}
    assert tables <= known
