"""What every reader does with a file that it must not trust: bounded memory, one kind of error, nothing executed."""

from __future__ import annotations

import importlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from risfast.errors import FileFormatError

__all__ = ["HELD_BYTES", "PARSER_ERRORS", "check_held", "megabytes", "need", "parsing", "shape_text"]

Array = np.ndarray[Any, np.dtype[Any]]

HELD_BYTES = 256 << 20
"""Anything that is read whole (a covariance, codes, positions, a header) may take so many bytes; snapshots are read in
blocks and may be as long as the disk allows."""

# What the parsers of numpy, scipy, h5py, zipfile, zlib, json and expat raise on damaged input. MemoryError: a header
# that declares more than there is; SystemError and AssertionError: extension modules that lost their way.
PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ExpatError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def parsing(path: Path, kind: str, name: str | None = None) -> Iterator[None]:
    """Turn whatever a parser throws at damaged input into one FileFormatError that names the file and the field.

    Parameters
    ----------
    path : Path
    kind : str
        What the file should be.
    name : str or None
        The variable in it.

    Yields
    ------
    None

    Raises
    ------
    FileFormatError
        In place of any of :data:`PARSER_ERRORS`.
    """
    try:
        yield
    except FileFormatError:
        raise
    except PARSER_ERRORS as error:
        what = repr(name) if name else "the file"
        if "allow_pickle" in str(error):
            raise FileFormatError(
                f"{path}: {what} holds pickled Python objects, which are never opened because they can run code; "
                "save a plain array of numbers"
            ) from error
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileFormatError(
            f"{path}: {what} cannot be read as {kind}; it is damaged, cut off or something else ({detail})"
        ) from error


def need(module: str, what: str, extra: str) -> ModuleType:
    """An optional dependency, or an error that says which it is and how to install it.

    Parameters
    ----------
    module : str
        Dotted name.
    what : str
        What needs it.
    extra : str
        The extra of risfast that brings it.

    Returns
    -------
    module

    Raises
    ------
    FileFormatError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise FileFormatError(
            f"{what} needs the package {package}, which is not installed: pip install 'risfast[{extra}]' "
            f"or pip install {package}"
        ) from error


def megabytes(count: int) -> str:
    """A number of bytes for people.

    Parameters
    ----------
    count : int

    Returns
    -------
    str
    """
    return f"{count / 1e6:,.1f} MB"


def shape_text(shape: Sequence[int]) -> str:
    """(16, 64) as 16 x 64.

    Parameters
    ----------
    shape : sequence of int

    Returns
    -------
    str
    """
    return " x ".join(map(str, shape)) or "a single number"


def check_held(path: Path, name: str, shape: Sequence[int], itemsize: int) -> None:
    """Refuse to hold more than :data:`HELD_BYTES`, whatever a header declares, before anything is allocated.

    Parameters
    ----------
    path : Path
    name : str
    shape : sequence of int
    itemsize : int
        Bytes of a number.

    Raises
    ------
    FileFormatError
        It is more.
    """
    size = itemsize
    for side in shape:
        size *= int(side)  # Python integers: declared sizes may pass 2^63
    if size > HELD_BYTES:
        raise FileFormatError(
            f"{path}: {name!r} is declared as {shape_text(shape)}, {megabytes(size)}; what is not read in blocks may "
            f"take {megabytes(HELD_BYTES)} (snapshots are read in blocks from SigMF, HDF5 and uncompressed .npz)"
        )
