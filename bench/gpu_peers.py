"""The same maps in plain torch on the device: with the whole steering matrix, in chunks, and compiled chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bench import peers
from risfast.geometry import PlanarArray, SearchGrid

_CHUNK = 1 << 15


def points_of(grid: SearchGrid, device: torch.device) -> Tensor:
    """Every point, plane by plane, float32 [R G, 3]."""
    az, el, r = (axis.to(device, torch.float32) for axis in (grid.azimuth_rad, grid.elevation_rad, grid.range_m))
    r, az, el = torch.meshgrid(r, az, el, indexing="ij")
    return torch.stack([az, el, r], -1).reshape(-1, 3)


def _steering(points: Tensor, positions: Tensor, wavelength_m: float, wavefront: str) -> tuple[Tensor, Tensor]:
    """Real and imaginary part [g, N], float32."""
    phase = peers.phase(peers.direction(points), points[:, 2], positions, wavelength_m, wavefront)
    return phase.cos(), phase.sin()


def _form(points: Tensor, positions: Tensor, wavelength_m: float, wavefront: str, matrix: Tensor) -> Tensor:
    """||W^H a||^2 [B, g] of W [N, B, K, 2] real: two real products."""
    re, im = _steering(points, positions, wavelength_m, wavefront)
    n, b = matrix.shape[:2]
    w_re, w_im = (matrix[..., i].reshape(n, -1) for i in (0, 1))
    inner_re, inner_im = re @ w_re + im @ w_im, im @ w_re - re @ w_im
    return (inner_re.square() + inner_im.square()).reshape(len(points), b, -1).sum(-1).T


@lru_cache(maxsize=1)
def _compiled_form() -> Callable[..., Tensor]:
    return torch.compile(_form, fullgraph=True, dynamic=False)


def formulation(
    kind: str, array: PlanarArray, grid: SearchGrid, wavefront: str, power: Callable[[Tensor], Tensor], device: Any
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A call from W [B, N, K] to (map, plane), q = ||W^H a||^2.

    Parameters
    ----------
    kind : {"materialised", "chunked", "compiled"}
        The steering matrix of all points, made in every call as in most published code; the same in chunks that bound
        the memory; and those compiled by torch.compile.
    power : from q [B, g] to power
    """
    points, positions = points_of(grid, device), array.positions_m.to(device, torch.float32)
    n_az, n_el, n_r = grid.shape
    whole = math.prod(grid.shape)
    chunk = whole if kind == "materialised" else min(_CHUNK, whole)
    form = _compiled_form() if kind == "compiled" else _form
    # The last chunk starts earlier instead of being shorter: one shape, one compilation.
    starts = [min(start, whole - chunk) for start in range(0, whole, chunk)]

    def call(factor: Tensor) -> tuple[Tensor, Tensor]:
        matrix = torch.view_as_real(factor).permute(1, 0, 2, 3).contiguous()
        volume = torch.empty(factor.shape[0], whole, device=factor.device)
        for start in starts:
            part = slice(start, start + chunk)
            volume[:, part] = power(form(points[part], positions, array.wavelength_m, wavefront, matrix))
        best, plane = volume.reshape(-1, n_r, n_az, n_el).max(1)
        return best, plane.int()

    return call
