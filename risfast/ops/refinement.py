"""Newton search for spectrum peaks: around every candidate of every scene at once, with analytic derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, cartesian_to_spherical, direction_cosines
from risfast.ops import checks
from risfast.ops.descent import chosen_by, newton_descend, put, take
from risfast.ops.devices import checks_values, constant_on, on_host
from risfast.ops.form import QuadraticForm
from risfast.ops.interpolation import chebyshev_nodes, interpolation_matrix
from risfast.ops.landscape import Landscape, SearchGeometry
from risfast.steering import WAVEFRONTS


def _form_of(matrix: Tensor, factored: bool, loading: float) -> QuadraticForm:
    return (QuadraticForm.capon_lowrank if factored else QuadraticForm.capon)(matrix, loading)


_WALK_PHASE_RAD = 0.35  # rms phase over the array that a step of the walk turns through
# After twelve one in 200 random scenes still stood on a slope, as a false source; after sixteen one in 1000.
_WALK_STEPS = 32
_MET, _ONWARD = 0.1, 0.05  # steps: searches that are closer have met; how far a stronger peak is approached
_RISE = 1e-6  # of the power there: more than rounding makes
_VALLEYS = 4  # of a box that are descended
_COARSE_STEPS, _FINE_STEPS = 6, 2  # in float32 and in float64
_COARSE_SETTLED, _FINE_SETTLED = 0.02, 5e-3  # steps: below, what the next Newton move would change does not matter
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


def _valleys(low: Tensor, high: Tensor, points: Sequence[int], landscape: Landscape) -> tuple[Tensor, Tensor, Tensor]:
    """The lowest valleys of the interpolated form in each box, which of them are there, and the spacing of the grid.

    low, high (B, C, 3) -> point (B, C, S, 3), present (B, C, S), spacing (B, C, 3)
    """
    centre, half = (high + low) / 2, (high - low) / 2
    counts = _node_counts(half.amax((0, 1)), *landscape.geometry[:2], points)
    fine = [min(2 * n - 1, most) for n, most in zip(counts, points, strict=True)]
    with on_host(low.device):  # kept between calls, so not made on the device that comes first
        tables = [_axis(n, m) for n, m in zip(counts, fine, strict=True)]
    axes = [centre[..., i, None] + half[..., i, None] * nodes.to(low.device) for i, (nodes, _) in enumerate(tables)]
    to_az, to_el, to_s = (weights.to(low.device) for _, weights in tables)
    q = to_az @ landscape.on_grids(axes).reshape(-1, counts[0], counts[1] * counts[2])
    q = to_el @ q.reshape(-1, counts[1], counts[2]) @ to_s.mT
    q = q.reshape(-1, *fine)
    q = torch.where(_lower_than_neighbours(q), q, math.inf).reshape(*low.shape[:2], -1)
    q, index = q.topk(min(_VALLEYS, q.shape[2]), largest=False)
    index = torch.stack(torch.unravel_index(index, tuple(fine)), -1)
    gaps = low.new_tensor([max(n - 1, 1) for n in fine])
    share = torch.where(low.new_tensor(fine) > 1, index / gaps, 0.5)
    present = q < math.inf
    present[..., 0] = True  # of forms that are NaN too
    return low[:, :, None] + (high - low)[:, :, None] * share, present, (high - low) / gaps


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
    exact = Landscape(matrix.to(torch.complex128), factored, geometry)
    if math.prod(points) == 1:
        middle = (low + high) / 2
        return newton_descend(exact, middle, (high - low) / 4, low, high, _COARSE_STEPS + _FINE_STEPS, _FINE_SETTLED)
    single = Landscape(matrix.to(torch.complex64), factored, geometry)
    start, present, step = _valleys(low, high, points, single)  # [B, C, S, 3]
    valleys = start.flatten(1, 2)
    place = chosen_by(present.flatten(1))
    owner = place // start.shape[2]
    sides = take(step, owner), take(low, owner), take(high, owner)
    found, _ = newton_descend(single, take(valleys, place), *sides, _COARSE_STEPS, _COARSE_SETTLED, owner)
    value = torch.full_like(valleys[..., :1], math.inf)
    value = put(value, place, exact.value(found)[..., None]).reshape(present.shape)
    best = torch.arange(low.shape[1], device=low.device) * start.shape[2] + value.argmin(2)
    found = take(put(valleys, place, found), best)
    return newton_descend(exact, found, step, low, high, _FINE_STEPS, _FINE_SETTLED)


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
    if start.numel() == 0:
        return start.clone()
    geometry = (positions.to(start.device), wavenumber, wavefront)
    step = torch.tensor(spacing, dtype=torch.float64, device=start.device).expand_as(start)
    low, high = low.to(start.device).expand_as(start), high.to(start.device).expand_as(start)
    single = Landscape(matrix.to(torch.complex64), factored, geometry)
    return newton_descend(single, start, step, low, high, _WALK_STEPS, _COARSE_SETTLED)[0]


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
    centred: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`walk_peaks` on a denominator that is there already; boxes that end at a bound are ``centred`` by cutting.

    position (B, C, 3), low, high (3,) -> position, low, high (B, C, 3)
    """
    lowest, highest, arms = _walk_box(array, low, high, circle_from)
    geometry = (array.positions_m, array.wavenumber, wavefront)
    box = (lowest, highest, arms.tolist())
    ended = torch.ops.risfast.walk(form.matrix, form.factored, _inverse_range(position), *box, *geometry)
    lowest, highest, arms = (constant_on(t, ended.device) for t in (lowest, highest, arms))
    # The walk runs in float32, which may end a rounding outside.
    ended = _wrapped(torch.maximum(torch.minimum(ended, highest), lowest), circle_from)
    if centred:
        arms = torch.minimum(arms, torch.minimum(ended - lowest, highest - ended))
    near = torch.maximum(ended - arms, lowest)
    far = torch.minimum(ended + arms, highest)
    corner_low = torch.cat([near[..., :2], 1 / far[..., 2:]], -1)
    corner_high = torch.cat([far[..., :2], 1 / near[..., 2:]], -1)
    return _inverse_range(ended), corner_low, corner_high


def _power(form: QuadraticForm, array: PlanarArray, value: Tensor) -> Tensor:
    # N - q cancels to nothing at a source without noise; no form is smaller than what float64 leaves of it.
    return form.scale[:, None] / value.clamp_min(math.ldexp(array.n_elements, -50))


def _walk_box(
    array: PlanarArray, low: Tensor, high: Tensor, circle_from: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of a walk in (azimuth, elevation, 1/range), and its steps, float64 [3]."""
    bounds = (_inverse_range(low), _inverse_range(high))
    lowest, highest = torch.minimum(*bounds), torch.maximum(*bounds)
    arms = torch.minimum(walk_spacing(array.positions_m, array.wavenumber), (highest - lowest) / 8)
    seam = torch.tensor([0.0 if circle_from is None else 2 * math.pi, 0.0, 0.0], dtype=torch.float64, device="cpu")
    return lowest - seam, highest + seam, arms


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


def on_slopes(
    form: QuadraticForm,
    array: PlanarArray,
    refined: Refined,
    low: Tensor,
    high: Tensor,
    wavefront: str,
    circle_from: float | None = None,
) -> Tensor:
    """Which refined places are no peaks: the power rises at once on the way to the next stronger one.

    low, high (3,) -> bool (B, C)
    """
    # Along its own plane an array sees no change with the angle at first, and near a pole none with azimuth: a search
    # that comes there stays, for the slope is too flat.
    position, device = _inverse_range(refined.position), refined.position.device
    geometry = (constant_on(array.positions_m, device), array.wavenumber, wavefront)
    landscape = Landscape(form.matrix.to(torch.complex128), form.factored, geometry)
    step = constant_on(walk_spacing(array.positions_m, array.wavenumber)[[1, 1, 1, 2]], device)
    place = torch.cat([direction_cosines(position[..., 0], position[..., 1]), position[..., 2:]], -1)
    rank = (-refined.power).argsort(dim=1, stable=True).argsort(1)
    apart = torch.cdist(place / step, place / step, compute_mode="donot_use_mm_for_euclid_dist")
    stronger = (rank[:, None] < rank[..., None]) & (apart > _MET)
    distance, nearest = torch.where(stronger, apart, math.inf).min(2)
    place = place + (_ONWARD / distance)[..., None] * (take(place, nearest) - place)
    angles = cartesian_to_spherical(place[..., :3])
    # The same turn of the circle, and not out of the region.
    azimuth = position[..., 0] + torch.remainder(angles[..., 0] - position[..., 0] + math.pi, 2 * math.pi) - math.pi
    onward = torch.stack([azimuth, angles[..., 1], place[..., 3]], -1)
    lowest, highest, _ = (constant_on(t, device) for t in _walk_box(array, low, high, circle_from))
    onward = torch.maximum(torch.minimum(onward, highest), lowest)
    return distance.isfinite() & (_power(form, array, landscape.value(onward)) > (1 + _RISE) * refined.power)


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
    return Refined(_wrapped(position, circle_from), _power(form, array, value))
