"""Newton steps down a quadratic form, for all points of all scenes at once."""

from __future__ import annotations

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


def newton_descend(
    landscape: Landscape, point: Tensor, step: Tensor, low: Tensor, high: Tensor, iterations: int, settled: float
) -> tuple[Tensor, Tensor]:
    """Newton steps on the form, each of at most two ``step``; never uphill, never out of the box.

    A point whose move is below ``settled`` steps makes no more.
    point, step, low, high (B, M, 3) -> point (B, M, 3), value (B, M)
    """
    # The form is the denominator of the Capon power: close to quadratic where its reciprocal is a needle.
    state = torch.cat([point, landscape.model(point)], -1)  # [B, M, 16]
    box = torch.cat([step, low, high], -1)
    reach, moving = torch.full_like(point[..., :1], _LONGEST_MOVE), torch.ones_like(point[..., 0], dtype=torch.bool)
    ended, place = state, torch.arange(point.shape[1], device=point.device).expand(point.shape[:2])
    for _ in range(iterations):
        point, value, gradient, hessian = state.split([3, 1, 3, 9], -1)
        step, low, high = box.split(3, -1)
        hessian = hessian.unflatten(-1, (3, 3)) * (step[..., None] * step[..., None, :])
        inverse = 1 / step.clamp_min(1e-300)
        move = _newton_move(gradient * step, hessian, (low - point) * inverse, (high - point) * inverse, reach)
        trial = torch.maximum(torch.minimum(point + step * move, high), low)
        there = torch.cat([trial, landscape.model(trial)], -1)
        # Whether a point still moves is its own affair, so that no result depends on what else is in the batch.
        better = (there[..., 3:4] < value) & moving[..., None]
        state = torch.where(better, there, state)
        reach = torch.where(better, (2 * reach).clamp_max(_LONGEST_MOVE), reach / 4)
        moving = moving & (move.abs().amax(-1) > settled)
        chosen = chosen_by(moving)
        if 2 * chosen.shape[1] <= moving.shape[1]:  # those that still move go on alone
            ended = put(ended, place, state)
            place, moving = place.gather(1, chosen), moving.gather(1, chosen)
            state, box, reach = (take(rows, chosen) for rows in (state, box, reach))
        if chosen.shape[1] == 0:
            break
    ended = put(ended, place, state)
    return ended[..., :3], ended[..., 3]
