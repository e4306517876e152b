"""Range MUSIC: directions as if every source were far away, then the range of each along its ray."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from risfast.baselines.base import completed, reported
from risfast.baselines.capon import peaks_without_threshold
from risfast.baselines.music import CRITERIA, LOADING, by_subspace, leading
from risfast.baselines.range_sweep import RangeSweep
from risfast.detect import DetectionOptions, detect_sources_lowrank
from risfast.models.base import Measurement
from risfast.ops import mvdr_spectrum_lowrank
from risfast.setup import Setup
from risfast.sources import Sources

__all__ = ["RangeMusic", "RangeMusicOptions"]


@dataclass(frozen=True)
class RangeMusicOptions:
    """Options of :class:`RangeMusic`."""

    criterion: str = "mdl"  # Of the number of sources, where it is not given
    max_sources: int = 8  # Largest number that the criterion may choose, >= 1
    # Candidates, refinement and separation of directions; its thresholds are not used
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    n_ranges: int = 200  # Points of the sweep over the ranges of the setup, uniform in 1/range, >= 3

    def __post_init__(self) -> None:
        """Check every value."""
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {self.criterion!r}")
        if self.max_sources < 1 or self.n_ranges < 3:
            raise ValueError("max_sources must be at least 1 and n_ranges at least 3")


class RangeMusic:
    """MUSIC in direction with plane waves, then in range, on the least-squares covariance."""

    # What a far-field direction finder leads to. It searches one plane of directions instead of a volume; but the
    # wavefront of a source nearer than the Fraunhofer distance 2 D^2 / wavelength bends over the aperture D, and its
    # peak in the plane-wave spectrum is broad, or split.

    def __init__(self, setup: Setup, options: RangeMusicOptions | None = None) -> None:
        self.setup, self.options = setup, options or RangeMusicOptions()
        self._far = setup.replace(wavefront="planar")
        self._sweep = RangeSweep(setup, self.options.n_ranges)

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`.

        n_sources (B,)
        """
        o = self.options
        return by_subspace(measurement, self.setup.array, n_sources, o.criterion, o.max_sources, self.of_covariance)

    def of_covariance(self, covariance: Tensor, count: int) -> list[Sources]:
        """Exactly ``count`` sources of each of a batch of covariances.

        covariance (B, N, N)
        """
        o, far = self.options, self._far
        grid = far.search_grid()
        subspace = leading(covariance, count)
        found = detect_sources_lowrank(
            subspace, far, grid, loading=LOADING, options=peaks_without_threshold(o.detection, count)
        )
        power = covariance.diagonal(dim1=1, dim2=2).real.mean(1).double().cpu() / count
        axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
        apart = (*o.detection.separation(self.setup)[:2], math.inf)
        result = []
        for i, sources in enumerate(found):
            volume = torch.zeros(0)
            if len(sources) < count:
                volume = mvdr_spectrum_lowrank(
                    subspace[i], far.array, grid, loading=LOADING, wavefront="planar", reduce="none"
                )
            directions = completed(sources, count, axes, volume, apart)
            result.append(self._ranged(subspace[i], directions, float(power[i])))
        return reported(result, self.setup)

    def _ranged(self, subspace: Tensor, directions: Sources, power: float) -> Sources:
        """The sources in those directions with their ranges."""
        rows = subspace.to(torch.complex128).mH
        found = [
            (*self._sweep.deepest(rows, azimuth, elevation), azimuth, elevation)
            for azimuth, elevation in zip(directions.azimuth.tolist(), directions.elevation.tolist(), strict=True)
        ]
        _, r, azimuth, elevation = torch.tensor(sorted(found), dtype=torch.float64).unbind(-1)
        return Sources.at(torch.stack([azimuth, elevation, r], -1), torch.full_like(r, power))
