"""Instructions of sm_80 that work lane by lane, each against numpy or Python's whole numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.machine.building import compiler
from tests.machine.outcome import Order
from tests.machine.ptx_texts import HEADER, assembler_says, kernel_text
from tests.machine.sm80.machine import Machine
from tests.machine.sm80.opcodes import LANEWISE, WIDE_SOURCE
from tests.machine.sm80.program import program

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler: set CC, or install gcc or clang")

_KINDS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64")
NUMPY = {kind: np.dtype({"s": "int", "u": "uint", "f": "float"}[kind[0]] + kind[1:]) for kind in _KINDS}
COUNT = 192


@pytest.fixture(scope="session")
def machine(folder):
    return Machine(folder)


def register(kind, number):
    return {"pred": "%p", "8": "%h", "16": "%h", "32": "%r", "64": "%rd"}[kind if kind == "pred" else kind[1:]] + number


def text_of(opcode, name="kernel"):
    """A kernel that loads an operand of each type for every thread, computes, and stores."""
    entry = LANEWISE[opcode]
    lines, operands = [], []
    for place, kind in enumerate(entry.operands, start=1):
        width = 4 if kind == "pred" else NUMPY[kind].itemsize
        lines.append(f"mad.wide.s32 %rd{10 + place}, %r0, {width}, %rd{place};")
        if kind == "pred":
            lines.append(f"ld.global.b32 %r{20 + place}, [%rd{10 + place}];")
            lines.append(f"setp.ne.s32 %p{place}, %r{20 + place}, 0;")
            operands.append(f"%p{place}")
        else:
            operands.append(register(kind, str(20 + place) if kind[1:] in ("32", "64") else str(place)))
            lines.append(f"ld.global.b{8 * width} {operands[-1]}, [%rd{10 + place}];")
    if opcode == "lop3.b32":
        operands[3] = "0x96"  # the truth table is part of the instruction
    result = register(entry.result, "10" if entry.result in ("pred", "u16", "s16") else "40")
    lines.append(f"{opcode.removesuffix(WIDE_SOURCE)} {result}, {', '.join(operands)};")
    width = 4 if entry.result == "pred" else NUMPY[entry.result].itemsize
    if entry.result == "pred":
        lines.append(f"selp.b32 %r50, 1, 0, {result};")
        result = "%r50"
    lines.append(f"mad.wide.s32 %rd50, %r0, {width}, %rd0;")
    lines.append(f"st.global.b{8 * width} [%rd50], {result};")
    return kernel_text("\n".join(lines), pointers=1 + len(entry.operands), name=name)


def values_of(kind, rng, count=COUNT):
    """Edges first, then numbers of all magnitudes."""
    if kind == "pred":
        return rng.integers(0, 2, count).astype(np.uint32)
    dtype = NUMPY[kind]
    if dtype.kind == "f":
        tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
        edges = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, tiny, -tiny, huge, -huge, 0.5, 1.5, 2.5, -2.5, 2.0**31, 1e19]
        scale = rng.choice([1, 40, 1e5, 1e-20], count)
        drawn = (rng.standard_normal(count) * scale).astype(dtype)
    else:
        info = np.iinfo(dtype)
        edges = [0, 1, 2, 31, 32, 33, 63, 64, 255, info.max, info.min, info.max - 1, info.max // 3]
        bits = rng.integers(1, 8 * dtype.itemsize + 1, count)
        drawn = (rng.integers(0, 2**64, count, dtype=np.uint64) >> (64 - bits).astype(np.uint64)).astype(dtype)
    edges = np.array([edge for edge in edges if dtype.kind == "f" or edge <= np.iinfo(dtype).max], dtype)
    chosen = rng.random(count) < 0.4
    drawn[chosen] = rng.choice(edges, int(chosen.sum()))
    return drawn


def executed(machine, opcode, operands, order=Order()):  # noqa: B008 -- frozen
    entry = LANEWISE[opcode]
    count = len(operands[0])
    result = np.zeros(count, np.uint32 if entry.result == "pred" else NUMPY[entry.result])
    arrays = [result, *operands]
    arguments = np.array([array.ctypes.data for array in arrays], np.uint64).view(np.uint8)
    extents = [(array.ctypes.data, array.nbytes) for array in arrays]
    outcome = machine.execute(program(text_of(opcode)), arguments, extents, grid=(count // 32, 1, 1), order=order)
    assert not outcome.errors, outcome.message
    return result


def wrapped(value, kind):
    """A whole number as a register of this type has it."""
    bits = 1 if kind == "pred" else int(kind[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def quotient(a, b):
    return -(abs(a) // abs(b)) if (a < 0) != (b < 0) else abs(a) // abs(b)


def extracted(a, position, length, kind):
    """The definition of bfe, bit by bit."""
    width, position, length = int(kind[1:]), position & 255, length & 255
    sign = (a >> min(position + length - 1, width - 1)) & 1 if kind[0] == "s" and length else 0
    bits = [(a >> (position + k)) & 1 if k < length and position + k < width else sign for k in range(width)]
    return sum(bit << k for k, bit in enumerate(bits))


def inserted(a, b, position, length, width):
    """The definition of bfi, bit by bit."""
    for k in range(length & 255):
        place = (position & 255) + k
        if place < width:
            b = b & ~(1 << place) | ((a >> k) & 1) << place
    return b


def permuted(a, b, selector):
    data = (a | b << 32).to_bytes(8, "little")
    result = []
    for k in range(4):
        choice = selector >> (4 * k) & 15
        byte = data[choice & 7]
        result.append((255 if byte > 127 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def whole(name, kind, values):
    """Expected value of an instruction of whole numbers, in Python's own, of any size."""
    a, b, c, d = (*values, 0, 0, 0)[:4]
    width = int(kind[1:]) if kind[1:].isdigit() else 1
    sums = {"add": a + b, "sub": a - b, "mul.lo": a * b, "mul.wide": a * b, "mad.lo": a * b + c, "mad.wide": a * b + c}
    logic = {"and": a & b, "or": a | b, "xor": a ^ b, "not": 1 - a if kind == "pred" else ~a, "lop3": a ^ b ^ c}
    simple = sums | logic | {"min": min(a, b), "max": max(a, b), "neg": -a, "abs": abs(a), "mov": a}
    simple |= {"mul.hi": a * b >> width, "popc": a.bit_count(), "clz": width - a.bit_length()}
    shift = min(max(b, 0), 64)
    simple |= {"shl": a << shift, "shr": a >> shift, "selp": a if c else b}
    if name in simple:
        return simple[name]
    if name in ("div", "rem"):
        if b == 0:
            return -1  # unspecified; of all bits here
        return quotient(a, b) if name == "div" else a - b * quotient(a, b)
    if name == "bfe":
        return extracted(a, b, c, kind)
    if name == "bfi":
        return inserted(a, b, c, d, width)
    assert name == "prmt", name
    return permuted(a, b, c)


WHOLE = [name for name, entry in LANEWISE.items() if not name.startswith(("setp", "cvt")) and entry.result[0] in "usp"]


@pytest.mark.parametrize("opcode", WHOLE)
def test_whole_numbers(machine, opcode):
    entry = LANEWISE[opcode]
    rng = np.random.default_rng(len(opcode))
    operands = [values_of(kind, rng) for kind in entry.operands]
    name, kind = opcode.rsplit(".", 1)
    kind = kind.replace("b", "u").replace("f", "u")
    given = zip(*(operand.tolist() for operand in operands), strict=True)
    expected = [wrapped(whole(name, kind, values), entry.result) for values in given]
    assert executed(machine, opcode, operands).tolist() == expected


def rounded(exact, dtype):
    """The number of a format nearest to a fraction, the even one of two."""
    near = dtype(float(exact))
    candidates = [near, np.nextafter(near, dtype(np.inf)), np.nextafter(near, dtype(-np.inf))]
    finite = [c for c in candidates if np.isfinite(c)]
    return min(finite, key=lambda c: (abs(Fraction(float(c)) - exact), c.view(f"u{c.itemsize}") & 1))


def fused(a, b, c):
    dtype = type(a)
    if np.isfinite(a) and np.isfinite(b) and not np.isfinite(c):
        return c  # the product alone may overflow
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)):
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0 or abs(exact) > Fraction(float(np.finfo(dtype).max)):
        return a * b + c
    return rounded(exact, dtype)


def least(a, b):
    if np.isnan(a) or np.isnan(b):
        return b if np.isnan(a) else a
    if a == b:
        return a if np.signbit(a) else b
    return min(a, b)


FLOATING = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": fused,
    "div": lambda a, b: a / b,
    "rcp": lambda a: type(a)(1) / a,
    "sqrt": np.sqrt,
    "neg": lambda a: -a,
    "abs": abs,
    "min": least,
    "max": lambda a, b: -least(-a, -b),
}
EXACT = [
    name
    for name, entry in LANEWISE.items()
    if name.split(".")[0] in FLOATING and entry.result[0] == "f" and "approx" not in name and "full" not in name
]


@pytest.mark.parametrize("opcode", EXACT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_floats(machine, opcode):
    entry = LANEWISE[opcode]
    rng = np.random.default_rng(len(opcode))
    operands = [values_of(kind, rng) for kind in entry.operands]
    function = FLOATING[opcode.split(".")[0]]
    expected = np.array([function(*values) for values in zip(*operands, strict=True)], NUMPY[entry.result])
    actual = executed(machine, opcode, operands)
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[numbers]), np.signbit(expected[numbers]))


APPROXIMATE = {
    "div.full.f32": (lambda a, b: a / b, 2),
    "rcp.approx.ftz.f32": (lambda a: 1 / a, 1),
    "sqrt.approx.ftz.f32": (np.sqrt, 1),
    "rsqrt.approx.ftz.f32": (lambda a: 1 / np.sqrt(a), 1),
    "ex2.approx.ftz.f32": (np.exp2, 2),
}


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("opcode", APPROXIMATE)
def test_approximations_stay_within_what_the_isa_promises(machine, opcode, noise):
    function, units = APPROXIMATE[opcode]
    rng = np.random.default_rng(3)
    operands = [rng.uniform(0.1, 30, COUNT).astype(np.float32) for _ in LANEWISE[opcode].operands]
    exact = function(*(operand.astype(np.float64) for operand in operands))
    off = (executed(machine, opcode, operands, Order(noise=noise)) - exact) / np.spacing(exact.astype(np.float32))
    assert np.abs(off).max() <= (units if noise else 0.5)
    assert not noise or np.abs(off).max() > 0.5


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def compared(name, a, b):
    unordered = np.isnan(a) | np.isnan(b)
    if name in ("num", "nan"):
        return ~unordered if name == "num" else unordered
    if name in COMPARISONS:
        return COMPARISONS[name](a, b) & ~unordered
    return COMPARISONS[name.removesuffix("u")](a, b) | unordered


@pytest.mark.parametrize("opcode", [name for name in LANEWISE if name.startswith("setp")])
def test_comparisons(machine, opcode):
    rng = np.random.default_rng(len(opcode))
    a, b = (values_of(kind, rng) for kind in LANEWISE[opcode].operands)
    b[::3] = a[::3]
    np.testing.assert_array_equal(executed(machine, opcode, [a, b]), compared(opcode.split(".")[1], a, b))


ROUNDINGS = {"rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc, "rni": np.rint}


def converted(rounding, to, source, value):
    """Expected value of cvt; ``value`` is a number of the source's type."""
    if to == "tf32":
        bits = int(value.view(np.uint32))
        return away(bits) if np.isfinite(value) else bits
    if source[0] != "f":
        return wrapped(int(value), to) if to[0] != "f" else rounded(Fraction(int(value)), NUMPY[to].type)
    if to[0] == "f":
        return NUMPY[to].type(ROUNDINGS[rounding](value) if rounding in ROUNDINGS else value)
    if np.isnan(value):
        return 0 if (source, to[1:]) == ("f32", "32") else wrapped(1 << (int(to[1:]) - 1), to)
    info = np.iinfo(NUMPY[to])
    if np.isinf(value):
        return info.max if value > 0 else info.min
    return max(info.min, min(info.max, int(ROUNDINGS[rounding](float(value)))))


def away(bits):
    """The nearest of 10 bits of mantissa, the one of larger magnitude of two."""
    below, above = bits & ~0x1FFF, (bits & ~0x1FFF) + 0x2000
    return above if bits - below >= above - bits else below


@pytest.mark.parametrize("opcode", [name for name in LANEWISE if name.startswith("cvt")])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_conversions(machine, opcode):
    _, *middle, to, source = opcode.removesuffix(WIDE_SOURCE).split(".")
    rounding = middle[0] if middle else ""
    entry = LANEWISE[opcode]
    operands = [values_of("f32" if to == "tf32" else entry.operands[0], np.random.default_rng(len(opcode)))]
    values = operands[0]
    if WIDE_SOURCE in opcode:
        values = values.astype(NUMPY[source])
    if "ftz" in middle:
        values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)
    result = entry.result if to != "tf32" else "u32"
    expected = np.array([converted(rounding, to, source, value) for value in values], NUMPY[result])
    given = operands if to != "tf32" else [operands[0].view(np.uint32)]
    np.testing.assert_array_equal(executed(machine, opcode, given), expected)


def test_every_instruction_is_tested():
    tested = {*WHOLE, *EXACT, *APPROXIMATE}
    assert {name for name in LANEWISE if not name.startswith(("setp", "cvt"))} == tested


def test_the_assembler_takes_the_texts():
    texts = [text_of(name, f"kernel_{k}").replace(HEADER, "") for k, name in enumerate(LANEWISE)]
    assert "ptxas info" in assembler_says(HEADER + "\n".join(texts))
