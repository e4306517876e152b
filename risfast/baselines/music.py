"""MUSIC on the least-squares covariance, with the number of sources from information criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from risfast.baselines.base import by_count, check_request, completed, reported
from risfast.baselines.capon import peaks_without_threshold
from risfast.covariance import ls_covariance
from risfast.detect import DetectionOptions, detect_sources_lowrank
from risfast.geometry import SearchGrid, SensorArray
from risfast.models.base import Measurement
from risfast.ops import mvdr_spectrum_lowrank
from risfast.setup import Setup
from risfast.sources import Sources

__all__ = ["CRITERIA", "LOADING", "LsMusic", "MusicOptions", "by_subspace", "model_order"]

CRITERIA = ("mdl", "aic")
# Capon of U U^H with this loading is MUSIC: (N - |U^H a|^2 (1 - eps)) with eps below 1e-5 K / N.
LOADING = 1e-5


def model_order(eigenvalues: Tensor, n_samples: int, criterion: str = "mdl", most: int | None = None) -> Tensor:
    """Number of sources from the eigenvalues of sample covariances.

    eigenvalues (B, n) -> (B,)
    """
    # M. Wax, T. Kailath, "Detection of signals by information theoretic criteria", IEEE Trans. ASSP 33, 1985: the k
    # with the least -T (n - k) log(geometric / arithmetic mean of the n - k smallest) + penalty, k (2n - k) log(T) / 2
    # for MDL and k (2n - k) for AIC.
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {criterion!r}")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
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
class MusicOptions:
    """Options of :class:`LsMusic`."""

    criterion: str = "mdl"  # Of the number of sources, where it is not given
    max_sources: int = 8  # Largest number that the criterion may choose, >= 1
    # Candidates, refinement and separation of peaks; its thresholds are not used
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    grid: SearchGrid | None = None  # None is that of the setup, :meth:`risfast.Setup.search_grid`

    def __post_init__(self) -> None:
        """Check every value."""
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {self.criterion!r}")
        if self.max_sources < 1:
            raise ValueError(f"max_sources must be at least 1, got {self.max_sources}")


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


class LsMusic:
    """MUSIC on the ridge least-squares covariance of :func:`risfast.covariance.ls_covariance`."""

    # R. O. Schmidt, "Multiple emitter location and signal parameter estimation", IEEE Trans. AP 34, 1986. The spectrum
    # is that of Capon for U U^H with a vanishing loading, U the signal subspace, so that its peaks are refined off the
    # grid.

    def __init__(self, setup: Setup, options: MusicOptions | None = None) -> None:
        self.setup, self.options = setup, options or MusicOptions()

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`.

        n_sources (B,)
        """
        o = self.options
        return by_subspace(measurement, self.setup.array, n_sources, o.criterion, o.max_sources, self.of_covariance)

    def of_covariance(self, covariance: Tensor, count: int) -> list[Sources]:
        """The strongest peaks of the MUSIC spectra of a batch of covariances.

        covariance (B, N, N)
        """
        o, setup = self.options, self.setup
        grid = o.grid if o.grid is not None else setup.search_grid()
        subspace = leading(covariance, count)
        found = detect_sources_lowrank(
            subspace, setup, grid, loading=LOADING, options=peaks_without_threshold(o.detection, count)
        )
        axes, result = (grid.azimuth_rad, grid.elevation_rad, grid.range_m), []
        for i, sources in enumerate(found):
            volume = torch.zeros(0)
            if len(sources) < count:
                volume = mvdr_spectrum_lowrank(
                    subspace[i], setup.array, grid, loading=LOADING, wavefront=setup.wavefront, reduce="none"
                )
            result.append(completed(sources, count, axes, volume, o.detection.separation(self.setup)))
        return reported(result, setup)


def by_subspace(
    measurement: Measurement,
    array: SensorArray,
    n_sources: Tensor | None,
    criterion: str,
    most: int,
    find: Callable[[Tensor, int], list[Sources]],
) -> list[Sources]:
    """Sources from the least-squares covariances of B scenes, all those of equal count together.

    n_sources (B,)
    """
    check_request(measurement, array, n_sources)
    if len(measurement) == 0:
        return []
    covariance = ls_covariance(
        measurement.y, measurement.codes, measurement.channel, noise_power=measurement.noise_power
    )
    counts = n_sources
    if counts is None:
        counts = subspace_order(covariance, measurement.y.shape[1], criterion, most)
    check_subspace(counts, array)
    return by_count(counts.cpu(), lambda scenes, count: find(covariance[scenes.to(covariance.device)], count))


def check_subspace(counts: Tensor, array: SensorArray) -> None:
    """Refuse a signal subspace that would leave no noise.

    counts (B,)
    """
    if len(counts) and int(counts.max()) >= array.n_elements:
        raise ValueError(
            f"n_sources must be below the {array.n_elements} elements of the array, got {int(counts.max())}"
        )
