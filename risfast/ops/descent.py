"""Quadratic forms at points of their own for every candidate, and Newton steps down them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from risfast.geometry import direction_cosines
from risfast.ops.devices import on_host
from risfast.steering import steering_phase

__all__ = ["Geometry", "bending", "descend", "form", "steering", "walk_spacing"]

Geometry = tuple[Tensor, float, str]  # positions [N, 3], wavenumber, wavefront

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


def descend(
    point: Tensor,
    step: Tensor,
    low: Tensor,
    high: Tensor,
    matrix: Tensor,
    factored: bool,
    geometry: Geometry,
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
