"""Steering vectors: the one place that holds the phase formula."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from risfast.geometry import PlanarArray, direction_cosines

Wavefront = Literal["spherical", "fresnel", "planar"]
WAVEFRONTS: tuple[str, ...] = get_args(Wavefront)
# Those whose phase is a polynomial of the element's position, which the lag method needs.
LAG_WAVEFRONTS = ("fresnel", "planar")


def check_wavefront(wavefront: str) -> None:
    """Refuse a wavefront that is none of the known ones."""
    if wavefront not in WAVEFRONTS:
        raise ValueError(f"wavefront must be one of {', '.join(WAVEFRONTS)}; got {wavefront!r}")


def farthest(dtype: torch.dtype) -> float:
    """A range whose square a dtype still holds: so far out nothing bends, and infinity is no different."""
    return float(torch.finfo(dtype).max ** 0.45)


def steering_phase(
    positions_m: Tensor, direction: Tensor, range_m: Tensor, wavenumber: float, wavefront: str
) -> Tensor:
    """Phase k (r - d_n) of each element, in the dtype of its inputs.

    positions_m (N, 3), direction (..., 3), range_m (...) -> (..., N)
    """
    # With d = |r u - p|, d - r = (|p|^2 - 2 r u.p) / (d + r). The naive difference d - r loses 4e-3 rad at 100 m in
    # float32; this form stays below 1e-5 rad.
    projection = direction @ positions_m.T  # u.p  [..., N]
    if wavefront == "planar":
        return wavenumber * projection
    squared = positions_m.square().sum(-1)  # |p|^2  [N]
    r = range_m[..., None]  # [..., 1]
    if wavefront == "fresnel":
        return wavenumber * (projection - squared / (2 * r))
    if wavefront != "spherical":
        raise ValueError(f"wavefront {wavefront!r} has no phase")
    r = r.clamp_max(farthest(r.dtype))
    numerator = 2 * r * projection - squared  # r^2 - d^2
    distance = (r * r - numerator).clamp_min(0).sqrt()
    return wavenumber * numerator / (distance + r)


def steering_phase_gradient(
    positions_m: Tensor, azimuth_rad: Tensor, elevation_rad: Tensor, range_m: Tensor, wavenumber: float, wavefront: str
) -> tuple[Tensor, Tensor]:
    """Phase of :func:`steering_phase` and its derivatives along (azimuth, elevation, 1/range).

    positions_m (N, 3), azimuth_rad, elevation_rad, range_m (...) -> phase (..., N), gradient (..., 3, N)
    """
    # With d^2 = r^2 - 2 r u.p + |p|^2: d_az = -r (du/daz).p / d, and k (r - d) changes with r as k (1 - (r - u.p) / d),
    # with 1/r as -r^2 times that. 1 - (r - u.p) / d is computed as (d^2 - (r - u.p)^2) / (d (d + r - u.p)).
    direction = direction_cosines(azimuth_rad, elevation_rad)
    sin_az, cos_az = azimuth_rad.sin(), azimuth_rad.cos()
    sin_el, cos_el = elevation_rad.sin(), elevation_rad.cos()
    zero = torch.zeros_like(sin_az)
    along_azimuth = torch.stack([cos_az * cos_el, zero, -sin_az * cos_el], -1) @ positions_m.T
    along_elevation = torch.stack([-sin_az * sin_el, cos_el, -cos_az * sin_el], -1) @ positions_m.T
    phase = steering_phase(positions_m, direction, range_m, wavenumber, wavefront)
    squared = positions_m.square().sum(-1)
    if wavefront == "planar":
        gradient = torch.stack([along_azimuth, along_elevation, torch.zeros_like(phase)], -2)
        return phase, wavenumber * gradient
    if wavefront == "fresnel":
        gradient = torch.stack([along_azimuth, along_elevation, (-squared / 2).expand_as(phase)], -2)
        return phase, wavenumber * gradient
    r = range_m[..., None].clamp_max(farthest(range_m.dtype))
    projection = direction @ positions_m.T
    distance = (r * r - 2 * r * projection + squared).clamp_min(0).sqrt()
    ratio = r / distance
    # d^2 - (r - u.p)^2 = |p|^2 - (u.p)^2 is what bends the wavefront.
    bend = (squared - projection.square()).clamp_min(0) / (distance * (distance + r - projection).clamp_min(1e-300))
    gradient = torch.stack([ratio * along_azimuth, ratio * along_elevation, -r * r * bend], -2)
    return phase, wavenumber * gradient


def steering_vectors(
    array: PlanarArray,
    azimuth_rad: Tensor,
    elevation_rad: Tensor,
    range_m: Tensor,
    *,
    wavefront: Wavefront = "spherical",
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Near-field steering vectors a_n = exp(j k (r - d_n)), not normalised: ||a||^2 = N.

    Parameters
    ----------
    array : PlanarArray
        N elements.
    azimuth_rad, elevation_rad, range_m : real tensors
        Radians, radians and metres; broadcast against each other. Ranges > 0; infinity is the far field.
    wavefront : {"spherical", "fresnel", "planar"}
        ``spherical`` is exact. ``fresnel`` is k (u.p - |p|^2 / (2 r)), the shortcut of the paper literature: on the
        reference surface (12 x 12, half a wavelength) it is wrong by more than 2 rad at 1 m; use it for parity with
        papers and for speed where ranges are large. ``planar`` is k u.p, the far field.
    dtype : torch.complex64 or torch.complex128
        Of the result; the phase is always computed in float64.

    Returns
    -------
    complex tensor, shape (..., N), on the device of ``azimuth_rad``

    Raises
    ------
    ValueError
        Unknown wavefront, a range that is not positive, or a dtype that is not complex.
    """
    check_wavefront(wavefront)
    if not dtype.is_complex:
        raise ValueError(f"dtype must be complex64 or complex128, got {dtype}")
    azimuth, elevation, r = torch.broadcast_tensors(
        torch.as_tensor(azimuth_rad).double(),
        torch.as_tensor(elevation_rad).double(),
        torch.as_tensor(range_m).double(),
    )
    if r.numel() and not bool((r > 0).all()):
        raise ValueError("range_m must be positive")
    positions = array.positions_m.to(r.device)
    phase = steering_phase(positions, direction_cosines(azimuth, elevation), r, array.wavenumber, wavefront)
    return torch.polar(torch.ones_like(phase), phase).to(dtype)
