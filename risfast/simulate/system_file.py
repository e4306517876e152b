"""Systems as JSON, for manifests, checkpoints and model cards, and as TOML files of a user, in degrees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from risfast.geometry import SensorArray
from risfast.io.guard import naming
from risfast.io.setup_file import read_setup
from risfast.io.toml_file import from_table, read_toml_table
from risfast.setup import Setup, array_from_json, array_to_json
from risfast.simulate.impairments import Impairments
from risfast.simulate.scenes import Coherence, SystemConfig
from risfast.steering import Wavefront


def system_to_json(config: SystemConfig) -> dict[str, Any]:
    """Every field of a system as JSON values: numbers, strings, lists and tables."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    values["array"] = array_to_json(config.array)
    values["impairments"] = asdict(config.impairments)
    values["coherence"] = asdict(config.coherence)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def system_from_json(description: Mapping[str, Any]) -> SystemConfig:
    """The system that :func:`system_to_json` described."""
    expected = {f.name for f in fields(SystemConfig)}
    if set(description) != expected:
        wrong = sorted(set(description) ^ expected)
        raise ValueError(f"a system has the fields {', '.join(sorted(expected))}; missing or unknown: {wrong}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description.items()
    }
    values["array"] = array_from_json(description["array"])
    values["impairments"] = Impairments(**description["impairments"])
    values["coherence"] = Coherence(**description["coherence"])
    return SystemConfig(**values)


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of the entries in which two nested descriptions differ."""
    found: list[str] = []
    for name in sorted(set(a) | set(b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [f"{name}.{inner}" for inner in differing_fields(left, right)]
        elif left != right:
            found.append(name)
    return found


SYSTEM_FILE_FORMAT = 1


@dataclass(frozen=True)
class _SystemFile:
    """The keys of a system file; an interval that is left out is that of the setup."""

    setup: str = ""
    n_h: int = 12
    n_v: int = 12
    spacing_m: float = 0.15
    wavelength_m: float = 0.3
    n_antennas: int = 16
    n_snapshots: int = 64
    azimuth_deg: tuple[float, float] | None = None
    elevation_deg: tuple[float, float] | None = None
    range_m: tuple[float, float] | None = None
    n_sources: tuple[int, int] = (1, 5)
    snr_db: tuple[float, float] = (-5.0, 20.0)
    code_kinds: tuple[str, ...] = ("dft", "random")
    code_bits: int | None = 3
    n_beams: int | None = None
    rician_factor: tuple[float, float] = (0.5, 10.0)
    gain: str = "equal"
    min_separation_deg: float = 0.0
    wavefront: Wavefront | None = None
    impairments: Impairments = field(default_factory=Impairments)
    coherence: Coherence = field(default_factory=Coherence)


_ARRAY_KEYS = ("n_h", "n_v", "spacing_m", "wavelength_m")
_SAME = (
    *("n_antennas", "n_snapshots", "n_sources", "snr_db", "code_kinds", "code_bits", "n_beams", "rician_factor"),
    *("gain", "impairments", "coherence"),
)


def read_system(path: str | Path) -> SystemConfig:
    """Read a system and the distribution of its scenes from a TOML file."""
    path = Path(path)
    table = read_toml_table(path, "systems", SYSTEM_FILE_FORMAT)
    with naming(path):
        given_keys = from_table(_SystemFile, table)
        both = [key for key in _ARRAY_KEYS if key in table]
        if given_keys.setup and both:
            raise ValueError(f"setup and {both[0]} are both there; the array is that of the setup")
        return _system(given_keys, path.parent)


def _system(keys: _SystemFile, beside: Path) -> SystemConfig:
    if keys.setup:
        base = system_of(read_setup(beside / keys.setup))
    else:
        base = SystemConfig(SensorArray.rectangular(*(getattr(keys, name) for name in _ARRAY_KEYS)))
    given = {name: getattr(keys, name) for name in _SAME}
    for name in ("azimuth", "elevation"):
        pair = getattr(keys, f"{name}_deg")
        if pair is not None:
            given[f"{name}_rad"] = (math.radians(pair[0]), math.radians(pair[1]))
    for name in ("range_m", "wavefront"):
        if getattr(keys, name) is not None:
            given[name] = getattr(keys, name)
    return replace(base, **given, min_separation_rad=math.radians(keys.min_separation_deg))


def system_of(setup: Setup) -> SystemConfig:
    """The reference distribution on the array and in the region of a setup."""
    if setup.sampling != "surface":
        raise ValueError(f"scenes are simulated through a surface only; the sampling of the setup is {setup.sampling}")
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
    )
