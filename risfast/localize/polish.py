"""Likelihood polish: from candidate sources to the maximum of the stochastic likelihood of the snapshots.

All scenes of a batch move together. Fisher scoring refines every coordinate, power and the noise jointly; sources
whose loss the penalised likelihood does not mind die; the strongest gain of the likelihood over a grid of atoms gives
birth to new ones; and where the likelihood is flat in range, the range with the most posterior mass within the
tolerance is reported. Without candidates this is greedy maximum likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.localize.bands import likelihood_of
from risfast.localize.likelihood import KNOWN, Box, Likelihood, Point, SourceState, ascend, coordinate_covariance
from risfast.localize.mismatch import copies_of, explained, resolved, signature_covariance, with_spreading
from risfast.localize.range_posterior import range_posterior
from risfast.localize.source_sets import AnyLikelihood, Atoms, Rules, on_wrong_hill, settle, started_again
from risfast.models.base import Measurement
from risfast.models.direct import SteeredAtoms
from risfast.setup import Setup
from risfast.sources import Sources

# Least power of a source and least noise, relative to the mean received power over N and to the mean received power.
_LEAST_POWER, _LEAST_NOISE = 1e-7, 1e-6
# Numbers of a small scene that two sources and the noise take for themselves, so that what is left of noise is smaller
# than it was, and gains are larger (C. M. Hurvich and C.-L. Tsai, "Regression and time series model selection in small
# samples", Biometrika 76, 1989).
_TAKEN = 5.0
_LAST_CLIMB = 40  # steps at the most


@dataclass(frozen=True)
class PolishOptions:
    """Options of the polish, the maximum-likelihood search that ends the localisation.

    Parameters
    ----------
    iterations : int
        Most scoring steps after each change of the set of sources; a scene stops where it has converged.
    births : int
        Most sources that may be added to the candidates.
    max_sources : int
        Most sources of a scene.
    penalty : float
        What a source has to gain, in units of ln(L M): 2 is the Bayesian information criterion of its 4 parameters.
    range_points : int
        Points of the range posterior, at least 2; 0 reports the maximum of the likelihood.
    range_mass : float in [0, 1]
        Posterior mass that must lie within 30 % of a range for it to be reported as a number, in a region that reaches
        to the far field. 0.25 is what a source has whose likeliest place is one deviation of 1/range from the far
        field, 0.4 two: of sources farther than the array can tell, a few in a hundred have a range. In any region a
        range is not determined where nothing tells ranges apart; at 0 it always is a number.
    imperfect : bool
        Whether, of an array that is sampled directly, the data may say that the model is not exact: that waves decay
        from element to element, and that what looks like weak sources is what gains, positions or a room did to the
        signals of strong ones.

    Raises
    ------
    ValueError
        A value is out of its range.
    """

    iterations: int = 10
    births: int = 4
    max_sources: int = 8
    penalty: float = 2.0
    range_points: int = 64
    range_mass: float = 0.4
    imperfect: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        if self.iterations < 1 or self.max_sources < 1:
            raise ValueError("iterations and max_sources must be at least 1")
        if self.births < 0 or self.range_points < 0 or self.range_points == 1:
            raise ValueError("births must be at least 0, and range_points 0 or at least 2")
        if not (self.penalty >= 0 and 0 <= self.range_mass <= 1):
            raise ValueError("penalty must be at least 0 and range_mass lie in [0, 1]")


class Polished(NamedTuple):
    """What the polish ends with.

    Attributes
    ----------
    sources : list of Sources
        One a scene, strongest first. ``confidence`` is the probability that a source is there, from its gain and the
        penalty, times that of every coordinate's being within the tolerance. The range is NaN where the data do not
        determine it.
    covariance : list of float64 tensors, shape (K, 3, 3)
        Inverse Fisher information of each source's (azimuth, elevation, range), in the same order; infinite variance
        of a coordinate that the data do not determine.
    noise_power : float64 tensor, shape (B,)
        Of several bands (B, F).
    log_likelihood : float64 tensor, shape (B,)
        At the maximum, without the constant -L M log(pi).
    gain : list of float64 tensors, shape (K,)
        Log-likelihood at the maximum less that without the source, everything else as it is, in the same order.
    range_mass : list of float64 tensors, shape (K,)
        Posterior mass within the tolerance of the reported range (1 without the range posterior), in the same order.
    mismatch : list of float64 tensors, shape (K,), or None
        Part of the power of each source that is off its steering vector, in scenes whose data say that the model is
        not exact, else 0; None where that was not asked.
    copies : list of Sources, or None
        In these scenes, where further point sources would have to be that explain what is off: a reflection, if it is
        strong. Their signals are those of the sources. Ranges and powers are as they come.
    spreading : float64 tensor, shape (B,), or None
        Exponent of the decay of amplitudes with distance that the data say, 0 or 1; None where it is 0 in all scenes.
    """

    sources: list[Sources]
    covariance: list[Tensor]
    noise_power: Tensor
    log_likelihood: Tensor
    gain: list[Tensor]
    range_mass: list[Tensor]
    mismatch: list[Tensor] | None = None
    copies: list[Sources] | None = None
    spreading: Tensor | None = None

    def select(self, chosen: Sequence[Tensor]) -> Polished:
        """Some of the sources of each scene.

        Parameters
        ----------
        chosen : sequence of B int64 or bool tensors
            Which of each scene, as indices or as a mask.

        Returns
        -------
        Polished
            Of the same scenes.
        """
        names: tuple[str, ...] = ("sources", "covariance", "gain", "range_mass")
        if self.mismatch is not None:
            names = (*names, "mismatch")
        parts: dict[str, Any] = {n: [v[c] for v, c in zip(getattr(self, n), chosen, strict=True)] for n in names}
        return self._replace(**parts)


def polish_sources(
    measurement: Measurement,
    candidates: Sequence[Sources] | None,
    atoms: Atoms,
    options: PolishOptions | None = None,
    *,
    noise_power: Tensor | None = None,
) -> Polished:
    """Maximise the stochastic likelihood of the snapshots from candidate sources.

    Parameters
    ----------
    measurement : Measurement
        Of B scenes. Its noise power is a start; the noise is estimated with the sources.
    candidates : sequence of B Sources, or None
        Starting points with their powers; None starts from noise alone.
    atoms : AtomGrid, or SteeredAtoms for pooled snapshots
        The setup, and the grid that new sources are looked for on.
    options : PolishOptions, optional
    noise_power : real tensor, shape (B,), optional
        A start where the measurement knows none.

    Returns
    -------
    Polished
        Its penalised likelihood is never below that of the candidates.

    Raises
    ------
    ValueError
        Snapshots that are not pooled, for an array that is sampled directly.

    Notes
    -----
    Maximum likelihood by Fisher scoring with Levenberg-Marquardt damping; Bayesian information criterion; for a new
    source at atom g with n_g and d_g of :func:`risfast.models.unrolled.statistics`, the gain of the likelihood would be
    L (rho - 1 - log rho) with rho = n_g / d_g > 1 if all snapshots saw the atom with the same gain; the atoms that are
    best by this are compared by their exact gains.
    """
    options = options or PolishOptions()
    if isinstance(atoms, SteeredAtoms) and measurement.pooled is None:
        raise ValueError("an array that is sampled directly takes pooled snapshots: see Measurement.direct")
    likelihood = likelihood_of(measurement, atoms.setup)
    b = len(measurement)
    # Four parameters of a source are worth ``penalty``; it has one more for each further band.
    penalty = options.penalty * math.log(max(likelihood.size, 2)) * (3 + measurement.bands) / 4
    if measurement.pooled is not None:
        penalty *= likelihood.size / (likelihood.size - min(_TAKEN, likelihood.size / 3))
    state, box = start_of(measurement, candidates, atoms, options, noise_power)
    if b == 0:
        return Polished([], [], state.noise, state.noise, [], [])
    found = ascend(likelihood, state, box, options.iterations)
    rules = Rules(penalty, options.births, options.iterations)
    found, grown = settle(likelihood, found, box, atoms, rules)
    if isinstance(atoms, SteeredAtoms):
        doubtful = on_wrong_hill(found, grown, atoms.setup)
        doubtful = doubtful[~explained(likelihood[doubtful], found.take(doubtful))]
        found = started_again(likelihood, found, doubtful, box, atoms, rules)
    # What is reported, and judged as a misfit, should not hang on where a climb was broken off, nor on rounding.
    exact = likelihood if measurement.pooled is not None else likelihood_of(measurement, atoms.setup, torch.complex128)
    found = ascend(exact, found.state, box, _LAST_CLIMB, precise=True)
    if not (options.imperfect and measurement.pooled is not None):
        return _report(likelihood, found, box, atoms.setup, penalty, options)
    likelihood, found = with_spreading(likelihood, found, box, atoms, rules)
    kept, mismatch = resolved(likelihood, found, box, penalty, options.iterations)
    report = _report(likelihood, kept, box, atoms.setup, penalty, options, mismatch)
    spreading = likelihood.spreading if isinstance(likelihood, Likelihood) else None
    copies = copies_of(found.state, kept.state, mismatch, atoms.setup)
    return report._replace(copies=copies, spreading=spreading)


def start_of(
    measurement: Measurement,
    candidates: Sequence[Sources] | None,
    atoms: Atoms,
    options: PolishOptions,
    noise_power: Tensor | None,
) -> tuple[SourceState, Box]:
    """The state of candidate sources, and where it may go."""
    device = measurement.y.device
    b, k = len(measurement), options.max_sources
    received = measurement.received.clamp_min(1e-300)
    gain = (measurement.channel.abs().double().square().mean((1, 2)) * atoms.array.n_elements).clamp_min(1e-300)
    if measurement.bands > 1:  # (B, F)
        received, gain = (values.unflatten(0, (-1, measurement.bands)) for values in (received, gain))
    farthest = atoms.setup.region.inverse_range[0]
    position = torch.zeros(b, k, 3, dtype=torch.float64)
    power = torch.ones(*received.shape, k, dtype=torch.float64)
    mask = torch.zeros(b, k, dtype=torch.bool)
    for i, sources in enumerate(candidates or ()):
        count = min(len(sources), k)
        position[i, :count, :2] = sources.position[:count, :2].double().cpu()
        # A candidate whose range is not known starts from the far end.
        position[i, :count, 2] = (1 / sources.range[:count].double().cpu()).nan_to_num(nan=farthest)
        # What is known of a candidate's power is its sum over bands.
        power[i, ..., :count] = sources.power[:count].double().cpu() / measurement.bands
        mask[i, :count] = True
    start = measurement.noise_power if measurement.noise_power is not None else noise_power
    noise = 0.5 * received if start is None else start.double()
    box = Box.of(atoms.setup, _LEAST_POWER * received / gain, _LEAST_NOISE * received)
    state = SourceState(position.to(device), power.to(device), noise, mask.to(device))
    return box.clamp(state), box


def _report(
    likelihood: AnyLikelihood,
    point: Point,
    box: Box,
    setup: Setup,
    penalty: float,
    options: PolishOptions,
    mismatch: Tensor | None = None,
) -> Polished:
    used = point.state.mask.any(0).nonzero()[:, 0]
    state, off = point.state.columns(used), None if mismatch is None else mismatch[:, used]
    lost = likelihood.losses(state)
    mass = torch.ones_like(state.strength)
    b, k = state.mask.shape
    information = _without_fixed(likelihood.derivatives(state).information, k, box)
    blocks = coordinate_covariance(information, k)  # of azimuth, elevation and 1/range
    if off is not None and bool((off > 0).any()):
        blocks = blocks + signature_covariance(likelihood, state, off, box)
    determined = state.mask.clone()
    likeliest = torch.cat([state.position[..., :2], 1 / state.position[..., 2:]], -1)
    if options.range_points and setup.region.range_m[0] < setup.region.range_m[1]:  # a fixed range is known
        deviation = blocks[..., 2, 2].sqrt()
        how = (setup, options.range_points, options.range_mass)
        state, mass, determined = range_posterior(likelihood, state, information, deviation, box, *how)
    if setup.curvature_rad_m == 0 and options.range_mass > 0:  # such waves look alike at every range
        determined = torch.zeros_like(state.mask)
    found, covariance = _in_range(state.position, blocks, determined)
    if off is not None:  # the posterior of range knows nothing of a mismatch
        spread = covariance[..., 2, 2].sqrt().clamp_min(1e-300)
        within = torch.erf(setup.tolerance.range_m / (math.sqrt(2) * spread))
        mass = torch.where(off > 0, torch.minimum(mass, within), mass)
    here = _confidence(lost, covariance, mass, determined, setup, penalty)
    # A mean over ranges lies inside even where the likelihood ends on the edge.
    moved = (found[..., 2] - likeliest[..., 2]).abs()
    close = (determined & (moved <= setup.tolerance.range_m)).cpu()
    at_edge = setup.region.at_edge(found) | (setup.region.at_edge(likeliest) & close)
    position, power = found.cpu(), state.strength.cpu()
    columns = [value.cpu() for value in (covariance, lost, mass, here, torch.zeros_like(mass) if off is None else off)]
    sources, parts = [], []
    for i in range(b):
        there = state.mask[i].nonzero()[:, 0].cpu()
        there = there[power[i][there].argsort(descending=True, stable=True)]
        spread, gain, inside, probability, bent = (value[i][there] for value in columns)
        listed = Sources.at(position[i][there], power[i][there], probability)
        sources.append(listed.replace(at_edge=at_edge[i][there]))
        parts.append((spread, gain, inside, bent))
    covariances, gains, masses, bents = ([part[n] for part in parts] for n in range(4))
    return Polished(sources, covariances, state.noise, point.value, gains, masses, None if off is None else bents)


def _without_fixed(information: Tensor, k: int, box: Box) -> Tensor:
    """The information [B, P, P] where coordinates that the region fixes are known."""
    fixed = (box.high <= box.low).repeat_interleave(k)
    fixed = torch.cat([fixed, fixed.new_zeros(information.shape[1] - 3 * k)])
    if not bool(fixed.any()):
        return information
    known = torch.where(fixed[:, None] | fixed, 0.0, information)
    return known + torch.diag(torch.where(fixed, KNOWN, 0.0).to(known))


def _in_range(position: Tensor, blocks: Tensor, determined: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, K, 3] and covariances [B, K, 3, 3] in range from those in 1/range."""
    # A range that is not determined is NaN, and its deviation infinite, as is that of a source in the far field.
    r = 1 / position[..., 2]
    finite = determined & r.isfinite()
    scale = torch.stack([torch.ones_like(r), torch.ones_like(r), torch.where(finite, -r.square(), 0.0)], -1)
    covariance = (blocks * scale[..., None] * scale[..., None, :]).nan_to_num(nan=0.0, posinf=torch.inf)
    covariance[..., 2, 2] = torch.where(finite, covariance[..., 2, 2], torch.inf)
    return torch.cat([position[..., :2], torch.where(determined, r, torch.nan)[..., None]], -1), covariance


def _confidence(
    gain: Tensor, covariance: Tensor, mass: Tensor, determined: Tensor, setup: Setup, penalty: float
) -> Tensor:
    """Probability of each source's lying within the tolerance of a true one [B, K]."""
    # The odds that it is there at all are those of the penalised likelihood (Schwarz's approximation of a Bayes
    # factor).
    there = torch.sigmoid(gain - penalty)
    deviation = covariance.diagonal(dim1=2, dim2=3)[..., :2].clamp_min(0).sqrt()
    limits = deviation.new_tensor(setup.tolerance.limits[:2])
    angles = torch.erf(limits / (math.sqrt(2) * deviation.clamp_min(1e-300))).prod(-1)
    scored = math.isfinite(setup.tolerance.range_m)
    return there * angles * (torch.where(determined, mass, 0.0) if scored else torch.ones_like(mass))
