"""Covariances as files hold them: checked, batch first, exactly Hermitian."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError

__all__ = ["as_batch", "as_complex", "as_hermitian"]

Array = np.ndarray[Any, np.dtype[Any]]

# Deviation from Hermitian symmetry, relative to the largest entry, that rounding to single precision or a printout with
# five digits can leave; anything above it means that the matrix is something else.
_HERMITIAN_TOLERANCE = 1e-4


def as_complex(raw: Any, path: Path, name: str) -> Array:
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


def as_batch(values: Array, path: Path, name: str, *, pages_last: bool, n_elements: int | None) -> Array:
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


def as_hermitian(batch: Array, path: Path, name: str, *, real: bool) -> Tensor:
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
