"""Likelihood polish: from candidate sources to the maximum of the stochastic likelihood of the snapshots.

All scenes of a batch move together. Fisher scoring refines every coordinate, power and the noise jointly; sources
whose loss the penalised likelihood does not mind die; the strongest gain of the likelihood over a grid of atoms gives
birth to new ones; and where the likelihood is flat in range, the range with the most posterior mass within the
tolerance is reported. Without candidates this is greedy maximum likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.localize.bands import BandLikelihood, likelihood_of
from risfast.localize.likelihood import (
    Box,
    Likelihood,
    Point,
    SourceState,
    ascend,
    coordinate_covariance,
    scaled_inverse,
    squared_magnitude,
)
from risfast.localize.mismatch import LEAST_SNAPSHOTS, MOST_BENT, Signals, fits
from risfast.models.atoms import AtomAxes, AtomGrid
from risfast.models.base import Measurement
from risfast.models.direct import SteeredAtoms, condensed
from risfast.setup import Setup
from risfast.sources import Sources

_ALIKE = 0.8  # squared correlation of two responses from which on they may be of one source
# Least power of a source and least noise, relative to the mean received power over N and to the mean received power.
_LEAST_POWER, _LEAST_NOISE = 1e-7, 1e-6
_TAIL = 6.0  # deviations of 1/range beyond which the posterior is not looked at
_LEAST_MASS = 0.2  # of a posterior within the tolerance; a uniform one over ten tolerances has it
_FINE = 0.5  # tolerances between points of range up to which they tell the mass within one
_FINER = 4  # times the points of the range posterior, the most that are spent on reaching that
_FACTOR = 1.3  # about a range, that the posterior of a region without end is weighed within
_FAR_FIELD = 2.0  # by how much a log-likelihood must exceed that of the far field, two deviations
_WINDOW = 2.0  # deviations of a blunt posterior, half the window that it is read with
_ROUNDING = 1e-2  # of a log-likelihood whose products are of 32 bits
_KNOWN = 1e30  # information of a coordinate that the region fixes
_CERTAIN = 5.0  # deviations of range within which a source is certain to be
_LEAD = 8  # leading directions of what sources leave, in which another would stand out
_CLUTTER = 2.0  # penalties that a signal which is no source has to be worth, besides the cost of its signature
_MARGIN = 0.5  # of a penalty that a model with signatures has to be better by
# Numbers of a small scene that two sources and the noise take for themselves, so that what is left of noise is smaller
# than it was, and gains are larger (C. M. Hurvich and C.-L. Tsai, "Regression and time series model selection in small
# samples", Biometrika 76, 1989).
_TAKEN = 5.0
_SHORTLIST = 64  # atoms whose exact gain is computed


Atoms = AtomGrid | SteeredAtoms
AnyLikelihood = Likelihood | BandLikelihood


def atoms_of(setup: Setup, axes: AtomAxes | None = None) -> Atoms:
    """The grid that new sources of a setup are looked for on."""
    return SteeredAtoms(setup, axes) if setup.sampling == "direct" else AtomGrid(setup, axes)


@dataclass(frozen=True)
class PolishOptions:
    """Options of :func:`polish_sources`.

    Parameters
    ----------
    iterations : int
        Most scoring steps after each change of the set of sources; a scene stops where it has converged.
    births : int
        Most sources that may be born.
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
        signals of strong ones (:mod:`risfast.localize.mismatch`).

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
    """

    sources: list[Sources]
    covariance: list[Tensor]
    noise_power: Tensor
    log_likelihood: Tensor
    gain: list[Tensor]
    range_mass: list[Tensor]
    mismatch: list[Tensor] | None = None
    copies: list[Sources] | None = None

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
    state, box = _start(measurement, candidates, atoms, options, noise_power)
    if b == 0:
        return Polished([], [], state.noise, state.noise, [], [])
    found = ascend(likelihood, state, box, options.iterations)
    found, grown = _settled(likelihood, found, box, atoms, penalty, options)
    if isinstance(atoms, SteeredAtoms):
        found = _started_again(likelihood, found, grown, box, atoms, penalty, options)
    if not (options.imperfect and measurement.pooled is not None):
        return _report(likelihood, found, box, atoms.setup, penalty, options)
    likelihood, found = _with_spreading(likelihood, found, box, atoms, penalty, options)
    kept, mismatch = _resolved(likelihood, found, box, penalty, options.iterations)
    report = _report(likelihood, kept, box, atoms.setup, penalty, options, mismatch)
    return report._replace(copies=_copies(found.state, kept.state, mismatch, atoms.setup))


def _settled(
    likelihood: AnyLikelihood,
    found: Point,
    box: Box,
    atoms: Atoms,
    penalty: float,
    options: PolishOptions,
    far: bool = False,
) -> tuple[Point, Tensor]:
    """Fewer sources, then more, until the penalised likelihood does not rise; and which scenes have got more (B,)."""
    found = _fewer(likelihood, found, box, penalty, options.iterations)
    before = found.state.mask.sum(1)
    propose = partial(_with_best_atom, atoms=atoms, penalty=penalty, far=far)
    found = _changed(likelihood, found, box, penalty, options.births, options.iterations, propose)
    grown = found.state.mask.sum(1) != before
    born = grown.nonzero()[:, 0]
    if len(born):  # a new source may have taken over an old one
        again = _fewer(likelihood[born], found.take(born), box[born], penalty, options.iterations)
        found = found.put(born, again)
    return found, grown


def _started_again(
    likelihood: AnyLikelihood,
    found: Point,
    grown: Tensor,
    box: Box,
    atoms: Atoms,
    penalty: float,
    options: PolishOptions,
) -> Point:
    """The better of what is found and of another start, in scenes whose sources were born late or stand on an edge."""
    # Candidates beside the right hill of several climb a wrong one, at an end of the region or with further sources
    # that fill what it misses, and close to the array hills are many: the other start is noise alone, with sources born
    # in the farthest third of the region.
    state = found.state
    place = torch.cat([state.position[..., :2], 1 / state.position[..., 2:]], -1)
    edge = atoms.setup.region.at_edge(place).to(state.mask.device) & state.mask
    scenes = (grown | edge.any(1)).nonzero()[:, 0]
    if not len(scenes):
        return found
    nothing = replace(state.take(scenes), mask=torch.zeros_like(state.mask[scenes]))
    how = replace(options, births=options.max_sources)
    other = ascend(likelihood[scenes], nothing, box[scenes], options.iterations)
    other, _ = _settled(likelihood[scenes], other, box[scenes], atoms, penalty, how, far=True)
    worth = [point.value - penalty * point.state.mask.sum(1) for point in (other, found.take(scenes))]
    better = (worth[0] > worth[1]).nonzero()[:, 0]
    return found.put(scenes[better], other.take(better))


def _with_spreading(
    likelihood: AnyLikelihood, found: Point, box: Box, atoms: Atoms, penalty: float, options: PolishOptions
) -> tuple[AnyLikelihood, Point]:
    """The likelihood of waves that decay from element to element, in the scenes whose data say that theirs do."""
    if atoms.wavefront == "planar":
        return likelihood, found
    ones = torch.ones_like(found.value)
    spreading = likelihood.with_spreading(ones)
    near = found.state.mask.any(1) & (found.value > -torch.inf)
    # At the same places, and with the same power in all, the better model is ahead before a step is taken.
    ratio = _mean_square(spreading, found.state) / _mean_square(likelihood, found.state)
    if found.state.bands > 1:
        ratio = ratio[:, None]
    state = replace(found.state, power=found.state.power / ratio)
    scenes = (near & (spreading.value(state) > found.value)).nonzero()[:, 0]
    if not len(scenes):
        return likelihood, found
    tried = ascend(spreading[scenes], state.take(scenes), box[scenes], options.iterations)
    better = tried.value > found.value[scenes]
    scenes, tried = scenes[better], tried.take(better.nonzero()[:, 0])
    chosen = likelihood.with_spreading(torch.zeros_like(ones).index_fill(0, scenes, 1.0))
    settled, _ = _settled(chosen[scenes], tried, box[scenes], atoms, penalty, options)
    return chosen, found.put(scenes, settled)


def _mean_square(likelihood: AnyLikelihood, state: SourceState) -> Tensor:
    """Of the elements of steering vectors (B, K)."""
    return squared_magnitude(likelihood.seen(state.position)).mean((1, 2))


def _resolved(
    likelihood: AnyLikelihood, found: Point, box: Box, penalty: float, iterations: int
) -> tuple[Point, Tensor]:
    """As many sources as the data hold signals, where these explain them better; and the mismatch of each (B, K)."""
    b, f = len(found.value), found.state.bands
    count, bent = found.state.mask.sum(1), torch.zeros_like(found.state.strength)
    enough = likelihood.each.weight.view(b, f).amin(1) >= LEAST_SNAPSHOTS * count
    scenes = (enough & (count > 0)).nonzero()[:, 0]
    if not len(scenes):
        return found, bent
    signals = Signals(likelihood[scenes].each, _CLUTTER * penalty / f)
    best = (found.value - penalty * count + _MARGIN * penalty)[scenes]
    path = found.take(scenes)

    def bound(count: Tensor, row: Tensor) -> Tensor:
        """The most that so many sources could have."""
        by_band = (row[:, None] * f + torch.arange(f, device=row.device)).flatten()
        return signals[by_band].upper(count.repeat_interleave(f)).view(-1, f).sum(1) - penalty * count

    row, count = torch.arange(len(scenes), device=scenes.device), count[scenes]
    exact = fits(path.value, bound(count, row) + penalty * count, count, signals.value.shape[1], f)
    going = (~exact | ((count > 1) & (bound(count - 1, row) > best))).nonzero()[:, 0]
    while len(going):
        row, path = row[going], path.take(going)
        here, count = scenes[row], path.state.mask.sum(1)
        by_band = (row[:, None] * f + torch.arange(f, device=row.device)).flatten()
        given = signals[by_band].evidence(likelihood[here].each, path.state.by_band)
        evidence = given.evidence.view(-1, f).sum(1) - penalty * count
        mismatch = given.mismatch.view(-1, f, given.mismatch.shape[1]).mean(1)
        better = ((evidence > best[row]) & (mismatch.amax(1) < MOST_BENT)).nonzero()[:, 0]
        best[row[better]] = evidence[better]
        found, bent = found.put(here[better], path.take(better)), bent.index_copy(0, here[better], mismatch[better])
        going = ((count > 1) & (bound(count - 1, row) > best[row])).nonzero()[:, 0]
        if len(going):
            path = path.put(going, _one_fewer(likelihood[here[going]], path.take(going), box[here[going]], iterations))
    return found, bent


def _copies(found: SourceState, kept: SourceState, mismatch: Tensor, setup: Setup) -> list[Sources]:
    """What more sources would have explained in the scenes of a mismatch, away from those that are reported."""
    azimuth, elevation, _ = setup.tolerance.limits
    gap = (found.position[:, :, None] - kept.position[:, None]).abs()
    around = (gap[..., 0] - 2 * math.pi * (gap[..., 0] / (2 * math.pi)).round()).abs()
    near = (around <= azimuth) & (gap[..., 1] <= elevation) & kept.mask[:, None]
    apart = found.mask & ~near.any(2) & (mismatch > 0).any(1, keepdim=True)
    scenes = []
    for position, power, there in zip(found.position.cpu(), found.strength.cpu(), apart.cpu(), strict=True):
        place = torch.cat([position[:, :2], 1 / position[:, 2:]], 1)
        strongest = power.where(there, 0.0).argsort(descending=True, stable=True)[: int(there.sum())]
        scenes.append(Sources.at(place[strongest], power[strongest]))
    return scenes


def _one_fewer(likelihood: AnyLikelihood, point: Point, box: Box, iterations: int) -> Point:
    """The best with one source fewer: two that look alike as one, or all but the weakest."""
    _, state = _without_weakest(likelihood, point.state, math.inf)
    best = ascend(likelihood, box.clamp(state), box, iterations)
    scenes, state = _merged(likelihood, point.state)
    if len(scenes):
        tried = ascend(likelihood[scenes], box[scenes].clamp(state), box[scenes], iterations)
        better = (tried.value > best.value[scenes]).nonzero()[:, 0]
        best = best.put(scenes[better], tried.take(better))
    return best


def _start(
    measurement: Measurement,
    candidates: Sequence[Sources] | None,
    atoms: Atoms,
    options: PolishOptions,
    noise_power: Tensor | None,
) -> tuple[SourceState, Box]:
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


_Proposal = Callable[[AnyLikelihood, SourceState], tuple[Tensor, SourceState]]  # scenes [b] of B, and their states


def _changed(
    likelihood: AnyLikelihood, point: Point, box: Box, worth: float, rounds: int, iterations: int, propose: _Proposal
) -> Point:
    """Propose a change, climb from it, and keep it where the likelihood rises by more than ``worth``; and again."""
    open_scenes = torch.arange(len(point.value), device=point.value.device)
    for _ in range(rounds):
        here = point.take(open_scenes)
        trial, state = propose(likelihood[open_scenes], here.state)
        if not len(trial):
            return point
        scenes, before = open_scenes[trial], here.value[trial]
        tried = ascend(likelihood[scenes], box[scenes].clamp(state), box[scenes], iterations, before + worth)
        better = (tried.value - worth > before).nonzero()[:, 0]
        open_scenes = scenes[better]
        if not len(open_scenes):
            return point
        point = point.put(open_scenes, tried.take(better))
    return point


def _merged(likelihood: AnyLikelihood, state: SourceState) -> tuple[Tensor, SourceState]:
    """One in the place of two sources that look alike to the antennas."""
    # Each of two sources that share the power of one is missed much at first, so that neither would be tried alone.
    alike, first, second = _most_alike(likelihood, state)
    trial = (alike > _ALIKE).nonzero()[:, 0]
    tried, one, other = state.take(trial), first[trial], second[trial]
    index = torch.arange(len(trial), device=trial.device)
    mask, position, power = tried.mask.clone(), tried.position.clone(), tried.power.clone()
    strength = tried.strength
    both = torch.stack([strength[index, one], strength[index, other]], 1)
    share = both[:, 1:] / both.sum(1, keepdim=True)
    gap = position[index, other] - position[index, one]
    gap[:, 0] -= 2 * math.pi * (gap[:, 0] / (2 * math.pi)).round()  # the short way round
    position[index, one] = position[index, one] + share * gap
    power[index, ..., one] = power[index, ..., one] + power[index, ..., other]
    mask[index, other] = False
    return trial, replace(tried, position=position, power=power, mask=mask)


def _most_alike(likelihood: AnyLikelihood, state: SourceState) -> tuple[Tensor, Tensor, Tensor]:
    """Largest squared correlation of two sources' responses [B], and which two they are [B], [B]."""
    b, k = state.mask.shape
    seen = likelihood.seen(state.position).flatten(1, 2)  # [B, L M, K]
    gram = squared_magnitude(seen.mH @ seen)
    norm = gram.diagonal(dim1=1, dim2=2).sqrt()
    alike = gram / (norm[:, :, None] * norm[:, None]).clamp_min(1e-300)
    pairs = (state.mask[:, :, None] & state.mask[:, None]).triu(1)
    alike, index = torch.where(pairs, alike, 0.0).view(b, k * k).max(1)
    return alike, index // k, index % k


def _without_weakest(likelihood: AnyLikelihood, state: SourceState, penalty: float) -> tuple[Tensor, SourceState]:
    """The sources but the one that is missed least."""
    if isinstance(likelihood, BandLikelihood):
        return _without_weakest_of_bands(likelihood, state, penalty)
    drop, weakest = likelihood.losses(state).min(1)
    # The others may take over a part: what is lost at first is up to three times what is lost in the end.
    trial = (drop < 3 * penalty).nonzero()[:, 0]
    tried = state.take(trial)
    mask = tried.mask.clone()
    mask[torch.arange(len(trial), device=mask.device), weakest[trial]] = False
    return trial, replace(tried, mask=mask)


def _without_weakest_of_bands(
    likelihood: BandLikelihood, state: SourceState, penalty: float
) -> tuple[Tensor, SourceState]:
    """The same, where a grid lobe may have all of the power of its source in some of the bands."""
    value, left = likelihood.value(state), {}
    drops = torch.full_like(state.strength, torch.inf)
    # What is lost in bands where a source looks like no other, no other can take over.
    open_sources = state.mask & (likelihood.own_losses(state, _ALIKE) < 3 * penalty)
    for k in open_sources.any(0).nonzero()[:, 0].tolist():
        left[k] = likelihood.refitted(replace(state, mask=_dropped(state.mask, k)))
        drops[:, k] = torch.where(open_sources[:, k], value - likelihood.value(left[k]), torch.inf)
    drop, weakest = drops.min(1)
    trial = (drop < 3 * penalty).nonzero()[:, 0]
    mask, power = state.mask[trial], state.power[trial]
    for row, (scene, k) in enumerate(zip(trial.tolist(), weakest[trial].tolist(), strict=True)):
        mask[row], power[row] = left[k].mask[scene], left[k].power[scene]
    return trial, replace(state.take(trial), mask=mask, power=power)


def _with_best_atom(
    likelihood: AnyLikelihood, state: SourceState, atoms: Atoms, penalty: float, far: bool
) -> tuple[Tensor, SourceState]:
    """The sources, and one more where the likelihood gains most over the grid, or the farthest third of its ranges."""
    room = (~state.mask.all(1)).nonzero()[:, 0]
    if not len(room):
        return room, state.take(room)
    gain, position, power = _best_atom(likelihood[room], state.take(room), atoms, far)
    # Scoring moves the source off the grid and gains again: half the penalty is worth a trial.
    enough = (gain > 0.5 * penalty).nonzero()[:, 0]
    trial = room[enough]
    tried = state.take(trial)
    slot = tried.mask.int().argmin(1)
    index = torch.arange(len(slot), device=slot.device)
    mask, positions, powers = tried.mask.clone(), tried.position.clone(), tried.power.clone()
    mask[index, slot], positions[index, slot], powers[index, ..., slot] = True, position[enough], power[enough]
    return trial, replace(tried, position=positions, power=powers, mask=mask)


def _fewer(likelihood: AnyLikelihood, point: Point, box: Box, penalty: float, iterations: int) -> Point:
    """Merge and take away sources that the penalised likelihood does without."""
    most = point.state.mask.shape[1]
    point = _changed(likelihood, point, box, -penalty, most - 1, iterations, _merged)
    without = partial(_without_weakest, penalty=penalty)
    return _changed(likelihood, point, box, -penalty, most, iterations, without)


def _best_atom(likelihood: AnyLikelihood, state: SourceState, atoms: Atoms, far: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Largest likelihood gain over the atoms [B], where it is [B, 3], and with what power [B] or [B, F]."""
    state = state.columns(state.mask.any(0).nonzero()[:, 0])
    n, d = _statistics(likelihood, state, atoms)
    d = torch.maximum(d, 1e-6 * d.amax(1, keepdim=True))
    rho = (n / d).clamp_min(1)
    promise = rho - 1 - rho.log()
    if isinstance(likelihood, BandLikelihood):
        promise = likelihood.summed(promise * likelihood.each.weight[:, None].to(promise))
    if far:  # ranges increase along the last axis
        promise.unflatten(1, atoms.shape)[..., : 2 * atoms.shape[2] // 3] = 0.0
    best = promise.topk(min(_SHORTLIST, rho.shape[1]), dim=1).indices  # [B, J]
    _, n_el, n_r = atoms.shape
    azimuth, elevation = (angle.to(best.device) for angle in atoms.axes.angles(atoms.axes.coordinates))
    inverse = atoms.axes.inverse_range.to(best.device)
    position = torch.stack([azimuth[best // (n_el * n_r)], elevation[best // n_r % n_el], inverse[best % n_r]], -1)
    gain, power = likelihood.profile(state, position)
    most, first = gain.max(1)
    index = torch.arange(len(most), device=best.device)
    return most, position[index, first], power[index, ..., first]


def _statistics(likelihood: AnyLikelihood, state: SourceState, atoms: Atoms) -> tuple[Tensor, Tensor]:
    """sum_l |b_lg^H R_l^-1 y_l|^2 and sum_l b_lg^H R_l^-1 b_lg of every atom g [B, G], up to a common factor."""
    if isinstance(atoms, SteeredAtoms):
        return _pooled_statistics(likelihood.each, state.by_band, atoms)
    assert isinstance(likelihood, Likelihood)  # a surface has one band
    # With R_l^-1 = I / sigma^2 - V_l V_l^H, all that depends on the sources is of rank K: the rest of sum_l Phi_l^H
    # R_l^-1 Phi_l is the product, element by element, of the Gram matrices of the channel and of the codes.
    dtype = likelihood.phi.dtype
    # Times sigma^2, which it is divided by in the end, so that 32 bits hold it whatever the units.
    root = state.noise.sqrt()[:, None, None, None]
    v = root * likelihood.correction(state)
    y = likelihood.y / root
    u = y - v @ (v.mH @ y)
    # Phi_l^H x = conj(c_l) * (H^H x), for all l at once.
    columns = (likelihood.channel.mH[:, None] @ torch.cat([u, v], -1).to(dtype)) * likelihood.codes.conj()[..., None]
    rows = atoms.transform(columns.mH.contiguous())  # [B, G, R + K, N]
    matched, taken = (part.flatten(1, 2) for part in rows.tensor_split([u.shape[-1]], 2))
    gram = (likelihood.channel.mH @ likelihood.channel) * (likelihood.codes.mH @ likelihood.codes)
    gram = atoms.transform(atoms.transform(gram).mH.contiguous())
    seen = gram - taken.mH @ taken
    both = atoms.analysis(torch.cat([matched.mH @ matched, seen]).to(torch.complex64)).double()
    b = len(v)
    return both[:b].flatten(1) / state.noise[:, None], both[b:].flatten(1) / state.noise[:, None]


def _pooled_statistics(likelihood: Likelihood, state: SourceState, atoms: SteeredAtoms) -> tuple[Tensor, Tensor]:
    """The same of snapshots that share one covariance, single precision."""
    noise = state.noise[:, None]
    v = noise.sqrt()[..., None] * likelihood.correction(state)[:, 0]
    y = likelihood.y[:, 0] / noise[..., None].sqrt()
    channel = likelihood.channel.mH  # whitens, and is an identity where noise is white
    lead = condensed(y - v @ (v.mH @ y), _LEAD)
    whole = atoms.power(channel) if likelihood.whitened else noise.new_full((), atoms.array.n_elements)
    matched = atoms.power(channel @ (lead.basis * lead.value.sqrt()[:, None])) + lead.floor[:, None].float() * whole
    return matched, likelihood.weight[:, None].float() * (whole - atoms.power(channel @ v))


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
        blocks = blocks + _signature_covariance(likelihood, state, off, box)
    determined = state.mask.clone()
    likeliest = torch.cat([state.position[..., :2], 1 / state.position[..., 2:]], -1)
    if options.range_points and setup.region.range_m[0] < setup.region.range_m[1]:  # a fixed range is known
        deviation = blocks[..., 2, 2].sqrt()
        state, mass, determined = _range_posterior(likelihood, state, information, deviation, box, setup, options)
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


def _signature_covariance(likelihood: AnyLikelihood, state: SourceState, off: Tensor, box: Box) -> Tensor:
    """What signatures that stray from steering vectors add to the covariances of coordinates [B, K, 3, 3]."""
    # A deviation that all snapshots share is the noise of one snapshot. It may be the same in all bands.
    each, k = likelihood.each, off.shape[1]
    bands = len(each.y) // len(off)
    columns = each.seen(state.position.repeat_interleave(bands, 0), derivatives=True)[:, 0].unflatten(0, (-1, bands))
    a, slopes = columns[..., :1, :], columns[..., 1:, :]  # [B, F, N, ., K]
    norm = squared_magnitude(a).sum(2, keepdim=True)
    slopes = slopes - a * ((a.conj() * slopes).sum(2, keepdim=True) / norm)
    gram = torch.einsum("bfnik,bfnjk->bkij", slopes.conj(), slopes).real / bands
    fixed = box.high <= box.low
    gram = torch.where(fixed[:, None] | fixed, 0.0, gram) + torch.diag(torch.where(fixed, _KNOWN, 0.0)).to(gram)
    variance = off / (1 - off).clamp_min(0.1)  # of an element, in parts of the power along the steering vector
    found, lost, _ = scaled_inverse(gram.flatten(0, 1), definite=True)
    found = torch.where(lost[..., None] | lost[..., None, :], 0.0, found) + torch.diag_embed(
        torch.where(lost, torch.inf, 0.0)
    ).nan_to_num(nan=0.0, posinf=torch.inf)
    return torch.where(off[..., None, None] > 0, found.unflatten(0, (-1, k)) * variance[..., None, None] / 2, 0.0)


def _without_fixed(information: Tensor, k: int, box: Box) -> Tensor:
    """The information [B, P, P] where coordinates that the region fixes are known."""
    fixed = (box.high <= box.low).repeat_interleave(k)
    fixed = torch.cat([fixed, fixed.new_zeros(information.shape[1] - 3 * k)])
    if not bool(fixed.any()):
        return information
    known = torch.where(fixed[:, None] | fixed, 0.0, information)
    return known + torch.diag(torch.where(fixed, _KNOWN, 0.0).to(known))


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


def _range_posterior(
    likelihood: AnyLikelihood,
    state: SourceState,
    information: Tensor,
    deviation: Tensor,
    box: Box,
    setup: Setup,
    options: PolishOptions,
) -> tuple[SourceState, Tensor, Tensor]:
    """Move each source along its ridge to where its range most probably is."""
    # Along the ridge the direction follows range as the Fisher information says; the power is profiled out; the other
    # sources stay. In a region that ends, the prior is uniform in range and the range is that with the most posterior
    # mass within the tolerance; in one that reaches to the far field, the prior is uniform in 1/range, and the range is
    # that with the most mass within a factor; so it is where the points are too far apart to see the tolerance. Returns
    # the state, that mass, and whether the range is determined, [B, K] both.
    count = state.mask.shape[1]
    position, power, mass = state.position.clone(), state.power.clone(), torch.ones_like(state.strength)
    determined = state.mask.clone()
    curved = information.diagonal(dim1=1, dim2=2)[:, 2 * count : 3 * count]
    rule: Callable[..., _Ranged]
    span, fine = setup.region.range_m[1] - setup.region.range_m[0], _FINE * setup.tolerance.range_m
    points = math.ceil(min(max(options.range_points, span / fine + 1), _FINER * options.range_points))
    step = span / (points - 1)
    if math.isinf(step) or step > fine:
        rule, rounding, open_sources = _likeliest_factor, torch.zeros_like(state.mask), state.mask
    else:
        options = replace(options, range_points=points)
        rule = _likeliest_window
        # From that of 1/range [B, K] to that of range; infinite where the data say nothing about it.
        slope = state.position[..., 2].square()
        # Where the likelihood is sharper than the points are close, they would only round its maximum; and a tolerance
        # of several deviations holds all of the posterior.
        rounding = ~(deviation / slope > step)
        # Rounding may hide that a range is not determined; all else known, its deviation is still large then.
        sharp = torch.maximum(deviation, curved.rsqrt()) / slope <= setup.tolerance.range_m / _CERTAIN
        open_sources = state.mask & ~(rounding & sharp)
    for k in range(count):
        here = open_sources[:, k].nonzero()[:, 0]
        if not len(here):
            continue
        own = state.take(here)

        def profile(inverse: Tensor, k: int = k, own: SourceState = own, here: Tensor = here) -> tuple[Tensor, ...]:
            path = _ridge(own, information[here], k, inverse, box)
            return path, *likelihood[here].profile(replace(own, mask=_dropped(own.mask, k)), path)

        spread = torch.where(curved[here, k] > 0, deviation[here, k], torch.inf)
        found = rule(profile, own.position[:, k, 2], spread, setup, options)
        kept = rounding[here, k]
        position[here, k] = torch.where(kept[:, None], own.position[:, k], found.position)
        kept = kept.view(-1, *[1] * (power.ndim - 2))
        power[here, ..., k] = torch.where(kept, own.power[..., k], found.power)
        mass[here, k], determined[here, k] = found.mass, found.determined
    return replace(state, position=position, power=power), mass, determined


class _Ranged(NamedTuple):
    """What the posterior of range says of one source in b scenes."""

    position: Tensor  # [b, 3], azimuth, elevation, 1/range
    power: Tensor
    mass: Tensor
    determined: Tensor


_Profile = Callable[[Tensor], tuple[Tensor, ...]]  # of 1/range [b, J]: path [b, J, 3], log-likelihood, power [b, J]


def _likeliest_window(profile: _Profile, _: Tensor, spread: Tensor, setup: Setup, options: PolishOptions) -> _Ranged:
    near, far = setup.region.range_m
    r = torch.linspace(near, far, options.range_points, dtype=torch.float64, device=spread.device)
    path, value, best_power = profile((1 / r).expand(len(spread), -1))
    posterior = torch.softmax(value, 1)
    centre = (posterior * r).sum(1, keepdim=True)
    width = (posterior * (r - centre).square()).sum(1).sqrt()
    gap = (r[:, None] - r).abs()
    within = (gap <= setup.tolerance.range_m).double()
    # Where no place within the tolerance is likely, a window that narrow would only find the mode.
    blunt = (posterior @ within).amax(1) < _LEAST_MASS
    reach = torch.where(blunt, _WINDOW * width, setup.tolerance.range_m)
    window = gap <= reach[:, None, None]
    best = (window.double() @ posterior[..., None])[..., 0].argmax(1)
    index = torch.arange(len(best), device=best.device)
    inside = (posterior * within[best]).sum(1)
    # The mean within the best window, which is finer than the points are.
    weights = posterior * window[index, best]
    chosen = (weights * r).sum(1) / weights.sum(1)
    nearest_point = (r - chosen[:, None]).abs().argmin(1)
    moved = path[index, nearest_point]
    moved[:, 2] = 1 / chosen
    determined = (value.amax(1) - value.amin(1) > _ROUNDING) | (options.range_mass == 0)
    return _Ranged(moved, best_power[index, ..., nearest_point], inside, determined)


def _likeliest_factor(profile: _Profile, at: Tensor, spread: Tensor, setup: Setup, options: PolishOptions) -> _Ranged:
    far, near = setup.region.inverse_range
    low = (at - _TAIL * spread).clamp(far, near)
    high = (at + _TAIL * spread).clamp(far, near)
    whole = ~(high > low)  # nothing known of the deviation
    low, high = torch.where(whole, far, low), torch.where(whole, near, high)
    last = options.range_points - 1
    inverse = low[:, None] + torch.linspace(0, 1, last + 1, dtype=low.dtype, device=low.device) * (high - low)[:, None]
    path, value, best_power = profile(torch.cat([torch.full_like(inverse[:, :1], far), inverse], 1))
    posterior = torch.softmax(value[:, 1:], 1)
    # Distribution function at the points: half of a point's mass lies on either side of it.
    below = posterior.cumsum(1) - posterior / 2

    def quantile_of(where: Tensor) -> Tensor:  # [b, J] -> [b, J]
        place = ((where - low[:, None]) / (high - low)[:, None]).clamp(0, 1) * last
        left = place.long().clamp_max(last - 1)
        return torch.lerp(below.gather(1, left), below.gather(1, left + 1), place - left)

    around = quantile_of(_FACTOR * inverse) - quantile_of(inverse / _FACTOR)
    most, best = around.max(1)
    # The mean within the best window: all of a posterior that is narrower than it, and finer than the points are.
    centre = inverse.gather(1, best[:, None])
    weights = posterior * ((inverse <= _FACTOR * centre) & (inverse >= centre / _FACTOR))
    chosen = (weights * inverse).sum(1) / weights.sum(1)
    reach, r = setup.tolerance.range_m, 1 / chosen
    nearest = torch.where(r > reach, 1 / (r - reach).clamp_min(1e-300), torch.inf)
    edges = quantile_of(torch.stack([nearest, 1 / (r + reach)], 1))
    index = torch.arange(len(at), device=at.device)
    nearest_point = (inverse - chosen[:, None]).abs().argmin(1) + 1
    moved = path[index, nearest_point]
    moved[:, 2] = chosen
    # In the far field, too, the likelihood ends somewhere: a range is one that it can be told from.
    told_apart = value.amax(1) - value.amin(1) > _ROUNDING
    told_apart &= (value.amax(1) - value[:, 0] > _FAR_FIELD) | (far > 0)
    determined = told_apart & ((most >= options.range_mass) | (far > 0)) | (options.range_mass == 0)
    return _Ranged(moved, best_power[index, ..., nearest_point], (edges[:, 0] - edges[:, 1]).clamp(0, 1), determined)


def _dropped(mask: Tensor, k: int) -> Tensor:
    mask = mask.clone()
    mask[:, k] = False
    return mask


def _ridge(state: SourceState, information: Tensor, k: int, inverse: Tensor, box: Box) -> Tensor:
    """(azimuth, elevation, 1/range) [B, J, 3] of source k as its 1/range [B, J] varies and its direction follows."""
    count = state.mask.shape[1]
    own = information[:, [k, count + k, 2 * count + k]][:, :, [k, count + k, 2 * count + k]]
    eye = torch.eye(2, dtype=own.dtype, device=own.device)
    stiff = own[:, :2, :2] + 1e-12 * own[:, :2, :2].diagonal(dim1=1, dim2=2).amax(1)[:, None, None] * eye
    slope = -torch.linalg.solve_ex(stiff, own[:, :2, 2:]).result[..., 0]  # [B, 2]
    slope = torch.where(slope.isfinite(), slope, 0.0)
    at = state.position[:, k]
    shift = inverse - at[:, 2:]  # [B, J]
    direction = at[:, None, :2] + slope[:, None] * shift[..., None]
    path = torch.cat([direction, inverse[..., None]], -1)
    return box.inside(path)
