"""Operands of the kernels from covariances and factors, on a GPU and without waiting for the host.

A scene that has no operand (a covariance without positive trace, or not definite) becomes NaN, and no other scene.
"""

from __future__ import annotations

import torch
from torch import Tensor

from risfast.ops.devices import kernel_module
from risfast.ops.domain import adjoint_of
from risfast.ops.spectra import poisoned


def _delta(covariance: Tensor, loading: Tensor | float) -> Tensor:
    """Loading of each scene, float64 [B]; NaN where the trace is not positive."""
    mean = covariance.diagonal(dim1=-2, dim2=-1).real.double().mean(-1)
    return torch.where(mean > 0, loading * mean, torch.nan)


def _inverse_dtype(precision: str | None) -> torch.dtype:
    """A float32 inverse costs 0.014 dB by itself: only for those who ask for less than that."""
    return torch.float32 if precision == "tf32" else torch.float64


def loaded_factor(covariance: Tensor, loading: Tensor | float, precision: str | None = None) -> Tensor:
    """W = L^-H of R + delta I = L L^H.

    covariance (B, N, N) -> (B, N, N)
    """
    return shifted_factor(covariance, _delta(covariance, loading), precision)


def shifted_factor(covariance: Tensor, delta: Tensor, precision: str | None = None) -> Tensor:
    """As :func:`loaded_factor`, for a loading in the unit of R.

    covariance (B, N, N), delta (B,) -> (B, N, N)
    """
    kernels = kernel_module("inverse")
    if covariance.shape[-1] <= kernels.LARGEST:
        factor, info = kernels.inverse_factor(covariance, delta, dtype=_inverse_dtype(precision))
        return poisoned(factor, info).to(torch.complex64)
    lower, info = _shifted_cholesky(covariance, delta)
    eye = torch.eye(covariance.shape[-1], dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    return poisoned(adjoint_of(inverse), info).to(torch.complex64)


def loaded_inverse(covariance: Tensor, loading: Tensor | float, precision: str | None = None) -> Tensor:
    """(R + delta I)^-1.

    covariance (B, N, N) -> (B, N, N)
    """
    kernels, delta = kernel_module("inverse"), _delta(covariance, loading)
    if covariance.shape[-1] > kernels.LARGEST:
        lower, info = _shifted_cholesky(covariance, delta)
        return poisoned(torch.cholesky_inverse(lower), info)
    return poisoned(*kernels.hermitian_inverse(covariance, delta, dtype=_inverse_dtype(precision)))


def _shifted_cholesky(matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factor of (Q + Q^H) / 2 + shift I in complex128, and 0 where there is one."""
    q = ((matrix + adjoint_of(matrix)) / 2).to(torch.complex128)
    q.diagonal(dim1=-2, dim2=-1).add_(shift[:, None])
    factor, info = torch.linalg.cholesky_ex(q)
    return factor, info


def definite_factor(matrix: Tensor, shift: Tensor) -> Tensor:
    """W with W W^H = Q + shift I.

    matrix (B, N, N), shift (B,) -> (B, N, N)
    """
    # The Cholesky factor of the matrix with its elements in reverse order, put back in order, is upper triangular.
    lower, info = _shifted_cholesky(matrix.flip(1, 2), shift)
    return poisoned(lower.flip(1, 2), info).to(torch.complex64)


def frobenius_shift(matrix: Tensor) -> Tensor:
    """What makes any Hermitian matrix definite: a little more than its norm.

    matrix (B, N, N) -> (B,)
    """
    squared = torch.view_as_real(matrix.resolve_conj()).double().square().sum((1, 2, 3))
    # A matrix of zeros is left with a shift too, so that it has a factor.
    return squared.sqrt().clamp_min(torch.finfo(torch.float32).tiny) * (1 + 1e-6)


def rounding_shift(covariance: Tensor) -> Tensor:
    """What makes a semi-definite covariance definite in spite of its rounding.

    covariance (B, N, N) -> (B,)
    """
    return _delta(covariance, 32 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps)


def residual_operands(factor: Tensor, delta: Tensor) -> tuple[Tensor, Tensor] | None:
    """U and V with ||a - U V^H a||^2 = delta a^H (F F^H + delta I)^-1 a.

    factor (B, N, K), delta (B,) -> (B, N, K)
    """
    kernels = kernel_module("lowrank")
    if factor.shape[2] > kernels.MOST_COLUMNS:
        return None
    u, v, info = kernels.residual_factors(factor, delta)
    return poisoned(u, info), v
