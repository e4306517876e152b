"""Which estimate belongs to which true source, and the figures that follow from it.

Sources are an unordered set, so every figure matches first: the assignment of estimates to true sources with the
least total distance in metres. A pair counts as a hit only if azimuth, elevation and range are all within tolerance;
any other pair is one missed source and one ghost. A range that was not determined (NaN), or that is infinite where
the other is not, is a miss wherever range is scored, and does not matter where the tolerance of range is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from risfast.errors import ShapeError
from risfast.geometry import spherical_to_cartesian
from risfast.io.guard import Array
from risfast.setup import Tolerance


@dataclass(frozen=True, eq=False)
class Match:
    """One scene's estimates paired with its true sources.

    Attributes
    ----------
    n_estimated, n_true : int
        Ke and Kt.
    pairs : int64 array, shape (P, 2), P = min(Ke, Kt)
        (index of the estimate, index of the true source), sorted by the true source.
    error : float64 array, shape (P, 3)
        Estimate minus truth: azimuth (wrapped to +-pi) and elevation in radians, range in metres; of range NaN where
        it was not determined, infinite where one of the two is, 0 where both are.
    distance_m : float64 array, shape (P,)
        Distance between the two positions in metres; NaN where a range is not finite.
    hit : bool array, shape (P,)
        Whether the pair is within tolerance.
    """

    n_estimated: int
    n_true: int
    pairs: Array
    error: Array
    distance_m: Array
    hit: Array

    @property
    def hits(self) -> int:
        """Pairs within tolerance (true positives)."""
        return int(self.hit.sum())

    @property
    def misses(self) -> int:
        """True sources without a hit (false negatives)."""
        return self.n_true - self.hits

    @property
    def ghosts(self) -> int:
        """Estimates that hit nothing (false positives)."""
        return self.n_estimated - self.hits


@dataclass(frozen=True)
class Summary:
    """Figures over a set of scenes; every field is a float or an int, radians and metres.

    Attributes
    ----------
    scenes, sources, estimates : int
        Counts over the set.
    found, missed, ghosts : int
        Hits, true sources without a hit, estimates without a hit.
    precision, recall, f1 : float
        found / estimates, found / sources and their harmonic mean 2 found / (estimates + sources). Where the
        denominator is 0 the value is 1 if nothing was missed and nothing invented, else 0.
    ghosts_per_scene : float
        0 without scenes.
    count_accuracy : float
        Share of scenes with as many estimates as sources; 1 without scenes.
    rmse_azimuth_rad, rmse_elevation_rad, rmse_range_m, rmse_xyz_m : float
        Root mean square errors of the hits; NaN without hits. Those of range and position are of the hits whose two
        ranges are finite.
    median_xyz_hits_m, median_xyz_pairs_m : float
        Median distance of the hits, and of all matched pairs within tolerance or not, whose two ranges are finite; NaN
        without any.
    """

    scenes: int
    sources: int
    estimates: int
    found: int
    missed: int
    ghosts: int
    precision: float
    recall: float
    f1: float
    ghosts_per_scene: float
    count_accuracy: float
    rmse_azimuth_rad: float
    rmse_elevation_rad: float
    rmse_range_m: float
    rmse_xyz_m: float
    median_xyz_hits_m: float
    median_xyz_pairs_m: float


def _positions(values: Any, name: str, *, estimated: bool) -> Array:
    """A checked float64 (K, 3) copy on the CPU."""
    position = torch.as_tensor(values).detach().to(device="cpu", dtype=torch.float64).numpy()
    if position.ndim != 2 or position.shape[1] != 3:
        mend = "; it looks transposed" if position.ndim == 2 and position.shape[0] == 3 else ""
        raise ShapeError(
            f"{name} must have shape (K, 3) with azimuth, elevation, range, got {tuple(position.shape)}{mend}"
        )
    angles, r = position[:, :2], position[:, 2]
    if not np.isfinite(angles).all():
        raise ValueError(f"{name} must have finite azimuths and elevations; it holds NaN or infinite values")
    if np.isnan(r).any() and not estimated:
        raise ValueError(f"{name} must have finite or infinite ranges, and holds NaN: only an estimate may lack one")
    if (r <= 0).any():
        raise ValueError(f"{name} must have positive ranges in its third column, got {r[r <= 0].min():g}")
    return position


def pair_distances(estimated: Any, true: Any, *, range_scored: bool = True) -> tuple[Array, Array]:
    """How far every estimate is from every true source, for pairing, and which of these are distances of two points.

    estimated, true (Ke, 3) and (Kt, 3) -> cost (Ke, Kt), points (Ke, Kt)
    """
    e, t = _positions(estimated, "estimated", estimated=True), _positions(true, "true", estimated=False)
    points = np.isfinite(e[:, None, 2]) & np.isfinite(t[None, :, 2])
    one = [torch.from_numpy(np.concatenate([v[:, :2], np.ones((len(v), 1))], 1)) for v in (e, t)]
    u, v = (spherical_to_cartesian(o).numpy() for o in one)
    cosine, sine = u @ v.T, np.linalg.norm(np.cross(u[:, None], v[None]), axis=-1)
    finite = np.where(np.isfinite(t[:, 2]), t[:, 2], 0.0)
    ray = finite * np.where(cosine > 0, sine, 1.0)
    ranges = np.concatenate([e[:, 2], t[:, 2]])
    ranges = ranges[np.isfinite(ranges)]
    length = ranges.max() if len(ranges) else 1.0
    cost = np.where(np.isfinite(t[:, 2]), ray, length * np.arctan2(sine, cosine))
    near = [torch.from_numpy(np.where(np.isfinite(v), v, 1.0)) for v in (e, t)]
    x, y = (spherical_to_cartesian(n).numpy() for n in near)
    apart = np.linalg.norm(x[:, None, :] - y[None, :, :], axis=-1)  # [Ke, Kt] metres
    return np.where(points & range_scored, apart, cost), points


def match(estimated: Any, true: Any, tolerance: Tolerance | None = None) -> Match:
    """Pair estimates with true sources and judge each pair.

    Parameters
    ----------
    estimated : real array_like, shape (Ke, 3)
        (azimuth, elevation, range) in radians and metres. Ke may be 0: pass shape (0, 3). A range may be NaN, not
        determined, or infinite.
    true : real array_like, shape (Kt, 3)
        The same for the true sources. Kt may be 0. A range may be infinite.
    tolerance : Tolerance, optional
        The gate of a hit, of a setup its ``tolerance``; by default 5 degrees, 5 degrees and 1 m.

    Returns
    -------
    Match

    Raises
    ------
    ShapeError, ValueError
        An argument is not (K, 3), not finite where it has to be, or has a range that is not positive.

    Notes
    -----
    The assignment minimises the sum of :func:`pair_distances` over all one-to-one pairings (Kuhn 1955, through
    `scipy.optimize.linear_sum_assignment`). The gate is applied after the assignment; only that range is not scored,
    where its tolerance is infinite, changes the distances: they are then those from the rays.
    """
    gate = tolerance or Tolerance()
    scored = math.isfinite(gate.range_m)
    cost, points = pair_distances(estimated, true, range_scored=scored)
    row, column = linear_sum_assignment(cost)
    order = np.argsort(column)
    row, column = row[order], column[order]
    estimate, truth = _positions(estimated, "estimated", estimated=True), _positions(true, "true", estimated=False)
    far = np.isinf(estimate[row, 2]) & np.isinf(truth[column, 2])
    with np.errstate(invalid="ignore"):  # infinity less infinity, which is put right below
        error = estimate[row] - truth[column]
    error[far, 2] = 0.0
    error[:, 0] -= 2 * math.pi * np.round(error[:, 0] / (2 * math.pi))  # leaves +-pi untouched, to the last bit
    hit = (np.abs(error[:, :2]) <= [gate.azimuth_rad, gate.elevation_rad]).all(-1)
    if scored:
        hit &= np.abs(error[:, 2]) <= gate.range_m  # False for NaN
    distance = cost[row, column]
    if not scored:
        distance = pair_distances(estimate, truth)[0][row, column]
    distance = np.where(points[row, column], distance, np.nan)
    return Match(len(estimate), len(truth), np.stack([row, column], -1), error, distance, hit)


def _ratio(part: int, whole: float, flawless: bool) -> float:
    return part / whole if whole else float(flawless)


def _rms(values: Array) -> float:
    values = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else math.nan


def _median(values: Array) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else math.nan


def summarise(matches: Sequence[Match]) -> Summary:
    """Figures over a set of scenes.

    Parameters
    ----------
    matches : sequence of Match
        One per scene, from :func:`match`; may be empty.

    Returns
    -------
    Summary
        Counts are summed over the scenes before any ratio is taken, so every source weighs the same.
    """
    sources, estimates = sum(m.n_true for m in matches), sum(m.n_estimated for m in matches)
    found = sum(m.hits for m in matches)
    missed, ghosts, flawless = sources - found, estimates - found, found == sources == estimates
    distance = np.concatenate([np.empty(0), *(m.distance_m for m in matches)])
    hit = np.concatenate([np.empty(0, dtype=bool), *(m.hit for m in matches)])
    error = np.concatenate([np.empty((0, 3)), *(m.error for m in matches)])[hit]
    counted = sum(m.n_estimated == m.n_true for m in matches)
    return Summary(
        scenes=len(matches),
        sources=sources,
        estimates=estimates,
        found=found,
        missed=missed,
        ghosts=ghosts,
        precision=_ratio(found, estimates, flawless),
        recall=_ratio(found, sources, flawless),
        f1=_ratio(found, (estimates + sources) / 2, flawless),
        ghosts_per_scene=ghosts / len(matches) if matches else 0.0,
        count_accuracy=_ratio(counted, len(matches), flawless=True),
        rmse_azimuth_rad=_rms(error[:, 0]),
        rmse_elevation_rad=_rms(error[:, 1]),
        rmse_range_m=_rms(error[:, 2]),
        rmse_xyz_m=_rms(distance[hit]),
        median_xyz_hits_m=_median(distance[hit]),
        median_xyz_pairs_m=_median(distance),
    )
