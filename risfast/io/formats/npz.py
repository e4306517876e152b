"""NumPy's .npz: declared sizes are checked against the archive, and what is stored plainly is read in blocks."""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.guard import Array, check_held, check_members, file_head, megabytes, parsing, shape_text
from risfast.io.recording import Snapshots, raw_snapshots

_KIND = "a NumPy .npz archive"
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and of its extra field


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    header_bytes: int


class NpzContainer:
    """The arrays of an .npz file by name."""

    kind = _KIND
    pages_last = False

    def __init__(self, path: Path) -> None:
        file_head(path)
        self.path = path
        self._members: dict[str, _Member] = {}
        self.holds: dict[str, tuple[int, ...]] = {}  # shape of each array
        with parsing(path, _KIND), zipfile.ZipFile(path) as archive:
            check_members(path, len(archive.infolist()))
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with parsing(path, _KIND, name):
                    self._members[name] = self._header(archive, info, name)
                self.holds[name] = self._members[name].shape

    def _header(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Member:
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
            else:
                raise FileFormatError(f"{self.path}: {name!r} is not a plain array (.npy version {version})")
            header = stream.tell()
        if dtype.hasobject:
            raise FileFormatError(
                f"{self.path}: {name!r} holds pickled Python objects, which are never opened because they can run "
                "code; save a plain array of numbers"
            )
        declared, there = math.prod(shape) * dtype.itemsize, info.file_size - header
        if declared != there or min(shape, default=0) < 0:
            raise FileFormatError(
                f"{self.path}: {name!r} is declared as {shape_text(shape)} of {dtype}, {megabytes(declared)}, but the "
                f"archive holds {megabytes(there)} of it: it is damaged or cut off"
            )
        return _Member(info, shape, dtype, fortran, header)

    def load(self, name: str) -> Array:
        """The whole array, if it may be held in memory."""
        member = self._members[name]
        check_held(self.path, name, member.shape, member.dtype.itemsize)
        with (
            parsing(self.path, _KIND, name),
            zipfile.ZipFile(self.path) as archive,
            archive.open(member.info) as stream,
        ):
            values: Array = np.lib.format.read_array(stream, allow_pickle=False)
            stream.read(1)  # the end of the member is where zipfile checks its sum
        return values

    def rows(self, name: str) -> Snapshots | None:
        """A 2D array in blocks, where it is stored row by row and not compressed."""
        member = self._members[name]
        plain = member.dtype.kind in "fc" and member.dtype.itemsize <= 16 and member.dtype.itemsize >= 4
        if member.info.compress_type != zipfile.ZIP_STORED or member.fortran or len(member.shape) != 2 or not plain:
            return None
        with parsing(self.path, _KIND, name), self.path.open("rb") as stream:
            stream.seek(member.info.header_offset)
            lengths = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        offset = member.info.header_offset + _LOCAL_HEADER.size + sum(lengths) + member.header_bytes
        (rows, width), native = member.shape, member.dtype.newbyteorder("=")
        return raw_snapshots(
            self.path, offset, (rows, width), width, member.dtype, lambda values: values.astype(native, copy=False)
        )
