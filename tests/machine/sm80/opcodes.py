"""What each PTX instruction that works lane by lane computes: a table of C expressions, and the C text made of it.

Names are the instructions' own with all their modifiers, so that nothing is executed that is not listed: an instruction
that is neither here nor among the hand-written ones of ``machine.c`` raises when a kernel is decoded. "PTX ISA" is
NVIDIA's *Parallel Thread Execution ISA*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# C type of a value, and of the slot of a register that holds it: predicates (0 or 1), 8 and 16 bits lie in 32 bits.
VALUES = {
    "pred": ("uint32_t", "uint32_t"),
    "s8": ("int8_t", "uint32_t"),
    "u8": ("uint8_t", "uint32_t"),
    "u16": ("uint16_t", "uint32_t"),
    "s16": ("int16_t", "uint32_t"),
    "u32": ("uint32_t", "uint32_t"),
    "s32": ("int32_t", "int32_t"),
    "f32": ("float", "float"),
    "u64": ("uint64_t", "uint64_t"),
    "s64": ("int64_t", "int64_t"),
    "f64": ("double", "double"),
}
BITS = {"pred": 1, "s8": 8, "u8": 8} | {kind + size: int(size) for kind in "usf" for size in ("16", "32", "64")}

# Ends the name of a conversion that reads the low part of a register of 64 bits.
WIDE_SOURCE = " of b64"


def slot_bytes(kind: str) -> int:
    """Bytes of a register of this type in one lane."""
    return 8 if BITS[kind] == 64 else 4


@dataclass(frozen=True)
class Lanewise:
    """An instruction whose lanes are independent: types of the result and of the operands a to d, and the result in C.

    Signed types wrap in PTX and do not in C: sums, differences and products are written for unsigned types.
    """

    result: str
    operands: tuple[str, ...]
    expression: str


def _integers() -> Iterator[tuple[str, Lanewise]]:
    for bits in (16, 32, 64):
        u, s = f"u{bits}", f"s{bits}"
        for name, sign in (("add", "+"), ("sub", "-"), ("mul.lo", "*")):
            for kind in (u, s):
                yield f"{name}.{kind}", Lanewise(u, (u, u), f"a {sign} b" if bits > 16 else f"(uint32_t)a {sign} b")
        for kind in (u, s):
            yield f"mad.lo.{kind}", Lanewise(u, (u, u, u), "(uint64_t)a * b + c")
            yield f"div.{kind}", Lanewise(kind, (kind, kind), f"divide_{kind}(a, b)")
            yield f"rem.{kind}", Lanewise(kind, (kind, kind), f"remainder_{kind}(a, b)")
            yield f"min.{kind}", Lanewise(kind, (kind, kind), "a < b ? a : b")
            yield f"max.{kind}", Lanewise(kind, (kind, kind), "a > b ? a : b")
        yield f"neg.{s}", Lanewise(u, (u,), "-(uint64_t)a")
        yield f"abs.{s}", Lanewise(u, (s,), "a < 0 ? -(uint64_t)a : (uint64_t)a")
        # PTX ISA, shl and shr: amounts beyond the width of the register are clamped to it.
        yield f"shl.b{bits}", Lanewise(u, (u, "u32"), f"b < {bits} ? (uint64_t)a << b : 0")
        yield f"shr.{u}", Lanewise(u, (u, "u32"), f"b < {bits} ? a >> b : 0")
        yield f"shr.{s}", Lanewise(s, (s, "u32"), f"a >> (b < {bits} ? b : {bits - 1})")
        yield f"not.b{bits}", Lanewise(u, (u,), "~a")
    for bits in (32, 64):
        u, s = f"u{bits}", f"s{bits}"
        for kind, wide in ((u, "unsigned __int128"), (s, "__int128")):
            yield f"mul.hi.{kind}", Lanewise(kind, (kind, kind), f"(({wide})a * b) >> {bits}")
        # PTX ISA, bfe: of position and length the low byte counts.
        yield f"bfe.{u}", Lanewise(u, (u, "u32", "u32"), f"extract_unsigned(a, b & 255, c & 255, {bits})")
        yield f"bfe.{s}", Lanewise(u, (u, "u32", "u32"), f"extract_signed(a, b & 255, c & 255, {bits})")
        yield f"bfi.b{bits}", Lanewise(u, (u, u, "u32", "u32"), f"insert(a, b, c & 255, d & 255, {bits})")
        yield f"popc.b{bits}", Lanewise("u32", (u,), "__builtin_popcountll(a)")
        yield f"clz.b{bits}", Lanewise("u32", (u,), f"a ? __builtin_clzll(a) - {64 - bits} : {bits}")
    for kind, wide in (("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")):
        c_type = VALUES[wide][0]
        unsigned = wide.replace("s", "u")
        yield f"mul.wide.{kind}", Lanewise(wide, (kind, kind), f"({c_type})a * b")
        yield f"mad.wide.{kind}", Lanewise(unsigned, (kind, kind, unsigned), f"(uint64_t)(({c_type})a * b) + c")
    yield "lop3.b32", Lanewise("u32", ("u32", "u32", "u32", "u32"), "look_up(a, b, c, d)")
    yield "prmt.b32", Lanewise("u32", ("u32", "u32", "u32"), "permute_bytes(a, b, c)")


def _bitwise() -> Iterator[tuple[str, Lanewise]]:
    for suffix, kind in (("pred", "pred"), ("b16", "u16"), ("b32", "u32"), ("b64", "u64")):
        for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
            yield f"{name}.{suffix}", Lanewise(kind, (kind, kind), f"a {sign} b")
    yield "not.pred", Lanewise("pred", ("pred",), "!a")


def _floats() -> Iterator[tuple[str, Lanewise]]:
    for kind, suffix in (("f32", "f"), ("f64", "")):
        for rounding in ("", ".rn"):
            for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
                yield f"{name}{rounding}.{kind}", Lanewise(kind, (kind, kind), f"a {sign} b")
        yield f"fma.rn.{kind}", Lanewise(kind, (kind, kind, kind), f"fma{suffix}(a, b, c)")
        yield f"div.rn.{kind}", Lanewise(kind, (kind, kind), "a / b")
        yield f"rcp.rn.{kind}", Lanewise(kind, (kind,), "1 / a")
        yield f"sqrt.rn.{kind}", Lanewise(kind, (kind,), f"sqrt{suffix}(a)")
        yield f"neg.{kind}", Lanewise(kind, (kind,), "-a")
        yield f"abs.{kind}", Lanewise(kind, (kind,), f"fabs{suffix}(a)")
        yield f"min.{kind}", Lanewise(kind, (kind, kind), f"minimum_{kind}(a, b)")
        yield f"max.{kind}", Lanewise(kind, (kind, kind), f"-minimum_{kind}(-a, -b)")
    # With noise, approximations differ from the exact value by up to what the ISA allows: approximate() in lanes.h.
    yield "div.full.f32", Lanewise("f32", ("f32", "f32"), "approximate(m->noise, (double)a / b, 2, a, b)")
    for name, exact, units in (
        ("rcp", "1 / (double)flush(a)", 1),
        ("sqrt", "sqrt((double)flush(a))", 1),
        ("rsqrt", "1 / sqrt((double)flush(a))", 1),
        ("ex2", "exp2((double)flush(a))", 2),
    ):
        inexact = f"flush(approximate(m->noise, {exact}, {units}, a, 0))"
        yield f"{name}.approx.ftz.f32", Lanewise("f32", ("f32",), inexact)


_ORDERED = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _comparisons() -> Iterator[tuple[str, Lanewise]]:
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        for name, sign in (*_ORDERED.items(), ("ne", "!=")):
            yield f"setp.{name}.{kind}", Lanewise("pred", (kind, kind), f"a {sign} b")
    for bits in (16, 32, 64):
        for name, sign in (("eq", "=="), ("ne", "!=")):
            yield f"setp.{name}.b{bits}", Lanewise("pred", (f"u{bits}", f"u{bits}"), f"a {sign} b")
    for kind in ("f32", "f64"):
        unordered = "(a != a || b != b)"
        for name, sign in _ORDERED.items():
            yield f"setp.{name}.{kind}", Lanewise("pred", (kind, kind), f"a {sign} b")
            yield f"setp.{name}u.{kind}", Lanewise("pred", (kind, kind), f"a {sign} b || {unordered}")
        yield f"setp.ne.{kind}", Lanewise("pred", (kind, kind), f"a != b && !{unordered}")
        yield f"setp.neu.{kind}", Lanewise("pred", (kind, kind), "a != b")
        yield f"setp.num.{kind}", Lanewise("pred", (kind, kind), f"!{unordered}")
        yield f"setp.nan.{kind}", Lanewise("pred", (kind, kind), unordered)


def _moves() -> Iterator[tuple[str, Lanewise]]:
    yield "mov.pred", Lanewise("pred", ("pred",), "a")
    for bits in (16, 32, 64):
        kind = f"u{bits}"
        for name in (f"b{bits}", f"u{bits}", f"s{bits}", *((f"f{bits}",) if bits > 16 else ())):
            yield f"mov.{name}", Lanewise(kind, (kind,), "a")
            yield f"selp.{name}", Lanewise(kind, (kind, kind, "pred"), "c ? a : b")


def _conversions() -> Iterator[tuple[str, Lanewise]]:
    integers = [sign + bits for bits in ("8", "16", "32", "64") for sign in "us"]
    for to in integers:
        for source in integers:
            # A destination of 8 bits is a wider register, which takes the value extended by its sign.
            result = "u16" if to == "u8" else "s16" if to == "s8" else to
            yield f"cvt.{to}.{source}", Lanewise(result, (source,), f"({VALUES[to][0]})a")
            if BITS[source] < 64:
                low = f"({VALUES[to][0]})({VALUES[source][0]})a"
                yield f"cvt.{to}.{source}{WIDE_SOURCE}", Lanewise(result, ("u64",), low)
    for to in ("f32", "f64"):
        for source in ("s16", "u16", "s32", "u32", "s64", "u64"):
            yield f"cvt.rn.{to}.{source}", Lanewise(to, (source,), f"({VALUES[to][0]})a")
    yield "cvt.f64.f32", Lanewise("f64", ("f32",), "a")
    yield "cvt.rn.f32.f64", Lanewise("f32", ("f64",), "(float)a")
    for source, suffix in (("f32", "f"), ("f64", "")):
        for rounding, function in (("rmi", "floor"), ("rpi", "ceil"), ("rzi", "trunc"), ("rni", "rint")):
            yield f"cvt.{rounding}.{source}.{source}", Lanewise(source, (source,), f"{function}{suffix}(a)")
            if source == "f32":
                flushed = f"flush({function}f(flush(a)))"
                yield f"cvt.{rounding}.ftz.f32.f32", Lanewise("f32", ("f32",), flushed)
            for to in ("s32", "u32", "s64", "u64"):
                # PTX ISA, cvt: out of range saturates; NaN is 0 between types of 32 bits, otherwise the top bit alone.
                top_bit = f"({VALUES[to][0]})((uint64_t)1 << {int(to[1:]) - 1})"
                nan = "0" if source == "f32" and to[1:] == "32" else top_bit
                name = f"cvt.{rounding}.{to}.{source}"
                yield name, Lanewise(to, (source,), f"a != a ? {nan} : saturate_{to}({function}((double)a))")
    # Ties away from zero: half a unit of the last of 10 bits is added to the magnitude.
    yield "cvt.rna.tf32.f32", Lanewise("u32", ("u32",), "(a & 0x7f800000) == 0x7f800000 ? a : (a + 0x1000) & ~0x1fffu")


def _table() -> dict[str, Lanewise]:
    table: dict[str, Lanewise] = {}
    for family in (_integers, _bitwise, _floats, _comparisons, _moves, _conversions):
        for name, entry in family():
            assert name not in table, name
            table[name] = entry
    return table


LANEWISE = _table()
# Instructions written by hand in machine.c, in the order of their numbers; those of LANEWISE follow.
HAND_WRITTEN = (
    "branch",
    "exit",
    "barrier",
    "warp_barrier",
    "parameter",
    "special",
    "pack",
    "unpack",
    "load",
    "store",
    "atomic",
    "copy",
    "commit_copies",
    "wait_for_copies",
    "shuffle",
    "reduce",
    "vote",
    "load_matrix",
    "multiply_tf32",
    "multiply_f64",
    "nothing",
)
NUMBERS = {name: number for number, name in enumerate((*HAND_WRITTEN, *LANEWISE))}


def _function(name: str, entry: Lanewise) -> str:
    """A C function: reads the operands of every active lane and writes the result."""
    value, slot = VALUES[entry.result]
    lines = [f"/* {name} */", f"static void {c_name(name)}(OPCODE_ARGUMENTS)", "{"]
    lines.append(f"    {slot} *to = slot(w, i->operand[0]);")
    reads = ""
    for number, kind in enumerate(entry.operands, start=1):
        variable, (c_type, c_slot) = "abcd"[number - 1], VALUES[kind]
        lines.append(f"    const {c_slot} *from_{variable} = slot(w, i->operand[{number}]);")
        reads += f"{c_type} {variable} = ({c_type})from_{variable}[lane]; "
    lines.append(f"    EACH_LANE({reads}to[lane] = ({value})({entry.expression});)")
    return "\n".join([*lines, "}"])


def c_name(opcode: str) -> str:
    """The C function of an instruction."""
    return "op_" + opcode.replace(".", "_").replace(" ", "_")


def source() -> str:
    """C text of all instructions of the table, and the table of functions that numbers index."""
    functions = [_function(name, entry) for name, entry in LANEWISE.items()]
    entries = ",\n    ".join(c_name(name) for name in NUMBERS)
    return "\n\n".join([*functions, f"static const opcode_function functions[] = {{\n    {entries},\n}};"])
