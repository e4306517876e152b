"""The records of a suite put together: scores of every run, its errors, its times, and what the bound would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from risfast.evaluate.matching import Array
from risfast.evaluate.metrics import Scores, score
from risfast.evaluate.records import ResultsFolder
from risfast.evaluate.scenarios import SceneSet
from risfast.evaluate.suite import TRUTH, tasks_of
from risfast.setup import Tolerance

_DRAWS = 50  # Gaussian errors for each source


class Key(NamedTuple):
    """Names one run."""

    scene_set: str  # Name of the set of scenes
    cell: int  # Of the set, from 0
    snapshots: int  # L
    label: str  # Of the run, as :class:`risfast.evaluate.scenarios.Run` spells it, or ``truth``


class Timing(NamedTuple):
    """Seconds a scene, one number for each chunk."""

    total: Array  # (C,)
    stages: dict[str, Array]  # (C,)


@dataclass(frozen=True, eq=False)
class Truth:
    """The answer and the bound of S scenes of one cell."""

    snr_db: Array  # (S,)
    count: Array  # (S,)
    position: Array  # (T, 3) Sources of all scenes, one after the other
    covariance: Array  # (T, 3, 3)
    position_m: Array  # (T,) Position bound in metres, and implied recall
    implied: Array  # (T,) Position bound in metres, and implied recall

    def first(self, scenes: int) -> Truth:
        """The first so many scenes."""
        sources = int(self.count[:scenes].sum())
        values = {f.name: getattr(self, f.name)[:sources] for f in fields(self)}
        return Truth(**{**values, "snr_db": self.snr_db[:scenes], "count": self.count[:scenes]})


class Mismatched(NamedTuple):
    """The misspecified bound of the sources of one cell, one after the other; NaN where it is not known."""

    position_m: Array  # (T,) Position bound in metres, bias included, and implied recall
    implied: Array  # (T,) Position bound in metres, bias included, and implied recall


@dataclass(frozen=True, eq=False)
class Collected:
    """All runs of a suite."""

    truth: dict[tuple[str, int, int], Truth]  # By (set, cell, L)
    scores: dict[Key, Scores]
    estimates: dict[Key, list[Array]]  # (K, 5) Azimuth, elevation, range, power, confidence of each scene's sources
    timing: dict[Key, Timing]
    failures: dict[Key, int]  # Scenes that a method gave up with an error; they count as scenes without estimates
    # By (set, cell, L), of the cells whose true system is not the nominal one
    mismatched: dict[tuple[str, int, int], Mismatched] = field(default_factory=dict)
    # (S, K_max + 1) Of runs that tell how probable each number of sources is
    counts: dict[Key, Array] = field(default_factory=dict)


def collect(
    results: ResultsFolder, sets: Sequence[SceneSet], snapshots: Sequence[int], tolerance: Tolerance
) -> Collected:
    """Read every record and score it."""
    chunks: dict[Key, list[dict[str, Array]]] = {}
    for task in tasks_of(sets, snapshots):
        for label in task.labels:
            key = Key(task.scene_set, task.cell, task.snapshots, label)
            chunks.setdefault(key, []).append(results.read(task.place(label)))
    truth = {key[:3]: truth_of(parts) for key, parts in chunks.items() if key.label == TRUTH}
    collected = Collected(truth, {}, {}, {}, {})
    for key, parts in chunks.items():
        if key.label == TRUTH:
            if any("mismatched_implied" in part for part in parts):  # older records have none
                none = [np.full(len(part["implied"]), np.nan) for part in parts]
                columns = (
                    [part.get(f"mismatched_{name}", nan) for part, nan in zip(parts, none, strict=True)]
                    for name in Mismatched._fields
                )
                collected.mismatched[key[:3]] = Mismatched(*map(np.concatenate, columns))
            continue
        estimates = [rows for part in parts for rows in np.split(part["sources"], np.cumsum(part["count"])[:-1])]
        collected.estimates[key] = estimates
        collected.scores[key] = score_against(estimates, truth[key[:3]].first(len(estimates)), tolerance)
        collected.timing[key] = _timing(parts)
        if all("count_probability" in part for part in parts):
            collected.counts[key] = np.concatenate([part["count_probability"] for part in parts])
        collected.failures[key] = sum(int(part["failed"].sum()) for part in parts)
    return collected


def truth_of(parts: Sequence[dict[str, Array]]) -> Truth:
    """The records of the truth of all chunks together."""
    return Truth(**{f.name: np.concatenate([part[f.name] for part in parts]) for f in fields(Truth)})


def score_against(estimates: Sequence[Any], truth: Truth, tolerance: Tolerance) -> Scores:
    """Match and score what was found in every scene (K, 3 or more)."""
    cuts = np.cumsum(truth.count)[:-1]
    limits = np.stack([np.sqrt(truth.covariance[:, 2, 2]), truth.position_m, truth.implied], -1)
    return score(
        [rows[:, :3] for rows in estimates],
        np.split(truth.position, cuts),
        snr_db=truth.snr_db,
        bound=np.split(limits, cuts),
        tolerance=tolerance,
    )


def _timing(parts: Sequence[dict[str, Array]]) -> Timing:
    parts = [part for part in parts if np.isfinite(part["seconds"])]  # a chunk with a failure tells no time
    names = [name for name in parts[0] if name.startswith("stage_")] if parts else []
    return Timing(
        np.array([float(part["seconds"] / len(part["count"])) for part in parts]),
        {n.removeprefix("stage_"): np.array([float(part[n] / len(part["count"])) for part in parts]) for n in names},
    )


def bound_errors(truth: Truth, seed: int = 0) -> Array:
    """Distances that Gaussian errors as large as the bound would have.

    -> (T, D)
    """
    count = len(truth.position)
    known = np.isfinite(truth.covariance.sum((1, 2)))  # infinite variances stand alone, so no sum hides them
    value, vector = np.linalg.eigh(np.where(known[:, None, None], truth.covariance, 0.0))
    root = vector * np.sqrt(np.maximum(value, 0.0))[:, None]
    normal = np.random.default_rng(seed).standard_normal((count, _DRAWS, 3))
    error = normal @ root.transpose(0, 2, 1)
    elevation, r = truth.position[:, 1], truth.position[:, 2]
    # The coordinates move a point in orthogonal directions.
    metres = np.stack([r * np.cos(elevation), r, np.ones_like(r)], -1)
    distance = np.sqrt(np.square(error * metres[:, None]).sum(-1))
    return np.where(known[:, None], distance, np.inf)
