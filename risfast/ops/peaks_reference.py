"""The definition of correct for local maxima and non-maximum suppression: plain torch, on any device.

Nothing here has a data-dependent shape. Devices without a kernel of their own run these functions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def reject_nan(found: bool) -> None:
    """Refuse a volume that holds NaN."""
    if found:
        raise ValueError(
            "volume must not hold NaN, which has no order; replace NaN by -inf (never a maximum) "
            "or mend the spectrum that it came from"
        )


def reject_bad_candidates(nan_score: bool, bad_position: bool) -> None:
    """Refuse candidates that cannot be ranked or placed."""
    if nan_score:
        raise ValueError("score must not hold NaN, which has no order; give absent candidates the score -inf")
    if bad_position:
        raise ValueError(
            "position must be finite (a range may be +inf) wherever score is above -inf; it is not there. "
            "Give such candidates the score -inf, or mark them absent with valid"
        )


def _shifted(offset: int, size: int) -> tuple[slice, slice]:
    """Where a point and its neighbour ``offset`` steps on both lie inside an axis: (points, neighbours)."""
    if abs(offset) >= size:
        return slice(0, 0), slice(0, 0)
    return slice(max(0, -offset), size - max(0, offset)), slice(max(0, offset), size + min(0, offset))


def local_maxima_3d_reference(
    volume: Tensor, window: Sequence[int], k: int, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Local maxima by comparing every point with every point of its window.

    volume (B, G_az, G_el, G_r) -> index (B, k, 3), value (B, k), count (B,)
    """
    # A point p is kept iff no point q of its clipped window has value(q) > value(p), or value(q) = value(p) and a lower
    # linear index (i_az G_el + i_el) G_r + i_r. With the index broken down over the axes, q comes before p exactly if
    # the first non-zero of its offsets is negative.
    reject_nan(bool(volume.isnan().any()))
    floor = torch.tensor(-math.inf if threshold is None else threshold, dtype=torch.float64).to(volume)
    kept = (volume > -math.inf) & (volume > floor)
    for offset in itertools.product(*(range(-(size // 2), size // 2 + 1) for size in window)):
        if not any(offset):
            continue
        here, there = zip(*(_shifted(o, n) for o, n in zip(offset, volume.shape[1:], strict=True)), strict=True)
        point, neighbour = volume[(slice(None), *here)], volume[(slice(None), *there)]
        beaten = neighbour >= point if offset < (0, 0, 0) else neighbour > point
        kept[(slice(None), *here)] &= ~beaten
    return _best_k(volume, kept, k)


def _best_k(volume: Tensor, kept: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first k kept points of each scene by descending value; a stable sort leaves ties at the lowest index."""
    batch, _, n_el, n_r = volume.shape
    flat = torch.where(kept, volume, -math.inf).flatten(1)
    ordered, order = flat.sort(dim=1, descending=True, stable=True)
    filled = min(k, flat.shape[1])
    linear, best = order[:, :filled], ordered[:, :filled]
    present = best > -math.inf
    index = volume.new_full((batch, k, 3), -1, dtype=torch.int64)
    value = volume.new_full((batch, k), -math.inf)
    plane = max(n_el * n_r, 1)
    coordinates = torch.stack([linear // plane, linear // max(n_r, 1) % max(n_el, 1), linear % max(n_r, 1)], -1)
    index[:, :filled] = torch.where(present[..., None], coordinates, -1)
    value[:, :filled] = best
    return index, value, present.sum(1)


def sphere_coordinates(position: Tensor) -> Tensor:
    """What differences on the sphere are taken of: w cos(az / 2), w sin(az / 2) with w^2 = cos el, elevation, range.

    position (..., 3) -> (..., 4)
    """
    # The angle d between two directions obeys hav(d) = hav(el - el') + cos el cos el' hav(az - az'). The root of the
    # last term is a cross product of the first two coordinates: it knows no seam, and azimuths fade out at a pole.
    azimuth, elevation = position[..., :1].double(), position[..., 1:2].double()
    weight = elevation.cos().clamp_min(0).sqrt()
    half = azimuth / 2
    return torch.cat([weight * half.cos(), weight * half.sin(), position[..., 1:].double()], -1).to(position.dtype)


def box_limits(separation: Sequence[float], on_sphere: bool, dtype: torch.dtype) -> Tensor:
    """What the absolute differences in azimuth (on the sphere its cross product), elevation and range may be, [3]."""
    azimuth, *others = separation
    if on_sphere:
        azimuth = math.sin(azimuth / 2) if azimuth < math.pi else math.inf
    return torch.tensor([azimuth, *others], dtype=torch.float64, device="cpu").to(dtype)


def nms_3d_reference(
    position: Tensor, score: Tensor, separation: Sequence[float], k: int, on_sphere: bool
) -> tuple[Tensor, Tensor]:
    """Greedy non-maximum suppression, one kept candidate per step.

    position (B, P, 3), score (B, P) -> index (B, k), count (B,)
    """
    # Each step keeps the best candidate that is left (ties to the lowest index), then drops every candidate within
    # ``separation`` of it (inclusive) in all three coordinates, itself included. Two infinite ranges are equal, and
    # infinitely far from any other.
    present = score > -math.inf
    placed = position[..., :2].isfinite().all(-1) & (position[..., 2] > -math.inf)
    reject_bad_candidates(bool(score.isnan().any()), bool((~placed & present).any()))
    batch, candidates = score.shape
    index = score.new_full((batch, k), -1, dtype=torch.int64)
    limits = box_limits(separation, on_sphere, position.dtype).to(position.device)
    points = sphere_coordinates(position) if on_sphere else position
    left = present.clone()
    for slot in range(min(k, candidates)):
        best = torch.where(left, score, -math.inf).argmax(1, keepdim=True)
        found = left.gather(1, best)  # false for all once a scene has run out of candidates
        index[:, slot] = torch.where(found, best, -1)[:, 0]
        chosen = points.gather(1, best[..., None].expand(-1, -1, points.shape[-1]))
        difference = torch.where(points == chosen, 0.0, points - chosen)
        if on_sphere:
            turned = points[..., 1] * chosen[..., 0] - points[..., 0] * chosen[..., 1]
            difference = torch.cat([turned[..., None], difference[..., 2:]], -1)
        left &= ~((difference.abs() <= limits).all(-1) & found)
    return index, (index >= 0).sum(1)
