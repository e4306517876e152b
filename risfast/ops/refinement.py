"""Local refinement of spectrum peaks: a fine grid around every candidate of every scene, then below the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, direction_cosines
from risfast.ops import checks
from risfast.ops.cache import constant_on
from risfast.ops.devices import checks_values, on_host
from risfast.ops.form import QuadraticForm
from risfast.ops.interpolation import bessel_node_count, chebyshev_nodes, interpolation_matrix
from risfast.steering import WAVEFRONTS, steering_phase


def _form_of(matrix: Tensor, factored: bool, loading: float) -> QuadraticForm:
    return (QuadraticForm.capon_lowrank if factored else QuadraticForm.capon)(matrix, loading)


SearchGeometry = tuple[Tensor, float, str]  # positions [N, 3], wavenumber, wavefront

_LONGEST_MOVE = 2.0  # steps of the stencil: beyond, its quadratic model says little
_WALK_PHASE_RAD = 0.35  # rms phase over the array that a step of the walk turns through


def steering(coordinates: Tensor, positions: Tensor, wavenumber: float, wavefront: str) -> Tensor:
    """Steering vectors at (azimuth, elevation, 1/range), in the precision of coordinates and positions.

    coordinates (..., 3), positions (N, 3) -> (..., N)
    """
    direction = direction_cosines(coordinates[..., 0], coordinates[..., 1])
    phase = steering_phase(positions, direction, 1 / coordinates[..., 2], wavenumber, wavefront)
    return torch.complex(phase.cos(), phase.sin())


def form(a: Tensor, matrix: Tensor, factored: bool) -> Tensor:
    """The quadratic form a^H Q a, or N - ||W^H a||^2.

    a (g, N), matrix (N, N) or (N, K) -> (g,)
    """
    if factored:
        product = torch.view_as_real(a.conj().resolve_conj() @ matrix)
        return a.shape[1] - product.square().sum((-2, -1))
    product = torch.view_as_real(a @ matrix.mT)
    return (product * torch.view_as_real(a)).sum((-2, -1))


def bending(positions: Tensor) -> Tensor:
    """Twice the range times the path [N] by which curvature delays each element, |p|^2 - (u.p)^2."""
    # For the direction u, broadside or along an axis, that spreads it most: a ring about the origin, seen from afar
    # along its own normal, would have none.
    squares = positions.square()
    across = squares.sum(1, keepdim=True) - torch.cat([torch.zeros_like(squares[:, :1]), squares], 1)
    return across[:, across.std(0, correction=0).argmax()]


def walk_spacing(positions: Tensor, wavenumber: float) -> Tensor:
    """Steps that turn the phases over the array by about 0.35 rad rms.

    positions (N, 3) -> (3,)
    """
    centred = positions - positions.mean(0)
    spread = torch.stack(
        [
            centred[:, [0, 2]].square().sum(1).mean().sqrt(),
            centred.square().sum(1).mean().sqrt(),
            bending(positions).std(correction=0) / 2,
        ]
    )
    # An array without extent along an axis cannot resolve it; callers cap the step by the size of their box.
    return _WALK_PHASE_RAD / (wavenumber * spread).clamp_min(1e-6)


@lru_cache(maxsize=2)
def _stencil(dtype: torch.dtype) -> Tensor:
    """Centre, 6 faces and 12 edges of a cube, [19, 3]."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return grid[grid.abs().sum(1) <= 2].to(dtype)


@lru_cache(maxsize=2)
def _quadratic_fit(dtype: torch.dtype) -> Tensor:
    """Pseudo-inverse [10, 19] of the quadratic model (1, x, x^2 / 2, cross terms) on the stencil."""
    x, y, z = _stencil(torch.float64).unbind(1)
    model = torch.stack([torch.ones_like(x), x, y, z, x * x / 2, y * y / 2, z * z / 2, x * y, x * z, y * z], 1)
    return torch.linalg.pinv(model).to(dtype)


def _newton_move(c: Tensor) -> Tensor:
    """Step [C, 3] to the minimum of the models c [C, 10], downhill along directions of negative curvature too."""
    hessian = c[:, [4, 7, 8, 7, 5, 9, 8, 9, 6]].reshape(-1, 3, 3)
    # A flat direction (an axis of one point, a single element) gets a stiff spring instead of a division by zero.
    spring = hessian.abs().amax((1, 2)).clamp_min(torch.finfo(c.dtype).tiny) * 1e-6
    values, vectors = torch.linalg.eigh(hessian)
    values = torch.maximum(values.abs(), spring[:, None])
    return -(vectors @ ((vectors.mT @ c[:, 1:4, None]) / values[..., None]))[..., 0]


def newton_descend(
    point: Tensor,
    step: Tensor,
    low: Tensor,
    high: Tensor,
    matrix: Tensor,
    factored: bool,
    geometry: SearchGeometry,
    *,
    iterations: int,
    shrink: float,
) -> tuple[Tensor, Tensor]:
    """Newton steps on local quadratic models of the form; never uphill, never out of the box.

    point (C, 3), step (C, 3), low, high (C, 3) or (1, 3) -> point (C, 3), value (C,)
    """
    # The form is the denominator of the Capon power: close to quadratic where its reciprocal is a needle.
    positions, wavenumber, wavefront = geometry

    def at(coordinates: Tensor) -> Tensor:
        a = steering(coordinates.reshape(-1, 3), positions, wavenumber, wavefront)
        return form(a, matrix, factored).reshape(coordinates.shape[:-1])

    with on_host(point.device):  # kept between calls, so not made on the device that comes first
        stencil, fit = _stencil(point.dtype), _quadratic_fit(point.dtype)
    stencil, fit = stencil.to(point.device), fit.to(point.device)
    value = at(point)
    for _ in range(iterations):
        # At a wall the stencil moves inwards as a whole, so that its model stays regular.
        centre = torch.maximum(torch.minimum(point, high - step), low + step)
        around = centre[:, None] + step[:, None] * stencil
        heights = at(around)
        move = _newton_move(heights @ fit.mT).clamp(-_LONGEST_MOVE, _LONGEST_MOVE)
        # Full and half a step: where the model overshoots, the shorter one still descends, or a point of the stencil.
        moved = torch.stack([centre + step * move, centre + step * move / 2], 1)
        moved = torch.cat([moved, around], 1)
        moved = torch.maximum(torch.minimum(moved, high[:, None]), low[:, None])
        values = torch.cat([at(moved[:, :2]), heights], 1)
        best = values.argmin(1, keepdim=True)
        lowest = values.gather(1, best)[:, 0]
        better = lowest < value
        point = torch.where(better[:, None], moved.gather(1, best[..., None].expand(-1, 1, 3))[:, 0], point)
        value = torch.where(better, lowest, value)
        step = step * shrink
    return point, value


_TILE_VALUES = 1 << 17  # steering vector entries made at once


@lru_cache(maxsize=32)
def _axis(count: int, points: int) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes on [-1, 1] and the matrix from them to ``points`` uniform points."""
    nodes = chebyshev_nodes(-1.0, 1.0, count)
    return nodes, interpolation_matrix(nodes, -1.0, 1.0, torch.linspace(-1, 1, points, dtype=torch.float64)).float()


def fine_grid_minimum(
    low: Tensor,
    high: Tensor,
    matrix: Tensor,
    factored: bool,
    points: list[int],
    counts: list[int],
    geometry: SearchGeometry,
) -> Tensor:
    """Point of the fine grid with the smallest form in each of C boxes, in float32.

    low, high (C, 3) -> (C, 3)
    """
    positions, wavenumber, wavefront = geometry
    positions = positions.float()
    with on_host(low.device):  # kept between calls, so not made on the device that comes first
        axes = [_axis(count, n) for count, n in zip(counts, points, strict=True)]
    axes = [(nodes.to(low.device), matrix.to(low.device)) for nodes, matrix in axes]
    offsets = torch.stack(torch.meshgrid(*[nodes for nodes, _ in axes], indexing="ij"), -1).reshape(-1, 3)
    to_az, to_el, to_r = (m for _, m in axes)
    single = matrix.to(torch.complex64)
    best = torch.empty(low.shape[0], dtype=torch.long)
    step = max(1, _TILE_VALUES // (offsets.shape[0] * positions.shape[0]))
    for start in range(0, low.shape[0], step):
        stop = min(start + step, low.shape[0])
        centre, half = (high + low)[start:stop, None] / 2, (high - low)[start:stop, None] / 2
        nodes = (centre + half * offsets).float().reshape(-1, 3)
        q = form(steering(nodes, positions, wavenumber, wavefront), single, factored)
        q = to_az @ q.reshape(stop - start, counts[0], -1)
        q = to_el @ q.reshape(-1, counts[1], counts[2])
        q = q.reshape(-1, counts[2]) @ to_r.mT
        best[start:stop] = q.reshape(stop - start, -1).argmin(1)
    index = torch.stack(torch.unravel_index(best, tuple(points)), -1)
    last = torch.tensor(points, dtype=torch.float64).sub(1).clamp_min(1)
    return low + (high - low) * torch.where(torch.tensor(points) > 1, index / last, torch.full((3,), 0.5))


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
        found, value[scene] = newton_descend(
            start, spacing[scene], *box, m, factored, geometry, iterations=_STEPS_BELOW_GRID, shrink=0.125
        )
        point[scene, :, :2] = found[:, :2]
        point[scene, :, 2] = 1 / found[:, 2]
    return point, value


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
    step = torch.tensor(spacing, dtype=torch.float32).expand(start.shape[1], 3)
    for scene in range(start.shape[0]):
        m = matrix[scene].to(torch.complex64)
        box = (low.float()[None], high.float()[None])
        point[scene], _ = newton_descend(
            start[scene].float(), step, *box, m, factored, geometry, iterations=_WALK_STEPS, shrink=1.0
        )
    return point


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
    return walk_from(_form_of(matrix, factored, loading), array, position, low, high, wavefront, circle_from)


def walk_from(
    form: QuadraticForm,
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
    box = (lowest, highest, arms.tolist())
    ended = torch.ops.risfast.walk(form.matrix, form.factored, _inverse_range(position), *box, *geometry)
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
    matrix = checks.as_complex(matrix, "matrix")
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
    form = _form_of(matrix, factored, loading)
    return refine_from(form, array, low, high, wavefront, points, circle_from=circle_from)


def refine_from(
    form: QuadraticForm,
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
    box = (torch.minimum(*corners), torch.maximum(*corners), list(points))
    geometry = (array.positions_m, array.wavenumber, wavefront)
    position, value = torch.ops.risfast.refine(form.matrix, form.factored, *box, *geometry, widest)
    # N - q cancels to nothing at a source without noise; no form is smaller than what float64 leaves of it.
    return Refined(
        _wrapped(position, circle_from), form.scale[:, None] / value.clamp_min(math.ldexp(array.n_elements, -50))
    )
