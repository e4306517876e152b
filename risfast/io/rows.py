"""Rows of samples straight from a file, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.guard import megabytes
from risfast.io.recording import Load, Snapshots

__all__ = ["raw_snapshots"]

Array = np.ndarray[Any, np.dtype[Any]]


def raw_snapshots(
    path: Path,
    offset: int,
    shape: tuple[int, int],
    width: int,
    stored: np.dtype[Any],
    convert: Callable[[Array], Array],
) -> Snapshots:
    """Rows of ``width`` stored numbers each, from byte ``offset`` on."""
    # Plain reads into a buffer rather than a memory map: pages of a map count as memory of the process for as long as
    # the system likes, a buffer is there once.
    row = width * stored.itemsize
    needed, there = offset + shape[0] * row, path.stat().st_size
    if needed > there:
        raise FileFormatError(
            f"{path}: {shape[0]} rows of {row} bytes from byte {offset} on are declared, {megabytes(needed)}, but the "
            f"file ends after {megabytes(there)}: it is cut off, or the number of rows or channels is wrong"
        )

    @contextmanager
    def opened() -> Iterator[Load]:
        with path.open("rb", buffering=0) as stream:

            def load(start: int, stop: int) -> Array:
                values = np.empty((stop - start, width), stored)
                target = memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
                stream.seek(offset + start * row)
                done = 0
                while done < len(target):
                    count = stream.readinto(target[done:])
                    if not count:
                        raise FileFormatError(f"{path}: the file ended while it was read; is it still being written?")
                    done += count
                return convert(values)

            yield load

    return Snapshots(shape, convert(np.empty((0, width), stored)).dtype, opened, str(path))
