"""Figures of every benchmark with bootstrap intervals, and paired differences against greedy ML."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from risfast.evaluate.collected import Collected, Key
from risfast.evaluate.figures import Interval, bootstrap, bootstrap_difference
from risfast.evaluate.metrics import Scores
from risfast.evaluate.scenarios import MAP_SNR_DB, MAP_SOURCES, SceneSet
from risfast.simulate.scenes import SystemConfig

__all__ = ["KEPT", "REFERENCE", "Edges", "Group", "groups_of"]

REFERENCE = "greedy_ml"  # what every method is compared with
KEPT = (
    "scenes",
    "sources",
    "f1",
    "precision",
    "recall",
    "implied_recall",
    "recall_over_implied",
    "ghosts_per_scene",
    "count_accuracy",
    "gospa_m",
    "median_xyz_pairs_m",
    "rmse_xyz_pairs_m",
    "rmse_xyz_hits_m",
    "rmse_range_hits_m",
    "rmse_azimuth_hits_rad",
    "rmse_elevation_hits_rad",
    "error_over_bound",
)
"""Those of :data:`risfast.evaluate.figures.FIGURES` that the tables hold."""

LOUD_DB = 5.0


@dataclass(frozen=True)
class Edges:
    """Intervals that the main set is cut into, of SNR, range and azimuth; the defaults are of the reference system."""

    snr_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)  # Increasing; empty where the value is fixed
    range_m: tuple[float, ...] = (0.5, 1.5, 3.0, 5.0, 7.0, 8.5, 10.0)  # Increasing; empty where the value is fixed
    # Increasing; empty where the value is fixed
    azimuth_deg: tuple[float, ...] = (-60.0, -40.0, -20.0, 0.0, 20.0, 40.0, 60.0)
    near_m: float = 5.0  # Sources up to here are near

    @classmethod
    def of(cls, system: SystemConfig) -> Edges:
        """Those of the reference system where its intervals are the system's, else five or six equal ones."""
        usual = cls()
        azimuth = tuple(math.degrees(value) for value in system.azimuth_rad)
        near, far = system.range_m
        same = (near, far) == (usual.range_m[0], usual.range_m[-1])
        return cls(
            _equal(usual.snr_db, system.snr_db),
            _equal(usual.range_m, system.range_m),
            _equal(usual.azimuth_deg, azimuth),
            usual.near_m if same else (near + far) / 2,
        )


def _equal(usual: tuple[float, ...], interval: tuple[float, ...]) -> tuple[float, ...]:
    """The usual edges where these are their ends, else as many equal ones."""
    low, high = interval
    if math.isclose(low, usual[0], abs_tol=1e-9) and math.isclose(high, usual[-1], abs_tol=1e-9):
        return usual
    return tuple(np.linspace(low, high, len(usual)).tolist()) if high > low else ()


@dataclass(frozen=True)
class Group:
    """Figures of one method over some scenes or sources."""

    benchmark: str  # B1 .. B9, ablation or robustness; ``headline`` for the groups that only the headline table needs
    scene_set: str
    label: str
    snapshots: int
    variable: str  # What the group is cut by: all, sources, snr_db, range_m, azimuth_deg, or a name of its own
    low: float  # low <= variable < high; NaN where there is no interval
    high: float  # low <= variable < high; NaN where there is no interval
    figures: dict[str, Interval]
    # From greedy ML with the same knowledge on the same scenes; of an ablation, from the localizer
    difference: dict[str, Interval] | None
    second: tuple[float, float] = (math.nan, math.nan)  # The same interval of the SNR in a map of two variables

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.label.partition("@")[0]

    @property
    def knowledge(self) -> str:
        """What it was told."""
        return self.label.partition("@")[2] or "blind"


CutScores = Callable[[Key], Scores]


@dataclass(frozen=True)
class _Cut:
    """A part of a run: what it is called, and how scores are cut to it."""

    benchmark: str
    variable: str
    low: float
    high: float
    of: CutScores
    second: tuple[float, float] = (math.nan, math.nan)
    reference: str = REFERENCE


Report = Callable[[int, int], None]


def _cuts(collected: Collected, edges: Edges) -> Iterator[_Cut]:
    """Of the main set, blind."""
    scores = collected.scores

    def whole(key: Key) -> Scores:
        return scores[key]

    def snr(low: float, high: float) -> CutScores:
        return lambda key: scores[key].of_scenes((scores[key].snr_db >= low) & (scores[key].snr_db < high))

    def count(k: int) -> CutScores:
        return lambda key: scores[key].of_scenes(scores[key].n_true == k)

    def ranges(low: float, high: float) -> CutScores:
        return lambda key: scores[key].in_range(low, high)

    def azimuths(low: float, high: float) -> CutScores:
        return lambda key: collected.in_azimuth(key, math.radians(low), math.radians(high))

    def near(key: Key) -> Scores:
        return snr(LOUD_DB, math.inf)(key).in_range(0.0, math.nextafter(edges.near_m, math.inf))

    yield _Cut("B1", "all", math.nan, math.nan, whole)
    yield _Cut("headline", "snr_low", -math.inf, LOUD_DB, snr(-math.inf, LOUD_DB))
    yield _Cut("headline", "snr_high", 10.0, math.inf, snr(10.0, math.inf))
    yield _Cut("headline", "near", 0.0, edges.near_m, near)
    for k in MAP_SOURCES:
        yield _Cut("B3", "sources", float(k), k + 1.0, count(k))
    for low, high, end in _intervals(edges.snr_db):
        yield _Cut("B4", "snr_db", low, high, snr(low, end))
    for low, high, end in _intervals(edges.range_m):
        yield _Cut("B5", "range_m", low, high, ranges(low, end))
    for low, high, end in _intervals(edges.azimuth_deg):
        yield _Cut("B6", "azimuth_deg", low, high, azimuths(low, end))


def _intervals(edges: Sequence[float]) -> Iterator[tuple[float, float, float]]:
    """(low, high, end): the last interval ends behind its edge, where estimates pile up at the field of view's."""
    for low, high in itertools.pairwise(edges):
        yield low, high, high + (1e-9 * abs(high) if high == edges[-1] else 0.0)


def groups_of(
    collected: Collected,
    sets: Sequence[SceneSet],
    snapshots: Sequence[int],
    *,
    edges: Edges | None = None,
    resamples: int = 1000,
    report: Report | None = None,
) -> list[Group]:
    """Every group of every benchmark that the records allow."""
    jobs = list(_jobs(collected, sets, snapshots, edges or Edges()))
    groups = []
    for number, (key, cut) in enumerate(jobs):
        groups.append(_group(collected, key, cut, resamples))
        if report is not None:
            report(number + 1, len(jobs))
    return groups


def _jobs(
    collected: Collected, sets: Sequence[SceneSet], snapshots: Sequence[int], edges: Edges
) -> Iterator[tuple[Key, _Cut]]:
    cuts = list(_cuts(collected, edges))
    compared = False
    for scene_set in sets:
        for length in snapshots:
            for run in scene_set.runs:
                key = Key(scene_set.name, 0, length, run.label)
                if scene_set.name == "main":
                    for cut in _main_cuts(cuts, key, collected, edges):
                        yield key, cut
                elif scene_set.name == "map":
                    yield from _map_jobs(collected, key)
                elif scene_set.name == "ablation":
                    yield key, _Cut("ablation", "all", math.nan, math.nan, _whole(collected), reference="localizer")
                else:
                    whole = _joined(collected, len(scene_set.cells))
                    yield key, _Cut("robustness", "all", math.nan, math.nan, whole)
                    if not compared:  # the same scenes without a mismatch, once
                        nominal = _first_of_main(collected, scene_set.scenes)
                        yield key, _Cut("robustness", "nominal", math.nan, math.nan, nominal)
        compared = compared or scene_set.name not in ("main", "map", "ablation")


def _main_cuts(cuts: Sequence[_Cut], key: Key, collected: Collected, edges: Edges) -> Iterator[_Cut]:
    """All cuts of a blind run; of an oracle, and of the blind run on the scenes that oracles see, whole and by SNR."""
    method, _, knowledge = key.label.partition("@")
    blind = not knowledge and method != "true_capon"
    if blind:
        yield from cuts
    seen = collected.scores.get(key._replace(label=f"{method}@count") if blind else key)
    if seen is None:
        return
    plain = blind or (knowledge == "count" and method != "ml_from_truth")
    yield _Cut("B2" if plain else "B7", "all", math.nan, math.nan, _first(collected, len(seen)))
    for low, high, end in _intervals(edges.snr_db):
        yield _Cut("B7", "snr_db", low, high, _first(collected, len(seen), low, end))


def _first(collected: Collected, scenes: int, low: float = -math.inf, high: float = math.inf) -> CutScores:
    """The first scenes, where their SNR is in an interval."""

    def part(key: Key) -> Scores:
        scores = collected.scores[key]
        inside = (scores.snr_db >= low) & (scores.snr_db < high)
        return scores.of_scenes(inside & (np.arange(len(scores)) < scenes))

    return part


def _map_jobs(collected: Collected, key: Key) -> Iterator[tuple[Key, _Cut]]:
    cell = 0
    for k in MAP_SOURCES:
        for snr in MAP_SNR_DB:
            own = key._replace(cell=cell)
            yield own, _Cut("B9", "sources", float(k), k + 1.0, _whole(collected), (snr, snr))
            cell += 1


def _whole(collected: Collected) -> CutScores:
    return lambda key: collected.scores[key]


def _joined(collected: Collected, cells: int) -> Callable[[Key], Scores]:
    return lambda key: Scores.joined([collected.scores[key._replace(cell=cell)] for cell in range(cells)])


def _first_of_main(collected: Collected, scenes: int) -> Callable[[Key], Scores]:
    def nominal(key: Key) -> Scores:
        scores = collected.scores[key._replace(scene_set="main", cell=0)]
        return scores.of_scenes(np.arange(len(scores)) < scenes)

    return nominal


def _group(collected: Collected, key: Key, cut: _Cut, resamples: int) -> Group:
    scores = cut.of(key)
    found = bootstrap(scores, resamples=resamples)
    knowledge = key.label.partition("@")[2]
    reference = key._replace(label=f"{cut.reference}@{knowledge}" if knowledge else cut.reference)
    difference = None
    if key.label != reference.label and reference in collected.scores:
        apart = bootstrap_difference(scores, cut.of(reference), resamples=resamples)
        difference = {name: apart[name] for name in KEPT}
    return Group(
        cut.benchmark,
        key.scene_set,
        key.label,
        key.snapshots,
        cut.variable,
        cut.low,
        cut.high,
        {name: found[name] for name in KEPT},
        difference,
        cut.second,
    )
