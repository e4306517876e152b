"""What became of every true source and every estimate of a set of scenes, and GOSPA.

Everything rests on the assignment of :func:`risfast.evaluate.match`; ``risfast.evaluate.figures`` makes figures of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from risfast.evaluate.matching import Array, Match, Tolerance, match, pair_distances

if TYPE_CHECKING:
    from risfast.detect import Sources
    from risfast.evaluate.bounds import SourceBound
    from risfast.simulate.scenes import Scenes

DEFAULT_CUTOFF_M = 2.0


class Gospa(NamedTuple):
    """GOSPA of one scene, split into its parts.

    Attributes
    ----------
    distance_m : float
        sqrt(localisation + missed + false), in metres.
    localisation, missed, false : float
        Square metres: squared distances of the assigned pairs, and half the squared cut-off for every true source and
        every estimate without one.
    """

    distance_m: float
    localisation: float
    missed: float
    false: float


def gospa(estimated: Any, true: Any, cutoff_m: float = DEFAULT_CUTOFF_M, tolerance: Tolerance | None = None) -> Gospa:
    """Generalised optimal sub-pattern assignment metric with p = 2 and alpha = 2.

    Parameters
    ----------
    estimated, true : real array_like, shapes (Ke, 3) and (Kt, 3)
        (azimuth, elevation, range) in radians and metres, as :func:`risfast.evaluate.match` takes them.
    cutoff_m : float
        c > 0: pairs farther apart than this count as one miss and one false estimate.
    tolerance : Tolerance, optional
        Whether range is scored, by default yes: an estimate without a range, or at infinity where the source is not,
        is then farther than c from it. Where it is not, distances are those from the rays.

    Returns
    -------
    Gospa

    Raises
    ------
    ShapeError, ValueError
        As :func:`risfast.evaluate.match`, or a cut-off that is not positive.

    Notes
    -----
    Rahmathullah, García-Fernández and Svensson, "Generalized optimal sub-pattern assignment metric", FUSION 2017,
    proposition 1: the least sum over assignments of d^2 for every pair and c^2 / 2 for everything that has none.
    """
    if not 0 < cutoff_m < math.inf:
        raise ValueError(f"cutoff_m must be a positive number of metres, got {cutoff_m!r}")
    scored = tolerance is None or math.isfinite(tolerance.range_m)
    distance, points = pair_distances(estimated, true, range_scored=scored)
    if scored:
        far = [np.isinf(_array(v)[:, 2]) for v in (estimated, true)]
        distance = np.where(points | (far[0][:, None] & far[1]), distance, math.inf)
    squared = np.square(distance)  # [Ke, Kt]
    row, column = linear_sum_assignment(np.minimum(squared, cutoff_m**2))
    near = squared[row, column] < cutoff_m**2
    localisation = float(squared[row, column][near].sum())
    alone = cutoff_m**2 / 2
    missed, false = alone * (squared.shape[1] - int(near.sum())), alone * (squared.shape[0] - int(near.sum()))
    return Gospa(math.sqrt(localisation + missed + false), localisation, missed, false)


@dataclass(frozen=True, eq=False)
class Scores:
    """What became of every true source and every estimate of S scenes, from :func:`score`.

    Attributes
    ----------
    n_true, n_estimated : int64 arrays, shape (S,)
        Sources and estimates of each scene.
    snr_db : float64 array, shape (S,)
        NaN where it is not known.
    gospa : float64 array, shape (S, 3)
        Localisation, missed, false; square metres.
    source_scene : int64 array, shape (T,)
        The scene of each true source.
    source_position : float64 array, shape (T, 3)
        Azimuth, elevation (radians), range (metres).
    source_error : float64 array, shape (T, 4)
        Azimuth, elevation (radians), range and distance (metres) of the estimate it is paired with; NaN without one.
        Range and distance are not finite where a range is not.
    source_hit : bool array, shape (T,)
        Whether that estimate is within tolerance.
    source_bound : float64 array, shape (T, 3)
        Bounds on range and position in metres, and implied recall; NaN where they are not known.
    estimate_scene, estimate_azimuth_rad, estimate_range_m, estimate_hit : arrays, shape (E,)
        Scene (int64), azimuth in radians and range in metres (float64) and whether it is a hit (bool) of each estimate.
    sharp_m : float
        Sources whose range is bounded within this are held against the bound: an error that is cut off at the tolerance
        of a hit says little about a bound as wide as that.
    partial : bool
        Whether sources or estimates were left out: figures of whole scenes are NaN then.
    """

    n_true: Array
    n_estimated: Array
    snr_db: Array
    gospa: Array
    source_scene: Array
    source_position: Array
    source_error: Array
    source_hit: Array
    source_bound: Array
    estimate_scene: Array
    estimate_azimuth_rad: Array
    estimate_range_m: Array
    estimate_hit: Array
    sharp_m: float = 0.3
    partial: bool = False

    def __len__(self) -> int:
        """S."""
        return len(self.n_true)

    def of_scenes(self, keep: Array) -> Scores:
        """Some of the scenes, in their order.

        Parameters
        ----------
        keep : bool array, shape (S,)
            True for the scenes that stay.

        Returns
        -------
        Scores
        """
        number = np.cumsum(keep) - 1
        source, estimate = keep[self.source_scene], keep[self.estimate_scene]
        parts = {name: getattr(self, name)[keep] for name in ("n_true", "n_estimated", "snr_db", "gospa")}
        part = self._parts(source, estimate)
        return replace(
            part, **parts, source_scene=number[part.source_scene], estimate_scene=number[part.estimate_scene]
        )

    def in_range(self, low_m: float, high_m: float) -> Scores:
        """True sources and estimates with low <= range < high; all scenes stay.

        Recall is then that of the sources in the interval, and precision that of the estimates in it; estimates without
        a range are in none.

        Parameters
        ----------
        low_m, high_m : float
            The interval in metres.

        Returns
        -------
        Scores
            With ``partial`` set.
        """
        return self._within(self.source_position[:, 2], self.estimate_range_m, low_m, high_m)

    def in_azimuth(self, low_rad: float, high_rad: float) -> Scores:
        """True sources and estimates with low <= azimuth < high; all scenes stay.

        Parameters
        ----------
        low_rad, high_rad : float
            The interval in radians.

        Returns
        -------
        Scores
            With ``partial`` set.
        """
        return self._within(self.source_position[:, 0], self.estimate_azimuth_rad, low_rad, high_rad)

    def _within(self, true: Array, own: Array, low: float, high: float) -> Scores:
        part = self._parts((true >= low) & (true < high), (own >= low) & (own < high))
        return replace(part, partial=True)

    def _parts(self, source: Array, estimate: Array) -> Scores:
        sources = {f.name: getattr(self, f.name)[source] for f in fields(self) if f.name.startswith("source_")}
        estimates = {f.name: getattr(self, f.name)[estimate] for f in fields(self) if f.name.startswith("estimate_")}
        return replace(self, **sources, **estimates)

    @staticmethod
    def joined(parts: Sequence[Scores]) -> Scores:
        """The scenes of all parts, in order.

        Parameters
        ----------
        parts : sequence of Scores
            At least one.

        Returns
        -------
        Scores
        """
        first = np.cumsum([0, *(len(p) for p in parts)])
        moved = [
            replace(p, source_scene=p.source_scene + n, estimate_scene=p.estimate_scene + n)
            for p, n in zip(parts, first[:-1], strict=True)
        ]
        values = {
            f.name: np.concatenate([getattr(p, f.name) for p in moved])
            for f in fields(Scores)
            if f.name not in ("sharp_m", "partial")
        }
        return Scores(**values, sharp_m=parts[0].sharp_m, partial=any(p.partial for p in parts))


def score(
    estimated: Sequence[Any],
    true: Sequence[Any],
    *,
    snr_db: Any = None,
    bound: Sequence[Any] | None = None,
    tolerance: Tolerance | None = None,
    cutoff_m: float | None = None,
) -> Scores:
    """Match every scene and keep what the figures need.

    Parameters
    ----------
    estimated, true : sequences of S real array_likes, shapes (Ke, 3) and (Kt, 3)
        (azimuth, elevation, range) in radians and metres.
    snr_db : real array_like, shape (S,), optional
        SNR of each scene in dB.
    bound : sequence of S real array_likes, shape (Kt, 3), optional
        Bounds on range and position in metres, and implied recall, of each true source.
    tolerance : Tolerance, optional
        The gate of a hit; by default 5 degrees, 5 degrees and 1 m.
    cutoff_m : float, optional
        Of :func:`gospa`, metres; by default twice the tolerance of range, where that is finite, or 2 m.

    Returns
    -------
    Scores

    Raises
    ------
    ShapeError, ValueError
        Sequences of different lengths, or positions that :func:`risfast.evaluate.match` refuses.
    """
    scenes = len(true)
    given = {"estimated": estimated, "snr_db": snr_db, "bound": bound}
    for name, value in given.items():
        if value is not None and len(value) != scenes:
            raise ValueError(f"{name} must have one entry for each of the {scenes} scenes of true, got {len(value)}")
    gate = tolerance or Tolerance()
    reach = gate.range_m if math.isfinite(gate.range_m) and gate.range_m > 0 else 1.0
    cutoff_m = DEFAULT_CUTOFF_M * reach if cutoff_m is None else cutoff_m
    matches = [match(e, t, tolerance) for e, t in zip(estimated, true, strict=True)]
    parts = [gospa(e, t, cutoff_m, tolerance)[1:] for e, t in zip(estimated, true, strict=True)]
    positions = [_array(t) for t in true]
    own = _stacked([_array(e)[:, :3] for e in estimated], 3)
    n_true = np.array([m.n_true for m in matches], dtype=np.int64)
    n_estimated = np.array([m.n_estimated for m in matches], dtype=np.int64)
    bounds = [np.full((k, 3), np.nan) for k in n_true] if bound is None else [np.asarray(v, float) for v in bound]
    return Scores(
        n_true=n_true,
        n_estimated=n_estimated,
        snr_db=np.full(scenes, np.nan) if snr_db is None else np.asarray(snr_db, dtype=np.float64),
        gospa=np.array(parts, dtype=np.float64).reshape(scenes, 3),
        source_scene=np.repeat(np.arange(scenes), n_true),
        source_position=_stacked(positions, 3),
        source_error=_stacked([_error_by_source(m) for m in matches], 4),
        source_hit=np.concatenate([*(_hits(m, m.n_true, 1) for m in matches), np.zeros(0, bool)]),
        source_bound=_stacked(bounds, 3),
        estimate_scene=np.repeat(np.arange(scenes), n_estimated),
        estimate_azimuth_rad=own[:, 0],
        estimate_range_m=own[:, 2],
        estimate_hit=np.concatenate([*(_hits(m, m.n_estimated, 0) for m in matches), np.zeros(0, bool)]),
        sharp_m=0.3 * reach,
    )


def score_scenes(
    found: Sequence[Sources],
    scenes: Scenes,
    *,
    bound: SourceBound | None = None,
    tolerance: Tolerance | None = None,
    cutoff_m: float | None = None,
) -> Scores:
    """:func:`score` of simulated scenes.

    Parameters
    ----------
    found : sequence of B Sources
        What was found in each scene.
    scenes : Scenes
        B scenes.
    bound : SourceBound, optional
        Of the same scenes, from :func:`risfast.evaluate.bounds.scene_bound`.
    tolerance, cutoff_m
        As :func:`score` takes them; the tolerance by default that of the scenes' setup.

    Returns
    -------
    Scores
    """
    tolerance = tolerance or scenes.config.setup.tolerance
    masks = list(scenes.mask.cpu())
    limits = None
    if bound is not None:
        each = [bound.deviation[..., 2], bound.position_m, bound.implied_recall(tolerance)]
        limits = [row[mask].numpy() for row, mask in zip(torch.stack(each, -1).cpu(), masks, strict=True)]
    return score(
        [sources.position for sources in found],
        [position[mask] for position, mask in zip(scenes.position.cpu(), masks, strict=True)],
        snr_db=scenes.snr_db.cpu().numpy(),
        bound=limits,
        tolerance=tolerance,
        cutoff_m=cutoff_m,
    )


def _array(values: Any) -> Array:
    return np.asarray(torch.as_tensor(values).detach().cpu(), dtype=np.float64)


def _stacked(parts: Sequence[Array], width: int) -> Array:
    return np.concatenate([*parts, np.zeros((0, width))]).reshape(-1, width)


def _error_by_source(m: Match) -> Array:
    error = np.full((m.n_true, 4), np.nan)
    error[m.pairs[:, 1], :3], error[m.pairs[:, 1], 3] = m.error, m.distance_m
    return error


def _hits(m: Match, count: int, column: int) -> Array:
    """Of the estimates (column 0 of the pairs) or the true sources (1)."""
    hit = np.zeros(count, dtype=bool)
    hit[m.pairs[m.hit, column]] = True
    return hit
