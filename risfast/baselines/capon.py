"""Capon spectra of covariances that come from least squares, from a network, or from the truth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from risfast.baselines.base import check_request, exactly, reported
from risfast.covariance import als_covariance, covariance_from_factor, effective_covariance, ls_covariance
from risfast.detect import DetectionOptions, detect_sources
from risfast.geometry import SearchGrid
from risfast.models.base import Measurement
from risfast.ops import mvdr_spectrum
from risfast.setup import Setup
from risfast.sources import Sources

_EVERY_DB = 300.0  # below the strongest: what no spectrum spans


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
    return replace(detection, max_db=_EVERY_DB, mad_z=None, prominence_db=0.0, max_sources=None, candidates=candidates)


def capon_sources(covariance: Tensor, setup: Setup, options: CaponOptions, n_sources: Tensor | None) -> list[Sources]:
    """Peaks of the Capon spectrum of a batch of covariances.

    covariance (B, N, N), n_sources (B,)
    """
    # J. Capon, "High-resolution frequency-wavenumber spectrum analysis", Proc. IEEE 57, 1969, through
    # :func:`risfast.detect.detect_sources`. No gradient.
    with torch.no_grad():
        effective = effective_covariance(covariance)
        grid = options.grid if options.grid is not None else setup.search_grid()
        if n_sources is None:
            how = options.detection
        else:
            how = peaks_without_threshold(options.detection, int(n_sources.max()) if len(n_sources) else 0)
        found = detect_sources(effective, setup, grid, loading=options.loading, options=how)
        if n_sources is None:
            return reported(found, setup)

        def volume(scene: int) -> Tensor:
            return mvdr_spectrum(
                effective[scene],
                setup.array,
                grid,
                loading=options.loading,
                wavefront=setup.wavefront,
                reduce="none",
            )

        whole = exactly(found, n_sources.tolist(), grid, volume, options.detection.separation(setup))
        return reported(whole, setup)


class LsCapon:
    """Capon spectrum of the ridge least-squares covariance of :func:`risfast.covariance.ls_covariance`."""

    def __init__(self, setup: Setup, options: CaponOptions | None = None) -> None:
        self.setup, self.options = setup, options or CaponOptions()

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`.

        n_sources (B,)
        """
        check_request(measurement, self.setup.array, n_sources)
        covariance = ls_covariance(
            measurement.y, measurement.codes, measurement.channel, noise_power=measurement.noise_power
        )
        return capon_sources(covariance, self.setup, self.options, n_sources)


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


class AlsCapon:
    """Capon spectrum of the low-rank covariance of :func:`risfast.covariance.als_covariance`."""

    # Its rank is the number of sources where that is given.

    def __init__(self, setup: Setup, options: AlsCaponOptions | None = None) -> None:
        self.setup, self.options = setup, options or AlsCaponOptions()

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`.

        n_sources (B,)
        """
        check_request(measurement, self.setup.array, n_sources)
        n = self.setup.array.n_elements
        ranks = torch.full((len(measurement),), self.options.rank) if n_sources is None else n_sources.cpu()
        covariance = torch.zeros(len(measurement), n, n, dtype=measurement.y.dtype, device=measurement.y.device)
        ranks = ranks.clamp(1, n)
        for rank in ranks.unique().tolist():
            scenes = (ranks == rank).nonzero()[:, 0].to(measurement.y.device)
            part = measurement[scenes]
            factor = als_covariance(
                part.y,
                part.codes,
                part.channel,
                rank,
                noise_power=part.noise_power,
                iterations=self.options.iterations,
            )
            covariance[scenes] = covariance_from_factor(factor)
        return capon_sources(covariance, self.setup, self.options.capon, n_sources)


class TrueCapon:
    """Capon spectrum of the true covariance: an oracle, which says what the read-out costs and nothing of the data.

    truth (B, N, N)
    """

    def __init__(self, setup: Setup, options: CaponOptions | None = None, truth: Tensor | None = None) -> None:
        self.setup, self.options, self.truth = setup, options or CaponOptions(), truth

    def with_truth(self, truth: Tensor) -> TrueCapon:
        """The same for other scenes.

        truth (B, N, N)
        """
        return TrueCapon(self.setup, self.options, truth)

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`. The measurements are only counted.

        n_sources (B,)
        """
        check_request(measurement, self.setup.array, n_sources)
        if self.truth is None or len(self.truth) != len(measurement):
            held = "none" if self.truth is None else f"that of {len(self.truth)} scenes"
            raise ValueError(
                f"the true covariances of the {len(measurement)} scenes are needed, got {held}: use with_truth(...)"
            )
        return capon_sources(self.truth, self.setup, self.options, n_sources)


@dataclass(frozen=True)
class TransformerCaponOptions:
    """Options of :class:`TransformerCapon`."""

    n_antennas: int = 16  # M, for a network that is made here
    seed: int = 0  # Of its parameters
    capon: CaponOptions = field(default_factory=CaponOptions)  # Of the spectrum


class TransformerCapon:
    """Capon spectrum of the covariance that the transformer backbone predicts."""

    def __init__(
        self,
        setup: Setup,
        options: TransformerCaponOptions | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        self.setup, self.options = setup, options or TransformerCaponOptions()
        if backbone is None:
            from risfast.models import build_backbone  # noqa: PLC0415 - the registry imports it lazily too

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.options.seed)
                backbone = build_backbone("transformer", setup, {"n_antennas": self.options.n_antennas})
        self.backbone = backbone.eval()

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`.

        n_sources (B,)
        """
        check_request(measurement, self.setup.array, n_sources)
        if len(measurement) == 0:
            return []
        with torch.no_grad():
            factor = self.backbone(measurement).factor
        return capon_sources(covariance_from_factor(factor), self.setup, self.options.capon, n_sources)
