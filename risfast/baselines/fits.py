"""Fits of the stochastic model itself: the sparse covariance fit, and greedy maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from risfast.baselines.base import by_count, check_request, completed
from risfast.detect import Sources
from risfast.geometry import PlanarArray
from risfast.models.atoms import AtomAxes, AtomGrid
from risfast.models.base import Measurement
from risfast.models.decode import PowerDetection, sources_of_power
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.polish import PolishOptions, polish_sources

__all__ = ["GreedyMl", "GreedyMlOptions", "Sbl", "SblOptions"]

_EVERY_DB = 300.0


def _coordinates(axes: AtomAxes) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuths, elevations and ranges of the atoms."""
    sin_az, sin_el = axes.sines
    return sin_az.asin(), sin_el.asin(), 1 / axes.inverse_range


@dataclass(frozen=True)
class SblOptions:
    """Options of :class:`Sbl`.

    Attributes
    ----------
    steps : int
        Majorise-minimise steps.
    axes : AtomAxes
        Where atoms stand.
    detection : PowerDetection
        How their powers are read out; its thresholds are not used where the number of sources is given.
    wavefront : {"spherical", "fresnel", "planar"}
        Of the atoms.
    """

    steps: int = 30
    axes: AtomAxes = field(default_factory=AtomAxes)
    detection: PowerDetection = field(default_factory=PowerDetection)
    wavefront: str = "spherical"


class Sbl:
    """Sparse Bayesian learning by majorise-minimise steps on a grid of atoms; the peaks of their powers.

    Parameters
    ----------
    array : PlanarArray
        The surface.
    options : SblOptions, optional

    Notes
    -----
    M. E. Tipping, "Sparse Bayesian learning and the relevance vector machine", JMLR 1, 2001; the step p <- p sqrt(n /
    d) is that of P. Gerstoft, C. F. Mecklenbräuker, A. Xenaki, S. Nannuru, "Multisnapshot sparse Bayesian learning for
    DOA", IEEE Signal Process. Lett. 23, 2016, with an operator of its own in each snapshot: see ``risfast.models.fit``.
    """

    def __init__(self, array: PlanarArray, options: SblOptions | None = None) -> None:
        self.array, self.options = array, options or SblOptions()
        o = self.options
        fit = UnrolledOptions(steps=o.steps, corrections=False, axes=o.axes, wavefront=o.wavefront)
        self.fit = UnrolledBackbone(array, fit).eval()

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`.

        Parameters
        ----------
        measurement : Measurement
        n_sources : int64 tensor, shape (B,), or None

        Returns
        -------
        list of B Sources
            ``confidence`` is the share of the scene's power.
        """
        check_request(measurement, self.array, n_sources)
        if len(measurement) == 0:
            return []
        o = self.options
        with torch.no_grad():
            power = self.fit(measurement).power
        assert power is not None  # this backbone has atoms
        if n_sources is None:
            return sources_of_power(power, o.axes, o.detection)
        most = max(int(n_sources.max()), 1)
        found = sources_of_power(power, o.axes, replace(o.detection, max_db=_EVERY_DB, max_sources=most))
        apart = o.detection.separation
        gate = (apart.azimuth_rad, apart.elevation_rad, apart.range_m)
        return [
            completed(sources, count, _coordinates(o.axes), power[i], gate)
            for i, (sources, count) in enumerate(zip(found, n_sources.tolist(), strict=True))
        ]


@dataclass(frozen=True)
class GreedyMlOptions:
    """Options of :class:`GreedyMl`.

    Attributes
    ----------
    polish : PolishOptions
        Births, moves and the penalty of a source.
    axes : AtomAxes
        Where new sources are looked for.
    wavefront : {"spherical", "fresnel", "planar"}
        Of the atoms and of the likelihood.
    """

    polish: PolishOptions = field(default_factory=lambda: PolishOptions(births=8))
    axes: AtomAxes = field(default_factory=AtomAxes)
    wavefront: str = "spherical"


class GreedyMl:
    """Greedy maximum likelihood: sources are born one after the other while the penalised likelihood rises.

    With the number of sources given, births without a penalty or the removals that cost the least likelihood follow
    until there are so many.

    Parameters
    ----------
    array : PlanarArray
        The surface.
    options : GreedyMlOptions, optional

    Notes
    -----
    The likelihood is the stochastic one of ``risfast.likelihood``, y_l ~ CN(0, Phi_l A P A^H Phi_l^H + sigma^2 I);
    births, joint moves and the penalty are those of :func:`risfast.polish.polish_sources`, started from no source.
    """

    def __init__(self, array: PlanarArray, options: GreedyMlOptions | None = None) -> None:
        self.array, self.options = array, options or GreedyMlOptions()
        self.atoms = AtomGrid(array, self.options.axes, self.options.wavefront)

    def localize(self, measurement: Measurement, n_sources: Tensor | None = None) -> list[Sources]:
        """Find the sources of B scenes; see :class:`risfast.baselines.Baseline`.

        Parameters
        ----------
        measurement : Measurement
        n_sources : int64 tensor, shape (B,), or None

        Returns
        -------
        list of B Sources
        """
        check_request(measurement, self.array, n_sources)
        with torch.no_grad():
            if n_sources is None:
                return polish_sources(measurement, None, self.atoms, self.options.polish).sources
            return by_count(
                n_sources.cpu(),
                lambda scenes, count: self._exactly(measurement[scenes.to(measurement.y.device)], count),
            )

    def _exactly(self, measurement: Measurement, count: int) -> list[Sources]:
        """Exactly ``count`` sources of each scene: what was found blind, with more births or the least loss."""
        blind = self.options.polish
        most = max(blind.max_sources, count)
        how = replace(blind, births=max(blind.births, count), max_sources=most)
        found = polish_sources(measurement, None, self.atoms, how).sources
        free = replace(blind, max_sources=most, penalty=0.0)
        while surplus := [i for i, sources in enumerate(found) if len(sources) > count]:
            for i in surplus:
                found[i] = self._without_one(measurement[torch.tensor([i])], found[i], replace(free, births=0))
        lacking = [i for i, sources in enumerate(found) if len(sources) < count]
        if not lacking:
            return found
        part = measurement[torch.tensor(lacking)]
        grown = polish_sources(
            part, [found[i] for i in lacking], self.atoms, replace(free, births=count, max_sources=count)
        ).sources
        volume, axes = self._matched_filter(part), _coordinates(self.options.axes)
        for i, sources, powers in zip(lacking, grown, volume, strict=True):
            found[i] = completed(sources, count, axes, powers, self._steps())
        return found

    def _without_one(self, measurement: Measurement, sources: Sources, how: PolishOptions) -> Sources:
        """The sources of one scene less the one that the likelihood misses least."""
        k = len(sources)
        rows = torch.stack([sources.azimuth, sources.elevation, sources.range, sources.power, sources.confidence], -1)
        fewer = [Sources(*torch.cat([rows[:i], rows[i + 1 :]]).unbind(-1)) for i in range(k)]
        tried = polish_sources(measurement[torch.zeros(k, dtype=torch.long)], fewer, self.atoms, how)
        return tried.sources[int(tried.log_likelihood.argmax())]

    def _steps(self) -> tuple[float, float, float]:
        """Widest spacings of the atoms."""
        widest = [float(a.diff().abs().max()) for a in _coordinates(self.options.axes)]
        return widest[0], widest[1], widest[2]

    def _matched_filter(self, measurement: Measurement) -> Tensor:
        """|Phi^H y|^2 summed over snapshots, at every atom."""
        phi = measurement.channel.to(torch.complex64)[:, None] * measurement.codes.to(torch.complex64)[:, :, None]
        v = (self.atoms.transform(phi).mH @ measurement.y.to(torch.complex64)[..., None])[..., 0]
        return self.atoms.analysis(v.mT @ v.conj())
