"""How far an estimate may be from a source and still count as a hit."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

__all__ = ["Tolerance"]

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
        for item in fields(self):
            value = getattr(self, item.name)
            if not value >= 0:
                raise ValueError(f"{item.name} must be at least 0, got {value!r}")
        for name, limit in (("azimuth_rad", 2 * math.pi), ("elevation_rad", math.pi)):
            if getattr(self, name) > limit + 1e-9:
                raise ValueError(
                    f"{name} must be at most {limit:.4g} rad, got {getattr(self, name)!r}; is it in degrees?"
                )

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
