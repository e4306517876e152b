"""Fits of the stochastic model itself: the sparse covariance fit, and greedy maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from risfast.baselines.base import Baseline, by_count, completed, exactly, reported
from risfast.baselines.capon import EVERY_DB
from risfast.localize.polish import PolishOptions, polish_sources
from risfast.localize.source_sets import atoms_of
from risfast.models.atoms import AtomAxes
from risfast.models.base import Measurement
from risfast.models.decode import PowerDetection, sources_of_power
from risfast.models.direct import SteeredAtoms
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.setup import Setup
from risfast.sources import Sources


def _coordinates(axes: AtomAxes) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuths, elevations and ranges of the atoms."""
    azimuth, elevation = axes.angles(axes.coordinates)
    return azimuth, elevation, 1 / axes.inverse_range


@dataclass(frozen=True)
class SblOptions:
    """Options of :class:`Sbl`."""

    steps: int = 30  # Majorise-minimise steps
    axes: AtomAxes | None = None  # Where atoms stand; None is :meth:`risfast.models.atoms.AtomAxes.of` the setup
    # How their powers are read out; its thresholds are not used where the number of sources is given
    detection: PowerDetection = field(default_factory=PowerDetection)


class Sbl(Baseline):
    """Sparse Bayesian learning by majorise-minimise steps on a grid of atoms; the peaks of their powers."""

    # M. E. Tipping, "Sparse Bayesian learning and the relevance vector machine", JMLR 1, 2001; the step p <- p sqrt(n /
    # d) is that of P. Gerstoft, C. F. Mecklenbräuker, A. Xenaki, S. Nannuru, "Multisnapshot sparse Bayesian learning
    # for DOA", IEEE Signal Process. Lett. 23, 2016, with an operator of its own in each snapshot: see
    # ``risfast.models.unrolled``.

    Options = SblOptions

    def __init__(self, setup: Setup, options: SblOptions | None = None) -> None:
        super().__init__(setup, options)
        fit = UnrolledOptions(steps=self.options.steps, corrections=False, axes=self.options.axes)
        self.fit = UnrolledBackbone(setup, fit).eval()

    def find(self, measurement: Measurement, n_sources: Tensor | None) -> list[Sources]:
        """The peaks of the powers."""
        detection, tolerance, axes = self.options.detection, self.setup.tolerance, self.fit.atoms.axes
        power = self.fit(measurement).power
        assert power is not None  # this backbone has atoms
        if n_sources is None:
            return reported(sources_of_power(power, axes, tolerance, detection), self.setup)
        every = replace(detection, max_db=EVERY_DB, max_sources=max(int(n_sources.max()), 1))
        found = sources_of_power(power, axes, tolerance, every)
        whole = exactly(found, n_sources.tolist(), _coordinates(axes), power.__getitem__, tolerance.limits)
        return reported(whole, self.setup)


@dataclass(frozen=True)
class GreedyMlOptions:
    """Options of :class:`GreedyMl`."""

    # Births, moves and the penalty of a source
    polish: PolishOptions = field(default_factory=lambda: PolishOptions(births=8))
    # Where new sources are looked for; None is :meth:`risfast.models.atoms.AtomAxes.of` the setup
    axes: AtomAxes | None = None


class GreedyMl(Baseline):
    """Greedy maximum likelihood: sources are born one after the other while the penalised likelihood rises."""

    # With the number of sources given, births without a penalty or the removals that cost the least likelihood follow
    # until there are so many. The likelihood is the stochastic one of ``risfast.localize.likelihood``, y_l ~ CN(0,
    # Phi_l A P A^H Phi_l^H + sigma^2 I); births, joint moves and the penalty are those of
    # :func:`risfast.localize.polish.polish_sources`, started from no source.

    Options = GreedyMlOptions

    def __init__(self, setup: Setup, options: GreedyMlOptions | None = None) -> None:
        super().__init__(setup, options)
        self.atoms = atoms_of(setup, self.options.axes)

    def find(self, measurement: Measurement, n_sources: Tensor | None) -> list[Sources]:
        """The sources of the fit."""
        if n_sources is None:
            return polish_sources(measurement, None, self.atoms, self.options.polish).sources
        return by_count(
            n_sources.cpu(), lambda scenes, count: self._exactly(measurement[scenes.to(measurement.y.device)], count)
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
        volume, axes = self._matched_filter(part), _coordinates(self.atoms.axes)
        for i, sources, powers in zip(lacking, grown, volume, strict=True):
            (found[i],) = reported([completed(sources, count, axes, powers, self._steps())], self.setup)
        return found

    def _without_one(self, measurement: Measurement, sources: Sources, how: PolishOptions) -> Sources:
        """The sources of one scene less the one that the likelihood misses least."""
        k = len(sources)
        fewer = [sources[[j for j in range(k) if j != i]] for i in range(k)]
        tried = polish_sources(measurement[torch.zeros(k, dtype=torch.long)], fewer, self.atoms, how)
        return tried.sources[int(tried.log_likelihood.argmax())]

    def _steps(self) -> tuple[float, float, float]:
        """Widest spacings of the atoms."""
        widest = [float(a.diff().abs().max()) if len(a) > 1 else 0.0 for a in _coordinates(self.atoms.axes)]
        return widest[0], widest[1], widest[2]

    def _matched_filter(self, measurement: Measurement) -> Tensor:
        """|Phi^H y|^2 summed over snapshots, at every atom."""
        if isinstance(self.atoms, SteeredAtoms):
            power = self.atoms.power(measurement.fields.mT).unflatten(0, (-1, measurement.bands)).sum(1)
            return power.unflatten(1, self.atoms.shape)
        phi = measurement.channel.to(torch.complex64)[:, None] * measurement.codes.to(torch.complex64)[:, :, None]
        v = (self.atoms.transform(phi).mH @ measurement.y.to(torch.complex64)[..., None])[..., 0]
        return self.atoms.analysis(v.mT @ v.conj())
