"""Newton search for spectrum peaks: around every candidate of every scene at once, with analytic derivatives."""

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
from risfast.ops.devices import checks_values, constant_on, on_host
from risfast.ops.form import QuadraticForm
from risfast.ops.interpolation import chebyshev_nodes, interpolation_matrix
from risfast.steering import WAVEFRONTS, phase_derivatives, steering_phase


def _form_of(matrix: Tensor, factored: bool, loading: float) -> QuadraticForm:
    return (QuadraticForm.capon_lowrank if factored else QuadraticForm.capon)(matrix, loading)


SearchGeometry = tuple[Tensor, float, str]  # positions [N, 3], wavenumber, wavefront
_PAIRS = [0, 3, 4, 3, 1, 5, 4, 5, 2]  # of (aa, ee, ss, ae, as, es) in a symmetric 3 x 3 matrix

_LONGEST_MOVE = 2.0  # steps: beyond, a quadratic model says little
_SPRING = 1e-6  # least curvature that a step reckons with, of the largest
_WALK_PHASE_RAD = 0.35  # rms phase over the array that a step of the walk turns through
# After twelve one in 200 random scenes still stood on a slope, as a false source; after sixteen none.
_WALK_STEPS = 16
_VALLEYS = 4  # of a box that are descended
_COARSE_STEPS, _FINE_STEPS = 4, 2  # in float32 and in float64
_TILE_VALUES = 1 << 15  # steering vector entries made at once, which stay in the caches
_SCENE_VALUES = 1 << 14  # entries of the steering vectors of the candidates of scenes that are refined at once


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


def real_matrix(matrix: Tensor) -> Tensor:
    """[[Re, -Im], [Im, Re]] of complex matrices: a quadratic form of (cos, sin) needs no complex numbers.

    (B, N, K) -> (B, 2 N, 2 K)
    """
    re, im = matrix.real, matrix.imag
    return torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)


def _applied(columns: Tensor, matrix: Tensor, factored: bool) -> Tensor:
    """Q x, or (I - W W^H) x, of real rows [B, M, 2 N] by the real matrix of Q or W."""
    if factored:
        return columns - (columns @ matrix) @ matrix.mT
    return columns @ matrix.mT


def form(phase: Tensor, matrix: Tensor, factored: bool) -> Tensor:
    """The quadratic form a^H Q a, or N - ||W^H a||^2, by the real matrix of Q or W.

    phase (B, M, N), matrix (B, 2 N, 2 N) or (B, 2 N, 2 K) -> (B, M)
    """
    a = torch.cat([phase.cos(), phase.sin()], -1)
    return (a * _applied(a, matrix, factored)).sum(-1)


class QuadraticModel(NamedTuple):
    """The form about a point to second order, float64."""

    value: Tensor  # (B, M)
    gradient: Tensor  # (B, M, 3)
    hessian: Tensor  # (B, M, 3, 3)


def quadratic_model(coordinates: Tensor, matrix: Tensor, factored: bool, geometry: SearchGeometry) -> QuadraticModel:
    """Value and derivatives of the form at (azimuth, elevation, 1/range) [B, M, 3], in the precision of the matrix."""
    positions, wavenumber, wavefront = geometry
    dtype = matrix.dtype
    phase, first, second = phase_derivatives(coordinates.to(dtype), positions.to(dtype), wavenumber, wavefront)
    cos, sin = phase.cos(), phase.sin()
    # Derivatives of a are j g a and (j h - g g) a; here without the j.
    weight = torch.cat([torch.ones_like(phase)[:, :, None], first], 2)
    columns = torch.cat([weight * cos[:, :, None], weight * sin[:, :, None]], -1)  # (a, g a)  [B, M, 4, 2 N]
    image = _applied(columns.flatten(1, 2), matrix, factored).unflatten(1, columns.shape[1:3])
    gram = columns @ image.mT  # [B, M, 4, 4]
    re, im = image[:, :, 0].chunk(2, -1)
    re, im = cos * re + sin * im, cos * im - sin * re  # of conj(a) Q a  [B, M, N]
    slopes = (torch.cat([first, second], 2) @ im[..., None])[..., 0]  # [B, M, 9]
    inner = gram[:, :, 1:, 1:] - (first * re[:, :, None]) @ first.mT
    hessian = 2 * (inner + slopes[..., 3:][..., _PAIRS].unflatten(-1, (3, 3)))
    return QuadraticModel(gram[:, :, 0, 0].double(), 2 * slopes[..., :3].double(), hessian.double())


def _newton_move(gradient: Tensor, hessian: Tensor, held: Tensor, reach: Tensor) -> Tensor:
    """Step [..., 3] to the minimum of quadratic models along the axes that are not ``held`` (bool [..., 3]).

    Downhill along directions of negative curvature too, and along none of them farther than ``reach`` [..., 1].
    """
    free = (~held).double()
    values, vectors = torch.linalg.eigh(hessian * free[..., None] * free[..., None, :])
    slopes = (vectors.mT @ (gradient * free)[..., None])[..., 0]
    # A flat direction (an axis of one point, a single element) gets a stiff spring instead of a division by zero.
    spring = _SPRING * values.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    stiffness = torch.maximum(torch.maximum(values.abs(), spring), slopes.abs() / reach)
    return -(vectors @ (slopes / stiffness)[..., None])[..., 0]


def _bounded_move(gradient: Tensor, hessian: Tensor, low: Tensor, high: Tensor, reach: Tensor) -> Tensor:
    """Newton step [..., 3] between walls [..., 3] that hold 0."""
    # An axis whose wall the slope pushes against is held there. One whose step would go through a wall is taken to the
    # wall, and the others to the minimum that is left.
    held = ((low >= 0) & (gradient >= 0)) | ((high <= 0) & (gradient <= 0))
    move = _newton_move(gradient, hessian, held, reach)
    bounded = torch.maximum(torch.minimum(move, high), low)
    stopped = move != bounded
    to_wall = torch.where(stopped, bounded, 0.0)
    return to_wall + _newton_move(gradient + (hessian @ to_wall[..., None])[..., 0], hessian, held | stopped, reach)


def newton_descend(
    point: Tensor,
    step: Tensor,
    low: Tensor,
    high: Tensor,
    matrix: Tensor,
    factored: bool,
    geometry: SearchGeometry,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Newton steps on the form, each of at most two ``step``; never uphill, never out of the box.

    point, step, low, high (B, M, 3) -> point (B, M, 3), value (B, M)
    """
    # The form is the denominator of the Capon power: close to quadratic where its reciprocal is a needle.
    model = quadratic_model(point, matrix, factored, geometry)
    reach = torch.full_like(point[..., :1], _LONGEST_MOVE)
    for _ in range(iterations):
        gradient = model.gradient * step
        hessian = model.hessian * step[..., None] * step[..., None, :]
        walls = [(side - point) / step.clamp_min(1e-300) for side in (low, high)]
        move = _bounded_move(gradient, hessian, walls[0], walls[1], reach)
        trial = torch.maximum(torch.minimum(point + step * move, high), low)
        there = quadratic_model(trial, matrix, factored, geometry)
        better = there.value < model.value
        point = torch.where(better[..., None], trial, point)
        reach = torch.where(better[..., None], (2 * reach).clamp_max(_LONGEST_MOVE), reach / 4)
        model = QuadraticModel(
            torch.where(better, there.value, model.value),
            torch.where(better[..., None], there.gradient, model.gradient),
            torch.where(better[..., None, None], there.hessian, model.hessian),
        )
    return point, model.value


class Refined(NamedTuple):
    """Peaks after refinement."""

    position: Tensor  # (B, C, 3) Azimuth, elevation (radians) and range (metres)
    power: Tensor  # (B, C) Capon power there


@lru_cache(maxsize=32)
def _axis(count: int, points: int) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes on [-1, 1] and the matrix from them to ``points`` uniform points."""
    nodes = chebyshev_nodes(-1.0, 1.0, count)
    return nodes, interpolation_matrix(nodes, -1.0, 1.0, torch.linspace(-1, 1, points, dtype=torch.float64)).float()


def _node_counts(half: Tensor, positions: Tensor, wavenumber: float, points: Sequence[int]) -> list[int]:
    """Chebyshev nodes that interpolate the form in a box of half sizes [3] to a few percent."""
    # Between two elements the phase turns by sqrt(2) times as much as at one of them. Each node beyond half of the
    # turn divides the error of interpolation by more than two.
    turn = math.sqrt(2) * _WALK_PHASE_RAD * half / walk_spacing(positions, wavenumber)
    return [math.ceil(3.5 + 2 * t) if t > 0 and n > 1 else 1 for t, n in zip(turn.tolist(), points, strict=True)]


def _lower_than_neighbours(q: Tensor) -> Tensor:
    """Whether a point of grids [C, n, n, n] is no higher than its neighbours along each axis."""
    found = torch.ones_like(q, dtype=torch.bool)
    for axis in (1, 2, 3):
        falls = q.diff(dim=axis) < 0
        count = falls.shape[axis]
        found.narrow(axis, 0, count).logical_and_(~falls)
        found.narrow(axis, 1, count).logical_and_(falls)
    return found


def _valleys(
    low: Tensor, high: Tensor, points: Sequence[int], matrix: Tensor, factored: bool, geometry: SearchGeometry
) -> tuple[Tensor, Tensor]:
    """The lowest valleys of the interpolated form on a grid in each box, and the spacing of the grid; in float32.

    low, high (B, C, 3) -> point (B, C, S, 3), spacing (B, C, 3)
    """
    positions, wavenumber, wavefront = geometry
    centre, half = (high + low)[:, :, None] / 2, (high - low)[:, :, None] / 2
    counts = _node_counts(half.amax((0, 1, 2)), positions, wavenumber, points)
    fine = [min(2 * n - 1, most) for n, most in zip(counts, points, strict=True)]
    with on_host(low.device):  # kept between calls, so not made on the device that comes first
        axes = [_axis(n, m) for n, m in zip(counts, fine, strict=True)]
    offsets = torch.cartesian_prod(*[nodes for nodes, _ in axes]).to(low.device)
    to_az, to_el, to_s = (weights.to(low.device) for _, weights in axes)
    at = (centre + half * offsets).float().flatten(1, 2)
    positions = positions.float()
    values = []
    for part in at.split(max(1, _TILE_VALUES // (len(at) * len(positions))), 1):
        direction = direction_cosines(part[..., 0], part[..., 1])
        phase = steering_phase(positions, direction, 1 / part[..., 2], wavenumber, wavefront)
        values.append(form(phase, matrix, factored))
    q = to_az @ torch.cat(values, 1).reshape(-1, counts[0], counts[1] * counts[2])
    q = to_el @ q.reshape(-1, counts[1], counts[2]) @ to_s.mT
    q = q.reshape(-1, *fine)
    valley = _lower_than_neighbours(q)
    number = min(_VALLEYS, max(1, int(valley.sum((1, 2, 3)).max())))
    q = torch.where(valley, q, math.inf).reshape(*low.shape[:2], -1)
    index = torch.stack(torch.unravel_index(q.topk(number, largest=False).indices, tuple(fine)), -1)
    gaps = low.new_tensor([max(n - 1, 1) for n in fine])
    share = torch.where(low.new_tensor(fine) > 1, index / gaps, 0.5)
    return low[:, :, None] + (high - low)[:, :, None] * share, (high - low) / gaps


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
    if b * c == 0:
        return torch.empty_like(low), low.new_empty(b, c)
    geometry = (positions, wavenumber, wavefront)
    scenes = max(1, _SCENE_VALUES // (c * len(positions)))
    parts = zip(*(t.split(scenes) for t in (matrix, low, high)), strict=True)
    found = [_refine_scenes(part[0], factored, part[1], part[2], points, geometry) for part in parts]
    point, value = (torch.cat(field) for field in zip(*found, strict=True))
    return torch.cat([point[..., :2], 1 / point[..., 2:]], -1), value


def _refine_scenes(
    matrix: Tensor, factored: bool, low: Tensor, high: Tensor, points: list[int], geometry: SearchGeometry
) -> tuple[Tensor, Tensor]:
    """Point in (azimuth, elevation, 1/range) and value of :func:`refine_torch`, of a few scenes at once."""
    double = real_matrix(matrix.to(torch.complex128))
    single = double.float()
    start, step = _valleys(low, high, points, single, factored, geometry)  # [B, C, S, 3]
    corners = [side[:, :, None].expand_as(start).flatten(1, 2) for side in (step, low, high)]
    found, _ = newton_descend(
        start.flatten(1, 2), corners[0], corners[1], corners[2], single, factored, geometry, _COARSE_STEPS
    )
    if start.shape[2] > 1:
        value = form(phase_derivatives(found, *geometry)[0], double, factored).reshape(start.shape[:3])
        best = value.argmin(2)[..., None, None].expand(-1, -1, 1, 3)
        found = found.reshape(start.shape).gather(2, best)[:, :, 0]
    return newton_descend(found, step, low, high, double, factored, geometry, _FINE_STEPS)


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
    """Descend from each of C points a scene, the form in float32.

    start (B, C, 3), low, high (3,) -> (B, C, 3)
    """
    geometry = (positions.to(start.device), wavenumber, wavefront)
    step = torch.tensor(spacing, dtype=torch.float64, device=start.device).expand_as(start)
    low, high = low.to(start.device).expand_as(start), high.to(start.device).expand_as(start)
    single = real_matrix(matrix.to(torch.complex64))
    ended, _ = newton_descend(start, step, low, high, single, factored, geometry, _WALK_STEPS)
    return ended


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
    # array over the widest box asks for, and interpolated onto a grid of at most ``points``; from its deepest valleys,
    # Newton steps go down to the minimum.
    checks.check_array(array)
    checks.check_option(wavefront, "wavefront", WAVEFRONTS)
    checks.check_loading(loading, minimum_open=factored)
    name = "F" if factored else "R"
    matrix = checks.complex_tensor(matrix, name)
    checks.check_matrix(matrix, name, array.n_elements, square=not factored)
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
