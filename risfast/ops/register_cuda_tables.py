"""What the kernels of a GPU need of a request: its method, and tables that stay on the device between calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops.devices import PRECISIONS, kernel_module
from risfast.ops.domain import Domain, domain_of
from risfast.ops.evaluators import cached_nodes
from risfast.ops.kept import kept_tables
from risfast.ops.plan import plan_of, request_of
from risfast.ops.register_common import Geometry

# At a source on the grid the form is about 1, a sum of terms that together reach N / loading: float32 is then wrong by
# up to 1.2e-6 N / loading dB (compiled code, 32 scenes each of N = 144 and 256). Above this it takes float64.
_MOST_SINGLE_CANCELLATION = 5e3
_NO_DOUBLE = (
    "complex128 with method={method!r} has no kernel on a GPU, whose dense kernels compute in float32; pass complex64, "
    "method='lag' where array and wavefront allow it, a tensor on the CPU, or set RISFAST_TRITON=0 for plain torch"
)


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """Tables of one array and one set of points for one method, on one device."""

    lag: Any = None
    points: Any = None  # Of a box with elevation as the outer axis: points of the grid, or Chebyshev nodes
    azimuth: Tensor | None = None  # (G_az, n_az) Interpolation from the nodes
    elevation: Tensor | None = None  # (G_el, n_el) Interpolation from the nodes


@dataclass(frozen=True, eq=False)
class DevicePlan:
    """A request ready to run."""

    domain: Domain  # Array, wavefront and points
    method: str
    precision: str | None  # None leaves the choice to the kernels
    tables: DeviceTables  # Of the method, on the device


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


def _build(domain: Domain, method: str, tolerance: float, real: torch.dtype, device: torch.device) -> DeviceTables:
    dense = kernel_module("dense")
    lag_tables = kernel_module("lag_tables")

    if method == "lag":
        return DeviceTables(lag=lag_tables.LagTables.build(domain, real, device))
    if method == "dense":
        points = dense.DensePoints.build(domain, device)
        return DeviceTables(points=_elevation_first(points, domain) if domain.box else points)
    nodes = cached_nodes(domain, tolerance)
    axes = (nodes.azimuth.nodes, nodes.elevation.nodes, domain.range)
    node_domain = Domain(domain.positions, domain.wavenumber, domain.wavefront, *axes, box=True)

    def matrix(values: Tensor | None, count: int) -> Tensor:
        values = torch.eye(count, dtype=torch.float64, device="cpu") if values is None else values
        return values.to(device, torch.float32).contiguous()

    return DeviceTables(
        points=_elevation_first(dense.DensePoints.build(node_domain, device), node_domain),
        azimuth=matrix(nodes.azimuth.matrix, nodes.azimuth.count),
        elevation=matrix(nodes.elevation.matrix, nodes.elevation.count),
    )


def _lag_fits(domain: Domain, real: torch.dtype) -> bool:
    """Whether the kernels ship a configuration for the columns of the array."""
    lag = kernel_module("lag")

    lattice = find_lattice(domain.positions)
    if lattice is None:
        return False
    try:
        lag.lag_configuration(lattice.n_h, real)
    except ValueError:
        return False
    return True


def device_plan(
    operation: str, matrix: Tensor, geometry: Geometry, box: bool, loading: float, rank: int | None
) -> DevicePlan:
    """Choose the method as on the CPU, among what the kernels can do, and find or make its tables.

    matrix (B, ...)
    """
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, precision = geometry
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    domain = domain_of(positions, (azimuth, elevation, r), wavenumber, wavefront, box)
    dtype = matrix.dtype if matrix.dtype.is_complex else matrix.dtype.to_complex()
    request = request_of(operation, method, matrix.shape[0], domain.n_elements, rank, dtype, loading, byte_budget)
    chosen = plan_of(domain, request).method
    real = _lag_dtype(operation, dtype, domain.n_elements, loading)
    if chosen == "lag" and method == "auto" and not _lag_fits(domain, real):
        chosen = plan_of(domain, replace(request, method="chebyshev")).method
    if chosen != "lag" and dtype == torch.complex128:
        raise TypeError(_NO_DOUBLE.format(method=chosen))
    tolerance = request.tolerance if chosen == "chebyshev" else 0.0
    named = None if precision == "auto" else precision
    build_key = (domain, chosen, tolerance, real if chosen == "lag" else torch.float32, matrix.device)
    if not domain.box:  # a list of points rarely comes twice
        return DevicePlan(domain, chosen, named, _build(*build_key))
    return DevicePlan(domain, chosen, named, kept_tables.get(build_key, lambda: _build(*build_key)))
