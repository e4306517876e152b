"""What each opcode computes: tables of C expressions, made into one C function an opcode.

A row is ``name  result = sources : expression``, with sources a, b, c of the types named. What does not fit a row, as
it crosses lanes, carries or touches memory, is written in the C files beside; there a function ``op_NAME`` is opcode
NAME. Names are without the suffixes ``_e32``, ``_e64``, ``_dpp`` and ``_sdwa``, which only say how an instruction is
encoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
HAND_WRITTEN = ("vector.c", "matrix.c", "access.c", "control.c")
WIDE = ("f64", "u64", "i64")
SOURCES = "abc"

# Evaluated in every active lane. The sources have their modifiers applied; the result gets the output modifiers.
VECTOR = """
v_mov_b32             u32 = u32         : a
v_mov_b64             u64 = u64         : a
v_not_b32             u32 = u32         : ~a
v_bfrev_b32           u32 = u32         : reverse_bits(a)
v_ffbh_u32            u32 = u32         : a ? (u32)__builtin_clz(a) : ~(u32)0
v_ffbl_b32            u32 = u32         : a ? (u32)__builtin_ctz(a) : ~(u32)0
v_ffbh_i32            u32 = i32         : leading_sign_bits(a)
v_bcnt_u32_b32        u32 = u32 u32     : __builtin_popcount(a) + b
v_mbcnt_lo_u32_b32    u32 = u32 u32     : __builtin_popcount(a & (lane < 32 ? ((u32)1 << lane) - 1 : ~(u32)0)) + b
v_mbcnt_hi_u32_b32    u32 = u32 u32     : __builtin_popcount(a & (lane < 32 ? 0 : ((u32)1 << (lane - 32)) - 1)) + b

v_and_b32             u32 = u32 u32     : a & b
v_or_b32              u32 = u32 u32     : a | b
v_xor_b32             u32 = u32 u32     : a ^ b
v_xnor_b32            u32 = u32 u32     : ~(a ^ b)
v_or3_b32             u32 = u32 u32 u32 : a | b | c
v_and_or_b32          u32 = u32 u32 u32 : (a & b) | c
v_bfi_b32             u32 = u32 u32 u32 : (a & b) | (~a & c)
v_bfe_u32             u32 = u32 u32 u32 : extract_unsigned(a, b & 31, c & 31)
v_bfe_i32             i32 = i32 u32 u32 : extract_signed(a, b & 31, c & 31)
v_perm_b32            u32 = u32 u32 u32 : permute_bytes(a, b, c)
v_alignbit_b32        u32 = u32 u32 u32 : (u32)(((u64)a << 32 | b) >> (c & 31))
v_alignbyte_b32       u32 = u32 u32 u32 : (u32)(((u64)a << 32 | b) >> (8 * (c & 3)))

v_lshlrev_b32         u32 = u32 u32     : b << (a & 31)
v_lshrrev_b32         u32 = u32 u32     : b >> (a & 31)
v_ashrrev_i32         i32 = u32 i32     : b >> (a & 31)
v_lshlrev_b64         u64 = u32 u64     : b << (a & 63)
v_lshrrev_b64         u64 = u32 u64     : b >> (a & 63)
v_ashrrev_i64         i64 = u32 i64     : b >> (a & 63)
v_lshlrev_b16         u32 = u32 u32     : b << (a & 15) & 0xffff
v_lshrrev_b16         u32 = u32 u32     : (b & 0xffff) >> (a & 15)
v_lshl_or_b32         u32 = u32 u32 u32 : a << (b & 31) | c
v_lshl_add_u32        u32 = u32 u32 u32 : (a << (b & 31)) + c
v_add_lshl_u32        u32 = u32 u32 u32 : (a + b) << (c & 31)
v_lshl_add_u64        u64 = u64 u32 u64 : (a << (b & 7)) + c
v_xad_u32             u32 = u32 u32 u32 : (a ^ b) + c
v_add3_u32            u32 = u32 u32 u32 : a + b + c

v_add_u32             u32 = u32 u32     : (in->flags & CLAMP) && a + b < a ? UINT32_MAX : a + b
v_sub_u32             u32 = u32 u32     : (in->flags & CLAMP) && b > a ? 0 : a - b
v_subrev_u32          u32 = u32 u32     : (in->flags & CLAMP) && a > b ? 0 : b - a
v_mul_lo_u32          u32 = u32 u32     : a * b
v_mul_hi_u32          u32 = u32 u32     : (u32)((u64)a * b >> 32)
v_mul_hi_i32          u32 = i32 i32     : (u32)((i64)a * b >> 32)
v_mul_u32_u24         u32 = u32 u32     : (a & 0xffffff) * (b & 0xffffff)
v_mul_hi_u32_u24      u32 = u32 u32     : (u32)((u64)(a & 0xffffff) * (b & 0xffffff) >> 32)
v_mul_i32_i24         u32 = u32 u32     : (u32)((i64)sign_extend_24(a) * sign_extend_24(b))
v_mad_u32_u24         u32 = u32 u32 u32 : (a & 0xffffff) * (b & 0xffffff) + c
v_mad_i32_i24         u32 = u32 u32 u32 : (u32)((i64)sign_extend_24(a) * sign_extend_24(b)) + c
v_max_i32             i32 = i32 i32     : a > b ? a : b
v_min_i32             i32 = i32 i32     : a < b ? a : b
v_max_u32             u32 = u32 u32     : a > b ? a : b
v_min_u32             u32 = u32 u32     : a < b ? a : b
v_max3_i32            i32 = i32 i32 i32 : (a > b ? a : b) > c ? (a > b ? a : b) : c
v_min3_i32            i32 = i32 i32 i32 : (a < b ? a : b) < c ? (a < b ? a : b) : c
v_max3_u32            u32 = u32 u32 u32 : (a > b ? a : b) > c ? (a > b ? a : b) : c
v_min3_u32            u32 = u32 u32 u32 : (a < b ? a : b) < c ? (a < b ? a : b) : c
v_med3_i32            i32 = i32 i32 i32 : median_i32(a, b, c)
v_med3_u32            u32 = u32 u32 u32 : median_u32(a, b, c)

v_add_u16             u32 = u32 u32     : (a + b) & 0xffff
v_sub_u16             u32 = u32 u32     : (a - b) & 0xffff
v_subrev_u16          u32 = u32 u32     : (b - a) & 0xffff
v_mul_lo_u16          u32 = u32 u32     : a * b & 0xffff
v_mad_u16             u32 = u32 u32 u32 : (a * b + c) & 0xffff

v_add_f32             f32 = f32 f32     : a + b
v_sub_f32             f32 = f32 f32     : a - b
v_subrev_f32          f32 = f32 f32     : b - a
v_mul_f32             f32 = f32 f32     : a * b
v_fma_f32             f32 = f32 f32 f32 : fmaf(a, b, c)
v_max_f32             f32 = f32 f32     : max_f32(a, b)
v_min_f32             f32 = f32 f32     : min_f32(a, b)
v_max3_f32            f32 = f32 f32 f32 : max_f32(max_f32(a, b), c)
v_min3_f32            f32 = f32 f32 f32 : min_f32(min_f32(a, b), c)
v_med3_f32            f32 = f32 f32 f32 : median_f32(a, b, c)
v_floor_f32           f32 = f32         : floorf(a)
v_ceil_f32            f32 = f32         : ceilf(a)
v_trunc_f32           f32 = f32         : truncf(a)
v_rndne_f32           f32 = f32         : rintf(a)
v_fract_f32           f32 = f32         : fraction_f32(a)
v_ldexp_f32           f32 = f32 i32     : ldexpf(a, b)
v_frexp_mant_f32      f32 = f32         : (f32)mantissa_f64(a)
v_frexp_exp_i32_f32   i32 = f32         : binary_exponent_f64(a)
v_div_fixup_f32       f32 = f32 f32 f32 : div_fixup_f32(a, b, c)
v_sqrt_f32            f32 = f32         : within_one_ulp(w, sqrt((f64)a))
v_rcp_f32             f32 = f32         : within_one_ulp(w, 1 / (f64)a)
v_rcp_iflag_f32       f32 = f32         : within_one_ulp(w, 1 / (f64)a)
v_rsq_f32             f32 = f32         : within_one_ulp(w, 1 / sqrt((f64)a))
v_exp_f32             f32 = f32         : within_one_ulp(w, exp2((f64)a))
v_log_f32             f32 = f32         : within_one_ulp(w, log2((f64)a))
v_sin_f32             f32 = f32         : (f32)sin(2 * M_PI * (f64)a)
v_cos_f32             f32 = f32         : (f32)cos(2 * M_PI * (f64)a)

v_add_f64             f64 = f64 f64     : a + b
v_mul_f64             f64 = f64 f64     : a * b
v_fma_f64             f64 = f64 f64 f64 : fma(a, b, c)
v_max_f64             f64 = f64 f64     : max_f64(a, b)
v_min_f64             f64 = f64 f64     : min_f64(a, b)
v_floor_f64           f64 = f64         : floor(a)
v_ceil_f64            f64 = f64         : ceil(a)
v_trunc_f64           f64 = f64         : trunc(a)
v_rndne_f64           f64 = f64         : rint(a)
v_fract_f64           f64 = f64         : fraction_f64(a)
v_ldexp_f64           f64 = f64 i32     : ldexp(a, b)
v_frexp_mant_f64      f64 = f64         : mantissa_f64(a)
v_frexp_exp_i32_f64   i32 = f64         : binary_exponent_f64(a)
v_div_fixup_f64       f64 = f64 f64 f64 : div_fixup_f64(a, b, c)
v_sqrt_f64            f64 = f64         : starting_value(sqrt(a))
v_rcp_f64             f64 = f64         : starting_value(1 / a)
v_rsq_f64             f64 = f64         : starting_value(1 / sqrt(a))

v_cvt_f32_i32         f32 = i32         : (f32)a
v_cvt_f32_u32         f32 = u32         : (f32)a
v_cvt_f32_ubyte0      f32 = u32         : (f32)(a & 255)
v_cvt_f32_f64         f32 = f64         : (f32)a
v_cvt_f64_i32         f64 = i32         : (f64)a
v_cvt_f64_u32         f64 = u32         : (f64)a
v_cvt_f64_f32         f64 = f32         : (f64)a
v_cvt_i32_f32         i32 = f32         : saturated_i32(a)
v_cvt_u32_f32         u32 = f32         : saturated_u32(a)
v_cvt_i32_f64         i32 = f64         : saturated_i32(a)
v_cvt_u32_f64         u32 = f64         : saturated_u32(a)

v_accvgpr_read_b32    u32 = u32         : a
v_accvgpr_write_b32   u32 = u32         : a
v_accvgpr_mov_b32     u32 = u32         : a
"""

# The third source is the destination.
ACCUMULATING = """
v_fmac_f32            f32 = f32 f32 f32 : fmaf(a, b, c)
v_fmac_f64            f64 = f64 f64 f64 : fma(a, b, c)
"""

# With a constant among the sources: a * b + constant, a * constant + b.
WITH_CONSTANT = """
v_fmaak_f32           f32 = f32 f32 f32 : fmaf(a, b, c)
v_fmamk_f32           f32 = f32 f32 f32 : fmaf(a, b, c)
"""

# On the wave's scalars: statements on ``result``, which holds the destination's former value; SCC(x) is the condition.
SCALAR = """
s_mov_b32             u32 = u32         : result = a
s_mov_b64             u64 = u64         : result = a
s_movk_i32            u32 = u32         : result = a
s_cmov_b32            u32 = u32         : if (w->scc) result = a
s_cmov_b64            u64 = u64         : if (w->scc) result = a
s_cselect_b32         u32 = u32 u32     : result = w->scc ? a : b
s_cselect_b64         u64 = u64 u64     : result = w->scc ? a : b
s_not_b32             u32 = u32         : result = ~a; SCC(result != 0)
s_not_b64             u64 = u64         : result = ~a; SCC(result != 0)
s_brev_b32            u32 = u32         : result = reverse_bits(a)
s_abs_i32             u32 = u32         : result = (i32)a < 0 ? -a : a; SCC(result != 0)
s_bcnt1_i32_b32       u32 = u32         : result = __builtin_popcount(a); SCC(result != 0)
s_bcnt1_i32_b64       u32 = u64         : result = __builtin_popcountll(a); SCC(result != 0)
s_ff1_i32_b32         u32 = u32         : result = a ? __builtin_ctz(a) : -1
s_ff1_i32_b64         u32 = u64         : result = a ? __builtin_ctzll(a) : -1
s_flbit_i32_b32       u32 = u32         : result = a ? __builtin_clz(a) : -1
s_flbit_i32_b64       u32 = u64         : result = a ? __builtin_clzll(a) : -1
s_sext_i32_i8         u32 = u32         : result = (u32)(i32)(int8_t)a
s_sext_i32_i16        u32 = u32         : result = (u32)(i32)(int16_t)a
s_bitset0_b32         u32 = u32         : result &= ~((u32)1 << (a & 31))
s_bitset1_b32         u32 = u32         : result |= (u32)1 << (a & 31)

s_add_u32             u32 = u32 u32     : result = a + b; SCC(result < a)
s_addc_u32            u32 = u32 u32     : u64 sum = (u64)a + b + w->scc; result = (u32)sum; SCC(sum >> 32)
s_sub_u32             u32 = u32 u32     : result = a - b; SCC(b > a)
s_subb_u32            u32 = u32 u32     : u64 less = (u64)b + w->scc; result = (u32)(a - less); SCC(less > a)
s_add_i32             u32 = u32 u32     : result = a + b; SCC((~(a ^ b) & (a ^ result)) >> 31)
s_sub_i32             u32 = u32 u32     : result = a - b; SCC(((a ^ b) & (a ^ result)) >> 31)
s_addk_i32            u32 = u32         : u32 old = result; result += a; SCC((~(old ^ a) & (old ^ result)) >> 31)
s_mulk_i32            u32 = u32         : result *= a
s_mul_i32             u32 = u32 u32     : result = a * b
s_mul_hi_u32          u32 = u32 u32     : result = (u32)((u64)a * b >> 32)
s_mul_hi_i32          u32 = i32 i32     : result = (u32)((i64)a * b >> 32)
s_lshl1_add_u32       u32 = u32 u32     : u64 sum = ((u64)a << 1) + b; result = (u32)sum; SCC(sum >> 32)
s_lshl2_add_u32       u32 = u32 u32     : u64 sum = ((u64)a << 2) + b; result = (u32)sum; SCC(sum >> 32)
s_lshl3_add_u32       u32 = u32 u32     : u64 sum = ((u64)a << 3) + b; result = (u32)sum; SCC(sum >> 32)
s_lshl4_add_u32       u32 = u32 u32     : u64 sum = ((u64)a << 4) + b; result = (u32)sum; SCC(sum >> 32)
s_absdiff_i32         u32 = u32 u32     : result = a - b; if ((i32)result < 0) result = -result; SCC(result != 0)
s_max_i32             u32 = i32 i32     : SCC(a > b); result = a > b ? a : b
s_min_i32             u32 = i32 i32     : SCC(a < b); result = a < b ? a : b
s_max_u32             u32 = u32 u32     : SCC(a > b); result = a > b ? a : b
s_min_u32             u32 = u32 u32     : SCC(a < b); result = a < b ? a : b

s_lshl_b32            u32 = u32 u32     : result = a << (b & 31); SCC(result != 0)
s_lshr_b32            u32 = u32 u32     : result = a >> (b & 31); SCC(result != 0)
s_ashr_i32            u32 = i32 u32     : result = (u32)(a >> (b & 31)); SCC(result != 0)
s_lshl_b64            u64 = u64 u32     : result = a << (b & 63); SCC(result != 0)
s_lshr_b64            u64 = u64 u32     : result = a >> (b & 63); SCC(result != 0)
s_ashr_i64            u64 = i64 u32     : result = (u64)(a >> (b & 63)); SCC(result != 0)
s_bfe_u32             u32 = u32 u32     : result = extract_unsigned(a, b & 31, b >> 16 & 127); SCC(result != 0)
s_bfe_i32             u32 = i32 u32     : result = (u32)extract_signed(a, b & 31, b >> 16 & 127); SCC(result != 0)
s_bfm_b32             u32 = u32 u32     : result = (((u32)1 << (a & 31)) - 1) << (b & 31)
s_bfm_b64             u64 = u32 u32     : result = (((u64)1 << (a & 63)) - 1) << (b & 63)
s_pack_ll_b32_b16     u32 = u32 u32     : result = (a & 0xffff) | b << 16

s_cmp_eq_u64          none = u64 u64    : SCC(a == b)
s_cmp_lg_u64          none = u64 u64    : SCC(a != b)
s_bitcmp0_b32         none = u32 u32    : SCC(!(a >> (b & 31) & 1))
s_bitcmp1_b32         none = u32 u32    : SCC(a >> (b & 31) & 1)
s_bitcmp0_b64         none = u64 u32    : SCC(!(a >> (b & 63) & 1))
s_bitcmp1_b64         none = u64 u32    : SCC(a >> (b & 63) & 1)
"""

BITWISE = {
    "and": "a & b",
    "or": "a | b",
    "xor": "a ^ b",
    "andn2": "a & ~b",
    "orn2": "a | ~b",
    "nand": "~(a & b)",
    "nor": "~(a | b)",
    "xnor": "~(a ^ b)",
}
# The new execution mask from the source a and the old mask, which goes to the destination.
SAVE_EXEC = {
    "and": "a & result",
    "or": "a | result",
    "xor": "a ^ result",
    "andn1": "~a & result",
    "andn2": "a & ~result",
    "orn1": "~a | result",
    "orn2": "a | ~result",
    "nand": "~(a & result)",
    "nor": "~(a | result)",
    "xnor": "~(a ^ result)",
}
# "Not equal" is "lg" (less or greater) for scalars and floats, "ne" for integers in vectors.
RELATIONS = {"eq": "==", "lg": "!=", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}
# Sources of opcodes that are written by hand, where constants are of other types than u32. Destinations come first.
HAND_TYPES = {
    "v_cndmask_b32": ["u32", "u32", "u32", "u64"],
    "v_div_scale_f32": ["f32", "u64", "f32", "f32", "f32"],
    "v_div_scale_f64": ["f64", "u64", "f64", "f64", "f64"],
    "v_div_fmas_f32": ["f32"] * 4,
    "v_div_fmas_f64": ["f64"] * 4,
    "v_mad_u64_u32": ["u64", "u64", "u32", "u32", "u64"],
    "v_mad_i64_i32": ["u64", "u64", "u32", "u32", "u64"],
    "v_pk_fma_f32": ["f32"] * 4,
    "v_pk_mul_f32": ["f32"] * 3,
    "v_pk_add_f32": ["f32"] * 3,
    "v_mfma_f64_16x16x4_f64": ["f64"] * 4,
    "v_mfma_f32_32x32x2_f32": ["f32"] * 4,
    "v_mfma_f32_16x16x4_f32": ["f32"] * 4,
    "v_mfma_f32_16x16x8_xf32": ["f32"] * 4,
    "v_mfma_f32_32x32x4_xf32": ["f32"] * 4,
}


@dataclass(frozen=True)
class Row:
    """An opcode of a table."""

    name: str
    result: str  # "none" where nothing but SCC is written
    sources: tuple[str, ...]
    expression: str


def _rows(table: str) -> list[Row]:
    pattern = re.compile(r"(\w+)\s+(\w+) = ([\w ]+?)\s*: (.*)")
    found = [pattern.fullmatch(line) for line in table.splitlines() if line]
    return [Row(row[1], row[2], tuple(row[3].split()), row[4]) for row in found if row is not None]


def scalar_rows() -> list[Row]:
    """Opcodes on scalars: those of the table and the regular families."""
    rows = _rows(SCALAR)
    for name, expression in BITWISE.items():
        for width in ("32", "64"):
            kind = f"u{width}"
            rows.append(Row(f"s_{name}_b{width}", kind, (kind, kind), f"result = {expression}; SCC(result != 0)"))
    for name, expression in SAVE_EXEC.items():
        body = f"result = w->exec; w->exec = {expression}; SCC(w->exec != 0)"
        rows.append(Row(f"s_{name}_saveexec_b64", "u64", ("u64",), body))
    for name, operator in RELATIONS.items():
        for kind in ("i32", "u32"):
            for prefix in ("s_cmp", "s_cmpk"):
                rows.append(Row(f"{prefix}_{name}_{kind}", "none", (kind, kind), f"SCC(a {operator} b)"))
    return rows


def comparison_rows() -> list[Row]:
    """Opcodes that make a mask of lanes; a comparison with NaN is false, and its negation (n...) true."""
    rows = [
        Row("v_cmp_class_f32", "u64", ("f32", "u32"), "class_f32(a) & b"),
        Row("v_cmp_class_f64", "u64", ("f64", "u32"), "class_f64(a) & b"),
    ]
    for kind in ("f32", "f64"):
        for name, operator in RELATIONS.items():
            expression = "a < b || a > b" if operator == "!=" else f"a {operator} b"
            rows.append(Row(f"v_cmp_{name}_{kind}", "u64", (kind, kind), expression))
            rows.append(Row(f"v_cmp_n{name}_{kind}", "u64", (kind, kind), f"!({expression})"))
        rows.append(Row(f"v_cmp_o_{kind}", "u64", (kind, kind), "a == a && b == b"))
        rows.append(Row(f"v_cmp_u_{kind}", "u64", (kind, kind), "a != a || b != b"))
    for relation, operator in RELATIONS.items():
        name = "ne" if relation == "lg" else relation
        kinds = ("i32", "u32", "i64", "u64")
        rows += [Row(f"v_cmp_{name}_{kind}", "u64", (kind, kind), f"a {operator} b") for kind in kinds]
        rows.append(Row(f"v_cmp_{name}_i16", "u64", ("u32", "u32"), f"(int16_t)a {operator} (int16_t)b"))
        rows.append(Row(f"v_cmp_{name}_u16", "u64", ("u32", "u32"), f"(uint16_t)a {operator} (uint16_t)b"))
    return rows


def _loads(row: Row, places: list[int]) -> str:
    """C that points p0, p1, ... at the sources of a vector opcode."""
    lines = []
    for index, (kind, place) in enumerate(zip(row.sources, places, strict=True)):
        width = "64" if kind in WIDE else "32"
        lines.append(f"    u{width} copy{index}[LANES];")
        arguments = f"w, in, {place}, copy{index}"
        lines.append(f"    const u{width} *p{index} = source_{width}({arguments});")
    return "\n".join(lines)


def _values(row: Row) -> str:
    """C that declares a, b, c in one lane."""
    lines = []
    for index, kind in enumerate(row.sources):
        value = f"p{index}[lane]"
        value = f"as_{kind}({value})" if kind in ("f32", "f64") else f"({kind}){value}"
        lines.append(f"        {kind} {SOURCES[index]} = {value};")
    return "\n".join(lines)


def _vector_function(row: Row, places: list[int]) -> str:
    value = f"bits_{row.result}(output_{row.result}(r, in))" if row.result[0] == "f" else "r"
    if row.result in WIDE:
        store = f"set_vector_pair(w, in->operand[0].reg, lane, (u64){value});"
    else:
        store = f"w->v[in->operand[0].reg][lane] = (u32){value};"
    return f"""static void op_{row.name}(struct wave *w, const struct instruction *in)
{{
    u64 written = written_lanes(w, in);
{_loads(row, places)}
    for (int lane = 0; lane < LANES; lane++) {{
        if (!is_active(written, lane))
            continue;
{_values(row)}
        {row.result} r = {row.expression};
        {store}
    }}
}}
"""


def _comparison_function(row: Row) -> str:
    return f"""static void op_{row.name}(struct wave *w, const struct instruction *in)
{{
    u64 mask = 0;
{_loads(row, [1, 2])}
    for (int lane = 0; lane < LANES; lane++) {{
        if (!is_active(w->exec, lane))
            continue;
{_values(row)}
        if ({row.expression})
            mask |= (u64)1 << lane;
    }}
    write_u64(w, &in->operand[0], mask);
}}
"""


def _scalar_function(row: Row) -> str:
    first = 0 if row.result == "none" else 1
    lines = []
    for index, kind in enumerate(row.sources):
        width = "64" if kind in WIDE else "32"
        lines.append(f"    {kind} {SOURCES[index]} = ({kind})read_u{width}(w, &in->operand[{first + index}]);")
    before = after = ""
    if row.result != "none":
        before = f"    {row.result} result = read_{row.result}(w, &in->operand[0]);\n"
        after = f"    write_{row.result}(w, &in->operand[0], result);\n"
    sources = "\n".join(lines)
    return f"""static void op_{row.name}(struct wave *w, const struct instruction *in)
{{
{sources}
{before}    {row.expression};
{after}}}
"""


@cache
def opcode_numbers() -> dict[str, int]:
    """Every opcode's place in the table of functions."""
    tables = [*_rows(VECTOR), *_rows(ACCUMULATING), *_rows(WITH_CONSTANT), *comparison_rows(), *scalar_rows()]
    names = [row.name for row in tables]
    for file in HAND_WRITTEN:
        names += re.findall(r"^(?:static void op_|OP_[A-Z_]+\()(\w+)", _source(file), flags=re.MULTILINE)
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return {name: number for number, name in enumerate(names)}


@cache
def operand_types(name: str) -> tuple[str, ...]:
    """Types of the operands, destinations first, as far as they are not u32."""
    if name in HAND_TYPES:
        return tuple(HAND_TYPES[name])
    for row in (*_rows(VECTOR), *_rows(ACCUMULATING), *_rows(WITH_CONSTANT), *comparison_rows()):
        if row.name == name:
            return (row.result, *row.sources)
    for row in scalar_rows():
        if row.name == name:
            return row.sources if row.result == "none" else (row.result, *row.sources)
    return ()


def _source(file: str) -> str:
    return (HERE / file).read_text(encoding="utf-8")


def c_source() -> str:
    """The whole machine as one C text."""
    parts = ['#include "gfx942/machine.h"\n', "#define SCC(x) (w->scc = (x) ? 1 : 0)\n"]
    parts += [_vector_function(row, [1, 2, 3][: len(row.sources)]) for row in _rows(VECTOR) + _rows(WITH_CONSTANT)]
    parts += [_vector_function(row, [1, 2, 0]) for row in _rows(ACCUMULATING)]
    parts += [_comparison_function(row) for row in comparison_rows()]
    parts += [_scalar_function(row) for row in scalar_rows()]
    parts += [_source(file) for file in HAND_WRITTEN]
    functions = ", ".join(f"op_{name}" for name in opcode_numbers())
    parts.append(f"static void (*const operations[])(struct wave *, const struct instruction *) = {{{functions}}};\n")
    parts.append(_source("run.c"))
    return "\n".join(parts)
