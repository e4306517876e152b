"""Every operator on a GPU: the method that a plan names, its tables, and the kernels that compute it.

The function of an operator is called after it, ``NAME_cuda``, and has its arguments (:mod:`risfast.ops.register`).
Nothing waits for the host, and values are not looked at: a scene that the CPU would refuse comes out as NaN. Maps and
volumes are stored with azimuth fastest: one program of the lag method works on neighbouring azimuths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops import cuda_operands as operands
from risfast.ops import spectra
from risfast.ops.cache import constant_on, device_tables
from risfast.ops.choice import Request
from risfast.ops.devices import PRECISIONS, checks_values, kernel_module
from risfast.ops.domain import Domain, adjoint_of, domain_of
from risfast.ops.interpolation import box_nodes
from risfast.ops.plan import plan_of
from risfast.ops.spectra import Epilogue

_HIGHEST_MUSIC = 1e15  # where rounding leaves nothing of a null, as on the CPU
# At a source on the grid the form is about 1, a sum of terms that together reach N / loading: float32 is then wrong by
# up to 1.2e-6 N / loading dB (compiled code, 32 scenes each of N = 144 and 256). Above this it takes float64.
_MOST_SINGLE_CANCELLATION = 5e3
_NO_DOUBLE = (
    "complex128 with method={method!r} has no kernel on a GPU, whose dense kernels compute in float32; pass complex64, "
    "method='lag' where array and wavefront allow it, a tensor on the CPU, or set RISFAST_TRITON=0 for plain torch"
)

# --- Plans and their tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DevicePlan:
    """A request ready to run: its method, and the tables of the method on the device."""

    domain: Domain  # Array, wavefront and points
    method: str
    precision: str | None = None  # None leaves the choice to the kernels
    lag: Any = None
    points: Any = None  # Of a box with elevation as the outer axis: points of the grid, or Chebyshev nodes
    azimuth: Tensor | None = None  # (G_az, n_az) Interpolation from the nodes
    elevation: Tensor | None = None  # (G_el, n_el) Interpolation from the nodes


def _lag_dtype(operation: str, dtype: torch.dtype, n_elements: int, loading: float) -> torch.dtype:
    """Real dtype that the lag method computes in: float64 where float32 would lose what is documented."""
    cancels = operation.startswith("mvdr") and n_elements > _MOST_SINGLE_CANCELLATION * loading
    needs_double = operation == "music" or cancels
    return torch.float64 if needs_double or dtype == torch.complex128 else torch.float32


def _elevation_first(points: Any, domain: Domain) -> Any:
    """The points of a box with azimuth fastest, as every kernel of a GPU stores its maps."""
    n_az, n_el, n_r = domain.shape
    turned = points.direction.reshape(3, n_az, n_el).mT.reshape(3, -1).contiguous()
    return replace(points, direction=turned, shape=(n_el, n_az, n_r))


def _build(domain: Domain, method: str, tolerance: float, real: torch.dtype, device: torch.device) -> DevicePlan:
    dense_points = kernel_module("dense").DensePoints
    if method == "lag":
        return DevicePlan(domain, method, lag=kernel_module("lag_tables").LagTables.build(domain, real, device))
    if method == "dense":
        points = dense_points.build(domain, device)
        return DevicePlan(domain, method, points=_elevation_first(points, domain) if domain.box else points)
    nodes = box_nodes(domain, tolerance)
    axes = (nodes.azimuth.nodes, nodes.elevation.nodes, domain.range)
    node_domain = Domain(domain.positions, domain.wavenumber, domain.wavefront, *axes, box=True)

    def matrix(values: Tensor | None, count: int) -> Tensor:
        values = torch.eye(count, dtype=torch.float64, device="cpu") if values is None else values
        return values.to(device, torch.float32).contiguous()

    return DevicePlan(
        domain,
        method,
        points=_elevation_first(dense_points.build(node_domain, device), node_domain),
        azimuth=matrix(nodes.azimuth.matrix, nodes.azimuth.count),
        elevation=matrix(nodes.elevation.matrix, nodes.elevation.count),
    )


def _lag_fits(domain: Domain, real: torch.dtype) -> bool:
    """Whether the kernels ship a configuration for the columns of the array."""
    lattice = find_lattice(domain.positions)
    if lattice is None:
        return False
    try:
        kernel_module("lag").lag_configuration(lattice.n_h, real)
    except ValueError:
        return False
    return True


def device_plan(
    operation: str,
    matrix: Tensor,
    geometry: tuple[Any, ...],
    loading: Tensor | float | None = None,
    rank: int | None = None,
    box: bool = True,
    dtype: torch.dtype | None = None,
) -> DevicePlan:
    """Choose the method as on the CPU, among what the kernels can do, and find or make its tables.

    matrix (B, ...)
    """
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, *rest = geometry
    precision = rest[0] if rest else "auto"  # which the dispatcher leaves out
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    domain = domain_of(positions, (azimuth, elevation, r), wavenumber, wavefront, box)
    dtype, loading = (dtype or matrix.dtype).to_complex(), 0.0 if loading is None else float(loading)
    request = Request(operation, method, matrix.shape[0], domain.n_elements, rank, dtype, loading, byte_budget)
    chosen = plan_of(domain, request).method
    real = _lag_dtype(operation, dtype, domain.n_elements, loading)
    if chosen == "lag" and method == "auto" and not _lag_fits(domain, real):
        chosen = plan_of(domain, replace(request, method="chebyshev")).method
    elif chosen == "lag" and _lag_fits(domain, dtype.to_real()) and not _lag_fits(domain, real):
        raise ValueError(
            f"method='lag' needs float64 for {domain.n_elements} elements at loading {loading:g}, where N / loading is "
            f"above {_MOST_SINGLE_CANCELLATION:g} (or for MUSIC), and its float64 kernels take no array of so many "
            "columns; use method='chebyshev', or a larger loading"
        )
    if chosen != "lag" and dtype == torch.complex128:
        raise TypeError(_NO_DOUBLE.format(method=chosen))
    tolerance = request.tolerance if chosen == "chebyshev" else 0.0
    key = (domain, chosen, tolerance, real if chosen == "lag" else torch.float32, matrix.device)
    # A list of points rarely comes twice.
    plan: DevicePlan = device_tables.get(key, lambda: _build(*key)) if box else _build(*key)
    return replace(plan, precision=None if precision == "auto" else precision)


# --- From operands to maps, and back ----------------------------------------------------------------------------------


def scale_for(operand: Tensor, value: float) -> Tensor:
    """The same number for every scene, but NaN where the operand is: the best of planes would not see it.

    operand (B, N, K) -> (B,)
    """
    return value + 0 * operand[:, 0, 0].real.double()


def _filled(like: Tensor, value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((like.shape[0],), value, dtype=dtype, device=like.device)


def _no_planes(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=like.device)


def from_matrix(plan: DevicePlan, matrix: Tensor, epilogue: Epilogue, volume: bool) -> tuple[Tensor, Tensor]:
    """(map, plane), or (volume, empty), by the lag method from Hermitian matrices.

    matrix (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    lag = kernel_module("lag")
    if volume:
        return lag.lag_volume(matrix, plan.lag, epilogue), _no_planes(matrix)
    found: tuple[Tensor, Tensor] = lag.lag_map(matrix, plan.lag, epilogue)
    return found


def from_factor(
    plan: DevicePlan, factor: Tensor, epilogue: Epilogue, volume: bool, *, triangular: bool = False
) -> tuple[Tensor, Tensor]:
    """(map, plane), or (volume, empty), by the dense or the chebyshev method from q = ||W^H a||^2.

    factor (B, N, K)
    """
    dense = kernel_module("dense")
    launchers = dense.dense_map, dense.dense_volume
    return _from_points(plan, launchers, (factor,), epilogue, volume, triangular=triangular)


def from_residual(
    plan: DevicePlan, factors: tuple[Tensor, Tensor], epilogue: Epilogue, volume: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`from_factor`, from q = ||a - U V^H a||^2 with U, V complex64.

    factors (B, N, K)
    """
    lowrank = kernel_module("lowrank")
    return _from_points(plan, (lowrank.residual_map, lowrank.residual_volume), factors, epilogue, volume)


def _from_points(
    plan: DevicePlan,
    launchers: tuple[Callable[..., Any], Callable[..., Any]],
    factors: tuple[Tensor, ...],
    epilogue: Epilogue,
    volume: bool,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Launchers of a map and of a volume on the points of a plan, or on its nodes and interpolated."""
    options["precision"] = plan.precision
    given = (*factors, plan.points)
    if plan.method == "chebyshev":
        unit = Epilogue("linear", _filled(factors[0], 1.0, torch.float32))
        at_nodes = launchers[1](*given, unit, **options)  # [B, n_el, n_az, R]
        # Elevation takes the place of azimuth, so that azimuth is the axis that is stored fastest.
        given = at_nodes.permute(0, 3, 1, 2), plan.elevation, plan.azimuth
        interpolate = kernel_module("interpolate")
        launchers = interpolate.interpolate_map, interpolate.interpolate_volume
        options = {"precision": plan.precision}
    if volume:
        values = launchers[1](*given, epilogue, **options)
        return values.transpose(1, 2) if plan.domain.box else values, _no_planes(values)
    power, plane = launchers[0](*given, epilogue, **options)
    return power.mT, plane.mT


def _outer_products(plan: DevicePlan, weights: Tensor, plane: Tensor | None) -> Tensor:
    """sum_g p_g a_g a_g^H.

    weights (B, G_az, G_el, R), (B, G_az, G_el) on the planes (B, G_az, G_el), or (B, G) -> (B, N, N)
    """
    point_weights = kernel_module("weights").PointWeights
    if plan.method == "lag":
        return kernel_module("lag_adjoint").lag_synthesis(point_weights(weights, plane=plane), plan.lag)
    if plan.domain.box:  # elevation is the outer axis of its tables
        weights, plane = weights.transpose(1, 2), None if plane is None else plane.transpose(1, 2)
    given = point_weights(weights, plane=plane)
    if plan.method == "chebyshev":
        at_nodes = kernel_module("interpolate_adjoint").interpolate_adjoint(
            given, plan.elevation, plan.azimuth, planes=plan.points.shape[2], precision=plan.precision
        )
        given = point_weights(at_nodes.permute(0, 2, 3, 1))
    return kernel_module("synthesis").dense_synthesis(given, plan.points, precision=plan.precision)


def _finished(result: tuple[Tensor, Tensor], matrix: Tensor) -> tuple[Tensor, Tensor]:
    """In the precision of the input; the lag method may have computed in a higher one. Strides stay."""
    return result[0].to(matrix.dtype.to_real()), result[1]


# --- Capon ------------------------------------------------------------------------------------------------------------


def capon_cuda(covariance: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R: (map, plane), or (volume, empty).

    covariance (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    if checks_values(covariance.device):
        spectra.loaded_cholesky(covariance, float(loading))
    plan = device_plan("mvdr", covariance, geometry, loading)
    n = plan.domain.n_elements
    if plan.method == "lag":
        inverse = operands.loaded_inverse(covariance, loading, plan.precision)
        result = from_matrix(plan, inverse, Epilogue("reciprocal", scale_for(inverse, n)), volume)
        return _finished(result, covariance)
    factor = operands.loaded_factor(covariance, loading, plan.precision)
    return from_factor(plan, factor, Epilogue("reciprocal", scale_for(factor, n)), volume, triangular=True)


def capon_lowrank_cuda(factor: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, as :func:`capon_cuda`.

    factor (B, N, K)
    """
    plan = device_plan("mvdr_lowrank", factor, geometry, loading, factor.shape[2])
    delta = spectra.lowrank_delta(factor, loading)
    n = plan.domain.n_elements
    if plan.method == "lag":
        inverse = spectra.woodbury_inverse(factor, delta)
        return _finished(from_matrix(plan, inverse, Epilogue("reciprocal", scale_for(inverse, n)), volume), factor)
    pair = operands.residual_operands(factor, delta)
    if pair is None:  # too many columns for that kernel: as a covariance
        f = factor.to(torch.complex128)
        whole = operands.shifted_factor(f @ adjoint_of(f), delta, plan.precision)
        return from_factor(plan, whole, Epilogue("reciprocal", scale_for(whole, n)), volume, triangular=True)
    return from_residual(plan, pair, Epilogue("reciprocal", scale_for(pair[0], n) * delta), volume)


def loaded_inverse_cuda(covariance: Tensor, loading: Tensor) -> Tensor:
    """(R + delta I)^-1 in complex128.

    covariance (B, N, N) -> (B, N, N)
    """
    return operands.loaded_inverse(covariance, loading)


# --- Analysis and synthesis -------------------------------------------------------------------------------------------


def analysis_cuda(
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
    """a^H Q a of Hermitian Q, or ||W^H a||^2, and its epilogue, as :func:`capon_cuda`.

    matrix (B, N, N) or (B, N, K), scale (B,)
    """
    dtype = torch.complex64 if single else matrix.dtype
    plan = device_plan(operation, matrix, geometry, loading, matrix.shape[2] if factored else None, box, dtype)
    n, real = plan.domain.n_elements, dtype.to_real()
    scales = _filled(matrix, 1.0) if scale is None else scale.double()
    if plan.method == "lag":
        double = matrix.to(torch.complex128)
        whole = double @ adjoint_of(double) if factored else (double + adjoint_of(double)) / 2
        scales = scales * scale_for(whole, 1.0)
        power, plane = from_matrix(plan, whole, Epilogue(form, scales, n), volume)
        return power.to(real), plane
    if operation == "music":
        power, plane = _music(plan, matrix, scales, volume)
        return power.clamp_max(_HIGHEST_MUSIC), plane
    if form == "complement":  # N - a^H Q a is the form of I - Q
        double = matrix.to(torch.complex128)
        whole = double @ adjoint_of(double) if factored else double
        matrix, factored, form = torch.eye(n, dtype=whole.dtype, device=whole.device) - whole, False, "reciprocal"
    if factored or form == "reciprocal":
        factor = matrix if factored else operands.definite_factor(matrix, _filled(matrix, 0.0))
        scales = scales * scale_for(factor, 1.0)
        return from_factor(plan, factor.to(torch.complex64), Epilogue(form, scales), volume, triangular=not factored)
    shift = (operands.rounding_shift if operation == "bartlett" else operands.frobenius_shift)(matrix)
    factor = operands.definite_factor(matrix, shift)
    scales = scales * scale_for(factor, 1.0)
    power, plane = from_factor(plan, factor, Epilogue("linear", scales), volume, triangular=True)
    excess = (scales * n * shift).to(power.dtype)
    return power - excess.reshape(-1, *[1] * (power.ndim - 1)), plane


def _music(plan: DevicePlan, signal: Tensor, scale: Tensor, volume: bool) -> tuple[Tensor, Tensor]:
    """From an orthonormal basis of the signal subspace, without the difference N - ||U^H a||^2, which cancels.

    signal (B, N, K)
    """
    epilogue, k = Epilogue("reciprocal", scale * scale_for(signal, 1.0)), signal.shape[2]
    if k > kernel_module("lowrank").MOST_COLUMNS:
        noise = torch.linalg.qr(signal, mode="complete").Q[..., k:]
        return from_factor(plan, noise.to(torch.complex64), epilogue, volume)
    return from_residual(plan, (signal.to(torch.complex64),) * 2, epilogue, volume)


def synthesis_cuda(
    weights: Tensor, plane: Tensor | None, box: bool, operation: str, loading: Tensor | None, *geometry: Any
) -> Tensor:
    """sum_g p_g a_g a_g^H; with ``plane``, of points on those range planes alone.

    weights (B, G_az, G_el, G_r), (B, G_az, G_el) or (B, G) -> (B, N, N)
    """
    plan = device_plan(operation, weights, geometry, loading, box=box)
    own = operation in ("analysis", "synthesis")
    return _outer_products(plan, weights, plane).to(weights.dtype.to_complex() if own else torch.complex128)


# --- Maxima, suppression and search -----------------------------------------------------------------------------------


def local_maxima_3d_cuda(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`risfast.ops.peaks_reference.local_maxima_3d_reference`; a scene that holds NaN has no maxima."""
    check = checks_values(volume.device)
    return kernel_module("peaks").local_maxima(volume, window, k, threshold, check=check)[:3]


def nms_3d_cuda(
    position: Tensor, score: Tensor, separation: Sequence[float], k: int, on_sphere: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`risfast.ops.peaks_reference.nms_3d_reference`; a scene with a score that is NaN keeps nothing."""
    check = checks_values(score.device)
    return kernel_module("nms").nms(position, score, separation, k, on_sphere, check=check)[:2]


def refine_cuda(
    matrix: Tensor,
    factored: bool,
    low: Tensor,
    high: Tensor,
    points: Sequence[int],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
    widest: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`risfast.ops.refinement.refine_torch`."""
    # Without ``widest``, the half sizes of the widest box are read off the boxes, which waits for the host.
    kernels = kernel_module("refine")
    half = tuple(kernels.widest_half(low, high) if widest is None else widest)
    key = ("refine", positions.numpy().tobytes(), wavenumber, wavefront, tuple(points), half, low.device)
    geometry = (positions, wavenumber, wavefront)
    plan = device_tables.get(key, lambda: kernels.RefinePlan.build(*geometry, points, half, low.device))
    found: tuple[Tensor, Tensor] = kernels.refine(matrix, factored, low, high, plan)
    return found


def walk_cuda(
    matrix: Tensor,
    factored: bool,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    spacing: Sequence[float],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
) -> Tensor:
    """See :func:`risfast.ops.refinement.walk_torch`."""
    key = ("walk", positions.numpy().tobytes(), wavenumber, wavefront, start.device)
    build = kernel_module("forms").FormGeometry.build
    geometry = device_tables.get(key, lambda: build(positions, wavenumber, wavefront, start.device))
    box = constant_on(low, start.device), constant_on(high, start.device)
    ended: Tensor = kernel_module("refine").walk(matrix, factored, start, *box, spacing, geometry)
    return ended
