"""Which peaks of a map are sources and which are noise or side lobes: a test that keeps a rate of false alarms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import betainccinv
from torch import Tensor

from risfast.geometry import SearchGrid
from risfast.ops.form import QuadraticForm
from risfast.setup import PLANE_PHASE_RAD, Setup
from risfast.steering import steering_vectors

_SCENES, _BATCH, _SEED = 200, 25, 20120301  # of simulated noise: its number of directions is known to 10 %
_DIRECTIONS_PER_ELEMENT = 16  # a first value, on whose logarithm alone the measured one depends
_POINTS_PER_BEAM = 12.0  # of the grid on which peaks of noise are measured
_PLANES = 8  # of that grid, for each range plane of a map
_MOST_POINTS = 1 << 18
_LEAST_LEFT = 1e-6  # of a steering vector's squared norm: less is a direction that is already accounted for


def share_limits(
    n_elements: int, snapshots: int, directions: float, false_alarm: float, most_sources: int
) -> list[float]:
    """Least share of the power in one beam that noise reaches in a scene with this probability, by sources before it.

    The share of L snapshots of white noise in one of m dimensions has the distribution Beta(L, L (m - 1)).
    """
    one = 1 - (1 - false_alarm) ** (1 / directions)
    dimensions = n_elements - np.arange(min(most_sources, n_elements - 1))
    return [float(limit) for limit in betainccinv(snapshots, snapshots * (dimensions - 1), one)]


def _shares(covariance: Tensor, vectors: Tensor, trace: Tensor) -> Tensor:
    """a^H R a / (a^H a trace) of steering vectors, 0 of those without norm.

    covariance (B, N, N), vectors (B, N, C), trace (B,) -> (B, C)
    """
    norm = torch.view_as_real(vectors).square().sum((1, 3))
    power = (vectors.conj() * (covariance @ vectors)).sum(1).real
    there = norm > _LEAST_LEFT * vectors.shape[1]
    tiny = torch.finfo(norm.dtype).tiny
    return torch.where(there, power / (norm * trace[:, None]).clamp_min(tiny), torch.zeros_like(norm))


def significant(covariance: Tensor, vectors: Tensor, limits: list[float], loading: float) -> Tensor:
    """Which candidates are sources: again and again the one with the largest share of the power, projected out.

    covariance (B, N, N), vectors (B, N, C) with columns of zeros for padding -> bool (B, C)
    """
    residual = covariance.to(torch.complex128)
    n = residual.shape[-1]
    total = residual.diagonal(dim1=1, dim2=2).real.sum(1)
    number = torch.arange(vectors.shape[2], device=vectors.device)
    found = torch.zeros(len(vectors), len(number), dtype=torch.bool, device=vectors.device)
    running = total > 0
    for sources, limit in enumerate(limits):
        # What the loading of the map hides is no source: peaks are as near to their sources as it lets them be.
        remaining = residual.diagonal(dim1=1, dim2=2).real.sum(1)
        noise = (remaining + loading * total * (1 - sources / n)) / (1 + loading)
        share, best = _shares(residual, vectors, noise).max(1)
        running = running & (share > limit)
        found = found | (running[:, None] & (number == best[:, None]))
        direction = vectors.gather(2, best[:, None, None].expand(-1, n, 1))
        unit = torch.where(running[:, None, None], torch.nn.functional.normalize(direction, dim=1), 0.0)
        vectors = vectors - unit @ (unit.mH @ vectors)
        residual = residual - unit @ (unit.mH @ residual)
        residual = residual - (residual @ unit) @ unit.mH
    return found


def _noise(random: np.random.Generator, scenes: int, n: int, snapshots: int) -> Tensor:
    """Factors (scenes, N, K) of covariances of white noise, of many snapshots by Bartlett's decomposition."""
    shape = (scenes, n, min(n, snapshots))
    factor = (random.standard_normal(shape) + 1j * random.standard_normal(shape)) / np.sqrt(2)
    if snapshots > n:
        each = np.arange(n)
        factor = np.tril(factor, -1)
        factor[:, each, each] = np.sqrt(random.standard_gamma(snapshots - each, (scenes, n)))
    return torch.from_numpy(factor)


def _peak_grid(setup: Setup) -> SearchGrid:
    """A grid on which no peak of the noise lies between points or planes."""
    coarse = setup.search_grid(_POINTS_PER_BEAM, _MOST_POINTS // _PLANES)
    return SearchGrid(coarse.azimuth_rad, coarse.elevation_rad, setup.range_planes(PLANE_PHASE_RAD / _PLANES))


def independent_directions(
    setup: Setup, candidates: Callable[[Tensor], Tensor], snapshots: int, false_alarm: float, loading: float
) -> float:
    """So many independent directions would make as many false alarms of noise as the candidates of this map.

    candidates (B, N, N) -> (B, N, C)
    """
    # Importance sampling: a random point of the grid is made to pass the limit by scaling the noise in its beam, and a
    # scene counts as one over how many points pass with it. R. J. Adler, J. H. Blanchet, J. Liu, "Efficient Monte
    # Carlo for high excursions of Gaussian random fields", Annals of Applied Probability 22(3), 2012.
    array, grid, n = setup.array, _peak_grid(setup), setup.array.n_elements
    random = np.random.default_rng(_SEED)
    most = 1 - (1 - false_alarm) ** (1 / (_DIRECTIONS_PER_ELEMENT * n))
    beta = (snapshots, snapshots * (n - 1))
    limit = float(betainccinv(*beta, most))
    count = 0.0
    for _ in range(0, _SCENES, _BATCH):
        axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
        point = [axis[torch.from_numpy(random.integers(len(axis), size=_BATCH))] for axis in axes]
        beam = steering_vectors(array, *point, wavefront=setup.wavefront, dtype=torch.complex128)[..., None] / n**0.5
        noise = _noise(random, _BATCH, n, snapshots)
        part = beam @ (beam.mH @ noise)
        inside, outside = (torch.view_as_real(each).square().sum((1, 2, 3)) for each in (part, noise - part))
        share = torch.from_numpy(betainccinv(*beta, most * random.uniform(size=_BATCH)))
        gain = (share / (1 - share) * outside / inside).sqrt()
        factor = noise - part + gain[:, None, None] * part
        planted = factor @ factor.mH
        power = QuadraticForm.bartlett(planted).spectrum(array, grid, wavefront=setup.wavefront, reduce="none")
        level = planted.diagonal(dim1=1, dim2=2).real.mean(1)
        passing = (power > limit * level[:, None, None, None]).flatten(1).sum(1)
        passed = significant(planted, candidates(planted), [limit], loading).any(1)
        count += float((passed / passing.clamp_min(1)).sum())
    return max(count * grid.size / _SCENES, 1.0)
