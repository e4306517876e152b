"""Vector opcodes of the gfx942 machine, lane by lane, against numpy: random operands and those at the edges."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.machine.building import compiler
from tests.machine.gfx942.decode import constant_bits
from tests.machine.gfx942_assembly import COUNT, UNSIGNED, assert_same, operands, registers, run

if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)


# --- One opcode, lane by lane -----------------------------------------------------------------------------------------


def s24(x):
    return (x << np.uint32(8)).view(np.int32).astype(np.int64) >> 8


def low32(x):
    return (x & 0xFFFFFFFF).astype(np.uint32)


def bits_of(function):
    return np.vectorize(function, otypes=[np.uint32])


def leading_zeros(x):
    return 32 - int(x).bit_length() if x else 0xFFFFFFFF


def trailing_zeros(x):
    return (int(x) & -int(x)).bit_length() - 1 if x else 0xFFFFFFFF


def sign_run(x):
    return 0xFFFFFFFF if x in (0, -1) else leading_zeros(x if x >= 0 else ~x)


def bytes_chosen(high, low, selector):
    """Each byte of the selector names one of eight bytes, the sign of a word (8..11), 0 (12) or 255."""
    source = (int(high) << 32 | int(low)).to_bytes(8, "little")
    signs = [255 * (source[2 * word + 1] >> 7) for word in range(4)]
    return int.from_bytes(
        bytes((*source, *signs, 0, 255, 255, 255)[min(b, 15)] for b in int(selector).to_bytes(4, "little")), "little"
    )


def fused(a, b, c):
    """a * b + c in one rounding, exactly."""
    return np.array([rounded_sum(*three) for three in zip(a, b, c, strict=True)], a.dtype)


def rounded_sum(a, b, c):
    dtype = type(a)
    if not all(map(math.isfinite, map(float, (a, b, c)))):
        with np.errstate(all="ignore"):
            return dtype(np.float64(a) * np.float64(b)) + c if dtype is np.float32 else a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        with np.errstate(all="ignore"):
            product_sign = math.copysign(1, a) * math.copysign(1, b)
            return dtype(0.0 * product_sign) + c if a == 0 or b == 0 else dtype(0)
    return nearest(exact, dtype)


def nearest(exact, dtype):
    """The number of a type that is nearest to a fraction, ties to even."""
    digits, least = (24, -149) if dtype is np.float32 else (53, -1074)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    value = round(size / unit) * unit
    if value >= Fraction(2) ** (128 if dtype is np.float32 else 1024):
        return dtype(math.inf if exact > 0 else -math.inf)
    return dtype(value if exact > 0 else -value)


def lesser(a, b):
    """The smaller number: NaN loses, -0 is below 0."""
    first = (a < b) | ((a == b) & np.signbit(a)) | np.isnan(b)
    return np.where(first & ~np.isnan(a), a, np.where(np.isnan(b), a, b))


def greater(a, b):
    return -lesser(-a, -b)


def middle(a, b, c):
    least = lesser(lesser(a, b), c)
    some_nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return np.where(some_nan, least, greater(lesser(a, b), lesser(greater(a, b), c)))


def fraction_of(x):
    below = x.dtype.type(1) - np.spacing(x.dtype.type(0.5))
    return np.where(x - np.floor(x) >= 1, below, x - np.floor(x))


def mantissa(x):
    return np.where(np.isfinite(x), np.frexp(np.where(np.isfinite(x), x, 0))[0], x)


def exponent(x):
    return np.frexp(np.where(np.isfinite(x), x, 0))[1]


def saturated(dtype):
    limits = np.iinfo(dtype)

    def convert(x):
        finite = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
        return np.trunc(np.clip(finite, limits.min, limits.max)).astype(np.int64).astype(dtype)

    return convert


def shift(x, by, bits):
    return x.dtype.type(0) + (x << (by & (bits - 1)).astype(x.dtype))


def shift_right(x, by, bits):
    return x >> (by & (bits - 1)).astype(x.dtype)


def field(x, offset, width):
    offset, width = offset & 31, width & 31
    return (x >> offset) & ((np.uint64(1) << width.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)


def signed_field(x, offset, width):
    width = (width & 31).astype(np.int64)
    value = field(x.view(np.uint32), offset, width.astype(np.uint32)).astype(np.int64)
    return np.where(width == 0, 0, ((value << (64 - width)) >> (64 - np.maximum(width, 1)))).astype(np.int32)


def middle_of_three(*values):
    return np.sort(np.stack(values), 0)[1]


def aligned(a, b, bits):
    return low32((a.astype(np.uint64) << np.uint64(32) | b) >> bits.astype(np.uint64))


TABLE = {
    "v_mov_b32": ("u32", "u32", lambda a: a),
    "v_mov_b64": ("u64", "u64", lambda a: a),
    "v_accvgpr_read_b32": ("u32", "u32", lambda a: a),
    "v_not_b32": ("u32", "u32", lambda a: ~a),
    "v_bfrev_b32": ("u32", "u32", bits_of(lambda x: int(f"{x:032b}"[::-1], 2))),
    "v_ffbh_u32": ("u32", "u32", bits_of(leading_zeros)),
    "v_ffbl_b32": ("u32", "u32", bits_of(trailing_zeros)),
    "v_ffbh_i32": ("u32", "i32", bits_of(sign_run)),
    "v_bcnt_u32_b32": ("u32", "u32 u32", lambda a, b: np.bitwise_count(a) + b),
    "v_and_b32": ("u32", "u32 u32", lambda a, b: a & b),
    "v_or_b32": ("u32", "u32 u32", lambda a, b: a | b),
    "v_xor_b32": ("u32", "u32 u32", lambda a, b: a ^ b),
    "v_xnor_b32": ("u32", "u32 u32", lambda a, b: ~(a ^ b)),
    "v_or3_b32": ("u32", "u32 u32 u32", lambda a, b, c: a | b | c),
    "v_and_or_b32": ("u32", "u32 u32 u32", lambda a, b, c: a & b | c),
    "v_bfi_b32": ("u32", "u32 u32 u32", lambda a, b, c: a & b | ~a & c),
    "v_bfe_u32": ("u32", "u32 u32 u32", field),
    "v_bfe_i32": ("i32", "i32 u32 u32", signed_field),
    "v_perm_b32": ("u32", "u32 u32 u32", bits_of(bytes_chosen)),
    "v_alignbit_b32": ("u32", "u32 u32 u32", lambda a, b, c: aligned(a, b, c & 31)),
    "v_alignbyte_b32": ("u32", "u32 u32 u32", lambda a, b, c: aligned(a, b, 8 * (c & 3))),
    "v_lshlrev_b32": ("u32", "u32 u32", lambda a, b: shift(b, a, 32)),
    "v_lshrrev_b32": ("u32", "u32 u32", lambda a, b: shift_right(b, a, 32)),
    "v_ashrrev_i32": ("i32", "u32 i32", lambda a, b: shift_right(b, a, 32)),
    "v_lshlrev_b64": ("u64", "u32 u64", lambda a, b: shift(b, a, 64)),
    "v_lshrrev_b64": ("u64", "u32 u64", lambda a, b: shift_right(b, a, 64)),
    "v_ashrrev_i64": ("i64", "u32 i64", lambda a, b: shift_right(b, a, 64)),
    "v_lshlrev_b16": ("u32", "u32 u32", lambda a, b: shift(b, a, 16) & 0xFFFF),
    "v_lshrrev_b16": ("u32", "u32 u32", lambda a, b: shift_right(b & 0xFFFF, a, 16)),
    "v_lshl_or_b32": ("u32", "u32 u32 u32", lambda a, b, c: shift(a, b, 32) | c),
    "v_lshl_add_u32": ("u32", "u32 u32 u32", lambda a, b, c: shift(a, b, 32) + c),
    "v_add_lshl_u32": ("u32", "u32 u32 u32", lambda a, b, c: shift(a + b, c, 32)),
    "v_lshl_add_u64": ("u64", "u64 u32 u64", lambda a, b, c: shift(a, b, 8) + c),
    "v_xad_u32": ("u32", "u32 u32 u32", lambda a, b, c: (a ^ b) + c),
    "v_add3_u32": ("u32", "u32 u32 u32", lambda a, b, c: a + b + c),
    "v_add_u32": ("u32", "u32 u32", lambda a, b: a + b),
    "v_sub_u32": ("u32", "u32 u32", lambda a, b: a - b),
    "v_subrev_u32": ("u32", "u32 u32", lambda a, b: b - a),
    "v_mul_lo_u32": ("u32", "u32 u32", lambda a, b: a * b),
    "v_mul_hi_u32": ("u32", "u32 u32", lambda a, b: (a.astype(np.uint64) * b) >> np.uint64(32)),
    "v_mul_hi_i32": ("i32", "i32 i32", lambda a, b: (a.astype(np.int64) * b) >> 32),
    "v_mul_u32_u24": ("u32", "u32 u32", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    "v_mul_hi_u32_u24": (
        "u32",
        "u32 u32",
        lambda a, b: ((a & 0xFFFFFF).astype(np.uint64) * (b & 0xFFFFFF)) >> np.uint64(32),
    ),
    "v_mul_i32_i24": ("u32", "u32 u32", lambda a, b: low32(s24(a) * s24(b))),
    "v_mad_u32_u24": ("u32", "u32 u32 u32", lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c),
    "v_mad_i32_i24": ("u32", "u32 u32 u32", lambda a, b, c: low32(s24(a) * s24(b)) + c),
    "v_max_i32": ("i32", "i32 i32", np.maximum),
    "v_min_i32": ("i32", "i32 i32", np.minimum),
    "v_max_u32": ("u32", "u32 u32", np.maximum),
    "v_min_u32": ("u32", "u32 u32", np.minimum),
    "v_max3_i32": ("i32", "i32 i32 i32", lambda *x: np.max(x, 0)),
    "v_min3_i32": ("i32", "i32 i32 i32", lambda *x: np.min(x, 0)),
    "v_max3_u32": ("u32", "u32 u32 u32", lambda *x: np.max(x, 0)),
    "v_min3_u32": ("u32", "u32 u32 u32", lambda *x: np.min(x, 0)),
    "v_med3_i32": ("i32", "i32 i32 i32", middle_of_three),
    "v_med3_u32": ("u32", "u32 u32 u32", middle_of_three),
    "v_add_u16": ("u32", "u32 u32", lambda a, b: (a + b) & 0xFFFF),
    "v_sub_u16": ("u32", "u32 u32", lambda a, b: (a - b) & 0xFFFF),
    "v_subrev_u16": ("u32", "u32 u32", lambda a, b: (b - a) & 0xFFFF),
    "v_mul_lo_u16": ("u32", "u32 u32", lambda a, b: (a * b) & 0xFFFF),
    "v_mad_u16": ("u32", "u32 u32 u32", lambda a, b, c: (a * b + c) & 0xFFFF),
    "v_cvt_f32_i32": ("f32", "i32", lambda a: a.astype(np.float32)),
    "v_cvt_f32_u32": ("f32", "u32", lambda a: a.astype(np.float32)),
    "v_cvt_f32_ubyte0": ("f32", "u32", lambda a: (a & 255).astype(np.float32)),
    "v_cvt_f32_f64": ("f32", "f64", lambda a: a.astype(np.float32)),
    "v_cvt_f64_i32": ("f64", "i32", lambda a: a.astype(np.float64)),
    "v_cvt_f64_u32": ("f64", "u32", lambda a: a.astype(np.float64)),
    "v_cvt_f64_f32": ("f64", "f32", lambda a: a.astype(np.float64)),
    "v_cvt_i32_f32": ("i32", "f32", saturated(np.int32)),
    "v_cvt_u32_f32": ("u32", "f32", saturated(np.uint32)),
    "v_cvt_i32_f64": ("i32", "f64", saturated(np.int32)),
    "v_cvt_u32_f64": ("u32", "f64", saturated(np.uint32)),
    "v_rcp_iflag_f32": ("f32", "f32", lambda a: np.float32(1) / a),
    "v_rcp_f32": ("f32", "f32", lambda a: np.float32(1) / a),
    "v_sub_f32": ("f32", "f32 f32", lambda a, b: a - b),
    "v_subrev_f32": ("f32", "f32 f32", lambda a, b: b - a),
    "v_max3_f32": ("f32", "f32 f32 f32", lambda a, b, c: greater(greater(a, b), c)),
    "v_min3_f32": ("f32", "f32 f32 f32", lambda a, b, c: lesser(lesser(a, b), c)),
    "v_med3_f32": ("f32", "f32 f32 f32", middle),
    "v_sqrt_f32": ("f32", "f32", np.sqrt),
}
for _kind in ("f32", "f64"):
    TABLE |= {
        f"v_add_{_kind}": (_kind, f"{_kind} {_kind}", lambda a, b: a + b),
        f"v_mul_{_kind}": (_kind, f"{_kind} {_kind}", lambda a, b: a * b),
        f"v_fma_{_kind}": (_kind, f"{_kind} {_kind} {_kind}", fused),
        f"v_max_{_kind}": (_kind, f"{_kind} {_kind}", greater),
        f"v_min_{_kind}": (_kind, f"{_kind} {_kind}", lesser),
        f"v_floor_{_kind}": (_kind, _kind, np.floor),
        f"v_ceil_{_kind}": (_kind, _kind, np.ceil),
        f"v_trunc_{_kind}": (_kind, _kind, np.trunc),
        f"v_rndne_{_kind}": (_kind, _kind, np.rint),
        f"v_fract_{_kind}": (_kind, _kind, fraction_of),
        f"v_ldexp_{_kind}": (_kind, f"{_kind} i32", np.ldexp),
        f"v_frexp_mant_{_kind}": (_kind, _kind, mantissa),
        f"v_frexp_exp_i32_{_kind}": ("i32", _kind, exponent),
    }
# Numpy's own error; those of float64 are starting values of an iteration.
INEXACT = {
    "v_rsq_f32": lambda a: 1 / np.sqrt(a.astype(np.float64)),
    "v_exp_f32": lambda a: np.exp2(a.astype(np.float64)),
    "v_log_f32": lambda a: np.log2(a.astype(np.float64)),
}
STARTING = {"v_rcp_f64": lambda a: 1 / a, "v_rsq_f64": lambda a: 1 / np.sqrt(a), "v_sqrt_f64": np.sqrt}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_opcode_computes_what_numpy_computes(folder, name):
    result, sources, function = TABLE[name]
    sources = sources.split()
    given = operands(sources)
    places = ", ".join(registers(10 + 2 * k, kind) for k, kind in enumerate(sources))
    (actual,) = run(folder, f"{name}_e64 {registers(20, result)}, {places}", sources, [result], given)
    assert_same(actual, function(*given))


@pytest.mark.parametrize("name", INEXACT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_float32_function_is_the_nearest_number(folder, name):
    given = operands(["f32"])
    (actual,) = run(folder, f"{name}_e32 v20, v10", ["f32"], ["f32"], given)
    assert_same(actual, INEXACT[name](given[0]).astype(np.float32), ulps=1)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_and_cosine_take_turns(folder, name):
    turns = np.linspace(-3, 3, COUNT).astype(np.float32)
    (actual,) = run(folder, f"v_{name}_f32_e32 v20, v10", ["f32"], ["f32"], [turns])
    np.testing.assert_allclose(actual, getattr(np, name)(2 * np.pi * turns.astype(np.float64)), atol=1e-7)


@pytest.mark.parametrize("name", STARTING)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_float64_reciprocal_or_root_is_a_starting_value_only(folder, name):
    given = operands(["f64"])
    (actual,) = run(folder, f"{name}_e32 v[20:21], v[10:11]", ["f64"], ["f64"], given)
    expected = STARTING[name](given[0])
    normal = np.isfinite(expected) & (np.abs(expected) > 1e-300)
    np.testing.assert_allclose(actual[normal], expected[normal], rtol=2.0**-25)
    assert (actual[normal] != expected[normal]).any()
    assert_same(actual[~np.isfinite(expected)], expected[~np.isfinite(expected)])


@pytest.mark.parametrize("name", ["v_fmac_f32", "v_fmac_f64", "v_fmaak_f32", "v_fmamk_f32"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fused_products_with_a_sum_in_place_or_a_constant(folder, name):
    kind = name[-3:]
    a, b, c = operands([kind] * 3)
    constant = np.full(COUNT, 0x40490FDB, np.uint32).view(np.float32)
    places = [registers(10 + 2 * k, kind) for k in range(3)]
    result = registers(20, kind)
    move = f"v_mov_b{kind[1:]}_e32 {result}, {places[2]}\n"
    text, expected = {
        "v_fmac_f32": (f"{move}{name}_e32 {result}, {places[0]}, {places[1]}", (a, b, c)),
        "v_fmac_f64": (f"{move}{name}_e32 {result}, {places[0]}, {places[1]}", (a, b, c)),
        "v_fmaak_f32": (f"{name} v20, v10, v12, 0x40490fdb", (a, b, constant)),
        "v_fmamk_f32": (f"{name} v20, v10, 0x40490fdb, v12", (a, constant, b)),
    }[name]
    (actual,) = run(folder, text, [kind] * 3, [kind], [a, b, c])
    assert_same(actual, fused(*expected))


# --- Modifiers --------------------------------------------------------------------------------------------------------


def clamped(x):
    return np.where(x > 0, np.minimum(x, 1), np.zeros_like(x))


@pytest.mark.parametrize(
    ("operand", "change"),
    [
        ("-v10", np.negative),
        ("|v10|", np.abs),
        ("-|v10|", lambda x: -np.abs(x)),
        ("neg(v10)", np.negative),
        ("abs(v10)", np.abs),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_signs_of_sources(folder, operand, change):
    a, b = operands(["f32", "f32"])
    (actual,) = run(folder, f"v_add_f32_e64 v20, {operand}, v12", ["f32", "f32"], ["f32"], [a, b])
    assert_same(actual, change(a) + b)
    wide = operands(["f64", "f64"])
    text = f"v_add_f64 v[20:21], {operand.replace('v10', 'v[10:11]')}, v[12:13]"
    (actual,) = run(folder, text, ["f64", "f64"], ["f64"], wide)
    assert_same(actual, change(wide[0]) + wide[1])


@pytest.mark.parametrize(
    ("modifier", "change"),
    [
        ("mul:2", lambda x: x * 2),
        ("mul:4", lambda x: x * 4),
        ("div:2", lambda x: x / 2),
        ("clamp", clamped),
        ("mul:2 clamp", lambda x: clamped(2 * x)),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_modifiers_of_the_result(folder, modifier, change):
    for kind in ("f32", "f64"):
        a, b = operands([kind, kind])
        places = ", ".join(registers(k, kind) for k in (20, 10, 12))
        (actual,) = run(folder, f"v_add_{kind}_e64 {places} {modifier}", [kind, kind], [kind], [a, b])
        assert_same(actual, change(a + b))


@pytest.mark.parametrize(("name", "sign"), [("v_add_u32", 1), ("v_sub_u32", -1)])
def test_unsigned_sums_saturate_under_clamp(folder, name, sign):
    a, b = operands(["u32", "u32"])
    (actual,) = run(folder, f"{name}_e64 v20, v10, v12 clamp", ["u32", "u32"], ["u32"], [a, b])
    assert_same(actual, np.clip(a.astype(np.int64) + sign * b.astype(np.int64), 0, 0xFFFFFFFF))


@pytest.mark.parametrize(
    ("text", "kind", "bits"),
    [
        ("1.0", "f32", 0x3F800000),
        ("-4.0", "f64", 0xC010000000000000),
        ("0.15915494", "f32", 0x3E22F983),
        ("0.15915494309189532", "f64", 0x3FC45F306DC9C882),
        ("0x3ff00000", "f64", 0x3FF0000000000000),
        ("0x3f000000", "f32", 0x3F000000),
        ("-1", "u32", 0xFFFFFFFF),
        ("-1", "u64", 0xFFFFFFFFFFFFFFFF),
        ("64", "f64", 64),
    ],
)
def test_constants_have_the_bits_of_their_type(text, kind, bits):
    assert constant_bits(text, kind) == bits


PARTS = {
    "BYTE_0": (0, 8),
    "BYTE_1": (8, 8),
    "BYTE_2": (16, 8),
    "BYTE_3": (24, 8),
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
}


def part_of(x, part, signed=False):
    if part == "DWORD":
        return x
    at, width = PARTS[part]
    value = (x >> np.uint32(at)) & np.uint32((1 << width) - 1)
    return (value << np.uint32(32 - width)).view(np.int32) >> (32 - width) if signed else value


@pytest.mark.parametrize("first", [*PARTS, "DWORD"])
@pytest.mark.parametrize("second", ["WORD_1", "DWORD"])
@pytest.mark.parametrize("signed", [False, True])
def test_sdwa_selects_parts_of_sources(folder, first, second, signed):
    a, b = operands(["u32", "u32"])
    source = "sext(v10)" if signed else "v10"
    text = f"v_add_u32_sdwa v20, {source}, v12 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:{first} src1_sel:{second}"
    (actual,) = run(folder, text, ["u32", "u32"], ["u32"], [a, b])
    assert_same(actual, part_of(a, first, signed).astype(np.int64).astype(np.uint32) + part_of(b, second))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("unused", ["PAD", "PRESERVE"])
def test_sdwa_writes_a_part_of_the_destination(folder, part, unused):
    a, b = operands(["u32", "u32"])
    text = f"""
        v_mov_b32_e32 v20, v12
        v_mov_b32_sdwa v20, v10 dst_sel:{part} dst_unused:UNUSED_{unused} src0_sel:DWORD
    """
    (actual,) = run(folder, text, ["u32", "u32"], ["u32"], [a, b])
    at, width = PARTS[part]
    mask = np.uint32(((1 << width) - 1) << at)
    assert_same(actual, (b & ~mask if unused == "PRESERVE" else 0) | (a << np.uint32(at)) & mask)


# --- Comparisons, carries, selection ----------------------------------------------------------------------------------

RELATIONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
COMPARISONS = [
    (f"v_cmp_{name}_{kind}", kind, function)
    for name, function in RELATIONS.items()
    for kind in ("i32", "u32", "i64", "u64")
]
for _kind in ("f32", "f64"):
    COMPARISONS += [(f"v_cmp_{name}_{_kind}", _kind, RELATIONS[name]) for name in ("eq", "lt", "le", "gt", "ge")]
    COMPARISONS += [
        (f"v_cmp_n{name}_{_kind}", _kind, lambda a, b, f=RELATIONS[name]: ~f(a, b))
        for name in ("eq", "lt", "le", "gt", "ge")
    ]
    COMPARISONS += [
        (f"v_cmp_lg_{_kind}", _kind, lambda a, b: (a < b) | (a > b)),
        (f"v_cmp_nlg_{_kind}", _kind, lambda a, b: ~((a < b) | (a > b))),
        (f"v_cmp_o_{_kind}", _kind, lambda a, b: ~(np.isnan(a) | np.isnan(b))),
        (f"v_cmp_u_{_kind}", _kind, lambda a, b: np.isnan(a) | np.isnan(b)),
    ]
COMPARISONS += [
    (f"v_cmp_{name}_{letter}16", "u32", lambda a, b, f=function, t=dtype: f(a.astype(t), b.astype(t)))
    for name, function in RELATIONS.items()
    for letter, dtype in (("i", np.int16), ("u", np.uint16))
]


@pytest.mark.parametrize(("name", "kind", "function"), COMPARISONS, ids=[name for name, _, _ in COMPARISONS])
def test_a_comparison_makes_a_mask_and_selects_by_it(folder, name, kind, function):
    given = operands([kind, kind])
    places = f"{registers(10, kind)}, {registers(12, kind)}"
    text = f"""
        {name}_e64 s[30:31], {places}
        v_cndmask_b32_e64 v20, 0, 1, s[30:31]
        {name}_e32 vcc, {places}
        v_cndmask_b32_e32 v22, 7, v0, vcc
    """
    explicit, implied = run(folder, text, [kind, kind], ["u32", "u32"], given)
    expected = function(*given)
    assert_same(explicit, expected)
    assert_same(implied, np.where(expected, np.arange(COUNT), 7))


def class_bit(x):
    """Bit of the class: signalling NaN, quiet NaN, -inf, -normal, -denormal, -0, and the positive ones backwards."""
    tiny = np.finfo(x.dtype).tiny
    size = np.select([np.isnan(x), np.isinf(x), x == 0, np.abs(x) < tiny], [-1, 0, 3, 2], 1)
    return np.where(size == -1, 1, np.where(np.signbit(x), 2 + size, 9 - size))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_classes_of_numbers(folder, kind):
    (x,) = operands([kind])
    mask = np.random.default_rng(1).integers(0, 1024, COUNT).astype(np.uint32)
    text = f"""
        v_cmp_class_{kind}_e64 s[30:31], {registers(10, kind)}, v12
        v_cndmask_b32_e64 v20, 0, 1, s[30:31]
    """
    (actual,) = run(folder, text, [kind, "u32"], ["u32"], [x, mask])
    assert_same(actual, mask >> class_bit(x).astype(np.uint32) & 1)


@pytest.mark.parametrize(
    ("name", "subtracts", "reversed_", "carries"),
    [
        ("v_add_co_u32", False, False, False),
        ("v_sub_co_u32", True, False, False),
        ("v_subrev_co_u32", True, True, False),
        ("v_addc_co_u32", False, False, True),
        ("v_subb_co_u32", True, False, True),
        ("v_subbrev_co_u32", True, True, True),
    ],
)
def test_carries(folder, name, subtracts, reversed_, carries):
    a, b, c = operands(["u32"] * 3)
    text = """
        v_and_b32_e32 v14, 1, v14
        v_cmp_ne_u32_e64 s[30:31], 0, v14
    """
    text += f"""
            {name}_e64 v20, s[32:33], v10, v12{", s[30:31]" if carries else ""}
            v_cndmask_b32_e64 v22, 0, 1, s[32:33]
        """
    total, out = run(folder, text, ["u32"] * 3, ["u32", "u32"], [a, b, c])
    x, y = (b, a) if reversed_ else (a, b)
    carry = (c & 1 if carries else 0 * c).astype(np.int64)
    exact = x.astype(np.int64) - y - carry if subtracts else x.astype(np.int64) + y + carry
    assert_same(total, low32(exact))
    assert_same(out, (exact < 0) | (exact > 0xFFFFFFFF))


def test_products_of_32_bits_added_in_64(folder):
    a, b, c = operands(["u32", "u32", "u64"])
    text = """
        v_mad_u64_u32 v[20:21], s[30:31], v10, v12, v[14:15]
        v_cndmask_b32_e64 v22, 0, 1, s[30:31]
    """
    total, overflow = run(folder, text, ["u32", "u32", "u64"], ["u64", "u32"], [a, b, c])
    exact = [int(x) * int(y) + int(z) for x, y, z in zip(a, b, c, strict=True)]
    assert_same(total, np.array([x & (1 << 64) - 1 for x in exact], np.uint64))
    assert_same(overflow, np.array([x >> 64 for x in exact]))
    text = "v_mad_i64_i32 v[20:21], s[30:31], v10, v12, v[14:15]"
    (total,) = run(folder, text, ["i32", "i32", "i64"], ["i64"], [a.view(np.int32), b.view(np.int32), c.view(np.int64)])
    assert_same(total, a.view(np.int32).astype(np.int64) * b.view(np.int32) + c.view(np.int64))


DIVISIONS = {
    "f32": """
        v_div_scale_f32 v30, s[30:31], v12, v12, v10
        v_div_scale_f32 v32, vcc, v10, v12, v10
        v_rcp_f32_e32 v34, v30
        v_fma_f32 v36, -v30, v34, 1.0
        v_fmac_f32_e32 v34, v36, v34
        v_mul_f32_e32 v38, v32, v34
        v_fma_f32 v36, -v30, v38, v32
        v_fmac_f32_e32 v38, v36, v34
        v_fma_f32 v30, -v30, v38, v32
        v_div_fmas_f32 v30, v30, v34, v38
        v_div_fixup_f32 v20, v30, v12, v10""",
    "f64": """
        v_div_scale_f64 v[30:31], s[30:31], v[12:13], v[12:13], v[10:11]
        v_rcp_f64_e32 v[34:35], v[30:31]
        v_fma_f64 v[36:37], -v[30:31], v[34:35], 1.0
        v_fma_f64 v[34:35], v[34:35], v[36:37], v[34:35]
        v_fma_f64 v[36:37], -v[30:31], v[34:35], 1.0
        v_fma_f64 v[34:35], v[34:35], v[36:37], v[34:35]
        v_div_scale_f64 v[32:33], vcc, v[10:11], v[12:13], v[10:11]
        v_mul_f64 v[38:39], v[32:33], v[34:35]
        v_fma_f64 v[36:37], -v[30:31], v[38:39], v[32:33]
        v_div_fmas_f64 v[36:37], v[36:37], v[34:35], v[38:39]
        v_div_fixup_f64 v[20:21], v[36:37], v[12:13], v[10:11]""",
}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_compilers_division_is_correctly_rounded(folder, kind):
    # v_div_scale, v_rcp, fused steps, v_div_fmas, v_div_fixup: as LLVM writes a / b.
    a, b = operands([kind, kind])
    wide = np.random.default_rng(3).integers(0, 1 << 63, (2, COUNT), np.uint64)  # any exponent
    wide = [x.astype(UNSIGNED[a.itemsize]).view(a.dtype) for x in wide]
    for given in ([a, b], wide):
        (actual,) = run(folder, DIVISIONS[kind], [kind, kind], [kind], given)
        expected = given[0] / given[1]
        # The manual does not say what a quotient beyond the largest number becomes; a small one is rounded twice.
        beyond = np.isinf(expected) & np.isfinite(given[0]) & (given[1] != 0)
        small = np.abs(expected) < np.finfo(a.dtype).tiny
        assert_same(actual[~small & ~beyond], expected[~small & ~beyond])
        assert_same(actual[small], expected[small], ulps=1)


def test_accumulation_registers_are_registers(folder):
    (a,) = operands(["u32"])
    text = "v_accvgpr_write_b32 a3, v10\nv_accvgpr_mov_b32 a7, a3\nv_accvgpr_read_b32 v20, a7"
    (actual,) = run(folder, text, ["u32"], ["u32"], [a])
    assert_same(actual, a)
