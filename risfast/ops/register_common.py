"""What the registrations of the operators share: the geometry arguments, plans, fakes, the rule of vmap.

Geometry travels as float64 CPU tensors (positions [N, 3] and three axes), so that a plan can be found by their contents
without waiting for a device, and so that an exported program carries all it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from risfast.ops import spectra
from risfast.ops.devices import on_host, serves_kernels
from risfast.ops.domain import Domain, domain_of
from risfast.ops.evaluators import Evaluator
from risfast.ops.plan import Plan, make_plan, request_of

Geometry = tuple[Tensor, Tensor, Tensor, Tensor, float, str, str, int, str]
"""Element positions (N, 3) in metres; azimuths and elevations in radians and ranges in metres, each 1D (the axes of a
grid, or the coordinates of points); wavenumber in rad/m; wavefront; method; byte budget; precision. The tensors are
float64 on the CPU."""
# The arguments that describe it, at the end of each schema.
_GEOMETRY = (
    "Tensor positions, Tensor azimuth, Tensor elevation, Tensor range_m, float wavenumber, str wavefront, str method, "
    'SymInt byte_budget, str precision="auto"'
)
GEOMETRY = _GEOMETRY.count(",") + 1


def define(name: str, arguments: str, result: str, implementation: Callable[..., Any]) -> Any:
    """Register ``risfast::<name>`` for the CPU."""
    schema = f"({arguments}, {_GEOMETRY}) -> {result}"
    return torch.library.custom_op(
        f"risfast::{name}", implementation, mutates_args=(), device_types="cpu", schema=schema
    )


def whole(geometry: tuple[Any, ...]) -> Geometry:
    """The geometry with its last argument, which the dispatcher leaves out where it is the default."""
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, *rest = geometry
    precision = rest[0] if rest else "auto"
    return positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, precision


def planned(
    operation: str, matrix: Tensor, geometry: tuple[Any, ...], box: bool, loading: float, rank: int | None
) -> tuple[Domain, Plan, Evaluator]:
    """Domain, plan and evaluator of a request, its tables on the device of the matrix.

    matrix (B, ...)
    """
    positions, azimuth, elevation, r, wavenumber, wavefront, method, byte_budget, _ = whole(geometry)
    with on_host(matrix.device):
        domain = domain_of(positions, (azimuth, elevation, r), wavenumber, wavefront, box)
        dtype = matrix.dtype.to_complex() if not matrix.dtype.is_complex else matrix.dtype
        request = request_of(operation, method, matrix.shape[0], domain.n_elements, rank, dtype, loading, byte_budget)
        return domain, *make_plan(domain, request, matrix.device)


def map_or_volume(
    plan: Plan, evaluator: Evaluator, operand: spectra.OperandOf, power: Any, volume: bool
) -> tuple[Tensor, Tensor]:
    """(power map, plane) or (volume, empty).

    -> power (B, G_az, G_el), or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    if volume:
        return spectra.volume_of(plan, evaluator, operand, power), torch.empty(0, dtype=torch.int32)
    return spectra.map_of(plan, evaluator, operand, power)


# The kernels of a GPU store azimuth fastest: one program of the lag method works on neighbouring azimuths.


def _fake_map(matrix: Tensor, azimuth: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor]:
    shape = [matrix.shape[0], azimuth.shape[0], elevation.shape[0]]
    turned = serves_kernels(matrix)
    if turned:
        shape[1:] = shape[:0:-1]
    power, plane = (matrix.new_empty(shape, dtype=dtype) for dtype in (matrix.dtype.to_real(), torch.int32))
    return (power.mT, plane.mT) if turned else (power, plane)


def fake_volume(matrix: Tensor, azimuth: Tensor, elevation: Tensor, r: Tensor) -> Tensor:
    """An empty volume [B, G_az, G_el, G_r] stored plane by plane.

    matrix (B, ...), azimuth, elevation, r (G_az,), (G_el,), (G_r,) -> (B, G_az, G_el, G_r)
    """
    shape = (matrix.shape[0], r.shape[0], azimuth.shape[0], elevation.shape[0])
    real = matrix.dtype.to_real()
    if serves_kernels(matrix):
        return matrix.new_empty((*shape[:2], shape[3], shape[2]), dtype=real).permute(0, 3, 2, 1)
    return matrix.new_empty(shape, dtype=real).permute(0, 2, 3, 1)


def fake_map_or_volume(matrix: Tensor, geometry: Any, volume: bool) -> tuple[Tensor, Tensor]:
    """Empty outputs of a spectrum.

    matrix (B, ...) -> power (B, G_az, G_el) or (B, G_az, G_el, G_r), plane (B, G_az, G_el)
    """
    _, azimuth, elevation, r = geometry[:4]
    if volume:
        return fake_volume(matrix, azimuth, elevation, r), matrix.new_empty(0, dtype=torch.int32)
    return _fake_map(matrix, azimuth, elevation)


def register_vmap(op: Any) -> None:
    """Register the rule of ``torch.vmap``: the mapped dimension becomes part of the batch."""

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
