"""A system and the distribution of its scenes: what :func:`risfast.simulate.generate_scenes` draws from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from risfast.geometry import REFERENCE_AZIMUTH_RAD, REFERENCE_ELEVATION_RAD, Region, SensorArray
from risfast.setup import Setup
from risfast.simulate.codes import CODE_KINDS
from risfast.simulate.impairments import Impairments
from risfast.steering import Wavefront, check_wavefront

__all__ = ["GAINS", "Coherence", "SystemConfig"]

GAINS = ("equal", "inverse_range")


@dataclass(frozen=True)
class Coherence:
    """Coherent sources: copies of one signal, as reflections make them. The default is none.

    Parameters
    ----------
    probability : float in [0, 1]
        Chance that a scene has a coherent group.
    group_size : int >= 2
        Sources in the group (all of the scene's, if it has fewer).
    correlation : float in [0, 1]
        Magnitude of the correlation of any two of them.

    Raises
    ------
    ValueError
        A value is out of its range.
    """

    probability: float = 0.0
    group_size: int = 2
    correlation: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("probability", "correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")
        if self.group_size < 2:
            raise ValueError(f"group_size must be at least 2, got {self.group_size!r}")


@dataclass(frozen=True)
class SystemConfig:
    """A system and the distribution of its scenes; the defaults are the reference system.

    Intervals are (low, high) pairs, drawn from uniformly; equal ends fix the value.

    Parameters
    ----------
    array : SensorArray
        The nominal surface, N elements.
    n_antennas, n_snapshots : int
        M and L.
    azimuth_rad, elevation_rad, range_m : pair of float
        Where sources are, uniform in each coordinate.
    n_sources : pair of int
        Fewest and most sources K. K = 0 makes scenes of noise alone.
    snr_db : pair of float
        SNR = mean |y_clean|^2 / sigma^2 in dB.
    code_kinds : tuple of str
        Each scene takes one of these, all equally likely: see :func:`risfast.simulate.codes.make_codes`.
    code_bits : int or None
        Phase resolution of the codes; None is continuous.
    n_beams : {16, 32, 64} or None
        Size of the DFT codebook; None goes by ``n_snapshots``.
    rician_factor : pair of float
        Rician factor, linear.
    gain : {"equal", "inverse_range"}
        Power of a source: 1, or (1 m / range)^2.
    min_separation_rad : float
        Least angle between the directions of two sources; 0 is no limit.
    wavefront : {"spherical", "fresnel", "planar"}
        Of the waves that make the measurements.
    impairments : Impairments
        How far the true system is from this nominal one.
    coherence : Coherence
        Coherent sources.

    Raises
    ------
    ValueError
        A value is out of its range, an interval is empty, or an option is unknown.
    """

    array: SensorArray = field(default_factory=SensorArray.rectangular)
    n_antennas: int = 16
    n_snapshots: int = 64
    azimuth_rad: tuple[float, float] = (-REFERENCE_AZIMUTH_RAD, REFERENCE_AZIMUTH_RAD)
    elevation_rad: tuple[float, float] = (-REFERENCE_ELEVATION_RAD, REFERENCE_ELEVATION_RAD)
    range_m: tuple[float, float] = (0.5, 10.0)
    n_sources: tuple[int, int] = (1, 5)
    snr_db: tuple[float, float] = (-5.0, 20.0)
    code_kinds: tuple[str, ...] = ("dft", "random")
    code_bits: int | None = 3
    n_beams: int | None = None
    rician_factor: tuple[float, float] = (0.5, 10.0)
    gain: str = "equal"
    min_separation_rad: float = 0.0
    wavefront: Wavefront = "spherical"
    impairments: Impairments = field(default_factory=Impairments)
    coherence: Coherence = field(default_factory=Coherence)

    def __post_init__(self) -> None:
        """Check every value."""
        check_wavefront(self.wavefront)
        for name in ("n_antennas", "n_snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        limits = {
            "azimuth_rad": (-math.pi, math.pi),
            "elevation_rad": (-math.pi / 2, math.pi / 2),
            "range_m": (0.0, math.inf),
            "n_sources": (0, math.inf),
            "snr_db": (-300.0, 300.0),  # what float64 powers hold
            "rician_factor": (0.0, math.inf),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not (least <= low <= high <= most and math.isfinite(high)):
                raise ValueError(
                    f"{name} must be (low, high) with {least:g} <= low <= high <= {most:g}, got {(low, high)}"
                )
        if not self.range_m[0] > 0:
            raise ValueError(f"range_m must start above 0, got {self.range_m}")
        if not all(isinstance(k, int) for k in self.n_sources):
            raise ValueError(f"n_sources must be a pair of integers, got {self.n_sources}")
        if not self.code_kinds or any(kind not in CODE_KINDS for kind in self.code_kinds):
            raise ValueError(f"code_kinds must name some of {', '.join(CODE_KINDS)}; got {self.code_kinds!r}")
        if self.gain not in GAINS:
            raise ValueError(f"gain must be one of {', '.join(GAINS)}; got {self.gain!r}")
        if not 0 <= self.min_separation_rad <= math.pi:
            raise ValueError(f"min_separation_rad must lie in [0, pi], got {self.min_separation_rad!r}")

    @property
    def setup(self) -> Setup:
        """The problem that these scenes pose."""
        region = Region(self.azimuth_rad, self.elevation_rad, self.range_m)
        return Setup(self.array, region, self.wavefront)

    @property
    def max_sources(self) -> int:
        """K_max, the size of the source axis of :class:`Scenes`."""
        return int(self.n_sources[1])
