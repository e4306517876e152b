"""Newton steps down a quadratic form, for all points of all scenes at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from risfast.ops.landscape import Landscape

_LONGEST_MOVE = 2.0  # steps: beyond, a quadratic model says little
_SPRING = 1e-6  # least curvature that a step reckons with, of the largest


def _newton_move(gradient: Tensor, hessian: Tensor, low: Tensor, high: Tensor, reach: Tensor) -> Tensor:
    """Step [..., 3] towards the minimum of quadratic models, between walls [..., 3] that hold 0.

    Downhill along directions of negative curvature too, and along none of them farther than ``reach`` [..., 1].
    """
    # An axis whose wall the slope pushes against is held there.
    free = (torch.minimum(torch.maximum(-gradient, low), high) != 0).double()
    values, vectors = torch.linalg.eigh(hessian * free[..., None] * free[..., None, :])
    slopes = (vectors.mT @ (gradient * free)[..., None])[..., 0]
    # A flat direction (an axis of one point, a single element) gets a stiff spring instead of a division by zero.
    values = values.abs()
    spring = _SPRING * values.amax(-1, keepdim=True).clamp_min(1e-300)
    stiffness = torch.maximum(torch.maximum(values, spring), slopes.abs() / reach)
    move = (vectors @ (slopes / stiffness)[..., None])[..., 0]
    return torch.minimum(torch.maximum(-move, low), high)


def take(rows: Tensor, place: Tensor) -> Tensor:
    """Rows ``place`` (B, P) of each scene of (B, M, n)."""
    return rows.gather(1, place[..., None].expand(-1, -1, rows.shape[-1]))


def put(rows: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """The rows (B, M, n) with others (B, P, n) at ``place`` (B, P)."""
    return rows.scatter(1, place[..., None].expand_as(values), values)


def chosen_by(mask: Tensor) -> Tensor:
    """Indices [B, P] of those that a mask (B, M) chooses, padded by others to the number of the fullest scene."""
    return mask.byte().topk(int(mask.sum(1).max()), 1).indices


def _promised(gradient: Tensor, hessian: Tensor, move: Tensor) -> Tensor:
    """Twice the change of quadratic models over a move, (B, M)."""
    return ((2 * gradient + (hessian @ move[..., None])[..., 0]) * move).sum(-1)


def newton_descend(
    landscape: Landscape,
    point: Tensor,
    step: Tensor,
    low: Tensor,
    high: Tensor,
    iterations: int,
    settled: float,
    box: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Newton steps on the form, each of at most two ``step``; never uphill, never out of the box.

    A point whose move is below ``settled`` steps makes no more; of points with one number ``box`` (B, M), less than M,
    only the lowest matters.
    point, step, low, high (B, M, 3) -> point (B, M, 3), value (B, M)
    """
    # The form is the denominator of the Capon power: close to quadratic where its reciprocal is a needle.
    state = torch.cat([point, landscape.model(point)], -1)  # [B, M, 16]
    fixed = torch.cat([step, low, high], -1)
    reach, moving = torch.full_like(point[..., :1], _LONGEST_MOVE), torch.ones_like(point[..., 0], dtype=torch.bool)
    ended, lowest = state[..., :4], torch.full_like(point[..., 0], math.inf)
    place = torch.arange(point.shape[1], device=point.device).expand(point.shape[:2])
    for left in reversed(range(iterations)):
        point, value, gradient, hessian = state.split([3, 1, 3, 9], -1)
        step, low, high = fixed.split(3, -1)
        gradient, hessian = gradient * step, hessian.unflatten(-1, (3, 3)) * (step[..., None] * step[..., None, :])
        inverse = 1 / step.clamp_min(1e-300)
        move = _newton_move(gradient, hessian, (low - point) * inverse, (high - point) * inverse, reach)
        trial = torch.maximum(torch.minimum(point + step * move, high), low)
        if box is not None:
            # A point that twice the fall which its move promises would not make the lowest of its box is given up.
            there, floor = box.gather(1, place), value[..., 0] + _promised(gradient, hessian, move)
            lowest = lowest.scatter_reduce(1, there, value[..., 0], "amin")
            moving = moving & (floor <= lowest.gather(1, there))
        chosen = chosen_by(moving)
        if 4 * chosen.shape[1] <= 3 * moving.shape[1]:  # those that still move go on alone
            ended = put(ended, place, state[..., :4])
            place, moving = place.gather(1, chosen), moving.gather(1, chosen)
            state, fixed, reach, move, trial = (take(rows, chosen) for rows in (state, fixed, reach, move, trial))
        # Whether a point still moves is its own affair, so that no result depends on what else is in the batch.
        going = moving & (move.abs().amax(-1) > settled)
        last = left == 0 or not bool(going.any())
        there = landscape.value(trial)[..., None].double() if last else landscape.model(trial)
        better = (there[..., :1] < state[..., 3:4]) & moving[..., None]
        there = torch.cat([trial, there], -1)
        state = torch.where(better, there, state[..., : there.shape[-1]])
        if last:
            break
        reach = torch.where(better, (2 * reach).clamp_max(_LONGEST_MOVE), reach / 4)
        moving = going
    ended = put(ended, place, state[..., :4])
    return ended[..., :3], ended[..., 3]
