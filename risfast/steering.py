"""Steering vectors: the one place that holds the phase formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from risfast.geometry import PlanarArray, direction_cosines

# What the operators, simulation and likelihood take: phases alone, so that ||a||^2 = N everywhere.
Wavefront = Literal["spherical", "fresnel", "planar"]
WAVEFRONTS: tuple[str, ...] = get_args(Wavefront)
# Those whose phase is a polynomial of the element's position, which the lag method needs.
LAG_WAVEFRONTS = ("fresnel", "planar")
_NEAREST = 1e-3  # of the range: as close to an element as derivatives are taken


def check_wavefront(wavefront: str) -> None:
    """Refuse a wavefront that is none of the known ones."""
    if wavefront not in WAVEFRONTS:
        raise ValueError(f"wavefront must be one of {', '.join(WAVEFRONTS)}; got {wavefront!r}")


def farthest(dtype: torch.dtype) -> float:
    """A range whose square a dtype still holds: so far out nothing bends, and infinity is no different."""
    return float(torch.finfo(dtype).max ** 0.45)


# A wavefront is made of functions of u.p [..., N], |p|^2 [N] and r [..., 1]:
#   phase(u.p, |p|^2, r, k) -> [..., N]
#   slopes(u.p, |p|^2, r)   -> what d(u.p) is stretched by in a derivative along an angle, and the path along 1/r
#   amplitude(u.p, |p|^2, r) -> [..., N], relative to the origin
# and, for a search whose far field is 1/r = 0, of 2 u.p, |p|^2 and s = 1/r in any unit of length:
#   paths(2 u.p, |p|^2, s, unit) -> Paths, where s times a length is the number that ``unit`` makes of it


class Paths(NamedTuple):
    """Path t of each element, and what its derivatives along (azimuth, elevation, 1/range) are made of.

    With m = 2 u.p - s |p|^2 the gradient is g = (stretch m_az, stretch m_el, along_range), and
    t_ij = stretch m_ij + bend (s g_i g_j + t (g_i [j = s] + g_j [i = s])).
    """

    path: Tensor  # (..., N)
    stretch: Tensor  # (..., N)
    along_range: Tensor  # (..., N)
    bend: Tensor  # (..., N) or (..., 1)


_ON_ELEMENT = 1e-9  # of the range


def _planar_phase(projection: Tensor, squared: Tensor, r: Tensor, wavenumber: float) -> Tensor:
    return wavenumber * projection


def _planar_slopes(projection: Tensor, squared: Tensor, r: Tensor) -> tuple[Tensor | float, Tensor]:
    return 1.0, torch.zeros_like(projection)


def _fresnel_phase(projection: Tensor, squared: Tensor, r: Tensor, wavenumber: float) -> Tensor:
    return wavenumber * (projection - squared / (2 * r))


def _fresnel_slopes(projection: Tensor, squared: Tensor, r: Tensor) -> tuple[Tensor | float, Tensor]:
    return 1.0, (-squared / 2).expand_as(projection)


def _spherical_phase(projection: Tensor, squared: Tensor, r: Tensor, wavenumber: float) -> Tensor:
    # With d = |r u - p|, d - r = (|p|^2 - 2 r u.p) / (d + r). The naive difference d - r loses 4e-3 rad at 100 m in
    # float32; this form stays below 1e-5 rad.
    r = r.clamp_max(farthest(r.dtype))
    numerator = 2 * r * projection - squared  # r^2 - d^2
    distance = (r * r - numerator).clamp_min(0).sqrt()
    return wavenumber * numerator / (distance + r)


def _spherical_slopes(projection: Tensor, squared: Tensor, r: Tensor) -> tuple[Tensor | float, Tensor]:
    # With d^2 = r^2 - 2 r u.p + |p|^2: d_az = -r (du/daz).p / d, and r - d changes with r as 1 - (r - u.p) / d,
    # with 1/r as -r^2 times that. 1 - (r - u.p) / d is computed as (d^2 - (r - u.p)^2) / (d (d + r - u.p)).
    r = r.clamp_max(farthest(r.dtype))
    distance = (r * r - 2 * r * projection + squared).clamp_min(0).sqrt()
    distance = torch.maximum(distance, _ON_ELEMENT * r)  # where the path has a kink, its slope is finite
    # d^2 - (r - u.p)^2 = |p|^2 - (u.p)^2 is what bends the wavefront.
    bend = (squared - projection.square()).clamp_min(0) / (distance * (distance + r - projection).clamp_min(1e-300))
    return r / distance, -r * r * bend


def _spherical_amplitude(projection: Tensor, squared: Tensor, r: Tensor) -> Tensor:
    r = r.clamp_max(farthest(r.dtype))
    return r / (r * r - 2 * r * projection + squared).clamp_min(0).sqrt()


def _spherical_paths(twice: Tensor, squared: Tensor, s: Tensor, unit: float) -> Paths:
    # With s = 1/r, m = 2 u.p - s |p|^2 and q = |u - s p| = sqrt(1 - s m), the path r - |r u - p| is m / (1 + q), where
    # nothing is divided by s, so that s = 0 is the far field. Its derivatives are those of (1 - q) / s.
    m = torch.addcmul(twice, s, squared, value=-1)
    q = (1 - (unit * s) * m).clamp_min_(_NEAREST**2).sqrt_()  # at an element the path has a corner
    path, stretch = m / (1 + q), 0.5 / q
    along_range = stretch * torch.addcmul(-squared, path, path, value=unit)
    return Paths(path, stretch, along_range, 2 * unit * stretch)


def _fresnel_paths(twice: Tensor, squared: Tensor, s: Tensor, unit: float) -> Paths:
    path = torch.addcmul(twice, s, squared, value=-1) / 2
    return Paths(path, torch.full_like(path, 0.5), (-squared / 2).expand_as(path), torch.zeros_like(s))


def _planar_paths(twice: Tensor, squared: Tensor, s: Tensor, unit: float) -> Paths:
    return _fresnel_paths(twice, torch.zeros_like(squared), s, unit)


class _Functions(NamedTuple):
    """Of one wavefront; without an amplitude every element has 1."""

    phase: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    slopes: Callable[[Tensor, Tensor, Tensor], tuple[Tensor | float, Tensor]]
    paths: Callable[[Tensor, Tensor, Tensor, float], Paths]
    amplitude: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


_TABLE = {
    "spherical": _Functions(_spherical_phase, _spherical_slopes, _spherical_paths),
    "fresnel": _Functions(_fresnel_phase, _fresnel_slopes, _fresnel_paths),
    "planar": _Functions(_planar_phase, _planar_slopes, _planar_paths),
    "spherical_amplitude": _Functions(_spherical_phase, _spherical_slopes, _spherical_paths, _spherical_amplitude),
}


def _functions(wavefront: str) -> _Functions:
    if wavefront not in _TABLE:
        raise ValueError(f"wavefront must be one of {', '.join(_TABLE)}; got {wavefront!r}")
    return _TABLE[wavefront]


def steering_phase(
    positions_m: Tensor, direction: Tensor, range_m: Tensor, wavenumber: float, wavefront: str
) -> Tensor:
    """Phase k (r - d_n) of each element, in the dtype of its inputs.

    positions_m (N, 3), direction (..., 3), range_m (...) -> (..., N)
    """
    squared = positions_m.square().sum(-1)
    return _functions(wavefront).phase(direction @ positions_m.T, squared, range_m[..., None], wavenumber)


def steering_phase_gradient(
    positions_m: Tensor, azimuth_rad: Tensor, elevation_rad: Tensor, range_m: Tensor, wavenumber: float, wavefront: str
) -> tuple[Tensor, Tensor]:
    """Phase of :func:`steering_phase` and its derivatives along (azimuth, elevation, 1/range).

    positions_m (N, 3), azimuth_rad, elevation_rad, range_m (...) -> phase (..., N), gradient (..., 3, N)
    """
    functions = _functions(wavefront)
    direction = direction_cosines(azimuth_rad, elevation_rad)
    sin_az, cos_az = azimuth_rad.sin(), azimuth_rad.cos()
    sin_el, cos_el = elevation_rad.sin(), elevation_rad.cos()
    zero = torch.zeros_like(sin_az)
    along_azimuth = torch.stack([cos_az * cos_el, zero, -sin_az * cos_el], -1) @ positions_m.T
    along_elevation = torch.stack([-sin_az * sin_el, cos_el, -cos_az * sin_el], -1) @ positions_m.T
    place = direction @ positions_m.T, positions_m.square().sum(-1), range_m[..., None]
    stretch, along_range = functions.slopes(*place)
    gradient = torch.stack([stretch * along_azimuth, stretch * along_elevation, along_range], -2)
    return functions.phase(*place, wavenumber), wavenumber * gradient


def search_paths(wavefront: str) -> Callable[[Tensor, Tensor, Tensor, float], Paths]:
    """The paths of a wavefront, as functions of 2 u.p (..., N), |p|^2 (N), s (..., 1) and the unit of length."""
    return _functions(wavefront).paths


def steering_vectors(
    array: PlanarArray,
    azimuth_rad: Tensor,
    elevation_rad: Tensor,
    range_m: Tensor,
    *,
    wavefront: Wavefront | Literal["spherical_amplitude"] = "spherical",
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Near-field steering vectors a_n = exp(j k (r - d_n)), not normalised: ||a||^2 = N.

    Parameters
    ----------
    array : PlanarArray
        N elements.
    azimuth_rad, elevation_rad, range_m : real tensors
        Radians, radians and metres; broadcast against each other. Ranges > 0; infinity is the far field.
    wavefront : {"spherical", "fresnel", "planar", "spherical_amplitude"}
        ``spherical`` is exact in phase. ``fresnel`` is k (u.p - |p|^2 / (2 r)), the shortcut of the paper literature:
        on the reference surface (12 x 12, half a wavelength) it is wrong by more than 2 rad at 1 m; use it for parity
        with papers and for speed where ranges are large. ``planar`` is k u.p, the far field. ``spherical_amplitude`` is
        ``spherical`` with the amplitude r / d_n of a wave that spreads, relative to the origin: ||a||^2 is no longer N.
        Operators, simulation and localisation do not take it.
    dtype : torch.complex64 or torch.complex128
        Of the result; the phase is always computed in float64.

    Returns
    -------
    complex tensor, shape (..., N), on the device of ``azimuth_rad``

    Raises
    ------
    ValueError
        Unknown wavefront, a range that is not positive, a dtype that is not complex, or a source on an element where
        amplitudes grow without bound.
    """
    amplitude = _functions(wavefront).amplitude
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
    direction = direction_cosines(azimuth, elevation)
    phase = steering_phase(positions, direction, r, array.wavenumber, wavefront)
    if amplitude is None:
        modulus = torch.ones_like(phase)
    else:
        modulus = amplitude(direction @ positions.T, positions.square().sum(-1), r[..., None])
        if not bool(modulus.isfinite().all()):
            raise ValueError("a source stands on an element, where the amplitude of a spherical wave has no bound")
    return torch.polar(modulus, phase).to(dtype)
