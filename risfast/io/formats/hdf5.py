"""HDF5, also as MATLAB 7.3 writes it. Nothing outside the file is ever opened from within it."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.guard import (
    HELD_BYTES,
    Array,
    as_numbers,
    check_held,
    check_members,
    file_head,
    held_dtype,
    megabytes,
    parsing,
    shape_text,
)
from risfast.io.recording import Snapshots

_KIND = "HDF5"
_LARGEST_RATIO = 1100  # deflate cannot do better than 1032 to 1
_LONGEST_TEXT = 1 << 16
_HEAP = b"GCOL\x01"  # of texts of any length, wherever in a file; then its size, where an object has its own
_OBJECT = struct.Struct("<H6xQ")  # its number, 0 for free space, and its size


def _is_plain(stored: Any) -> bool:
    """Whether numbers are of a type that computers have, or a record of such: other bit layouts corrupt memory."""
    # libhdf5 converts floats of any declared bit fields, and from damaged ones it writes past its buffers.
    from h5py import h5t  # noqa: PLC0415

    if isinstance(stored, h5t.TypeStringID):
        return True
    if isinstance(stored, h5t.TypeEnumID):  # booleans
        stored = stored.get_super()
    if isinstance(stored, h5t.TypeCompoundID):
        end = 0
        for i in range(stored.get_nmembers()):
            member, start = stored.get_member_type(i), stored.get_member_offset(i)
            if start < end or isinstance(member, h5t.TypeStringID) or not _is_plain(member):
                return False
            end = start + member.get_size()
        return bool(end <= stored.get_size())
    names = [f"STD_{kind}{bits}{order}" for kind in "IU" for bits in (8, 16, 32, 64) for order in ("LE", "BE")]
    names += [f"IEEE_F{bits}{order}" for bits in (16, 32, 64) for order in ("LE", "BE")]
    return any(stored.equal(getattr(h5t, name)) for name in (*names, "NATIVE_LDOUBLE"))


def _is_long_text(stored: Any) -> bool:
    from h5py import h5t  # noqa: PLC0415

    return isinstance(stored, h5t.TypeStringID) and stored.is_variable_str()


def check_heaps(path: Path) -> None:
    """Refuse a heap of texts of any length that libhdf5 would walk through without end."""
    # It steps from object to object by their sizes, also where one is zero.
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = -1
        while (start := data.find(_HEAP, start + 1)) >= 0 and start + _OBJECT.size <= size:
            at, end = start + _OBJECT.size, start + _OBJECT.unpack_from(data, start)[1]
            if end > size:  # no heap, or one that libhdf5 refuses
                continue
            while at + _OBJECT.size <= end:
                number, length = _OBJECT.unpack_from(data, at)
                step = _OBJECT.size + length + -length % 8 if number else length
                if not 0 < step <= end - at:
                    raise FileFormatError(f"{path} is damaged: the heap of its texts has an object of {length} bytes")
                at += step


def check_dataset(path: Path, name: str, dataset: Any) -> None:
    """Refuse a dataset that lives in other files, declares more than the file can hold, or has giant chunks."""
    if dataset.external or dataset.is_virtual:
        raise FileFormatError(
            f"{path}: {name!r} keeps its data in other files, which are never opened from within a file; "
            "copy it into one (h5repack)"
        )
    if dataset.shape is None:
        raise FileFormatError(f"{path}: {name!r} is empty")
    if not _is_plain(dataset.id.get_type()):
        raise FileFormatError(
            f"{path}: {name!r} is of a number type that is not standard: it is damaged, or no numbers"
        )
    declared = math.prod(int(side) for side in dataset.shape) * dataset.dtype.itemsize
    stored = int(dataset.id.get_storage_size())
    largest = stored * _LARGEST_RATIO if dataset.chunks else stored
    if declared > largest or stored > path.stat().st_size:
        raise FileFormatError(
            f"{path}: {name!r} is declared as {shape_text(dataset.shape)}, {megabytes(declared)}, but the file holds "
            f"{megabytes(min(stored, path.stat().st_size))} of it: it was never filled, or the file is cut off"
        )
    if dataset.chunks:
        chunk = math.prod(int(side) for side in dataset.chunks) * dataset.dtype.itemsize
        if chunk > HELD_BYTES:
            raise FileFormatError(
                f"{path}: {name!r} is stored in chunks of {megabytes(chunk)}; at most {megabytes(HELD_BYTES)} are read "
                "at a time (h5repack -l CHUNK=...)"
            )


class Hdf5Container:
    """The datasets of an HDF5 file by name, as far as they are reached without leaving the file."""

    kind = _KIND

    def __init__(self, path: Path) -> None:
        file_head(path)
        self.path = path
        self.pages_last = path.suffix.lower() == ".mat"
        self.holds: dict[str, tuple[int, ...]] = {}  # shape of each dataset; of MATLAB's as MATLAB shows it
        self._turned: set[str] = set()
        with self.file() as file:
            import h5py  # noqa: PLC0415

            seen = 0

            def visit(name: str, item: Any) -> None:
                nonlocal seen
                seen += 1
                check_members(path, seen)
                if not isinstance(item, h5py.Dataset) or name.startswith("#"):  # MATLAB keeps its own things in #refs#
                    return
                shape = item.shape or ()
                if self.pages_last or "MATLAB_class" in item.attrs:
                    self._turned.add(name)
                    shape = shape[::-1]
                self.holds[name] = shape

            file.visititems(visit)  # goes along hard links only, so never into another file

    @contextmanager
    def file(self) -> Iterator[Any]:
        """The open file; whatever goes wrong in it is one error."""
        import h5py  # noqa: PLC0415  (a heavy import that few need)

        with parsing(self.path, _KIND), h5py.File(self.path, "r") as file:
            yield file

    def attributes(self, name: str) -> dict[str, Any]:
        """The attributes of a group or dataset; none if it is not there."""
        import h5py  # noqa: PLC0415

        with self.file() as file:
            place = file
            for part in name.strip("/").split("/") if name != "/" else ():
                if not isinstance(place, h5py.Group) or not isinstance(place.get(part, getlink=True), h5py.HardLink):
                    return {}
                place = place[part]
            plain = [key for key in place.attrs if _is_plain(place.attrs.get_id(key).get_type())]
            if any(_is_long_text(place.attrs.get_id(key).get_type()) for key in plain):
                check_heaps(self.path)
            values = {key: place.attrs[key] for key in plain}
            return {key: value for key, value in values.items() if not isinstance(value, h5py.Empty)}

    def load(self, name: str, part: tuple[Any, ...] = ()) -> Array:
        """The whole dataset, or a slice of it in the file's own order of axes, if it may be held in memory."""
        with self.file() as file:
            dataset = file[name]
            if "MATLAB_empty" in dataset.attrs:
                return np.empty((0, 0))
            self._check_plain(name, dataset)
            sides = zip(part, dataset.shape, strict=True) if part else ()
            shape = [len(range(*p.indices(side))) if isinstance(p, slice) else 1 for p, side in sides]
            check_held(self.path, name, shape if part else dataset.shape, dataset.dtype.itemsize)
            values = as_numbers(np.asarray(dataset[part]))
        return values.T if name in self._turned and not part else values

    def load_text(self, name: str) -> str:
        """A short text without the blanks around it; empty if the dataset holds something else."""
        with self.file() as file:
            dataset = file[name]
            if dataset.shape != () or dataset.dtype.itemsize > _LONGEST_TEXT:
                return ""
            check_dataset(self.path, name, dataset)
            if _is_long_text(dataset.id.get_type()):
                check_heaps(self.path)
            value = dataset[()]
        return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()

    def _check_plain(self, name: str, dataset: Any) -> None:
        if dataset.dtype.hasobject or dataset.dtype.kind not in "iufcbV":
            raise FileFormatError(
                f"{self.path}: {name!r} must hold numbers, found {dataset.dtype}; map another variable"
            )
        check_dataset(self.path, name, dataset)

    def rows(self, name: str) -> Snapshots | None:
        """A 2D dataset of numbers in blocks."""
        if len(self.holds[name]) != 2:
            return None
        with self.file() as file:
            self._check_plain(name, file[name])
            sample = as_numbers(np.empty((0, 0), file[name].dtype))
        if sample.dtype.kind not in "fciu":
            return None
        target = held_dtype(sample.dtype)
        turned = name in self._turned

        def load(start: int, stop: int) -> Array:
            import h5py  # noqa: PLC0415

            with parsing(self.path, _KIND, name), h5py.File(self.path, "r") as file:
                self._check_plain(name, file[name])  # again: the file may be another one by now
                part = file[name][:, start:stop].T if turned else file[name][start:stop]
                return as_numbers(part).astype(target, copy=False)

        rows, columns = self.holds[name]
        return Snapshots((rows, columns), target, load, f"{self.path}: {name!r}")
