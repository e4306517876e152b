"""Assembly text of gfx942 -> instructions as ``machine.h`` has them."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.machine.gfx942.opcodes import WIDE, opcode_numbers, operand_types

i32, u64 = ctypes.c_int32, ctypes.c_uint64
MOST_OPERANDS = 6
NONE, VECTOR, SCALAR, CONSTANT = range(4)
NEGATE, ABSOLUTE = 1, 2
CLAMP, OFFEN, RETURNS, BOUND_CTRL, DPP, SDWA, PRESERVE = (1 << k for k in range(7))
ACCUMULATORS = 256  # a0 follows v255
NO_WAIT = -1
SPECIAL_REGISTERS = {
    "vcc": 106,
    "vcc_lo": 106,
    "vcc_hi": 107,
    "m0": 124,
    "exec": 126,
    "exec_lo": 126,
    "exec_hi": 127,
}
SELECTIONS = {"DWORD": 0, "BYTE_0": 1, "BYTE_1": 2, "BYTE_2": 3, "BYTE_3": 4, "WORD_0": 5, "WORD_1": 6}
DPP_CONTROLS = {
    "quad_perm": 0,
    "row_shl": 1,
    "row_shr": 2,
    "row_ror": 3,
    "row_mirror": 4,
    "row_half_mirror": 5,
    "row_bcast:15": 6,
    "row_bcast:31": 7,
    "row_newbcast": 8,
    "wave_shl": 9,
    "wave_shr": 10,
    "wave_rol": 11,
    "wave_ror": 12,
}
# What they do - priorities, sleep, caches - is not modelled.
WITHOUT_EFFECT = {
    "s_nop",
    "s_setprio",
    "s_sleep",
    "s_sethalt",
    "s_icache_inv",
    "s_dcache_inv",
    "buffer_inv",
    "buffer_wbl2",
}
INVERSE_TWO_PI = 0x3FC45F306DC9C882  # in float64; the text shows it rounded
# v_..._u32 and v_..._i16 clamp differently from floats; only these two integer opcodes are done.
CLAMPED_INTEGERS = {"v_add_u32", "v_sub_u32", "v_subrev_u32"}
SUFFIXES = re.compile(r"_(e32|e64|dpp|sdwa)$")


class UnknownOpcodeError(Exception):
    """The text has instructions that the machine does not know."""


class UnknownSyntaxError(Exception):
    """An instruction has a modifier or an operand that the decoder does not know."""


class Operand(ctypes.Structure):
    """Mirrors ``struct operand``."""

    _fields_ = [
        ("kind", i32),
        ("reg", i32),
        ("modifiers", i32),
        ("selection", i32),
        ("sign_extend", i32),
        ("constant", u64),
    ]


class Instruction(ctypes.Structure):
    """Mirrors ``struct instruction``."""

    _fields_ = [
        ("opcode", i32),
        ("operands", i32),
        ("line", i32),
        ("target", i32),
        ("offset", i32 * 2),
        ("flags", i32),
        ("multiply", i32),
        ("dpp", i32),
        ("dpp_argument", i32),
        ("row_mask", i32),
        ("bank_mask", i32),
        ("destination_selection", i32),
        ("op_sel", i32),
        ("op_sel_hi", i32),
        ("neg_lo", i32),
        ("neg_hi", i32),
        ("operand", Operand * MOST_OPERANDS),
    ]


@dataclass(frozen=True)
class Line:
    """An instruction of the text."""

    number: int
    name: str  # with its suffix
    operands: list[str]
    modifiers: list[str]

    @property
    def opcode(self) -> str:
        """The name without what only says how it is encoded."""
        return SUFFIXES.sub("", self.name)


def lines_of(text: str, kernel: str) -> tuple[list[Line], dict[str, int]]:
    """The instructions of a kernel, and the index of the instruction behind every label."""
    found: list[Line] = []
    labels: dict[str, int] = {}
    inside = False
    for number, full in enumerate(text.splitlines(), 1):
        line = full.split(";")[0].strip()
        if line.startswith(f"{kernel}:"):
            inside = True
        elif inside and line.startswith(".Lfunc_end"):
            break
        elif inside and (label := re.match(r"(\.\w+):", line)):
            labels[label[1]] = len(found)
        elif inside and re.match(r"[a-z]", line):
            found.append(split_line(number, line))
    if not found:
        raise UnknownSyntaxError(f"the text holds no instructions of {kernel}")
    return found, labels


def split_line(number: int, line: str) -> Line:
    """Name, operands and modifiers: ``v_add_f32_e64 v0, |v1|, s[2:3] clamp``."""
    name, _, rest = line.replace("\t", " ").partition(" ")
    operands = _split_at_commas(rest.strip())
    modifiers: list[str] = []
    if operands:
        words = re.findall(r"\S+\[[^\]]*\]\S*|\S+\([^)]*\)|\S+", operands[-1])
        if re.match(r"offset|offen|row_|wave_|quad_perm|sc0", words[0]):  # no operands but those before the comma
            operands, modifiers = operands[:-1], words
        else:
            operands[-1], modifiers = words[0], words[1:]
    return Line(number, name, operands, modifiers)


def _split_at_commas(text: str) -> list[str]:
    """Parts between commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()] if text else []


def constant_bits(text: str, kind: str) -> int:
    """A literal as the bits that an operand of this type gets (section 5.7)."""
    mask = (1 << 64) - 1 if kind in WIDE else (1 << 32) - 1
    if re.fullmatch(r"-?\d+", text):
        return int(text) & mask
    if re.fullmatch(r"-?0x[0-9a-fA-F]+", text):
        value = int(text, 16)
        return (value & 0xFFFFFFFF) << 32 if kind == "f64" else value & mask  # the high half of a double
    try:
        value_f = float(text)
    except ValueError as error:
        raise UnknownSyntaxError(f"no operand: {text}") from error
    if kind not in WIDE:
        return int(struct.unpack("<I", struct.pack("<f", value_f))[0])
    if text.startswith("0.15915494"):
        return INVERSE_TWO_PI
    return int(struct.unpack("<Q", struct.pack("<d", value_f))[0])


def decode_operand(text: str, kind: str, to: Operand) -> None:
    """Fill in an operand from its text, such as ``-|v3|``, ``s[4:5]``, ``sext(v1)`` or ``0x3f000000``."""
    if found := re.fullmatch(r"sext\((.*)\)", text):
        text, to.sign_extend = found[1], 1
    if found := re.fullmatch(r"-(?=[vsa|])(.*)|neg\((.*)\)", text):
        text, to.modifiers = found[1] or found[2], NEGATE
    if found := re.fullmatch(r"\|(.*)\||abs\((.*)\)", text):
        text, to.modifiers = found[1] or found[2], to.modifiers | ABSOLUTE
    if text == "off":
        to.kind = NONE
    elif text in SPECIAL_REGISTERS:
        to.kind, to.reg = SCALAR, SPECIAL_REGISTERS[text]
    elif found := re.fullmatch(r"([vsa])(?:(\d+)|\[(\d+)(?::\d+)?\])", text):
        to.kind = SCALAR if found[1] == "s" else VECTOR
        to.reg = int(found[2] or found[3]) + (ACCUMULATORS if found[1] == "a" else 0)
    else:
        to.kind, to.constant = CONSTANT, constant_bits(text, kind)


def swizzle_pattern(text: str) -> int:
    """The offset of DS_SWIZZLE: a number, or ``swizzle(MODE, ...)``."""
    found = re.fullmatch(r"swizzle\((\w+),(.*)\)", text)
    if found is None:
        return int(text, 0)
    mode, arguments = found[1], [part.strip() for part in found[2].split(",")]
    if mode == "SWAP":
        return int(arguments[0]) << 10 | 31
    if mode == "REVERSE":
        return (int(arguments[0]) - 1) << 10 | 31
    if mode == "BROADCAST":
        return (31 ^ (int(arguments[0]) - 1)) | int(arguments[1]) << 5
    if mode == "QUAD_PERM":
        return 0x8000 | _packed(arguments, 2)
    if mode == "BITMASK_PERM":
        masks = {"0": (0, 0, 0), "1": (0, 1, 0), "p": (1, 0, 0), "i": (1, 0, 1)}  # and, or, xor of each bit
        bits = [masks[letter] for letter in reversed(arguments[0].strip('"'))]
        return sum(sum(bit[k] << place for place, bit in enumerate(bits)) << (5 * k) for k in range(3))
    raise UnknownSyntaxError(f"swizzle mode {mode}")


def _packed(numbers: list[str], width: int) -> int:
    return sum(int(number) << (width * place) for place, number in enumerate(numbers))


def _bits(text: str) -> int:
    return _packed(re.findall(r"\d+", text), 1)


def _set(field: str, value: Callable[[str], int]) -> Callable[[Instruction, str], None]:
    return lambda to, text: setattr(to, field, value(text))


def _flag(flag: int) -> Callable[[Instruction, str], None]:
    def raise_flag(to: Instruction, text: str) -> None:
        to.flags |= flag

    return raise_flag


def _offset(index: int) -> Callable[[Instruction, str], None]:
    def put(to: Instruction, text: str) -> None:
        to.offset[index] = swizzle_pattern(text)

    return put


def _select(index: int) -> Callable[[Instruction, str], None]:
    def put(to: Instruction, text: str) -> None:
        to.operand[index].selection = SELECTIONS[text]

    return put


def _keep_unused(to: Instruction, text: str) -> None:
    if text == "UNUSED_PRESERVE":
        to.flags |= PRESERVE
    elif text != "UNUSED_PAD":
        raise UnknownSyntaxError(f"dst_unused:{text}")


def _no_effect(to: Instruction, text: str) -> None:
    """Hints for caches."""


MODIFIERS: dict[str, Callable[[Instruction, str], None]] = {
    "offset": _offset(0),
    "offset0": _offset(0),
    "offset1": _offset(1),
    "offen": _flag(OFFEN),
    "sc0": _flag(RETURNS),  # of an atomic; of others a hint
    "sc1": _no_effect,
    "nt": _no_effect,
    "clamp": _flag(CLAMP),
    "mul": _set("multiply", lambda text: {"2": 1, "4": 2}[text]),
    "div": _set("multiply", lambda text: {"2": 3}[text]),
    "op_sel": _set("op_sel", _bits),
    "op_sel_hi": _set("op_sel_hi", _bits),
    "neg_lo": _set("neg_lo", _bits),
    "neg": _set("neg_lo", _bits),
    "neg_hi": _set("neg_hi", _bits),
    "row_mask": _set("row_mask", lambda text: int(text, 0)),
    "bank_mask": _set("bank_mask", lambda text: int(text, 0)),
    "bound_ctrl": _flag(BOUND_CTRL),
    "src0_sel": _select(1),
    "src1_sel": _select(2),
    "dst_sel": _set("destination_selection", SELECTIONS.__getitem__),
    "dst_unused": _keep_unused,
}


def _decode_modifier(text: str, line: Line, to: Instruction) -> None:
    name, _, value = text.partition(":")
    if text in DPP_CONTROLS:
        to.flags |= DPP
        to.dpp = DPP_CONTROLS[text]
    elif name in DPP_CONTROLS:
        to.flags |= DPP
        to.dpp = DPP_CONTROLS[name]
        to.dpp_argument = _packed(re.findall(r"\d+", value), 2) if name == "quad_perm" else int(value)
    elif name in MODIFIERS:
        MODIFIERS[name](to, value)
    else:
        raise UnknownSyntaxError(f"modifier {text} of {line.name}, line {line.number}")
    if name == "clamp" and not line.opcode.endswith(("f32", "f64")) and line.opcode not in CLAMPED_INTEGERS:
        raise UnknownSyntaxError(f"clamp of {line.name}, line {line.number}")


def _decode_wait(line: Line, to: Instruction) -> None:
    """Counters of s_waitcnt: all of them, or those that are named."""
    words = " ".join([*line.operands, *line.modifiers])
    everything = re.fullmatch(r"0(x0)?", words) is not None
    to.offset[0] = to.offset[1] = 0 if everything else NO_WAIT
    for counter, number in re.findall(r"(vmcnt|lgkmcnt)\((\d+)\)", words):
        to.offset[counter == "lgkmcnt"] = int(number)


def _signed_16(text: str, opcode: str) -> str:
    """The literal of s_movk and the like, 16 bits that are extended; unsigned in unsigned comparisons."""
    value = int(text, 0)
    return str(value - (1 << 16) if value >= 1 << 15 and not opcode.endswith("u32") else value)


def decode_line(line: Line, labels: dict[str, int], to: Instruction) -> None:
    """Fill in an instruction."""
    opcode = line.opcode
    to.line, to.op_sel_hi, to.row_mask, to.bank_mask = line.number, 7, 15, 15
    if opcode in WITHOUT_EFFECT:
        to.opcode = opcode_numbers()["s_nop"]
        return
    to.opcode = opcode_numbers()[opcode]
    if opcode == "s_waitcnt":
        _decode_wait(line, to)
        return
    if opcode.startswith(("s_branch", "s_cbranch")):
        to.target = labels[line.operands[0]]
        return
    operands = list(line.operands)
    if len(operands) > MOST_OPERANDS:
        raise UnknownSyntaxError(f"{line.name} with {len(operands)} operands, line {line.number}")
    if opcode.startswith(("s_movk", "s_addk", "s_mulk", "s_cmpk")):
        operands[1] = _signed_16(operands[1], opcode)
    to.operands = len(operands)
    kinds = operand_types(opcode)
    for place, text in enumerate(operands):
        decode_operand(text, kinds[place] if place < len(kinds) else "u32", to.operand[place])
    if line.name.endswith("_sdwa"):
        to.flags |= SDWA
    for modifier in line.modifiers:
        _decode_modifier(modifier, line, to)


def decode(text: str, kernel: str) -> ctypes.Array[Instruction]:
    """All instructions of a kernel; raises UnknownOpcodeError with the names that the machine lacks."""
    lines, labels = lines_of(text, kernel)
    unknown = {line.name for line in lines if line.opcode not in opcode_numbers() | dict.fromkeys(WITHOUT_EFFECT, 0)}
    if unknown:
        raise UnknownOpcodeError(f"gfx942 opcodes that the machine does not know: {', '.join(sorted(unknown))}")
    code = (Instruction * len(lines))()
    for line, to in zip(lines, code, strict=True):
        decode_line(line, labels, to)
    return code
