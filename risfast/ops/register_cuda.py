"""The spectra and the linear pair on a GPU: the same schemas, computed by kernels, without waiting for the host.

Each function has the arguments of the op that it implements. Values are not looked at (see
:func:`risfast.ops.devices.checks_values`): a scene that the CPU operator would refuse comes out as NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from risfast.ops import checks, spectra
from risfast.ops import register_cuda_operands as operands
from risfast.ops.devices import checks_values, kernel_module
from risfast.ops.domain import adjoint_of
from risfast.ops.register_common import whole
from risfast.ops.register_cuda_maps import (
    filled,
    from_factor,
    from_matrix,
    from_residual,
    outer_products_cuda,
    scale_for,
)
from risfast.ops.register_cuda_tables import DevicePlan, device_plan

_HIGHEST_MUSIC = 1e15  # where rounding leaves nothing of a null, as on the CPU


def _planned(
    operation: str, matrix: Tensor, geometry: tuple[Any, ...], loading: float, rank: int | None, box: bool = True
) -> DevicePlan:
    return device_plan(operation, matrix, whole(geometry), box, loading, rank)


def _finished(result: tuple[Tensor, Tensor], matrix: Tensor) -> tuple[Tensor, Tensor]:
    """In the precision of the input; the lag method may have computed in a higher one. Strides stay."""
    return result[0].to(matrix.dtype.to_real()), result[1]


# --- Capon ------------------------------------------------------------------------------------------------------------


def capon(covariance: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R [B, N, N]: (map, plane), or (volume, empty).

    covariance (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    if checks_values(covariance.device):
        checks.check_covariance_values(covariance, "R")
        spectra.loaded_cholesky(covariance, loading)
    plan = _planned("mvdr", covariance, geometry, loading, None)
    n = plan.domain.n_elements
    if plan.method == "lag":
        inverse = operands.loaded_inverse(covariance, loading, plan.precision)
        epilogue = kernel_module("launch").Epilogue("reciprocal", scale_for(inverse, n))
        return _finished(from_matrix(plan, inverse, epilogue, volume), covariance)
    factor = operands.loaded_factor(covariance, loading, plan.precision)
    epilogue = kernel_module("launch").Epilogue("reciprocal", scale_for(factor, n))
    return from_factor(plan, factor, epilogue, volume, triangular=True)


def capon_backward(
    grad: Tensor, covariance: Tensor, power: Tensor, plane: Tensor, loading: float, *geometry: Any
) -> Tensor:
    """Gradient of :func:`capon` with respect to R.

    covariance (B, N, N), plane (B, G_az, G_el)
    """
    plan = _planned("mvdr", covariance, geometry, loading, None)
    inverse = operands.loaded_inverse(covariance, loading)
    return _capon_gradient(plan, grad, power, plane, inverse, loading).to(covariance.dtype)


def _capon_gradient(
    plan: DevicePlan, grad: Tensor, power: Tensor, plane: Tensor, inverse: Tensor, loading: float
) -> Tensor:
    """dL/dR complex128 [B, N, N]; see :func:`risfast.ops.spectra.capon_gradient`."""
    n = plan.domain.n_elements
    epilogue = kernel_module("launch").Epilogue("reciprocal", filled(power, n))
    weights = kernel_module("weights").PointWeights(grad, epilogue, power, plane if plane.numel() else None)
    by_inverse = outer_products_cuda(plan, weights).to(inverse.dtype)  # dL/dR^-1, and dR^-1 = -R^-1 dR R^-1
    gradient = -(inverse @ by_inverse @ inverse)
    trace = gradient.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    shift = (loading / n * trace)[:, None, None] * torch.eye(n, dtype=trace.dtype, device=trace.device)
    return (gradient + adjoint_of(gradient)) / 2 + shift


def capon_lowrank(factor: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, F [B, N, K]: (map, plane), or (volume, empty).

    factor (B, N, K)
    """
    if checks_values(factor.device):
        checks.check_finite(factor, "F")
    plan = _planned("mvdr_lowrank", factor, geometry, loading, factor.shape[2])
    delta = operands.lowrank_delta(factor, loading)
    n = plan.domain.n_elements
    if plan.method == "lag":
        inverse = operands.lowrank_inverse(factor, delta)
        epilogue = kernel_module("launch").Epilogue("reciprocal", scale_for(inverse, n))
        return _finished(from_matrix(plan, inverse, epilogue, volume), factor)
    pair = operands.residual_operands(factor, delta)
    if pair is None:  # too many columns for that kernel: as a covariance
        f = factor.to(torch.complex128)
        whole = operands.shifted_factor(f @ adjoint_of(f), delta, plan.precision)
        epilogue = kernel_module("launch").Epilogue("reciprocal", scale_for(whole, n))
        return from_factor(plan, whole, epilogue, volume, triangular=True)
    epilogue = kernel_module("launch").Epilogue("reciprocal", scale_for(pair[0], n) * delta)
    return from_residual(plan, pair, epilogue, volume)


def capon_lowrank_backward(
    grad: Tensor, factor: Tensor, power: Tensor, plane: Tensor, loading: float, *geometry: Any
) -> Tensor:
    """Gradient of :func:`capon_lowrank` with respect to F: 2 G F with G the gradient with respect to F F^H.

    factor (B, N, K), plane (B, G_az, G_el)
    """
    plan = _planned("mvdr_lowrank", factor, geometry, loading, factor.shape[2])
    inverse = operands.lowrank_inverse(factor, operands.lowrank_delta(factor, loading))
    gradient = _capon_gradient(plan, grad, power, plane, inverse, loading)
    return (2 * gradient @ factor.to(gradient.dtype)).to(factor.dtype)


# --- Bartlett and MUSIC -----------------------------------------------------------------------------------------------


def bartlett(covariance: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """a^H R a / N^2 of R [B, N, N]: (map, plane), or (volume, empty).

    covariance (B, N, N)
    """
    if checks_values(covariance.device):
        checks.check_covariance_values(covariance, "R")
        spectra.check_definite(covariance)
    plan = _planned("bartlett", covariance, geometry, 0.0, None)
    shift = operands.rounding_shift(covariance)
    return _quadratic_form(plan, covariance, shift, plan.domain.n_elements**-2.0, volume)


def _quadratic_form(
    plan: DevicePlan, matrix: Tensor, shift: Tensor, scale: float, volume: bool
) -> tuple[Tensor, Tensor]:
    """Values scale * a^H Q a of Hermitian Q [B, N, N], which ``shift`` [B] makes definite."""
    if plan.method == "lag":
        hermitian = (matrix + adjoint_of(matrix)) / 2
        epilogue = kernel_module("launch").Epilogue("linear", scale_for(shift[:, None, None], scale))
        return _finished(from_matrix(plan, hermitian, epilogue, volume), matrix)
    factor = operands.definite_factor(matrix, shift)
    epilogue = kernel_module("launch").Epilogue("linear", scale_for(factor, scale))
    power, plane = from_factor(plan, factor, epilogue, volume, triangular=True)
    excess = (scale * plan.domain.n_elements * shift).to(power.dtype)
    return power - excess.reshape(-1, *[1] * (power.ndim - 1)), plane


def music(covariance: Tensor, n_sources: int, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """N / (N - ||U^H a||^2), U the leading eigenvectors of R [B, N, N]: (map, plane), or (volume, empty).

    covariance (B, N, N)
    """
    # The eigenvectors come from torch, which waits for the host: this one cannot be captured in a CUDA graph.
    if checks_values(covariance.device):
        checks.check_covariance_values(covariance, "R")
        spectra.check_definite(covariance)
    plan = _planned("music", covariance, geometry, 0.0, n_sources)
    vectors = torch.linalg.eigh(covariance.to(torch.complex128)).eigenvectors
    signal = vectors[..., -n_sources:]
    n = plan.domain.n_elements
    if plan.method == "lag":
        epilogue = kernel_module("launch").Epilogue("complement", filled(covariance, n), n)
        return _finished(from_matrix(plan, signal @ adjoint_of(signal), epilogue, volume), covariance)
    kernels = kernel_module("launch")
    if n_sources > kernel_module("lowrank").MOST_COLUMNS:
        noise = vectors[..., : n - n_sources].to(torch.complex64)
        power, plane = from_factor(plan, noise, kernels.Epilogue("reciprocal", scale_for(noise, n)), volume)
    else:
        pair = (signal.to(torch.complex64),) * 2
        power, plane = from_residual(plan, pair, kernels.Epilogue("reciprocal", scale_for(pair[0], n)), volume)
    return power.clamp_max(_HIGHEST_MUSIC), plane


# --- Analysis and synthesis -------------------------------------------------------------------------------------------


def analysis_cuda(matrix: Tensor, factored: bool, box: bool, *geometry: Any) -> Tensor:
    """a^H Q a of Hermitian Q [B, N, N], or ||W^H a||^2 of W [B, N, K].

    matrix (B, N, N) or (B, N, K) -> (B, G_az, G_el, G_r)
    """
    if checks_values(matrix.device):
        checks.check_finite(matrix, "W_or_Q")
        if not factored:
            checks.check_hermitian(matrix, "W_or_Q", "; pass factored=True if it is a factor W")
    plan = _planned("analysis", matrix, geometry, 0.0, matrix.shape[2] if factored else None, box)
    if not factored:
        return _quadratic_form(plan, matrix, operands.frobenius_shift(matrix), 1.0, True)[0]
    epilogue = kernel_module("launch").Epilogue("linear", filled(matrix, 1.0))
    if plan.method == "lag":
        double = matrix.to(torch.complex128)
        return _finished(from_matrix(plan, double @ adjoint_of(double), epilogue, True), matrix)[0]
    return from_factor(plan, matrix, epilogue, True)[0]


def synthesis_cuda(weights: Tensor, box: bool, *geometry: Any) -> Tensor:
    """sum_g p_g a_g a_g^H of p [B, G_az, G_el, G_r] or [B, G]: [B, N, N].

    weights (B, G_az, G_el, G_r) or (B, G) -> (B, N, N)
    """
    if checks_values(weights.device):
        checks.check_finite(weights, "p")
    plan = _planned("synthesis", weights, geometry, 0.0, None, box)
    return outer_products_cuda(plan, kernel_module("weights").PointWeights(weights)).to(weights.dtype.to_complex())
