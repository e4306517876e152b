"""Every operator of torch: schema, what it computes in plain torch, its fake, its gradient and its vmap.

``NAME_cuda`` of :mod:`risfast.ops.cuda` takes the same arguments for the kernels of a GPU. Array and points travel as
float64 CPU tensors at the end of the arguments of the spectra and of the linear pair: a plan is found by their contents
without waiting for a device, and an exported program carries all it needs. Gradients are made of the operators
themselves and of plain products, so that one formula serves every device and can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from risfast.ops import checks, cuda, spectra
from risfast.ops.choice import Request
from risfast.ops.devices import define, on_host, serves_kernels
from risfast.ops.domain import adjoint_of, domain_of
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


def _planned(
    operation: str,
    matrix: Tensor,
    geometry: tuple[Any, ...],
    *,
    box: bool = True,
    loading: float = 0.0,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Plan, Evaluator]:
    """Plan and evaluator of a request, its tables on the device of the matrix; ``dtype`` is that of the result.

    matrix (B, ...)
    """
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, *_ = geometry
    with on_host(matrix.device):
        domain = domain_of(positions, (azimuth, elevation, r), wavenumber, wavefront, box)
        wanted = (dtype or matrix.dtype).to_complex()
        request = Request(operation, method, matrix.shape[0], domain.n_elements, rank, wanted, loading, byte_budget)
        return make_plan(domain, request, matrix.device)


def _power(
    planned: tuple[Plan, Evaluator], operand: spectra.OperandOf, form: str, scale: Tensor | float, volume: bool
) -> tuple[Tensor, Tensor]:
    """(map, plane), or (volume, empty): power by the form of an epilogue."""
    plan, evaluator = planned
    scales = torch.as_tensor(scale, dtype=torch.float64).expand(plan.batch)
    epilogue = Epilogue(form, scales, plan.n_elements)
    if volume:
        return spectra.volume_of(plan, evaluator, operand, epilogue), torch.empty(0, dtype=torch.int32)
    return spectra.map_of(plan, evaluator, operand, epilogue)


# --- In plain torch ---------------------------------------------------------------------------------------------------


def capon_torch(covariance: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R: (map, plane), or (volume, empty).

    covariance (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    number = float(loading)

    def operand(start: int, stop: int) -> Operand:
        return spectra.capon_operand(covariance[start:stop], number, first=start)

    planned = _planned("mvdr", covariance, geometry, loading=number)
    return _power(planned, operand, "reciprocal", float(covariance.shape[1]), volume)


def capon_lowrank_torch(factor: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, as :func:`capon_torch`.

    factor (B, N, K)
    """
    delta = spectra.lowrank_delta(factor, loading)

    def operand(start: int, stop: int) -> Operand:
        # With Q = W W^H, N - q = delta a^H (F F^H + delta I)^-1 a.
        return Operand(adjoint_of(spectra.woodbury_factor(factor[start:stop], delta[start:stop])), "rows")

    planned = _planned("mvdr_lowrank", factor, geometry, loading=float(loading), rank=factor.shape[2])
    return _power(planned, operand, "complement", float(factor.shape[1]) * delta, volume)


def loaded_inverse_torch(covariance: Tensor, loading: Tensor) -> Tensor:
    """(R + delta I)^-1 in complex128.

    covariance (B, N, N) -> (B, N, N)
    """
    return spectra.capon_operand(covariance, float(loading)).matrix.contiguous()


def eigenbasis_torch(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors in float64; a value without derivatives.

    covariance (B, N, N) -> values (B, N), vectors (B, N, N)
    """
    values, vectors = torch.linalg.eigh(_hermitian(covariance).to(torch.complex128))
    return values, vectors.contiguous()


def analysis_torch(
    matrix: Tensor,
    scale: Tensor | None,
    factored: bool,
    form: str,
    volume: bool,
    box: bool,
    operation: str,
    loading: Tensor | None,
    single: bool,
    *geometry: Any,
) -> tuple[Tensor, Tensor]:
    """q_g = a_g^H Q a_g of Hermitian Q, or ||W^H a_g||^2, and its epilogue: (map, plane), or (volume, empty).

    matrix (B, N, N) or (B, N, K), scale (B,) -> power (B, G_az, G_el), (B, G_az, G_el, G_r) or (B, G)
    """
    # ``operation`` and ``loading`` say what the form is of, and so how exact it must be; ``single`` that the result is
    # in float32 all the same.
    dtype = torch.complex64 if single else matrix.dtype
    rank, number = matrix.shape[2] if factored else None, 0.0 if loading is None else float(loading)
    planned = _planned(operation, matrix, geometry, box=box, loading=number, rank=rank, dtype=dtype)

    def operand(start: int, stop: int) -> Operand:
        part = matrix[start:stop]
        return Operand(adjoint_of(part), "rows") if factored else Operand((part + adjoint_of(part)) / 2, "hermitian")

    return _power(planned, operand, form, 1.0 if scale is None else scale, volume)


def synthesis_torch(
    weights: Tensor, plane: Tensor | None, box: bool, operation: str, loading: Tensor | None, *geometry: Any
) -> Tensor:
    """sum_g p_g a_g a_g^H, the adjoint of analysis; with ``plane``, of points on those range planes alone.

    weights (B, G_az, G_el, G_r), (B, G_az, G_el) or (B, G), plane (B, G_az, G_el) -> (B, N, N)
    """
    number = 0.0 if loading is None else float(loading)
    plan, evaluator = _planned(operation, weights, geometry, box=box, loading=number)
    n = plan.n_elements
    result = torch.empty(weights.shape[0], n, n, dtype=_synthesis_dtype(weights, operation))
    for start, stop in spectra.scene_groups(plan):
        part = weights[start:stop]
        if plane is not None:
            part = spectra.plane_weights(part, plane[start:stop], plan.shape[2])
        result[start:stop] = evaluator.adjoint(part)
    return result


# --- Fakes: what the operators return, without values -----------------------------------------------------------------


def _contiguous_like(matrix: Tensor) -> Tensor:
    return torch.empty_like(matrix, memory_format=torch.contiguous_format)


def _synthesis_dtype(weights: Tensor, operation: str) -> torch.dtype:
    # What a gradient multiplies by an inverse on both sides keeps all digits.
    return weights.dtype.to_complex() if operation in ("analysis", "synthesis") else torch.complex128


def _fake_volume(matrix: Tensor, real: torch.dtype, azimuth: Tensor, elevation: Tensor, r: Tensor) -> Tensor:
    """[B, G_az, G_el, G_r] stored plane by plane; the kernels store azimuth fastest."""
    shape = (matrix.shape[0], r.shape[0], azimuth.shape[0], elevation.shape[0])
    if serves_kernels(matrix):
        return matrix.new_empty((*shape[:2], shape[3], shape[2]), dtype=real).permute(0, 3, 2, 1)
    return matrix.new_empty(shape, dtype=real).permute(0, 2, 3, 1)


def _fake_power(matrix: Tensor, real: torch.dtype, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    _, azimuth, elevation, r = geometry[:4]
    if volume:
        return _fake_volume(matrix, real, azimuth, elevation, r), matrix.new_empty(0, dtype=torch.int32)
    turned = serves_kernels(matrix)
    axes = (elevation, azimuth) if turned else (azimuth, elevation)
    shape = (matrix.shape[0], *(axis.shape[0] for axis in axes))
    power, plane = (matrix.new_empty(shape, dtype=dtype) for dtype in (real, torch.int32))
    return (power.mT, plane.mT) if turned else (power, plane)


def _fake_spectrum(matrix: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return _fake_power(matrix, matrix.dtype.to_real(), volume, *geometry)


def _fake_analysis(
    matrix: Tensor,
    scale: Tensor | None,
    factored: bool,
    form: str,
    volume: bool,
    box: bool,
    operation: str,
    loading: Tensor | None,
    single: bool,
    *geometry: Any,
) -> tuple[Tensor, Tensor]:
    real = torch.float32 if single else matrix.dtype.to_real()
    if box:
        return _fake_power(matrix, real, volume, *geometry)
    power = matrix.new_empty((matrix.shape[0], geometry[1].shape[0]), dtype=real)
    return power, matrix.new_empty(0, dtype=torch.int32)


def _fake_synthesis(
    weights: Tensor, plane: Tensor | None, box: bool, operation: str, loading: Tensor | None, *geometry: Any
) -> Tensor:
    n = geometry[0].shape[0]
    return weights.new_empty((weights.shape[0], n, n), dtype=_synthesis_dtype(weights, operation))


def _fake_maxima(volume: Tensor, window: Sequence[int], k: int, threshold: float | None) -> tuple[Tensor, ...]:
    batch, integer = volume.shape[0], torch.int64
    index, count = volume.new_empty((batch, k, 3), dtype=integer), volume.new_empty((batch,), dtype=integer)
    return index, volume.new_empty((batch, k)), count


def _fake_nms(position: Tensor, score: Tensor, separation: Any, k: int, on_sphere: bool) -> tuple[Tensor, ...]:
    batch, integer = score.shape[0], torch.int64
    return score.new_empty((batch, k), dtype=integer), score.new_empty((batch,), dtype=integer)


# --- Values that are refused before the work --------------------------------------------------------------------------


def _check_covariance(covariance: Tensor, *rest: Any) -> None:
    checks.check_covariance_values(covariance, "R")


def _check_definite(covariance: Tensor, *rest: Any) -> None:
    checks.check_covariance_values(covariance, "R")
    spectra.check_definite(covariance)


def _check_factor(factor: Tensor, *rest: Any) -> None:
    checks.check_factor_values(factor, "F")


def _check_form(
    matrix: Tensor, scale: Any, factored: bool, form: str, volume: bool, box: bool, operation: str, *rest: Any
) -> None:
    if operation == "bartlett":
        _check_definite(matrix)
    elif operation == "analysis":
        checks.check_finite(matrix, "W_or_Q")
        if not factored:
            checks.check_hermitian(matrix, "W_or_Q", "; pass factored=True if it is a factor W")


def _check_weights(weights: Tensor, *rest: Any) -> None:
    checks.check_finite(weights, "p")


# --- Gradients --------------------------------------------------------------------------------------------------------


def _hermitian(matrix: Tensor) -> Tensor:
    return (matrix + adjoint_of(matrix)) / 2


def _trace(matrix: Tensor) -> Tensor:
    """Real trace of each scene, (B,)."""
    return matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)


def _save_spectrum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    matrix, loading, _, *ctx.geometry = inputs
    ctx.save_for_backward(matrix, *output, loading)
    ctx.mark_non_differentiable(output[1])


def _of_form(ctx: Any, operation: str, grad: Tensor, power: Tensor, plane: Tensor, loading: Tensor) -> Tensor:
    """Minus the gradient of a power N / q with respect to Q, complex128 [B, N, N]."""
    n = ctx.geometry[0].shape[0]
    weights = (grad.double() * power.double().square() / n).to(power.dtype)
    winners = plane if plane.ndim > 1 else None
    return synthesis_op(weights, winners, True, operation, loading, *ctx.geometry)


def _with_loading(ctx: Any, gradient: Tensor, loading: Tensor, mean: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients with respect to R and the loading from that with respect to R + delta I, delta = loading tr(R)/N."""
    trace, n = _trace(gradient), gradient.shape[-1]
    eye = torch.eye(n, dtype=gradient.dtype, device=gradient.device)
    # A loading on the host would have to wait for its gradient from a GPU.
    by_loading = (mean * trace).sum().to(loading) if ctx.needs_input_grad[1] else None
    return gradient + (loading / n * trace)[:, None, None] * eye, by_loading


def _capon_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    # dP = (P^2 / N) v^H dR v with v = (R + delta I)^-1 a.
    covariance, power, plane, loading = ctx.saved_tensors
    inverse = loaded_inverse_op(covariance, loading)
    outer = _of_form(ctx, "mvdr", grad, power, plane, loading)
    mean = _trace(covariance).double() / covariance.shape[-1]
    gradient, by_loading = _with_loading(ctx, _hermitian(inverse @ outer @ inverse), loading, mean)
    return gradient.to(covariance.dtype), by_loading, *[None] * (1 + _N_GEOMETRY)


def _capon_lowrank_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    factor, power, plane, loading = ctx.saved_tensors
    inverse = spectra.woodbury_inverse(factor, spectra.lowrank_delta(factor, loading))
    outer = _of_form(ctx, "mvdr_lowrank", grad, power, plane, loading)
    gradient, by_loading = _with_loading(
        ctx, _hermitian(inverse @ outer @ inverse), loading, spectra.mean_power(factor)
    )
    return (2 * gradient @ factor.to(gradient.dtype)).to(factor.dtype), by_loading, *[None] * (1 + _N_GEOMETRY)


def _save_inverse(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _inverse_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    covariance, loading, inverse = ctx.saved_tensors
    mean = _trace(covariance).double() / covariance.shape[-1]
    gradient, by_loading = _with_loading(ctx, -inverse @ _hermitian(grad) @ inverse, loading, mean)
    return gradient.to(covariance.dtype), by_loading


def _save_analysis(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    matrix, scale, ctx.factored, ctx.form, _, ctx.box, ctx.operation, loading, _, *ctx.geometry = inputs
    power, plane = output
    # A linear power is needed for the gradient of its scale alone.
    ctx.save_for_backward(matrix, scale, None if scale is None else power, plane, loading)
    ctx.mark_non_differentiable(plane)


def _analysis_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    matrix, scale, power, plane, loading = ctx.saved_tensors
    by_scale, weights = None, grad
    if scale is not None:
        each = scale.reshape(-1, *[1] * (power.ndim - 1))
        by_scale = (grad.double() * power / each).flatten(1).sum(1).to(scale)
        slope = power.double().square() / each
        weights = grad.double() * {"linear": each, "reciprocal": -slope, "complement": slope}[ctx.form]
        weights = weights.to(grad.dtype)
    winners = plane if plane.ndim > 1 else None
    outer = synthesis_op(weights, winners, ctx.box, ctx.operation, loading, *ctx.geometry)
    gradient = 2 * outer @ matrix.to(outer.dtype) if ctx.factored else outer
    return gradient.to(matrix.dtype), by_scale, *[None] * (7 + _N_GEOMETRY)


def _save_synthesis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, plane, ctx.box, ctx.operation, loading, *ctx.geometry = inputs
    ctx.save_for_backward(plane, loading)
    ctx.dtype = weights.dtype


def _synthesis_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    plane, loading = ctx.saved_tensors
    matrix = _hermitian(grad).to(ctx.dtype.to_complex())
    rest = (
        ctx.box,
        "analysis" if ctx.operation in ("synthesis", "bartlett") else ctx.operation,
        loading,
        False,
        *ctx.geometry,
    )
    values, _ = analysis_op(matrix, None, False, "linear", True, *rest)
    if plane is not None:
        values = values.gather(-1, plane.long()[..., None])[..., 0]
    return values, *[None] * (4 + _N_GEOMETRY)


def _mark_peaks(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Indices have no gradient, and the values can be gathered from the volume.
    ctx.mark_non_differentiable(*output)
    ctx.n_inputs = len(inputs)


def _peaks_backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
    return (None,) * ctx.n_inputs


# --- The operators ----------------------------------------------------------------------------------------------------

_SPECTRUM = f"bool volume, {_GEOMETRY}) -> (Tensor, Tensor)"
_FORM = "Tensor? scale, bool factored, str form, bool volume, bool box, str operation, Tensor? loading, bool single"

capon_op = define(
    "capon",
    capon_torch,
    cuda.capon_cuda,
    _fake_spectrum,
    schema=f"(Tensor covariance, Tensor loading, {_SPECTRUM}",
    check=_check_covariance,
    batched=1,
    backward=_capon_backward,
    save=_save_spectrum,
)
capon_lowrank_op = define(
    "capon_lowrank",
    capon_lowrank_torch,
    cuda.capon_lowrank_cuda,
    _fake_spectrum,
    schema=f"(Tensor factor, Tensor loading, {_SPECTRUM}",
    check=_check_factor,
    batched=1,
    backward=_capon_lowrank_backward,
    save=_save_spectrum,
)
loaded_inverse_op = define(
    "loaded_inverse",
    loaded_inverse_torch,
    cuda.loaded_inverse_cuda,
    lambda covariance, loading: covariance.new_empty(covariance.shape, dtype=torch.complex128),
    check=_check_covariance,
    batched=1,
    backward=_inverse_backward,
    save=_save_inverse,
)
eigenbasis_op = define(
    "eigenbasis",
    eigenbasis_torch,
    eigenbasis_torch,
    lambda covariance: (
        covariance.new_empty(covariance.shape[:2], dtype=torch.float64),
        covariance.new_empty(covariance.shape, dtype=torch.complex128),
    ),
    check=_check_definite,
    batched=1,
)
analysis_op = define(
    "analysis",
    analysis_torch,
    cuda.analysis_cuda,
    _fake_analysis,
    schema=f"(Tensor matrix, {_FORM}, {_GEOMETRY}) -> (Tensor, Tensor)",
    check=_check_form,
    batched=2,
    backward=_analysis_backward,
    save=_save_analysis,
)
synthesis_op = define(
    "synthesis",
    synthesis_torch,
    cuda.synthesis_cuda,
    _fake_synthesis,
    schema=f"(Tensor weights, Tensor? plane, bool box, str operation, Tensor? loading, {_GEOMETRY}) -> Tensor",
    check=_check_weights,
    batched=2,
    backward=_synthesis_backward,
    save=_save_synthesis,
)
# Of the peaks the definition is the body, on any device.
local_maxima_op = define(
    "local_maxima_3d",
    local_maxima_3d_reference,
    cuda.local_maxima_3d_cuda,
    _fake_maxima,
    cpu=local_maxima_cpu,
    batched=1,
    backward=_peaks_backward,
    save=_mark_peaks,
)
nms_op = define(
    "nms_3d",
    nms_3d_reference,
    cuda.nms_3d_cuda,
    _fake_nms,
    cpu=nms_cpu,
    batched=2,
    backward=_peaks_backward,
    save=_mark_peaks,
)
refine_op = define(
    "refine",
    refine_torch,
    cuda.refine_cuda,
    lambda matrix, factored, low, *rest: (torch.empty_like(low), low.new_empty(low.shape[:2])),
)
walk_op = define("walk", walk_torch, cuda.walk_cuda, lambda matrix, factored, start, *rest: _contiguous_like(start))
