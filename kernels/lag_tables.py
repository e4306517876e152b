"""What the lag kernels need of array and grid, made once in float64 and kept with a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops.domain import Domain, HalfAxis, antisymmetric
from risfast.steering import LAG_WAVEFRONTS

from .launch import check_extent


@dataclass(frozen=True, eq=False)
class LagTables:
    """Weights, cosines and sines of one array and one box grid, on one device and in one dtype."""

    n_h: int
    n_v: int
    n_azimuth: int
    n_elevation: int
    mirror_azimuth: bool
    mirror_elevation: bool
    order: Tensor  # (N,) ``order[i_h * n_v + i_v]`` is the element in column i_h and row i_v
    weights_h: Tensor  # (R, n_h, 2) Real and imaginary part of exp(-j k x^2 / 2 r)
    weights_v: Tensor  # (R, n_v, 2) Real and imaginary part of exp(-j k y^2 / 2 r)
    # (2 G_el, 2 (2 n_v - 1) From the interleaved coefficients of one row to its real part, then to minus its imaginary
    # part
    vertical: Tensor
    # (half G_el, n_h, half G_az) Of k D_h spacing sin(az) cos(el); on halves of axes that are their own mirror images
    cosines: Tensor
    # (half G_el, n_h, half G_az) Of k D_h spacing sin(az) cos(el); on halves of axes that are their own mirror images
    sines: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        return self.cosines.dtype

    @classmethod
    def build(cls, domain: Domain, dtype: torch.dtype, device: torch.device | str) -> LagTables:
        """Tables for a box in front of a uniform planar array."""
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        lattice = find_lattice(domain.positions)
        if lattice is None or not domain.box or domain.wavefront not in LAG_WAVEFRONTS:
            raise ValueError(
                "the lag method needs a box grid, a uniform planar array and the fresnel or planar wavefront; "
                "use method='chebyshev' or 'dense'"
            )
        azimuth = HalfAxis(domain.azimuth, antisymmetric(domain.azimuth))
        elevation = HalfAxis(domain.elevation, antisymmetric(domain.elevation))
        order = torch.tensor(lattice.order)
        p = domain.positions[order].reshape(lattice.n_h, lattice.n_v, 3)
        k = domain.wavenumber
        lag_h = torch.arange(lattice.n_h, dtype=torch.float64)
        lag_v = torch.arange(-(lattice.n_v - 1), lattice.n_v, dtype=torch.float64)
        vertical = k * lattice.spacing_v_m * lag_v * domain.elevation.sin()[:, None]  # [G_el, 2 n_v - 1]
        real_part = torch.stack([vertical.cos(), -vertical.sin()], -1).flatten(1)
        imaginary_part = torch.stack([vertical.sin(), vertical.cos()], -1).flatten(1)
        check_extent(tables=elevation.values.numel() * lattice.n_h * azimuth.values.numel())
        turn = k * lattice.spacing_h_m * elevation.values.cos()[:, None, None] * lag_h[:, None]
        turn = turn * azimuth.values.sin()  # [half G_el, n_h, half G_az]

        def stored(values: Tensor) -> Tensor:
            return values.to(device, dtype).contiguous()

        return cls(
            lattice.n_h,
            lattice.n_v,
            domain.azimuth.numel(),
            domain.elevation.numel(),
            azimuth.mirrored,
            elevation.mirrored,
            order.to(device, torch.int32),
            stored(_weights(domain, p[:, 0, 0])),
            stored(_weights(domain, p[0, :, 1])),
            stored(torch.cat([real_part, -imaginary_part])),
            stored(turn.cos()),
            stored(turn.sin()),
        )


def _weights(domain: Domain, coordinate: Tensor) -> Tensor:
    """exp(-j k x^2 / 2 r) on every plane as [R, n, 2]; 1 for the planar wavefront."""
    phase = torch.zeros(domain.range.numel(), coordinate.numel(), dtype=torch.float64)
    if domain.wavefront == "fresnel":
        phase = -domain.wavenumber * coordinate.square() / (2 * domain.range[:, None])
    return torch.stack([phase.cos(), phase.sin()], -1)
