"""Float64 truth at the points that matter, and the gate: no speed without an error within the documented bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy import ndimage
from torch import Tensor

from bench.peers import SPECTRA, Map, Problem, loaded, steering

RANDOM_POINTS = 2000
PEAKS_PER_SCENE = 20
_PEAK_WINDOW = 7  # a peak is the maximum of so many points a side


class InaccurateContestantError(AssertionError):
    """A contestant is further from float64 than its documented bound, so its speed means nothing."""


@dataclass(frozen=True)
class Errors:
    """Largest errors in dB; infinite where a value that should be a positive number is none."""

    peaks_db: float
    random_db: float

    @property
    def worst_db(self) -> float:
        return max(self.peaks_db, self.random_db)


def exact_values(problem: Problem, scene: int, points: Tensor) -> Tensor:
    """Power, or a^H Q a, of one scene at points [..., 3] in float64: one Cholesky factor, one product, one sum.

    MUSIC by its noise subspace and low rank by R = F F^H: on purpose not the ways that any contestant goes.
    """
    matrix, n = problem.matrix[scene : scene + 1].to(torch.complex128), len(problem.positions_m)
    A = steering(problem, points.reshape(-1, 3), torch.complex128)  # [g, N]
    if problem.operation in ("mvdr", "mvdr_lowrank"):
        full, _ = loaded(matrix @ matrix.mH if problem.operation == "mvdr_lowrank" else matrix, problem.loading)
        whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(full[0]), A.T, upper=False)  # L^-1 a
        values = n / whitened.abs().square().sum(0)
    elif problem.operation == "music":
        _, vectors = torch.linalg.eigh(matrix[0])
        values = n / (A.conj() @ vectors[:, : n - problem.n_sources]).abs().square().sum(1)
    elif problem.operation == "analysis_factored":
        values = (A.conj() @ matrix[0]).abs().square().sum(1)
    else:
        values = ((A.conj() @ matrix[0]) * A).sum(1).real
        values = values / n**2 if problem.operation == "bartlett" else values
    return values.reshape(points.shape[:-1])


def _columns(problem: Problem, index: Tensor) -> Tensor:
    """Every range plane at angles ``index`` [P, 2], as points [P, G_r, 3]."""
    azimuth, elevation = problem.azimuth_rad[index[:, 0]], problem.elevation_rad[index[:, 1]]
    r = problem.range_m
    return torch.stack(torch.broadcast_tensors(azimuth[:, None], elevation[:, None], r), -1)


def _decibel_error(actual: Tensor, expected: Tensor) -> float:
    if actual.numel() == 0:
        return 0.0
    if not bool((torch.isfinite(actual) & (actual > 0)).all()):
        return math.inf
    return float((10 * (actual.double() / expected).log10()).abs().max())


def _map_error(problem: Problem, found: Map, scene: int, index: Tensor) -> float:
    """At angles ``index``: the error of the maximum, and how far the plane that was named is below it."""
    at = scene, index[:, 0], index[:, 1]
    columns = exact_values(problem, scene, _columns(problem, index))  # [P, G_r]
    named = columns.gather(1, found.plane[at].long()[:, None])[:, 0]
    highest = columns.amax(1)
    return max(_decibel_error(found.power[at], highest), _decibel_error(named, highest))


def peak_index(power: Tensor) -> Tensor:
    """Angles [P, 2] of the highest local maxima of a map [G_az, G_el]."""
    values = power.double().nan_to_num(-math.inf).numpy()
    top = torch.from_numpy(ndimage.maximum_filter(values, size=_PEAK_WINDOW, mode="nearest") == values)
    flat = torch.where(top.flatten(), torch.from_numpy(values).flatten(), -math.inf)
    best = flat.topk(min(PEAKS_PER_SCENE, flat.numel())).indices
    return torch.stack(torch.unravel_index(best, power.shape), 1)


def _random_index(problem: Problem, count: int, axes: int) -> tuple[Tensor, Tensor]:
    """Scenes [count] and grid indices [count, axes] drawn uniformly."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.randint(problem.batch, (count,), generator=generator)
    columns = [torch.randint(n, (count,), generator=generator) for n in problem.shape[:axes]]
    return scene, torch.stack(columns, 1)


def _relative_in_db(error: float, largest: float) -> float:
    """An error of a quantity that is no power, relative to its largest value, as decibels."""
    return 10 * math.log10(1 + error / largest) if math.isfinite(error) else math.inf


def _spectrum_errors(problem: Problem, found: Map) -> Errors:
    scene, index = _random_index(problem, RANDOM_POINTS, 2)
    peaks = random = 0.0
    for b in range(problem.batch):
        peaks = max(peaks, _map_error(problem, found, b, peak_index(found.power[b])))
        random = max(random, _map_error(problem, found, b, index[scene == b]))
    return Errors(peaks, random)


def _analysis_errors(problem: Problem, found: Tensor) -> Errors:
    scene, index = _random_index(problem, RANDOM_POINTS, 3)
    peaks = random = largest = 0.0
    axes = (problem.azimuth_rad, problem.elevation_rad, problem.range_m)
    for b in range(problem.batch):
        flat = found[b].reshape(-1).double().nan_to_num(math.inf)
        top = torch.stack(torch.unravel_index(flat.topk(min(PEAKS_PER_SCENE, flat.numel())).indices, problem.shape), 1)
        for which, at in (("peaks", top), ("random", index[scene == b])):
            expected = exact_values(problem, b, torch.stack([axis[at[:, i]] for i, axis in enumerate(axes)], -1))
            difference = (found[b][at[:, 0], at[:, 1], at[:, 2]].double() - expected).abs()
            worst = float(difference.nan_to_num(math.inf).max()) if len(at) else 0.0
            largest = max(largest, float(expected.abs().max())) if len(at) else largest
            peaks, random = (max(peaks, worst), random) if which == "peaks" else (peaks, max(random, worst))
    return Errors(_relative_in_db(peaks, largest), _relative_in_db(random, largest))


@lru_cache(maxsize=4)
def exact_synthesis(problem: Problem, scene: int) -> Tensor:
    """sum_g p_g a_g a_g^H of one scene, complex128 [N, N]."""
    n = len(problem.positions_m)
    total, weights = torch.zeros(n, n, dtype=torch.complex128), problem.matrix[scene].reshape(-1).double()
    for start in range(0, problem.size, 1 << 14):
        at = slice(start, start + (1 << 14))
        A = steering(problem, problem.points[at], torch.complex128)
        total += (A * weights[at, None]).T @ A.conj()
    return total


def _synthesis_errors(problem: Problem, found: Tensor) -> Errors:
    """Of the first and the last scene, every entry; "peaks" are the diagonal, where all points add up in phase."""
    diagonal = rest = 0.0
    for b in {0, problem.batch - 1}:
        expected = exact_synthesis(problem, b)
        error = (found[b].to(torch.complex128) - expected).abs().nan_to_num(math.inf)
        largest = float(expected.abs().max())
        diagonal = max(diagonal, _relative_in_db(float(error.diagonal().max()), largest))
        rest = max(rest, _relative_in_db(float(error.max()), largest))
    return Errors(diagonal, rest)


def measure_errors(problem: Problem, found: Map | Tensor) -> Errors:
    """Errors of a contestant's result.

    Spectra: in dB at the 20 highest peaks of its own map of each scene, and at 2000 random angles over all scenes; the
    plane that it names must be a maximum too. Analysis and synthesis: relative to the largest value, as dB.
    """
    if problem.operation == "synthesis":
        return _synthesis_errors(problem, found)
    if problem.operation in SPECTRA:
        shape = (problem.batch, *problem.shape[:2])
        if tuple(found.power.shape) != shape:
            raise InaccurateContestantError(f"a map of shape {tuple(found.power.shape)} where {shape} was asked for")
        return _spectrum_errors(problem, found)
    return _analysis_errors(problem, found)


def require_accuracy(name: str, errors: Errors, bound_db: float) -> None:
    """Raise InaccurateContestantError unless both errors are within the bound; NaN is not."""
    if not errors.worst_db <= bound_db:
        raise InaccurateContestantError(
            f"{name} gets no speed: its error is {errors.peaks_db:.2g} dB at peaks and {errors.random_db:.2g} dB at "
            f"random points, its documented bound {bound_db:g} dB"
        )
