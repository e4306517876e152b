"""Arrays, search grids, and the conversions between spherical and Cartesian coordinates.

Conventions (used everywhere): metres and radians; a source at (azimuth, elevation, range) stands at
``r * (sin az cos el, sin el, cos az cos el)``, so x is horizontal, y is up and z is the broadside of the surface.
"""

from __future__ import annotations

import hashlib
import math
import operator
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
_NEAREST_OF_BOX = 1e-2  # nearest range, of the farthest, in a box that holds the origin
_BOX_MARGIN = 0.02  # of a side of a box, beyond which a source is outside
_EDGE = 1e-3  # part of an interval that counts as its end: an ascent stops a little before a bound
_FLAT = 1e-6  # cosine (or its distance from 1) that counts as upright or lying
_LOBE_DIRECTIONS = 61  # along each angle of a region that is looked at for grating lobes
_FOLD_RAD = 1e-6  # an end of a region this close to a mirror plane or a pole is there
_OFF_FOLD = 1e-4  # part of an interval that searches keep from an end that lies in a mirror plane


def _frozen_tensor(values: Any, name: str, infinite: bool = False) -> Tensor:
    """A float64 CPU copy that the caller cannot change under us."""
    if "complex" in str(getattr(values, "dtype", "")):
        raise TypeError(f"{name} must hold real numbers, got complex ones")
    # as_tensor without a dtype would round Python floats to float32.
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
    tensor = tensor.detach().to(device="cpu", dtype=torch.float64).clone()
    if bool(tensor.isnan().any()) or not (infinite or bool(tensor.isfinite().all())):
        raise ValueError(f"{name} must be finite; it holds NaN or infinite values")
    return tensor


def whole_count(value: Any, name: str) -> int:
    """A count as it was given, if it is a whole number."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return operator.index(value)


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
        n_h, n_v = whole_count(n_h, "n_h"), whole_count(n_v, "n_v")
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
        n = whole_count(n, "n")
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


BoxLimits = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Limits of x, y and z in metres."""


@dataclass(frozen=True)
class Region:
    """Where sources are looked for: an interval of each coordinate.

    Parameters
    ----------
    azimuth_rad, elevation_rad : pair of float
        Lowest and highest, in radians; equal ends fix the coordinate. An azimuth from -pi to pi is the full circle.
    range_m : pair of float
        Nearest and farthest, in metres; the farthest may be infinite, which is the far field.
    box : ((float, float), (float, float), (float, float)), optional
        Limits of x, y and z in metres that hold besides; see :meth:`box_m`.

    Raises
    ------
    ValueError
        An interval is inside out, not a number, empty, or looks like degrees.
    """

    azimuth_rad: tuple[float, float]
    elevation_rad: tuple[float, float]
    range_m: tuple[float, float]
    box: BoxLimits | None = None

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
        if self.box is not None:
            object.__setattr__(self, "box", _checked_box(self.box))

    @classmethod
    def box_m(cls, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Region:
        """A box in space, such as a room or a street, in the coordinates of the array's elements.

        The intervals are the smallest that hold it, and are what is searched. A source outside of the box is left out
        of the answer, and none inside is made of it; within a fiftieth of a side of a face it is kept, at the edge.

        Parameters
        ----------
        x, y, z : pair of float
            Lowest and highest, in metres.

        Returns
        -------
        Region
            Of a box with the origin inside, from a hundredth of its farthest corner on.

        Raises
        ------
        ValueError
            A pair is no interval.
        """
        box = _checked_box((x, y, z))
        corners = torch.cartesian_prod(*(torch.tensor(side, dtype=torch.float64) for side in box))
        across = corners[:, [0, 2]]
        nearest = torch.tensor([min(max(0.0, low), high) for low, high in box], dtype=torch.float64)
        far = float(corners.norm(dim=1).max())
        near = max(float(nearest.norm()), _NEAREST_OF_BOX * far)
        closest, farthest = float(nearest[[0, 2]].norm()), float(across.norm(dim=1).max())
        low, high = box[1]
        elevation = (
            math.atan2(low, closest if low < 0 else farthest),
            math.atan2(high, closest if high > 0 else farthest),
        )
        azimuth = (-math.pi, math.pi)
        if closest > 0:  # less than half a circle about the nearest point
            middle = math.atan2(float(nearest[0]), float(nearest[2]))
            turned = torch.atan2(across[:, 0], across[:, 1]) - middle
            turned = torch.remainder(turned + math.pi, 2 * math.pi) - math.pi
            azimuth = (middle + float(turned.min()), middle + float(turned.max()))
        return cls(azimuth, elevation, (near, far), box)

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
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The intervals by their names."""
        return {"azimuth_rad": self.azimuth_rad, "elevation_rad": self.elevation_rad, "range_m": self.range_m}

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
            On a face of the box, or outside of it, too.
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
        ended = ((lower | upper) & (high > low)).any(-1)
        if self.box is not None:
            place = spherical_to_cartesian(position.double().cpu())
            low, high = torch.tensor(self.box, dtype=torch.float64).unbind(1)
            near = (high - low) * _EDGE
            ended |= ((place <= low + near) | (place >= high - near)).any(-1)
        return ended

    def holds(self, position: Tensor) -> Tensor:
        """Which positions are in the box, or so little outside of it that they are at its edge; all without one.

        Parameters
        ----------
        position : real tensor, shape (..., 3)
            (azimuth, elevation, range) in radians and metres; one without a range is held.

        Returns
        -------
        bool tensor, shape (...)
        """
        if self.box is None:
            return torch.ones_like(position[..., 0], dtype=torch.bool)
        place = spherical_to_cartesian(position.double())
        low, high = torch.tensor(self.box, dtype=torch.float64, device=place.device).unbind(1)
        margin = (high - low) * _BOX_MARGIN
        return ~((place < low - margin) | (place > high + margin)).any(-1)


def _checked_box(box: Any) -> BoxLimits:
    """Limits of x, y and z as pairs of numbers."""
    sides = []
    for name, side in zip("xyz", tuple(box), strict=True):
        try:
            low, high = (float(value) for value in side)
        except (TypeError, ValueError):
            raise ValueError(f"{name} of a box must be a pair (low, high) of metres, got {side!r}") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{name} of a box must be a finite interval, the lower end first, got ({low:g}, {high:g})")
        sides.append((low, high))
    return sides[0], sides[1], sides[2]


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


def alias_wavelength(array: SensorArray) -> float:
    """Shortest wavelength without grating lobes within +-90 degrees: twice the spacing.

    Parameters
    ----------
    array : SensorArray

    Returns
    -------
    float
        In metres; 0 of a single element. Of a lattice it is twice the larger spacing, which is exact. Of an irregular
        array it is twice the least distance between two elements, a rule of thumb: below it every pair has lobes,
        though those of pairs that differ do not add up to whole ones.
    """
    if array.n_elements < 2:
        return 0.0
    lattice = array.lattice
    if lattice is not None:
        return 2 * max(lattice.spacing_h_m, lattice.spacing_v_m)
    return 2 * float(torch.pdist(array.positions_m).min())


def most_sources(array: SensorArray) -> int:
    """How many independent sources a covariance of the array can tell apart at the most.

    Parameters
    ----------
    array : SensorArray

    Returns
    -------
    int
        N - 1 of N elements; of a line as many as there are different distances between two elements, which can be more.
    """
    n = array.n_elements
    if n < 2 or _extent(array.positions_m)[0] > 1:
        return n - 1
    distances = torch.pdist(array.positions_m).sort().values
    return 1 + int((distances.diff() > _LATTICE_TOLERANCE * distances[-1]).sum())


def ambiguities(array: SensorArray, region: Region) -> tuple[str, ...]:
    """What an array cannot tell apart, in sentences; where the region leaves it open.

    Parameters
    ----------
    array : SensorArray
    region : Region

    Returns
    -------
    tuple of str
        The cone about a line, the mirror image in a plane, the grating lobes of elements that stand more than half a
        wavelength apart; empty for a volume.
    """
    if not array.aperture_m > 0:
        return ("a single element sees no direction",)
    said = []
    rank, axis = _extent(array.positions_m)
    flat = abs(float(axis[1])) > 1 - _FLAT
    if rank == 1:
        said.append(
            "the array lies on a line: it tells the angle to the line, and the range; each source may as well be "
            "anywhere on the circle about the line"
        )
    elif rank == 2 and flat and region.elevation_rad == (0.0, 0.0):
        said.append(
            "the array lies flat, and sources are looked for at its own height: of one above or below only the azimuth "
            "is to be believed; a region with elevations from 0 up finds it"
        )
    elif rank == 2:
        said.append(
            "the array lies in a plane: each source may as well be at its mirror image "
            + ("below" if flat else "behind it")
        )
    if _has_grating_lobes(array, region):
        shortest = alias_wavelength(array)
        said.append(
            f"the elements stand {shortest / 2:.3g} m apart or more, and the wavelength is {array.wavelength_m:.3g} m: "
            "a source may be seen in several directions (grating lobes); wavelengths from "
            f"{shortest:.3g} m on have none"
        )
    return tuple(said)


def _has_grating_lobes(array: SensorArray, region: Region) -> bool:
    """Whether two directions of the region look alike to every pair of neighbours."""
    if array.n_elements < 2 or alias_wavelength(array) <= array.wavelength_m * (1 + _LATTICE_TOLERANCE):
        return False
    azimuth, elevation = (
        torch.linspace(low, high, _LOBE_DIRECTIONS, dtype=torch.float64)
        for low, high in (region.azimuth_rad, region.elevation_rad)
    )
    path = direction_cosines(azimuth[:, None], elevation).flatten(0, 1) @ _closest_pairs(array).mT
    # Along a pair, two directions look alike whose paths differ by a wavelength.
    alike = path.amax(0) - path.amin(0) >= array.wavelength_m
    return bool(alike.any() if array.lattice is not None else alike.all())


def _closest_pairs(array: SensorArray) -> Tensor:
    """From one element to the next, along each axis of a lattice; of an irregular array from all to their nearest.

    -> (P, 3)
    """
    lattice = array.lattice
    if lattice is not None:
        steps = torch.tensor([[lattice.spacing_h_m, 0.0, 0.0], [0.0, lattice.spacing_v_m, 0.0]], dtype=torch.float64)
        return steps[steps.sum(1) > 0]
    gap = array.positions_m[:, None] - array.positions_m
    distance = gap.norm(dim=-1).fill_diagonal_(math.inf)
    return gap[torch.arange(array.n_elements), distance.argmin(1)]


@dataclass(frozen=True)
class Folds:
    """Where coordinates turn back at an end of a region, for what lies beyond looks to the array like what is inside.

    There nothing changes with the coordinate at first, so that a search which starts or stops there would stay: it is
    kept a little inside, and what steps over the end comes back.
    """

    region: Region
    azimuth: tuple[bool, bool]  # Whether the ends lie in a mirror plane of the array
    elevation: tuple[bool, bool]  # Whether the ends lie in one, or are poles that a search goes over

    @classmethod
    def of(cls, array: SensorArray, region: Region) -> Folds:
        """Of a region, as an array sees it."""
        rank, axis = (3, torch.zeros(3)) if not array.aperture_m > 0 else _extent(array.positions_m)
        x, y, z = axis.tolist()
        upright = abs(y) > 1 - _FLAT
        azimuth, elevation = (False, False), (False, False)
        if rank < 3 and abs(y) < _FLAT:  # the ends of a line, or of an upright plane
            end = math.atan2(x, z) + (math.pi / 2 if rank == 2 else 0.0)
            low, high = (abs(math.sin(value - end)) < _FOLD_RAD for value in region.azimuth_rad)
            azimuth = (low, high) if region.azimuth_rad[0] < region.azimuth_rad[1] else (False, False)
        if rank < 3 and (upright if rank == 2 else abs(y) < _FLAT):  # the horizon of what lies flat
            low, high = (abs(value) < _FOLD_RAD for value in region.elevation_rad)
            elevation = (low, high) if region.elevation_rad[0] < region.elevation_rad[1] else (False, False)
        if region.full_circle or all(azimuth) or (rank == 1 and upright):
            low, high = (abs(value) > math.pi / 2 - _FOLD_RAD for value in region.elevation_rad)
            elevation = (elevation[0] or low, elevation[1] or high)
        return cls(region, azimuth, elevation)

    def inside(self, position: Tensor) -> Tensor:
        """The same places, folded back over the ends; what stands outside otherwise stays there.

        position (..., 3)
        """
        if not any(self.azimuth + self.elevation):
            return position
        azimuth, elevation = position[..., 0], position[..., 1]
        for end, there, sign in zip(self.region.elevation_rad, self.elevation, (-1.0, 1.0), strict=True):
            if there:
                over = (elevation - end) * sign > 0
                elevation = torch.where(over, 2 * end - elevation, elevation)
                if abs(end) > math.pi / 4:
                    azimuth = torch.where(over, self._across(azimuth), azimuth)
                else:
                    elevation = self._off(elevation, self.region.elevation_rad, end, sign)
        for end, there, sign in zip(self.region.azimuth_rad, self.azimuth, (-1.0, 1.0), strict=True):
            if there:
                azimuth = torch.where((azimuth - end) * sign > 0, 2 * end - azimuth, azimuth)
                azimuth = self._off(azimuth, self.region.azimuth_rad, end, sign)
        return torch.cat([azimuth[..., None], elevation[..., None], position[..., 2:]], -1)

    def _across(self, azimuth: Tensor) -> Tensor:
        """The azimuth beyond a pole."""
        low, high = self.region.azimuth_rad
        if self.region.full_circle:
            return low + torch.remainder(azimuth + math.pi - low, 2 * math.pi)
        return low + high - azimuth if all(self.azimuth) else azimuth

    @staticmethod
    def _off(values: Tensor, interval: tuple[float, float], end: float, sign: float) -> Tensor:
        """No closer to the end than a small part of the interval."""
        nearest = end - sign * _OFF_FOLD * (interval[1] - interval[0])
        return values.clamp_max(nearest) if sign > 0 else values.clamp_min(nearest)


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
        n_azimuth, n_elevation = whole_count(n_azimuth, "n_azimuth"), whole_count(n_elevation, "n_elevation")
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
