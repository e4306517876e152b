"""The definition of correct: every operator from its formula, in plain torch, dense and in float64.

Matrices and volumes carry a batch axis; A stands for steering vectors, one row a point (:func:`steering`). All is
differentiable by autograd but the maxima and their suppression, of which nothing has a data-dependent shape: they are
the bodies of their operators where a device has no other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from risfast.geometry import SensorArray
from risfast.ops.peaks import box_limits, reject_bad_candidates, reject_nan, sphere_coordinates
from risfast.steering import Wavefront, steering_vectors


def steering(array: SensorArray, points: Tensor, wavefront: Wavefront = "spherical") -> Tensor:
    """Steering vectors at points (azimuth, elevation, range).

    points (..., 3) -> (..., N)
    """
    return steering_vectors(array, *points.double().unbind(-1), wavefront=wavefront, dtype=torch.complex128)


def loaded_inverse(R: Tensor, loading: Tensor | float = 1e-2) -> Tensor:
    """(R + delta I)^-1, delta = loading tr(R)/N.

    R (B, N, N) -> (B, N, N)
    """
    R, n = R.to(torch.complex128), R.shape[-1]
    delta = loading * R.diagonal(dim1=-2, dim2=-1).real.sum(-1) / n
    return torch.linalg.inv((R + R.mH) / 2 + delta[:, None, None] * torch.eye(n))


def analysis(Q: Tensor, A: Tensor) -> Tensor:
    """Quadratic forms a^H Q a.

    Q (B, N, N), A (..., N) -> (B, ...)
    """
    return torch.einsum("...n,bnm,...m->b...", A.conj(), Q.to(A.dtype), A).real


def analysis_factored(W: Tensor, A: Tensor) -> Tensor:
    """Quadratic forms of Q = W W^H, ||W^H a||^2.

    W (B, N, K), A (..., N) -> (B, ...)
    """
    return torch.einsum("bnk,...n->b...k", W.to(A.dtype).conj(), A).abs().square().sum(-1)


def synthesis(p: Tensor, A: Tensor) -> Tensor:
    """sum_g p_g a_g a_g^H.

    p (B, ...), A (..., N) -> (B, N, N)
    """
    return torch.einsum("bg,gn,gm->bnm", p.flatten(1).to(A.dtype), A.flatten(0, -2), A.flatten(0, -2).conj())


def capon(R: Tensor, A: Tensor, loading: Tensor | float = 1e-2) -> Tensor:
    """N / (a^H (R + delta I)^-1 a).

    R (B, N, N), A (..., N) -> (B, ...)
    """
    return A.shape[-1] / analysis(loaded_inverse(R, loading), A)


def capon_lowrank(F: Tensor, A: Tensor, loading: Tensor | float = 1e-2) -> Tensor:
    """Capon power of R = F F^H.

    F (B, N, K), A (..., N) -> (B, ...)
    """
    F = F.to(torch.complex128)
    return capon(F @ F.mH, A, loading)


def music(R: Tensor, A: Tensor, n_sources: int) -> Tensor:
    """N / ||U^H a||^2 with U the noise subspace of R.

    R (B, N, N), A (..., N) -> (B, ...)
    """
    noise = torch.linalg.eigh(R.to(A.dtype)).eigenvectors[..., : A.shape[-1] - n_sources]
    return A.shape[-1] / analysis_factored(noise, A)


def bartlett(R: Tensor, A: Tensor) -> Tensor:
    """a^H R a / N^2.

    R (B, N, N), A (..., N) -> (B, ...)
    """
    return analysis(R, A) / A.shape[-1] ** 2


def box_axes(low: Tensor, high: Tensor, points: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The fine grid of a box, corner to corner: azimuth, elevation and range, uniform in 1/range.

    low, high (3,)
    """
    ends = [(low[0], high[0]), (low[1], high[1]), (1 / low[2], 1 / high[2])]
    steps = [torch.linspace(0, 1, count, dtype=torch.float64) for count in points]
    azimuth, elevation, inverse = (a + (b - a) * step for (a, b), step in zip(ends, steps, strict=True))
    return azimuth, elevation, 1 / inverse


def refine(
    R: Tensor,
    array: SensorArray,
    low: Tensor,
    high: Tensor,
    points: Sequence[int],
    loading: float = 1e-2,
    wavefront: Wavefront = "spherical",
) -> tuple[Tensor, Tensor]:
    """The point of the fine grid of each box where the Capon power is highest, and that power.

    R (B, N, N), low, high (B, C, 3) -> (B, C, 3), (B, C)
    """
    position, power = torch.empty_like(low), torch.empty_like(low[..., 0])
    for box in itertools.product(*map(range, power.shape)):
        where = torch.cartesian_prod(*box_axes(low[box], high[box], points))
        power[box], best = capon(R[box[0], None], steering(array, where, wavefront), loading)[0].max(0)
        position[box] = where[best]
    return position, power


def _shifted(offset: int, size: int) -> tuple[slice, slice]:
    """Where a point and its neighbour ``offset`` steps on both lie inside an axis: (points, neighbours)."""
    if abs(offset) >= size:
        return slice(0, 0), slice(0, 0)
    return slice(max(0, -offset), size - max(0, offset)), slice(max(0, offset), size + min(0, offset))


def local_maxima_3d(
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


def nms_3d(
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
