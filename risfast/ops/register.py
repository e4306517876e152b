"""Every operator of torch: schema, what it computes in plain torch, its fake, its gradient and its vmap.

``NAME_cuda`` of :mod:`risfast.ops.cuda` takes the same arguments for the kernels of a GPU. Array and points travel as
float64 CPU tensors at the end of the arguments of the spectra and of the linear pair: a plan is found by their contents
without waiting for a device, and an exported program carries all it needs. Gradients are made of the operators
themselves and of plain products, so that one formula serves every device and can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from risfast.ops import checks, cuda, reference, spectra
from risfast.ops.cuda import Form, NoKernelError, hermitian_part, requested
from risfast.ops.devices import checks_values, enough_threads, on_host, serves_kernels, triton_mode
from risfast.ops.domain import adjoint_of
from risfast.ops.evaluators import Evaluator, Operand
from risfast.ops.peaks_cpu import local_maxima_cpu, nms_cpu
from risfast.ops.plan import Plan, make_plan
from risfast.ops.refinement import refine_torch, walk_torch
from risfast.ops.spectra import Epilogue, mean_trace

# Element positions (N, 3) in metres; azimuths and elevations in radians and ranges in metres (the axes of a grid, or
# the coordinates of points); wavenumber in rad/m.
_GEOMETRY = (
    "Tensor positions, Tensor azimuth, Tensor elevation, Tensor range_m, float wavenumber, str wavefront, str method, "
    "SymInt byte_budget, str precision"
)
_SPECTRUM = f"bool volume, {_GEOMETRY}) -> (Tensor, Tensor)"
_FORM = "Tensor? scale, bool factored, str form, bool volume, bool box, str operation, Tensor? loading, bool single"

# The low-level interface: the wrapper of ``torch.library.custom_op`` imports the compiler with the first call.
_LIBRARY = torch.library.Library("risfast", "DEF")


def _define(
    name: str,
    plain: Callable[..., Any],
    kernels: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    schema: str | None = None,
    check: Callable[..., None] | None = None,
    cpu: Callable[..., Any] | None = None,
    batched: int = 0,
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> Any:
    """Register ``risfast::<name>``: plain torch (a GPU's too, without kernels), the kernels of a GPU, and its fake.

    ``schema`` is read off ``plain`` if not given; ``check`` looks at values before the work; ``cpu`` is a faster
    implementation for the CPU; the first ``batched`` arguments have a batch that ``torch.vmap`` may extend;
    ``backward`` gives gradients of the first arguments from what ``save`` kept, and without it there are none.
    """

    # The products of a body are kept in their precision where autocast is on.
    def on_any(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            if check is not None:
                check(first, *args)
            return plain(first, *args)

    def on_cpu(first: Tensor, *args: Any) -> Any:
        with enough_threads(first):
            return (cpu or on_any)(first, *args)

    def on_device(first: Tensor, *args: Any) -> Any:
        with torch.device(first.device):
            return on_any(first, *args)

    def by_kernels(first: Tensor, *args: Any) -> Any:
        with suppress(NoKernelError), torch.autocast(first.device.type, enabled=False):
            if check is not None and checks_values(first.device):
                check(first, *args)
            return kernels(first, *args)
        # With the strides of what the kernels store, which the fake promises.
        return tree_map(lambda to, made: to.copy_(made), fake(first, *args), on_device(first, *args))

    def on_gpu(first: Tensor, *args: Any) -> Any:
        return (on_device if triton_mode() == "0" else by_kernels)(first, *args)

    def saved(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.n_inputs = len(inputs)
        if save is not None:
            save(ctx, inputs, output)

    def gradients(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        found = backward(ctx, *given)  # type: ignore[misc]  # where there is none, this is not called
        return *found, *[None] * (ctx.n_inputs - len(found))

    qualified = f"risfast::{name}"
    schema = schema or torch.library.infer_schema(plain, mutates_args=())
    _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, by_kernels if triton_mode() == "interpret" else on_cpu, "CPU")
    _LIBRARY.impl(name, on_gpu, "CUDA")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    differentiable = gradients if backward else None
    torch.library.register_autograd(qualified, differentiable, setup_context=saved, lib=_LIBRARY)  # type: ignore[arg-type]
    op = getattr(torch.ops.risfast, name).default
    if batched:
        torch.library.register_vmap(qualified, partial(_mapped, op, batched), lib=_LIBRARY)
    return op


def _mapped(op: Any, batched: int, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """The rule of ``torch.vmap``: the mapped dimension of the first arguments becomes part of their batch."""
    if any(dim is not None for dim in tree_leaves(in_dims[batched:])):
        raise ValueError("vmap over risfast operators maps the matrix argument only; the geometry is shared")

    def merged(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        lanes = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return lanes.flatten(0, 1)

    first = [merged(tensor, dim) for tensor, dim in zip(args[:batched], in_dims, strict=False)]
    results = op(*first, *args[batched:])
    size = len(first[0])  # type: ignore[arg-type]  # the first is never left out
    # The planes of a volume are empty, and the same for all.
    dims = tree_map(lambda t: 0 if len(t) == size else None, results)
    return tree_map(lambda t: t.unflatten(0, (info.batch_size, -1)) if len(t) == size else t, results), dims


# --- In plain torch ---------------------------------------------------------------------------------------------------


def _planned(operation: str, matrix: Tensor, geometry: tuple[Any, ...], **options: Any) -> tuple[Plan, Evaluator]:
    """Plan and evaluator of a request, its tables on the device of the matrix; options as for ``requested``.

    matrix (B, ...)
    """
    with on_host(matrix.device):
        return make_plan(*requested(operation, matrix, geometry, **options), matrix.device)


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


def capon_torch(covariance: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R: (map, plane), or (volume, empty).

    covariance (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    number = float(loading)

    def operand(start: int, stop: int) -> Operand:
        return spectra.capon_operand(covariance[start:stop], number, first=start)

    planned = _planned("mvdr", covariance, geometry, loading=number)
    return _power(planned, operand, "reciprocal", covariance.shape[1] * mean_trace(covariance), volume)


def capon_lowrank_torch(factor: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, as :func:`capon_torch`.

    factor (B, N, K)
    """
    delta = spectra.lowrank_delta(factor, loading)

    def operand(start: int, stop: int) -> Operand:
        # With Q = W W^H, N - q = delta a^H (F F^H + delta I)^-1 a.
        return Operand(adjoint_of(spectra.woodbury_factor(factor[start:stop], delta[start:stop])), "rows")

    planned = _planned("mvdr_lowrank", factor, geometry, loading=loading, rank=factor.shape[2])
    return _power(planned, operand, "complement", float(factor.shape[1]) * delta, volume)


def loaded_inverse_torch(covariance: Tensor, loading: Tensor) -> Tensor:
    """(R + delta I)^-1 in complex128.

    covariance (B, N, N) -> (B, N, N)
    """
    return torch.cholesky_inverse(spectra.loaded_cholesky(covariance, float(loading))).contiguous()


def eigenbasis_torch(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors in float64; a value without derivatives.

    covariance (B, N, N) -> values (B, N), vectors (B, N, N)
    """
    values, vectors = torch.linalg.eigh(hermitian_part(covariance).to(torch.complex128))
    return values, vectors.contiguous()


def analysis_torch(matrix: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """q_g = a_g^H Q a_g of Hermitian Q, or ||W^H a_g||^2, and its epilogue: (map, plane), or (volume, empty).

    matrix (B, N, N) or (B, N, K) -> power (B, G_az, G_el), (B, G_az, G_el, G_r) or (B, G)
    """
    how, geometry = Form.split(args)
    planned = _planned(how.operation, matrix, geometry, **how.options(matrix))

    def operand(start: int, stop: int) -> Operand:
        part = matrix[start:stop]
        return Operand(adjoint_of(part), "rows") if how.factored else Operand(hermitian_part(part), "hermitian")

    return _power(planned, operand, how.form, 1.0 if how.scale is None else how.scale, how.volume)


def synthesis_torch(
    weights: Tensor, plane: Tensor | None, box: bool, operation: str, loading: Tensor | None, *geometry: Any
) -> Tensor:
    """sum_g p_g a_g a_g^H, the adjoint of analysis; with ``plane``, of points on those range planes alone.

    weights (B, G_az, G_el, G_r), (B, G_az, G_el) or (B, G), plane (B, G_az, G_el) -> (B, N, N)
    """
    plan, evaluator = _planned(operation, weights, geometry, box=box, loading=loading)
    result = torch.empty(plan.batch, plan.n_elements, plan.n_elements, dtype=cuda.synthesis_dtype(weights, operation))
    for start, stop in spectra.scene_groups(plan):
        part = weights[start:stop]
        if plane is not None:
            part = spectra.plane_weights(part, plane[start:stop], plan.shape[2])
        result[start:stop] = evaluator.adjoint(part)
    return result


# --- Fakes: what the operators return, without values -----------------------------------------------------------------


def _fake_power(matrix: Tensor, volume: bool, geometry: tuple[Any, ...], real: torch.dtype) -> tuple[Tensor, Tensor]:
    """Planes one after the other; within them the kernels store azimuth fastest."""
    turned = serves_kernels(matrix)
    n_az, n_el, n_r = (axis.shape[0] for axis in geometry[1:4])
    shape = (n_el, n_az) if turned else (n_az, n_el)

    def stored(dtype: torch.dtype, *planes: int) -> Tensor:
        values = matrix.new_empty((matrix.shape[0], *planes, *shape), dtype=dtype)
        return values.mT if turned else values

    if volume:
        return stored(real, n_r).permute(0, 2, 3, 1), matrix.new_empty(0, dtype=torch.int32)
    return stored(real), stored(torch.int32)


def _fake_spectrum(matrix: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    return _fake_power(matrix, volume, geometry, matrix.dtype.to_real())


def _fake_analysis(matrix: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    how, geometry = Form.split(args)
    real = torch.float32 if how.single else matrix.dtype.to_real()
    if how.box:
        return _fake_power(matrix, how.volume, geometry, real)
    power = matrix.new_empty((matrix.shape[0], geometry[1].shape[0]), dtype=real)
    return power, matrix.new_empty(0, dtype=torch.int32)


def _fake_synthesis(
    weights: Tensor, plane: Tensor | None, box: bool, operation: str, loading: Tensor | None, *geometry: Any
) -> Tensor:
    n = geometry[0].shape[0]
    return weights.new_empty((weights.shape[0], n, n), dtype=cuda.synthesis_dtype(weights, operation))


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


def _check_form(matrix: Tensor, *args: Any) -> None:
    how, _ = Form.split(args)
    if how.operation == "bartlett":
        _check_definite(matrix)
    elif how.operation == "analysis":
        checks.check_finite(matrix, "W_or_Q")
        if not how.factored:
            checks.check_hermitian(matrix, "W_or_Q", "; pass factored=True if it is a factor W")


# --- Gradients --------------------------------------------------------------------------------------------------------


def _winners(plane: Tensor) -> Tensor | None:
    """The planes of a map; a volume has none."""
    return plane if plane.ndim > 1 else None


def _through_inverse(
    ctx: Any, inverse: Tensor, gradient: Tensor, loading: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients with respect to R and the loading, delta = loading tr(R)/N, from that to (R + delta I)^-1."""
    gradient = hermitian_part(-inverse @ gradient @ inverse)
    trace, eye = mean_trace(gradient), torch.eye(gradient.shape[-1], dtype=gradient.dtype, device=gradient.device)
    # A loading on the host would have to wait for its gradient from a GPU.
    by_loading = (mean * trace).sum().mul(len(eye)).to(loading) if ctx.needs_input_grad[1] else None
    return gradient + (loading * trace)[:, None, None] * eye, by_loading


def _save_spectrum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    matrix, loading, _, *ctx.geometry = inputs
    ctx.save_for_backward(matrix, *output, loading)
    ctx.mark_non_differentiable(output[1])


def _by_form(ctx: Any, operation: str, gradient: Tensor, power: Tensor, plane: Tensor, loading: Tensor) -> Tensor:
    """Gradient of a power N / q with respect to Q, complex128 [B, N, N]."""
    weights = (gradient.double() * power.double().square() / -ctx.geometry[0].shape[0]).to(power.dtype)
    outer: Tensor = synthesis_op(weights, _winners(plane), True, operation, loading, *ctx.geometry)
    return outer


def _capon_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    covariance, power, plane, loading = ctx.saved_tensors
    inverse = loaded_inverse_op(covariance, loading)
    outer = _by_form(ctx, "mvdr", gradient, power, plane, loading)
    by_covariance, by_loading = _through_inverse(ctx, inverse, outer, loading, mean_trace(covariance))
    return by_covariance.to(covariance.dtype), by_loading


def _capon_lowrank_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    factor, power, plane, loading = ctx.saved_tensors
    inverse = spectra.woodbury_inverse(factor, spectra.lowrank_delta(factor, loading))
    outer = _by_form(ctx, "mvdr_lowrank", gradient, power, plane, loading)
    by_covariance, by_loading = _through_inverse(ctx, inverse, outer, loading, spectra.mean_power(factor))
    return (2 * by_covariance @ factor.to(by_covariance.dtype)).to(factor.dtype), by_loading


def _save_inverse(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _inverse_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    covariance, loading, inverse = ctx.saved_tensors
    by_covariance, by_loading = _through_inverse(ctx, inverse, gradient, loading, mean_trace(covariance))
    return by_covariance.to(covariance.dtype), by_loading


def _save_analysis(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    how, ctx.geometry = Form.split(inputs[1:])
    power, plane = output
    # A linear power is needed for the gradient of its scale alone.
    ctx.save_for_backward(inputs[0], how.scale, None if how.scale is None else power, plane, how.loading)
    ctx.how = how._replace(scale=None, loading=None)
    ctx.mark_non_differentiable(plane)


def _analysis_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    matrix, scale, power, plane, loading = ctx.saved_tensors
    by_scale, weights, how = None, gradient, ctx.how
    if scale is not None:
        each = scale.reshape(-1, *[1] * (power.ndim - 1))
        by_scale = (gradient.double() * power / each).flatten(1).sum(1).to(scale)
        slope = power.double().square() / each
        weights = gradient.double() * {"linear": each, "reciprocal": -slope, "complement": slope}[how.form]
        weights = weights.to(gradient.dtype)
    outer = synthesis_op(weights, _winners(plane), how.box, how.operation, loading, *ctx.geometry)
    by_matrix = 2 * outer @ matrix.to(outer.dtype) if how.factored else outer
    return by_matrix.to(matrix.dtype), by_scale


def _save_synthesis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, plane, ctx.box, ctx.operation, loading, *ctx.geometry = inputs
    ctx.save_for_backward(plane, loading)
    ctx.dtype = weights.dtype


def _synthesis_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    plane, loading = ctx.saved_tensors
    operation = "analysis" if ctx.operation in ("synthesis", "bartlett") else ctx.operation
    how = Form(None, False, "linear", True, ctx.box, operation, loading, False)
    values, _ = analysis_op(hermitian_part(gradient).to(ctx.dtype.to_complex()), *how, *ctx.geometry)
    return (values if plane is None else values.gather(-1, plane.long()[..., None])[..., 0],)


def _mark_peaks(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Indices have no gradient, and the values can be gathered from the volume.
    ctx.mark_non_differentiable(*output)


# --- The operators ----------------------------------------------------------------------------------------------------

capon_op = _define(
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
capon_lowrank_op = _define(
    "capon_lowrank",
    capon_lowrank_torch,
    cuda.capon_lowrank_cuda,
    _fake_spectrum,
    schema=f"(Tensor factor, Tensor loading, {_SPECTRUM}",
    check=lambda factor, *rest: checks.check_factor_values(factor, "F"),
    batched=1,
    backward=_capon_lowrank_backward,
    save=_save_spectrum,
)
loaded_inverse_op = _define(
    "loaded_inverse",
    loaded_inverse_torch,
    cuda.loaded_inverse,
    lambda covariance, loading: covariance.new_empty(covariance.shape, dtype=torch.complex128),
    check=_check_covariance,
    batched=1,
    backward=_inverse_backward,
    save=_save_inverse,
)
eigenbasis_op = _define(
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
analysis_op = _define(
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
synthesis_op = _define(
    "synthesis",
    synthesis_torch,
    cuda.synthesis_cuda,
    _fake_synthesis,
    schema=f"(Tensor weights, Tensor? plane, bool box, str operation, Tensor? loading, {_GEOMETRY}) -> Tensor",
    check=lambda weights, *rest: checks.check_finite(weights, "p"),
    batched=2,
    backward=_synthesis_backward,
    save=_save_synthesis,
)
# Of the peaks the definition is the body, on any device.
local_maxima_op = _define(
    "local_maxima_3d",
    reference.local_maxima_3d,
    cuda.local_maxima_3d_cuda,
    _fake_maxima,
    cpu=local_maxima_cpu,
    batched=1,
    save=_mark_peaks,
)
nms_op = _define("nms_3d", reference.nms_3d, cuda.nms_3d_cuda, _fake_nms, cpu=nms_cpu, batched=2, save=_mark_peaks)
refine_op = _define(
    "refine",
    refine_torch,
    cuda.refine_cuda,
    lambda matrix, factored, low, *rest: (torch.empty_like(low), low.new_empty(low.shape[:2])),
)
walk_op = _define(
    "walk", walk_torch, cuda.walk_cuda, lambda matrix, factored, start, *rest: start.new_empty(start.shape)
)
