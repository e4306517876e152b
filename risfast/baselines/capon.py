"""Capon spectra of covariances that come from least squares, from a network, or from the truth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from risfast.baselines.base import Baseline, exactly, reported
from risfast.covariance import als_covariance, covariance_from_factor, effective_covariance
from risfast.detect import DetectionOptions, detect_sources
from risfast.geometry import SearchGrid
from risfast.models import build_backbone
from risfast.models.base import Measurement
from risfast.ops import mvdr_spectrum
from risfast.setup import Setup
from risfast.sources import Sources

EVERY_DB = 300.0  # below the strongest: what no spectrum spans


@dataclass(frozen=True)
class CaponOptions:
    """Options of the spectrum and of its peaks."""

    loading: float = 1e-2  # Diagonal loading relative to trace / N, > 0
    detection: DetectionOptions = field(default_factory=DetectionOptions)  # Where the number of sources is not given
    grid: SearchGrid | None = None  # None is that of the setup, :meth:`risfast.Setup.search_grid`

    def __post_init__(self) -> None:
        """Check the loading."""
        if not self.loading > 0:
            raise ValueError(f"loading must be positive, got {self.loading!r}")


def peaks_without_threshold(detection: DetectionOptions, count: int) -> DetectionOptions:
    """Options that keep the ``count`` strongest separate peaks, whatever their height."""
    candidates = max(detection.candidates, 4 * count)
    return replace(detection, max_db=EVERY_DB, mad_z=None, prominence_db=0.0, max_sources=None, candidates=candidates)


class LsCapon(Baseline):
    """Capon spectrum of the ridge least-squares covariance of :func:`risfast.covariance.ls_covariance`.

    Of an array that is sampled directly, of its sample covariance.

    The subclasses take other covariances.
    """

    # J. Capon, "High-resolution frequency-wavenumber spectrum analysis", Proc. IEEE 57, 1969, through
    # :func:`risfast.detect.detect_sources`.

    Options: ClassVar[type[Any]] = CaponOptions

    def covariance(self, measurement: Measurement, n_sources: Tensor | None) -> Tensor:
        """What the spectrum is made of.

        n_sources (B,) -> (B, N, N)
        """
        return measurement.covariance

    def find(self, measurement: Measurement, n_sources: Tensor | None) -> list[Sources]:
        """The peaks of the spectra."""
        setup, options = self.setup, self.options if isinstance(self.options, CaponOptions) else self.options.capon
        effective = effective_covariance(self.covariance(measurement, n_sources))
        grid, detection = setup.search_grid() if options.grid is None else options.grid, options.detection
        if n_sources is not None:
            detection = peaks_without_threshold(detection, int(n_sources.max()))
        found = detect_sources(effective, setup, grid, loading=options.loading, options=detection)
        if n_sources is not None:

            def volume(scene: int) -> Tensor:
                q, wavefront = effective[scene], setup.wavefront
                return mvdr_spectrum(q, setup.array, grid, loading=options.loading, wavefront=wavefront, reduce="none")

            axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
            found = exactly(found, n_sources.tolist(), axes, volume, options.detection.separation(setup))
        return reported(found, setup)


@dataclass(frozen=True)
class AlsCaponOptions:
    """Options of :class:`AlsCapon`."""

    rank: int = 5  # Of the covariance where the number of sources is not given, >= 1
    iterations: int = 50  # Of the alternating least squares, >= 1
    capon: CaponOptions = field(default_factory=CaponOptions)  # Of the spectrum

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.rank < 1 or self.iterations < 1:
            raise ValueError(f"rank and iterations must be at least 1, got {self.rank} and {self.iterations}")


class AlsCapon(LsCapon):
    """Capon spectrum of the low-rank covariance of :func:`risfast.covariance.als_covariance`."""

    # Its rank is the number of sources where that is given.

    Options = AlsCaponOptions

    def covariance(self, measurement: Measurement, n_sources: Tensor | None) -> Tensor:
        """Scenes of equal rank together."""
        n, y = self.setup.array.n_elements, measurement.y
        ranks = torch.full((len(y),), self.options.rank) if n_sources is None else n_sources.cpu()
        ranks = ranks.clamp(1, n)
        covariance = torch.zeros(len(y), n, n, dtype=y.dtype, device=y.device)
        for rank in ranks.unique().tolist():
            scenes = (ranks == rank).nonzero()[:, 0].to(y.device)
            part = measurement[scenes]
            given, steps = (part.y, part.codes, part.channel), self.options.iterations
            factor = als_covariance(*given, rank, noise_power=part.noise_power, iterations=steps)
            covariance[scenes] = covariance_from_factor(factor)
        return covariance


class TrueCapon(LsCapon):
    """Capon spectrum of the true covariance: an oracle, which says what the read-out costs and nothing of the data."""

    truth: Tensor | None = None

    def with_truth(self, truth: Tensor) -> TrueCapon:
        """The same for other scenes.

        truth (B, N, N)
        """
        told = TrueCapon(self.setup, self.options)
        told.truth = truth
        return told

    def covariance(self, measurement: Measurement, n_sources: Tensor | None) -> Tensor:
        """The truth; the measurements are only counted."""
        if self.truth is None or len(self.truth) != len(measurement):
            held = "none" if self.truth is None else f"that of {len(self.truth)} scenes"
            raise ValueError(
                f"the true covariances of the {len(measurement)} scenes are needed, got {held}: use with_truth(...)"
            )
        return self.truth


@dataclass(frozen=True)
class TransformerCaponOptions:
    """Options of :class:`TransformerCapon`."""

    n_antennas: int = 16  # M, for a network that is made here
    seed: int = 0  # Of its parameters
    capon: CaponOptions = field(default_factory=CaponOptions)  # Of the spectrum


class TransformerCapon(LsCapon):
    """Capon spectrum of the covariance that the transformer backbone predicts."""

    Options = TransformerCaponOptions

    def __init__(
        self, setup: Setup, options: TransformerCaponOptions | None = None, backbone: nn.Module | None = None
    ) -> None:
        super().__init__(setup, options)
        if backbone is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.options.seed)
                backbone = build_backbone("transformer", setup, {"n_antennas": self.options.n_antennas})
        self.backbone = backbone.eval()

    def covariance(self, measurement: Measurement, n_sources: Tensor | None) -> Tensor:
        """That of the network."""
        return covariance_from_factor(self.backbone(measurement).factor)
