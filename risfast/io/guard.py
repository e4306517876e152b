"""What every reader does with a file that it must not trust: bounded memory, one kind of error, nothing executed."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.durable import canonical_json, sha256_of

Array = np.ndarray[Any, np.dtype[Any]]

HELD_BYTES = 256 << 20
"""Anything that is read whole (a covariance, codes, positions, a header) may take so many bytes; snapshots are read in
blocks and may be as long as the disk allows."""

TEXT_BYTES = 16 << 20
"""A document in JSON, TOML or another text may be so long."""

MOST_MEMBERS = 10_000
"""So many variables, members or datasets may be in one file."""

_DEEPEST = 64  # levels of a document
_LONGEST_MESSAGE = 400
_COMPLEX_RECORDS = (("real", "imag"), ("re", "im"), ("r", "i"))
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSETS = (0, 512, 1024, 2048)  # the signature follows a user block; MATLAB's takes 512 bytes
_MAT5_MARKS = (b"IM", b"MI")  # byte order mark at 126, little and big endian


def file_head(path: Path) -> bytes:
    """The first bytes of a file that is there, readable and not empty."""
    if not path.exists():
        raise FileFormatError(f"{path}: there is no such file")
    if not path.is_file():
        raise FileFormatError(f"{path}: not a file")
    try:
        with path.open("rb") as stream:
            head = stream.read(_HDF5_OFFSETS[-1] + len(_HDF5_SIGNATURE))
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be opened: {error.strerror or error}") from error
    if not head:
        raise FileFormatError(f"{path}: the file is empty")
    return head


def read_whole(path: Path, what: str, most: int = TEXT_BYTES) -> bytes:
    """All of a regular file, which may be no longer than ``what`` can be."""
    file_head(path)
    with parsing(path, what), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise FileFormatError(f"{path}: {megabytes(size)} are no {what}")
        return stream.read(size)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """A file of a folder by its plain name; refused where the name, or a link, leads out of the folder."""
    if name in ("", ".", "..") or set(name) & set("/\\\0:"):
        raise FileFormatError(f"{folder}: {name!r:.80} must be the plain name of a file in this folder")
    path = folder / name
    if path.exists() and path.resolve().parent != folder.resolve():
        raise FileFormatError(f"{path}: leads to another folder; put the file itself there")
    return path


def content_of(path: Path) -> str:
    """What the first bytes of a file say, whatever its name says."""
    head = file_head(path)
    if any(head[at : at + 8] == _HDF5_SIGNATURE for at in _HDF5_OFFSETS):
        return "HDF5"
    if head[126:128] in _MAT5_MARKS and head.startswith(b"MATLAB"):
        return "MATLAB"
    if head[:2] == b"PK":
        return "NumPy zip"
    if head.startswith(b"\x93NUMPY"):
        return "a single NumPy array (.npy)"
    if (head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE") or head[:4] == b"fLaC":
        return "WAV or FLAC"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle, which is never opened because it can run code"
    return "something else"


@contextmanager
def parsing(path: Path, kind: str, name: str | None = None) -> Iterator[None]:
    """Turn whatever a parser throws at damaged input into one FileFormatError that names the file and the field."""
    try:
        yield
    except FileFormatError:
        raise
    except Exception as error:  # parsers of numpy, h5py, zipfile, zlib, json and expat raise nearly everything
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


@contextmanager
def naming(path: Path, what: str = "what is expected") -> Iterator[None]:
    """Let what is wrong with the values of a file name the file, in one line."""
    try:
        yield
    except FileFormatError:
        raise
    except ValueError as error:
        raise FileFormatError(f"{path}: {short_text(error)}") from error
    except (TypeError, LookupError, AttributeError, OverflowError, RuntimeError) as error:  # torch raises the last
        raise FileFormatError(
            f"{path}: a value is missing, or not of the kind of {what} ({short_text(error)})"
        ) from error


def short_text(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."


def need(module: str, what: str, extra: str) -> ModuleType:
    """An optional dependency, or an error that says which it is and how to install it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs
        package = module.partition(".")[0]
        raise FileFormatError(
            f"{what} needs the package {package}, which is not installed: pip install 'risfast[{extra}]' "
            f"or pip install {package}"
        ) from error


def load_toml(path: Path, what: str, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """The document of a TOML file that is to hold ``what``."""
    text = read_whole(path, what)
    try:
        document = tomllib.loads(text.decode("utf-8"), parse_float=parse_float)
    except (ValueError, RecursionError) as error:  # of text that is none, of too many digits, and of TOML
        raise FileFormatError(f"{path}: not valid TOML: {short_text(error)}") from error
    check_depth(path, document)
    return document


def load_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object of a file that is to hold ``what``."""
    text = read_whole(path, what)
    try:
        document = json.loads(text.decode("utf-8"), parse_float=finite_number, parse_constant=finite_number)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: damaged, not {what}: {short_text(error)}") from error
    if not isinstance(document, dict):
        raise FileFormatError(f"{path}: not {what}: an object is expected, found {document!r:.60}")
    check_depth(path, document)
    return document


def check_seal(path: Path, document: dict[str, Any], key: str = "sha256") -> None:
    """Refuse a document whose own checksum, which is taken out of it, is not that of the rest."""
    if document.pop(key, None) != sha256_of(canonical_json(document)):
        raise FileFormatError(f"{path}: damaged, its checksum ({key}) is missing or does not match")


def finite_number(text: str) -> float:
    """A number of JSON, which no float is that it cannot write."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is not finite")
    return value


def check_depth(path: Path, document: Any) -> None:
    """Refuse what is nested deeper than any document of this library."""
    level = [document]
    for _ in range(_DEEPEST):
        inner = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise FileFormatError(f"{path}: nested deeper than {_DEEPEST} levels")


def as_numbers(values: Array) -> Array:
    """Complex numbers from the records that MATLAB and others make of them."""
    if values.dtype.names in _COMPLEX_RECORDS:
        real, imaginary = (values[field] for field in values.dtype.names)
        if real.dtype.kind in "iuf" and imaginary.dtype.kind in "iuf":
            single = real.dtype.itemsize <= 4 and real.dtype.kind == "f"
            pair = np.empty(values.shape, np.complex64 if single else np.complex128)
            pair.real, pair.imag = real, imaginary
            return pair
    return values


def held_dtype(stored: np.dtype[Any]) -> np.dtype[Any]:
    """What numbers are held as: single precision stays single, and torch has no extended precision."""
    target: np.dtype[Any] = np.result_type(stored, np.float32)
    widest = np.dtype(np.complex128 if target.kind == "c" else np.float64)
    return target if target.itemsize <= widest.itemsize else widest


def megabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:,.1f} MB"


def shape_text(shape: Sequence[int]) -> str:
    """(16, 64) as 16 x 64."""
    return " x ".join(map(str, shape)) or "a single number"


def inventory(holds: Mapping[str, Sequence[int]]) -> str:
    """Everything in a file with its shape."""
    some = [f"{name} ({shape_text(shape)})" for name, shape in sorted(holds.items())[:20]]
    return (", ".join(some) or "nothing") + (f" and {len(holds) - 20} more" if len(holds) > 20 else "")


def check_members(path: Path, count: int) -> None:
    """Refuse a file that only looking through would take long."""
    if count > MOST_MEMBERS:
        raise FileFormatError(f"{path}: it holds more than {MOST_MEMBERS} variables; save those that matter in another")


def check_held(path: Path, name: str, shape: Sequence[int], itemsize: int) -> None:
    """Refuse to hold more than :data:`HELD_BYTES`, whatever a header declares, before anything is allocated."""
    size = itemsize
    for side in shape:
        size *= int(side)  # Python integers: declared sizes may pass 2^63
    if size > HELD_BYTES:
        raise FileFormatError(
            f"{path}: {name!r} is declared as {shape_text(shape)}, {megabytes(size)}; what is not read in blocks may "
            f"take {megabytes(HELD_BYTES)} (snapshots are read in blocks from SigMF, HDF5 and uncompressed .npz)"
        )
