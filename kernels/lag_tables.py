"""What the lag kernels need of array and grid, made once in float64 and kept with a plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops.domain import Domain, HalfAxis, antisymmetric
from risfast.ops.lag import horizontal_phase, lattice_weights, vertical_phase
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
        vertical = vertical_phase(domain, lattice, domain.elevation).mT.contiguous()  # [G_el, 2 n_v - 1]
        real_part = torch.stack([vertical.cos(), -vertical.sin()], -1).flatten(1)
        imaginary_part = torch.stack([vertical.sin(), vertical.cos()], -1).flatten(1)
        check_extent(tables=elevation.values.numel() * lattice.n_h * azimuth.values.numel())
        turn = horizontal_phase(domain, lattice, elevation.values, azimuth.values)  # [half G_el, n_h, half G_az]
        weights_h, weights_v = map(torch.view_as_real, lattice_weights(domain, lattice))

        def stored(values: Tensor) -> Tensor:
            return values.to(device, dtype).contiguous()

        return cls(
            lattice.n_h,
            lattice.n_v,
            domain.azimuth.numel(),
            domain.elevation.numel(),
            azimuth.mirrored,
            elevation.mirrored,
            torch.tensor(lattice.order).to(device, torch.int32),
            stored(weights_h),
            stored(weights_v),
            stored(torch.cat([real_part, -imaginary_part])),
            stored(turn.cos()),
            stored(turn.sin()),
        )
