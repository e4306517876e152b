"""The form on the nodes of boxes by the lag method, for planar lattices under Fresnel or planar waves.

As on a map (:mod:`risfast.ops.lag`), the form is a trigonometric polynomial whose coefficients depend on the range
alone. They are band-limited in 1/range: made on a few nodes for all boxes, and interpolated.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops.domain import Domain
from risfast.ops.interpolation import chebyshev_nodes, interpolation_matrix
from risfast.ops.lag import LagBox

_SPARE_NODES = 10  # beyond the bandwidth: Bessel functions of 12 fall to 1e-4 after nine more orders


def _unit(phase: Tensor) -> Tensor:
    return torch.complex(phase.cos(), phase.sin()).to(torch.complex64)


@lru_cache(maxsize=8)
def _is_lattice(positions: bytes) -> bool:
    return find_lattice(_positions(positions)) is not None


def _positions(kept: bytes) -> Tensor:
    return torch.frombuffer(bytearray(kept), dtype=torch.float64).reshape(-1, 3)


def is_lattice(positions: Tensor) -> bool:
    """Whether elements (N, 3) form a lattice that the lag method takes; remembered."""
    return _is_lattice(positions.numpy().tobytes())


@lru_cache(maxsize=2)
def _between(kept: bytes, wavenumber: float, wavefront: str, far: float, near: float) -> tuple[Tensor, LagBox]:
    """Nodes between two ends of 1/range, and the lag method on them."""
    positions = _positions(kept)
    spread = positions.square().sum(1).aminmax()
    turn = wavenumber * float(spread.max - spread.min) * (near - far) / 4 if wavefront == "fresnel" else 0.0
    nodes = chebyshev_nodes(far, near, math.ceil(turn) + _SPARE_NODES if turn > 0 else 1)
    ahead = torch.zeros(1, dtype=torch.float64)
    return nodes, LagBox(Domain(positions, wavenumber, wavefront, ahead, ahead, 1 / nodes, box=False), keep=False)


def lag_values(
    matrix: Tensor, positions: Tensor, wavenumber: float, wavefront: str, axes: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """The form a^H Q a on grids of (azimuth, elevation, 1/range), float32.

    matrix (B, N, N), axes (B, C, A), (B, C, E), (B, C, S) on the CPU -> (B, C, A, E, S)
    """
    azimuth, elevation, s = axes
    far, near = float(s.min()), float(s.max())
    nodes, box = _between(positions.numpy().tobytes(), wavenumber, wavefront, far, near)
    lattice, coefficients = (
        box.lattice,
        box.coefficients(matrix.to(torch.complex128)).to(torch.complex64),
    )  # [B, nodes, n_h, 2 n_v - 1]
    to_s = interpolation_matrix(nodes, far, near, s.flatten()).float().unflatten(0, (len(s), -1))
    by_lag = torch.view_as_complex(
        (to_s @ torch.view_as_real(coefficients).flatten(2)).unflatten(2, (lattice.n_h, -1, 2))
    ).unflatten(1, s.shape[1:])  # [B, C, S, n_h, 2 n_v - 1]
    lag_h, lag_v = torch.arange(lattice.n_h), torch.arange(1 - lattice.n_v, lattice.n_v)
    vertical = _unit(wavenumber * lattice.spacing_v_m * elevation.sin()[..., None] * lag_v)  # [B, C, E, 2 n_v - 1]
    sideways = azimuth.sin()[..., None, :] * elevation.cos()[..., None]
    horizontal = _unit(wavenumber * lattice.spacing_h_m * sideways[..., None] * lag_h)  # [B, C, E, A, n_h]
    by_column = by_lag.flatten(2, 3) @ vertical.mT  # [B, C, S n_h, E]
    by_column = by_column.unflatten(2, (-1, lattice.n_h)).permute(0, 1, 4, 3, 2)  # [B, C, E, n_h, S]
    return (horizontal @ by_column).real.transpose(2, 3)
