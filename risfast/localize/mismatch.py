"""How many sources there are where the array, or the room, is not quite what the model says.

Gains and positions of elements that are a little off, reflections, and loudspeakers that are no points give a strong
source a signature that is not exactly a steering vector. The likelihood of point sources explains what is left of it by
more sources, all of them heard in the snapshots of the first. But one signal, however its signature is bent, has a
covariance of rank one: a model whose sources have signatures of their own, near their steering vectors, explains the
same data with fewer. What no source explains, such as late reverberation, may be signals of any signature, at a price.
All are weighed by their evidence.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.localize.likelihood import (
    KNOWN,
    Box,
    Likelihood,
    Point,
    SourceState,
    ascend,
    scaled_inverse,
    squared_magnitude,
)
from risfast.localize.source_sets import AnyLikelihood, Atoms, Rules, merged, settle, without_weakest
from risfast.setup import Setup
from risfast.sources import Sources

# Part of a signature that may lie off its steering vector: beyond it there is no point source to speak of.
_MOST_BENT = 0.6
_LEAST_SNAPSHOTS = 2.0  # times the sources: fewer snapshots cannot tell signals from signatures
_CLUTTER = 2.0  # penalties that a signal which is no source has to be worth, besides the cost of its signature
_MARGIN = 0.5  # of a penalty that a model with signatures has to be better by
_DEVIATIONS = 2.0  # of a chi-square, that pass for noise
_CLOSE = 1.0  # the same, where a wrong answer is not to pass: what it then is worse by is less than a penalty
_MORE_SIGNALS = (0, 1, 2, 4)  # than sources, that the evidence is tried with


class Bent(NamedTuple):
    """Sources with signatures of their own, of B scenes and F bands each."""

    evidence: Tensor  # (B F,) Log-evidence, without that of positions and powers
    mismatch: Tensor  # (B F, K) Part of the power of a signature that lies off its steering vector, less that of noise


class Signals:
    """The signals that sample covariances hold, whatever their signatures, of B scenes and F bands each.

    Parameters
    ----------
    likelihood : Likelihood
        Of each band.
    price : float
        What a signal that is no source has to gain besides the cost of its signature.
    """

    # The likelihood is that of the leading eigenvectors (T. W. Anderson, "Asymptotic theory for principal component
    # analysis", 1963; M. E. Tipping and C. M. Bishop, "Probabilistic principal component analysis", 1999).

    def __init__(self, likelihood: Likelihood, price: float) -> None:
        y, self.weight, self.price = likelihood.y[:, 0], likelihood.weight, price
        self.covariance = y @ y.mH / self.weight[:, None, None]
        self.value = torch.linalg.eigvalsh(self.covariance).flip(1).clamp_min(0)

    def __getitem__(self, index: Tensor) -> Signals:
        """Of some of the scenes and bands, by their indices."""
        part = object.__new__(Signals)
        part.weight, part.price = self.weight[index], self.price
        part.value, part.covariance = self.value[index], self.covariance[index]
        return part

    def upper(self, count: Tensor) -> Tensor:
        """What the evidence of so many sources (B F,) could be, were their signatures free."""
        n, best = self.value.shape[1], None
        for more in _MORE_SIGNALS:
            rank = count + more
            floor, free = self._principal(rank)
            for j in range(more):  # the weakest are no sources
                power = self.value.gather(1, (rank - 1 - j).clamp(0, n - 1)[:, None])[:, 0] - floor
                free = free - _cost(power.clamp_min(0) * self.weight / (n * floor), n) - self.price
            free = torch.where(self._possible(rank), free, -torch.inf)
            best = free if best is None else torch.maximum(best, free)
        assert best is not None
        return best

    def evidence(self, likelihood: Likelihood, state: SourceState) -> Bent:
        """Of as many signals as there are sources, whose signatures stray from their steering vectors; by band."""
        # Which rotation of the eigenvectors belongs to the sources, only nearness to their steering vectors can say (an
        # orthogonal Procrustes problem). Deviations are Gaussian, their variance the one that fits best, and integrated
        # over.
        n, k = self.value.shape[1], state.mask.shape[1]
        count, vector = state.mask.sum(1), torch.linalg.eigh(self.covariance).eigenvectors.flip(2)
        steering = likelihood.seen(state.position)[:, 0]
        square = squared_magnitude(steering).sum(1).clamp_min(1e-300)
        target = steering * torch.where(state.mask, state.power, 0.0).sqrt()[:, None]
        alone = _alone(steering, square, state.mask)
        best = Bent(torch.full_like(self.weight, -torch.inf), torch.zeros_like(state.power))
        for more in _MORE_SIGNALS:
            rank = count + more
            floor, free = self._principal(rank)
            lead = torch.arange(n, device=rank.device) < rank[:, None]
            root = torch.where(lead, (self.value - floor[:, None]).clamp_min(0), 0.0).sqrt()
            signal = (vector * root[:, None])[..., : k + more]
            left, _, right = torch.linalg.svd(signal.mH @ target, full_matrices=False)
            turn = torch.where(state.mask[:, None], left @ right, 0.0)
            signature = signal @ turn
            along = squared_magnitude((steering.conj() * signature).sum(1)) / square
            whole = squared_magnitude(signature).sum(1)
            noise = (floor / self.weight)[:, None]  # variance of an element of a signature that is estimated
            off = (whole - along).clamp_min(0) / (n - 1)
            cost = torch.where(state.mask, _cost(off / noise, n), 0.0).sum(1)
            if more:  # what is left of the signals
                rest = signal - signature @ turn.mH
                clutter = torch.linalg.eigvalsh(rest.mH @ rest)[:, -more:].clamp_min(0) / n
                cost = cost + _cost(clutter / noise, n).sum(1) + more * self.price
            bent = ((n - 1) * (off - noise)).clamp_min(0) / (whole * alone).clamp_min(1e-300)
            better = self._possible(rank) & (free - cost > best.evidence)
            best = Bent(
                torch.where(better, free - cost, best.evidence),
                torch.where(better[:, None] & state.mask, bent, best.mismatch),
            )
        return best

    def _possible(self, rank: Tensor) -> Tensor:
        """Whether elements and snapshots are more than so many signals."""
        return (rank < self.value.shape[1]) & (rank < self.weight)

    def _principal(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and log-likelihood (B F,) of so many signals."""
        n = self.value.shape[1]
        lead = torch.arange(n, device=count.device) < count[:, None]
        floor = torch.where(lead, 0.0, self.value).sum(1) / (n - count).clamp_min(1)
        floor = floor.clamp_min(1e-12 * self.value.sum(1) / n).clamp_min(1e-300)
        logs = torch.where(lead, self.value.clamp_min(1e-300).log(), floor.log()[:, None]).sum(1)
        return floor, -self.weight * (logs + n)


def explained(likelihood: AnyLikelihood, found: Point) -> Tensor:
    """Whether the sources explain what they were found in, so that no others could do so better (B,)."""
    b, f = len(found.value), found.state.bands
    if not b:
        return torch.zeros_like(found.value, dtype=torch.bool)
    signals, count = Signals(likelihood.each, math.inf), found.state.mask.sum(1)
    upper = signals.upper(count.repeat_interleave(f)).view(b, f).sum(1)
    return _fits(found.value, upper, count, likelihood.shape[2], f, _CLOSE) & upper.isfinite()


def _fits(
    value: Tensor, upper: Tensor, count: Tensor, elements: int, bands: int, deviations: float = _DEVIATIONS
) -> Tensor:
    """Whether point sources explain the data as free signatures do, but for what these have from noise (B,).

    ``value`` is the log-likelihood of so many of them, ``upper`` that of free signatures.
    """
    # Twice the difference of two nested likelihoods is chi-square of the parameters that one has more (S. S. Wilks,
    # 1938): 2 (N - 1) for the signature of each source in each band, less three for its place.
    more = (bands * (elements - 1) - 1.5) * count
    return upper - value <= more + deviations * more.clamp_min(0).sqrt()


def _alone(steering: Tensor, square: Tensor, mask: Tensor) -> Tensor:
    """Part of each steering vector (B, N, K) that no other has, (B, K): where two sources look alike, what is off
    counts for more.
    """
    both = mask[:, :, None] & mask[:, None]
    eye = torch.eye(mask.shape[1], dtype=steering.dtype, device=steering.device)
    unit = steering / square.sqrt()[:, None]
    gram = torch.where(both, unit.mH @ unit, eye) + 1e-9 * eye
    return 1 / torch.linalg.inv_ex(gram).inverse.diagonal(dim1=1, dim2=2).real


def _cost(excess: Tensor, n: int) -> Tensor:
    """What it costs to integrate over n - 1 deviations whose squares are so many times the noise."""
    return (n - 1) * torch.where(excess > 1, excess.clamp_min(1).log() + 1, excess)


def with_spreading(
    likelihood: AnyLikelihood, found: Point, box: Box, atoms: Atoms, rules: Rules
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
    tried = ascend(spreading[scenes], state.take(scenes), box[scenes], rules.iterations)
    better = tried.value > found.value[scenes]
    scenes, tried = scenes[better], tried.take(better.nonzero()[:, 0])
    chosen = likelihood.with_spreading(torch.zeros_like(ones).index_fill(0, scenes, 1.0))
    tried, _ = settle(chosen[scenes], tried, box[scenes], atoms, rules)
    return chosen, found.put(scenes, tried)


def _mean_square(likelihood: AnyLikelihood, state: SourceState) -> Tensor:
    """Of the elements of steering vectors (B, K)."""
    return squared_magnitude(likelihood.seen(state.position)).mean((1, 2))


def resolved(
    likelihood: AnyLikelihood, found: Point, box: Box, penalty: float, iterations: int
) -> tuple[Point, Tensor]:
    """As many sources as the data hold signals, where these explain them better; and the mismatch of each (B, K)."""
    b, f = len(found.value), found.state.bands
    count, bent = found.state.mask.sum(1), torch.zeros_like(found.state.strength)
    enough = likelihood.each.weight.view(b, f).amin(1) >= _LEAST_SNAPSHOTS * count
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
    exact = _fits(path.value, bound(count, row) + penalty * count, count, signals.value.shape[1], f)
    going = (~exact | ((count > 1) & (bound(count - 1, row) > best))).nonzero()[:, 0]
    while len(going):
        row, path = row[going], path.take(going)
        here, count = scenes[row], path.state.mask.sum(1)
        by_band = (row[:, None] * f + torch.arange(f, device=row.device)).flatten()
        given = signals[by_band].evidence(likelihood[here].each, path.state.by_band)
        evidence = given.evidence.view(-1, f).sum(1) - penalty * count
        mismatch = given.mismatch.view(-1, f, given.mismatch.shape[1]).mean(1)
        better = ((evidence > best[row]) & (mismatch.amax(1) < _MOST_BENT)).nonzero()[:, 0]
        best[row[better]] = evidence[better]
        found, bent = found.put(here[better], path.take(better)), bent.index_copy(0, here[better], mismatch[better])
        going = ((count > 1) & (bound(count - 1, row) > best[row])).nonzero()[:, 0]
        if len(going):
            path = path.put(going, _one_fewer(likelihood[here[going]], path.take(going), box[here[going]], iterations))
    return found, bent


def copies_of(found: SourceState, kept: SourceState, mismatch: Tensor, setup: Setup) -> list[Sources]:
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
    _, state = without_weakest(likelihood, point.state, math.inf)
    best = ascend(likelihood, box.clamp(state), box, iterations)
    scenes, state = merged(likelihood, point.state)
    if len(scenes):
        tried = ascend(likelihood[scenes], box[scenes].clamp(state), box[scenes], iterations)
        better = (tried.value > best.value[scenes]).nonzero()[:, 0]
        best = best.put(scenes[better], tried.take(better))
    return best


def signature_covariance(likelihood: AnyLikelihood, state: SourceState, off: Tensor, box: Box) -> Tensor:
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
    gram = torch.where(fixed[:, None] | fixed, 0.0, gram) + torch.diag(torch.where(fixed, KNOWN, 0.0)).to(gram)
    variance = off / (1 - off).clamp_min(0.1)  # of an element, in parts of the power along the steering vector
    found, lost, _ = scaled_inverse(gram.flatten(0, 1), definite=True)
    found = torch.where(lost[..., None] | lost[..., None, :], 0.0, found) + torch.diag_embed(
        torch.where(lost, torch.inf, 0.0)
    ).nan_to_num(nan=0.0, posinf=torch.inf)
    return torch.where(off[..., None, None] > 0, found.unflatten(0, (-1, k)) * variance[..., None, None] / 2, 0.0)
