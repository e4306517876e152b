"""Arrays, search grids, and the conversions between spherical and Cartesian coordinates.

Conventions (used everywhere): metres and radians; a source at (azimuth, elevation, range) stands at
``r * (sin az cos el, sin el, cos az cos el)``, so x is horizontal, y is up and z is the broadside of the surface.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from risfast.errors import ShapeError

# Positions closer to a lattice than this fraction of its spacing count as on it: far below any phase that matters
# (2e-6 rad at half a wavelength), far above the rounding of positions that were written to a file in float32.
_LATTICE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Lattice:
    """A uniform rectangular lattice that a set of elements fills completely.

    Attributes
    ----------
    n_h, n_v : int
        Elements along x and along y.
    spacing_h_m, spacing_v_m : float
        Spacing along x and along y in metres; 0 along a side with one element.
    order : tuple of int
        ``order[i_h * n_v + i_v]`` is the index, in the array's own order, of the element in column i_h and row i_v.
    """

    n_h: int
    n_v: int
    spacing_h_m: float
    spacing_v_m: float
    order: tuple[int, ...]


def _axis_steps(values: Tensor) -> tuple[Tensor, int, float] | None:
    """Index of each value on a uniform axis, the number of steps and the step; None if the axis is not uniform."""
    low, span = values.min(), float(values.max() - values.min())
    ordered = values.sort().values
    gaps = ordered[1:] - ordered[:-1]
    extent = float(values.abs().max())
    wide = gaps[gaps > max(span, extent) * _LATTICE_TOLERANCE]
    if wide.numel() == 0:
        return torch.zeros_like(values, dtype=torch.long), 1, 0.0
    count = round(span / float(wide.min())) + 1
    step = span / (count - 1)
    index = ((values - low) / step).round()
    if float(((values - low) - index * step).abs().max()) > _LATTICE_TOLERANCE * step:
        return None
    return index.long(), count, step


def find_lattice(positions_m: Tensor) -> Lattice | None:
    """Recognise a uniform planar (or linear) array parallel to the x-y plane, in any element order.

    positions_m (N, 3)
    """
    positions = positions_m.detach().double().cpu()
    n = positions.shape[0]
    aperture = float((positions - positions.mean(0)).abs().max())
    if float(positions[:, 2].abs().max()) > _LATTICE_TOLERANCE * max(aperture, 1e-12):
        return None
    horizontal, vertical = _axis_steps(positions[:, 0]), _axis_steps(positions[:, 1])
    if horizontal is None or vertical is None:
        return None
    (i_h, n_h, d_h), (i_v, n_v, d_v) = horizontal, vertical
    if n_h * n_v != n:
        return None
    cell = i_h * n_v + i_v
    if cell.unique().numel() != n:
        return None
    return Lattice(n_h, n_v, d_h, d_v, tuple(cell.argsort().tolist()))


REFERENCE_RANGES_M = (0.55, 0.85, 1.3, 2.0, 3.5, 6.0, 9.5)
REFERENCE_AZIMUTH_RAD = math.radians(60.0)
REFERENCE_ELEVATION_RAD = math.radians(30.0)
# Nearest range of a derived region, in apertures: closer, a source stands among the elements.
_NEAREST_APERTURES = 0.25
_EDGE = 1e-3  # part of an interval that counts as its end: an ascent stops a little before a bound
_FLAT = 1e-6  # cosine (or its distance from 1) that counts as upright or lying


def _frozen_tensor(values: Any, name: str, infinite: bool = False) -> Tensor:
    """A float64 CPU copy that the caller cannot change under us."""
    # as_tensor without a dtype would round Python floats to float32.
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
    tensor = tensor.detach().to(device="cpu", dtype=torch.float64).clone()
    if bool(tensor.isnan().any()) or not (infinite or bool(tensor.isfinite().all())):
        raise ValueError(f"{name} must be finite; it holds NaN or infinite values")
    return tensor


def _digest(*tensors: Tensor) -> int:
    """Hash of float64 contents, the same in every process."""
    content = hashlib.sha256()
    for tensor in tensors:
        plain = tensor + 0.0  # -0.0 is equal to 0.0
        content.update(repr(tuple(tensor.shape)).encode() + plain.contiguous().numpy().tobytes())
    return int.from_bytes(content.digest()[:7], "big")


@dataclass(frozen=True, eq=False)
class SensorArray:
    """An array of points that receive (or reflect), with known positions.

    Two arrays are equal where their positions and wavelength are.

    Parameters
    ----------
    positions_m : array_like, shape (N, 3)
        Element positions in metres; kept as a float64 tensor on the CPU.
    wavelength_m : float
        Wavelength in metres, > 0.

    Attributes
    ----------
    lattice : Lattice or None
        The uniform lattice that the elements fill, if they do; the ``lag`` method needs it.

    Raises
    ------
    ShapeError
        ``positions_m`` is not (N, 3) with N >= 1.
    ValueError
        A position is not finite, or the wavelength is not a positive number.
    """

    positions_m: Tensor
    wavelength_m: float
    lattice: Lattice | None = field(init=False)
    _digest: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check, copy and freeze."""
        positions = _frozen_tensor(self.positions_m, "positions_m")
        if positions.ndim != 2 or positions.shape[1] != 3 or positions.shape[0] < 1:
            mend = (
                "; it looks transposed, pass positions_m.T" if positions.ndim == 2 and positions.shape[0] == 3 else ""
            )
            raise ShapeError(f"positions_m must have shape (N, 3) with N >= 1, got {tuple(positions.shape)}{mend}")
        wavelength = float(self.wavelength_m)
        if not (math.isfinite(wavelength) and wavelength > 0):
            raise ValueError(f"wavelength_m must be a positive number of metres, got {self.wavelength_m!r}")
        object.__setattr__(self, "positions_m", positions)
        object.__setattr__(self, "wavelength_m", wavelength)
        object.__setattr__(self, "lattice", find_lattice(positions))
        object.__setattr__(self, "_digest", _digest(positions, torch.tensor(wavelength, dtype=torch.float64)))

    @classmethod
    def rectangular(
        cls, n_h: int = 12, n_v: int = 12, spacing_m: float = 0.15, wavelength_m: float = 0.3
    ) -> SensorArray:
        """Uniform planar array in the x-y plane, centred on the origin.

        Parameters
        ----------
        n_h, n_v : int
            Elements along x (horizontal) and along y (vertical). Element ``i_h * n_v + i_v`` stands at
            ``((i_h - (n_h - 1) / 2) * spacing, (i_v - (n_v - 1) / 2) * spacing, 0)``.
        spacing_m, wavelength_m : float
            Both in metres. The defaults are the reference surface: 12 x 12 at half a wavelength, 1 GHz.

        Returns
        -------
        SensorArray
            Of N = n_h n_v elements.

        Raises
        ------
        ValueError
            A count is below 1, or a length is not positive.
        """
        if n_h < 1 or n_v < 1:
            raise ValueError(f"n_h and n_v must be at least 1, got {n_h} and {n_v}")
        if not spacing_m > 0:
            raise ValueError(f"spacing_m must be positive, got {spacing_m!r}")
        x = (torch.arange(n_h, dtype=torch.float64) - (n_h - 1) / 2) * spacing_m
        y = (torch.arange(n_v, dtype=torch.float64) - (n_v - 1) / 2) * spacing_m
        gx, gy = torch.meshgrid(x, y, indexing="ij")
        return cls(torch.stack([gx, gy, torch.zeros_like(gx)], -1).reshape(-1, 3), wavelength_m)

    @classmethod
    def linear(cls, n: int, spacing_m: float, wavelength_m: float) -> SensorArray:
        """Uniform linear array along x, centred on the origin.

        Parameters
        ----------
        n : int
            Elements, >= 1.
        spacing_m, wavelength_m : float
            Both in metres, > 0.

        Returns
        -------
        SensorArray

        Raises
        ------
        ValueError
            ``n`` is below 1, or a length is not positive.
        """
        return cls.rectangular(n, 1, spacing_m, wavelength_m)

    @classmethod
    def circular(cls, n: int, radius_m: float, wavelength_m: float, plane: str = "xz") -> SensorArray:
        """Uniform circular array about the origin.

        Parameters
        ----------
        n : int
            Elements, >= 1; the first stands on the first axis of the plane.
        radius_m, wavelength_m : float
            Both in metres, > 0.
        plane : {"xz", "xy", "yz"}
            "xz" lies flat and looks round the horizon; "xy" looks ahead, as a planar array does.

        Returns
        -------
        SensorArray

        Raises
        ------
        ValueError
            ``n`` is below 1, a length is not positive, or an unknown plane.
        """
        if n < 1 or not radius_m > 0:
            raise ValueError(f"n must be at least 1 and radius_m positive, got {n} and {radius_m!r}")
        if plane not in ("xz", "xy", "yz"):
            raise ValueError(f"plane must be one of xz, xy, yz; got {plane!r}")
        angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        positions = torch.zeros(n, 3, dtype=torch.float64)
        positions[:, "xyz".index(plane[0])] = radius_m * angle.cos()
        positions[:, "xyz".index(plane[1])] = radius_m * angle.sin()
        return cls(positions, wavelength_m)

    def __eq__(self, other: object) -> bool:
        """Same positions and wavelength, to the last bit."""
        if not isinstance(other, SensorArray):
            return NotImplemented
        return self.wavelength_m == other.wavelength_m and torch.equal(self.positions_m, other.positions_m)

    def __hash__(self) -> int:
        """Of positions and wavelength; the same in every process."""
        return self._digest

    @property
    def n_elements(self) -> int:
        """Number of elements N."""
        return int(self.positions_m.shape[0])

    @property
    def wavenumber(self) -> float:
        """Wavenumber k = 2 pi / wavelength, in rad/m."""
        return 2 * math.pi / self.wavelength_m

    @property
    def aperture_m(self) -> float:
        """Largest distance between two elements, in metres."""
        return float(torch.pdist(self.positions_m).max()) if self.n_elements > 1 else 0.0

    @property
    def fraunhofer_distance_m(self) -> float:
        """2 D^2 / wavelength: the near field ends about here."""
        return 2 * self.aperture_m**2 / self.wavelength_m

    def __repr__(self) -> str:
        """Name the lattice where there is one."""
        shape = f"{self.lattice.n_h} x {self.lattice.n_v} lattice" if self.lattice else "irregular"
        return f"SensorArray({self.n_elements} elements, {shape}, wavelength {self.wavelength_m:g} m)"


PlanarArray = SensorArray  # the name of earlier versions


@dataclass(frozen=True)
class Region:
    """Where sources are looked for: an interval of each coordinate.

    Parameters
    ----------
    azimuth_rad, elevation_rad : pair of float
        Lowest and highest, in radians; equal ends fix the coordinate. An azimuth from -pi to pi is the full circle.
    range_m : pair of float
        Nearest and farthest, in metres; the farthest may be infinite, which is the far field.

    Raises
    ------
    ValueError
        An interval is inside out, not a number, empty, or looks like degrees.
    """

    azimuth_rad: tuple[float, float]
    elevation_rad: tuple[float, float]
    range_m: tuple[float, float]

    def __post_init__(self) -> None:
        """Check every interval."""
        for name, limit in (("azimuth_rad", 2 * math.pi), ("elevation_rad", math.pi / 2), ("range_m", math.inf)):
            try:
                low, high = (float(value) for value in getattr(self, name))
            except (TypeError, ValueError):
                raise ValueError(f"{name} must be a pair (low, high), got {getattr(self, name)!r}") from None
            if math.isnan(low) or math.isnan(high):
                raise ValueError(f"{name} must be a pair of numbers, got {(low, high)}")
            if max(abs(low), abs(high)) > limit + 1e-9:
                raise ValueError(
                    f"{name} must lie within +-{limit:.4g} rad, got ({low:g}, {high:g}); is it in degrees? "
                    "(math.radians converts)"
                )
            if low > high:
                raise ValueError(f"{name} is inside out: ({low:g}, {high:g}); the lower end comes first")
            object.__setattr__(self, name, (low, high))
        if self.azimuth_rad[1] - self.azimuth_rad[0] > 2 * math.pi + 1e-9:
            raise ValueError(f"azimuth_rad must span at most a full circle, got {self.azimuth_rad}")
        near = self.range_m[0]
        if not 0 < near < math.inf:
            raise ValueError(f"range_m must start at a finite range above 0 m, got {self.range_m}")

    @classmethod
    def of(cls, array: SensorArray) -> Region:
        """What an array can tell apart, from a quarter of its aperture out to the far field.

        The half-space before a planar array, the half circle before a line at the one elevation (or azimuth) that it
        cannot see, the circle at elevation 0 for an array that lies in the x-z plane, the sphere for a volume.

        Parameters
        ----------
        array : SensorArray

        Returns
        -------
        Region

        Raises
        ------
        ValueError
            A single point, which sees no direction; or a plane or line so tilted that its view is no interval of
            azimuth and elevation.
        """
        if not array.aperture_m > 0:
            raise ValueError("an array of a single point sees no direction: give the region")
        right, up, half, none = math.pi / 2, math.pi / 2, math.pi, (0.0, 0.0)
        span = (_NEAREST_APERTURES * array.aperture_m, math.inf)
        rank, axis = _extent(array.positions_m)
        if rank == 3:
            return cls((-half, half), (-up, up), span)
        x, y, z = axis.tolist()
        turned = math.atan2(x, z)  # azimuth of the axis
        if rank == 1:
            if abs(y) > 1 - _FLAT:
                return cls(none, (-up, up), span)
            # Both sides of a line look alike: the one that holds more of the front.
            left = turned - half if turned > half / 4 else turned
            return cls((left, left + half), none, span)
        if abs(y) > 1 - _FLAT:
            return cls((-half, half), none, span)
        if abs(y) < _FLAT:
            return cls((turned - right, turned + right), (-up, up), span)
        raise ValueError(
            "a plane that is tilted in elevation sees no interval of azimuth and elevation: give the region, or turn "
            "the coordinates so that the array stands upright or lies flat"
        )

    @property
    def inverse_range(self) -> tuple[float, float]:
        """(1/farthest, 1/nearest) in 1/metres; the first is 0 where the region reaches to the far field."""
        return 1 / self.range_m[1], 1 / self.range_m[0]

    @property
    def full_circle(self) -> bool:
        """Whether both ends of the azimuth are the same direction."""
        return self.azimuth_rad[1] - self.azimuth_rad[0] > 2 * math.pi - 1e-9

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Corners [3] of the region in (azimuth, elevation, 1/range), float64."""
        ends = torch.tensor([self.azimuth_rad, self.elevation_rad, self.inverse_range], dtype=torch.float64)
        return ends[:, 0].clone(), ends[:, 1].clone()

    def at_edge(self, position: Tensor) -> Tensor:
        """Which positions lie on an end of an interval: not fixed coordinates, not a full circle, not the far field.

        Parameters
        ----------
        position : real tensor, shape (..., 3)
            (azimuth, elevation, range) in radians and metres; a NaN is on no edge.

        Returns
        -------
        bool tensor, shape (...)
        """
        low, high = self.bounds()
        at = torch.cat([position[..., :2].double().cpu(), 1 / position[..., 2:].double().cpu()], -1)
        near = (high - low) * _EDGE
        lower, upper = at <= low + near, at >= high - near
        if self.full_circle:
            lower[..., 0] = upper[..., 0] = False
        for i, up in enumerate(self.elevation_rad):  # a pole is no edge: beyond it the sphere goes on
            if abs(up) > math.pi / 2 - 1e-9:
                (lower if i == 0 else upper)[..., 1] = False
        if self.range_m[1] == math.inf:
            lower[..., 2] = False
        return ((lower | upper) & (high > low)).any(-1)


def _extent(positions_m: Tensor) -> tuple[int, Tensor]:
    """Dimensions that the elements fill (1, 2 or 3), and the direction of the line or the normal of the plane [3]."""
    # The direction points to the right of a viewer on the z axis, the normal to the front (or right, or up).
    centred = positions_m - positions_m.mean(0)
    _, size, directions = torch.linalg.svd(centred, full_matrices=False)
    rank = int((size > 1e-6 * size[0]).sum())
    if rank == 2:
        axis = torch.linalg.cross(directions[0], directions[1])
        order = (2, 0, 1)
    else:
        axis, order = directions[0], (0, 2, 1)
    leading = next(float(axis[i]) for i in order if abs(float(axis[i])) > 1e-6)
    return rank, torch.where(axis.abs() > 1e-12, axis, 0.0) * (1 if leading > 0 else -1)


@dataclass(frozen=True, eq=False)
class SearchGrid:
    """A box grid in (azimuth, elevation, range), always in that order.

    Parameters
    ----------
    azimuth_rad, elevation_rad, range_m : array_like, 1D, strictly increasing
        Axes in radians, radians and metres; kept as float64 tensors on the CPU. Ranges are > 0; the last may be
        infinite, the far field.

    Raises
    ------
    ShapeError, ValueError
        An axis is empty, not 1D, not increasing, not finite, looks like degrees, or a range is not positive.
    """

    azimuth_rad: Tensor
    elevation_rad: Tensor
    range_m: Tensor

    def __post_init__(self) -> None:
        """Check, copy and freeze."""
        limits = {"azimuth_rad": 2 * math.pi, "elevation_rad": math.pi / 2, "range_m": math.inf}
        for name, limit in limits.items():
            axis = _frozen_tensor(getattr(self, name), name, infinite=name == "range_m")
            if axis.ndim != 1 or axis.numel() == 0:
                raise ShapeError(f"{name} must be a non-empty 1D axis, got shape {tuple(axis.shape)}")
            if not bool((axis[1:] > axis[:-1]).all()):
                raise ValueError(f"{name} must be strictly increasing; sort it and remove duplicates")
            if float(axis.abs().max()) > limit + 1e-9:
                raise ValueError(
                    f"{name} must lie within +-{limit:.4g} rad, got up to {float(axis.abs().max()):.4g}; "
                    "is it in degrees?"
                )
            object.__setattr__(self, name, axis)
        if float(self.range_m[0]) <= 0:
            raise ValueError(f"range_m must be positive, got {float(self.range_m[0]):g}")

    @classmethod
    def box(
        cls, n_azimuth: int, n_elevation: int, range_m: Any, azimuth_max_rad: float, elevation_max_rad: float
    ) -> SearchGrid:
        """Uniform axes, symmetric about broadside, on given range planes.

        Parameters
        ----------
        n_azimuth, n_elevation : int
            Points along each axis; a single one stands at 0.
        range_m : array_like, 1D, strictly increasing
            Range planes in metres, > 0; the last may be infinite.
        azimuth_max_rad, elevation_max_rad : float
            The axes run over +- these, in radians.

        Returns
        -------
        SearchGrid

        Raises
        ------
        ShapeError, ValueError
            As for the axes of :class:`SearchGrid`.
        """
        if (n_azimuth > 1 and not azimuth_max_rad > 0) or (n_elevation > 1 and not elevation_max_rad > 0):
            raise ValueError("azimuth_max_rad and elevation_max_rad must be positive where an axis has several points")
        azimuth = uniform_axis(-azimuth_max_rad, azimuth_max_rad, n_azimuth)
        return cls(azimuth, uniform_axis(-elevation_max_rad, elevation_max_rad, n_elevation), range_m)

    @classmethod
    def reference(cls) -> SearchGrid:
        """The inference grid: 361 x 181 x 7 over +-60 deg, +-30 deg and 0.55 .. 9.5 m."""
        return cls.box(361, 181, REFERENCE_RANGES_M, REFERENCE_AZIMUTH_RAD, REFERENCE_ELEVATION_RAD)

    @classmethod
    def training(cls) -> SearchGrid:
        """The training grid: 61 x 41 on the planes of the reference grid."""
        return cls.box(61, 41, REFERENCE_RANGES_M, REFERENCE_AZIMUTH_RAD, REFERENCE_ELEVATION_RAD)

    def __eq__(self, other: object) -> bool:
        """Same axes, to the last bit."""
        if not isinstance(other, SearchGrid):
            return NotImplemented
        return all(torch.equal(a, b) for a, b in zip(self._axes, other._axes, strict=True))

    def __hash__(self) -> int:
        """Of the axes; the same in every process."""
        return _digest(*self._axes)

    @property
    def _axes(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.azimuth_rad, self.elevation_rad, self.range_m

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G_az, G_el, G_r)."""
        return self.azimuth_rad.numel(), self.elevation_rad.numel(), self.range_m.numel()

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    def points(self) -> Tensor:
        """Every point as float64 (G_az, G_el, G_r, 3): azimuth, elevation, range."""
        return torch.stack(torch.meshgrid(self.azimuth_rad, self.elevation_rad, self.range_m, indexing="ij"), -1)

    def __repr__(self) -> str:
        """Shape and extent in degrees and metres."""
        az, el, r = self.azimuth_rad.rad2deg(), self.elevation_rad.rad2deg(), self.range_m
        return (
            f"SearchGrid({az.numel()} x {el.numel()} x {r.numel()}; azimuth {az[0]:g} .. {az[-1]:g} deg, "
            f"elevation {el[0]:g} .. {el[-1]:g} deg, range {r[0]:g} .. {r[-1]:g} m)"
        )


def uniform_axis(low: float, high: float, count: int, *, closed: bool = False) -> Tensor:
    """``count`` values from end to end, float64; exactly antisymmetric where the ends are."""
    # ``closed`` is a full circle: its ends are one direction, and the values lie half a step inside of them.
    if 1 <= count <= 1 + closed or (count > 1 and high == low):
        return torch.tensor([(low + high) / 2], dtype=torch.float64)
    if closed:
        count, inset = count - 1, (high - low) / (count - 1) / 2
        low, high = low + inset, high - inset
    middle, half = (low + high) / 2, (high - low) / 2
    steps = torch.arange(count, dtype=torch.float64) * 2 - (count - 1)
    return middle + steps / (count - 1) * half


def direction_cosines(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Unit vectors u = (sin az cos el, sin el, cos az cos el).

    -> (..., 3)
    """
    azimuth, elevation = torch.broadcast_tensors(azimuth, elevation)
    cos_el = elevation.cos()
    return torch.stack([azimuth.sin() * cos_el, elevation.sin(), azimuth.cos() * cos_el], -1)


def spherical_to_cartesian(position: Tensor) -> Tensor:
    """Points in space from azimuth, elevation and range.

    Parameters
    ----------
    position : real tensor, shape (..., 3)
        (azimuth, elevation, range) in radians and metres.

    Returns
    -------
    real tensor, shape (..., 3)
        (x, y, z) in metres; at an infinite range infinite along every axis that the direction is not square to.
    """
    direction = direction_cosines(position[..., 0], position[..., 1])
    return torch.where(direction == 0, direction, direction * position[..., 2:3])


def cartesian_to_spherical(xyz: Tensor) -> Tensor:
    """Azimuth, elevation and range of points in space; the inverse of :func:`spherical_to_cartesian`.

    Parameters
    ----------
    xyz : real tensor, shape (..., 3)
        (x, y, z) in metres.

    Returns
    -------
    real tensor, shape (..., 3)
        (azimuth, elevation, range) in radians and metres: azimuth in -pi .. pi, elevation in -pi/2 .. pi/2.
    """
    r = torch.linalg.vector_norm(xyz, dim=-1)
    elevation = torch.atan2(xyz[..., 1], torch.hypot(xyz[..., 0], xyz[..., 2]))
    return torch.stack([torch.atan2(xyz[..., 0], xyz[..., 2]), elevation, r], -1)


# Plain values: torch.load(weights_only=True) may rebuild them.
torch.serialization.add_safe_globals([Lattice, Region, SearchGrid, SensorArray])
