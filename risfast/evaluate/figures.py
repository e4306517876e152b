"""Figures over a set of scenes, with bootstrap intervals.

A record always holds precision and recall beside the errors: errors of what was found mean nothing without how much
was found. Intervals resample whole scenes, for the sources of a scene share its noise and its channel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from risfast.evaluate.matching import Array
from risfast.evaluate.metrics import Scores

FIGURES: dict[str, str] = {
    "scenes": "scenes",
    "sources": "true sources",
    "estimates": "estimates",
    "precision": "hits / estimates",
    "recall": "hits / true sources",
    "f1": "harmonic mean of precision and recall",
    "implied_recall": "mean over the sources of the chance that an error as large as the bound is a hit",
    "recall_over_implied": "recall / implied_recall",
    "ghosts_per_scene": "estimates without a hit, a scene",
    "count_accuracy": "share of scenes with as many estimates as sources",
    "gospa_m": "root mean square of GOSPA, metres",
    "gospa_localisation_m2": "mean of its part from errors of pairs, square metres",
    "gospa_missed_m2": "mean of its part from missed sources, square metres",
    "gospa_false_m2": "mean of its part from false estimates, square metres",
    "rmse_azimuth_pairs_rad": "of all pairs, hits or not",
    "rmse_elevation_pairs_rad": "of all pairs, hits or not",
    "rmse_range_pairs_m": "of all pairs, hits or not",
    "rmse_xyz_pairs_m": "of all pairs, hits or not",
    "median_xyz_pairs_m": "of all pairs, hits or not",
    "rmse_azimuth_hits_rad": "of the hits",
    "rmse_elevation_hits_rad": "of the hits",
    "rmse_range_hits_m": "of the hits",
    "rmse_xyz_hits_m": "of the hits",
    "median_xyz_hits_m": "of the hits",
    "sharp_hits": "hits among the sources with a range bound below three tenths of the tolerance",
    "error_over_bound": "of these, rms distance over rms position bound",
    "normalised_error": "of these, rms of the distance over the position bound of each",
}
"""Name and meaning of every figure; NaN where a figure does not exist (errors without pairs, figures of whole scenes
of a range interval, figures of the bound without one). Errors of range and of position are those of the pairs whose two
ranges are finite: an estimate without a range (NaN) has none, and counts in precision, recall and GOSPA alone."""

_WHOLE_SCENES = ("ghosts_per_scene", "count_accuracy", "gospa")
_PARTS = ("azimuth", "elevation", "range", "xyz")


class Interval(NamedTuple):
    """A figure and its bootstrap interval; NaN where it does not exist."""

    value: float  # The figure of all scenes
    low: float  # Ends of the interval
    high: float  # Ends of the interval


NOTHING = Interval(math.nan, math.nan, math.nan)


def figures(scores: Scores) -> dict[str, float]:
    """All figures of a set of scenes."""
    once = _resampled(scores, np.ones((1, len(scores))))
    return {name: float(values[0]) for name, values in once.items()}


def bootstrap(scores: Scores, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """All figures with percentile intervals over resampled scenes."""
    # B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7, 1979. Resamples in which a figure
    # does not exist are left out of its interval.
    weights = _weights(len(scores), resamples, level, seed)
    value, spread = figures(scores), _resampled(scores, weights)
    return {name: _interval(value[name], spread[name], level) for name in FIGURES}


def bootstrap_difference(
    one: Scores, other: Scores, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Figures of ``one`` less those of ``other`` on the same scenes, resampled together."""
    if len(one) != len(other) or not np.array_equal(one.n_true, other.n_true):
        raise ValueError("one and other must be of the same scenes: their counts of true sources differ")
    if not (one.partial or other.partial or np.array_equal(one.source_position, other.source_position)):
        raise ValueError("one and other must be of the same scenes: their true sources differ")
    weights = _weights(len(one), resamples, level, seed)
    values, spreads = [figures(s) for s in (one, other)], [_resampled(s, weights) for s in (one, other)]
    return {
        name: _interval(values[0][name] - values[1][name], spreads[0][name] - spreads[1][name], level)
        for name in FIGURES
    }


def _weights(scenes: int, resamples: int, level: float, seed: int) -> Array:
    """How often each scene is drawn [R, S]."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}")
    if scenes == 0:
        return np.zeros((resamples, 0))
    chance = np.full(scenes, 1 / scenes)
    return np.random.default_rng(seed).multinomial(scenes, chance, size=resamples).astype(float)


def _interval(value: float, spread: Array, level: float) -> Interval:
    spread = spread[np.isfinite(spread)]
    if not spread.size or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resampled(scores: Scores, weights: Array) -> dict[str, Array]:
    """Every figure [R] with the scenes weighted [R, S]."""
    total = {name: weights @ values for name, values in _sums(scores).items()}
    scenes = weights.sum(1)
    flawless = (total["hits"] == total["sources"]) & (total["estimate_hits"] == total["estimates"])
    precision = _share(total["estimate_hits"], total["estimates"], flawless)
    recall = _share(total["hits"], total["sources"], flawless)
    result = {
        "scenes": scenes,
        "sources": total["sources"],
        "estimates": total["estimates"],
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall, np.zeros_like(flawless)),
        "implied_recall": _ratio(total["implied"], total["bounded"]),
        "recall_over_implied": _ratio(total["bounded_hits"], total["implied"]),
        "ghosts_per_scene": _ratio(total["estimates"] - total["estimate_hits"], scenes),
        "count_accuracy": _ratio(total["counted"], scenes),
        "gospa_m": np.sqrt(_ratio(total["localisation"] + total["missed"] + total["false"], scenes)),
        "sharp_hits": total["sharp_hits"],
        "error_over_bound": np.sqrt(_ratio(total["sharp_error"], total["sharp_bound"])),
        "normalised_error": np.sqrt(_ratio(total["sharp_normalised"], total["sharp_hits"])),
    }
    for part in ("localisation", "missed", "false"):
        result[f"gospa_{part}_m2"] = _ratio(total[part], scenes)
    if scores.partial:
        result |= {name: np.full(len(weights), np.nan) for name in FIGURES if name.startswith(_WHOLE_SCENES)}
    paired = ~np.isnan(scores.source_error[:, 0])
    for kind, chosen in (("pairs", paired), ("hits", scores.source_hit)):
        for part in _PARTS:
            unit = "rad" if part in ("azimuth", "elevation") else "m"
            result[f"rmse_{part}_{kind}_{unit}"] = np.sqrt(_ratio(total[f"{part}_{kind}"], total[f"{part}_{kind}_n"]))
        finite = chosen & np.isfinite(scores.source_error[:, 3])
        distance = scores.source_error[finite, 3]
        result[f"median_xyz_{kind}_m"] = _median(distance, weights[:, scores.source_scene[finite]])
    return {name: result[name] for name in FIGURES}


def _sums(scores: Scores) -> dict[str, Array]:
    """Sums over the sources and the estimates of each scene, each [S]."""
    count = len(scores)

    def by_source(values: Array) -> Array:
        return np.bincount(scores.source_scene, weights=values, minlength=count)

    error, hit = scores.source_error, scores.source_hit
    range_bound, position_bound, implied = scores.source_bound.T
    paired, known = ~np.isnan(error[:, 0]), ~np.isnan(implied)
    sharp = hit & (range_bound < scores.sharp_m) & np.isfinite(error[:, 3])
    squared = np.square(np.where(sharp, error[:, 3], 0.0))
    bound = np.square(np.where(sharp, position_bound, 1.0))
    sums = {
        "sources": by_source(np.ones(len(hit))),
        "hits": by_source(hit),
        "bounded": by_source(known),
        "bounded_hits": by_source(known & hit),
        "implied": by_source(np.where(known, implied, 0.0)),
        "sharp_hits": by_source(sharp),
        "sharp_error": by_source(squared),
        "sharp_bound": by_source(bound * sharp),
        "sharp_normalised": by_source(squared / bound),
        "estimates": np.bincount(scores.estimate_scene, minlength=count).astype(float),
        "estimate_hits": np.bincount(scores.estimate_scene, weights=scores.estimate_hit, minlength=count),
        "counted": (scores.n_true == scores.n_estimated).astype(float),
        "localisation": scores.gospa[:, 0],
        "missed": scores.gospa[:, 1],
        "false": scores.gospa[:, 2],
    }
    for kind, chosen in (("pairs", paired), ("hits", hit)):
        for i, part in enumerate(_PARTS):
            finite = chosen & np.isfinite(error[:, i])
            sums[f"{part}_{kind}"] = by_source(np.square(np.where(finite, error[:, i], 0.0)))
            sums[f"{part}_{kind}_n"] = by_source(finite)
    return sums


def _ratio(part: Array, whole: Array) -> Array:
    """Part / whole; NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _share(part: Array, whole: Array, otherwise: Array) -> Array:
    """Part / whole; ``otherwise`` where there is nothing."""
    return np.divide(part, whole, out=otherwise.astype(float), where=whole > 0)


def _median(values: Array, weights: Array) -> Array:
    """Medians [R] of values [T] that count ``weights`` [R, T] times, whole numbers; NaN where none counts."""
    order = np.argsort(values)
    values, cumulated = values[order], np.cumsum(weights[:, order], axis=1)
    result = np.full(len(weights), np.nan)
    for i, row in enumerate(cumulated):
        count = int(row[-1]) if row.size else 0
        if count:
            middle = np.searchsorted(row, [(count - 1) // 2, count // 2], side="right")
            result[i] = values[middle].mean()
    return result
