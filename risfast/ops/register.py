"""Every operator as a torch custom op: schema, fake, gradient and vmap, and the plain torch of the spectra.

Plain torch serves the CPU; ``NAME_cuda`` of :mod:`risfast.ops.cuda` takes the same arguments. Array and
points travel as float64 CPU tensors at the end of the arguments of the spectra and of the linear pair: a plan is found
by their contents without waiting for a device, and an exported program carries all it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from risfast.ops import checks, cuda, spectra
from risfast.ops.choice import Request
from risfast.ops.devices import define, on_host, serves_kernels
from risfast.ops.domain import Domain, adjoint_of, domain_of
from risfast.ops.evaluators import Evaluator, Operand
from risfast.ops.peaks_cpu import local_maxima_cpu, nms_cpu
from risfast.ops.peaks_reference import local_maxima_3d_reference, nms_3d_reference
from risfast.ops.plan import Plan, make_plan
from risfast.ops.refinement import refine_torch, walk_torch
from risfast.ops.spectra import Epilogue

# Element positions (N, 3) in metres; azimuths and elevations in radians and ranges in metres (the axes of a grid, or
# the coordinates of points); wavenumber in rad/m. The dispatcher leaves out the last argument where it is the default.
_GEOMETRY = (
    "Tensor positions, Tensor azimuth, Tensor elevation, Tensor range_m, float wavenumber, str wavefront, str method, "
    'SymInt byte_budget, str precision="auto"'
)
_N_GEOMETRY = _GEOMETRY.count(",") + 1


def planned(
    operation: str, matrix: Tensor, geometry: tuple[Any, ...], box: bool, loading: float, rank: int | None
) -> tuple[Domain, Plan, Evaluator]:
    """Domain, plan and evaluator of a request, its tables on the device of the matrix.

    matrix (B, ...)
    """
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, *_ = geometry
    with on_host(matrix.device):
        domain = domain_of(positions, (azimuth, elevation, r), wavenumber, wavefront, box)
        dtype = matrix.dtype.to_complex()
        request = Request(operation, method, matrix.shape[0], domain.n_elements, rank, dtype, loading, byte_budget)
        return domain, *make_plan(domain, request, matrix.device)


def _spectrum(
    plan: Plan, evaluator: Evaluator, operand: spectra.OperandOf, form: str, scale: Tensor | float, volume: bool
) -> tuple[Tensor, Tensor]:
    """(map, plane), or (volume, empty): power by the form of an epilogue, its scale one number or one a scene."""
    scales = scale if isinstance(scale, Tensor) else torch.full((plan.batch,), scale, dtype=torch.float64)
    epilogue = Epilogue(form, scales, plan.n_elements)
    if volume:
        return spectra.volume_of(plan, evaluator, operand, epilogue), torch.empty(0, dtype=torch.int32)
    return spectra.map_of(plan, evaluator, operand, epilogue)


# --- Spectra in plain torch -------------------------------------------------------------------------------------------


def capon_torch(covariance: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R: (map, plane), or (volume, empty).

    covariance (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    domain, plan, evaluator = planned("mvdr", covariance, geometry, True, loading, None)

    def operand(start: int, stop: int) -> Operand:
        return spectra.capon_operand(covariance[start:stop], loading, first=start)

    return _spectrum(plan, evaluator, operand, "reciprocal", float(domain.n_elements), volume)


def capon_lowrank_torch(factor: Tensor, loading: float, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, as :func:`capon_torch`.

    factor (B, N, K)
    """
    delta = spectra.lowrank_delta(factor, loading)
    domain, plan, evaluator = planned("mvdr_lowrank", factor, geometry, True, loading, factor.shape[2])

    def operand(start: int, stop: int) -> Operand:
        # With Q = W W^H, N - q = delta a^H (F F^H + delta I)^-1 a.
        return Operand(adjoint_of(spectra.woodbury_factor(factor[start:stop], delta[start:stop])), "rows")

    return _spectrum(plan, evaluator, operand, "complement", float(domain.n_elements) * delta, volume)


def bartlett_torch(covariance: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """a^H R a / N^2, as :func:`capon_torch`.

    covariance (B, N, N)
    """
    domain, plan, evaluator = planned("bartlett", covariance, geometry, True, 0.0, None)

    def operand(start: int, stop: int) -> Operand:
        part = covariance[start:stop]
        return Operand((part + adjoint_of(part)) / 2, "hermitian")

    return _spectrum(plan, evaluator, operand, "linear", domain.n_elements**-2.0, volume)


def music_torch(covariance: Tensor, n_sources: int, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """N / (N - ||U^H a||^2), U the leading eigenvectors of R, as :func:`capon_torch`.

    covariance (B, N, N)
    """
    domain, plan, evaluator = planned("music", covariance, geometry, True, 0.0, n_sources)

    def operand(start: int, stop: int) -> Operand:
        # The subspace stays in complex128: rounding it to float32 would bury the nulls.
        vectors = torch.linalg.eigh(covariance[start:stop].to(torch.complex128)).eigenvectors
        return Operand(adjoint_of(vectors[..., -n_sources:]), "rows")

    return _spectrum(plan, evaluator, operand, "complement", float(domain.n_elements), volume)


def _gradients(
    request: tuple[Domain, Plan, Evaluator],
    saved: tuple[Tensor, Tensor, Tensor],
    loading: float,
    inverse: Callable[[int, int], Tensor],
) -> Iterator[tuple[slice, Tensor]]:
    """Scenes of each pass and dL/dR [b, N, N], from dL/dP, P and the winning planes (empty for a volume)."""
    (domain, plan, evaluator), (grad, power, plane) = request, saved
    for start, stop in spectra.scene_groups(plan):
        weights = grad[start:stop].double() * power[start:stop].double().square() / domain.n_elements
        if plane.numel():
            weights = spectra.plane_weights(weights, plane[start:stop], plan.shape[2])
        yield slice(start, stop), spectra.capon_gradient(evaluator.adjoint(weights), inverse(start, stop), loading)


def capon_backward_torch(
    grad: Tensor, covariance: Tensor, power: Tensor, plane: Tensor, loading: float, *geometry: Any
) -> Tensor:
    """Gradient of :func:`capon_torch` with respect to R; ``plane`` is empty for a volume.

    covariance (B, N, N), plane (B, G_az, G_el)
    """
    request = planned("mvdr", covariance, geometry, True, loading, None)

    def inverse(start: int, stop: int) -> Tensor:
        return spectra.capon_operand(covariance[start:stop], loading, first=start).matrix

    result = _contiguous_like(covariance)
    for scenes, gradient in _gradients(request, (grad, power, plane), loading, inverse):
        result[scenes] = gradient
    return result


def capon_lowrank_backward_torch(
    grad: Tensor, factor: Tensor, power: Tensor, plane: Tensor, loading: float, *geometry: Any
) -> Tensor:
    """Gradient of :func:`capon_lowrank_torch` with respect to F: 2 G F with G the gradient with respect to F F^H.

    factor (B, N, K), plane (B, G_az, G_el)
    """
    delta = spectra.lowrank_delta(factor, loading)
    request = planned("mvdr_lowrank", factor, geometry, True, loading, factor.shape[2])

    def inverse(start: int, stop: int) -> Tensor:
        return spectra.woodbury_inverse(factor[start:stop], delta[start:stop])

    result = _contiguous_like(factor)
    for scenes, gradient in _gradients(request, (grad, power, plane), loading, inverse):
        result[scenes] = 2 * gradient @ factor[scenes].to(torch.complex128)
    return result


# --- The linear pair in plain torch -----------------------------------------------------------------------------------


def analysis_torch(matrix: Tensor, factored: bool, box: bool, *geometry: Any) -> Tensor:
    """q_g = a_g^H Q a_g of Hermitian Q, or ||W^H a_g||^2.

    matrix (B, N, N) or (B, N, K) -> (B, G_az, G_el, G_r) or (B, G)
    """
    rank = matrix.shape[2] if factored else None
    _, plan, evaluator = planned("analysis", matrix, geometry, box, 0.0, rank)

    def operand(start: int, stop: int) -> Operand:
        part = matrix[start:stop]
        return Operand(adjoint_of(part), "rows") if factored else Operand((part + adjoint_of(part)) / 2, "hermitian")

    return _spectrum(plan, evaluator, operand, "linear", 1.0, True)[0]


def synthesis_torch(weights: Tensor, box: bool, *geometry: Any) -> Tensor:
    """sum_g p_g a_g a_g^H, the adjoint of analysis.

    weights (B, G_az, G_el, G_r) or (B, G) -> (B, N, N)
    """
    domain, plan, evaluator = planned("synthesis", weights, geometry, box, 0.0, None)
    result = torch.empty(weights.shape[0], domain.n_elements, domain.n_elements, dtype=plan.dtype)
    for start, stop in spectra.scene_groups(plan):
        result[start:stop] = evaluator.adjoint(weights[start:stop])
    return result


# --- Fakes: what the operators return, without values -----------------------------------------------------------------


def _contiguous_like(matrix: Tensor) -> Tensor:
    return torch.empty_like(matrix, memory_format=torch.contiguous_format)


def _fake_volume(matrix: Tensor, azimuth: Tensor, elevation: Tensor, r: Tensor) -> Tensor:
    """[B, G_az, G_el, G_r] stored plane by plane; the kernels store azimuth fastest."""
    shape = (matrix.shape[0], r.shape[0], azimuth.shape[0], elevation.shape[0])
    real = matrix.dtype.to_real()
    if serves_kernels(matrix):
        return matrix.new_empty((*shape[:2], shape[3], shape[2]), dtype=real).permute(0, 3, 2, 1)
    return matrix.new_empty(shape, dtype=real).permute(0, 2, 3, 1)


def _fake_spectrum(matrix: Tensor, option: Any, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    _, azimuth, elevation, r = geometry[:4]
    if volume:
        return _fake_volume(matrix, azimuth, elevation, r), matrix.new_empty(0, dtype=torch.int32)
    turned = serves_kernels(matrix)
    axes = (elevation, azimuth) if turned else (azimuth, elevation)
    shape = (matrix.shape[0], *(axis.shape[0] for axis in axes))
    power, plane = (matrix.new_empty(shape, dtype=dtype) for dtype in (matrix.dtype.to_real(), torch.int32))
    return (power.mT, plane.mT) if turned else (power, plane)


def _fake_analysis(matrix: Tensor, factored: bool, box: bool, *geometry: Any) -> Tensor:
    _, azimuth, elevation, r = geometry[:4]
    if box:
        return _fake_volume(matrix, azimuth, elevation, r)
    return matrix.new_empty((matrix.shape[0], azimuth.shape[0]), dtype=matrix.dtype.to_real())


def _fake_synthesis(weights: Tensor, box: bool, positions: Tensor, *geometry: Any) -> Tensor:
    n = positions.shape[0]
    return weights.new_empty((weights.shape[0], n, n), dtype=weights.dtype.to_complex())


def _fake_maxima(volume: Tensor, window: Sequence[int], k: int, threshold: float | None) -> tuple[Tensor, ...]:
    batch, integer = volume.shape[0], torch.int64
    index, count = volume.new_empty((batch, k, 3), dtype=integer), volume.new_empty((batch,), dtype=integer)
    return index, volume.new_empty((batch, k)), count


def _fake_nms(position: Tensor, score: Tensor, separation: Any, k: int, wrap_azimuth: bool) -> tuple[Tensor, ...]:
    batch, integer = score.shape[0], torch.int64
    return score.new_empty((batch, k), dtype=integer), score.new_empty((batch,), dtype=integer)


# --- Values that are refused before the work --------------------------------------------------------------------------


def _check_covariance(covariance: Tensor, *rest: Any) -> None:
    checks.check_covariance_values(covariance, "R")


def _check_definite(covariance: Tensor, *rest: Any) -> None:
    checks.check_covariance_values(covariance, "R")
    spectra.check_definite(covariance)


def _check_factor(factor: Tensor, *rest: Any) -> None:
    checks.check_finite(factor, "F")
    zero = spectra.mean_power(factor) <= 0
    if bool(zero.any()):
        raise ValueError(f"F[{int(zero.nonzero()[0, 0])}] is zero: F F^H must have a positive trace")


def _check_form(matrix: Tensor, factored: bool, *rest: Any) -> None:
    checks.check_finite(matrix, "W_or_Q")
    if not factored:
        checks.check_hermitian(matrix, "W_or_Q", "; pass factored=True if it is a factor W")


def _check_weights(weights: Tensor, *rest: Any) -> None:
    checks.check_finite(weights, "p")


# --- The operators ----------------------------------------------------------------------------------------------------

_SPECTRUM = f"{_GEOMETRY}) -> (Tensor, Tensor)"
_SAVED = f"Tensor power, Tensor plane, float loading, {_GEOMETRY}) -> Tensor"

capon_op = define(
    "capon",
    capon_torch,
    cuda.capon_cuda,
    _fake_spectrum,
    schema=f"(Tensor covariance, float loading, bool volume, {_SPECTRUM}",
    check=_check_covariance,
    batched=1,
)
capon_backward_op = define(
    "capon_backward",
    capon_backward_torch,
    cuda.capon_backward_cuda,
    lambda grad, covariance, *rest: _contiguous_like(covariance),
    schema=f"(Tensor grad, Tensor covariance, {_SAVED}",
)
capon_lowrank_op = define(
    "capon_lowrank",
    capon_lowrank_torch,
    cuda.capon_lowrank_cuda,
    _fake_spectrum,
    schema=f"(Tensor factor, float loading, bool volume, {_SPECTRUM}",
    check=_check_factor,
    batched=1,
)
capon_lowrank_backward_op = define(
    "capon_lowrank_backward",
    capon_lowrank_backward_torch,
    cuda.capon_lowrank_backward_cuda,
    lambda grad, factor, *rest: _contiguous_like(factor),
    schema=f"(Tensor grad, Tensor factor, {_SAVED}",
)
bartlett_op = define(
    "bartlett",
    bartlett_torch,
    cuda.bartlett_cuda,
    lambda covariance, *rest: _fake_spectrum(covariance, None, *rest),
    schema=f"(Tensor covariance, bool volume, {_SPECTRUM}",
    check=_check_definite,
    batched=1,
)
music_op = define(
    "music",
    music_torch,
    cuda.music_cuda,
    _fake_spectrum,
    schema=f"(Tensor covariance, SymInt n_sources, bool volume, {_SPECTRUM}",
    check=_check_definite,
    batched=1,
)
analysis_op = define(
    "analysis",
    analysis_torch,
    cuda.analysis_cuda,
    _fake_analysis,
    schema=f"(Tensor matrix, bool factored, bool box, {_GEOMETRY}) -> Tensor",
    check=_check_form,
    batched=1,
)
synthesis_op = define(
    "synthesis",
    synthesis_torch,
    cuda.synthesis_cuda,
    _fake_synthesis,
    schema=f"(Tensor weights, bool box, {_GEOMETRY}) -> Tensor",
    check=_check_weights,
    batched=1,
)
# Of the peaks the definition is the body, on any device.
local_maxima_op = define(
    "local_maxima_3d",
    local_maxima_3d_reference,
    cuda.local_maxima_3d_cuda,
    _fake_maxima,
    cpu=local_maxima_cpu,
    batched=1,
)
nms_op = define("nms_3d", nms_3d_reference, cuda.nms_3d_cuda, _fake_nms, cpu=nms_cpu, batched=2)
refine_op = define(
    "refine",
    refine_torch,
    cuda.refine_cuda,
    lambda matrix, factored, low, *rest: (torch.empty_like(low), low.new_empty(low.shape[:2])),
)
walk_op = define("walk", walk_torch, cuda.walk_cuda, lambda matrix, factored, start, *rest: _contiguous_like(start))


# --- Gradients --------------------------------------------------------------------------------------------------------


def _save_capon(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    matrix, ctx.loading, _, *ctx.geometry = inputs
    ctx.save_for_backward(matrix, *output)
    ctx.mark_non_differentiable(output[1])


def _capon_backward(backward_op: Any, ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return backward_op(grad, *ctx.saved_tensors, ctx.loading, *ctx.geometry), *[None] * (2 + _N_GEOMETRY)


def _save_analysis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    matrix, ctx.factored, ctx.box, *ctx.geometry = inputs
    ctx.save_for_backward(matrix)


def _analysis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (matrix,) = ctx.saved_tensors
    outer = synthesis_op(grad, ctx.box, *ctx.geometry)
    return 2 * outer @ matrix if ctx.factored else outer, *[None] * (2 + _N_GEOMETRY)


def _save_synthesis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.box, *ctx.geometry = inputs


def _synthesis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return analysis_op((grad + adjoint_of(grad)) / 2, False, ctx.box, *ctx.geometry), *[None] * (1 + _N_GEOMETRY)


def _mark_peaks(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Indices have no gradient, and the values can be gathered from the volume.
    ctx.mark_non_differentiable(*output)
    ctx.n_inputs = len(inputs)


def _peaks_backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
    return (None,) * ctx.n_inputs


capon_op.register_autograd(partial(_capon_backward, capon_backward_op), setup_context=_save_capon)
capon_lowrank_op.register_autograd(partial(_capon_backward, capon_lowrank_backward_op), setup_context=_save_capon)
analysis_op.register_autograd(_analysis_backward, setup_context=_save_analysis)
synthesis_op.register_autograd(_synthesis_backward, setup_context=_save_synthesis)
local_maxima_op.register_autograd(_peaks_backward, setup_context=_mark_peaks)
nms_op.register_autograd(_peaks_backward, setup_context=_mark_peaks)
