"""Covariances and results as files.

Nothing here trusts a file: what cannot be read as what it was given for ends in a `FileFormatError` that names the
file, what it holds and the mend. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError

if TYPE_CHECKING:
    from risfast.detect import Sources

__all__ = ["COVARIANCE_KEYS", "OUTPUT_SUFFIXES", "file_head", "read_covariance", "source_rows", "write_sources"]

COVARIANCE_KEYS = ("R", "covariance")
OUTPUT_SUFFIXES = (".json", ".csv")

# Deviation from Hermitian symmetry, relative to the largest entry, that rounding to single precision or a printout with
# five digits can leave; anything above it means that the matrix is something else.
_HERMITIAN_TOLERANCE = 1e-4

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSETS = (0, 512, 1024, 2048)  # the signature follows a user block; MATLAB's takes 512 bytes
_MAT5_MARKS = (b"IM", b"MI")  # byte order mark at 126, little and big endian

Array = np.ndarray[Any, np.dtype[Any]]


def read_covariance(path: str | Path, *, key: str | None = None, n_elements: int | None = None) -> Tensor:
    """Read a covariance, or a batch of them, from a NumPy, MATLAB or HDF5 file.

    Parameters
    ----------
    path : str or Path
        ``.npz``; ``.mat`` as MATLAB writes it, version 5 to 7 or 7.3; ``.h5`` or ``.hdf5``.
    key : str, optional
        Name of the variable. By default ``R`` or ``covariance``, whichever is there.
    n_elements : int, optional
        Elements N of the array that the covariance belongs to; anything else is refused.

    Returns
    -------
    complex tensor, shape (B, N, N)
        complex64 if the file is in single precision, else complex128; B = 1 for a single matrix; exactly Hermitian (the
        mean of R and R^H). A real symmetric matrix is a valid covariance and comes back complex. A MATLAB file may
        hold its batch as (N, N, B), MATLAB's pages, or as (B, N, N); where B = N it is read as (B, N, N).

    Raises
    ------
    FileFormatError
        The file is missing, empty, cut off, in another format or pickled; the variable is not there, ambiguous, not
        numeric, not square, empty, not finite, not Hermitian, of another N, or looks like snapshots.

    Notes
    -----
    MATLAB 7.3 files are HDF5 with every axis reversed. For a Hermitian matrix that is a conjugation, which would mirror
    every source without a trace, so such files are turned back.
    """
    path = Path(path)
    kind = _recognise(path)
    list_names, load = _READERS[kind]
    with _parsing(path, kind):
        names = list_names(path)
    name = _choose(path, names, key)
    with _parsing(path, kind, name):
        raw = load(path, name)
    values = _as_complex(raw, path, name)
    batch = _as_batch(values, path, name, pages_last=path.suffix.lower() == ".mat", n_elements=n_elements)
    return _as_hermitian(batch, path, name, real=values.dtype.kind != "c")


def file_head(path: Path) -> bytes:
    """The first bytes of a file that is there, readable and not empty.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bytes
        At most 2056: enough to tell what the file holds.

    Raises
    ------
    FileFormatError
        There is no such file, it is a folder, cannot be opened, or is empty.
    """
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


def _content(head: bytes) -> str:
    """What the first bytes say, whatever the name says."""
    if any(head[at : at + 8] == _HDF5_SIGNATURE for at in _HDF5_OFFSETS):
        return "HDF5"
    if head[126:128] in _MAT5_MARKS and head.startswith(b"MATLAB"):
        return "MATLAB"
    if head[:2] == b"PK":
        return "NumPy zip"
    if head.startswith(b"\x93NUMPY"):
        return "a single NumPy array (.npy)"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle, which is never opened because it can run code"
    return "something else"


_CONTENT_BY_SUFFIX = {
    ".npz": ("NumPy zip",),
    ".mat": ("MATLAB", "HDF5"),
    ".h5": ("HDF5",),
    ".hdf5": ("HDF5",),
}


def _recognise(path: Path) -> str:
    """The kind of reader for a file whose name and content agree."""
    suffix = path.suffix.lower()
    if suffix not in _CONTENT_BY_SUFFIX:
        mend = "; save it as numpy.savez(path, R=R)" if suffix in (".npy", ".pkl", ".pickle", ".csv", ".txt") else ""
        known = ", ".join(_CONTENT_BY_SUFFIX)
        raise FileFormatError(f"{path}: a covariance file ends in one of {known}, not {suffix or 'nothing'!r}{mend}")
    head = file_head(path)
    content = _content(head)
    if content not in _CONTENT_BY_SUFFIX[suffix]:
        expected = " or ".join(_CONTENT_BY_SUFFIX[suffix])
        raise FileFormatError(
            f"{path}: not a {suffix} file: expected {expected} content, found {content} "
            f"(first bytes {head[:8]!r}); the name may be wrong or the file cut off"
        )
    return content


@contextmanager
def _parsing(path: Path, kind: str, name: str | None = None) -> Iterator[None]:
    """Turn whatever a third-party parser throws at damaged input into one sentence."""
    try:
        yield
    except FileFormatError:
        raise
    except Exception as error:  # parsers of damaged files raise nearly every type there is, struct.error to TypeError
        what = f"{name!r}" if name else "the file"
        if "allow_pickle" in str(error):
            raise FileFormatError(
                f"{path}: {what} holds pickled Python objects, which are never opened because they can run code; "
                "save a plain complex array"
            ) from error
        detail = " ".join(str(error).split()) or type(error).__name__
        raise FileFormatError(
            f"{path}: {what} cannot be read as {kind} content; it is damaged or cut off ({detail})"
        ) from error


def _names_npz(path: Path) -> list[str]:
    # Given a path, numpy leaves the file open when it is damaged.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return list(archive.files)


def _load_npz(path: Path, name: str) -> Any:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return archive[name]


def _names_mat5(path: Path) -> list[str]:
    from scipy.io import whosmat  # noqa: PLC0415  (scipy.io takes a while to import and is rarely wanted)

    return [name for name, _, _ in whosmat(path)]


def _load_mat5(path: Path, name: str) -> Any:
    from scipy.io import loadmat  # noqa: PLC0415

    return loadmat(path, variable_names=[name])[name]


def _names_hdf5(path: Path) -> list[str]:
    import h5py  # noqa: PLC0415

    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):  # MATLAB keeps its own things in #refs#
            names.append(name)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return names


def _load_hdf5(path: Path, name: str) -> Any:
    import h5py  # noqa: PLC0415

    with h5py.File(path, "r") as file:
        dataset = file[name]
        if "MATLAB_empty" in dataset.attrs:
            return np.empty((0, 0))
        values = dataset[()]
        from_matlab = "MATLAB_class" in dataset.attrs or path.suffix.lower() == ".mat"
    return np.transpose(values) if from_matlab and isinstance(values, np.ndarray) else values


_READERS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path, str], Any]]] = {
    "NumPy zip": (_names_npz, _load_npz),
    "MATLAB": (_names_mat5, _load_mat5),
    "HDF5": (_names_hdf5, _load_hdf5),
}


def _choose(path: Path, names: list[str], key: str | None) -> str:
    """The one variable that is meant."""
    there = ", ".join(sorted(names)) or "no variables at all"
    if key is not None:
        if key not in names:
            raise FileFormatError(f"{path}: there is no variable {key!r}; the file holds {there}")
        return key
    known = [name for name in COVARIANCE_KEYS if name in names]
    if not known:
        expected = " or ".join(repr(name) for name in COVARIANCE_KEYS)
        raise FileFormatError(
            f"{path}: there is no variable {expected}; name one with key (--key): the file holds {there}"
        )
    if len(known) > 1:
        raise FileFormatError(f"{path}: both {' and '.join(map(repr, known))} are there; name the one with key (--key)")
    return known[0]


def _as_complex(raw: Any, path: Path, name: str) -> Array:
    """A plain real or complex array, also from the (real, imag) records of MATLAB and others."""
    if isinstance(raw, np.ndarray) and raw.dtype.names in (("real", "imag"), ("re", "im"), ("r", "i")):
        real, imaginary = (raw[field] for field in raw.dtype.names)
        if real.dtype.kind in "iuf" and imaginary.dtype.kind in "iuf":
            raw = real + 1j * imaginary
    if not isinstance(raw, np.ndarray) or raw.dtype.kind not in "iufc":
        what = f"dtype {raw.dtype}" if isinstance(raw, np.ndarray) else type(raw).__name__
        raise FileFormatError(f"{path}: {name!r} must be a full array of real or complex numbers, got {what}")
    target = np.result_type(raw.dtype, np.float32)  # single precision stays single, integers and half precision fit
    if target.itemsize > np.dtype(np.complex128 if target.kind == "c" else np.float64).itemsize:
        target = np.dtype(np.complex128 if target.kind == "c" else np.float64)  # torch has no extended precision
    return raw.astype(target)


def _as_batch(values: Array, path: Path, name: str, *, pages_last: bool, n_elements: int | None) -> Array:
    """(B, N, N) from (N, N), (B, N, N) or, where MATLAB's pages are possible, (N, N, B)."""
    shape = " x ".join(map(str, values.shape))
    if values.size == 0:
        raise FileFormatError(f"{path}: {name!r} is empty ({shape or 'no shape'})")
    if values.ndim == 2 and values.shape[0] == values.shape[1]:
        batch = values[None]
    elif values.ndim == 3 and pages_last and values.shape[0] == values.shape[1] != values.shape[2]:
        batch = np.moveaxis(values, -1, 0)
    elif values.ndim == 3 and values.shape[1] == values.shape[2]:
        batch = values
    else:
        raise FileFormatError(f"{path}: {name!r} has shape {shape}; {_shape_mend(values, n_elements)}")
    if n_elements is not None and batch.shape[-1] != n_elements:
        raise FileFormatError(
            f"{path}: {name!r} holds {batch.shape[-1]} x {batch.shape[-1]} matrices, but the array has {n_elements} "
            "elements; give the array that the covariance was measured with"
        )
    return batch


def _shape_mend(values: Array, n_elements: int | None) -> str:
    """What a wrong shape most likely is."""
    expected = "expected one covariance (N, N) or a batch (B, N, N)"
    if values.ndim == 2:
        rows, columns = values.shape
        by_columns = n_elements == columns if n_elements in (rows, columns) else rows >= columns
        formula = "X.T @ X.conj() / L" if by_columns else "X @ X.conj().T / L"
        layout = f"{rows} snapshots of {columns}" if by_columns else f"{columns} snapshots of {rows}"
        return (
            f"{expected}. It is not square: these look like snapshots ({layout} elements); save R = {formula} instead"
        )
    if values.ndim == 3 and values.shape[0] == values.shape[1]:
        return f"{expected}. The batch comes last here: save numpy.moveaxis(R, -1, 0)"
    if values.ndim == 3 and values.shape[-1] == 2 and values.dtype.kind != "c":
        return f"{expected}. It looks like real and imaginary parts side by side: save R[..., 0] + 1j * R[..., 1]"
    return expected


def _as_hermitian(batch: Array, path: Path, name: str, *, real: bool) -> Tensor:
    """Checked and made exactly Hermitian."""
    bad = int(batch.size - np.isfinite(batch).sum())
    if bad:
        raise FileFormatError(f"{path}: {name!r} holds {bad} values that are NaN or infinite")
    mirrored = np.conj(np.swapaxes(batch, -1, -2))
    scale = np.abs(batch).max(axis=(-1, -2))
    deviation = np.abs(batch - mirrored).max(axis=(-1, -2)) / np.where(scale > 0, scale, 1)
    worst = int(deviation.argmax())
    if deviation[worst] > _HERMITIAN_TOLERANCE:
        mend = ""
        if real:
            mend = "; it is real, its imaginary part may have been lost on the way"
        elif np.abs(batch - np.swapaxes(batch, -1, -2)).max() <= _HERMITIAN_TOLERANCE * scale.max():
            mend = "; it is symmetric, so the conjugate in R = E[x x^H] may have been forgotten"
        raise FileFormatError(
            f"{path}: {name!r} is not Hermitian: R and R^H differ by {deviation[worst]:.1e} of the largest entry "
            f"(matrix {worst} of {len(batch)}){mend}"
        )
    single = batch.dtype in (np.complex64, np.float32)
    return torch.from_numpy(((batch + mirrored) / 2).astype(np.complex64 if single else np.complex128))


def source_rows(scenes: Sequence[Sources]) -> list[dict[str, float | int]]:
    """One flat record per source for people: scene, source, degrees, metres, dB and confidence.

    Parameters
    ----------
    scenes : sequence of Sources
        One per covariance.

    Returns
    -------
    list of dict
        Keys scene, source (both from 0), azimuth_deg, elevation_deg, range_m, power_db (10 log10 of the linear power),
        confidence.
    """
    return [
        {
            "scene": scene,
            "source": index,
            "azimuth_deg": math.degrees(float(found.azimuth[index])),
            "elevation_deg": math.degrees(float(found.elevation[index])),
            "range_m": float(found.range[index]),
            "power_db": 10 * math.log10(float(found.power[index])),
            "confidence": float(found.confidence[index]),
        }
        for scene, found in enumerate(scenes)
        for index in range(len(found))
    ]


def write_sources(path: str | Path, scenes: Sequence[Sources]) -> None:
    """Write sources as JSON (a list of scenes, each with its sources) or CSV (one line per source).

    Parameters
    ----------
    path : str or Path
        Ends in .json or .csv; an existing file is replaced.
    scenes : sequence of Sources
        One per covariance. In JSON a scene without sources is an empty list; in CSV it has no line.

    Raises
    ------
    FileFormatError
        The name ends in something else.
    OSError
        The file cannot be written.
    """
    path = Path(path)
    rows = source_rows(scenes)
    if path.suffix.lower() == ".json":
        by_scene = [[row for row in rows if row["scene"] == scene] for scene in range(len(scenes))]
        path.write_text(json.dumps({"scenes": by_scene}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    elif path.suffix.lower() == ".csv":
        columns = ["scene", "source", "azimuth_deg", "elevation_deg", "range_m", "power_db", "confidence"]
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise FileFormatError(f"{path}: results are written as {' or '.join(OUTPUT_SUFFIXES)}")
