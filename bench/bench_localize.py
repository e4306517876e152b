"""From snapshots to sources, beside the same likelihood maximised with general tools.

    python -m pytest bench/bench_localize.py --benchmark-only

The peer is what one writes first: the stochastic likelihood in float64, its gradient by automatic differentiation, and
L-BFGS-B of scipy. It is told how many sources there are and starts beside the truth, so that it needs no search; the
others start from the snapshots alone. The gate: F1 of at least 0.95 on scenes that are clear enough for everyone, with
hits within 5 degrees, 5 degrees and 1 m. Points are scenes.
"""

from __future__ import annotations

import functools
import math

import pytest
import scipy.optimize
import torch

from bench.accuracy import Errors
from bench.contest import Match
from bench.search import f1_of
from risfast import Localizer
from risfast.baselines import build_baseline
from risfast.models import Measurement
from risfast.simulate import SystemConfig, generate_scenes
from risfast.sources import Sources

SCENES, PEER_SCENES, LEAST_F1 = 8, 2, 0.95
# Offsets of the peer's start from the truth: radians, radians, 1/metres, log power.
START = (0.01, -0.01, 0.01, 0.3)


@functools.cache
def scenes_of(n_snapshots, count=SCENES):
    config = SystemConfig(
        n_snapshots=n_snapshots,
        n_sources=(3, 3),
        snr_db=(15.0, 20.0),
        range_m=(1.0, 4.0),
        min_separation_rad=math.radians(15),
    )
    return generate_scenes(config, 99, range(count))


def negative_log_likelihood(parameters, scene, k):
    """Of one scene, in float64: azimuths, elevations, 1/ranges and log powers of k sources, and the log noise."""
    phi, y, positions, wavenumber = scene
    azimuth, elevation, inverse, power = parameters[: 4 * k].view(4, k)
    direction = torch.stack([azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()], -1)
    r = 1 / inverse
    away = (r[:, None, None] * direction[:, None] - positions).norm(dim=-1)  # [K, N]
    a = torch.polar(torch.ones_like(away), wavenumber * (r[:, None] - away))
    b = phi @ a.mT  # [L, M, K]
    covariance = (b * power.exp()) @ b.mH + parameters[-1].exp() * torch.eye(y.shape[1])
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, y[..., None], upper=False)
    return 2 * factor.diagonal(dim1=1, dim2=2).real.log().sum() + white.abs().square().sum()


def by_general_tools(scenes):
    """What L-BFGS-B ends at, scene by scene."""
    array, found = scenes.config.array, []
    for b in range(len(scenes)):
        truth, power = scenes.position[b][scenes.mask[b]].double(), scenes.power[b][scenes.mask[b]].double()
        k = len(truth)
        phi = (scenes.channel[b] * scenes.codes[b][:, None]).to(torch.complex128)
        scene = (phi, scenes.y[b].to(torch.complex128), array.positions_m, array.wavenumber)
        start = torch.stack([truth[:, 0], truth[:, 1], 1 / truth[:, 2], power.log()])
        start = start + torch.tensor(START, dtype=torch.float64)[:, None]
        first = torch.cat([start.flatten(), scenes.noise_power[b].double().log()[None]])

        def loss(values, scene=scene, k=k):
            parameters = torch.tensor(values, requires_grad=True)
            value = negative_log_likelihood(parameters, scene, k)
            (gradient,) = torch.autograd.grad(value, parameters)
            return float(value.detach()), gradient.numpy()

        bounds = [(-math.pi / 2, math.pi / 2)] * (2 * k) + [(1e-3, 10.0)] * k + [(-20.0, 20.0)] * (k + 1)
        best = scipy.optimize.minimize(loss, first.numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
        azimuth, elevation, inverse, log_power = torch.from_numpy(best.x[: 4 * k].reshape(4, k))
        found.append(Sources.at(torch.stack([azimuth, elevation, 1 / inverse], -1), log_power.exp()))
    return found


def prepared(contestant, scenes):
    """The call of a contestant."""
    if contestant == "general tools":
        return lambda: by_general_tools(scenes)
    if contestant == "risfast, greedy ML":
        greedy = build_baseline("greedy_ml", scenes.config.setup)
        measurement = Measurement.of(scenes)
        return lambda: greedy.localize(measurement)
    classical = contestant == "risfast, classical fit"
    localizer = Localizer.classical(scenes.config.setup) if classical else Localizer.from_pretrained()
    return lambda: localizer.localize(scenes.y, scenes.codes, scenes.channel)


def check(found, scenes):
    """No error where F1 is as it must be, an infinite one where it is not."""
    f1 = f1_of([sources.position for sources in found], scenes.position.double())
    return Errors(0.0, 0.0 if f1 >= LEAST_F1 else math.inf)


@pytest.mark.parametrize("n_snapshots", [16, 64])
@pytest.mark.parametrize("contestant", ["general tools", "risfast", "risfast, classical fit", "risfast, greedy ML"])
def test_localisation(contest, contestant, n_snapshots):
    is_peer = contestant == "general tools"
    scenes = scenes_of(n_snapshots, PEER_SCENES if is_peer else SCENES)
    contest(
        Match(f"localisation, {n_snapshots} snapshots", len(scenes), len(scenes)),
        contestant,
        lambda: prepared(contestant, scenes),
        lambda found: check(found, scenes),
        0.0,
        is_peer=is_peer,
        once=is_peer,
    )
