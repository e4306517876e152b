"""The text that is executed, held against the bytes of the code object, as LLVM's disassembler reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from typing import TYPE_CHECKING

from tests.machine.gfx942.decode import Line, lines_of, split_line

if TYPE_CHECKING:
    from tests.machine.compiling import Binary

OLDEST = 17  # version of LLVM that knows gfx942
NEWEST_LOOKED_FOR = 30
PADDING = ("s_nop", "s_code_end")


@lru_cache(maxsize=1)
def disassembler() -> str | None:
    """Path of an llvm-objdump that knows gfx942, also under a name with its version, or None."""
    names = ["llvm-objdump", *(f"llvm-objdump-{version}" for version in range(NEWEST_LOOKED_FOR, OLDEST - 1, -1))]
    for path in filter(None, map(shutil.which, names)):
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"LLVM version (\d+)", told)
        if version is not None and int(version[1]) >= OLDEST:
            return path
    return None


def disagreements(binary: Binary, tool: str) -> list[str]:
    """Where text and bytes of a binary differ: empty if they agree on every instruction and operand."""
    text, labels = lines_of(binary.text, binary.name)
    code, addresses = _disassembled(binary, tool)
    found = []
    place = 0
    at = []  # for each line of the text its place in the code
    for line in text:
        # Alignment puts instructions that do nothing between those of the text.
        while place < len(code) and code[place].name in PADDING and line.name not in PADDING:
            place += 1
        if place == len(code):
            return [*found, f"line {line.number}: the code ends before {line.name}"]
        at.append(place)
        place += 1
    for line, where in zip(text, at, strict=True):
        expected, actual = line, code[where]
        if line.operands and line.operands[0] in labels:
            index = labels[line.operands[0]]
            expected = Line(line.number, line.name, [f"to {addresses[at[index]]:x}"], [])
        if _plain(expected) != _plain(actual):
            found.append(f"line {line.number}: text {_plain(expected)}, code {_plain(actual)}")
    found += [f"behind the text: {_plain(rest)}" for rest in code[place:] if rest.name not in PADDING]
    return found


def _disassembled(binary: Binary, tool: str) -> tuple[list[Line], list[int]]:
    """The instructions of the code object and their addresses; a branch has ``to ADDRESS`` as its operand."""
    with tempfile.NamedTemporaryFile(suffix=".hsaco") as file:
        file.write(binary.code)
        file.flush()
        command = [tool, "--disassemble", f"--disassemble-symbols={binary.name}", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    start = re.search(rf"^([0-9a-f]+) <{re.escape(binary.name)}>:", output, flags=re.MULTILINE)
    if start is None:
        raise ValueError(f"the code object has no {binary.name}")
    lines, addresses = [], []
    for number, (instruction, address, comment) in enumerate(
        re.findall(r"^\t(\w.*?)\s*// ([0-9A-F]+):(.*)$", output, flags=re.MULTILINE)
    ):
        line = split_line(number, instruction)
        if target := re.search(r"<.*?(?:\+0x([0-9a-f]+))?>$", comment):
            line = Line(number, line.name, [f"to {int(start[1], 16) + int(target[1] or '0', 16):x}"], [])
        lines.append(line)
        addresses.append(int(address, 16))
    return lines, addresses


def _plain(line: Line) -> str:
    """An instruction with numbers in one notation."""
    operands = ", ".join(re.sub(r"\b0x[0-9a-f]+\b", lambda x: str(int(x[0], 16)), part) for part in line.operands)
    return " ".join([line.name, operands, *line.modifiers])
