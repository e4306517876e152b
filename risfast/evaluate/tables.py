"""The tables of a suite, and the files that hold them."""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from risfast.evaluate.collected import Collected, Key, Mismatched, Truth, bound_errors
from risfast.evaluate.figures import Interval
from risfast.evaluate.groups import KEPT, Group
from risfast.evaluate.matching import Array
from risfast.evaluate.scenarios import FROZEN_SCENES, SceneSet
from risfast.io.durable import replace_file

__all__ = [
    "HEADLINE",
    "Table",
    "frozen_rows",
    "group_rows",
    "headline_rows",
    "mismatch_rows",
    "scene_rows",
    "timing_rows",
    "write_csv",
    "write_parquet",
]

Row = dict[str, Any]
Table = list[Row]

HEADLINE = {
    "f1": ("F1", "all", "f1"),
    "f1_low_snr": ("F1, SNR < 5 dB", "snr_low", "f1"),
    "f1_high_snr": ("F1, SNR ≥ 10 dB", "snr_high", "f1"),
    "ghosts": ("ghosts per scene", "all", "ghosts_per_scene"),
    "count": ("count right", "all", "count_accuracy"),
    "median": ("median xyz error of all pairs (m)", "all", "median_xyz_pairs_m"),
    "over_bound": ("rms error of hits over the bound (range bound < 0.3 of the tolerance)", "all", "error_over_bound"),
    "near_recall": ("recall, range ≤ {near:g} m and SNR ≥ 5 dB", "near", "recall"),
}
"""Title, group and figure of each row of the headline table; its last row is the time."""


def group_rows(groups: Sequence[Group]) -> Table:
    """One row for each group and figure."""
    rows = []
    for group in groups:
        for name in KEPT:
            value = group.figures[name]
            apart = (group.difference or {}).get(name, Interval(math.nan, math.nan, math.nan))
            rows.append(
                {
                    "benchmark": group.benchmark,
                    "scenes": group.scene_set,
                    "snapshots": group.snapshots,
                    "method": group.method,
                    "knowledge": group.knowledge,
                    "variable": group.variable,
                    "low": group.low,
                    "high": group.high,
                    "snr_db": group.second[0],
                    "figure": name,
                    "value": value.value,
                    "value_low": value.low,
                    "value_high": value.high,
                    "minus_greedy_ml": apart.value,
                    "minus_greedy_ml_low": apart.low,
                    "minus_greedy_ml_high": apart.high,
                }
            )
    return rows


def headline_rows(collected: Collected, groups: Sequence[Group]) -> Table:
    """The headline table: figures of every blind method, and what the bound would give on the same scenes."""
    rows: Table = []
    chosen = {(g.snapshots, g.label, g.variable): g for g in groups if (g.benchmark, g.variable) in _WHOLE}
    blind = list(dict.fromkeys((g.snapshots, g.label) for g in groups if g.benchmark == "B1"))
    for length in dict.fromkeys(length for length, _ in blind):
        median = float(np.median(bound_errors(collected.truth["main", 0, length])))
        for name, (title, variable, figure) in HEADLINE.items():
            labels = [label for own, label in blind if own == length]
            implied = chosen[length, labels[0], variable].figures["implied_recall"].value
            bound = {"f1": implied, "recall": implied, "median_xyz_pairs_m": median, "error_over_bound": 1.0}
            for label in labels:
                group = chosen[length, label, variable]
                apart = (group.difference or {}).get(figure, Interval(math.nan, math.nan, math.nan))
                rows.append(
                    _headline(
                        length,
                        name,
                        title.format(near=group.high),
                        label,
                        group.figures[figure],
                        bound.get(figure, math.nan),
                        apart,
                    )
                )
        for label in [label for own, label in blind if own == length]:
            seconds = collected.timing[Key("main", 0, length, label)].total * 1e3
            value = _quartiles(seconds)
            nothing = Interval(math.nan, math.nan, math.nan)
            title = "time per scene, one thread (ms; median and quartiles of chunks)"
            rows.append(_headline(length, "time", title, label, value, math.nan, nothing))
    return rows


# Of all scenes of the main set; the oracles see the first of them only, and are groups of the same names besides.
_WHOLE = (("B1", "all"), ("headline", "snr_low"), ("headline", "snr_high"), ("headline", "near"))


def _headline(length: int, name: str, title: str, label: str, value: Interval, bound: float, apart: Interval) -> Row:
    return {
        "snapshots": length,
        "name": name,
        "title": title,
        "method": label,
        "value": value.value,
        "value_low": value.low,
        "value_high": value.high,
        "bound": bound,
        "minus_greedy_ml": apart.value,
        "minus_greedy_ml_low": apart.low,
        "minus_greedy_ml_high": apart.high,
    }


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
                    "method": key.label.partition("@")[0],
                    "knowledge": key.label.partition("@")[2] or "blind",
                    "stage": stage,
                    "ms_per_scene": middle,
                    "ms_low_quartile": low,
                    "ms_high_quartile": high,
                    "chunks": len(seconds),
                }
            )
    return rows


def _quartiles(values: Array) -> Interval:
    """Median and quartiles; NaN where there is nothing."""
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
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
                "method": key.label.partition("@")[0],
                "knowledge": key.label.partition("@")[2] or "blind",
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
    rows = []
    for key, estimates in collected.estimates.items():
        if key.scene_set != "main" or key.label not in methods:
            continue
        for scene, found in enumerate(estimates[:FROZEN_SCENES]):
            for number, row in enumerate(found):
                rows.append(
                    {
                        "snapshots": key.snapshots,
                        "method": key.label,
                        "scene": scene,
                        "source": number,
                        "azimuth_deg": round(math.degrees(row[0]), 6),
                        "elevation_deg": round(math.degrees(row[1]), 6),
                        "range_m": round(float(row[2]), 6),
                    }
                )
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
