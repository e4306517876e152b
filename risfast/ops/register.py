"""The operators as torch custom ops: schemas, CPU implementations, fakes, gradients, vmap.

Geometry travels as float64 CPU tensors (positions [N, 3] and three axes), so that a plan can be found by their contents
without waiting for a device, and so that an exported program carries all it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from risfast.ops import spectra
from risfast.ops.checks import check_covariance_values, check_finite, check_hermitian
from risfast.ops.domain import Domain, adjoint_of, domain_of
from risfast.ops.evaluators import Evaluator, Operand
from risfast.ops.plan import Plan, make_plan, request_of

__all__ = ["adjoint_op", "analysis_op", "bartlett_op", "capon_lowrank_op", "capon_op", "music_op"]

Geometry = tuple[Tensor, Tensor, Tensor, Tensor, float, str, str, int]
_GEOMETRY = 8  # arguments that describe it, at the end of each schema


def _planned(
    operation: str, matrix: Tensor, geometry: Geometry, box: bool, loading: float, rank: int | None
) -> tuple[Domain, Plan, Evaluator]:
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget = geometry
    domain = domain_of(positions, (azimuth, elevation, r), wavenumber, wavefront, box)
    dtype = matrix.dtype.to_complex() if not matrix.dtype.is_complex else matrix.dtype
    request = request_of(operation, method, matrix.shape[0], domain.n_elements, rank, dtype, loading, byte_budget)
    return domain, *make_plan(domain, request)


def _fake_map(matrix: Tensor, azimuth: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor]:
    shape = (matrix.shape[0], azimuth.shape[0], elevation.shape[0])
    real = matrix.dtype.to_real()
    return matrix.new_empty(shape, dtype=real), matrix.new_empty(shape, dtype=torch.int32)


def _fake_volume(matrix: Tensor, azimuth: Tensor, elevation: Tensor, r: Tensor) -> Tensor:
    shape = (matrix.shape[0], r.shape[0], azimuth.shape[0], elevation.shape[0])
    return matrix.new_empty(shape, dtype=matrix.dtype.to_real()).permute(0, 2, 3, 1)


def _map_or_volume(
    plan: Plan, evaluator: Evaluator, operand: spectra.OperandOf, power: Any, volume: bool
) -> tuple[Tensor, Tensor]:
    """(power map, plane) or (volume, empty)."""
    if volume:
        return spectra.volume_of(plan, evaluator, operand, power), torch.empty(0, dtype=torch.int32)
    return spectra.map_of(plan, evaluator, operand, power)


def _fake_map_or_volume(matrix: Tensor, geometry: Geometry, volume: bool) -> tuple[Tensor, Tensor]:
    _, azimuth, elevation, r = geometry[:4]
    if volume:
        return _fake_volume(matrix, azimuth, elevation, r), matrix.new_empty(0, dtype=torch.int32)
    return _fake_map(matrix, azimuth, elevation)


# --- Capon, full rank -------------------------------------------------------------------------------------------------


@torch.library.custom_op("risfast::capon", mutates_args=(), device_types="cpu")
def capon_op(
    covariance: Tensor,
    loading: float,
    volume: bool,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> tuple[Tensor, Tensor]:
    """Capon power of R [B, N, N]: (map, plane), or (volume, empty)."""
    check_covariance_values(covariance, "R")
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    domain, plan, evaluator = _planned("mvdr", covariance, geometry, True, loading, None)

    def operand(start: int, stop: int) -> Operand:
        return spectra.capon_operand(covariance[start:stop], loading, first=start)

    scale = torch.full((covariance.shape[0],), float(domain.n_elements), dtype=torch.float64)
    return _map_or_volume(plan, evaluator, operand, spectra.reciprocal(scale), volume)


@capon_op.register_fake
def _(covariance: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return _fake_map_or_volume(covariance, geometry, volume)


@torch.library.custom_op("risfast::capon_backward", mutates_args=(), device_types="cpu")
def capon_backward_op(
    grad: Tensor,
    covariance: Tensor,
    power: Tensor,
    plane: Tensor,
    loading: float,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> Tensor:
    """Gradient of :func:`capon_op` with respect to R; ``plane`` is empty for a volume."""
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    domain, plan, evaluator = _planned("mvdr", covariance, geometry, True, loading, None)

    def inverse(start: int, stop: int) -> Tensor:
        return spectra.capon_operand(covariance[start:stop], loading, first=start).matrix

    result = torch.empty_like(covariance, memory_format=torch.contiguous_format)
    for start, stop, gradient in _capon_gradients(domain, plan, evaluator, grad, power, plane, loading, inverse):
        result[start:stop] = gradient
    return result


def _capon_gradients(
    domain: Domain,
    plan: Plan,
    evaluator: Evaluator,
    grad: Tensor,
    power: Tensor,
    plane: Tensor,
    loading: float,
    inverse: Callable[[int, int], Tensor],
) -> Any:
    """Yield (start, stop, dL/dR [b, N, N]) for each pass."""
    for start, stop in spectra.scene_groups(plan):
        weights = grad[start:stop].double() * power[start:stop].double().square() / domain.n_elements
        if plane.numel():
            weights = spectra.plane_weights(weights, plane[start:stop], plan.shape[2])
        yield start, stop, spectra.capon_gradient(plan, evaluator, inverse(start, stop), weights, loading)


@capon_backward_op.register_fake
def _(grad: Tensor, covariance: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(covariance, memory_format=torch.contiguous_format)


def _capon_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    matrix, loading, _, *geometry = inputs
    power, plane = output
    ctx.save_for_backward(matrix, power, plane)
    ctx.mark_non_differentiable(plane)
    ctx.loading, ctx.geometry = loading, geometry


def _capon_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    matrix, power, plane = ctx.saved_tensors
    return capon_backward_op(grad, matrix, power, plane, ctx.loading, *ctx.geometry), *[None] * (2 + _GEOMETRY)


capon_op.register_autograd(_capon_backward, setup_context=_capon_setup)


# --- Capon, low rank --------------------------------------------------------------------------------------------------


@torch.library.custom_op("risfast::capon_lowrank", mutates_args=(), device_types="cpu")
def capon_lowrank_op(
    factor: Tensor,
    loading: float,
    volume: bool,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, F [B, N, K]: (map, plane), or (volume, empty)."""
    check_finite(factor, "F")
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    delta = _delta_of(factor, loading)
    domain, plan, evaluator = _planned("mvdr_lowrank", factor, geometry, True, loading, factor.shape[2])

    def operand(start: int, stop: int) -> Operand:
        return spectra.lowrank_operand(factor[start:stop], delta[start:stop])

    n = float(domain.n_elements)
    return _map_or_volume(plan, evaluator, operand, spectra.complement(n * delta, n), volume)


def _delta_of(factor: Tensor, loading: float) -> Tensor:
    mean = spectra.mean_power(factor)
    if bool((mean <= 0).any()):
        raise ValueError(f"F[{int((mean <= 0).nonzero()[0, 0])}] is zero: F F^H must have a positive trace")
    return loading * mean


@capon_lowrank_op.register_fake
def _(factor: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return _fake_map_or_volume(factor, geometry, volume)


@torch.library.custom_op("risfast::capon_lowrank_backward", mutates_args=(), device_types="cpu")
def capon_lowrank_backward_op(
    grad: Tensor,
    factor: Tensor,
    power: Tensor,
    plane: Tensor,
    loading: float,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> Tensor:
    """Gradient of :func:`capon_lowrank_op` with respect to F: 2 G F with G the gradient with respect to F F^H."""
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    delta = _delta_of(factor, loading)
    domain, plan, evaluator = _planned("mvdr_lowrank", factor, geometry, True, loading, factor.shape[2])

    def inverse(start: int, stop: int) -> Tensor:
        w = spectra.woodbury_factor(factor[start:stop], delta[start:stop])
        eye = torch.eye(domain.n_elements, dtype=torch.complex128)
        return (eye - w @ adjoint_of(w)) / delta[start:stop, None, None]

    result = torch.empty_like(factor, memory_format=torch.contiguous_format)
    for start, stop, gradient in _capon_gradients(domain, plan, evaluator, grad, power, plane, loading, inverse):
        result[start:stop] = 2 * gradient @ factor[start:stop].to(torch.complex128)
    return result


@capon_lowrank_backward_op.register_fake
def _(grad: Tensor, factor: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(factor, memory_format=torch.contiguous_format)


def _capon_lowrank_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    factor, power, plane = ctx.saved_tensors
    return capon_lowrank_backward_op(grad, factor, power, plane, ctx.loading, *ctx.geometry), *[None] * (2 + _GEOMETRY)


capon_lowrank_op.register_autograd(_capon_lowrank_backward, setup_context=_capon_setup)


# --- Bartlett and MUSIC -----------------------------------------------------------------------------------------------


@torch.library.custom_op("risfast::bartlett", mutates_args=(), device_types="cpu")
def bartlett_op(
    covariance: Tensor,
    volume: bool,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> tuple[Tensor, Tensor]:
    """a^H R a / N^2 of R [B, N, N]: (map, plane), or (volume, empty)."""
    check_covariance_values(covariance, "R")
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    domain, plan, evaluator = _planned("bartlett", covariance, geometry, True, 0.0, None)

    def operand(start: int, stop: int) -> Operand:
        part = covariance[start:stop]
        spectra.check_definite(part, start)
        return Operand((part + adjoint_of(part)) / 2, "hermitian")

    scale = torch.full((covariance.shape[0],), domain.n_elements**-2.0, dtype=torch.float64)
    return _map_or_volume(plan, evaluator, operand, spectra.linear(scale), volume)


@bartlett_op.register_fake
def _(covariance: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return _fake_map_or_volume(covariance, geometry, volume)


@torch.library.custom_op("risfast::music", mutates_args=(), device_types="cpu")
def music_op(
    covariance: Tensor,
    n_sources: int,
    volume: bool,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> tuple[Tensor, Tensor]:
    """N / (N - ||U^H a||^2), U the leading eigenvectors of R [B, N, N]: (map, plane), or (volume, empty)."""
    check_covariance_values(covariance, "R")
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    domain, plan, evaluator = _planned("music", covariance, geometry, True, 0.0, n_sources)

    def operand(start: int, stop: int) -> Operand:
        spectra.check_definite(covariance[start:stop], start)
        # The subspace stays in complex128: rounding it to float32 would bury the nulls.
        vectors = torch.linalg.eigh(covariance[start:stop].to(torch.complex128)).eigenvectors
        return Operand(adjoint_of(vectors[..., -n_sources:]), "rows")

    n = float(domain.n_elements)
    scale = torch.full((covariance.shape[0],), n, dtype=torch.float64)
    return _map_or_volume(plan, evaluator, operand, spectra.complement(scale, n), volume)


@music_op.register_fake
def _(covariance: Tensor, n_sources: int, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return _fake_map_or_volume(covariance, geometry, volume)


# --- Analysis and synthesis: each the other's adjoint -----------------------------------------------------------------


@torch.library.custom_op("risfast::analysis", mutates_args=(), device_types="cpu")
def analysis_op(
    matrix: Tensor,
    factored: bool,
    box: bool,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> Tensor:
    """Q = a^H Q a of Hermitian Q [B, N, N], or ||W^H a||^2 of W [B, N, K]."""
    check_finite(matrix, "W_or_Q")
    if not factored:
        check_hermitian(matrix, "W_or_Q", "; pass factored=True if it is a factor W")
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    rank = matrix.shape[2] if factored else None
    _, plan, evaluator = _planned("analysis", matrix, geometry, box, 0.0, rank)

    def operand(start: int, stop: int) -> Operand:
        part = matrix[start:stop]
        return Operand(adjoint_of(part), "rows") if factored else Operand((part + adjoint_of(part)) / 2, "hermitian")

    unit = spectra.linear(torch.ones(matrix.shape[0], dtype=torch.float64))
    return spectra.volume_of(plan, evaluator, operand, unit)


@analysis_op.register_fake
def _(matrix: Tensor, factored: bool, box: bool, *geometry: Any) -> Tensor:
    _, azimuth, elevation, r = geometry[:4]
    if box:
        return _fake_volume(matrix, azimuth, elevation, r)
    return matrix.new_empty((matrix.shape[0], azimuth.shape[0]), dtype=matrix.dtype.to_real())


@torch.library.custom_op("risfast::synthesis", mutates_args=(), device_types="cpu")
def adjoint_op(
    weights: Tensor,
    box: bool,
    positions: Tensor,
    azimuth: Tensor,
    elevation: Tensor,
    range_m: Tensor,
    wavenumber: float,
    wavefront: str,
    method: str,
    byte_budget: int,
) -> Tensor:
    """sum_g p_g a_g a_g^H of p [B, G_az, G_el, G_r] or [B, G]: [B, N, N]."""
    check_finite(weights, "p")
    geometry = (positions, azimuth, elevation, range_m, wavenumber, wavefront, method, byte_budget)
    domain, plan, evaluator = _planned("synthesis", weights, geometry, box, 0.0, None)
    result = torch.empty(weights.shape[0], domain.n_elements, domain.n_elements, dtype=plan.dtype)
    for start, stop in spectra.scene_groups(plan):
        result[start:stop] = evaluator.adjoint(weights[start:stop])
    return result


@adjoint_op.register_fake
def _(weights: Tensor, box: bool, positions: Tensor, *geometry: Any) -> Tensor:
    n = positions.shape[0]
    return weights.new_empty((weights.shape[0], n, n), dtype=weights.dtype.to_complex())


def _analysis_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    matrix, ctx.factored, ctx.box, *geometry = inputs
    ctx.save_for_backward(matrix)
    ctx.geometry = geometry


def _analysis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (matrix,) = ctx.saved_tensors
    outer = adjoint_op(grad, ctx.box, *ctx.geometry)
    return 2 * outer @ matrix if ctx.factored else outer, *[None] * (2 + _GEOMETRY)


analysis_op.register_autograd(_analysis_backward, setup_context=_analysis_setup)


def _synthesis_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.box, *geometry = inputs
    ctx.geometry = geometry


def _synthesis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return analysis_op((grad + adjoint_of(grad)) / 2, False, ctx.box, *ctx.geometry), *[None] * (1 + _GEOMETRY)


adjoint_op.register_autograd(_synthesis_backward, setup_context=_synthesis_setup)


# --- vmap: the mapped dimension becomes part of the batch -------------------------------------------------------------


def _register_vmap(op: Any) -> None:
    def rule(info: Any, in_dims: tuple[Any, ...], first: Tensor, *rest: Any) -> Any:
        if any(dim is not None for dim in in_dims[1:]):
            raise ValueError("vmap over risfast operators maps the matrix argument only; the geometry is shared")
        merged = first.movedim(in_dims[0], 0)
        outer, inner = merged.shape[:2]
        results = op(merged.reshape(outer * inner, *merged.shape[2:]), *rest)
        several = isinstance(results, tuple)
        split = [
            t.unflatten(0, (outer, inner)) if t.numel() or t.ndim > 1 else t
            for t in (results if several else (results,))
        ]
        dims = [0 if t.ndim > 1 else None for t in split]
        return (tuple(split), tuple(dims)) if several else (split[0], dims[0])

    op.register_vmap(rule)


for _op in (capon_op, capon_lowrank_op, bartlett_op, music_op, analysis_op, adjoint_op):
    _register_vmap(_op)
