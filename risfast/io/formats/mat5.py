"""MATLAB files of version 5 to 7: full numeric arrays, and nothing else.

Layout from "MAT-File Format", The MathWorks: a header of 128 bytes, then elements of a type, a length and data, where
compressed elements (version 7) hold one more element. Objects, function handles, cells and structs are never built, and
every declared length is checked before anything is allocated.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.guard import Array, check_held, check_members, parsing, shape_text
from risfast.io.recording import Snapshots

_KIND = "a MATLAB file of version 5 to 7"
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_OTHER = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function handle", 17: "object"}
_COMPLEX_FLAG = 0x08
_LARGEST_RANK = 32
_LONGEST_NAME = 4096
_INFLATE_STEP = 1 << 16


class _Inflated:
    """Reads a compressed element a little at a time, so that a bomb costs nothing until it is wanted."""

    def __init__(self, stream: BinaryIO, compressed_bytes: int) -> None:
        self._stream, self._left, self._buffer = stream, compressed_bytes, bytearray()
        self._engine = zlib.decompressobj()

    def read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._engine.unconsumed_tail or self._stream.read(min(_INFLATE_STEP, self._left))
            if not self._engine.unconsumed_tail:
                self._left -= len(data)
            if not data:
                break
            self._buffer += self._engine.decompress(data, max(_INFLATE_STEP, count - len(self._buffer)))
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


@dataclass(frozen=True)
class _Variable:
    name: str
    shape: tuple[int, ...]
    type_code: int
    complex: bool


class _Element:
    """One matrix element, read front to back."""

    def __init__(self, source: BinaryIO | _Inflated, order: str, length: int) -> None:
        self._source, self._order, self._left = source, order, length

    def take(self, count: int) -> bytes:
        """Exactly so many bytes of this element."""
        if count > self._left:
            raise ValueError(f"a part of {count} bytes is declared where {self._left} are left")
        data = self._source.read(count)
        if len(data) != count:
            raise ValueError("the data end early")
        self._left -= count
        return data

    def part(self, limit: int) -> tuple[int, bytes]:
        """Type and data of the next part, its padding skipped."""
        tag = self.take(8)
        first, length = struct.unpack(f"{self._order}II", tag)
        if first >> 16:  # small format: length and type in one word, data in the other
            kind, length = first & 0xFFFF, first >> 16
            if length > 4:
                raise ValueError(f"a small part of {length} bytes")
            return kind, tag[4 : 4 + length]
        if length > limit:
            raise ValueError(f"a part of {length} bytes is declared where at most {limit} make sense")
        data = self.take(length)
        self.take(min(-length % 8, self._left))
        return first, data

    def variable(self) -> _Variable:
        """The head of the matrix: class, shape, name."""
        _, flags = self.part(8)
        word = struct.unpack(f"{self._order}I", flags[:4])[0]
        _, sides = self.part(4 * _LARGEST_RANK)
        shape = struct.unpack(f"{self._order}{len(sides) // 4}i", sides[: len(sides) // 4 * 4])
        _, name = self.part(_LONGEST_NAME)
        if min(shape, default=-1) < 0:
            raise ValueError(f"a shape of {shape_text(shape)}")
        return _Variable(name.decode("latin-1"), shape, word & 0xFF, bool(word >> 8 & _COMPLEX_FLAG))

    def numbers(self, count: int) -> Array:
        """The next part as ``count`` numbers."""
        kind, data = self.part(8 * count)
        if kind not in _STORED:
            raise ValueError(f"numbers of an unknown type {kind}")
        stored = np.dtype(self._order + _STORED[kind])
        if len(data) != count * stored.itemsize:
            raise ValueError(f"{len(data)} bytes where {count} numbers of {stored.itemsize} bytes are declared")
        return np.frombuffer(data, stored)


class Mat5Container:
    """The numeric variables of a MATLAB file of version 5 to 7 by name."""

    kind = _KIND
    pages_last = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[int, _Variable]] = {}
        self.holds: dict[str, tuple[int, ...]] = {}  # shape of each variable
        with parsing(path, _KIND), path.open("rb") as stream:
            size = path.stat().st_size
            self._order = {b"IM": "<", b"MI": ">"}[stream.read(_HEADER_BYTES)[126:]]
            at = _HEADER_BYTES
            while at + 8 <= size:
                check_members(path, len(self._places))
                _, length = self._tag(stream, at, size)
                variable = self._element(stream, at, size).variable()
                if variable.name:  # MATLAB keeps the workspace of function handles in a variable without a name
                    self._places[variable.name] = (at, variable)
                    self.holds[variable.name] = variable.shape
                at += 8 + length

    def _tag(self, stream: BinaryIO, at: int, size: int) -> tuple[int, int]:
        stream.seek(at)
        kind, length = struct.unpack(f"{self._order}II", stream.read(8))
        if kind not in (_MATRIX, _COMPRESSED):
            raise FileFormatError(f"{self.path}: byte {at} should begin a variable, found type {kind}; it is damaged")
        if at + 8 + length > size:
            raise FileFormatError(
                f"{self.path}: the variable at byte {at} is declared to be {length} bytes long, past the end of the "
                f"file ({size} bytes): it is cut off or damaged"
            )
        return kind, length

    def _element(self, stream: BinaryIO, at: int, size: int) -> _Element:
        kind, length = self._tag(stream, at, size)
        source: BinaryIO | _Inflated = stream
        if kind == _COMPRESSED:
            source = _Inflated(stream, length)
            inner, length = struct.unpack(f"{self._order}II", source.read(8))
            if inner != _MATRIX:
                raise FileFormatError(f"{self.path}: the variable at byte {at} holds type {inner}; it is damaged")
        return _Element(source, self._order, length)

    def load(self, name: str) -> Array:
        """The whole array, if it is one of numbers and may be held in memory."""
        at, variable = self._places[name]
        if variable.type_code not in _NUMERIC:
            what = _OTHER.get(variable.type_code, f"class {variable.type_code}")
            raise FileFormatError(
                f"{self.path}: {name!r} is a {what} ({shape_text(variable.shape)}), and only full arrays of numbers "
                "are read; save full(double(X)) of the field that matters as a variable of its own"
            )
        result = np.dtype(_NUMERIC[variable.type_code])
        check_held(self.path, name, variable.shape, 2 * result.itemsize)
        count = math.prod(variable.shape)
        size = self.path.stat().st_size
        with parsing(self.path, _KIND, name), self.path.open("rb") as stream:
            element = self._element(stream, at, size)
            element.variable()
            values: Array = element.numbers(count).astype(result)
            if variable.complex:
                values = values + 1j * element.numbers(count).astype(result)
        if values.dtype.kind == "c" and result == np.float32:
            values = values.astype(np.complex64)
        return values.reshape(variable.shape, order="F")

    def rows(self, name: str) -> Snapshots | None:
        """Never: MATLAB stores columns, so a row is not in one place."""
        return None
