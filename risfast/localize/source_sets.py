"""Changes of the set of sources that the penalised likelihood of snapshots asks for: fewer, merged, and more.

Each is proposed for all scenes at once, climbed from, and kept where the likelihood rises by more than it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.localize.bands import BandLikelihood
from risfast.localize.likelihood import Box, Likelihood, Point, SourceState, ascend, squared_magnitude
from risfast.models.atoms import AtomAxes, AtomGrid
from risfast.models.direct import SteeredAtoms, condensed
from risfast.setup import Setup

_ALIKE = 0.8  # squared correlation of two responses from which on they may be of one source
_LEAD = 8  # leading directions of what sources leave, in which another would stand out
_SHORTLIST = 64  # atoms whose exact gain is computed

Atoms = AtomGrid | SteeredAtoms
AnyLikelihood = Likelihood | BandLikelihood
_Proposal = Callable[[AnyLikelihood, SourceState], tuple[Tensor, SourceState]]  # scenes [b] of B, and their states


class Rules(NamedTuple):
    """When sources come and go."""

    penalty: float  # that a source has to gain
    births: int  # at the most
    iterations: int  # of scoring after each change


def atoms_of(setup: Setup, axes: AtomAxes | None = None) -> Atoms:
    """The grid that new sources of a setup are looked for on."""
    return SteeredAtoms(setup, axes) if setup.sampling == "direct" else AtomGrid(setup, axes)


def settle(
    likelihood: AnyLikelihood,
    found: Point,
    box: Box,
    atoms: Atoms,
    rules: Rules,
    far: bool = False,
) -> tuple[Point, Tensor]:
    """Fewer sources, then more, until the penalised likelihood does not rise; and which scenes have got more (B,)."""
    penalty, births, iterations = rules
    found = _fewer(likelihood, found, box, penalty, iterations)
    before = found.state.mask.sum(1)
    propose = partial(_with_best_atom, atoms=atoms, penalty=penalty, far=far)
    found = _changed(likelihood, found, box, penalty, births, iterations, propose)
    grown = found.state.mask.sum(1) != before
    born = grown.nonzero()[:, 0]
    if len(born):  # a new source may have taken over an old one
        again = _fewer(likelihood[born], found.take(born), box[born], penalty, iterations)
        found = found.put(born, again)
    return found, grown


def on_wrong_hill(found: Point, grown: Tensor, setup: Setup) -> Tensor:
    """Scenes [b] whose sources were born late or stand on an edge, which may be by a wrong start."""
    state = found.state
    place = torch.cat([state.position[..., :2], 1 / state.position[..., 2:]], -1)
    edge = setup.region.at_edge(place).to(state.mask.device) & state.mask
    return (grown | edge.any(1)).nonzero()[:, 0]


def started_again(
    likelihood: AnyLikelihood,
    found: Point,
    scenes: Tensor,
    box: Box,
    atoms: Atoms,
    rules: Rules,
) -> Point:
    """The better of what is found and of another start, in some scenes."""
    # Candidates beside the right hill of several climb a wrong one, at an end of the region or with further sources
    # that fill what it misses, and close to the array hills are many: the other start is noise alone, with sources born
    # in the farthest third of the region.
    state = found.state
    if not len(scenes):
        return found
    nothing = replace(state.take(scenes), mask=torch.zeros_like(state.mask[scenes]))
    other = ascend(likelihood[scenes], nothing, box[scenes], rules.iterations)
    rules = rules._replace(births=state.mask.shape[1])
    other, _ = settle(likelihood[scenes], other, box[scenes], atoms, rules, far=True)
    worth = [point.value - rules.penalty * point.state.mask.sum(1) for point in (other, found.take(scenes))]
    better = (worth[0] > worth[1]).nonzero()[:, 0]
    return found.put(scenes[better], other.take(better))


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


def merged(likelihood: AnyLikelihood, state: SourceState) -> tuple[Tensor, SourceState]:
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


def without_weakest(likelihood: AnyLikelihood, state: SourceState, penalty: float) -> tuple[Tensor, SourceState]:
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
        left[k] = likelihood.refitted(replace(state, mask=dropped(state.mask, k)))
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
    point = _changed(likelihood, point, box, -penalty, most - 1, iterations, merged)
    without = partial(without_weakest, penalty=penalty)
    return _changed(likelihood, point, box, -penalty, most, iterations, without)


def _best_atom(likelihood: AnyLikelihood, state: SourceState, atoms: Atoms, far: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Largest likelihood gain over the atoms [B], where it is [B, 3], and with what power [B] or [B, F]."""
    state = state.columns(state.mask.any(0).nonzero()[:, 0])
    n, d = atom_statistics(likelihood, state, atoms)
    d = torch.maximum(d, 1e-6 * d.amax(1, keepdim=True))
    rho = (n / d).clamp_min(1)
    promise = rho - 1 - rho.log()
    if isinstance(likelihood, BandLikelihood):
        promise = likelihood.summed(promise * likelihood.each.weight[:, None].to(promise))
    if far:  # ranges increase along the last axis
        promise.unflatten(1, atoms.shape)[..., : 2 * atoms.shape[2] // 3] = 0.0
    best = promise.topk(min(_SHORTLIST, rho.shape[1]), dim=1).indices  # [B, J]
    position, _ = atom_positions(atoms, best)
    gain, power = likelihood.profile(state, position)
    most, first = gain.max(1)
    index = torch.arange(len(most), device=best.device)
    return most, position[index, first], power[index, ..., first]


def atom_positions(atoms: Atoms, index: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth, elevation and 1/range of atoms, and their places along the axes, by their indices.

    index (...,) -> (..., 3), (..., 3)
    """
    _, n_el, n_r = atoms.shape
    azimuth, elevation = (angle.to(index.device) for angle in atoms.axes.angles(atoms.axes.coordinates))
    inverse = atoms.axes.inverse_range.to(index.device)
    cell = torch.stack([index // (n_el * n_r), index // n_r % n_el, index % n_r], -1)
    position = [axis[place] for axis, place in zip((azimuth, elevation, inverse), cell.unbind(-1), strict=True)]
    return torch.stack(position, -1), cell


def atom_statistics(likelihood: AnyLikelihood, state: SourceState, atoms: Atoms) -> tuple[Tensor, Tensor]:
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


def dropped(mask: Tensor, k: int) -> Tensor:
    """A mask of sources (B, K) without one of them."""
    mask = mask.clone()
    mask[:, k] = False
    return mask
