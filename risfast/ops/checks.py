"""Checks of arguments: all of them before any work, each naming the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops.domain import adjoint_of

_SLICE_BYTES = 1 << 22
# Largest |R - R^H| / max |R| that counts as rounding: a covariance summed in float32 is off by some 1e-6.
_HERMITIAN_TOLERANCE = {torch.complex64: 1e-4, torch.complex128: 1e-9}


def check_array(array: Any) -> None:
    """``array`` is a PlanarArray."""
    if not isinstance(array, PlanarArray):
        raise TypeError(f"array must be a risfast.geometry.SensorArray, got {type(array).__name__}")


def check_grid(grid: Any) -> None:
    """``grid`` is a SearchGrid."""
    if not isinstance(grid, SearchGrid):
        raise TypeError(f"grid must be a risfast.geometry.SearchGrid, got {type(grid).__name__}")


def check_option(value: Any, name: str, allowed: Sequence[str]) -> None:
    """``value`` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def as_loading(loading: Any, minimum_open: bool) -> Tensor:
    """``loading`` as a float64 tensor without axes: a finite number, >= 0 or > 0, or a tensor of one, learnable."""
    if isinstance(loading, Tensor):
        if loading.numel() != 1 or not loading.is_floating_point():
            raise TypeError(f"loading must be a number or one real value, got {loading.dtype} {tuple(loading.shape)}")
        if not torch.compiler.is_compiling():
            check_loading(float(loading.detach()), minimum_open)
        return loading.reshape(())
    check_loading(loading, minimum_open)
    return torch.tensor(loading, dtype=torch.float64, device="cpu")


def check_loading(loading: Any, minimum_open: bool) -> None:
    """``loading`` is a finite number, >= 0 or > 0."""
    if not isinstance(loading, int | float) or isinstance(loading, bool):
        raise TypeError(f"loading must be a number, got {type(loading).__name__}")
    # A chain of comparisons refuses NaN too, and can be traced by torch.compile.
    if not 0 <= loading < math.inf or (minimum_open and loading == 0):
        bound = "> 0" if minimum_open else ">= 0"
        raise ValueError(f"loading must be finite and {bound} (delta = loading * trace(R)/N), got {loading!r}")


def as_tensor(value: Any) -> Any:
    """``value``, as a tensor if it is a numpy array."""
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def complex_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a complex64 or complex128 tensor on a device that the operators compute on; numpy's are taken."""
    tensor = as_tensor(value)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch tensor or a numpy array, got {type(value).__name__}")
    if tensor.dtype not in (torch.complex64, torch.complex128):
        raise TypeError(
            f"{name} must be complex64 or complex128, got {tensor.dtype}; convert with {name}.to(torch.complex64)"
        )
    check_device(tensor, name)
    result: Tensor = tensor.resolve_conj()
    return result


def check_device(value: Tensor, name: str) -> None:
    """``value`` is where the operators compute ("meta" carries shapes only and is let through)."""
    if value.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(
            f"{name} is on {value.device}; the operators compute on the CPU and on CUDA devices, pass {name}.cpu()"
        )


def check_matrix(matrix: Tensor, name: str, n: int, square: bool) -> None:
    """``matrix`` has a row for each element; a transposed one is recognised."""
    wanted = f"(B, {n}, {n}) or ({n}, {n})" if square else f"(B, {n}, K) or ({n}, K)"
    if matrix.ndim not in (2, 3):
        raise ShapeError(f"{name} must have shape {wanted}, got {tuple(matrix.shape)}")
    rows, columns = matrix.shape[-2:]
    if square and rows != columns:
        mend = "; a factor F of R = F F^H goes to mvdr_spectrum_lowrank" if rows == n else ""
        raise ShapeError(f"{name} must be square, of shape {wanted}, got {tuple(matrix.shape)}{mend}")
    if rows != n:
        mend = f"; it looks transposed, pass {name}.mT" if columns == n else ""
        raise ShapeError(
            f"{name} must have N = {n} rows, one for each element of the array, got {tuple(matrix.shape)}{mend}"
        )
    if not square and columns == 0:
        raise ShapeError(f"{name} must have at least one column, got {tuple(matrix.shape)}")


def check_finite(values: Tensor, name: str) -> None:
    """No NaN and no infinity.

    values (B, ...)
    """
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    # A sum is finite only if every term is, and is many times faster than isfinite; it overflows rarely, then look.
    if not bool(torch.isfinite(real.sum())) and not bool(torch.isfinite(real).all()):
        scene = int((~torch.isfinite(real)).reshape(real.shape[0], -1).any(1).nonzero()[0, 0])
        raise ValueError(f"{name} must be finite; {name}[{scene}] holds NaN or infinite values")


def _largest(matrix: Tensor) -> Tensor:
    """Largest real or imaginary part of each scene, (b,)."""
    return torch.view_as_real(matrix.resolve_conj()).abs().flatten(1).amax(1)


def check_hermitian(matrix: Tensor, name: str, mend: str = "") -> None:
    """Hermitian to rounding.

    matrix (B, N, N)
    """
    row = max(matrix.shape[-1] * matrix.element_size(), 1)
    step, rows = max(1, _SLICE_BYTES // (row * max(matrix.shape[-1], 1))), max(1, _SLICE_BYTES // row)
    for first in range(0, matrix.shape[0], step):
        part = matrix[first : first + step]
        largest, difference = torch.zeros(2, len(part), dtype=matrix.real.dtype, device=matrix.device)
        for low in range(0, matrix.shape[-1], rows):  # in blocks that stay in the cache, of the upper triangle
            upper = part[:, low : low + rows, low:]
            lower = adjoint_of(part[:, low:, low : low + rows])
            largest = torch.maximum(largest, _largest(upper))
            difference = torch.maximum(difference, _largest(upper - lower))
        bad = difference > _HERMITIAN_TOLERANCE[matrix.dtype] * largest
        if bool(bad.any()):
            scene = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"{name} must be Hermitian; {name}[{first + scene}] differs from its conjugate transpose by "
                f"{float(difference[scene] / largest[scene]):.1e} of its largest entry{mend}"
            )


def check_covariance_values(covariance: Tensor, name: str) -> None:
    """Finite, Hermitian to rounding, of positive trace.

    covariance (B, N, N)
    """
    check_finite(covariance, name)
    check_hermitian(covariance, name)
    trace = covariance.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    if bool((trace <= 0).any()):
        scene = int((trace <= 0).nonzero()[0, 0])
        raise ValueError(f"{name} must have a positive trace; trace({name}[{scene}]) = {float(trace[scene]):g}")


def check_factor_values(factor: Tensor, name: str) -> None:
    """Finite, and no scene of zeros.

    factor (B, N, K)
    """
    check_finite(factor, name)
    zero = ~(factor != 0).flatten(1).any(1)
    if bool(zero.any()):
        raise ValueError(f"{name}[{int(zero.nonzero()[0, 0])}] is zero: {name} {name}^H must have a positive trace")
