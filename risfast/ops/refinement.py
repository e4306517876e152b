"""Local refinement of spectrum peaks: a fine grid around every candidate of every scene, then below the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray
from risfast.ops import checks, register_cuda_peaks
from risfast.ops.denominators import Denominator, denominator
from risfast.ops.descent import bending, descend, walk_spacing
from risfast.ops.devices import checks_values, on_host
from risfast.ops.fine_grid import fine_grid_minimum
from risfast.ops.interpolation import bessel_node_count
from risfast.ops.kept import constant_on
from risfast.ops.register_devices import serve_gpu
from risfast.steering import WAVEFRONTS

__all__ = [
    "Denominator",
    "Refined",
    "denominator",
    "refine_from",
    "refine_op",
    "refine_peaks",
    "walk_from",
    "walk_op",
    "walk_peaks",
    "widest_after_walk",
]

# Interpolation error of a phase difference, rms over pairs. The fine grid only has to find the right valley of the
# denominator; the last step below the grid is exact.
_NODE_TOLERANCE = 1e-5
_MOST_NODES = 41
_STEPS_BELOW_GRID = 2
_WALK_STEPS = 8


class Refined(NamedTuple):
    """Peaks after refinement."""

    position: Tensor  # (B, C, 3) Azimuth, elevation (radians) and range (metres)
    power: Tensor  # (B, C) Capon power there


def _half_phases(positions: Tensor, low: Tensor, high: Tensor, wavenumber: float) -> tuple[Tensor, Tensor, Tensor]:
    """Phase that pairs of elements turn through over half of the widest box, along each axis, seen from afar."""
    half = ((high - low) / 2).amax((0, 1)).tolist()
    index = torch.triu_indices(len(positions), len(positions), 0)
    separation = positions[index[0]] - positions[index[1]]
    path = bending(positions)
    bend = path[index[0]] - path[index[1]]
    k = wavenumber
    length = separation.norm(dim=1)
    return k * half[0] * length, k * half[1] * length, k * half[2] * bend / 2


def refine_torch(
    matrix: Tensor,
    factored: bool,
    low: Tensor,
    high: Tensor,
    points: list[int],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
    widest: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Smallest form, a^H Q a or N - ||W^H a||^2, in each of C boxes a scene.

    matrix (B, N, N) or (B, N, K), low, high (B, C, 3), positions (N, 3) -> point (B, C, 3), value (B, C)
    """
    b, c = low.shape[:2]
    point, value = torch.empty(b, c, 3, dtype=torch.float64), torch.empty(b, c, dtype=torch.float64)
    if b * c == 0:
        return point, value
    geometry = (positions.to(low.device), wavenumber, wavefront)
    with on_host(low.device):
        half = _half_phases(positions, low, high, wavenumber)
        counts = [bessel_node_count(p, _NODE_TOLERANCE, min(n, _MOST_NODES)) for p, n in zip(half, points, strict=True)]
    spacing = (high - low) / torch.tensor(points, dtype=torch.float64).sub(1).clamp_min(1)
    for scene in range(b):
        m = matrix[scene].to(torch.complex128)
        box = (low[scene], high[scene])
        start = fine_grid_minimum(*box, m, factored, points, counts, geometry)
        # The model of each next step is so much more exact.
        found, value[scene] = descend(
            start, spacing[scene], *box, m, factored, geometry, iterations=_STEPS_BELOW_GRID, shrink=0.125
        )
        point[scene, :, :2] = found[:, :2]
        point[scene, :, 2] = 1 / found[:, 2]
    return point, value


refine_op = torch.library.custom_op("risfast::refine", refine_torch, mutates_args=(), device_types="cpu")


serve_gpu(refine_op, refine_torch, register_cuda_peaks.refine)


@refine_op.register_fake
def _(matrix: Tensor, factored: bool, low: Tensor, high: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(low), low.new_empty(low.shape[:2])


def walk_torch(
    matrix: Tensor,
    factored: bool,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    spacing: list[float],
    positions: Tensor,
    wavenumber: float,
    wavefront: str,
) -> Tensor:
    """Descend from each of C points a scene, in float32, without leaving the bounds beyond rounding.

    start (B, C, 3), low, high (3,) -> (B, C, 3)
    """
    point = torch.empty_like(start, memory_format=torch.contiguous_format)
    low, high = low.to(start.device), high.to(start.device)
    geometry = (positions.float().to(start.device), wavenumber, wavefront)
    step = torch.tensor(spacing).expand(start.shape[1], 3)
    for scene in range(start.shape[0]):
        m = matrix[scene].to(torch.complex64)
        box = (low.float()[None], high.float()[None])
        point[scene], _ = descend(
            start[scene].float(), step, *box, m, factored, geometry, iterations=_WALK_STEPS, shrink=1.0
        )
    return point


walk_op = torch.library.custom_op("risfast::walk", walk_torch, mutates_args=(), device_types="cpu")


serve_gpu(walk_op, walk_torch, register_cuda_peaks.walk)


@walk_op.register_fake
def _(matrix: Tensor, factored: bool, start: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(start, memory_format=torch.contiguous_format)


def walk_peaks(
    matrix: Tensor,
    array: PlanarArray,
    position: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    factored: bool = False,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    circle_from: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk candidates of a coarse grid towards the peaks they belong to, and put boxes around where they end.

    position (B, C, 3), low, high (3,) -> position, low, high (B, C, 3)
    """
    # A near-field source between two range planes shows up on them at angles several degrees off. The denominator of
    # the Capon power is smooth over a radian of phase, so a few Newton steps of that size lead from there to the
    # source.
    return walk_from(denominator(matrix, factored, loading), array, position, low, high, wavefront, circle_from)


def walk_from(
    form: Denominator,
    array: PlanarArray,
    position: Tensor,
    low: Tensor,
    high: Tensor,
    wavefront: str,
    circle_from: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`walk_peaks` on a denominator that is there already.

    position (B, C, 3), low, high (3,) -> position, low, high (B, C, 3)
    """
    lowest, highest, arms = _walk_box(array, low, high)
    if circle_from is not None:
        seam = torch.tensor([2 * math.pi, 0.0, 0.0], dtype=torch.float64, device="cpu")
        lowest, highest = lowest - seam, highest + seam
    geometry = (array.positions_m, array.wavenumber, wavefront)
    ended = walk_op(form.matrix, form.factored, _inverse_range(position), lowest, highest, arms.tolist(), *geometry)
    lowest, highest, arms = (constant_on(t, ended.device) for t in (lowest, highest, arms))
    # The walk runs in float32, which may end a rounding outside.
    ended = _wrapped(torch.maximum(torch.minimum(ended, highest), lowest), circle_from)
    near = torch.maximum(ended - arms, lowest)
    far = torch.minimum(ended + arms, highest)
    corner_low = torch.cat([near[..., :2], 1 / far[..., 2:]], -1)
    corner_high = torch.cat([far[..., :2], 1 / near[..., 2:]], -1)
    return _inverse_range(ended), corner_low, corner_high


def _walk_box(array: PlanarArray, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of a walk in (azimuth, elevation, 1/range), and its steps, float64 [3]."""
    bounds = (_inverse_range(low), _inverse_range(high))
    lowest, highest = torch.minimum(*bounds), torch.maximum(*bounds)
    return lowest, highest, torch.minimum(walk_spacing(array.positions_m, array.wavenumber), (highest - lowest) / 8)


def widest_after_walk(array: PlanarArray, low: Tensor, high: Tensor) -> list[float]:
    """Half sizes that no box around the end of a walk exceeds beyond rounding.

    low, high (3,)
    """
    steps: list[float] = _walk_box(array, low, high)[2].tolist()
    return steps


def _wrapped(coordinates: Tensor, circle_from: float | None) -> Tensor:
    """The same places with azimuths within a turn of ``circle_from``."""
    if circle_from is None:
        return coordinates
    azimuth = coordinates[..., :1]
    turns = ((azimuth - circle_from) / (2 * math.pi)).floor()
    return torch.cat([azimuth - 2 * math.pi * turns, coordinates[..., 1:]], -1)


def _inverse_range(coordinates: Tensor) -> Tensor:
    """(azimuth, elevation, range) to (azimuth, elevation, 1/range) and back."""
    return torch.cat([coordinates[..., :2], 1 / coordinates[..., 2:]], -1).double()


def refine_peaks(
    matrix: Tensor,
    array: PlanarArray,
    low: Tensor,
    high: Tensor,
    *,
    factored: bool = False,
    loading: float = 1e-2,
    wavefront: str = "spherical",
    points: tuple[int, int, int] = (41, 41, 41),
    circle_from: float | None = None,
) -> Refined:
    """Highest Capon power in a box around every candidate of every scene.

    matrix (B, N, N) or (B, N, K), low, high (B, C, 3)
    """
    # The denominator of the Capon power is evaluated on Chebyshev nodes of each box, as many as the bandwidth of the
    # array over the widest box asks for, and interpolated onto the fine grid; from its minimum, two Newton steps on a
    # 19-point quadratic model in float64 go below the grid.
    checks.check_array(array)
    checks.check_option(wavefront, "wavefront", WAVEFRONTS)
    checks.check_loading(loading, minimum_open=factored)
    checks.check_complex(matrix, "matrix")
    checks.check_matrix(matrix, "matrix", array.n_elements, square=not factored)
    for name, corner in (("low", low), ("high", high)):
        if corner.ndim != 3 or corner.shape[2] != 3 or corner.shape[0] != matrix.shape[0]:
            raise ShapeError(f"{name} must have shape (B, C, 3) with B = {matrix.shape[0]}, got {tuple(corner.shape)}")
    if low.shape != high.shape:
        raise ShapeError(f"low and high must have the same shape, got {tuple(low.shape)} and {tuple(high.shape)}")
    if {low.device, high.device} != {matrix.device}:
        raise ValueError(
            f"matrix, low and high must be on one device, got {matrix.device}, {low.device}, {high.device}"
        )
    if checks_values(low.device) and not bool(
        (low <= high).all() and (low[..., 2] > 0).all() and torch.isfinite(torch.stack([low, high])[..., :2]).all()
    ):
        raise ValueError("low and high must be finite (a range may be +inf), with low <= high and ranges > 0")
    if len(points) != 3 or min(points) < 1:
        raise ValueError(f"points must be three counts of at least 1, got {points}")
    form = denominator(matrix, factored, loading)
    return refine_from(form, array, low, high, wavefront, points, circle_from=circle_from)


def refine_from(
    form: Denominator,
    array: PlanarArray,
    low: Tensor,
    high: Tensor,
    wavefront: str,
    points: tuple[int, int, int],
    widest: list[float] | None = None,
    circle_from: float | None = None,
) -> Refined:
    """:func:`refine_peaks` on a denominator that is there already."""
    # Range runs against 1/range, in which the phase of a near-field source is nearly linear.
    corners = _inverse_range(low), _inverse_range(high)
    corner_low, corner_high = torch.minimum(*corners), torch.maximum(*corners)
    geometry = (array.positions_m, array.wavenumber, wavefront)
    position, value = refine_op(form.matrix, form.factored, corner_low, corner_high, list(points), *geometry, widest)
    # N - q cancels to nothing at a source without noise; no form is smaller than what float64 leaves of it.
    return Refined(_wrapped(position, circle_from), form.scale / value.clamp_min(math.ldexp(array.n_elements, -50)))
