"""One description of the problem: what receives, where sources are looked for, and what counts as found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from risfast.geometry import BoxLimits, Region, SearchGrid, SensorArray, ambiguities, uniform_axis
from risfast.steering import Wavefront, check_wavefront

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ANGLE_RAD = math.radians(5.0)
_WAVELENGTHS = 10 / 3  # 1 m on the reference surface


@dataclass(frozen=True)
class Tolerance:
    """How far a matched estimate may be from its source and still count as a hit.

    Parameters
    ----------
    azimuth_rad, elevation_rad : float
        Largest absolute difference in radians. The defaults are 5 degrees.
    range_m : float
        Largest absolute difference in metres; infinite where range is not scored.

    Raises
    ------
    ValueError
        A tolerance is negative, not a number, or an angle that can only be in degrees.
    """

    azimuth_rad: float = _ANGLE_RAD
    elevation_rad: float = _ANGLE_RAD
    range_m: float = 1.0

    def __post_init__(self) -> None:
        """Check the signs and the unit of the angles."""
        for name, limit in (("azimuth_rad", 2 * math.pi), ("elevation_rad", math.pi), ("range_m", math.inf)):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value!r}")
            if value > limit + 1e-9:
                raise ValueError(f"{name} must be at most {limit:.4g} rad, got {value!r}; is it in degrees?")

    @classmethod
    def of(cls, wavelength_m: float, wavefront: str = "spherical") -> Tolerance:
        """The default of a setup: 5 degrees, 5 degrees and 10/3 wavelengths; any range where waves are planar.

        Parameters
        ----------
        wavelength_m : float
        wavefront : str

        Returns
        -------
        Tolerance
        """
        return cls(range_m=math.inf if wavefront == "planar" else _WAVELENGTHS * wavelength_m)

    @property
    def limits(self) -> tuple[float, float, float]:
        """(azimuth, elevation, range) in radians and metres."""
        return self.azimuth_rad, self.elevation_rad, self.range_m


torch.serialization.add_safe_globals([Tolerance])


Sampling = Literal["surface", "direct"]
SETUP_FORMAT = 1
_INTERVALS = ("azimuth_rad", "elevation_rad", "range_m")

# Points of a map in one beam width (wavelength / extent), and its points in all at the most: the densities of the
# 361 x 181 grid on the reference surface.
POINTS_PER_BEAM = 31.25
MOST_POINTS = 1 << 20
# Curvature phase, in radians at the outermost element, between two range planes of a map.
PLANE_PHASE_RAD = 4.6
# A change of azimuth moves a plane's elements half as much, at most, by way of their elevation.
_SKEW = 0.5


def check_sampling(sampling: str) -> None:
    """Refuse what is neither of the two ways."""
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}; got {sampling!r}")


_DERIVED: Any = None  # follows from the array


@dataclass(frozen=True)
class Setup:
    """The problem that every stage is given: simulation, training, maps, polish, evaluation.

    Parameters
    ----------
    array : SensorArray
        What the waves arrive at: the surface, or the array itself.
    region : Region, optional
        Where sources are looked for; by default what the array can tell apart (:meth:`risfast.geometry.Region.of`).
    wavefront : {"spherical", "fresnel", "planar"}
    sampling : {"surface", "direct"}
        Whether antennas see the array through its phase codes and a channel, or the array is sampled itself.
    speed_m_s : float, optional
        Of propagation; only readers of files need it, to turn frequencies into wavelengths.
    tolerance : Tolerance, optional
        Of a hit; by default 5 degrees, 5 degrees and 10/3 wavelengths, at any range where waves are planar.
    wavelengths_m : sequence of float, optional
        Of F narrow bands that the same sources are heard in, in the order of the covariances; the shortest is the
        array's, whatever it was made with. By default the array's alone.
    gains : sequence of complex, optional
        What each of the N elements makes of the wave that falls on it, as a calibration found it; 1 by default.

    Raises
    ------
    TypeError, ValueError
        A region of another class, an unknown option, a speed or wavelength that is not positive, gains that are zero
        or not N, several wavelengths of a surface, or a region behind the array.
    """

    array: SensorArray
    region: Region = _DERIVED
    wavefront: Wavefront = "spherical"
    sampling: Sampling = "surface"
    speed_m_s: float | None = None
    tolerance: Tolerance = _DERIVED
    wavelengths_m: tuple[float, ...] = _DERIVED
    gains: tuple[complex, ...] | None = None

    def __post_init__(self) -> None:
        """Check, and fill in what follows from the array."""
        self._check_bands()
        check_wavefront(self.wavefront)
        check_sampling(self.sampling)
        speed = self.speed_m_s
        if speed is not None and not (isinstance(speed, int | float) and 0 < speed < math.inf):
            raise ValueError(f"speed_m_s must be a positive number of metres per second, got {self.speed_m_s!r}")
        if self.region is not _DERIVED and not isinstance(self.region, Region):
            raise TypeError(f"region must be a risfast.Region, got {type(self.region).__name__}")
        if self.region is _DERIVED:
            object.__setattr__(self, "region", Region.of(self.array))
        elif self._behind():
            raise ValueError(
                f"region lies behind the array: {self.region}; a planar array cannot tell front from back, and the "
                f"front of this one is {Region.of(self.array)}"
            )
        if self.tolerance is _DERIVED:
            object.__setattr__(self, "tolerance", Tolerance.of(self.array.wavelength_m, self.wavefront))

    def _check_bands(self) -> None:
        """Wavelengths and gains as tuples; the array with the shortest wavelength."""
        n = self.array.n_elements
        given = (self.array.wavelength_m,) if self.wavelengths_m is _DERIVED else self.wavelengths_m
        try:
            wavelengths = tuple(float(value) for value in given)
        except (TypeError, ValueError) as error:
            raise TypeError(f"wavelengths_m must be a sequence of numbers, got {given!r}") from error
        if not wavelengths or not all(0 < value < math.inf for value in wavelengths):
            raise ValueError(f"wavelengths_m must be positive numbers of metres, at least one, got {given!r}")
        if len(wavelengths) > 1 and self.sampling != "direct":
            raise ValueError("several wavelengths_m need an array that is sampled directly: sampling='direct'")
        object.__setattr__(self, "wavelengths_m", wavelengths)
        if min(wavelengths) != self.array.wavelength_m:
            object.__setattr__(self, "array", SensorArray(self.array.positions_m, min(wavelengths)))
        if self.gains is not None:
            try:
                gains = tuple(complex(value) for value in self.gains)
            except (TypeError, ValueError) as error:
                raise TypeError(f"gains must be a sequence of complex numbers, got {self.gains!r}") from error
            if len(gains) != n or not all(0 < abs(value) < math.inf for value in gains):
                raise ValueError(f"gains must be {n} finite complex numbers that are not zero, got {len(gains)}")
            object.__setattr__(self, "gains", gains)

    @property
    def n_bands(self) -> int:
        """F, of the narrow bands."""
        return len(self.wavelengths_m)

    def without_gains(self, matrix: Tensor, *, factored: bool = False) -> Tensor:
        """Covariances, or factors of them, of the waves that fall on the elements, in place of what these make of them.

        Parameters
        ----------
        matrix : complex tensor, shape (..., N, N), or (..., N, K)
        factored : bool
            Whether it is a factor.

        Returns
        -------
        complex tensor, of the same shape
            The same where the setup has no gains.
        """
        if self.gains is None:
            return matrix
        gains = torch.tensor(self.gains, dtype=torch.complex128).to(matrix)[:, None]
        return matrix / gains if factored else matrix / (gains @ gains.mH)

    def _behind(self) -> bool:
        """Whether no direction of the region is in front of a planar array."""
        try:
            front = Region.of(self.array)
        except ValueError:
            return False
        if front.full_circle or front.azimuth_rad[0] == front.azimuth_rad[1]:
            return False
        ahead = sum(front.azimuth_rad) / 2
        # Nearest azimuth of the region to the middle of the front, round the circle.
        low, high = self.region.azimuth_rad
        gap = min(max(low + turn - ahead, ahead - high - turn, 0.0) for turn in (-2 * math.pi, 0.0, 2 * math.pi))
        return gap > math.pi / 2 + 1e-9

    def replace(self, **changes: Any) -> Setup:
        """The same with some fields changed.

        Parameters
        ----------
        **changes
            Fields by name; ``region=None`` and ``tolerance=None`` derive them again. Another array brings its own
            wavelength where ``wavelengths_m`` does not say.

        Returns
        -------
        Setup
        """
        if "array" in changes and "wavelengths_m" not in changes:
            changes["wavelengths_m"] = self._wavelengths_of(changes["array"])
        return replace(self, **changes)

    def _wavelengths_of(self, array: SensorArray) -> tuple[float, ...]:
        """The same bands where the shortest wavelength is that of an array."""
        own, theirs = self.array.wavelength_m, array.wavelength_m
        return tuple(theirs if value == own else value * (theirs / own) for value in self.wavelengths_m)

    def scaled(self, factor: float) -> Setup:
        """The same problem in another unit of length: what is measured does not change.

        Parameters
        ----------
        factor : float
            That positions, wavelength, ranges and the tolerance in range are multiplied by.

        Returns
        -------
        Setup
        """
        region, tolerance = self.region, self.tolerance
        near, far = region.range_m
        return self.replace(
            array=SensorArray(self.array.positions_m * factor, self.array.wavelength_m * factor),
            region=replace(region, range_m=(near * factor, far * factor), box=_scaled(region.box, factor)),
            tolerance=replace(tolerance, range_m=tolerance.range_m * factor),
        )

    @property
    def ambiguities(self) -> tuple[str, ...]:
        """What the array cannot tell apart, in sentences (:func:`risfast.geometry.ambiguities`)."""
        return ambiguities(self.array, self.region)

    @property
    def extents_m(self) -> tuple[float, float]:
        """What resolves azimuth, and what resolves elevation, in metres."""
        positions = self.array.positions_m
        horizontal = positions[:, [0, 2]]
        across = float(torch.pdist(horizontal).max()) if len(horizontal) > 1 else 0.0
        upright = float(positions[:, 1].max() - positions[:, 1].min())
        return across, max(upright, _SKEW * across)

    @property
    def curvature_rad_m(self) -> float:
        """Phase that curvature gives the outermost element, times the range: k |p|^2 / 2; 0 where waves are planar."""
        if self.wavefront == "planar":
            return 0.0
        return self.array.wavenumber * float(self.array.positions_m.square().sum(1).max()) / 2

    def search_grid(self, points_per_beam: float = POINTS_PER_BEAM, most_points: int = MOST_POINTS) -> SearchGrid:
        """The grid of a map over the region: angles as the aperture resolves them, planes uniform in 1/range.

        Parameters
        ----------
        points_per_beam : float
            Points in one beam width, wavelength / extent.
        most_points : int
            Of the whole grid; angles are coarser where it would have more.

        Returns
        -------
        SearchGrid
        """
        spans = [high - low for low, high in (self.region.azimuth_rad, self.region.elevation_rad)]
        counts = [
            math.ceil(span * extent / self.array.wavelength_m * points_per_beam - 1e-6) + 1
            for span, extent in zip(spans, self.extents_m, strict=True)
        ]
        planes = self.range_planes(PLANE_PHASE_RAD)
        excess = math.prod(counts) * len(planes) / most_points
        if excess > 1:  # both as much; what the shorter axis has too little for is left to the longer
            short, long = sorted((0, 1), key=counts.__getitem__)
            fewer = max(counts[short] / math.sqrt(excess), 1.0)
            counts[long] = max(math.floor(counts[long] / (excess * fewer / counts[short])), 1)
            counts[short] = math.floor(fewer)
        azimuth = uniform_axis(*self.region.azimuth_rad, counts[0], closed=self.region.full_circle)
        return SearchGrid(azimuth, uniform_axis(*self.region.elevation_rad, counts[1]), planes)

    def range_planes(self, phase_rad: float) -> Tensor:
        """Ranges [G_r], increasing and uniform in 1/range from end to end, so that curvature changes by a phase.

        Parameters
        ----------
        phase_rad : float
            Most that the phase of the outermost element may change from one plane to the next.

        Returns
        -------
        float64 tensor, shape (G_r,)
        """
        far, near = self.region.inverse_range
        count = math.ceil((near - far) * self.curvature_rad_m / phase_rad - 1e-6) + 1 if near > far else 1
        if count == 1:  # waves without curvature look alike at every range
            return torch.tensor([self.region.range_m[1]], dtype=torch.float64)
        planes = 1 / torch.linspace(near, far, count, dtype=torch.float64)
        planes[0], planes[-1] = self.region.range_m
        return planes

    def plot(self) -> Figure:
        """The elements, and the region that is searched from above.

        Returns
        -------
        matplotlib.figure.Figure
            ``savefig`` writes it; a notebook shows it.
        """
        from risfast.report.views import setup_figure  # noqa: PLC0415 - matplotlib, and of what stands above

        return setup_figure(self)

    def to_json(self) -> dict[str, Any]:
        """JSON values that :meth:`from_json` turns back into the same setup; an infinite range is ``"inf"``."""
        more: dict[str, Any] = {} if self.n_bands == 1 else {"wavelengths_m": list(self.wavelengths_m)}
        if self.gains is not None:
            more["gains"] = [[gain.real, gain.imag] for gain in self.gains]
        return {
            "format": SETUP_FORMAT,
            "array": array_to_json(self.array),
            "region": {
                **{name: [_to_json(v) for v in pair] for name, pair in self.region.intervals.items()},
                **({} if self.region.box is None else {"box": [list(side) for side in self.region.box]}),
            },
            "wavefront": self.wavefront,
            "sampling": self.sampling,
            "speed_m_s": self.speed_m_s,
            "tolerance": {f.name: _to_json(getattr(self.tolerance, f.name)) for f in fields(Tolerance)},
            **more,
        }

    @classmethod
    def from_json(cls, description: Mapping[str, Any]) -> Setup:
        """The setup that :meth:`to_json` described.

        Parameters
        ----------
        description : mapping

        Returns
        -------
        Setup

        Raises
        ------
        ValueError
            Another format, a field that is missing, unknown or of the wrong kind.
        """
        if not isinstance(description, Mapping):
            raise ValueError(f"setup: must be a table, got {description!r}")
        found = description.get("format")
        if found != SETUP_FORMAT or isinstance(found, bool):
            raise ValueError(f"setup: format {found!r}, this version reads {SETUP_FORMAT}")
        optional = {"wavelengths_m", "gains"}
        needed = {"format", *(f.name for f in fields(cls))} - optional
        if set(description) - optional != needed:
            wrong = set(description) - optional ^ needed
            raise ValueError(f"setup: missing or unknown fields: {', '.join(sorted(wrong))}")
        parts: dict[str, Any] = {
            "array": array_from_json(description["array"]),
            "region": _region_from_json(description),
            "tolerance": Tolerance(**_numbers(description, "tolerance", [f.name for f in fields(Tolerance)])),
        }
        try:
            if "wavelengths_m" in description:
                parts["wavelengths_m"] = tuple(float(value) for value in description["wavelengths_m"])
            if "gains" in description:
                parts["gains"] = tuple(complex(real, imag) for real, imag in description["gains"])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"setup: wavelengths_m and gains must be lists of numbers and of pairs: {error}"
            ) from error
        return cls(**parts, **{name: description[name] for name in ("wavefront", "sampling", "speed_m_s")})


def _scaled(box: BoxLimits | None, factor: float) -> BoxLimits | None:
    """A box in another unit of length."""
    if box is None:
        return None
    x, y, z = ((low * factor, high * factor) for low, high in box)
    return x, y, z


def _region_from_json(description: Mapping[str, Any]) -> Region:
    """Intervals, and the box where there is one."""
    table = description["region"]
    box: Any = table.get("box") if isinstance(table, Mapping) else None
    plain = {name: value for name, value in table.items() if name != "box"} if box is not None else table
    region = Region(**_numbers({"region": plain}, "region", _INTERVALS))
    if box is None:
        return region
    if not (isinstance(box, list) and len(box) == 3 and all(isinstance(side, list) for side in box)):
        raise ValueError(f"setup: box of the region must be three pairs of numbers, got {box!r}")
    return Region(region.azimuth_rad, region.elevation_rad, region.range_m, box)  # type: ignore[arg-type]


def _to_json(value: float) -> float | str:
    return "inf" if value == math.inf else value


def _numbers(description: Mapping[str, Any], name: str, expected: Sequence[str]) -> dict[str, Any]:
    """Numbers, or lists of them, of a part of a setup."""
    table = description[name]
    if not isinstance(table, Mapping) or set(table) != set(expected):
        raise ValueError(f"setup: {name} must be a table of {', '.join(sorted(expected))}, got {table!r}")

    def number(value: Any) -> float:
        if value == "inf":
            return math.inf
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f'setup: {name} must hold numbers (or "inf"), got {value!r}')
        return float(value)

    return {
        key: tuple(map(number, value)) if name == "region" and isinstance(value, list | tuple) else number(value)
        for key, value in table.items()
    }


def array_to_json(array: SensorArray) -> dict[str, Any]:
    """Description of an array that :func:`array_from_json` turns back into the same one, to the last bit."""
    lattice, wavelength = array.lattice, {"wavelength_m": array.wavelength_m}
    if lattice is not None:
        # the spacing that was asked for is the lattice's only up to rounding, so look for it among short decimals too
        for spacing in (lattice.spacing_h_m, lattice.spacing_v_m, round(lattice.spacing_h_m, 9)):
            if not spacing > 0:
                continue
            sides: dict[str, Any] = {"n_h": lattice.n_h, "n_v": lattice.n_v, "spacing_m": spacing, **wavelength}
            if SensorArray.rectangular(**sides) == array:
                return sides
    return {"positions_m": array.positions_m.tolist(), **wavelength}


MOST_ELEMENTS = 8192
"""Of an array in a file: its covariance in double precision takes a gigabyte."""


def check_elements(*sides: Any) -> None:
    """Refuse an array of more elements than a file may ask for, before it is made; what are no numbers is left."""
    count = math.prod(side for side in sides if isinstance(side, int) and side > 0)
    if count > MOST_ELEMENTS:
        raise ValueError(f"an array of {count} elements is asked for, and one from a file has {MOST_ELEMENTS} at most")


def array_from_json(description: Mapping[str, Any]) -> SensorArray:
    """The array that :func:`array_to_json` described."""
    if not isinstance(description, Mapping):
        raise ValueError(f"an array is described by a table, got {description!r}")
    given = set(description)
    try:
        if given == {"n_h", "n_v", "spacing_m", "wavelength_m"}:
            check_elements(description["n_h"], description["n_v"])
            return SensorArray.rectangular(**description)
        if given == {"positions_m", "wavelength_m"}:
            check_elements(len(description["positions_m"]))
            positions = torch.tensor(description["positions_m"], dtype=torch.float64)
            return SensorArray(positions, description["wavelength_m"])
    except TypeError as error:
        raise ValueError(f"the values of this description make no array: {error}") from error
    raise ValueError(
        "an array is described by n_h, n_v, spacing_m, wavelength_m or by positions_m, wavelength_m; "
        f"got {', '.join(sorted(given)) or 'nothing'}"
    )


# Plain values: torch.load(weights_only=True) may rebuild them.
torch.serialization.add_safe_globals([Setup])
