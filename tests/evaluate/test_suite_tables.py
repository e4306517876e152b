"""The tables of a finished suite against counts made here from its records, and the files that hold them."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_suite import SETUP, Finished, finished

from risfast.evaluate.collected import Collected, Key, Mismatched, Truth, bound_errors, collect
from risfast.evaluate.figures import Interval
from risfast.evaluate.methods import Methods
from risfast.evaluate.mismatched import mismatched_bound
from risfast.evaluate.records import ResultsFolder
from risfast.evaluate.scenarios import Run, SceneSet, scene_sets
from risfast.evaluate.tables import (
    HEADLINE,
    KEPT,
    Edges,
    groups_of,
    headline_rows,
    mismatch_rows,
    write_csv,
    write_parquet,
)
from risfast.report.outcome import finish
from risfast.report.tables import Number, Sheet
from risfast.simulate.scenes import SystemConfig, generate_scenes

MAIN = ("main", 0)
TOLERANCE = np.array([math.radians(5), math.radians(5), 1.0])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory)


def test_the_whole_suite_reaches_every_set(done: Finished) -> None:
    assert {key.scene_set for key in done.collected.scores} == {
        s.name for s in scene_sets("all", 6, done.config.methods)
    }
    for key, scores in done.collected.scores.items():
        assert np.isfinite(scores.gospa).all(), key


def rows_of(done: Finished, name: str) -> list[dict[str, str]]:
    with (done.outcome.tables / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scenes_of(done: Finished, length: int, label: str) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """True positions, estimates and SNR of each scene."""
    truth = done.collected.truth[(*MAIN, length)]
    ends = np.cumsum(truth.count)
    found = done.collected.estimates[Key(*MAIN, length, label)]
    return [
        (truth.position[end - k : end], rows[:, :3], snr)
        for end, k, rows, snr in zip(ends, truth.count, found, truth.snr_db, strict=False)
    ]


def xyz(p: np.ndarray) -> np.ndarray:
    az, el, r = p.T
    return np.stack([r * np.sin(az) * np.cos(el), r * np.sin(el), r * np.cos(az) * np.cos(el)], -1)


def pairs_of(true: np.ndarray, found: np.ndarray) -> list[tuple[int, int]]:
    """The assignment with the least total distance, by trying all."""
    few, many = sorted([len(true), len(found)])
    distance = np.linalg.norm(xyz(true)[:, None] - xyz(found)[None], axis=-1)
    if len(found) < len(true):
        distance = distance.T
    best = min(itertools.permutations(range(many), few), key=lambda p: sum(distance[i, j] for i, j in enumerate(p)))
    return [(i, j) if len(true) <= len(found) else (j, i) for i, j in enumerate(best)]


def hits_of(true: np.ndarray, found: np.ndarray) -> list[tuple[int, int]]:
    return [(i, j) for i, j in pairs_of(true, found) if (np.abs(true[i] - found[j]) <= TOLERANCE).all()]


def figure(rows: list[dict[str, str]], column: str = "value", **wanted: Any) -> float:
    (row,) = [r for r in rows if all(r[name] == str(value) for name, value in wanted.items())]
    return float(row[column]) if row[column] else math.nan


@pytest.mark.parametrize("length", [8, 5])
@pytest.mark.parametrize("method", ["localizer", "localizer_raw", "greedy_ml", "ls_capon"])
def test_figures_of_all_scenes_are_those_of_a_brute_force_count(done: Finished, length: int, method: str) -> None:
    scenes = scenes_of(done, length, method)
    hits = sum(len(hits_of(true, found)) for true, found, _ in scenes)
    n_true, n_found = sum(len(t) for t, _, _ in scenes), sum(len(f) for _, f, _ in scenes)
    distance = [np.linalg.norm(xyz(t)[i] - xyz(f)[j]) for t, f, _ in scenes for i, j in pairs_of(t, f)]
    where = {"benchmark": "B1", "snapshots": length, "method": method, "knowledge": "blind"}
    rows = rows_of(done, "figures")
    expected = {
        "f1": 2 * hits / (n_true + n_found),
        "recall": hits / n_true,
        "ghosts_per_scene": (n_found - hits) / len(scenes),
        "count_accuracy": np.mean([len(t) == len(f) for t, f, _ in scenes]),
        "median_xyz_pairs_m": np.median(distance) if distance else math.nan,  # without a pair there is none
        "implied_recall": done.collected.truth[(*MAIN, length)].implied.mean(),
    }
    for name, value in expected.items():
        assert figure(rows, figure=name, **where) == pytest.approx(value, rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize("length", [8, 5])
def test_parts_by_azimuth_range_and_snr_count_every_source_once(done: Finished, length: int) -> None:
    rows = rows_of(done, "figures")
    scenes = scenes_of(done, length, "greedy_ml")
    cuts = {
        "B6": [
            lambda t, i, s, e=e: e[0] <= math.degrees(t[i, 0]) < e[1] for e in itertools.pairwise(Edges().azimuth_deg)
        ],
        "B5": [lambda t, i, s, e=e: e[0] <= t[i, 2] < e[1] for e in itertools.pairwise(Edges().range_m)],
        "B4": [lambda t, i, s, e=e: e <= s < e + 5 for e in (-5, 0, 5, 10, 15)],
        "B3": [lambda t, i, s, k=k: len(t) == k for k in (1, 2, 3, 4, 5)],
    }
    for benchmark, conditions in cuts.items():
        own = [r for r in rows if r["benchmark"] == benchmark and r["snapshots"] == str(length)]
        own = [r for r in own if r["method"] == "greedy_ml"]
        sources = [float(r["value"]) for r in own if r["figure"] == "sources"]
        recall = [r["value"] for r in own if r["figure"] == "recall"]
        assert len(sources) == len(conditions)
        for condition, count, share in zip(conditions, sources, recall, strict=True):
            mine = [(t, f, i) for t, f, s in scenes for i in range(len(t)) if condition(t, i, s)]
            hits = sum(i in [a for a, _ in hits_of(t, f)] for t, f, i in mine)
            assert count == len(mine)
            if mine:
                assert float(share) == pytest.approx(hits / len(mine), rel=1e-5), benchmark


def test_headline_rows_are_cut_as_their_titles_say(done: Finished) -> None:
    rows = rows_of(done, "headline")
    for length in (8, 5):
        scenes = scenes_of(done, length, "localizer")
        truth = done.collected.truth[(*MAIN, length)]
        low = [(t, f) for t, f, snr in scenes if snr < 5]
        hits = sum(len(hits_of(t, f)) for t, f in low)
        expected = 2 * hits / sum(len(t) + len(f) for t, f in low)
        mine = [r for r in rows if r["snapshots"] == str(length)]
        assert figure(mine, name="f1_low_snr", method="localizer") == pytest.approx(expected, rel=1e-5)
        near = [(t, f, i) for t, f, snr in scenes if snr >= 5 for i in range(len(t)) if t[i, 2] <= 5]
        found = np.mean([i in [a for a, _ in hits_of(t, f)] for t, f, i in near])
        assert figure(mine, name="near_recall", method="localizer") == pytest.approx(found, rel=1e-5)
        implied = truth.implied[(truth.position[:, 2] <= 5) & (np.repeat(truth.snr_db, truth.count) >= 5)].mean()
        assert figure(mine, "bound", name="near_recall", method="localizer") == pytest.approx(implied, rel=1e-5)
        assert {r["name"] for r in mine} == {*HEADLINE, "time"}
        seconds = done.collected.timing[Key(*MAIN, length, "localizer")].total
        assert figure(mine, name="time", method="localizer") == pytest.approx(1e3 * np.median(seconds), rel=1e-5)


def test_the_headline_is_of_all_scenes_though_oracles_see_some(done: Finished) -> None:
    """Groups of oracles cover the first half of the main set, under the same names."""
    sets = done.config.sets(done.config.build_methods())
    groups = groups_of(done.collected, sets, done.config.snapshots, resamples=5)
    nowhere = {name: Interval(math.inf, math.inf, math.inf) for name in groups[0].figures}
    changed = [dataclasses.replace(g, figures=nowhere) if g.benchmark in ("B2", "B7") else g for g in groups]
    assert changed != groups
    assert repr(headline_rows(done.collected, changed)) == repr(headline_rows(done.collected, groups))


def test_differences_from_greedy_ml_are_differences_and_greedy_ml_has_none(done: Finished) -> None:
    rows = [r for r in rows_of(done, "figures") if r["benchmark"] in ("B1", "B4", "B5", "B9")]
    values = {tuple(r[n] for n in KEY): r["value"] for r in rows}
    compared = 0
    for row in rows:
        if row["method"] == "greedy_ml":
            assert row["minus_greedy_ml"] == ""
        elif row["minus_greedy_ml"]:
            other = values[tuple("greedy_ml" if n == "method" else row[n] for n in KEY)]
            assert float(row["minus_greedy_ml"]) == pytest.approx(float(row["value"]) - float(other), abs=1e-4)
            compared += 1
    assert compared > 100


KEY = ("benchmark", "scenes", "snapshots", "method", "knowledge", "variable", "low", "snr_db", "figure")


def test_every_benchmark_has_its_rows_with_the_bound_beside_them(done: Finished) -> None:
    rows = rows_of(done, "figures")
    assert {r["benchmark"] for r in rows} == {
        *(f"B{i}" for i in (1, 2, 3, 4, 5, 6, 7, 9)),
        "headline",
        "ablation",
        "robustness",
    }
    groups = {tuple(r[n] for n in KEY[:-1]) for r in rows}
    for group in groups:
        own = [r for r in rows if tuple(r[n] for n in KEY[:-1]) == group]
        assert [r["figure"] for r in own] == list(KEPT)
    told = [r for r in rows if r["benchmark"] == "B2" and r["figure"] == "recall"]
    assert {r["knowledge"] for r in told} == {"blind", "count"}
    assert {r["knowledge"] for r in rows if r["benchmark"] == "B7"} == {"blind", "noise", "count", "count_noise"}
    cells = {(r["low"], r["snr_db"]) for r in rows if r["benchmark"] == "B9"}
    assert len(cells) == 30  # B8, errors at one SNR, reads its row


def test_told_the_count_greedy_ml_is_right_about_it(done: Finished) -> None:
    rows = [r for r in rows_of(done, "figures") if r["benchmark"] == "B2" and r["knowledge"] == "count"]
    assert {r["value"] for r in rows if r["figure"] == "count_accuracy" and r["method"] == "greedy_ml"} == {"1"}


def test_rows_without_mismatch_are_those_of_the_main_set(done: Finished) -> None:
    rows = rows_of(done, "figures")
    nominal = [r for r in rows if r["variable"] == "nominal" and r["figure"] == "f1"]
    assert len(nominal) == 2 * 3
    for row in nominal:
        where = {"benchmark": "B1", "snapshots": row["snapshots"], "method": row["method"], "figure": "f1"}
        assert float(row["value"]) == figure(rows, **where)  # six scenes here: a quarter is rounded up to the chunk


def test_each_scene_has_its_row(done: Finished) -> None:
    rows = [r for r in rows_of(done, "scenes") if (r["method"], r["knowledge"]) == ("localizer", "blind")]
    for length in (8, 5):
        own = [r for r in rows if r["snapshots"] == str(length)]
        for row, (true, found, snr) in zip(own, scenes_of(done, length, "localizer"), strict=True):
            assert (int(row["sources"]), int(row["estimates"])) == (len(true), len(found))
            assert int(row["hits"]) == len(hits_of(true, found))
            assert float(row["snr_db"]) == pytest.approx(snr, rel=1e-5)


def test_times_of_stages_add_up_to_no_more_than_the_total(done: Finished) -> None:
    for key, timing in done.collected.timing.items():
        assert (timing.total > 0).all()
        if key.label == "localizer":
            assert set(timing.stages) >= {"backbone", "polish"}
        assert (sum(timing.stages.values(), np.zeros(len(timing.total))) <= timing.total + 1e-9).all()


def test_failures_are_counted_and_told(done: Finished, tmp_path: Path) -> None:
    from risfast.report.outcome import failure_notes

    assert failure_notes(done.collected) == []
    sets = done.config.sets(Methods(done.config.model))
    collected = collect(done.results, sets, done.config.snapshots, SETUP.tolerance)
    collected.failures[Key(*MAIN, 8, "localizer")] = 2
    (note,) = failure_notes(collected)
    assert note.startswith("localizer failed with an error on 2 of ")


# ---- errors as large as the bound


def test_errors_drawn_from_the_bound_have_its_size() -> None:
    rng = np.random.default_rng(0)
    n = 400
    half = rng.normal(size=(n, 3, 3)) * np.array([0.02, 0.03, 0.4])[:, None]
    covariance = half @ half.transpose(0, 2, 1)
    position = np.stack([rng.uniform(-1, 1, n), rng.uniform(-0.5, 0.5, n), rng.uniform(1, 9, n)], -1)
    metres = np.stack([position[:, 2] * np.cos(position[:, 1]), position[:, 2], np.ones(n)], -1)
    rms = np.sqrt((covariance.diagonal(axis1=1, axis2=2) * metres**2).sum(1))
    truth = Truth(np.zeros(1), np.array([n]), position, covariance, rms, np.ones(n))
    squared = (bound_errors(truth) / rms[:, None]) ** 2
    # Of one draw the variance is at most 2 (one dominant direction): four standard deviations of the mean.
    assert abs(squared.mean() - 1) < 4 * math.sqrt(2 / squared.size)
    np.testing.assert_array_equal(bound_errors(truth), bound_errors(truth))


def test_a_source_without_a_bound_is_infinitely_far() -> None:
    covariance = np.stack([np.eye(3), np.diag([1e-4, 1e-4, np.inf])])
    truth = Truth(np.zeros(1), np.array([2]), np.array([[0.0, 0.0, 2.0]] * 2), covariance, np.ones(2), np.ones(2))
    distance = bound_errors(truth)
    assert np.isfinite(distance[0]).all()
    assert np.isinf(distance[1]).all()


# ---- bounds that know the mismatch

IMPAIRED = {
    *(f"code_phase_{degrees}_deg" for degrees in (6, 17)),
    *(f"dropped_{share}" for share in (5, 20)),
    *(f"position_{part}" for part in (60, 20)),
    *(f"wavelength_{percent}" for percent in (1, 3)),
}


def test_sets_whose_system_is_another_have_the_bound_that_knows_it(done: Finished) -> None:
    assert {name for name, _, _ in done.collected.mismatched} == IMPAIRED
    for (name, cell, length), found in done.collected.mismatched.items():
        truth = done.collected.truth[name, cell, length]
        assert len(found.implied) == len(found.position_m) == len(truth.position)
        known = ~np.isnan(found.implied)
        assert known.mean() > 0.5
        assert ((found.implied[known] >= 0) & (found.implied[known] <= 1)).all()
        assert (found.position_m[known] > 0).all()
        assert not np.array_equal(found.implied, truth.implied)


def test_the_bound_of_a_record_is_that_of_its_scenes(done: Finished) -> None:
    sets = {s.name: s for s in done.config.sets(Methods(done.config.model))}
    for name in ("dropped_20", "wavelength_3"):
        system = dataclasses.replace(sets[name].cells[0], n_snapshots=5)
        scenes = generate_scenes(system, done.config.seed, range(sets[name].scenes))
        bound, found = mismatched_bound(scenes, done.config.seed), done.collected.mismatched[name, 0, 5]
        np.testing.assert_allclose(found.position_m, bound.position_m[scenes.mask].numpy(), rtol=1e-9)
        np.testing.assert_allclose(found.implied, bound.implied_recall()[scenes.mask].numpy(), atol=1e-9)


def test_rows_of_mismatches_hold_both_bounds(done: Finished) -> None:
    sets = [s for s in done.config.sets(Methods(done.config.model)) if s.name in IMPAIRED or s.name == "coherent"]
    rows = mismatch_rows(done.collected, sets, (8, 5))
    assert [(r["scenes"], r["snapshots"]) for r in rows] == [
        (name, length) for length in (8, 5) for name in ("main", *(s.name for s in sets))
    ]
    for row in rows:
        truth = done.collected.truth[row["scenes"], 0, row["snapshots"]]
        assert row["implied_recall"] == pytest.approx(truth.implied.mean())
        assert row["median_bound_m"] == pytest.approx(np.median(truth.position_m))
        if row["scenes"] in IMPAIRED:
            own = done.collected.mismatched[row["scenes"], 0, row["snapshots"]]
            assert row["mismatched_recall"] == pytest.approx(np.nanmean(own.implied))
            assert row["median_mismatched_m"] == pytest.approx(np.nanmedian(own.position_m))
            assert row["mismatched_sources"] == (~np.isnan(own.implied)).sum()
        else:
            assert math.isnan(row["mismatched_recall"])
            assert math.isnan(row["median_mismatched_m"])
            assert row["mismatched_sources"] == 0
    assert mismatch_rows(done.collected, [], (8, 5)) == []


def test_sources_without_a_bound_are_left_out_and_cells_are_put_together() -> None:
    def truth(implied: list[float]) -> Truth:
        n = len(implied)
        of = np.arange(1.0, n + 1)
        return Truth(np.zeros(n), np.ones(n, int), np.zeros((n, 3)), np.zeros((n, 3, 3)), of, np.array(implied))

    first, second = (
        Mismatched(np.array([3.0, np.nan]), np.array([0.5, np.nan])),
        Mismatched(np.array([9.0]), np.ones(1)),
    )
    cells = {("off", 0, 4): first, ("off", 1, 4): second}
    truths = {("main", 0, 4): truth([1.0, 0.0]), ("off", 0, 4): truth([0.2, 0.4]), ("off", 1, 4): truth([0.9])}
    collected = Collected(truths, {}, {}, {}, {}, cells)
    system = SystemConfig()
    sets = [SceneSet("off", "all off", (system, system), 1, (Run("greedy_ml", "blind", 1),))]
    nominal, row = mismatch_rows(collected, sets, (4,))
    assert (nominal["implied_recall"], nominal["sources"]) == (1.0, 1)  # the first scene of the main set
    assert row["implied_recall"] == pytest.approx(0.5)
    assert (row["sources"], row["mismatched_sources"]) == (3, 2)
    assert (row["mismatched_recall"], row["median_mismatched_m"]) == (0.75, 6.0)


def test_records_from_before_there_was_that_bound_are_read(done: Finished, tmp_path: Path) -> None:
    copy = ResultsFolder(shutil.copytree(done.results.folder, tmp_path / "copy"), done.results.config)
    sets = done.config.sets(Methods(done.config.model))
    for path in copy.folder.rglob("records/*/*/*/truth/*.npz"):
        with np.load(path) as file:
            values = {name: file[name] for name in file.files if not name.startswith("mismatched")}
        np.savez(path, allow_pickle=False, **values)
    collected = collect(copy, sets, done.config.snapshots, SETUP.tolerance)
    assert collected.mismatched == {}
    np.testing.assert_array_equal(
        collected.truth["dropped_5", 0, 8].implied, done.collected.truth["dropped_5", 0, 8].implied
    )
    page = finish(done.config, copy, resamples=1).report.read_text(encoding="utf-8")
    assert "bound with the mismatch" in page
    assert "\u2192 0" not in page


# ---- files


def test_csv_keeps_every_value_and_leaves_out_what_does_not_exist(tmp_path: Path) -> None:
    rows = [{"name": "a, b", "value": 1 / 3, "count": 7}, {"name": "c", "value": math.nan, "count": 0}]
    write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="") as file:
        back = list(csv.DictReader(file))
    assert back == [{"name": "a, b", "value": "0.333333", "count": "7"}, {"name": "c", "value": "", "count": "0"}]


def test_parquet_holds_the_same_rows(done: Finished, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("headline", "figures", "mismatch", "timing", "scenes", "frozen"):
        table = parquet.read_table(done.outcome.tables / f"{name}.parquet").to_pylist()
        read = rows_of(done, name)
        assert len(table) == len(read)
        for one, other in zip(table, read, strict=True):
            for column, value in one.items():
                if isinstance(value, float):
                    assert (
                        math.isnan(value)
                        if other[column] == ""
                        else value == pytest.approx(float(other[column]), rel=1e-5)
                    )
                else:
                    assert str(value) == other[column]


def test_without_pyarrow_the_outcome_says_so(done: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert not write_parquet(tmp_path / "t.parquet", [{"a": 1}])
    assert not list(tmp_path.iterdir())
    copy = ResultsFolder(shutil.copytree(done.results.folder, tmp_path / "copy"), done.results.config)
    notes = finish(done.config, copy, resamples=1).notes
    assert notes == ("tables were written as CSV only: pip install pyarrow to have them as Parquet too",)


def test_exported_tables_come_with_command_seed_and_environment(done: Finished) -> None:
    import json

    described = json.loads((done.export / "suite.json").read_text())
    assert described["command"].startswith("risfast evaluate --suite all --scenes 6 --snapshots 8 5 --seed 3")
    assert described["config"]["seed"] == 3
    assert set(described["environment"]) >= {"risfast", "torch", "python", "processor"}
    for name in ("headline", "figures", "mismatch", "timing", "frozen"):
        assert (done.export / f"{name}.csv").is_file()
    text = (done.export / "suite.json").read_text()
    assert str(done.export.parent) not in text


# ---- LaTeX


def test_latex_escapes_text_and_keeps_numbers() -> None:
    table = Sheet(["a_b", "F1 ≥ 5 %"], [["x & y", Number(Interval(0.5, 0.25, 0.75))]], "50 % of #1").latex()
    assert r"a\_b & F1 $\ge$ 5 \%" in table
    assert r"x \& y & $0.500 [0.250, 0.750]$ \\" in table
    assert r"\caption{50 \% of \#1}" in table
    assert Number(Interval(math.nan, 0, 1)).latex() == "--"
    assert Number(Interval(2.0, math.nan, math.nan), "{:.0f}").latex() == "$2$"


def test_latex_files_have_as_many_cells_in_each_row_as_columns(done: Finished) -> None:
    files = sorted(done.outcome.tables.glob("*.tex"))
    assert [f.name for f in files] == [
        f"{name}-L{length}.tex" for name in ("headline", "methods", "robustness") for length in (5, 8)
    ]
    for file in files:
        lines = file.read_text().splitlines()
        columns = next(len(line.split("{")[-1].rstrip("}")) for line in lines if "begin{tabular}" in line)
        body = [line for line in lines if line.endswith(r"\\")]
        assert len(body) > 3
        assert {line.replace(r"\&", "").count("&") + 1 for line in body} == {columns}
        assert all(line.isascii() for line in lines), file.name
