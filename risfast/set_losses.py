"""Losses between sets of positions; ``risfast.losses`` offers them too.

Sources have no order: every function here pairs predictions with true sources before it compares, or compares each with
its nearest. True positions come as (B, K_max, 3) with a mask, as in :class:`risfast.data.Scenes`.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import direction_cosines

__all__ = ["angle_chamfer", "assign_sources", "check_sources", "mean_over_sources", "position_huber"]

_ENUMERATED_SLOTS = 5  # up to so many predictions all orders (at most 120) are tried at once, on any device
_SMALLEST_RANGE_M = 1e-3  # where the logarithm of a predicted range is cut off
_LARGEST_COST = 1e30  # stands for a cost that is not finite: the assignment must not fail where the loss will be NaN


def check_sources(position: Tensor, mask: Tensor, name: str = "position") -> None:
    """Check that positions and their mask belong together.

    Parameters
    ----------
    position : real tensor, shape (B, K, 3)
        Azimuth, elevation (radians), range (metres); values are not looked at.
    mask : bool tensor, shape (B, K)
        True where there is a source.
    name : str
        What messages call ``position``.

    Raises
    ------
    TypeError
        ``position`` is not real floating-point, or ``mask`` not bool.
    ShapeError
        A shape is another.
    """
    if not position.is_floating_point():
        raise TypeError(f"{name} must be a real floating-point tensor, got {position.dtype}")
    if position.ndim != 3 or position.shape[-1] != 3:
        raise ShapeError(f"{name} must have shape (B, K, 3): azimuth, elevation, range; got {tuple(position.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {mask.dtype}; pass mask.bool()")
    if mask.shape != position.shape[:2]:
        raise ShapeError(f"mask must have shape {tuple(position.shape[:2])} as {name} says, got {tuple(mask.shape)}")


def _check_prediction(predicted: Tensor, position: Tensor) -> None:
    if not predicted.is_floating_point():
        raise TypeError(f"predicted must be a real floating-point tensor, got {predicted.dtype}")
    if predicted.ndim != 3 or predicted.shape[-1] != 3 or predicted.shape[0] != position.shape[0]:
        raise ShapeError(
            f"predicted must have shape (B, P, 3) = ({position.shape[0]}, P, 3): azimuth, elevation, range; "
            f"got {tuple(predicted.shape)}"
        )


def mean_over_sources(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis of what is not masked. Masked values are not looked at, not even for their gradient.

    Parameters
    ----------
    values : real tensor, shape (..., K)
    mask : bool tensor, shape (..., K)
        True where there is a source.

    Returns
    -------
    real tensor, shape (...)
        0 where the mask is nowhere true.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum(-1) / mask.sum(-1).clamp_min(1)


@lru_cache(maxsize=32)
def _orders(slots: int, sources: int) -> Tensor:
    """Every way to give ``sources`` different slots, int64 (n, sources), in lexicographic order."""
    orders = list(itertools.permutations(range(slots), sources))
    return torch.tensor(orders, dtype=torch.int64).reshape(len(orders), sources)


def assign_sources(cost: Tensor, mask: Tensor) -> Tensor:
    """Give each true source a prediction of its own, at the least total cost.

    Parameters
    ----------
    cost : real tensor, shape (B, P, K)
        Cost of pairing prediction p with true source k, P >= K. No gradient flows through the assignment.
    mask : bool tensor, shape (B, K)
        True where there is a source.

    Returns
    -------
    int64 tensor, shape (B, K)
        Index of the prediction; -1 where masked.

    Raises
    ------
    ShapeError
        Fewer predictions than sources, or shapes that disagree.

    Notes
    -----
    H. W. Kuhn, "The Hungarian method for the assignment problem", 1955, through
    `scipy.optimize.linear_sum_assignment`; up to five predictions all orders are tried, without a loop over scenes.
    """
    if cost.ndim != 3 or mask.shape != (cost.shape[0], cost.shape[2]):
        raise ShapeError(
            f"cost (B, P, K) and mask (B, K) must belong together, got {tuple(cost.shape)} and {tuple(mask.shape)}"
        )
    slots, sources = cost.shape[1:]
    if slots < sources:
        raise ShapeError(
            f"{slots} predictions cannot be paired with up to {sources} sources; predict at least as many as K_max"
        )
    table = cost.detach().double().nan_to_num(_LARGEST_COST, _LARGEST_COST, -_LARGEST_COST)
    table = torch.where(mask[:, None, :], table, torch.zeros_like(table))
    if slots <= _ENUMERATED_SLOTS:
        orders = _orders(slots, sources).to(cost.device)
        # [B, n, K]: what each source pays under each order
        paid = table[:, orders, torch.arange(sources, device=cost.device)]
        chosen = orders[paid.sum(-1).argmin(1)]
    else:
        chosen = torch.stack([_hungarian(scene) for scene in table.cpu()]) if len(table) else mask.long()
        chosen = chosen.to(cost.device)
    return torch.where(mask, chosen, torch.full_like(chosen, -1))


def _hungarian(cost: Tensor) -> Tensor:
    """The row for each column of one (P, K) cost, P >= K."""
    row, column = linear_sum_assignment(cost.numpy())
    chosen = torch.empty(cost.shape[1], dtype=torch.int64)
    chosen[torch.as_tensor(column)] = torch.as_tensor(row)
    return chosen


def position_huber(
    predicted: Tensor,
    position: Tensor,
    mask: Tensor,
    *,
    scale: tuple[float, float, float] = (math.radians(5.0), math.radians(5.0), 0.2),
) -> Tensor:
    """Huber loss of azimuth, elevation and log range after the best pairing of predictions with true sources.

    For a pair, sum_c h(e_c / scale_c) with h(x) = x^2 / 2 up to |x| = 1 and |x| - 1/2 beyond, e = (azimuth error
    wrapped to +-pi, elevation error, ln(r / r_true)); then the mean over the
    true sources. Predictions left over cost nothing.

    Parameters
    ----------
    predicted : real tensor, shape (B, P, 3)
        Azimuth, elevation (radians), range (metres; the logarithm is cut off below 1 mm); P >= K_max.
    position : real tensor, shape (B, K_max, 3)
        The true ones.
    mask : bool tensor, shape (B, K_max)
        True where there is a source.
    scale : three positive floats
        (radians, radians, natural logarithm) where the loss turns from quadratic to linear; a coordinate of infinite
        scale does not count. The defaults are the tolerance of a hit of the reference system: 5 degrees, and 1 m at
        5 m.

    Returns
    -------
    real tensor, shape (B,)
        0 where every true source is predicted, and where there is none; 1 where, say, one coordinate of each is off by
        1.5 of its scale.

    Raises
    ------
    ShapeError, TypeError, ValueError
        Shapes or dtypes that do not belong together, fewer predictions than K_max, a scale that is not positive.

    Notes
    -----
    P. J. Huber, "Robust estimation of a location parameter", 1964; pairing as in :func:`assign_sources`.
    """
    check_sources(position, mask)
    _check_prediction(predicted, position)
    if len(scale) != 3 or not all(s > 0 for s in scale):
        raise ValueError(f"scale must be three positive numbers, got {scale!r}")
    truth = torch.where(mask[..., None], position, torch.ones_like(position)).to(predicted.dtype)
    here, there = _with_log_range(predicted)[:, :, None], _with_log_range(truth)[:, None]  # [B, P, 1, 3], [B, 1, K, 3]
    error = here - there
    turns = (error[..., 0].detach() / (2 * math.pi)).round()
    error = torch.stack([error[..., 0] - 2 * math.pi * turns, error[..., 1], error[..., 2]], -1)
    x = error / error.new_tensor(scale)
    cost = torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none").sum(-1)  # [B, P, K]
    chosen = assign_sources(cost, mask).clamp_min(0)
    return mean_over_sources(cost.gather(1, chosen[:, None, :])[:, 0], mask)


def _with_log_range(position: Tensor) -> Tensor:
    azimuth, elevation, r = position.unbind(-1)
    return torch.stack([azimuth, elevation, r.clamp_min(_SMALLEST_RANGE_M).log()], -1)


def angle_chamfer(predicted: Tensor, position: Tensor, mask: Tensor, *, predicted_mask: Tensor | None = None) -> Tensor:
    """Chamfer distance between the directions of two sets of sources.

    (mean over true of min over predicted + mean over predicted of min over true) / 2 of 1 - cos(angle between them).

    Parameters
    ----------
    predicted : real tensor, shape (B, P, 3)
        Azimuth, elevation in radians; the range is not looked at.
    position : real tensor, shape (B, K_max, 3)
        The true ones.
    mask : bool tensor, shape (B, K_max)
        True where there is a source.
    predicted_mask : bool tensor, shape (B, P), optional
        Which predictions count; all by default.

    Returns
    -------
    real tensor, shape (B,)
        0 where each direction of one set is in the other, 1 where all are 90 degrees apart; 0 where a set is empty.

    Raises
    ------
    ShapeError, TypeError
        Shapes or dtypes that do not belong together.

    Notes
    -----
    H. Fan, H. Su, L. Guibas, "A point set generation network for 3D object reconstruction", CVPR 2017. 1 - cos is taken
    as half the squared chord, which is smooth where directions meet and knows no wrap.
    """
    check_sources(position, mask)
    _check_prediction(predicted, position)
    present = torch.ones(predicted.shape[:2], dtype=torch.bool, device=mask.device)
    if predicted_mask is not None:
        check_sources(predicted, predicted_mask, "predicted")
        present = predicted_mask
    if predicted.shape[1] == 0 or position.shape[1] == 0:
        return predicted.new_zeros(len(predicted)) + 0 * predicted.sum((1, 2))
    here = _directions(predicted, present)
    there = _directions(position.to(predicted.dtype), mask)
    distance = (here[:, :, None] - there[:, None]).square().sum(-1) / 2  # [B, P, K]
    # 4 is beyond any distance, which is at most 2; an absent row or column is left out of its mean
    pair = present[:, :, None] & mask[:, None, :]
    distance = torch.where(pair, distance, torch.full_like(distance, 4.0))
    both = present.any(1) & mask.any(1)
    to_predicted = mean_over_sources(distance.amin(1), mask & both[:, None])
    to_true = mean_over_sources(distance.amin(2), present & both[:, None])
    return (to_predicted + to_true) / 2


def _directions(position: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors (B, K, 3); of absent sources some direction, whatever their rows hold."""
    angle = torch.where(mask[..., None], position[..., :2], torch.zeros_like(position[..., :2]))
    return direction_cosines(angle[..., 0], angle[..., 1])
