"""Fewer sources where the penalised likelihood prefers it: two that are one merge, and what is not missed is buried."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from risfast.likelihood import Likelihood, SourceState
from risfast.magnitude import squared_magnitude
from risfast.scoring import Box, Point, ascend

__all__ = ["bury_sources", "merge_sources"]

_ALIKE = 0.8  # squared correlation of two responses from which on they may be of one source


def merge_sources(likelihood: Likelihood, point: Point, box: Box, penalty: float, iterations: int) -> Point:
    """Make one of two sources that look alike to the antennas, where the penalised likelihood prefers it.

    Parameters
    ----------
    likelihood : Likelihood
        Of B scenes.
    point : Point
        Where the ascent ended.
    box : Box
    penalty : float
        What a source has to be worth, in units of the log-likelihood.
    iterations : int
        Most scoring steps after each change.

    Returns
    -------
    Point
        Its penalised likelihood is never lower.

    Notes
    -----
    Each of two sources that share the power of one is missed much at first, so that neither would be tried alone.
    """
    open_scenes = torch.arange(len(point.value), device=point.value.device)
    for _ in range(point.state.mask.shape[1] - 1):
        here = point.take(open_scenes)
        alike, first, second = _most_alike(likelihood[open_scenes], here.state)
        trial = (alike > _ALIKE).nonzero()[:, 0]
        if not len(trial):
            return point
        tried, one, other = here.take(trial).state, first[trial], second[trial]
        index = torch.arange(len(trial), device=trial.device)
        mask, position, power = tried.mask.clone(), tried.position.clone(), tried.power.clone()
        both = torch.stack([power[index, one], power[index, other]], 1)
        share = both[:, 1:] / both.sum(1, keepdim=True)
        gap = position[index, other] - position[index, one]
        gap[:, 0] -= 2 * math.pi * (gap[:, 0] / (2 * math.pi)).round()  # the short way round
        position[index, one] = position[index, one] + share * gap
        power[index, one], mask[index, other] = both.sum(1), False
        merged = replace(tried, position=position, power=power, mask=mask)
        goal = here.value[trial] - penalty
        scenes = open_scenes[trial]
        tried_point = ascend(likelihood[scenes], merged, box[scenes], iterations, goal)
        better = (tried_point.value + penalty > here.value[trial]).nonzero()[:, 0]
        open_scenes = scenes[better]
        if not len(open_scenes):
            return point
        point = point.put(open_scenes, tried_point.take(better))
    return point


def _most_alike(likelihood: Likelihood, state: SourceState) -> tuple[Tensor, Tensor, Tensor]:
    """Largest squared correlation of two sources' responses [B], and which two they are [B], [B]."""
    b, k = state.mask.shape
    seen = likelihood.seen(state.position).flatten(1, 2)  # [B, L M, K]
    gram = squared_magnitude(seen.mH @ seen)
    norm = gram.diagonal(dim1=1, dim2=2).sqrt()
    alike = gram / (norm[:, :, None] * norm[:, None]).clamp_min(1e-300)
    pairs = (state.mask[:, :, None] & state.mask[:, None]).triu(1)
    alike, index = torch.where(pairs, alike, 0.0).view(b, k * k).max(1)
    return alike, index // k, index % k


def bury_sources(likelihood: Likelihood, point: Point, box: Box, penalty: float, iterations: int) -> Point:
    """Take away, one after the other, sources that the penalised likelihood does without.

    Parameters
    ----------
    likelihood : Likelihood
        Of B scenes.
    point : Point
        Where the ascent ended.
    box : Box
    penalty : float
        What a source has to be worth, in units of the log-likelihood.
    iterations : int
        Most scoring steps after each change.

    Returns
    -------
    Point
        Its penalised likelihood is never lower.
    """
    open_scenes = torch.arange(len(point.value), device=point.value.device)
    for _ in range(point.state.mask.shape[1]):
        part = likelihood[open_scenes]
        here = point.take(open_scenes)
        drop, weakest = part.losses(here.state).min(1)
        # The others may take over a part: what is lost at first is up to three times what is lost in the end.
        trial = (drop < 3 * penalty).nonzero()[:, 0]
        if not len(trial):
            return point
        tried = here.take(trial).state
        mask = tried.mask.clone()
        mask[torch.arange(len(trial), device=mask.device), weakest[trial]] = False
        goal = here.value[trial] - penalty
        tried_point = ascend(part[trial], replace(tried, mask=mask), box[open_scenes[trial]], iterations, goal)
        dead = (tried_point.value + penalty > here.value[trial]).nonzero()[:, 0]
        open_scenes = open_scenes[trial[dead]]
        if not len(open_scenes):
            return point
        point = point.put(open_scenes, tried_point.take(dead))
    return point
