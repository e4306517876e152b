"""Opcodes of the gfx942 machine against numpy: random operands and those at the edges of their types."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.machine.building import compiler
from tests.machine.gfx942.decode import UnknownOpcodeError, UnknownSyntaxError, constant_bits, decode, swizzle_pattern
from tests.machine.gfx942.opcodes import opcode_numbers
from tests.machine.gfx942_assembly import LANES, binary_of, execute

if compiler() is None:
    pytest.skip("no C compiler: the machine cannot be built", allow_module_level=True)

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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("machine")


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


# --- Packed operations, matrices --------------------------------------------------------------------------------------


def halves(values):
    return values.view(np.float32).reshape(COUNT, 2)


@pytest.mark.parametrize("name", ["v_pk_add_f32", "v_pk_mul_f32", "v_pk_fma_f32"])
@pytest.mark.parametrize(
    ("modifiers", "low", "high", "signs"),
    [
        ("", (0, 0, 0), (1, 1, 1), ((1, 1, 1), (1, 1, 1))),
        ("op_sel:[1,0,1] op_sel_hi:[0,1,0]", (1, 0, 1), (0, 1, 0), ((1, 1, 1), (1, 1, 1))),
        ("neg_lo:[1,0,1] neg_hi:[0,1,0]", (0, 0, 0), (1, 1, 1), ((-1, 1, -1), (1, -1, 1))),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_packed_floats(folder, name, modifiers, low, high, signs):
    count = 3 if name == "v_pk_fma_f32" else 2
    given = [np.stack(operands(["f32", "f32"], seed), 1).view(np.uint64).ravel() for seed in range(count)]
    places = ", ".join(f"v[{10 + 2 * k}:{11 + 2 * k}]" for k in range(count))
    modifiers = modifiers.replace(",1]", "]").replace(",0]", "]") if count == 2 else modifiers
    (actual,) = run(folder, f"{name} v[20:21], {places} {modifiers}", ["u64"] * count, ["u64"], given)
    function = {"v_pk_add_f32": np.add, "v_pk_mul_f32": np.multiply, "v_pk_fma_f32": fused}[name]
    for half, chosen in enumerate((low, high)):
        sources = [np.float32(signs[half][k]) * halves(given[k])[:, chosen[k]] for k in range(count)]
        assert_same(halves(actual)[:, half].copy(), function(*sources))


@pytest.mark.parametrize(("select", "low", "high"), [("", 0, 0), ("op_sel:[1,0]", 1, 0), ("op_sel:[0,1]", 0, 1)])
def test_packed_move(folder, select, low, high):
    given = operands(["u64", "u64"])
    (actual,) = run(folder, f"v_pk_mov_b32 v[20:21], v[10:11], v[12:13] {select}", ["u64", "u64"], ["u64"], given)
    words = [values.view(np.uint32).reshape(COUNT, 2) for values in given]
    assert_same(actual, np.stack([words[0][:, low], words[1][:, high]], 1).copy().view(np.uint64).ravel())


MATRICES = {
    "v_mfma_f32_32x32x2_f32": (32, 2, 1),
    "v_mfma_f32_16x16x4_f32": (16, 4, 1),
    "v_mfma_f32_16x16x8_xf32": (16, 8, 2),
    "v_mfma_f32_32x32x4_xf32": (32, 4, 2),
    "v_mfma_f64_16x16x4_f64": (16, 4, 1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrix_products_of_integers_are_exact(folder, name):
    size, depth, per_lane = MATRICES[name]
    dtype, words = (np.float64, 2) if "f64" in name[:10] else (np.float32, 1)
    rng = np.random.default_rng(0)
    A, B, C = (rng.integers(-30, 31, shape).astype(dtype) for shape in ((size, depth), (depth, size), (size, size)))
    lane, number = np.arange(LANES), size * size // LANES
    held = lane[:, None] // size * per_lane + np.arange(per_lane)  # of the depth, by each lane
    entry = np.arange(number)
    # The manual's layout of C and D: blocks of four rows by lanes, in float64 every fourth row.
    row = (
        lane[:, None] // size + 4 * entry
        if words == 2
        else entry // 4 * 4 * (LANES // size) + 4 * (lane[:, None] // size) + entry % 4
    )
    column = np.broadcast_to(lane[:, None] % size, row.shape)
    given = [A[lane[:, None] % size, held], B[held, lane[:, None] % size], C[row, column]]
    out = tensor(np.zeros((LANES, number), dtype))
    counts, firsts = [per_lane * words, per_lane * words, number * words], [10, 14, 32]
    body = ""
    for k, (count, first) in enumerate(zip(counts, firsts, strict=True)):
        body += f"v_mul_u32_u24_e32 v3, {4 * count}, v0\n"
        body += "".join(
            f"global_load_dword v{first + j}, v3, s[{4 + 2 * k}:{5 + 2 * k}] offset:{4 * j}\n" for j in range(count)
        )
    spans = [
        f"v[{first}:{first + count - 1}]" if count > 1 else f"v{first}"
        for first, count in zip(firsts, counts, strict=True)
    ]
    body += f"""
            s_waitcnt vmcnt(0)
            s_mov_b64 exec, 1
            {name} a[0:{counts[2] - 1}], {", ".join(spans)}
            s_mov_b64 exec, -1
        """
    body += "".join(
        f"v_accvgpr_read_b32 v5, a{j}\nglobal_store_dword v3, v5, s[10:11] offset:{4 * j}\n" for j in range(counts[2])
    )
    outcome = execute(folder, body, *map(tensor, given), out)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(out.numpy().view(dtype).reshape(LANES, number), (A @ B + C)[row, column])


def test_negated_matrices_of_float64(folder):
    rng = np.random.default_rng(1)
    A, B = rng.integers(-9, 10, (16, 4)).astype(float), rng.integers(-9, 10, (4, 16)).astype(float)
    lane = np.arange(LANES)
    given = [A[lane % 16, lane // 16], B[lane // 16, lane % 16]]
    out = tensor(np.zeros((LANES, 4)))
    body = """
        global_load_dwordx2 v[10:11], v2, s[4:5]
        global_load_dwordx2 v[12:13], v2, s[6:7]
        s_waitcnt vmcnt(0)
        v_mfma_f64_16x16x4_f64 v[20:27], v[10:11], v[12:13], 0 neg:[1,0,0]
        v_lshlrev_b32_e32 v3, 5, v0
        global_store_dwordx4 v3, v[20:23], s[8:9]
        global_store_dwordx4 v3, v[24:27], s[8:9] offset:16
    """
    execute(folder, body, *map(tensor, given), out)
    row = lane[:, None] // 16 + 4 * np.arange(4)
    np.testing.assert_array_equal(out.numpy().view(np.float64).reshape(LANES, 4), -(A @ B)[row, lane[:, None] % 16])


def test_xf32_products_see_ten_bits_of_the_mantissa(folder):
    x = np.full(LANES, 1 + 2.0**-10 + 2.0**-11 + 2.0**-20, np.float32)  # rounds up to 1 + 2^-9
    one = np.ones(LANES, np.float32)
    out = tensor(np.zeros((LANES, 4), np.float32))
    body = """
        global_load_dword v10, v1, s[4:5]
        global_load_dword v12, v1, s[6:7]
        v_mov_b32_e32 v11, 0
        v_mov_b32_e32 v13, 0
        s_waitcnt vmcnt(0)
        v_mfma_f32_16x16x8_xf32 v[20:23], v[10:11], v[12:13], 0
        v_lshlrev_b32_e32 v3, 4, v0
    """
    body += "global_store_dwordx4 v3, v[20:23], s[8:9]\n"
    execute(folder, body, tensor(x), tensor(one), out)
    assert (out.numpy().view(np.float32) == 4 * (1 + 2.0**-9)).all()


# --- Between lanes ----------------------------------------------------------------------------------------------------

LANE = np.arange(LANES)
ROW, PLACE = LANE & ~15, LANE & 15
DPP = {
    "quad_perm:[1,3,0,2]": (LANE & ~3) | np.array([1, 3, 0, 2])[LANE & 3],
    "row_shl:3": np.where(PLACE + 3 < 16, LANE + 3, -1),
    "row_shr:5": np.where(PLACE >= 5, LANE - 5, -1),
    "row_ror:7": ROW | (PLACE - 7) % 16,
    "row_mirror": ROW | 15 - PLACE,
    "row_half_mirror": (LANE & ~7) | 7 - (LANE & 7),
    "row_bcast:15": np.where(LANE >= 16, ROW - 1, -1),
    "row_bcast:31": np.where(LANE >= 32, 31, -1),
    "row_newbcast:6": ROW | 6,
    "wave_shl:1": np.where(LANE < 63, LANE + 1, -1),
    "wave_shr:1": LANE - 1,
    "wave_rol:1": (LANE + 1) % 64,
    "wave_ror:1": (LANE - 1) % 64,
}


def in_waves(lanes):
    """The same lanes in every wave."""
    return np.concatenate([np.where(lanes < 0, -1, lanes + wave * LANES) for wave in range(WAVES)])


@pytest.mark.parametrize("control", DPP)
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("active", [0xFFFFFFFFFFFFFFFF, 0xF0F0FF0F5555AAAA])
def test_dpp_moves_lanes(folder, control, bound, active):
    a, old = operands(["u32", "u32"])
    is_active = np.array([active >> int(lane) & 1 for lane in LANE], bool)
    text = f"""
        v_mov_b32_e32 v20, v12
        s_mov_b32 s30, {active & 0xFFFFFFFF:#x}
        s_mov_b32 s31, {active >> 32:#x}
        s_mov_b64 exec, s[30:31]
        v_mov_b32_dpp v20, v10 {control} row_mask:0xf bank_mask:0xf {"bound_ctrl:1" if bound else ""}
        s_mov_b64 exec, -1
    """
    (actual,) = run(folder, text, ["u32", "u32"], ["u32"], [a, old])
    source = DPP[control]
    has_source = in_waves(np.where((source >= 0) & is_active[source], source, -1))
    moved = np.where(has_source >= 0, a[has_source], 0 if bound else old)
    assert_same(actual, np.where(np.tile(is_active, WAVES), moved, old))


def test_dpp_masks_rows_and_banks_and_sources_alone(folder):
    a, b = operands(["u32", "u32"])
    text = """
        v_mov_b32_e32 v20, v12
        v_add_u32_dpp v20, v10, v12 row_shr:1 row_mask:0x5 bank_mask:0xa bound_ctrl:1
    """
    (actual,) = run(folder, text, ["u32", "u32"], ["u32"], [a, b])
    source = in_waves(np.where(PLACE >= 1, LANE - 1, -1))
    written = np.tile((5 >> LANE // 16 & 1 & 10 >> LANE % 16 // 4 & 1).astype(bool), WAVES)
    assert_same(actual, np.where(written, np.where(source >= 0, a[source], 0) + b, b))


def test_lanes_are_fetched_from_and_sent_to_addresses(folder):
    (data,) = operands(["u32"])
    rng = np.random.default_rng(2)
    order = np.concatenate([rng.permutation(LANES) for _ in range(WAVES)])
    text = """
        v_lshlrev_b32_e32 v12, 2, v12
        ds_bpermute_b32 v20, v12, v10
        ds_permute_b32 v22, v12, v10
        s_waitcnt lgkmcnt(0)
    """
    fetched, sent = run(folder, text, ["u32", "u32"], ["u32", "u32"], [data, order.astype(np.uint32)])
    wave = np.arange(COUNT) // LANES * LANES
    assert_same(fetched, data[wave + order])
    expected = np.zeros_like(data)
    expected[wave + order] = data
    assert_same(sent, expected)


SWIZZLES = {
    "swizzle(SWAP,16)": LANE ^ 16,
    "swizzle(REVERSE,8)": LANE ^ 7,
    "swizzle(BROADCAST,4,2)": (LANE & ~3) | 2,
    "swizzle(QUAD_PERM,2,3,0,1)": LANE ^ 2,
    'swizzle(BITMASK_PERM,"01pip")': (LANE & 32) | (LANE & 0b00111 | 0b01000) ^ 0b00010,
}


@pytest.mark.parametrize("pattern", SWIZZLES)
def test_swizzles(folder, pattern):
    (data,) = operands(["u32"])
    (actual,) = run(folder, f"ds_swizzle_b32 v20, v10 offset:{pattern}", ["u32"], ["u32"], [data])
    assert_same(actual, data[in_waves(SWIZZLES[pattern])])


def test_unknown_swizzles_raise():
    with pytest.raises(UnknownSyntaxError, match="FFT"):
        swizzle_pattern("swizzle(FFT,3)")


def test_lanes_and_scalars(folder):
    (a,) = operands(["u32"])
    text = """
        s_mov_b64 exec, 0xf0
        v_readfirstlane_b32 s30, v10
        s_mov_b64 exec, -1
        v_readlane_b32 s31, v10, 63
        v_mov_b32_e32 v20, s30
        v_mov_b32_e32 v22, s31
        v_mov_b32_e32 v24, v10
        v_writelane_b32 v24, s31, 5
    """
    first, last, written = run(folder, text, ["u32"], ["u32"] * 3, [a])
    waves = a.reshape(WAVES, LANES)
    assert_same(first, np.repeat(waves[:, 4], LANES))
    assert_same(last, np.repeat(waves[:, 63], LANES))
    expected = waves.copy()
    expected[:, 5] = waves[:, 63]
    assert_same(written, expected.ravel())


def test_lanes_are_counted_below_each(folder):
    (a,) = operands(["u32"])
    text = """
        v_mbcnt_lo_u32_b32 v20, v10, 5
        v_mbcnt_hi_u32_b32 v22, v10, 5
    """
    low, high = run(folder, text, ["u32"], ["u32", "u32"], [a])
    below = np.tile(LANE, WAVES).astype(np.uint64)
    lower = (np.uint64(1) << np.minimum(below, 32)) - np.uint64(1)
    upper = (np.uint64(1) << np.maximum(below, 32) - np.uint64(32)) - np.uint64(1)
    assert_same(low, np.bitwise_count(a & lower) + 5)
    assert_same(high, np.bitwise_count(a & upper) + 5)


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


def pair(first, bits):
    return f"s[{first}:{first + 1}]" if bits == 64 else f"s{first}"


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


# --- Memory -----------------------------------------------------------------------------------------------------------

WIDTHS = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
NARROW = {"ubyte": np.uint8, "sbyte": np.int8, "ushort": np.uint16, "sshort": np.int16}
# A buffer that starts at s[4:5] and has s12 bytes.
BUFFER = """
    s_mov_b32 s20, s4
    s_and_b32 s21, s5, 0xffff
    s_mov_b32 s23, 0x27000
"""


def span(first, count):
    return f"v[{first}:{first + count - 1}]" if count > 1 else f"v{first}"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("how", ["scalar base", "vector address", "buffer"])
def test_numbers_pass_through_memory(folder, width, how):
    size = WIDTHS[width]
    data = np.random.default_rng(size).integers(0, 256, LANES * size).astype(np.uint8)
    out = tensor(np.zeros_like(data))
    held = span(10, size // 4)
    body = f"v_mul_u32_u24_e32 v3, {size}, v0\n"
    if how == "buffer":
        body += f"""
            {BUFFER}s_movk_i32 s22, {LANES * size}
            s_mov_b32 s24, 0
            buffer_load_{width} {held}, v3, s[20:23], s24 offen
            s_waitcnt vmcnt(0)
            s_mov_b32 s20, s6
            s_mov_b32 s21, s7
        """
        body += f"buffer_store_{width} {held}, v3, s[20:23], 0 offen\n"
    elif how == "scalar base":
        body += f"""
            v_add_u32_e32 v3, 8, v3
            global_load_{width} {held}, v3, s[4:5] offset:-8
            s_waitcnt vmcnt(0)
            v_subrev_u32_e32 v3, 8, v3
            global_store_{width} v3, {held}, s[6:7]
        """
    else:
        body += f"""
            v_mov_b32_e32 v5, s5
            v_add_co_u32_e32 v4, vcc, s4, v3
            v_addc_co_u32_e32 v5, vcc, 0, v5, vcc
            global_load_{width} {held}, v[4:5], off
            s_waitcnt vmcnt(0)
            v_mov_b32_e32 v5, s7
            v_add_co_u32_e32 v4, vcc, s6, v3
            v_addc_co_u32_e32 v5, vcc, 0, v5, vcc
        """
        body += f"global_store_{width} v[4:5], {held}, off\n"
    outcome = execute(folder, body, tensor(data), out)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(out.numpy(), data)


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("how", ["global", "buffer"])
def test_narrow_numbers_are_extended_and_cut(folder, kind, how):
    dtype = NARROW[kind]
    data = np.random.default_rng(0).integers(0, 256, LANES * dtype().nbytes).astype(np.uint8)
    words, cut = tensor(np.zeros(LANES, np.uint32)), tensor(np.zeros_like(data))
    suffix = "byte" if dtype().nbytes == 1 else "short"
    body = f"v_mul_u32_u24_e32 v3, {dtype().nbytes}, v0\n"
    if how == "global":
        body += f"""
            global_load_{kind} v10, v3, s[4:5]
            s_waitcnt vmcnt(0)
            global_store_{suffix} v3, v10, s[8:9]
        """
    else:
        body += f"""
                {BUFFER}s_movk_i32 s22, {len(data)}
                buffer_load_{kind} v10, v3, s[20:23], 0 offen
                s_waitcnt vmcnt(0)
            """
        body += f"""
            s_mov_b32 s20, s8
            s_mov_b32 s21, s9
            buffer_store_{suffix} v10, v3, s[20:23], 0 offen
        """
    outcome = execute(folder, f"{body}global_store_dword v1, v10, s[6:7]\n", tensor(data), words, cut)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(
        words.numpy().view(np.int32), data.view(dtype).astype(np.int64).astype(np.uint32).view(np.int32)
    )
    np.testing.assert_array_equal(cut.numpy(), data)


def test_beyond_the_end_of_a_buffer_loads_give_zero_and_stores_nothing(folder):
    data, out = np.arange(1, LANES + 1, dtype=np.uint32), tensor(np.full(LANES, 9, np.uint32))
    body = f"""
        {BUFFER}s_movk_i32 s22, 40
        buffer_load_dword v10, v1, s[20:23], 0 offen
        s_waitcnt vmcnt(0)
        v_add_u32_e32 v10, 100, v10
        s_mov_b32 s20, s6
        s_mov_b32 s21, s7
        s_movk_i32 s22, 0x50
    """
    body += "buffer_store_dword v10, v1, s[20:23], 0 offen offset:16\n"
    outcome = execute(folder, body, tensor(data), out)
    assert not outcome.faults, outcome.message
    loaded = np.where(np.arange(LANES) < 10, data, 0) + 100
    expected = np.full(LANES, 9)
    expected[4:20] = loaded[:16]
    np.testing.assert_array_equal(out.numpy().view(np.uint32), expected)


ATOMICS = {
    "add": ("u32", lambda m, x: (m + x) & 0xFFFFFFFF),
    "smax": ("i32", max),
    "umax": ("u32", max),
    "or": ("u32", lambda m, x: m | x),
    "smin_x2": ("i64", min),
}


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("how", ["global", "buffer"])
def test_atomics_combine_lanes_one_after_the_other(folder, name, how):
    kind, function = ATOMICS[name]
    (given,) = operands([kind])
    given = given[:LANES]
    size = given.itemsize
    memory = tensor(np.array([5, 7], given.dtype))
    before = tensor(np.zeros_like(given))
    held, address = span(10, size // 4), 2 if size == 8 else 1
    body = load(10, kind, 4) + f"s_waitcnt vmcnt(0)\nv_and_b32_e32 v3, 1, v0\nv_mul_u32_u24_e32 v3, {size}, v3\n"
    if how == "global":
        body += f"""
            global_atomic_{name} {span(20, size // 4)}, v3, {held}, s[6:7] sc0
            s_waitcnt vmcnt(0)
        """
    else:
        body += f"""
            s_mov_b32 s20, s6
            s_mov_b32 s21, s7
            s_movk_i32 s22, {2 * size}
            s_mov_b32 s23, 0x27000
            buffer_atomic_{name} {held}, v3, s[20:23], 0 offen sc0
            s_waitcnt vmcnt(0)
        """
        body += "".join(f"v_mov_b32_e32 v{20 + k}, v{10 + k}\n" for k in range(size // 4))
    body += f"global_store_dword{'x2' if size == 8 else ''} v{address}, {span(20, size // 4)}, s[8:9]\n"
    outcome = execute(folder, body, tensor(given), memory, before)
    assert not outcome.faults, outcome.message
    values, seen = [5, 7], []
    for lane in range(LANES):
        seen.append(values[lane % 2])
        values[lane % 2] = function(values[lane % 2], int(given[lane]))
    np.testing.assert_array_equal(memory.numpy().view(given.dtype), np.array(values, given.dtype))
    np.testing.assert_array_equal(before.numpy().view(given.dtype), np.array(seen, given.dtype))


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_scalar_loads(folder, count):
    data, out = np.arange(100, 164, dtype=np.uint32), tensor(np.zeros(16, np.uint32))
    body = f"""
        s_movk_i32 s3, 8
        s_load_dword{f"x{count}" if count > 1 else ""} s[40:{39 + count}], s[4:5], 0x10
        s_load_dword s60, s[4:5], s3
        s_waitcnt lgkmcnt(0)
        s_mov_b64 exec, 1
        v_mov_b32_e32 v3, 0
    """
    body += "".join(
        f"v_mov_b32_e32 v4, s{40 + k}\nglobal_store_dword v3, v4, s[6:7] offset:{4 * k}\n" for k in range(count)
    )
    body += "v_mov_b32_e32 v4, s60\nglobal_store_dword v3, v4, s[6:7] offset:60\n" if count < 16 else ""
    execute(folder, body, tensor(data), out)
    np.testing.assert_array_equal(out.numpy().view(np.uint32)[:count], data[4 : 4 + count])
    assert count == 16 or out.numpy().view(np.uint32)[15] == data[2]


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16])
def test_lds_holds_what_is_written(folder, size):
    data = np.random.default_rng(size).integers(0, 256, (LANES, 16)).astype(np.uint8)
    out = tensor(np.zeros((LANES, 16), np.uint8))
    name = {1: "u8", 2: "u16"}.get(size, f"b{8 * size}")
    held, back = span(10, max(1, size // 4)), span(20, max(1, size // 4))
    body = f"""
        v_lshlrev_b32_e32 v3, 4, v0
        global_load_dwordx4 v[10:13], v3, s[4:5]
        v_sub_u32_e32 v4, 0x3f0, v3
        s_waitcnt vmcnt(0)
        ds_write_b{8 * size} v3, {held} offset:32
        s_waitcnt lgkmcnt(0)
        ds_read_{name} {back}, v4 offset:32
        s_waitcnt lgkmcnt(0)
        global_store_dword{f"x{size // 4}" if size > 4 else ""} v3, {back}, s[6:7]
    """
    outcome = execute(folder, body, tensor(data), out, shared=1024 + 32)
    assert not outcome.faults, outcome.message
    np.testing.assert_array_equal(out.numpy().reshape(LANES, 16)[:, :size], data[::-1, :size])


def test_signed_bytes_of_lds(folder):
    data, out = np.arange(LANES, dtype=np.uint32) * 4, tensor(np.zeros(LANES, np.int32))
    body = """
        global_load_dword v10, v1, s[4:5]
        s_waitcnt vmcnt(0)
        ds_write_b8 v0, v10
        s_waitcnt lgkmcnt(0)
        ds_read_i8 v11, v0
        s_waitcnt lgkmcnt(0)
        global_store_dword v1, v11, s[6:7]
    """
    execute(folder, body, tensor(data), out, shared=64)
    np.testing.assert_array_equal(out.numpy().view(np.int32), data.astype(np.uint8).view(np.int8))


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("stride", ["", "st64"])
def test_two_places_of_lds_at_once(folder, words, stride):
    data = np.random.default_rng(0).integers(0, 1 << 32, (LANES, 4), np.uint64).astype(np.uint32)
    out = tensor(np.zeros((LANES, 4), np.uint32))
    unit = 4 * words * (64 if stride else 1)
    # Places apart by more than all lanes take.
    first, second = (0, 1) if stride else (0, 64)
    body = f"""
        v_lshlrev_b32_e32 v3, 4, v0
        global_load_dwordx4 v[10:13], v3, s[4:5]
        v_mul_u32_u24_e32 v4, {4 * words}, v0
    """
    low, high = span(10, words), span(10 + words, words)
    body += f"""
        s_waitcnt vmcnt(0)
        ds_write2{stride}_b{32 * words} v4, {low}, {high} offset0:{first} offset1:{second}
        s_waitcnt lgkmcnt(0)
        ds_read2{stride}_b{32 * words} {span(20, 2 * words)}, v4 offset0:{second} offset1:{first}
        s_waitcnt lgkmcnt(0)
        global_store_dwordx{2 * words} v3, {span(20, 2 * words)}, s[6:7]
    """
    outcome = execute(folder, body, tensor(data), out, shared=second * unit + 64 * 4 * words)
    assert not outcome.faults, outcome.message
    expected = np.concatenate([data[:, words : 2 * words], data[:, :words]], 1)
    np.testing.assert_array_equal(out.numpy().view(np.uint32).reshape(LANES, 4)[:, : 2 * words], expected)


# --- What is not known ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["v_dot2_f32_f16 v0, v1, v2, v3", "scratch_load_dword v0, off, off", "s_sendmsg 1"])
def test_an_unknown_opcode_raises_with_its_name(line):
    binary = binary_of(line, 1)
    with pytest.raises(UnknownOpcodeError, match=line.split()[0]):
        decode(binary.text, binary.name)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("v_add_f32_e64 v0, v1, v2 wobble:3", "wobble"),
        ("v_max_u32_e64 v0, v1, v2 clamp", "clamp"),
        ("v_add_f32_e64 v0, ttmp3, v2", "ttmp3"),
        ("v_mov_b32_sdwa v0, v1 dst_sel:BYTE_0 dst_unused:UNUSED_SEXT src0_sel:DWORD", "UNUSED_SEXT"),
    ],
)
def test_unknown_syntax_raises(line, named):
    binary = binary_of(line, 1)
    with pytest.raises(UnknownSyntaxError, match=named):
        decode(binary.text, binary.name)


# Opcodes that no table above names: each has a test of its own, or every test runs it.
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


def test_accumulation_registers_are_registers(folder):
    (a,) = operands(["u32"])
    text = "v_accvgpr_write_b32 a3, v10\nv_accvgpr_mov_b32 a7, a3\nv_accvgpr_read_b32 v20, a7"
    (actual,) = run(folder, text, ["u32"], ["u32"], [a])
    assert_same(actual, a)
