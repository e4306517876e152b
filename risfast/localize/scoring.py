"""Damped Fisher scoring of the stochastic likelihood, all scenes at once, each until it has converged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from risfast.localize.likelihood import Derivatives, Likelihood, SourceState
from risfast.setup import Setup

__all__ = ["Box", "Point", "ascend", "climb"]

# Longest step: of an angle in beam widths, of 1/range by the phase of the outermost element, of log power and log
# noise.
_LONGEST_BEAMS, _LONGEST_PHASE_RAD, _LONGEST_POWER, _LONGEST_NOISE = 0.44, 3.57, 1.5, 1.0
_DAMPING_START, _DAMPING_LEAST, _DAMPING_MOST = 1e-3, 1e-6, 1e6
_DAMPING_DOWN, _DAMPING_UP = 0.2, 10.0
# Of the log-likelihood: far below what a source is worth.
_CONVERGED = 1e-2
# Expected gains that a scene is given to reach its goal: the likelihood is not quadratic.
_HOPE = 5.0


@dataclass(frozen=True)
class Box:
    """Where sources may be."""

    low: Tensor  # (3,) Bounds of (azimuth, elevation, 1/range)
    high: Tensor  # (3,) Bounds of (azimuth, elevation, 1/range)
    longest: Tensor  # (3,) Longest step of the same
    full_circle: bool  # Whether azimuth goes round
    least_power: Tensor  # (B,)
    least_noise: Tensor  # (B,)

    @classmethod
    def of(cls, setup: Setup, least_power: Tensor, least_noise: Tensor) -> Box:
        """The region of a setup, and steps that its aperture can follow."""
        low, high = setup.region.bounds()
        beams = [_LONGEST_BEAMS * setup.array.wavelength_m / max(extent, 1e-300) for extent in setup.extents_m]
        curve = _LONGEST_PHASE_RAD / setup.curvature_rad_m if setup.curvature_rad_m > 0 else math.inf
        steps = torch.tensor([*beams, curve], dtype=torch.float64)
        # No step is longer than the region is.
        longest = torch.minimum(steps, (high - low).clamp_min(1e-12))
        device = least_power.device
        circle = setup.region.full_circle
        return cls(low.to(device), high.to(device), longest.to(device), circle, least_power, least_noise)

    def __getitem__(self, scenes: Tensor) -> Box:
        """The same of some of the scenes."""
        return replace(self, least_power=self.least_power[scenes], least_noise=self.least_noise[scenes])

    def clamp(self, state: SourceState) -> SourceState:
        """The nearest state inside."""
        position = state.position
        if self.full_circle:
            middle = (self.low[0] + self.high[0]) / 2
            azimuth = torch.remainder(position[..., 0] - middle + math.pi, 2 * math.pi) - math.pi + middle
            position = torch.cat([azimuth[..., None], position[..., 1:]], -1)
        return replace(
            state,
            position=torch.maximum(torch.minimum(position, self.high), self.low),
            power=torch.maximum(state.power, self.least_power[:, None]),
            noise=torch.maximum(state.noise, self.least_noise),
        )


@dataclass(frozen=True)
class Point:
    """States of B scenes with their log-likelihoods."""

    state: SourceState  # Of B scenes
    value: Tensor  # (B,) As :meth:`risfast.localize.likelihood.Likelihood.value` gives it

    def take(self, scenes: Tensor) -> Point:
        """Some of the scenes, by their indices.

        scenes (b,)
        """
        return Point(self.state.take(scenes), self.value[scenes])

    def put(self, scenes: Tensor, other: Point) -> Point:
        """A copy with some of the scenes, by their indices, taken from ``other``.

        scenes (b,)
        """
        return Point(_put(self.state, scenes, other.state), self.value.index_copy(0, scenes, other.value))


def climb(
    state: SourceState,
    at: Any,
    damping: Tensor,
    active: Tensor,
    iterations: int,
    *,
    propose: Callable[[Tensor, SourceState, Any, Tensor], tuple[Tensor, Tensor]],
    evaluate: Callable[[Tensor, SourceState], tuple[SourceState, Any]],
    judge: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[SourceState, Any]:
    """Damped Newton steps of all scenes at once, each until it has settled.

    ``at`` is what a step is made from: a dataclass of tensors, ``value`` among them, with ``take``.
    ``propose`` gives the steps of the active scenes and which of these go on, ``evaluate`` the states after a step,
    kept within their bounds, and what is there, ``judge`` from the new and the old values and the damping which steps
    are taken, the next damping, and which scenes go on.
    """
    for _ in range(iterations):
        here, now = state.take(active), at.take(active)
        step, more = propose(active, here, now, damping[active])
        going = more.nonzero()[:, 0]
        active = active[going]
        if not len(active):
            break
        moved, there = evaluate(active, here.take(going).moved(step[going]))
        better, damping[active], more = judge(there.value, now.value[going], damping[active])
        taken = better.nonzero()[:, 0]
        state = _put(state, active[taken], moved.take(taken))
        at = _put(at, active[taken], there.take(taken))
        active = active[more]
    return state, at


def _put(one: Any, scenes: Tensor, other: Any) -> Any:
    """A copy of a dataclass of tensors with some of the scenes, by their indices, taken from ``other``."""
    values = {f.name: getattr(one, f.name).index_copy(0, scenes, getattr(other, f.name)) for f in fields(one)}
    return replace(one, **values)


def ascend(likelihood: Likelihood, state: SourceState, box: Box, iterations: int, goal: Tensor | None = None) -> Point:
    """Climb the likelihood of each scene; a step that does not raise it is not taken.

    goal (B,)
    """
    # Fisher scoring with Levenberg-Marquardt damping: (F + lambda diag F) step = gradient, lambda a fifth after a step
    # that was taken and ten times as large after one that was not. Coordinates at a bound that the gradient points out
    # of stay there, and the others move as if they were known. The expected gain is half the product of step and
    # gradient. D. W. Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", Journal of SIAM
    # 11(2), 1963.
    used = state.mask.any(0).nonzero()[:, 0]
    inner = state.columns(used)
    at = likelihood.derivatives(inner)

    def propose(active: Tensor, here: SourceState, now: Derivatives, damping: Tensor) -> tuple[Tensor, Tensor]:
        step, expected = _step(now, damping, _held(here, box, now.gradient), box.longest)
        promising = ~(expected < _CONVERGED / 2)  # NaN is for the likelihood to refuse
        if goal is not None:
            promising &= ~(now.value + _HOPE * expected < goal[active])
        return step, promising

    def evaluate(active: Tensor, moved: SourceState) -> tuple[SourceState, Derivatives]:
        moved = box[active].clamp(moved)
        return moved, likelihood[active].derivatives(moved)

    def judge(there: Tensor, before: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gain = there - before
        better = gain > 0  # False for NaN
        damping = torch.where(better, damping * _DAMPING_DOWN, damping * _DAMPING_UP)
        return better, damping.clamp(_DAMPING_LEAST, _DAMPING_MOST), ~better | (gain >= _CONVERGED)

    every = torch.arange(len(state.noise), device=state.noise.device)
    damping = torch.full_like(at.value, _DAMPING_START)
    found, at = climb(inner, at, damping, every, iterations, propose=propose, evaluate=evaluate, judge=judge)
    position, power = state.position.clone(), state.power.clone()
    position[:, used], power[:, used] = found.position, found.power
    return Point(SourceState(position, power, found.noise, state.mask), at.value)


def _held(state: SourceState, box: Box, gradient: Tensor) -> Tensor:
    """Which parameters [B, 4 K + 1] are coordinates at a bound that the gradient points out of."""
    k = state.mask.shape[1]
    slope = gradient[:, : 3 * k].unflatten(1, (3, k)).mT  # [B, K, 3]
    out = ((state.position >= box.high) & (slope > 0)) | ((state.position <= box.low) & (slope < 0))
    out |= box.high <= box.low  # a fixed coordinate
    if box.full_circle:
        out[..., 0] = False
    return torch.cat([out.mT.flatten(1), out.new_zeros(len(out), k + 1)], 1)


def _step(at: Derivatives, damping: Tensor, held: Tensor, longest: Tensor) -> tuple[Tensor, Tensor]:
    """Damped step [B, 4 K + 1], cut to the longest in each parameter, and the gain [B] to expect of the whole of it."""
    free = ~held
    both = free[:, :, None] & free[:, None]
    gradient = torch.where(free, at.gradient, 0.0)
    diagonal = at.information.diagonal(dim1=1, dim2=2)
    # A direction that the data say nothing about would make the system singular.
    ridge = damping[:, None] * diagonal + 1e-12 * diagonal.amax(1, keepdim=True)
    system = torch.where(both, at.information, 0.0) + torch.diag_embed(torch.where(free, ridge, 1.0))
    step = torch.linalg.solve_ex(system, gradient[..., None]).result[..., 0]
    expected = (gradient * step).sum(1) / 2
    k = (held.shape[1] - 1) // 4
    others = longest.new_tensor([_LONGEST_POWER] * k + [_LONGEST_NOISE])
    bound = torch.cat([longest.repeat_interleave(k), others])
    return torch.maximum(torch.minimum(torch.where(step.isfinite(), step, 0.0), bound), -bound), expected
