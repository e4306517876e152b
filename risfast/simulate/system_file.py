"""Systems as JSON, for manifests, and as options in degrees: of commands, and of TOML files of a user."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from risfast.geometry import Region, SensorArray
from risfast.io.guard import inside, naming
from risfast.io.setup_file import SetupParts, read_setup, read_setup_parts
from risfast.io.toml_file import from_table, read_toml_table
from risfast.setup import Setup, array_from_json, array_to_json, check_elements
from risfast.simulate.impairments import Impairments
from risfast.simulate.scenes import Coherence, SystemConfig
from risfast.steering import Wavefront


def system_to_json(config: SystemConfig) -> dict[str, Any]:
    """A system as JSON values: numbers, strings, lists and tables."""
    parts = {name: asdict(getattr(config, name)) for name in ("impairments", "coherence")}
    values = {**vars(config), **parts, "array": array_to_json(config.array)}
    if config.sampling == "surface":  # what is older than these fields is of a surface and one band, and stays the same
        del values["sampling"]
    if config.wavelengths_m is None:
        del values["wavelengths_m"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def system_from_json(description: Mapping[str, Any]) -> SystemConfig:
    """The system that :func:`system_to_json` described."""
    expected = {f.name for f in fields(SystemConfig)}
    description = {"sampling": "surface", "wavelengths_m": None, **description}
    if set(description) != expected:
        wrong = sorted(set(description) ^ expected)
        raise ValueError(f"a system has the fields {', '.join(sorted(expected))}; missing or unknown: {wrong}")
    parts = {
        "impairments": Impairments(**description["impairments"]),
        "coherence": Coherence(**description["coherence"]),
    }
    values: dict[str, Any] = {**description, **parts, "array": array_from_json(description["array"])}
    values = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
    return SystemConfig(**values)


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """Names of the entries in which two nested descriptions differ, those that are free to do so left out."""
    found: list[str] = []
    for name in sorted(set(a) | set(b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [f"{name}.{inner}" for inner in differing_fields(left, right)]
        elif left != right:
            found.append(name)
    return [name for name in found if not any(f"{name}.".startswith(f"{part}.") for part in free)]


SYSTEM_FILE_FORMAT = 1

_ARRAY_KEYS = ("n_h", "n_v", "spacing_m", "wavelength_m")
_SAME = ("n_antennas", "n_sources", "snr_db", "rician_factor", "gain", "impairments", "coherence")


def reaches_beyond(inner: Region, outer: Region) -> bool:
    """Whether a part of the first region lies outside of the second."""
    pairs = [(inner.elevation_rad, outer.elevation_rad), (inner.inverse_range, outer.inverse_range)]
    if not outer.full_circle:
        pairs.append((inner.azimuth_rad, outer.azimuth_rad))
    return any(
        (low < first and not math.isclose(low, first)) or (high > last and not math.isclose(high, last))
        for (low, high), (first, last) in pairs
    )


@dataclass(frozen=True)
class SystemOptions:
    """The system and the distribution of its scenes; the defaults are the reference system."""

    # setup.toml or array.toml with the array (and the tolerance); empty is what the next four options describe.
    array: str = ""
    n_h: int = 12  # Elements along x.
    n_v: int = 12  # Elements along y.
    spacing_m: float = 0.15  # Element spacing in metres.
    wavelength_m: float = 0.3  # Wavelength in metres.
    n_antennas: int = 16  # Antennas M of the base station.
    azimuth_deg: tuple[float, float] = (-60.0, 60.0)  # Azimuths of the sources.
    elevation_deg: tuple[float, float] = (-30.0, 30.0)  # Elevations of the sources.
    range_m: tuple[float, float] = (0.5, 10.0)  # Ranges of the sources in metres.
    n_sources: tuple[int, int] = (1, 5)  # Fewest and most sources in a scene.
    snr_db: tuple[float, float] = (-5.0, 20.0)  # SNR in dB.
    code_bits: int = 3  # Phase resolution of the codes in bits; 0 is continuous.
    rician_factor: tuple[float, float] = (0.5, 10.0)  # Rician factor of the channel, linear.
    gain: Literal["equal", "inverse_range"] = "equal"  # Power of a source: 1, or (1 m / range)^2.
    min_separation_deg: float = 0.0  # Least angle between two sources; 0 is no limit.
    wavefront: Literal["spherical", "fresnel", "planar"] = "spherical"  # Wavefront of the simulated measurements.
    impairments: Impairments = field(default_factory=Impairments)  # How far the true system is from the nominal one.
    coherence: Coherence = field(default_factory=Coherence)  # Coherent sources.

    @property
    def _region(self) -> Region:
        return Region(_radians(self.azimuth_deg), _radians(self.elevation_deg), self.range_m)

    def _parts(self) -> SetupParts:
        """What the file says, or the rectangular surface."""
        if not self.array:
            check_elements(self.n_h, self.n_v)
            return SetupParts(SensorArray.rectangular(self.n_h, self.n_v, self.spacing_m, self.wavelength_m))
        parts = read_setup_parts(self.array)
        if parts.sampling == "direct":
            raise ValueError(
                f"{self.array} says sampling = direct, and simulated scenes come through a surface and its codes; "
                "leave sampling out"
            )
        if parts.wavefront not in (None, self.wavefront):
            raise ValueError(
                f"{self.array} says wavefront = {parts.wavefront}, and system.wavefront is {self.wavefront}; make them "
                "the same"
            )
        if parts.region is not None and reaches_beyond(self._region, parts.region):
            raise ValueError(
                f"the sources of the system (azimuth_deg {self.azimuth_deg}, elevation_deg {self.elevation_deg}, "
                f"range_m {self.range_m}) reach beyond the region of {self.array}, {parts.region}; give "
                "--system.azimuth-deg, --system.elevation-deg and --system.range-m within it"
            )
        return parts

    def setup(self) -> Setup:
        """The problem: the array, with the region that the sources come from."""
        return self._parts().setup(region=self._region, wavefront=self.wavefront)

    def system(self, n_snapshots: int, code_kinds: tuple[str, ...]) -> SystemConfig:
        """The system with L = ``n_snapshots`` and these codes."""
        own = {"n_snapshots": n_snapshots, "code_kinds": code_kinds, "code_bits": self.code_bits or None}
        return _in_radians(SystemConfig(self._parts().array), self, **own)


def _radians(pair: tuple[float, float]) -> tuple[float, float]:
    return math.radians(pair[0]), math.radians(pair[1])


def _in_radians(base: SystemConfig, keys: SystemOptions, **own: Any) -> SystemConfig:
    """A system with what the options say; an interval or a wavefront that they leave out stays."""
    given: dict[str, Any] = {"range_m": keys.range_m, "wavefront": keys.wavefront}
    for name in ("azimuth", "elevation"):
        pair = getattr(keys, f"{name}_deg")
        given[f"{name}_rad"] = None if pair is None else _radians(pair)
    own |= {name: value for name, value in given.items() if value is not None}
    own |= {name: getattr(keys, name) for name in _SAME}
    return replace(base, **own, min_separation_rad=math.radians(keys.min_separation_deg))


@dataclass(frozen=True)
class _SystemFile(SystemOptions):
    """The keys of a system file, with ``setup`` in place of ``array``; what is None is that of the setup."""

    setup: str = ""  # type: ignore[assignment]

    azimuth_deg: tuple[float, float] | None = None  # type: ignore[assignment]
    elevation_deg: tuple[float, float] | None = None  # type: ignore[assignment]
    range_m: tuple[float, float] | None = None  # type: ignore[assignment]
    wavefront: Wavefront | None = None  # type: ignore[assignment]
    code_bits: int | None = 3  # type: ignore[assignment]
    n_snapshots: int = 64
    code_kinds: tuple[str, ...] = ("dft", "random")
    n_beams: int | None = None


def read_system(path: str | Path) -> SystemConfig:
    """Read a system and the distribution of its scenes from a TOML file."""
    path = Path(path)
    table = read_toml_table(path, "systems", SYSTEM_FILE_FORMAT)
    with naming(path):
        if "array" in table:
            raise ValueError("array is not an option of a system file; give setup")
        keys = from_table(_SystemFile, table)
        both = [key for key in _ARRAY_KEYS if key in table]
        if keys.setup and both:
            raise ValueError(f"setup and {both[0]} are both there; the array is that of the setup")
        check_elements(keys.n_h, keys.n_v)
        if keys.setup:
            base = system_of(read_setup(inside(path.parent, keys.setup)))
        else:
            base = SystemConfig(SensorArray.rectangular(*(getattr(keys, name) for name in _ARRAY_KEYS)))
        own = {name: getattr(keys, name) for name in ("n_snapshots", "code_kinds", "code_bits", "n_beams")}
        return _in_radians(base, keys, **own)


def system_of(setup: Setup) -> SystemConfig:
    """The reference distribution on the array and in the region of a setup."""
    region = setup.region
    near, far = region.range_m
    if math.isinf(far):
        far = max(setup.array.fraunhofer_distance_m, 2 * near)
    return SystemConfig(
        setup.array,
        azimuth_rad=region.azimuth_rad,
        elevation_rad=region.elevation_rad,
        range_m=(near, far),
        wavefront=setup.wavefront,
        sampling=setup.sampling,
        wavelengths_m=setup.wavelengths_m if setup.n_bands > 1 else None,
    )
