"""Every operator on a GPU: the method that a plan names, its tables and operands, and the kernels that compute it.

The function of an operator is called after it, ``NAME_cuda``, and has its arguments (:mod:`risfast.ops.register`).
Nothing waits for the host, and values are not looked at: a scene that the CPU would refuse comes out as NaN. Maps and
volumes are stored with azimuth fastest: one program of the lag method works on neighbouring azimuths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops import spectra
from risfast.ops.devices import PRECISIONS, checks_values, constant_on, device_tables, kernel_module
from risfast.ops.domain import Domain, adjoint_of, domain_of
from risfast.ops.interpolation import box_nodes
from risfast.ops.plan import Request, plan_of
from risfast.ops.spectra import Epilogue, mean_trace, poisoned

_HIGHEST_MUSIC = 1e15  # where rounding leaves nothing of a null, as on the CPU
# At a source on the grid the form is about 1, a sum of terms that together reach N / loading: float32 is then wrong by
# up to 1.2e-6 N / loading dB (compiled code, 32 scenes each of N = 144 and 256). Above this it takes float64.
_MOST_SINGLE_CANCELLATION = 5e3


class NoKernelError(Exception):
    """No kernel computes what is asked for; plain torch does, on the same device."""


class Form(NamedTuple):
    """The arguments of analysis between the matrix and the geometry."""

    scale: Tensor | None  # (B,) Of the epilogue; None for 1
    factored: bool  # Whether the matrix is W of Q = W W^H
    form: str  # Of the epilogue
    volume: bool  # Or the map of the best planes
    box: bool  # Or a list of points
    # What the form is of, with which loading, and so how exact it must be
    operation: str
    loading: Tensor | None
    single: bool  # Whether the result is in float32 all the same

    @classmethod
    def split(cls, args: tuple[Any, ...]) -> tuple[Form, tuple[Any, ...]]:
        """The form, and the geometry that follows it."""
        count = len(cls._fields)
        return cls(*args[:count]), args[count:]

    def options(self, matrix: Tensor) -> dict[str, Any]:
        """What :func:`requested` has to know.

        matrix (B, N, N) or (B, N, K)
        """
        dtype, rank = torch.complex64 if self.single else matrix.dtype, matrix.shape[2] if self.factored else None
        return {"loading": self.loading, "rank": rank, "box": self.box, "dtype": dtype}


def requested(
    operation: str,
    matrix: Tensor,
    geometry: tuple[Any, ...],
    *,
    loading: Tensor | float | None = None,
    rank: int | None = None,
    box: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Domain, Request]:
    """What decides a plan; ``dtype`` is that of the result, by default the matrix's.

    matrix (B, ...)
    """
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, _ = geometry
    domain = domain_of(positions, (azimuth, elevation, r), wavenumber, wavefront, box)
    dtype, loading = (dtype or matrix.dtype).to_complex(), 0.0 if loading is None else float(loading)
    return domain, Request(operation, method, matrix.shape[0], domain.n_elements, rank, dtype, loading, byte_budget)


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


def _lag_dtype(request: Request) -> torch.dtype:
    """Real dtype that the lag method computes in: float64 where float32 would lose what is documented."""
    cancels = request.operation.startswith("mvdr")
    cancels = cancels and request.n_elements > _MOST_SINGLE_CANCELLATION * request.loading
    double = request.operation == "music" or cancels or request.dtype == torch.complex128
    return torch.float64 if double else torch.float32


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
    return lattice is not None and lattice.n_h <= kernel_module("lag_evaluate").MOST_COLUMNS[real]


def device_plan(operation: str, matrix: Tensor, geometry: tuple[Any, ...], **options: Any) -> DevicePlan:
    """Choose the method as on the CPU, and find or make its tables; options as for :func:`requested`.

    matrix (B, ...)
    """
    precision = geometry[-1]
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    domain, request = requested(operation, matrix, geometry, **options)
    chosen, real = plan_of(domain, request).method, _lag_dtype(request)
    fits = chosen != "lag" or _lag_fits(domain, real)
    if not fits and request.method == "auto":
        chosen, fits = "chebyshev", True
    if not fits or (chosen != "lag" and request.dtype == torch.complex128):
        raise NoKernelError
    tolerance = request.tolerance if chosen == "chebyshev" else 0.0
    key = (domain, chosen, tolerance, real if chosen == "lag" else torch.float32, matrix.device)
    # A list of points rarely comes twice.
    plan: DevicePlan = device_tables.get(key, lambda: _build(*key)) if domain.box else _build(*key)
    return replace(plan, precision=None if precision == "auto" else precision)


# --- Operands: inverses and factors, NaN where a scene has none -------------------------------------------------------


def hermitian_part(matrix: Tensor) -> Tensor:
    """(Q + Q^H) / 2."""
    return (matrix + adjoint_of(matrix)) / 2


def _delta(covariance: Tensor, loading: Tensor | float) -> Tensor:
    """Loading of each scene, float64 [B]; NaN where the trace is not positive."""
    mean = mean_trace(covariance)
    return torch.where(mean > 0, loading * mean, torch.nan)


def _inverse_dtype(precision: str | None) -> torch.dtype:
    """A float32 inverse costs 0.014 dB by itself: only for those who ask for less than that."""
    return torch.float32 if precision == "tf32" else torch.float64


def _shifted_cholesky(matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factor of (Q + Q^H) / 2 + shift I in complex128, and 0 where there is one."""
    q = hermitian_part(matrix).to(torch.complex128)
    q.diagonal(dim1=-2, dim2=-1).add_(shift[:, None])
    factor, info = torch.linalg.cholesky_ex(q)
    return factor, info


def loaded_factor(covariance: Tensor, loading: Tensor | float, precision: str | None = None) -> Tensor:
    """W = L^-H of R + delta I = L L^H.

    covariance (B, N, N) -> (B, N, N)
    """
    kernels, delta, n = kernel_module("inverse"), _delta(covariance, loading), covariance.shape[-1]
    if n <= kernels.LARGEST:
        factor, info = kernels.inverse_factor(covariance, delta, dtype=_inverse_dtype(precision))
    else:  # cuSOLVER and cuBLAS
        lower, info = _shifted_cholesky(covariance, delta)
        eye = torch.eye(n, dtype=lower.dtype, device=lower.device).expand_as(lower)
        factor = adjoint_of(torch.linalg.solve_triangular(lower, eye, upper=False))
    return poisoned(factor, info).to(torch.complex64)


def loaded_inverse(covariance: Tensor, loading: Tensor | float, precision: str | None = None) -> Tensor:
    """(R + delta I)^-1.

    covariance (B, N, N) -> (B, N, N)
    """
    kernels, delta = kernel_module("inverse"), _delta(covariance, loading)
    if covariance.shape[-1] <= kernels.LARGEST:
        return poisoned(*kernels.hermitian_inverse(covariance, delta, dtype=_inverse_dtype(precision)))
    lower, info = _shifted_cholesky(covariance, delta)
    return poisoned(torch.cholesky_inverse(lower), info)


def _definite_factor(matrix: Tensor, shift: Tensor) -> Tensor:
    """W with W W^H = Q + shift I, upper triangular.

    matrix (B, N, N), shift (B,) -> (B, N, N)
    """
    # The Cholesky factor of the matrix with its elements in reverse order, put back in order.
    lower, info = _shifted_cholesky(matrix.flip(1, 2), shift)
    return poisoned(lower.flip(1, 2), info).to(torch.complex64)


def _definite_shift(matrix: Tensor, operation: str) -> Tensor:
    """What makes a matrix definite: of a covariance a little more than its rounding, of any other than its norm.

    matrix (B, N, N) -> (B,)
    """
    if operation == "bartlett":
        return _delta(matrix, 32 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps)
    squared = torch.view_as_real(matrix.resolve_conj()).double().square().sum((1, 2, 3))
    # A matrix of zeros is left with a shift too, so that it has a factor.
    return squared.sqrt().clamp_min(torch.finfo(torch.float32).tiny) * (1 + 1e-6)


# --- From operands to maps --------------------------------------------------------------------------------------------


def epilogue_of(operand: Tensor, form: str, scale: Tensor | float = 1.0) -> Epilogue:
    """An epilogue whose scale is NaN where the operand is: the best of planes would not see it.

    operand (B, N, K)
    """
    return Epilogue(form, scale + 0 * operand[:, 0, 0].real.double(), operand.shape[1])


def from_points(
    plan: DevicePlan,
    launcher: Callable[..., tuple[Tensor, Tensor]],
    operands: tuple[Tensor, ...],
    epilogue: Epilogue,
    volume: bool,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(map, plane), or (volume, empty), by a kernel at the points of a plan, or at its nodes and interpolated."""
    options["precision"] = plan.precision
    if plan.method == "chebyshev":
        unit = Epilogue("linear", torch.ones_like(epilogue.scale))
        at_nodes, _ = launcher(*operands, plan.points, unit, True, **options)  # [B, n_el, n_az, R]
        # Elevation takes the place of azimuth, so that azimuth is the axis that is stored fastest.
        power, plane = kernel_module("interpolate").interpolated_power(
            at_nodes.permute(0, 3, 1, 2), plan.elevation, plan.azimuth, epilogue, volume, precision=plan.precision
        )
    else:
        power, plane = launcher(*operands, plan.points, epilogue, volume, **options)
    if not plan.domain.box:
        return power, plane
    return power.transpose(1, 2), plane if volume else plane.mT


def from_factor(
    plan: DevicePlan, factor: Tensor, epilogue: Epilogue, volume: bool, triangular: bool = True
) -> tuple[Tensor, Tensor]:
    """As :func:`from_points`, from q = ||W^H a||^2.

    factor (B, N, K)
    """
    launcher = kernel_module("dense").dense_power
    return from_points(plan, launcher, (factor,), epilogue, volume, triangular=triangular)


def _power(
    plan: DevicePlan, operand: Tensor, epilogue: Epilogue, volume: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As :func:`from_points`, from a Hermitian matrix by the lag method, from a triangular factor by the others.

    operand (B, N, N)
    """
    if plan.method != "lag":
        return from_factor(plan, operand, epilogue, volume)
    power, plane = kernel_module("lag").lag_power(operand, plan.lag, epilogue, volume)
    return power.to(dtype.to_real()), plane  # it may have computed in a higher precision


# --- The operators ----------------------------------------------------------------------------------------------------


def capon_cuda(covariance: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R: (map, plane), or (volume, empty).

    covariance (B, N, N) -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    plan, n = device_plan("mvdr", covariance, geometry, loading=loading), covariance.shape[1]
    if checks_values(covariance.device):
        spectra.loaded_cholesky(covariance, float(loading))
    made = (loaded_inverse if plan.method == "lag" else loaded_factor)(covariance, loading, plan.precision)
    return _power(plan, made, epilogue_of(made, "reciprocal", n), volume, covariance.dtype)


def capon_lowrank_cuda(factor: Tensor, loading: Tensor, volume: bool, *geometry: Any) -> tuple[Tensor, Tensor]:
    """Capon power of R = F F^H, as :func:`capon_cuda`.

    factor (B, N, K)
    """
    n, k = factor.shape[1:]
    plan = device_plan("mvdr_lowrank", factor, geometry, loading=loading, rank=k)
    delta, lowrank = spectra.lowrank_delta(factor, loading), kernel_module("lowrank")
    if plan.method != "lag" and k <= lowrank.MOST_COLUMNS:
        # ||a - U V^H a||^2 = delta a^H (F F^H + delta I)^-1 a
        u, v, info = lowrank.residual_factors(factor, delta)
        u = poisoned(u, info)
        return from_points(plan, lowrank.residual_power, (u, v), epilogue_of(u, "reciprocal", n * delta), volume)
    if plan.method == "lag":
        made = spectra.woodbury_inverse(factor, delta)
    else:  # too many columns for that kernel
        f = factor.to(torch.complex128)
        made = loaded_factor(f @ adjoint_of(f), loading, plan.precision)
    return _power(plan, made, epilogue_of(made, "reciprocal", n), volume, factor.dtype)


def analysis_cuda(matrix: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """a^H Q a of Hermitian Q, or ||W^H a||^2, and its epilogue, as :func:`capon_cuda`.

    matrix (B, N, N) or (B, N, K)
    """
    how, geometry = Form.split(args)
    plan, n = device_plan(how.operation, matrix, geometry, **how.options(matrix)), matrix.shape[1]
    factored, form, scale = how.factored, how.form, 1.0 if how.scale is None else how.scale.double()
    if how.operation == "music" and plan.method != "lag":
        return _music(plan, matrix, scale, how.volume)
    if plan.method == "lag" or form == "complement":
        double = matrix.to(torch.complex128)
        whole = double @ adjoint_of(double) if factored else hermitian_part(double)
        if plan.method == "lag":
            dtype = torch.complex64 if how.single else matrix.dtype
            return _power(plan, whole, epilogue_of(whole, form, scale), how.volume, dtype)
        # N - a^H Q a is the form of I - Q
        matrix, factored, form = torch.eye(n, dtype=whole.dtype, device=whole.device) - whole, False, "reciprocal"
    if factored:
        return from_factor(plan, matrix.to(torch.complex64), epilogue_of(matrix, form, scale), how.volume, False)
    if form == "reciprocal":
        factor = _definite_factor(matrix, matrix.new_zeros(matrix.shape[0], dtype=torch.float64))
        return from_factor(plan, factor, epilogue_of(factor, form, scale), how.volume)
    # What a linear form is shifted by can be taken off again.
    shift = _definite_shift(matrix, how.operation)
    factor = _definite_factor(matrix, shift)
    epilogue = epilogue_of(factor, form, scale)
    power, plane = from_factor(plan, factor, epilogue, how.volume)
    excess = (epilogue.scale * n * shift).to(power.dtype)
    return power - excess.reshape(-1, *[1] * (power.ndim - 1)), plane


def _music(plan: DevicePlan, signal: Tensor, scale: Tensor | float, volume: bool) -> tuple[Tensor, Tensor]:
    """From an orthonormal basis of the signal subspace, without the difference N - ||U^H a||^2, which cancels.

    signal (B, N, K)
    """
    epilogue, k, lowrank = epilogue_of(signal, "reciprocal", scale), signal.shape[2], kernel_module("lowrank")
    if k > lowrank.MOST_COLUMNS:
        noise = torch.linalg.qr(signal, mode="complete").Q[..., k:]
        power, plane = from_factor(plan, noise.to(torch.complex64), epilogue, volume, False)
    else:
        power, plane = from_points(plan, lowrank.residual_power, (signal.to(torch.complex64),) * 2, epilogue, volume)
    return power.clamp_max(_HIGHEST_MUSIC), plane


def synthesis_dtype(weights: Tensor, operation: str) -> torch.dtype:
    """Of the result: what a gradient multiplies by an inverse on both sides keeps all digits."""
    return weights.dtype.to_complex() if operation in ("analysis", "synthesis") else torch.complex128


def synthesis_cuda(
    weights: Tensor, plane: Tensor | None, box: bool, operation: str, loading: Tensor | None, *geometry: Any
) -> Tensor:
    """sum_g p_g a_g a_g^H; with ``plane``, of points on those range planes alone.

    weights (B, G_az, G_el, G_r), (B, G_az, G_el) or (B, G) -> (B, N, N)
    """
    plan = device_plan(operation, weights, geometry, loading=loading, box=box)
    dtype, point_weights = synthesis_dtype(weights, operation), kernel_module("weights").PointWeights
    if plan.method == "lag":
        return kernel_module("lag_adjoint").lag_synthesis(point_weights(weights, plane), plan.lag).to(dtype)
    if box:  # elevation is the outer axis of its tables
        weights, plane = weights.transpose(1, 2), None if plane is None else plane.transpose(1, 2)
    given = point_weights(weights, plane)
    if plan.method == "chebyshev":
        at_nodes = kernel_module("interpolate_adjoint").interpolate_adjoint(
            given, plan.elevation, plan.azimuth, planes=plan.points.shape[2], precision=plan.precision
        )
        given = point_weights(at_nodes.permute(0, 2, 3, 1))
    return kernel_module("synthesis").dense_synthesis(given, plan.points, precision=plan.precision).to(dtype)


def local_maxima_3d_cuda(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`risfast.ops.reference.local_maxima_3d`; a scene that holds NaN has no maxima."""
    check = checks_values(volume.device)
    return kernel_module("peaks").local_maxima(volume, window, k, threshold, check=check)[:3]


def nms_3d_cuda(
    position: Tensor, score: Tensor, separation: Sequence[float], k: int, on_sphere: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`risfast.ops.reference.nms_3d`; a scene with a score that is NaN keeps nothing."""
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
