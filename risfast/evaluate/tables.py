"""The groups of scenes of every benchmark with their figures, the tables of a suite, and the files that hold them."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np

from risfast.evaluate.calibration import calibration
from risfast.evaluate.collected import Collected, Key, Mismatched, Truth, bound_errors
from risfast.evaluate.figures import NOTHING, Interval, bootstrap, bootstrap_difference
from risfast.evaluate.matching import Array
from risfast.evaluate.metrics import Scores
from risfast.evaluate.scenarios import FROZEN_SCENES, MAP_SNR_DB, MAP_SOURCES, SceneSet
from risfast.io.durable import replace_file
from risfast.simulate.scenes import SystemConfig

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


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of the scenes or sources of a run."""

    benchmark: str  # B1 .. B9, ablation or robustness; ``headline`` for the groups that only the headline table needs
    # What the group is cut by: all, sources, snr_db, range_m, azimuth_deg, or a name of its own
    variable: str = "all"
    low: float = math.nan  # low <= variable < high; NaN where there is no interval
    high: float = math.nan  # low <= variable < high; NaN where there is no interval
    second: tuple[float, float] = (math.nan, math.nan)  # The same interval of the SNR in a map of two variables
    reference: str = REFERENCE  # The method that others are compared with


@dataclass(frozen=True, kw_only=True)
class Group(Cut):
    """Figures of one method over some scenes or sources."""

    scene_set: str
    label: str
    snapshots: int
    figures: dict[str, Interval]
    difference: dict[str, Interval]  # From the reference with the same knowledge on the same scenes, where there is one

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.label.partition("@")[0]

    @property
    def knowledge(self) -> str:
        """What it was told."""
        return self.label.partition("@")[2] or "blind"


PartOf = Callable[[Scores], Scores]
ScoresOf = Callable[[Key], Scores]
TableReport = Callable[[int, int], None]


def _cuts(edges: Edges) -> Iterator[tuple[Cut, PartOf]]:
    """Of the main set, blind."""

    def near(scores: Scores) -> Scores:
        return _some(LOUD_DB)(scores).in_range(0.0, math.nextafter(edges.near_m, math.inf))

    def counted(k: int, scores: Scores) -> Scores:
        return scores.of_scenes(scores.n_true == k)

    yield Cut(benchmark="B1"), _some()
    yield Cut(benchmark="headline", variable="snr_low", low=-math.inf, high=LOUD_DB), _some(high=LOUD_DB)
    yield Cut(benchmark="headline", variable="snr_high", low=10.0, high=math.inf), _some(10.0)
    yield Cut(benchmark="headline", variable="near", low=0.0, high=edges.near_m), near
    for k in MAP_SOURCES:
        yield Cut(benchmark="B3", variable="sources", low=float(k), high=k + 1.0), partial(counted, k)
    for low, high, end in _intervals(edges.snr_db):
        yield Cut(benchmark="B4", variable="snr_db", low=low, high=high), _some(low, end)
    for low, high, end in _intervals(edges.range_m):
        yield Cut(benchmark="B5", variable="range_m", low=low, high=high), methodcaller("in_range", low, end)
    for low, high, end in _intervals(edges.azimuth_deg):
        part = methodcaller("in_azimuth", math.radians(low), math.radians(end))
        yield Cut(benchmark="B6", variable="azimuth_deg", low=low, high=high), part


def _some(low: float = -math.inf, high: float = math.inf, scenes: float = math.inf) -> PartOf:
    """The first scenes, where their SNR is in an interval."""

    def part(scores: Scores) -> Scores:
        inside = (scores.snr_db >= low) & (scores.snr_db < high)
        return scores.of_scenes(inside & (np.arange(len(scores)) < scenes))

    return part


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
    report: TableReport | None = None,
) -> list[Group]:
    """Every group of every benchmark that the records allow."""
    jobs = list(_jobs(collected, sets, snapshots, edges or Edges()))
    groups = []
    for number, (key, cut, scores_of) in enumerate(jobs):
        reference = key._replace(label="@".join([cut.reference, *key.label.split("@")[1:]]))
        difference = {}
        if key.label != reference.label and reference in collected.scores:
            apart = bootstrap_difference(scores_of(key), scores_of(reference), resamples=resamples)
            difference = {name: apart[name] for name in KEPT}
        found = bootstrap(scores_of(key), resamples=resamples)
        kept = {name: found[name] for name in KEPT}
        own, label, length = key.scene_set, key.label, key.snapshots
        groups.append(
            Group(**vars(cut), scene_set=own, label=label, snapshots=length, figures=kept, difference=difference)
        )
        if report is not None:
            report(number + 1, len(jobs))
    return groups


def _jobs(
    collected: Collected, sets: Sequence[SceneSet], snapshots: Sequence[int], edges: Edges
) -> Iterator[tuple[Key, Cut, ScoresOf]]:
    """Every group of every run, and how the scores of a run are cut to it."""
    whole = collected.scores.__getitem__

    def cut_to(part: PartOf, key: Key) -> Scores:
        return part(whole(key))

    def nominal(scenes: int, key: Key) -> Scores:
        return _some(scenes=scenes)(whole(key._replace(scene_set="main")))

    def joined(cells: int, key: Key) -> Scores:
        return Scores.joined([whole(key._replace(cell=cell)) for cell in range(cells)])

    compared = False
    for scene_set in sets:
        for length in snapshots:
            for run in scene_set.runs:
                key = Key(scene_set.name, 0, length, run.label)
                if scene_set.name == "main":
                    for cut, part in _main_cuts(key, collected, edges):
                        yield key, cut, partial(cut_to, part)
                elif scene_set.name == "map":
                    for cell, (k, snr) in enumerate(itertools.product(MAP_SOURCES, MAP_SNR_DB)):
                        cut = Cut(benchmark="B9", variable="sources", low=float(k), high=k + 1.0, second=(snr, snr))
                        yield key._replace(cell=cell), cut, whole
                elif scene_set.name == "ablation":
                    yield key, Cut(benchmark="ablation", reference="localizer"), whole
                else:
                    yield key, Cut(benchmark="robustness"), partial(joined, len(scene_set.cells))
                    if not compared:  # the same scenes without a mismatch, once
                        cut = Cut(benchmark="robustness", variable="nominal")
                        yield key, cut, partial(nominal, scene_set.scenes)
        compared = compared or scene_set.name not in ("main", "map", "ablation")


def _main_cuts(key: Key, collected: Collected, edges: Edges) -> Iterator[tuple[Cut, PartOf]]:
    """All cuts of a blind run; of an oracle, and of the blind run on the scenes that oracles see, whole and by SNR."""
    method, _, knowledge = key.label.partition("@")
    blind = not knowledge and method != "true_capon"
    if blind:
        yield from _cuts(edges)
    seen = collected.scores.get(key._replace(label=f"{method}@count") if blind else key)
    if seen is None:
        return
    plain = blind or (knowledge == "count" and method != "ml_from_truth")
    yield Cut(benchmark="B2" if plain else "B7"), _some(scenes=len(seen))
    for low, high, end in _intervals(edges.snr_db):
        yield Cut(benchmark="B7", variable="snr_db", low=low, high=high), _some(low, end, len(seen))


Row = dict[str, Any]
Table = list[Row]

HEADLINE = {
    "f1": ("F1", "all", "f1"),
    "f1_low_snr": ("F1, SNR < 5 dB", "snr_low", "f1"),
    "f1_high_snr": ("F1, SNR ≥ 10 dB", "snr_high", "f1"),
    "ghosts": ("false alarms per scene", "all", "ghosts_per_scene"),
    "count": ("count right", "all", "count_accuracy"),
    "median": ("median xyz error of all pairs (m)", "all", "median_xyz_pairs_m"),
    "over_bound": ("rms error of hits over the bound (range bound < 0.3 of the tolerance)", "all", "error_over_bound"),
    "near_recall": ("recall, range ≤ {near:g} m and SNR ≥ 5 dB", "near", "recall"),
}
"""Title, group and figure of each row of the headline table; its last row is the time."""


def _told(label: str) -> Row:
    method, _, knowledge = label.partition("@")
    return {"method": method, "knowledge": knowledge or "blind"}


def _ends(name: str, value: Interval) -> Row:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def group_rows(groups: Sequence[Group]) -> Table:
    """One row for each group and figure."""
    return [
        {
            "benchmark": group.benchmark,
            "scenes": group.scene_set,
            "snapshots": group.snapshots,
            **_told(group.label),
            "variable": group.variable,
            "low": group.low,
            "high": group.high,
            "snr_db": group.second[0],
            "figure": name,
            **_ends("value", group.figures[name]),
            **_ends("minus_greedy_ml", group.difference.get(name, NOTHING)),
        }
        for group in groups
        for name in KEPT
    ]


def headline_rows(collected: Collected, groups: Sequence[Group]) -> Table:
    """The headline table: figures of every blind method, and what the bound would give on the same scenes."""
    rows: Table = []
    chosen = {(g.snapshots, g.label, g.variable): g for g in groups if (g.benchmark, g.variable) in _WHOLE}
    blind = list(dict.fromkeys((g.snapshots, g.label) for g in groups if g.benchmark == "B1"))

    def add(names: Row, value: Interval, bound: float = math.nan, apart: Interval = NOTHING) -> None:
        rows.append({**names, **_ends("value", value), "bound": bound, **_ends("minus_greedy_ml", apart)})

    for length in dict.fromkeys(length for length, _ in blind):
        median = float(np.median(bound_errors(collected.truth["main", 0, length])))
        labels = [label for own, label in blind if own == length]
        for name, (title, variable, figure) in HEADLINE.items():
            implied = chosen[length, labels[0], variable].figures["implied_recall"].value
            bound = {"f1": implied, "recall": implied, "median_xyz_pairs_m": median, "error_over_bound": 1.0}
            for label in labels:
                group = chosen[length, label, variable]
                shown = title.format(near=group.high)
                names = {"snapshots": length, "name": name, "title": shown, "method": label}
                apart = group.difference.get(figure, NOTHING)
                add(names, group.figures[figure], bound.get(figure, math.nan), apart)
        for label in labels:
            title = "time per scene, one thread (ms; median and quartiles of chunks)"
            names = {"snapshots": length, "name": "time", "title": title, "method": label}
            add(names, _quartiles(collected.timing[Key("main", 0, length, label)].total * 1e3))
    return rows


# Of all scenes of the main set; the oracles see the first of them only, and are groups of the same names besides.
_WHOLE = (("B1", "all"), ("headline", "snr_low"), ("headline", "snr_high"), ("headline", "near"))


def mismatch_rows(collected: Collected, sets: Sequence[SceneSet], snapshots: Sequence[int]) -> Table:
    """Bounds of every mismatched set: that of the nominal system, and the one that knows the mismatch."""
    mismatched = [s for s in sets if s.name not in ("main", "map", "ablation")]
    rows = []
    for length in snapshots if mismatched else ():
        nominal = collected.truth["main", 0, length].first(mismatched[0].scenes)
        rows.append(_bounds("main", "no mismatch", length, [nominal], []))
        for scene_set in mismatched:
            cells = [(scene_set.name, cell, length) for cell in range(len(scene_set.cells))]
            wrong = [collected.mismatched[cell] for cell in cells if cell in collected.mismatched]
            truth = [collected.truth[cell] for cell in cells]
            rows.append(_bounds(scene_set.name, scene_set.title, length, truth, wrong))
    return rows


def _bounds(name: str, title: str, length: int, truth: Sequence[Truth], wrong: Sequence[Mismatched]) -> Row:
    plain = Mismatched(*(np.concatenate([getattr(t, field) for t in truth]) for field in Mismatched._fields))
    other = Mismatched(*(np.concatenate([*(getattr(w, field) for w in wrong), np.zeros(0)]) for field in plain._fields))
    known = Mismatched(*(values[~np.isnan(other.implied)] for values in other))
    return {
        "scenes": name,
        "title": title,
        "snapshots": length,
        "sources": len(plain.implied),
        "implied_recall": _or_nan(np.mean, plain.implied),
        "median_bound_m": _or_nan(np.median, plain.position_m),
        "mismatched_sources": len(known.implied),
        "mismatched_recall": _or_nan(np.mean, known.implied),
        "median_mismatched_m": _or_nan(np.median, known.position_m),
    }


def _or_nan(of: Callable[[Array], Any], values: Array) -> float:
    return float(of(values)) if len(values) else math.nan


def timing_rows(collected: Collected) -> Table:
    """Milliseconds a scene of every run and stage, main set and ablation: median and quartiles over the chunks."""
    rows = []
    for key, timing in collected.timing.items():
        if key.scene_set not in ("main", "ablation"):
            continue
        for stage, seconds in {"total": timing.total, **timing.stages}.items():
            middle, low, high = _quartiles(seconds * 1e3)
            rows.append(
                {
                    "scene_set": key.scene_set,
                    "snapshots": key.snapshots,
                    **_told(key.label),
                    "stage": stage,
                    "ms_per_scene": middle,
                    "ms_low_quartile": low,
                    "ms_high_quartile": high,
                    "chunks": len(seconds),
                }
            )
    return rows


def calibration_rows(collected: Collected) -> Table:
    """How far confidences and probabilities of numbers of sources are from what they say, of the main set."""
    rows = []
    for key, scores in collected.scores.items():
        if key.scene_set != "main" or not key.label.startswith("localizer"):
            continue
        confidence = np.concatenate([rows[:, 4] for rows in collected.estimates[key]])
        known = ~np.isnan(confidence)  # Capon peaks have none
        of = {"confidence": calibration(confidence[known], scores.estimate_hit[known])} if known.any() else {}
        if (probability := collected.counts.get(key)) is not None:
            weighed = ~np.isnan(probability[:, 0])
            likeliest = probability[weighed].argmax(1)
            of["count"] = calibration(probability[weighed].max(1), likeliest == scores.n_true[weighed])
        for name, found in of.items():
            rows.append({"snapshots": key.snapshots, **_told(key.label), "probability": name, **found._asdict()})
    return rows


def _quartiles(values: Array) -> Interval:
    """Median and quartiles; NaN where there is nothing."""
    if not len(values):
        return NOTHING
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Interval(middle, low, high)


def scene_rows(collected: Collected) -> Table:
    """One row for each run and scene of the main set."""
    rows: Table = []
    for key, scores in collected.scores.items():
        if key.scene_set != "main":
            continue
        hits = np.bincount(scores.source_scene, weights=scores.source_hit, minlength=len(scores)).astype(int)
        rows += [
            {
                "snapshots": key.snapshots,
                **_told(key.label),
                "scene": scene,
                "snr_db": float(scores.snr_db[scene]),
                "sources": int(scores.n_true[scene]),
                "estimates": int(scores.n_estimated[scene]),
                "hits": int(hits[scene]),
                "gospa_m": float(math.sqrt(scores.gospa[scene].sum())),
            }
            for scene in range(len(scores))
        ]
    return rows


def frozen_rows(collected: Collected, methods: Sequence[str]) -> Table:
    """Every estimate of the first scenes of the main set, blind: what a rerun has to find again."""
    rows: Table = []
    for key, estimates in collected.estimates.items():
        if key.scene_set != "main" or key.label not in methods:
            continue
        rows += [
            {
                "snapshots": key.snapshots,
                "method": key.label,
                "scene": scene,
                "source": number,
                "azimuth_deg": round(math.degrees(row[0]), 6),
                "elevation_deg": round(math.degrees(row[1]), 6),
                "range_m": round(float(row[2]), 6),
            }
            for scene, found in enumerate(estimates[:FROZEN_SCENES])
            for number, row in enumerate(found)
        ]
    return rows


def _cell(value: Any) -> Any:
    """Six digits tell everything that an interval leaves; nothing where there is no number."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def write_csv(path: Path, rows: Table) -> None:
    """Write a table, whole or not at all; columns are those of its first row."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    replace_file(path, text.getvalue().encode())


def write_parquet(path: Path, rows: Table) -> bool:
    """Write a table as Parquet; False where pyarrow is not installed."""
    try:
        pyarrow = importlib.import_module("pyarrow")  # optional, and without types
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        return False
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    replace_file(path, buffer.getvalue())
    return True
