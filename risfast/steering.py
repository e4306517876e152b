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
# and, for a search whose far field is 1/r = 0, of u.p and its derivatives along the angles [..., 6, N]:
#   paths(u.p, |p|^2, 1/r)  -> path, its gradient and its second derivatives


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


def _flat_paths(projection: Tensor, curvature: Tensor, inverse_range: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Path differences u.p - c / r and their derivatives; c = |p|^2 / 2 of Fresnel waves, 0 of planar ones."""
    along, d_az, d_el, d_az_az, d_el_el, d_az_el = projection.unbind(-2)
    zero = torch.zeros_like(along)
    first = torch.stack([d_az, d_el, -curvature.expand_as(along)], -2)
    return along - curvature * inverse_range, first, torch.stack([d_az_az, d_el_el, zero, d_az_el, zero, zero], -2)


def _spherical_paths(projection: Tensor, squared: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Path differences r - |r u - p| = m / (1 + q) and their derivatives."""
    # With s = 1/r, m = 2 u.p - s |p|^2 and q = |u - s p| = sqrt(1 - s m): nothing is divided by s, so that s = 0 is the
    # far field.
    along, d_az, d_el, d_az_az, d_el_el, d_az_el = projection.unbind(-2)
    beyond = along - s * squared
    m = along + beyond
    q = (1 - s * m).clamp_min(_NEAREST**2).sqrt()  # at an element the path has a corner
    one = 1 + q
    bend = m * beyond / q - squared * one
    d_s = bend / one.square()
    cube = s / q**3
    second = torch.stack(
        [
            d_az_az / q + cube * d_az.square(),
            d_el_el / q + cube * d_el.square(),
            (m * ((beyond / q).square() - squared) + 2 * bend * beyond / one) / (q * one.square()),
            d_az_el / q + cube * d_az * d_el,
            d_az * beyond / q**3,
            d_el * beyond / q**3,
        ],
        -2,
    )
    return m / one, torch.stack([d_az / q, d_el / q, d_s], -2), second


def _planar_paths(projection: Tensor, squared: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _flat_paths(projection, torch.zeros_like(squared), s)


def _fresnel_paths(projection: Tensor, squared: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _flat_paths(projection, squared / 2, s)


class _Functions(NamedTuple):
    """Of one wavefront; without an amplitude every element has 1."""

    phase: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    slopes: Callable[[Tensor, Tensor, Tensor], tuple[Tensor | float, Tensor]]
    paths: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
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


def phase_derivatives(
    coordinates: Tensor, positions: Tensor, wavenumber: float, wavefront: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Phase at (azimuth, elevation, 1/range), its gradient and its second derivatives aa, ee, ss, ae, as, es.

    coordinates (..., 3), positions (N, 3) -> (..., N), (..., 3, N), (..., 6, N)
    """
    sin_az, sin_el = coordinates[..., :2].sin().unbind(-1)
    cos_az, cos_el = coordinates[..., :2].cos().unbind(-1)
    zero = torch.zeros_like(sin_az)
    u = sin_az * cos_el, sin_el, cos_az * cos_el
    d_az = u[2], zero, -u[0]
    d_el = -sin_az * sin_el, cos_el, -cos_az * sin_el
    rows = [*u, *d_az, *d_el, -u[0], zero, -u[2], -u[0], -u[1], -u[2], d_el[2], zero, -d_el[0]]
    projection = torch.stack(rows, -1).unflatten(-1, (6, 3)) @ positions.mT  # [..., 6, N]
    squared = positions.square().sum(-1)
    phase, first, second = _functions(wavefront).paths(projection, squared, coordinates[..., 2:])
    return wavenumber * phase, wavenumber * first, wavenumber * second


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
