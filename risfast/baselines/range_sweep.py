"""The range of a source whose direction is known: the deepest null of MUSIC along the ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from risfast.setup import Setup
from risfast.steering import steering_vectors

__all__ = ["RangeSweep"]


@dataclass(frozen=True)
class RangeSweep:
    """MUSIC along rays, over the ranges of a setup."""

    setup: Setup  # Array of N elements
    n_points: int  # Points of a sweep, uniform in 1/range; a second one of as many is made around the best

    def deepest(self, subspace: Tensor, azimuth: float, elevation: float) -> tuple[float, float]:
        """Deepest null in one direction.

        subspace (K, N)
        """
        inverse = torch.linspace(*self.setup.region.inverse_range, self.n_points, dtype=torch.float64)
        null = self._null(subspace, azimuth, elevation, 1 / inverse)
        at = int(null.argmin())
        low, high = inverse[max(at - 1, 0)], inverse[min(at + 1, len(inverse) - 1)]
        finer = torch.linspace(float(low), float(high), self.n_points, dtype=torch.float64)
        null = self._null(subspace, azimuth, elevation, 1 / finer)
        at = int(null.argmin())
        return float(null[at]), float(1 / finer[at])

    def _null(self, subspace: Tensor, azimuth: float, elevation: float, r: Tensor) -> Tensor:
        """(N - |U^H a|^2) / N at ranges r."""
        a = steering_vectors(
            self.setup.array,
            torch.tensor(azimuth, dtype=torch.float64),
            torch.tensor(elevation, dtype=torch.float64),
            r,
            wavefront=self.setup.wavefront,
            dtype=torch.complex128,
        ).to(subspace.device)
        return 1 - (subspace @ a.mT).abs().square().sum(0) / a.shape[1]
