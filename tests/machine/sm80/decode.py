"""PTX text of a kernel -> its instructions, registers and parameters, as written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_COMMENT = re.compile(r"//.*")
_LABEL = re.compile(r"(\$[\w$]+):")
_GUARD = re.compile(r"@(!?)(%\w+)\s+(.*)")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+\.global\s+(?:\.align\s+\d+\s+)?)?(\w+),?")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>;")
_USED_BYTES = re.compile(r'\.pragma\s+"used_bytes_mask\s+(\w+)";')
# Directives that execute nothing.
_IGNORED = re.compile(r"\.(loc|file|pragma|reqntid|maxntid|minnctapersm|visible|extern)\b")


class UnknownInstructionError(Exception):
    """PTX that this machine does not execute; the message is its text."""


@dataclass(frozen=True)
class Register:
    """A virtual register, or ``_``, which takes what nobody wants."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant: its bits as an unsigned number of 64 bits, or of 32 for a float32."""

    bits: int


@dataclass(frozen=True)
class Symbol:
    """A name: a special register, a parameter, an array in shared memory, a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``."""

    base: Register | Symbol
    offset: int


@dataclass(frozen=True)
class Vector:
    """``{a, b}``."""

    entries: tuple[Register | Immediate | Symbol, ...]


Operand = Register | Immediate | Symbol | Address | Vector


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes
    ----------
    opcode : str
        With all its modifiers.
    guard : Register or None
        The predicate under which it runs, or, ``negated``, under whose opposite.
    used_bytes : int or None
        Of a load: a bit for each byte that anything reads, where the compiler says so.
    line : int
        Of the text, from 1.
    """

    opcode: str
    operands: tuple[Operand, ...]
    text: str
    line: int
    guard: Register | None = None
    negated: bool = False
    used_bytes: int | None = None


@dataclass
class Kernel:
    """A kernel as its text declares it.

    Attributes
    ----------
    parameters : dict
        PTX type of every parameter by name, in order.
    registers : dict
        Type by name, ``pred``, ``b16``, ``b32`` or ``b64``.
    labels : dict
        Number of the instruction that follows.
    """

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)


def decode(text: str) -> Kernel:
    """The one kernel of a PTX text; raises UnknownInstructionError for what cannot be read."""
    lines = [_COMMENT.sub("", line).strip() for line in text.splitlines()]
    entries = [number for number, line in enumerate(lines) if ".entry" in line]
    if len(entries) != 1:
        raise UnknownInstructionError(f"{len(entries)} kernels in a text, not one")
    start = entries[0]
    found = re.search(r"\.entry\s+(\w+)\(", lines[start])
    assert found is not None, lines[start]
    kernel = Kernel(found[1])
    body = lines.index("{", start)
    for line in lines[start:body]:
        parameter = _PARAMETER.match(line)
        if parameter:
            kernel.parameters[parameter[2]] = parameter[1]
    used_bytes: int | None = None
    for number, line in enumerate(lines[body + 1 :], start=body + 2):
        if line == "}":
            return kernel
        mask = _USED_BYTES.match(line)
        if mask:
            used_bytes = int(mask[1], 0)
        elif _is_declaration(kernel, line):
            continue
        else:
            kernel.instructions.append(_instruction(line, number, used_bytes))
            used_bytes = None
    raise UnknownInstructionError("the text of a kernel has no end")


def _is_declaration(kernel: Kernel, line: str) -> bool:
    """Whether a line is a label, registers or a directive, which are noted; what is left is an instruction."""
    label = _LABEL.fullmatch(line)
    if label:
        kernel.labels[label[1]] = len(kernel.instructions)
        return True
    registers = _REGISTERS.fullmatch(line)
    if registers:
        for number in range(int(registers[3])):
            kernel.registers[f"{registers[2]}{number}"] = registers[1]
        return True
    return not line or _IGNORED.match(line) is not None


def _instruction(line: str, number: int, used_bytes: int | None) -> Instruction:
    if not line.endswith(";") or line.count(";") != 1:
        raise UnknownInstructionError(f"line {number}: {line}")
    rest = line[:-1].strip()
    guard, negated = None, False
    guarded = _GUARD.fullmatch(rest)
    if guarded:
        negated, guard, rest = guarded[1] == "!", Register(guarded[2]), guarded[3]
    opcode, _, operands = rest.partition(" ") if "\t" not in rest else rest.partition("\t")
    try:
        read = tuple(_operand(part) for part in _split(operands))
    except ValueError as error:
        raise UnknownInstructionError(f"line {number}: {line}") from error
    return Instruction(opcode.strip(), read, line, number, guard, negated, used_bytes)


def _split(text: str) -> list[str]:
    """Operands at the commas that no bracket encloses."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)
    return [part.strip() for part in parts if part.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(_scalar(part.strip()) for part in text[1:-1].split(",")))
    if text.startswith("["):
        base, _, offset = text[1:-1].partition("+")
        read = _scalar(base.strip())
        if isinstance(read, Immediate):
            raise ValueError(text)
        return Address(read, int(offset) if offset.strip() else 0)
    return _scalar(text)


_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid|laneid|warpid)\b")


def _scalar(text: str) -> Register | Immediate | Symbol:
    if text == "_" or (text.startswith("%") and not _SPECIAL.match(text)):
        if not re.fullmatch(r"_|%\w+", text):
            raise ValueError(text)
        return Register(text)
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return Immediate(int(text[2:], 16))
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
        return Immediate(int(text, 0) & 0xFFFFFFFFFFFFFFFF)
    if re.fullmatch(r"[%$A-Za-z_][\w$.]*", text):
        return Symbol(text)
    raise ValueError(text)
