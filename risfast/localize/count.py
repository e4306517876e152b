"""How probable each number of sources is, from the evidence of the snapshots for every one.

    p(K | y)  ~  integral of p(y | positions, powers, noise) over the prior of K sources

Sources are anywhere in the region with equal probability, their powers within a spread of one another: the same for
all, or a spread that the scene tells. From what the polish ended with, sources are added and taken away one by one,
each set climbs to its most probable place, and its integral is Laplace's there, but for the range of each source, along
which it is a sum, and for further places where the last source may be as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.io.durable import replace_file
from risfast.io.guard import inside, load_json, naming
from risfast.localize.bands import likelihood_of
from risfast.localize.likelihood import Box, Derivatives, Likelihood, Point, SourceState, ascend
from risfast.localize.polish import Polished, PolishOptions, start_of
from risfast.localize.range_posterior import ridge
from risfast.localize.source_sets import Atoms, atom_positions, atom_statistics, dropped
from risfast.models.base import Measurement
from risfast.models.direct import SteeredAtoms
from risfast.models.pretrained import COUNT_FILE
from risfast.setup import Setup

COUNTS = ("off", "equal", "spread")
# Standard deviations of log powers: of equal ones 0.4 dB; of a spread that the scene tells each of these is as likely,
# and the first is climbed from.
_SPREADS = {"equal": (0.1,), "spread": (0.7, 0.1, 2.0)}
_POWER_RANGE = math.log(1e4)  # of the common power, above what can be seen
_SEEN = 2.0  # log-likelihood that a source is expected to be worth, to count as one
_LIKELY = 4.0  # log-evidence below the best, from which on further sources are not tried
_HOPELESS = -8.0  # gain of one more source that is not worth a trial
# What each source costs of the evidence, that is added or taken away beyond those that are tried.
_ONE_MORE, _ONE_LESS = 8.0, 16.0
_ITERATIONS, _AGAIN = 5, 3  # of scoring, from a changed set and from a changed spread
_SHORTLIST = 128  # atoms whose exact gain is computed
_BESIDE = 2  # atoms from the best one that are the same place
_PATH, _REACH = 12, 5.0  # points along the range of a source, within so many deviations
_SHARP = 0.2  # deviation of a range, relative to it, below which Laplace's integral is good enough


class Tied:
    """A likelihood times the prior of powers: log-normal about a mean that may be anything.

    Parameters
    ----------
    likelihood : Likelihood
    spread : float
        Standard deviation of the logarithm.
    """

    def __init__(self, likelihood: Likelihood, spread: float) -> None:
        self.likelihood, self.spread = likelihood, spread

    def __getitem__(self, index: Tensor) -> Tied:
        """Of some of the scenes, by their indices, ascending."""
        return Tied(self.likelihood[index], self.spread)

    def derivatives(self, state: SourceState) -> Derivatives:
        """Value, gradient and Fisher information with those of the prior, without its constant."""
        found, k = self.likelihood.derivatives(state), state.mask.shape[1]
        there = state.mask.double()
        count = there.sum(1, keepdim=True).clamp_min(1)
        level = torch.where(state.mask, state.power.log(), 0.0)
        apart = torch.where(state.mask, level - level.sum(1, keepdim=True) / count, 0.0) / self.spread
        gradient, information = found.gradient.clone(), found.information.clone()
        gradient[:, 3 * k : 4 * k] -= apart / self.spread
        shared = torch.diag_embed(there) - there[:, :, None] * there[:, None] / count[..., None]
        information[:, 3 * k : 4 * k, 3 * k : 4 * k] += shared / self.spread**2
        return Derivatives(found.value - apart.square().sum(1) / 2, gradient, information)


@dataclass(frozen=True)
class _Problem:
    """The likelihood of B scenes, where its sources may be, and how their powers may differ."""

    likelihood: Likelihood
    box: Box
    atoms: Atoms
    spread: float

    def __getitem__(self, scenes: Tensor) -> _Problem:
        return replace(self, likelihood=self.likelihood[scenes], box=self.box[scenes])

    @property
    def setup(self) -> Setup:
        return self.atoms.setup

    def climbed(self, state: SourceState, iterations: int) -> Point:
        return ascend(Tied(self.likelihood, self.spread), self.box.clamp(state), self.box, iterations)


class _Sets(NamedTuple):
    """One set of sources of each of some scenes, at its most probable place."""

    scenes: Tensor  # [b] Which
    state: SourceState
    value: Tensor  # [b] Log-likelihood with the prior of powers
    evidence: Tensor  # [b]

    def take(self, some: Tensor) -> _Sets:
        return _Sets(self.scenes[some], self.state.take(some), self.value[some], self.evidence[some])


@torch.no_grad()
def polished_evidence(
    measurement: Measurement, polished: Polished, atoms: Atoms, options: PolishOptions, powers: str
) -> Tensor:
    """:func:`count_evidence` from what the polish ended with; NaN in scenes whose data say that the model is not exact.

    -> (B, max_sources + 1)
    """
    state, box = start_of(measurement, polished.sources, atoms, options, polished.noise_power)
    state = replace(state, noise=torch.maximum(polished.noise_power, box.least_noise))
    likelihood = likelihood_of(measurement, atoms.setup)
    assert isinstance(likelihood, Likelihood)  # of one band
    if polished.spreading is not None:
        likelihood = likelihood.with_spreading(polished.spreading)
    # Weaker sources than can be seen could be any number. Of a weak one with x = p |b|^2 / sigma^2, L (x - log(1 + x)),
    # about L x^2 / 2, is what it is expected to be worth.
    heard = measurement.channel.abs().double().square().sum((1, 2))
    least = math.sqrt(2 * _SEEN / measurement.n_snapshots) * state.noise / heard.clamp_min(1e-300)
    box = replace(box, least_power=torch.maximum(box.least_power, least))
    evidence = count_evidence(likelihood, state, box, atoms, powers)
    if polished.mismatch is not None:
        off = torch.tensor([bool((m > 0).any()) for m in polished.mismatch], dtype=torch.bool, device=evidence.device)
        evidence = torch.where(off[:, None], torch.nan, evidence)
    return evidence


@torch.no_grad()
def count_evidence(likelihood: Likelihood, state: SourceState, box: Box, atoms: Atoms, powers: str) -> Tensor:
    """Logarithm of the evidence for each number of sources.

    Parameters
    ----------
    likelihood : Likelihood
        Of B scenes, of one band.
    state : SourceState
        What a polish ended with; its slots are the most sources that are tried.
    box : Box
    atoms : AtomGrid or SteeredAtoms
        Where further sources are looked for.
    powers : {"equal", "spread"}
        Whether all sources have one power, or the scene tells how far theirs are spread.

    Returns
    -------
    float64 tensor, shape (B, K + 1)
        Up to a constant of each scene; of numbers that are far from likely ones no more than that.
    """
    problem = _Problem(likelihood, box, atoms, _SPREADS[powers][0])
    b, most = state.mask.shape
    evidence = torch.full((b, most + 1), torch.nan, dtype=torch.float64, device=state.power.device)
    if not b:
        return evidence
    others = [replace(problem, spread=spread) for spread in _SPREADS[powers][1:]]
    first = _settled(problem, torch.arange(b, device=state.power.device), _level(state) if not others else state)
    best = torch.full_like(first.evidence, -torch.inf)
    places = torch.zeros_like(best)  # further ones, where sources that were added may be as well

    def kept(found: _Sets) -> _Sets:
        """Those that more sources, or fewer, are tried from."""
        whole = found.evidence + places[found.scenes]
        if others:
            whole = torch.stack([whole, *(_of_spread(one, found) + places[found.scenes] for one in others)])
            whole = whole.logsumexp(0) - math.log(len(whole))
        evidence[found.scenes, found.state.mask.sum(1)] = whole
        best[found.scenes] = torch.maximum(best[found.scenes], whole)
        return found.take((whole > best[found.scenes] - _LIKELY).nonzero()[:, 0])

    now = kept(first)
    now = now.take((~now.state.mask.all(1)).nonzero()[:, 0])
    while len(now.scenes):
        grown, further, gain = _with_one_more(problem[now.scenes], now.state)
        some = (gain > _HOPELESS).nonzero()[:, 0]
        now, grown = now.take(some), grown.take(some)
        places[now.scenes] += further[some]
        now = kept(_settled(problem[now.scenes], now.scenes, grown))
        now = now.take((~now.state.mask.all(1)).nonzero()[:, 0])
    places.zero_()
    now = first
    while len(now.scenes):
        now = now.take(now.state.mask.any(1).nonzero()[:, 0])
        lost, weakest = problem.likelihood[now.scenes].losses(now.state).min(1)
        # Other sources may take over much of what is lost at first, as in ``without_weakest``.
        some = (lost < 3 * (_LIKELY + _typical_cost(now))).nonzero()[:, 0]
        now, weakest = now.take(some), weakest[some]
        mask = now.state.mask.clone()
        mask[torch.arange(len(mask), device=mask.device), weakest] = False
        now = kept(_settled(problem[now.scenes], now.scenes, replace(now.state, mask=mask)))
    for k in range(1, most + 1):
        evidence[:, k] = torch.where(evidence[:, k].isnan(), evidence[:, k - 1] - _ONE_MORE, evidence[:, k])
    for k in range(most - 1, -1, -1):
        evidence[:, k] = torch.where(evidence[:, k].isnan(), evidence[:, k + 1] - _ONE_LESS, evidence[:, k])
    return evidence


def _typical_cost(found: _Sets) -> Tensor:
    """What a source of a set costs of its evidence [b]."""
    return (found.value - found.evidence).clamp_min(0) / found.state.mask.sum(1).clamp_min(1)


def _level(state: SourceState) -> SourceState:
    """The same with all powers at their geometric mean."""
    count = state.mask.sum(1, keepdim=True).clamp_min(1)
    mean = (torch.where(state.mask, state.power.log(), 0.0).sum(1, keepdim=True) / count).exp()
    return replace(state, power=torch.where(state.mask, mean, state.power))


def _settled(problem: _Problem, scenes: Tensor, state: SourceState) -> _Sets:
    point = problem.climbed(state, _ITERATIONS)
    return _Sets(scenes, point.state, point.value, _evidence(problem, point.state))


def _of_spread(problem: _Problem, found: _Sets) -> Tensor:
    """The evidence for the same sources with powers of another spread [b]."""
    part = problem[found.scenes]
    return _evidence(part, part.climbed(found.state, _AGAIN).state)


def _with_one_more(problem: _Problem, state: SourceState) -> tuple[SourceState, Tensor, Tensor]:
    """The sources of b scenes and one more of their power where that gains most, and that gain [b].

    Before it, logarithms of what the likelihood of all places is over that of those beside the best one, all else as it
    is [b].
    """
    inner = state.columns(state.mask.any(0).nonzero()[:, 0])
    likelihood, count = problem.likelihood, state.mask.sum(1)
    n, d = atom_statistics(likelihood, inner, problem.atoms)
    d = torch.maximum(d, 1e-6 * d.amax(1, keepdim=True))
    if isinstance(problem.atoms, SteeredAtoms):
        n, d = n / state.noise[:, None], d / state.noise[:, None]
        groups = likelihood.weight[:, None].to(d)
    else:
        groups = torch.full_like(d[:, :1], likelihood.shape[1])
    power = (torch.where(state.mask, state.power.log(), 0.0).sum(1) / count.clamp_min(1)).exp()
    taken = power[:, None] * d / groups
    promise = power[:, None] * n / (1 + taken) - groups * taken.log1p()
    rho = (n / d).clamp_min(1)
    promise = torch.where(count[:, None] > 0, promise, rho - 1 - rho.log())
    index = promise.topk(min(_SHORTLIST, promise.shape[1]), dim=1).indices  # [b, J]
    position, cell = atom_positions(problem.atoms, index)
    alone = count == 0
    gain, powers_there = likelihood.gains(inner, position, power), power[:, None].expand(position.shape[:2]).clone()
    if bool(alone.any()):
        gain[alone], powers_there[alone] = likelihood[alone.nonzero()[:, 0]].profile(inner.take(alone), position[alone])
    weight = gain + _atom_weight(problem, position)
    at = weight.max(1).indices
    row = torch.arange(len(at), device=at.device)
    gap = (cell - cell[row, at][:, None]).abs()
    if problem.setup.region.full_circle:
        gap[..., 0] = torch.minimum(gap[..., 0], problem.atoms.shape[0] - gap[..., 0])
    beside = (gap <= _BESIDE)[..., :2].all(-1)
    further = weight.logsumexp(1) - torch.where(beside, weight, -torch.inf).logsumexp(1)
    most = gain.max(1).indices
    slot = state.mask.int().argmin(1)
    mask, positions, powers = state.mask.clone(), state.position.clone(), state.power.clone()
    mask[row, slot], positions[row, slot] = True, position[row, most]
    powers[row, slot] = powers_there[row, most]
    grown = replace(state, position=positions, power=powers, mask=mask)
    return grown, torch.where(alone, 0.0, further), gain.amax(1)


def _atom_weight(problem: _Problem, position: Tensor) -> Tensor:
    """Logarithm of the prior probability of the cell of an atom, up to a constant [b, J]."""
    # Atoms are uniform in the sines of the angles and in 1/range.
    angles = -position[..., 1].cos().clamp_min(1e-3).log()
    if problem.atoms.axes.by_sine:
        angles = angles - position[..., 0].cos().clamp_min(1e-3).log()
    return angles + _range_density(problem.setup, position[..., 2])


def _range_density(setup: Setup, inverse: Tensor) -> Tensor:
    """Logarithm of the prior density of 1/range: uniform in range, or in 1/range where the region does not end."""
    near, far = setup.region.range_m
    if near == far:
        return torch.zeros_like(inverse)
    if math.isinf(far):
        return torch.full_like(inverse, math.log(near))
    return -2 * inverse.log() - math.log(far - near)


def _evidence(problem: _Problem, state: SourceState) -> Tensor:
    """Log-evidence for the sources of b scenes, from where they are most probable [b]."""
    state = state.columns(state.mask.any(0).nonzero()[:, 0])
    k, setup, box = state.mask.shape[1], problem.setup, problem.box
    at = Tied(problem.likelihood, problem.spread).derivatives(state)
    count, width = state.mask.sum(1).double(), box.high - box.low
    fixed = width <= 0
    # A coordinate that the data say little of is where it may be: that is information of its own.
    prior = torch.where(fixed, 0.0, 12 / width.square().clamp_min(1e-300)).repeat_interleave(k)
    prior = torch.where(state.mask.repeat(1, 3), prior, 0.0)
    information = at.information + torch.diag_embed(torch.nn.functional.pad(prior, (0, k + 1)))
    there = state.mask.double()
    shared = 12 / (_POWER_RANGE * count.clamp_min(1)).square()[:, None, None] * there[:, :, None] * there[:, None]
    information[:, 3 * k : 4 * k, 3 * k : 4 * k] += shared
    held = torch.nn.functional.pad(fixed.repeat_interleave(k) & state.mask.repeat(1, 3), (0, k + 1))
    information = torch.where(held[:, :, None] | held[:, None], 0.0, information)
    # So that what is fixed adds nothing below.
    information = information + torch.diag_embed(torch.where(held, 2 * math.pi, 0.0))
    whole, levels = (torch.linalg.slogdet(m).logabsdet / 2 for m in (information, information[:, 3 * k :, 3 * k :]))
    half = math.log(2 * math.pi) / 2
    density = torch.where(state.mask, _range_density(setup, state.position[..., 2]), 0.0).sum(1)
    density = density - count * torch.where(fixed, 1.0, width)[:2].log().sum()
    # The part of the prior that the places take. The sources have no order: K! of them are alike, until they overlap.
    places = (density + 3 * count * half + levels - whole + torch.lgamma(count + 1)).clamp_max(0)
    spread = (count - 1) * (half + math.log(problem.spread)) + count.clamp_min(1).log() / 2
    powers = torch.where(count > 0, -spread - math.log(_POWER_RANGE), 0.0)
    found = at.value + places + powers + (count + 1) * half - levels
    if bool(fixed[2]):
        return found
    return found + sum(_beyond_laplace(problem, state, information, j) for j in range(k))


def _beyond_laplace(problem: _Problem, state: SourceState, information: Tensor, k: int) -> Tensor:
    """Logarithm of the sum along the range of source k over Laplace's integral [b]."""
    found, count = torch.zeros_like(state.noise), state.mask.shape[1]
    own = information[:, k : 3 * count : count, k : 3 * count : count]
    both = own[:, :2, 2:]
    left = own[:, 2, 2] - (both * torch.linalg.solve(own[:, :2, :2], both)).sum((1, 2))
    deviation = left.clamp_min(1e-300).rsqrt()
    inverse, low, high = state.position[:, k, 2], problem.box.low[2], problem.box.high[2]
    inside = (inverse - 3 * deviation > low) & (inverse + 3 * deviation < high)
    scenes = (state.mask[:, k] & ~(inside & (deviation < _SHARP * inverse))).nonzero()[:, 0]
    if not len(scenes):
        return found
    here, inverse, deviation = state.take(scenes), inverse[scenes], deviation[scenes]
    first = (inverse - _REACH * deviation).clamp(low, high)
    step = ((inverse + _REACH * deviation).clamp(low, high) - first) / (_PATH - 1)
    points = first[:, None] + step[:, None] * torch.arange(_PATH, dtype=first.dtype, device=first.device)
    points = torch.cat([inverse[:, None], points], 1)
    path = ridge(here, information[scenes], k, points, problem.box)
    others = replace(here, mask=dropped(here.mask, k))
    value = problem.likelihood[scenes].gains(others, path, here.power[:, k]) + _range_density(problem.setup, points)
    value = value[:, 1:] - value[:, :1]
    value[:, [0, -1]] -= math.log(2)  # trapezoids
    found[scenes] = value.logsumexp(1) + step.log() - (2 * math.pi * deviation.square()).log() / 2
    return found


# Integrals are rough: log odds of simulated scenes of the reference system are about half as large as the evidence says
# (:mod:`risfast.train.count`). Of other systems it is a guess.
_TEMPERATURE = 0.5


@dataclass(frozen=True)
class CountModel:
    """Probabilities of each number of sources from their evidence; :mod:`risfast.train.count` fits it."""

    temperature: float = _TEMPERATURE  # That log-evidence is multiplied by
    offsets: tuple[float, ...] = (0.0,)  # Of K = 0, 1, ... sources; the last is that of all larger numbers

    def __post_init__(self) -> None:
        """Check every value."""
        if not (self.offsets and all(map(math.isfinite, self.offsets)) and 0 < self.temperature < math.inf):
            raise ValueError("a count model has a positive temperature and finite offsets, at least one")

    def probability(self, evidence: Tensor) -> Tensor:
        """Of each number of sources.

        evidence (B, K + 1) -> (B, K + 1)
        """
        offsets = torch.tensor(self.offsets, dtype=evidence.dtype, device=evidence.device)
        index = torch.arange(evidence.shape[1], device=evidence.device).clamp_max(len(offsets) - 1)
        return torch.softmax(self.temperature * evidence + offsets[index], 1)


CountModels = Mapping[str, CountModel]
"""For each of :data:`COUNTS` but "off"."""


def save_counts(folder: Path, models: CountModels, fitted: Mapping[str, Any]) -> None:
    """Write ``count.json`` into a model folder, for the weights that are there; what each was fitted on by its name."""
    from risfast.models.files import read_card  # noqa: PLC0415 - safetensors only where a file is read

    of = {"weights": read_card(folder)["sha256"], "fitted": fitted}
    content = {**{name: asdict(model) for name, model in models.items()}, **of}
    replace_file(folder / COUNT_FILE, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def load_counts(folder: Path) -> tuple[CountModels, dict[str, Any]]:
    """What ``count.json`` of a model folder holds, and what each was fitted on; nothing where there is none."""
    from risfast.models.files import read_card  # noqa: PLC0415 - safetensors only where a file is read

    path = folder / COUNT_FILE
    if not path.exists():
        return {}, {}
    content = load_json(inside(folder, COUNT_FILE), "a model of counts")
    with naming(path, "a model of counts"):
        if content["weights"] != read_card(folder)["sha256"]:
            raise ValueError("it was fitted with other weights; fit it again: python -m risfast.train.count")
        found = {name: content[name] for name in COUNTS if name in content}
        models = {
            name: CountModel(float(one["temperature"]), tuple(float(o) for o in one["offsets"]))
            for name, one in found.items()
        }
        return models, dict(content["fitted"])
