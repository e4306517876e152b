"""MUSIC on the least-squares covariance, with the number of sources from information criteria."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from risfast.baselines.base import Baseline, by_count, exactly, reported
from risfast.baselines.capon import peaks_without_threshold
from risfast.detect import DetectionOptions, detect_sources, detect_sources_lowrank
from risfast.geometry import SearchGrid
from risfast.models.base import Measurement
from risfast.ops import bartlett_spectrum, mvdr_spectrum_lowrank
from risfast.setup import Setup
from risfast.sources import Sources
from risfast.steering import steering_vectors

CRITERIA = ("mdl", "aic")
_ABOVE = 1.01  # times the largest eigenvalue
# Capon of U U^H with this loading is MUSIC: (N - |U^H a|^2 (1 - eps)) with eps below 1e-5 K / N.
LOADING = 1e-5


def model_order(eigenvalues: Tensor, n_samples: int, criterion: str = "mdl", most: int | None = None) -> Tensor:
    """Number of sources from the eigenvalues of sample covariances.

    eigenvalues (B, n) -> (B,)
    """
    # M. Wax, T. Kailath, "Detection of signals by information theoretic criteria", IEEE Trans. ASSP 33, 1985: the k
    # with the least -T (n - k) log(geometric / arithmetic mean of the n - k smallest) + penalty, k (2n - k) log(T) / 2
    # for MDL and k (2n - k) for AIC.
    value = eigenvalues.double().sort(1, descending=True).values
    value = torch.maximum(value, (1e-12 * value[:, :1]).clamp_min(1e-300))
    n = value.shape[1]
    k = torch.arange(n, dtype=torch.float64, device=value.device)
    rest = n - k
    # Sums over the n - k smallest, from the end.
    arithmetic = (value.flip(1).cumsum(1).flip(1) / rest).log()
    geometric = value.log().flip(1).cumsum(1).flip(1) / rest
    penalty = k * (2 * n - k)
    if criterion == "mdl":
        penalty = 0.5 * penalty * torch.tensor(n_samples, dtype=torch.float64).log()
    cost = n_samples * rest * (arithmetic - geometric) + penalty
    return cost[:, : n if most is None else min(most + 1, n)].argmin(1)


@dataclass(frozen=True)
class OrderOptions:
    """How the number of sources is chosen where it is not given."""

    criterion: str = "mdl"
    max_sources: int = 8  # Largest number that the criterion may choose, >= 1

    def __post_init__(self) -> None:
        """Check every value."""
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {self.criterion!r}")
        if self.max_sources < 1:
            raise ValueError(f"max_sources must be at least 1, got {self.max_sources}")


@dataclass(frozen=True)
class MusicOptions(OrderOptions):
    """Options of :class:`LsMusic`."""

    # Candidates, refinement and separation of peaks; its thresholds are not used
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    grid: SearchGrid | None = None  # None is that of the setup, :meth:`risfast.Setup.search_grid`


def subspace_order(covariance: Tensor, n_snapshots: int, criterion: str, most: int) -> Tensor:
    """:func:`model_order` of covariances made of L fields of N elements.

    covariance (B, N, N) -> (B,)
    """
    # min(N, L) of their eigenvalues can differ from zero: with fewer fields than elements the fields take the part of
    # the channels and the elements that of the samples.
    n = covariance.shape[-1]
    value = torch.linalg.eigvalsh(covariance.to(torch.complex128))[:, -min(n, n_snapshots) :]
    return model_order(value, max(n, n_snapshots), criterion, most)


def leading(covariance: Tensor, count: int) -> Tensor:
    """The leading eigenvectors of covariances, computed in complex128.

    covariance (B, N, N) -> (B, N, count)
    """
    return torch.linalg.eigh(covariance.to(torch.complex128)).eigenvectors[..., -count:].to(covariance.dtype)


def music_peaks(
    subspace: Tensor,
    setup: Setup,
    grid: SearchGrid,
    detection: DetectionOptions,
    separation: tuple[float, float, float],
) -> list[Sources]:
    """The strongest peaks of MUSIC spectra, as many as the subspaces have dimensions.

    subspace (B, N, K)
    """
    count = subspace.shape[-1]
    found = detect_sources_lowrank(
        subspace, setup, grid, loading=LOADING, options=peaks_without_threshold(detection, count)
    )

    def volume(scene: int) -> Tensor:
        return mvdr_spectrum_lowrank(
            subspace[scene], setup.array, grid, loading=LOADING, wavefront=setup.wavefront, reduce="none"
        )

    return exactly(
        found, [count] * len(found), (grid.azimuth_rad, grid.elevation_rad, grid.range_m), volume, separation
    )


class SubspaceBaseline(Baseline):
    """A baseline on the signal subspaces of least-squares covariances; the subclasses find as many sources there."""

    def find(self, measurement: Measurement, n_sources: Tensor | None) -> list[Sources]:
        """All scenes of equal count together."""
        array = self.setup.array
        covariance = measurement.covariance
        counts = n_sources
        if counts is None:
            most = min(self.options.max_sources, self.most_sources)
            counts = subspace_order(covariance, measurement.n_snapshots, self.options.criterion, most)
        if int(counts.max()) >= array.n_elements:  # a signal subspace that would leave no noise
            raise ValueError(
                f"n_sources must be below the {array.n_elements} elements of the array, got {int(counts.max())}"
            )
        return by_count(
            counts.cpu(), lambda scenes, count: self.of_covariance(covariance[scenes.to(covariance.device)], count)
        )

    @property
    def most_sources(self) -> int:
        """Sources that can be told apart, as far as it is known."""
        most: int = self.options.max_sources
        return most

    @abstractmethod
    def of_covariance(self, covariance: Tensor, count: int) -> list[Sources]:
        """Exactly ``count`` sources of each of a batch of covariances.

        covariance (B, N, N)
        """


class LsMusic(SubspaceBaseline):
    """MUSIC on the ridge least-squares covariance of :func:`risfast.covariance.ls_covariance`."""

    # R. O. Schmidt, "Multiple emitter location and signal parameter estimation", IEEE Trans. AP 34, 1986. The spectrum
    # is that of Capon for U U^H with a vanishing loading, U the signal subspace, so that its peaks are refined off the
    # grid.

    Options = MusicOptions

    def of_covariance(self, covariance: Tensor, count: int) -> list[Sources]:
        """The strongest peaks of the MUSIC spectra of a batch of covariances.

        covariance (B, N, N)
        """
        o, setup = self.options, self.setup
        grid = o.grid if o.grid is not None else setup.search_grid()
        found = music_peaks(leading(covariance, count), setup, grid, o.detection, o.detection.separation(setup))
        return reported(found, setup)


class Bartlett(SubspaceBaseline):
    """The strongest peaks of a^H R a, the delay-and-sum beamformer, as many as the criterion says."""

    # The maxima of a^H R a are those of the Capon power N / (a^H (c I - R) a), for any c above all eigenvalues of R:
    # the matrix whose inverse that is goes through the same search.

    Options = MusicOptions

    def of_covariance(self, covariance: Tensor, count: int) -> list[Sources]:
        """The strongest peaks of the Bartlett spectra of a batch of covariances.

        covariance (B, N, N)
        """
        o, setup = self.options, self.setup
        grid = o.grid if o.grid is not None else setup.search_grid()
        value, vector = torch.linalg.eigh(covariance.to(torch.complex128))
        gap = _ABOVE * value[:, -1:] - value
        turned = (vector / gap[:, None]) @ vector.mH
        detection = peaks_without_threshold(o.detection, count)
        found = detect_sources(turned, setup, grid, loading=0.0, options=detection)

        def volume(scene: int) -> Tensor:
            how: dict[str, Any] = {"wavefront": setup.wavefront, "reduce": "none"}
            return bartlett_spectrum(covariance[scene], setup.array, grid, **how)

        axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
        whole = exactly(found, [count] * len(found), axes, volume, o.detection.separation(setup))
        return reported(whole, setup)


@dataclass(frozen=True)
class RangeMusicOptions(OrderOptions):
    """Options of :class:`RangeMusic`."""

    # Candidates, refinement and separation of directions; its thresholds are not used
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    n_ranges: int = 200  # Points of the sweep over the ranges of the setup, uniform in 1/range, >= 3

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.n_ranges < 3:
            raise ValueError(f"n_ranges must be at least 3, got {self.n_ranges}")


class RangeMusic(SubspaceBaseline):
    """MUSIC in direction with plane waves, then in range, on the least-squares covariance."""

    # What a far-field direction finder leads to. It searches one plane of directions instead of a volume; but the
    # wavefront of a source nearer than the Fraunhofer distance 2 D^2 / wavelength bends over the aperture D, and its
    # peak in the plane-wave spectrum is broad, or split.

    Options = RangeMusicOptions

    def __init__(self, setup: Setup, options: RangeMusicOptions | None = None) -> None:
        super().__init__(setup, options)
        self._far = setup.replace(wavefront="planar")
        self._sweep = RangeSweep(setup, self.options.n_ranges)

    def of_covariance(self, covariance: Tensor, count: int) -> list[Sources]:
        """Exactly ``count`` sources of each of a batch of covariances.

        covariance (B, N, N)
        """
        detection = self.options.detection
        subspace = leading(covariance, count)
        power = covariance.diagonal(dim1=1, dim2=2).real.mean(1).double().cpu() / count
        apart = (*detection.separation(self.setup)[:2], math.inf)
        directions = music_peaks(subspace, self._far, self._far.search_grid(), detection, apart)
        ranged = [self._ranged(subspace[i], one, float(power[i])) for i, one in enumerate(directions)]
        return reported(ranged, self.setup)

    def _ranged(self, subspace: Tensor, directions: Sources, power: float) -> Sources:
        """The sources in those directions with their ranges."""
        rows = subspace.to(torch.complex128).mH
        found = [
            (*self._sweep.deepest(rows, azimuth, elevation), azimuth, elevation)
            for azimuth, elevation in zip(directions.azimuth.tolist(), directions.elevation.tolist(), strict=True)
        ]
        _, r, azimuth, elevation = torch.tensor(sorted(found), dtype=torch.float64).unbind(-1)
        return Sources.at(torch.stack([azimuth, elevation, r], -1), torch.full_like(r, power))


@dataclass(frozen=True)
class RangeSweep:
    """MUSIC along rays, over the ranges of a setup."""

    setup: Setup  # Array of N elements
    n_points: int  # Points of a sweep, uniform in 1/range; a second one of as many is made around the best

    def deepest(self, subspace: Tensor, azimuth: float, elevation: float) -> tuple[float, float]:
        """The deepest null in one direction, and its range.

        subspace (K, N)
        """
        inverse = torch.linspace(*self.setup.region.inverse_range, self.n_points, dtype=torch.float64)
        at = int(self._null(subspace, azimuth, elevation, 1 / inverse).argmin())
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
