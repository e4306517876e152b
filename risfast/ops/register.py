"""The spectra as torch custom ops: schemas, implementations in plain torch, fakes, gradients, vmap.

The implementations serve the CPU; :mod:`risfast.ops.register_cuda` registers the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from risfast.ops import register_cuda, spectra
from risfast.ops.checks import check_covariance_values, check_finite, check_hermitian
from risfast.ops.devices import serve_gpu
from risfast.ops.domain import Domain, adjoint_of
from risfast.ops.evaluators import Evaluator, Operand
from risfast.ops.plan import Plan
from risfast.ops.register_common import (
    GEOMETRY,
    define,
    fake_map_or_volume,
    fake_volume,
    map_or_volume,
    planned,
    register_vmap,
)

# --- Capon, full rank -------------------------------------------------------------------------------------------------


def capon_torch(
    covariance: Tensor,
    loading: float,
    volume: bool,
    *geometry: Any,
) -> tuple[Tensor, Tensor]:
    """Capon power of R [B, N, N]: (map, plane), or (volume, empty).

    covariance (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    check_covariance_values(covariance, "R")
    domain, plan, evaluator = planned("mvdr", covariance, geometry, True, loading, None)

    def operand(start: int, stop: int) -> Operand:
        return spectra.capon_operand(covariance[start:stop], loading, first=start)

    scale = torch.full((covariance.shape[0],), float(domain.n_elements), dtype=torch.float64)
    return map_or_volume(plan, evaluator, operand, spectra.reciprocal(scale), volume)


_SPECTRUM = "(Tensor, Tensor)"
capon_op = define("capon", "Tensor covariance, float loading, bool volume", _SPECTRUM, capon_torch)


@capon_op.register_fake
def _(covariance: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return fake_map_or_volume(covariance, geometry, volume)


def capon_backward_torch(
    grad: Tensor,
    covariance: Tensor,
    power: Tensor,
    plane: Tensor,
    loading: float,
    *geometry: Any,
) -> Tensor:
    """Gradient of :func:`capon_op` with respect to R; ``plane`` is empty for a volume.

    covariance (B, N, N), plane (B, G_az, G_el)
    """
    domain, plan, evaluator = planned("mvdr", covariance, geometry, True, loading, None)

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


_SAVED = "Tensor power, Tensor plane, float loading"
capon_backward_op = define(
    "capon_backward", f"Tensor grad, Tensor covariance, {_SAVED}", "Tensor", capon_backward_torch
)


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
    return capon_backward_op(grad, matrix, power, plane, ctx.loading, *ctx.geometry), *[None] * (2 + GEOMETRY)


capon_op.register_autograd(_capon_backward, setup_context=_capon_setup)


# --- Capon, low rank --------------------------------------------------------------------------------------------------


def capon_lowrank_torch(
    factor: Tensor,
    loading: float,
    volume: bool,
    *geometry: Any,
) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, F [B, N, K]: (map, plane), or (volume, empty).

    factor (B, N, K)
    """
    check_finite(factor, "F")
    delta = _delta_of(factor, loading)
    domain, plan, evaluator = planned("mvdr_lowrank", factor, geometry, True, loading, factor.shape[2])

    def operand(start: int, stop: int) -> Operand:
        return spectra.lowrank_operand(factor[start:stop], delta[start:stop])

    n = float(domain.n_elements)
    return map_or_volume(plan, evaluator, operand, spectra.complement(n * delta, n), volume)


def _delta_of(factor: Tensor, loading: float) -> Tensor:
    mean = spectra.mean_power(factor)
    if bool((mean <= 0).any()):
        raise ValueError(f"F[{int((mean <= 0).nonzero()[0, 0])}] is zero: F F^H must have a positive trace")
    return loading * mean


capon_lowrank_op = define("capon_lowrank", "Tensor factor, float loading, bool volume", _SPECTRUM, capon_lowrank_torch)


@capon_lowrank_op.register_fake
def _(factor: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return fake_map_or_volume(factor, geometry, volume)


def capon_lowrank_backward_torch(
    grad: Tensor,
    factor: Tensor,
    power: Tensor,
    plane: Tensor,
    loading: float,
    *geometry: Any,
) -> Tensor:
    """Gradient of :func:`capon_lowrank_op` with respect to F: 2 G F with G the gradient with respect to F F^H.

    factor (B, N, K), plane (B, G_az, G_el)
    """
    delta = _delta_of(factor, loading)
    domain, plan, evaluator = planned("mvdr_lowrank", factor, geometry, True, loading, factor.shape[2])

    def inverse(start: int, stop: int) -> Tensor:
        w = spectra.woodbury_factor(factor[start:stop], delta[start:stop])
        eye = torch.eye(domain.n_elements, dtype=torch.complex128)
        return (eye - w @ adjoint_of(w)) / delta[start:stop, None, None]

    result = torch.empty_like(factor, memory_format=torch.contiguous_format)
    for start, stop, gradient in _capon_gradients(domain, plan, evaluator, grad, power, plane, loading, inverse):
        result[start:stop] = 2 * gradient @ factor[start:stop].to(torch.complex128)
    return result


capon_lowrank_backward_op = define(
    "capon_lowrank_backward", f"Tensor grad, Tensor factor, {_SAVED}", "Tensor", capon_lowrank_backward_torch
)


@capon_lowrank_backward_op.register_fake
def _(grad: Tensor, factor: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(factor, memory_format=torch.contiguous_format)


def _capon_lowrank_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    factor, power, plane = ctx.saved_tensors
    return capon_lowrank_backward_op(grad, factor, power, plane, ctx.loading, *ctx.geometry), *[None] * (2 + GEOMETRY)


capon_lowrank_op.register_autograd(_capon_lowrank_backward, setup_context=_capon_setup)


# --- Bartlett and MUSIC -----------------------------------------------------------------------------------------------


def bartlett_torch(
    covariance: Tensor,
    volume: bool,
    *geometry: Any,
) -> tuple[Tensor, Tensor]:
    """a^H R a / N^2 of R [B, N, N]: (map, plane), or (volume, empty).

    covariance (B, N, N)
    """
    check_covariance_values(covariance, "R")
    domain, plan, evaluator = planned("bartlett", covariance, geometry, True, 0.0, None)

    def operand(start: int, stop: int) -> Operand:
        part = covariance[start:stop]
        spectra.check_definite(part, start)
        return Operand((part + adjoint_of(part)) / 2, "hermitian")

    scale = torch.full((covariance.shape[0],), domain.n_elements**-2.0, dtype=torch.float64)
    return map_or_volume(plan, evaluator, operand, spectra.linear(scale), volume)


bartlett_op = define("bartlett", "Tensor covariance, bool volume", _SPECTRUM, bartlett_torch)


@bartlett_op.register_fake
def _(covariance: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return fake_map_or_volume(covariance, geometry, volume)


def music_torch(
    covariance: Tensor,
    n_sources: int,
    volume: bool,
    *geometry: Any,
) -> tuple[Tensor, Tensor]:
    """N / (N - ||U^H a||^2), U the leading eigenvectors of R [B, N, N]: (map, plane), or (volume, empty).

    covariance (B, N, N)
    """
    check_covariance_values(covariance, "R")
    domain, plan, evaluator = planned("music", covariance, geometry, True, 0.0, n_sources)

    def operand(start: int, stop: int) -> Operand:
        spectra.check_definite(covariance[start:stop], start)
        # The subspace stays in complex128: rounding it to float32 would bury the nulls.
        vectors = torch.linalg.eigh(covariance[start:stop].to(torch.complex128)).eigenvectors
        return Operand(adjoint_of(vectors[..., -n_sources:]), "rows")

    n = float(domain.n_elements)
    scale = torch.full((covariance.shape[0],), n, dtype=torch.float64)
    return map_or_volume(plan, evaluator, operand, spectra.complement(scale, n), volume)


music_op = define("music", "Tensor covariance, SymInt n_sources, bool volume", _SPECTRUM, music_torch)


@music_op.register_fake
def _(covariance: Tensor, n_sources: int, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return fake_map_or_volume(covariance, geometry, volume)


_DEVICES: tuple[tuple[Any, Callable[..., Any], Callable[..., Any]], ...] = (
    (capon_op, capon_torch, register_cuda.capon),
    (capon_backward_op, capon_backward_torch, register_cuda.capon_backward),
    (capon_lowrank_op, capon_lowrank_torch, register_cuda.capon_lowrank),
    (capon_lowrank_backward_op, capon_lowrank_backward_torch, register_cuda.capon_lowrank_backward),
    (bartlett_op, bartlett_torch, register_cuda.bartlett),
    (music_op, music_torch, register_cuda.music),
)
for _op, _plain, _kernels in _DEVICES:
    serve_gpu(_op, _plain, _kernels)
for _op in (capon_op, capon_lowrank_op, bartlett_op, music_op):
    register_vmap(_op)


def analysis_torch(
    matrix: Tensor,
    factored: bool,
    box: bool,
    *geometry: Any,
) -> Tensor:
    """q_g = a_g^H Q a_g of Hermitian Q, or ||W^H a_g||^2.

    matrix (B, N, N) or (B, N, K) -> (B, G_az, G_el, G_r)
    """
    check_finite(matrix, "W_or_Q")
    if not factored:
        check_hermitian(matrix, "W_or_Q", "; pass factored=True if it is a factor W")
    rank = matrix.shape[2] if factored else None
    _, plan, evaluator = planned("analysis", matrix, geometry, box, 0.0, rank)

    def operand(start: int, stop: int) -> Operand:
        part = matrix[start:stop]
        return Operand(adjoint_of(part), "rows") if factored else Operand((part + adjoint_of(part)) / 2, "hermitian")

    unit = spectra.linear(torch.ones(matrix.shape[0], dtype=torch.float64))
    return spectra.volume_of(plan, evaluator, operand, unit)


analysis_op = define("analysis", "Tensor matrix, bool factored, bool box", "Tensor", analysis_torch)


@analysis_op.register_fake
def _(matrix: Tensor, factored: bool, box: bool, *geometry: Any) -> Tensor:
    _, azimuth, elevation, r = geometry[:4]
    if box:
        return fake_volume(matrix, azimuth, elevation, r)
    return matrix.new_empty((matrix.shape[0], azimuth.shape[0]), dtype=matrix.dtype.to_real())


def adjoint_torch(
    weights: Tensor,
    box: bool,
    *geometry: Any,
) -> Tensor:
    """sum_g p_g a_g a_g^H, the adjoint of analysis.

    weights (B, G_az, G_el, G_r) or (B, G) -> (B, N, N)
    """
    check_finite(weights, "p")
    domain, plan, evaluator = planned("synthesis", weights, geometry, box, 0.0, None)
    result = torch.empty(weights.shape[0], domain.n_elements, domain.n_elements, dtype=plan.dtype)
    for start, stop in spectra.scene_groups(plan):
        result[start:stop] = evaluator.adjoint(weights[start:stop])
    return result


adjoint_op = define("synthesis", "Tensor weights, bool box", "Tensor", adjoint_torch)


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
    return 2 * outer @ matrix if ctx.factored else outer, *[None] * (2 + GEOMETRY)


analysis_op.register_autograd(_analysis_backward, setup_context=_analysis_setup)


def _synthesis_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.box, *geometry = inputs
    ctx.geometry = geometry


def _synthesis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return analysis_op((grad + adjoint_of(grad)) / 2, False, ctx.box, *ctx.geometry), *[None] * (1 + GEOMETRY)


adjoint_op.register_autograd(_synthesis_backward, setup_context=_synthesis_setup)


serve_gpu(analysis_op, analysis_torch, register_cuda.analysis_cuda)
serve_gpu(adjoint_op, adjoint_torch, register_cuda.synthesis_cuda)
for _op in (analysis_op, adjoint_op):
    register_vmap(_op)
