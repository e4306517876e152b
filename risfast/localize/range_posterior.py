"""The range of each source by its posterior, where the likelihood is flat along it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.localize.likelihood import Box, SourceState
from risfast.localize.source_sets import AnyLikelihood, dropped
from risfast.setup import Setup

_TAIL = 6.0  # deviations of 1/range beyond which the posterior is not looked at
_LEAST_MASS = 0.2  # of a posterior within the tolerance; a uniform one over ten tolerances has it
_FINE = 0.5  # tolerances between points of range up to which they tell the mass within one
_FINER = 4  # times the points of the range posterior, the most that are spent on reaching that
_FACTOR = 1.3  # about a range, that the posterior of a region without end is weighed within
_FAR_FIELD = 2.0  # by how much a log-likelihood must exceed that of the far field, two deviations
_WINDOW = 2.0  # deviations of a blunt posterior, half the window that it is read with
_ROUNDING = 1e-2  # of a log-likelihood whose products are of 32 bits
_CERTAIN = 5.0  # deviations of range within which a source is certain to be

_Profile = Callable[[Tensor], tuple[Tensor, ...]]  # of 1/range [b, J]: path [b, J, 3], log-likelihood, power [b, J]


def range_posterior(
    likelihood: AnyLikelihood,
    state: SourceState,
    information: Tensor,
    deviation: Tensor,
    box: Box,
    setup: Setup,
    points: int,
    least_mass: float,
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
    finer = math.ceil(min(max(points, span / fine + 1), _FINER * points))
    step = span / (finer - 1)
    if math.isinf(step) or step > fine:
        rule, rounding, open_sources = _likeliest_factor, torch.zeros_like(state.mask), state.mask
    else:
        points = finer
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
            path = ridge(own, information[here], k, inverse, box)
            return path, *likelihood[here].profile(replace(own, mask=dropped(own.mask, k)), path)

        spread = torch.where(curved[here, k] > 0, deviation[here, k], torch.inf)
        found = rule(profile, own.position[:, k, 2], spread, setup, points, least_mass)
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


def _likeliest_window(
    profile: _Profile, _: Tensor, spread: Tensor, setup: Setup, points: int, least_mass: float
) -> _Ranged:
    near, far = setup.region.range_m
    r = torch.linspace(near, far, points, dtype=torch.float64, device=spread.device)
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
    determined = (value.amax(1) - value.amin(1) > _ROUNDING) | (least_mass == 0)
    return _Ranged(moved, best_power[index, ..., nearest_point], inside, determined)


def _likeliest_factor(
    profile: _Profile, at: Tensor, spread: Tensor, setup: Setup, points: int, least_mass: float
) -> _Ranged:
    far, near = setup.region.inverse_range
    low = (at - _TAIL * spread).clamp(far, near)
    high = (at + _TAIL * spread).clamp(far, near)
    whole = ~(high > low)  # nothing known of the deviation
    low, high = torch.where(whole, far, low), torch.where(whole, near, high)
    last = points - 1
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
    determined = told_apart & ((most >= least_mass) | (far > 0)) | (least_mass == 0)
    return _Ranged(moved, best_power[index, ..., nearest_point], (edges[:, 0] - edges[:, 1]).clamp(0, 1), determined)


def ridge(state: SourceState, information: Tensor, k: int, inverse: Tensor, box: Box) -> Tensor:
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
