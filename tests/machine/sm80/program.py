"""Decoded instructions -> numbers for the machine: slots of registers, constants, functions, offsets."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.machine.sm80.decode import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Operand,
    Register,
    Symbol,
    UnknownInstructionError,
    Vector,
    decode,
)
from tests.machine.sm80.opcodes import LANEWISE, NUMBERS, WIDE_SOURCE, slot_bytes

LANES = 32
_MOST_OPERANDS = 16
_NO_OPERAND = -1
_ALL_BYTES = 0xFFFFFFFF
_REGISTER_BYTES = {"pred": 4, "b16": 4, "b32": 4, "b64": 8}
_PARAMETER_BYTES = {"u8": 1, "u16": 2, "u32": 4, "b32": 4, "s32": 4, "f32": 4, "u64": 8, "b64": 8, "f64": 8, "s64": 8}
_GLOBAL, _SHARED = 0, 1  # enum space of memory.h
_TYPE = r"(?P<type>[bsuf](?P<bits>8|16|32|64))"
# A load or a store; hints to caches change nothing here.
_ACCESS = (
    r"(?P<operation>{})(\.volatile)?\.(?P<space>global|shared)(\.(ca|cg|cs|lu|cv|nc|wb|wt|L1::\w+|L2::\w+))*"
    rf"(\.v(?P<vector>[24]))?\.{_TYPE}"
)
_LAYOUTS = {"multiply_tf32": (4, 4, 2, 4), "multiply_f64": (2, 1, 1, 2)}  # registers of d, a, b, c
# In the order of ``enum special``, ``enum atomic_kind``, ``enum shuffle_kind`` and ``enum vote_kind``.
SPECIAL_REGISTERS = (
    "%tid.x",
    "%laneid",
    "%warpid",
    "%ntid.x",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%tid.y",
    "%tid.z",
)
ATOMIC_KINDS = ("add", "add.f32", "add.f64", "min.s", "min.u", "max.s", "max.u", "and", "or", "xor", "exch", "cas")
_SHUFFLES = ("up", "down", "bfly", "idx")
_VOTES = ("all", "any", "uni", "ballot")


_NUMBERS = ("function", "guard", "negated", "target", "line", "count", "bytes", "space", "kind")


class EncodedInstruction(ctypes.Structure):
    """``struct instruction`` of machine.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in _NUMBERS),
        ("used", ctypes.c_uint32),
        ("offset", ctypes.c_int64),
        ("second_offset", ctypes.c_int64),
        ("operand", ctypes.c_int32 * _MOST_OPERANDS),
    ]


@dataclass
class Program:
    """A kernel as the machine takes it.

    Attributes
    ----------
    code : array of EncodedInstruction
    texts : list of str
        The PTX of each.
    register_bytes : int
        Of all registers of a warp, constants at the end.
    constants : list of (int, int, int)
        First byte, bytes in a lane, and value of the registers that hold constants.
    parameters : dict
        First byte and PTX type of each parameter.
    """

    code: ctypes.Array[EncodedInstruction]
    texts: list[str]
    register_bytes: int
    constants: list[tuple[int, int, int]]
    parameters: dict[str, tuple[int, str]]

    @property
    def parameter_bytes(self) -> int:
        return max((first + _PARAMETER_BYTES[kind] for first, kind in self.parameters.values()), default=0)

    def first_registers(self, poison: int) -> np.ndarray:
        """What the registers of a warp begin with: constants, and garbage everywhere else."""
        words = self.register_bytes // 4
        registers = (np.arange(words, dtype=np.uint64) * 40503 + poison).astype(np.uint32).view(np.uint8)
        for first, width, value in self.constants:
            lanes = registers[first : first + width * LANES]
            lanes[:] = np.frombuffer(value.to_bytes(width, "little") * LANES, np.uint8)
        return registers

    def index(self, opcode: str) -> list[int]:
        """Numbers of the instructions whose text begins so, behind a guard or not."""
        return [k for k, text in enumerate(self.texts) if re.sub(r"^@!?%\w+\s+", "", text).startswith(opcode)]

    def without(self, *numbers: int) -> Program:
        """The same with some instructions made to do nothing."""
        code = type(self.code).from_buffer_copy(self.code)
        for number in numbers:
            code[number].function = NUMBERS["nothing"]
        return Program(code, self.texts, self.register_bytes, self.constants, self.parameters)


def program(text: str) -> Program:
    """The machine's form of a PTX text; raises UnknownInstructionError."""
    return _Encoder(decode(text)).program()


@dataclass
class _Encoder:
    """Gives registers and constants their places and encodes instruction by instruction."""

    kernel: Kernel
    slots: dict[str, int] = field(default_factory=dict)
    constants: dict[tuple[int, int], int] = field(default_factory=dict)
    used: int = 0

    def program(self) -> Program:
        for name, kind in self.kernel.registers.items():
            self.slots[name] = self._new_slot(_REGISTER_BYTES[kind])
        parameters, first = {}, 0
        for name, kind in self.kernel.parameters.items():
            width = _PARAMETER_BYTES[kind]
            first = -(-first // width) * width
            parameters[name] = first, kind
            first += width
        self.parameters = parameters
        code = (EncodedInstruction * len(self.kernel.instructions))()
        for place, instruction in enumerate(self.kernel.instructions):
            self._encode(code[place], instruction)
        constants = [(slot, width, value) for (value, width), slot in self.constants.items()]
        texts = [instruction.text for instruction in self.kernel.instructions]
        return Program(code, texts, self.used, constants, parameters)

    def _new_slot(self, width: int) -> int:
        first = -(-self.used // 32) * 32
        self.used = first + width * LANES
        return first

    def _encode(self, code: EncodedInstruction, instruction: Instruction) -> None:
        code.line, code.guard, code.used = instruction.line, _NO_OPERAND, _ALL_BYTES
        code.operand[:] = [_NO_OPERAND] * _MOST_OPERANDS
        if instruction.guard is not None:
            code.guard, code.negated = self.slots[instruction.guard.name], instruction.negated
        if instruction.used_bytes is not None:
            code.used = instruction.used_bytes
        try:
            self._encode_operation(code, instruction)
        except (KeyError, AssertionError, IndexError) as error:
            raise UnknownInstructionError(f"line {instruction.line}: {instruction.text}") from error

    def _encode_operation(self, code: EncodedInstruction, instruction: Instruction) -> None:
        for pattern, function, encode in _FORMS:
            found = pattern.fullmatch(instruction.opcode)
            if found and (name := encode(self, code, instruction, found) or function):
                code.function = NUMBERS[name]
                return
        opcode = instruction.opcode + self._wide_source(instruction)
        entry = LANEWISE[opcode]
        widths = [slot_bytes(kind) for kind in (entry.result, *entry.operands)]
        self._place(code, instruction.operands, widths)
        for place, kind in enumerate(entry.operands, start=1):
            operand = instruction.operands[place]
            if kind == "pred" and isinstance(operand, Immediate):
                code.operand[place] = self._constant(int(operand.bits != 0), 4)
        code.function = NUMBERS[opcode]

    def _wide_source(self, instruction: Instruction) -> str:
        """PTX ISA, Operand Size Exceeding Instruction-Type Size: cvt may read the low part of a wider register."""
        source = instruction.operands[-1] if instruction.operands else None
        if not instruction.opcode.startswith("cvt.") or not isinstance(source, Register):
            return ""
        wide = _REGISTER_BYTES[self.kernel.registers[source.name]] == 8
        return WIDE_SOURCE if wide and not instruction.opcode.endswith("64") else ""

    def _place(self, code: EncodedInstruction, operands: tuple[Operand, ...], widths: list[int], at: int = 0) -> None:
        assert len(operands) == len(widths)
        for place, (operand, width) in enumerate(zip(operands, widths, strict=True), start=at):
            code.operand[place] = self._slot(operand, width)

    def _slot(self, operand: Operand, width: int) -> int:
        """The place of a register or a constant of so many bytes in a lane."""
        if isinstance(operand, Immediate):
            return self._constant(operand.bits, width)
        if isinstance(operand, Symbol):
            assert operand.name == "global_smem"  # all that Triton keeps in shared memory: it begins at 0
            return self._constant(0, width)
        assert isinstance(operand, Register)
        if operand.name == "_":
            return _NO_OPERAND
        assert _REGISTER_BYTES[self.kernel.registers[operand.name]] == width
        return self.slots[operand.name]

    def _constant(self, bits: int, width: int) -> int:
        key = bits & ((1 << 8 * width) - 1), width
        if key not in self.constants:
            self.constants[key] = self._new_slot(width)
        return self.constants[key]

    def _address(self, address: Operand, space: int) -> tuple[int, int]:
        assert isinstance(address, Address)
        return self._slot(address.base, 8 if space == _GLOBAL else 4), address.offset

    # One method for each form of hand-written instruction.

    def _branch(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        (label,) = i.operands
        assert isinstance(label, Symbol)
        code.target = self.kernel.labels[label.name]

    def _without_operands(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        assert not i.operands

    def _barrier(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        assert i.operands == (Immediate(0),)  # all warps of the program, at its first barrier

    def _warp_barrier(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        (mask,) = i.operands
        assert isinstance(mask, Immediate)
        assert mask.bits & 0xFFFFFFFF == 0xFFFFFFFF

    def _parameter(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        to, address = i.operands
        assert isinstance(address, Address)
        assert isinstance(address.base, Symbol)
        first, kind = self.parameters[address.base.name]
        code.bytes = int(found["bits"]) // 8
        assert address.offset + code.bytes <= _PARAMETER_BYTES[kind]
        code.offset = first + address.offset
        assert isinstance(to, Register)
        code.count = _REGISTER_BYTES[self.kernel.registers[to.name]]  # may be wider than what is loaded
        code.kind = int(found["type"][0] == "s")
        code.operand[0] = self._slot(to, code.count)

    def _move(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> str | None:
        """Special registers, packing and unpacking; other moves are lane by lane."""
        to, source = i.operands
        bits = int(found["bits"])
        if isinstance(source, Symbol) and source.name in SPECIAL_REGISTERS:
            code.kind = SPECIAL_REGISTERS.index(source.name)
            code.operand[0] = self._slot(to, 4)
            return "special"
        vector = to if isinstance(to, Vector) else source
        if not isinstance(vector, Vector):
            return None
        code.count = len(vector.entries)
        code.bytes = bits // 8 // code.count
        parts = [4] * code.count  # of 16 or 32 bits
        if vector is to:
            self._place(code, (*vector.entries, source), [*parts, max(4, bits // 8)])
            return "unpack"
        self._place(code, (to, *vector.entries), [max(4, bits // 8), *parts])
        return "pack"

    def _access(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        loads = found["operation"] == "ld"
        address, value = reversed(i.operands) if loads else i.operands
        entries = value.entries if isinstance(value, Vector) else (value,)
        code.space = _SHARED if found["space"].startswith("shared") else _GLOBAL
        code.bytes = int(found["bits"]) // 8
        code.count = len(entries)
        assert code.count == int(found["vector"] or 1)
        code.kind = int(found["type"][0] == "s")
        slot, code.offset = self._address(address, code.space)
        code.operand[code.count if loads else 0] = slot
        self._place(code, tuple(entries), [max(4, code.bytes)] * code.count, at=0 if loads else 1)

    def _atomic(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        operation, kind = found["kind"], found["type"]
        code.space = _SHARED if found["space"].startswith("shared") else _GLOBAL
        code.bytes = int(found["bits"]) // 8
        if operation in ("min", "max"):
            operation += f".{kind[0]}"
        elif operation == "add" and kind[0] == "f":
            operation += f".{kind}"
        code.kind = ATOMIC_KINDS.index(operation)
        operands = i.operands if found["operation"] == "atom" else (Register("_"), *i.operands)
        to, address, *values = operands
        code.operand[0] = self._slot(to, code.bytes)
        code.operand[1], code.offset = self._address(address, code.space)
        self._place(code, tuple(values), [code.bytes] * (2 if operation == "cas" else 1), at=2)

    def _copy(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        to, source, size, *given = i.operands
        assert isinstance(size, Immediate)
        code.bytes = size.bits
        code.operand[0], code.offset = self._address(to, _SHARED)
        code.operand[1], code.second_offset = self._address(source, _GLOBAL)
        if given:
            (bytes_given,) = given
            code.operand[2] = self._slot(bytes_given, 4)

    def _wait(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        (pending,) = i.operands or (Immediate(0),)
        assert isinstance(pending, Immediate)
        code.kind = -1 if found["all"] else pending.bits  # wait_all waits for copies of no group, too

    def _shuffle(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        *moved, mask = i.operands
        code.kind = _SHUFFLES.index(found["kind"])
        self._full_mask(mask)
        self._place(code, tuple(moved), [4] * 4)

    def _reduce(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        to, value, mask = i.operands
        kind = found["kind"]
        code.kind = ATOMIC_KINDS.index(kind if kind not in ("min", "max") else f"{kind}.{found['type'][0]}")
        if not isinstance(mask, Register):
            self._full_mask(mask)  # Triton passes a register that holds all ones
        self._place(code, (to, value), [4, 4])

    def _vote(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        to, value, mask = i.operands
        code.kind = _VOTES.index(found["kind"])
        self._full_mask(mask)
        self._place(code, (to, value), [4, 4])

    def _full_mask(self, mask: Operand) -> None:
        assert isinstance(mask, Immediate)
        assert mask.bits & 0xFFFFFFFF == 0xFFFFFFFF

    def _matrix_load(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> None:
        matrices, address = i.operands
        assert isinstance(matrices, Vector)
        code.count, code.kind = int(found["count"]), int(found["trans"] is not None)
        self._place(code, matrices.entries, [4] * code.count)
        code.operand[code.count], code.offset = self._address(address, _SHARED)
        code.space = _SHARED

    def _multiply(self, code: EncodedInstruction, i: Instruction, found: re.Match[str]) -> str:
        name = "multiply_tf32" if found["tf32"] else "multiply_f64"
        width = 4 if found["tf32"] else 8
        at = 0
        for fragment, count in zip(i.operands, _LAYOUTS[name], strict=True):
            assert isinstance(fragment, Vector)
            self._place(code, fragment.entries, [width] * count, at)
            at += count
        return name


_Encode = Callable[[_Encoder, EncodedInstruction, Instruction, "re.Match[str]"], "str | None"]


def _form(pattern: str, function: str, encode: _Encode) -> tuple[re.Pattern[str], str, _Encode]:
    return re.compile(pattern), function, encode


# An instruction's name, the function of machine.c, and what reads its operands (and may name the function instead).
_FORMS = (
    _form(r"bra(\.uni)?", "branch", _Encoder._branch),
    _form(r"ret|exit", "exit", _Encoder._without_operands),
    _form(r"bar(rier)?\.(cta\.)?sync(\.aligned)?", "barrier", _Encoder._barrier),
    _form(r"bar\.warp\.sync", "warp_barrier", _Encoder._warp_barrier),
    _form(rf"ld\.param\.{_TYPE}", "parameter", _Encoder._parameter),
    _form(rf"mov\.{_TYPE}", "", _Encoder._move),
    _form(_ACCESS.format("ld"), "load", _Encoder._access),
    _form(_ACCESS.format("st"), "store", _Encoder._access),
    _form(
        rf"(?P<operation>atom|red)\.(?P<space>global|shared)(\.(gpu|cta|sys))?(\.(relaxed|acquire|release|acq_rel))?"
        rf"\.(?P<kind>add|min|max|and|or|xor|exch|cas)\.{_TYPE}",
        "atomic",
        _Encoder._atomic,
    ),
    _form(r"cp\.async\.c[ag]\.shared\.global(\.L2::\w+)?", "copy", _Encoder._copy),
    _form(r"cp\.async\.commit_group", "commit_copies", _Encoder._without_operands),
    _form(r"cp\.async\.wait_(group|(?P<all>all))", "wait_for_copies", _Encoder._wait),
    _form(r"shfl\.sync\.(?P<kind>up|down|bfly|idx)\.b32", "shuffle", _Encoder._shuffle),
    _form(rf"redux\.sync\.(?P<kind>add|min|max|and|or|xor)\.{_TYPE}", "reduce", _Encoder._reduce),
    _form(r"vote\.sync\.(?P<kind>all|any|uni|ballot)\.(pred|b32)", "vote", _Encoder._vote),
    _form(
        r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<count>[124])(?P<trans>\.trans)?\.shared\.b16",
        "load_matrix",
        _Encoder._matrix_load,
    ),
    _form(
        r"mma\.sync\.aligned\."
        r"((?P<tf32>m16n8k8\.row\.col\.f32\.tf32\.tf32\.f32)|m8n8k4\.row\.col\.f64\.f64\.f64\.f64)",
        "",
        _Encoder._multiply,
    ),
)
