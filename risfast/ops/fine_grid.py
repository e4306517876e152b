"""The smallest quadratic form on a fine grid around every candidate, from a few Chebyshev nodes of each box."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from risfast.ops.descent import Geometry, form, steering
from risfast.ops.devices import on_host
from risfast.ops.interpolation import chebyshev_nodes, interpolation_matrix

__all__ = ["fine_grid_minimum"]

_TILE_VALUES = 1 << 17  # steering vector entries made at once


@lru_cache(maxsize=32)
def _axis(count: int, points: int) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes on [-1, 1] and the matrix from them to ``points`` uniform points."""
    nodes = chebyshev_nodes(-1.0, 1.0, count)
    return nodes, interpolation_matrix(nodes, -1.0, 1.0, torch.linspace(-1, 1, points, dtype=torch.float64)).float()


def fine_grid_minimum(
    low: Tensor, high: Tensor, matrix: Tensor, factored: bool, points: list[int], counts: list[int], geometry: Geometry
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
