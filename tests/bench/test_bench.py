"""The benchmarks themselves: peers against the brute force, and no speed for a contestant whose result is wrong."""

from __future__ import annotations

import json
import math
import platform
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# Appended, so that an installed risfast is what the other tests see.
sys.path.append(str(ROOT))

from bench import (  # noqa: E402
    accuracy,
    bench_rows,
    bench_spectra,
    checks,
    compare,
    contest,
    measure,
    peers,
    rows,
    scenarios,
    search,
)

AZIMUTH = np.radians([-41.0, -12.0, 3.0, 20.0, 55.0])
ELEVATION = np.radians([-25.0, 2.0, 11.0])
RANGE = np.array([0.6, 1.4, 5.0])
POINTS = oracles.box(AZIMUTH, ELEVATION, RANGE)
POSITIONS = oracles.rectangular(3, 5)
WAVELENGTH = 0.3
N = len(POSITIONS)
SOURCES = 2
PLAIN_PEERS = {"materialised": peers.materialised, "cached": peers.cached_gemm, "eager": peers.dense_eager}


def steering(wavefront):
    return oracles.steering(POSITIONS, WAVELENGTH, POINTS, wavefront)


def input_of(operation, wavefront, batch):
    """R of two sources that stand on the grid and noise, or a factor, or weights, as numpy.

    For MUSIC, which has no floor at a source, they stand beside it.
    """
    rng = np.random.default_rng(5)
    beside = np.array([0.03, -0.02, 0.05]) if operation == "music" else 0.0
    A = oracles.steering(POSITIONS, WAVELENGTH, POINTS + beside, wavefront).reshape(-1, N)
    if operation == "synthesis":
        return rng.uniform(size=(batch, *POINTS.shape[:-1]))
    if operation in scenarios.FACTORED:
        return np.stack([A[[4 + b, 30 + b]].T * np.array([1.0, 0.7]) for b in range(batch)])
    return np.stack([oracles.source_covariance(A[[4 + b, 30 + b]], [1.0, 0.7], 0.01) for b in range(batch)])


def problem(operation, wavefront="spherical", batch=2):
    matrix = torch.from_numpy(input_of(operation, wavefront, batch))
    return peers.Problem(
        operation=operation,
        matrix=matrix.to(torch.complex64 if matrix.is_complex() else torch.float32),
        positions_m=torch.from_numpy(POSITIONS),
        wavelength_m=WAVELENGTH,
        wavefront=wavefront,
        azimuth_rad=torch.from_numpy(AZIMUTH),
        elevation_rad=torch.from_numpy(ELEVATION),
        range_m=torch.from_numpy(RANGE),
        n_sources=SOURCES,
    )


def brute_force(p):
    """The volume, or the matrix of synthesis, of a problem by the oracles."""
    A, matrix = steering(p.wavefront), p.matrix.numpy()
    return {
        "mvdr": lambda: oracles.capon(matrix, A),
        "mvdr_lowrank": lambda: oracles.capon_lowrank(matrix, A),
        "music": lambda: 1 / oracles.music_null(matrix, A, SOURCES),
        "bartlett": lambda: oracles.bartlett(matrix, A),
        "analysis": lambda: oracles.analysis(matrix, A),
        "analysis_factored": lambda: oracles.analysis_factored(matrix, A),
        "synthesis": lambda: oracles.synthesis(matrix, A),
    }[p.operation]()


def assert_agrees(p, found, bound_db):
    expected = brute_force(p)
    if p.operation not in peers.SPECTRA:
        assert tuple(found.shape) == expected.shape
        tolerance = (10 ** (bound_db / 10) - 1) * np.abs(expected).max()
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance)
        return
    power, _ = oracles.maximum_over_planes(expected)
    assert oracles.worst_db(found.power.numpy(), power) <= bound_db
    named = np.take_along_axis(expected, found.plane.numpy()[..., None].astype(int), -1)[..., 0]
    assert oracles.worst_db(named, power) <= bound_db


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("operation", peers.OPERATIONS)
@pytest.mark.parametrize("name", PLAIN_PEERS)
def test_peer_agrees_with_the_brute_force(name, operation, wavefront):
    p = problem(operation, wavefront)
    call = PLAIN_PEERS[name](p)
    assert_agrees(p, call(), scenarios.float32_bound_db(p))
    assert_agrees(p, call(), scenarios.float32_bound_db(p))  # what it keeps is not used up


def test_peers_work_through_more_points_than_a_chunk(monkeypatch):
    monkeypatch.setattr(peers, "CHUNK", 7)  # 45 points: six full chunks and a rest
    for operation in ("mvdr", "mvdr_lowrank", "synthesis"):
        p = problem(operation)
        for make in PLAIN_PEERS.values():
            assert_agrees(p, make(p)(), scenarios.float32_bound_db(p))


@pytest.mark.parametrize("operation", ["mvdr", pytest.param("synthesis", marks=pytest.mark.slow)])
def test_compiled_peer_agrees_with_the_brute_force(operation):
    reason = peers.no_compiler()
    if reason is not None:
        pytest.skip(reason)
    p = problem(operation)
    assert_agrees(p, peers.dense_compiled(p)(), scenarios.float32_bound_db(p))


@pytest.mark.parametrize("operation", peers.ACOULAR_OPERATIONS)
def test_acoular_agrees_with_the_brute_force(operation, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # acoular warns where it finds numpy's own threads
    pytest.importorskip("acoular")
    p = problem(operation)
    assert scenarios.ACOULAR.unavailable(p) is None
    assert_agrees(p, peers.acoular_beamformer(p)(), scenarios.ACOULAR.bound_db(p))


def test_pyroomacoustics_agrees_with_the_brute_force():
    pytest.importorskip("pyroomacoustics")
    p = problem("music")
    assert scenarios.PYROOMACOUSTICS.unavailable(p) is None
    assert_agrees(p, peers.pyroomacoustics_music(p)(), scenarios.PYROOMACOUSTICS.bound_db(p))


@pytest.mark.parametrize(("operation", "wavefront"), [("music", "fresnel"), ("mvdr", "spherical")])
def test_pyroomacoustics_is_left_out_where_it_computes_something_else(operation, wavefront):
    assert scenarios.PYROOMACOUSTICS.unavailable(problem(operation, wavefront)) is not None


def test_the_maxima_of_scikit_image_are_those_of_scipy():
    pytest.importorskip("skimage")
    volume = np.random.default_rng(0).uniform(size=(40, 30, 7)).astype(np.float32)
    for ours, theirs in zip(search.maxima_by_skimage(volume), search.maxima_by_scipy(volume), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_acoular_is_left_out_where_it_computes_something_else():
    assert scenarios.ACOULAR.unavailable(problem("mvdr", "fresnel")) is not None
    assert scenarios.ACOULAR.unavailable(problem("music")) is not None
    assert scenarios.ACOULAR.unavailable(problem("synthesis")) is not None


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("operation", peers.OPERATIONS)
def test_the_truth_of_the_gate_agrees_with_the_brute_force(operation, wavefront):
    p = problem(operation, wavefront)
    expected = brute_force(p)
    for b in range(p.batch):
        if operation == "synthesis":
            np.testing.assert_allclose(accuracy.exact_synthesis(p, b).numpy(), expected[b], atol=1e-10)
        else:
            values = accuracy.exact_values(p, b, torch.from_numpy(POINTS)).numpy()
            np.testing.assert_allclose(values, expected[b], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operation", peers.OPERATIONS)
def test_the_gate_finds_no_error_in_the_brute_force(operation):
    p = problem(operation)
    expected = brute_force(p)
    found = torch.from_numpy(expected)
    if operation in peers.SPECTRA:
        found = peers.Map(*(torch.from_numpy(part) for part in oracles.maximum_over_planes(expected)))
    assert accuracy.measure_errors(p, found).worst_db < 1e-9


def right_map(p):
    return peers.Map(*(torch.from_numpy(part) for part in oracles.maximum_over_planes(brute_force(p))))


def spoil_scale(found):
    found.power.mul_(1.01)


def spoil_peak(found):
    """Half a decibel at the highest peak of one scene, right everywhere else."""
    flat = found.power[1].view(-1)
    flat[flat.argmax()] *= 10**0.05


def spoil_nan(found):
    found.power[0, 0, 0] = math.nan


def spoil_sign(found):
    found.power.neg_()


def spoil_plane(found):
    found.plane.copy_((found.plane + 1) % len(RANGE))


def spoil_order(found):
    """The axis of azimuth the other way round: every value occurs, in the wrong place."""
    found.power.copy_(found.power.flip(1))


SPOILERS = [spoil_scale, spoil_peak, spoil_nan, spoil_sign, spoil_plane, spoil_order]


class FakeBenchmark:
    """What pytest-benchmark's fixture offers, remembering whether anything was timed."""

    def __init__(self):
        self.extra_info, self.timed, self.stats, self.group, self.has_error = {}, 0, None, None, False

    def pedantic(self, call, rounds):
        self.timed += rounds
        self.stats = SimpleNamespace(stats=SimpleNamespace(median=0.5))
        return call()


def enter(p, found, *, registry=None, name="contestant", is_peer=False, bound_db=1e-3, benchmark=None, once=False):
    """Let a contestant that returns ``found`` into a benchmark."""
    benchmark = benchmark or FakeBenchmark()
    contest.enter(
        benchmark,
        contest.Registry() if registry is None else registry,
        contest.Match("group", p.batch * p.size, p.batch),
        name,
        lambda: lambda: found,
        lambda result: accuracy.measure_errors(p, result),
        bound_db,
        is_peer=is_peer,
        once=once,
    )
    return benchmark


@pytest.mark.parametrize("spoil", SPOILERS)
def test_no_speed_is_reported_for_a_wrong_map(spoil):
    p, registry, benchmark = problem("mvdr"), contest.Registry(), FakeBenchmark()
    found = right_map(p)
    spoil(found)
    with pytest.raises(accuracy.InaccurateContestantError, match="contestant gets no speed"):
        enter(p, found, registry=registry, benchmark=benchmark)
    assert (benchmark.timed, benchmark.extra_info, registry.entries) == (0, {}, [])


def test_the_first_call_of_a_slow_peer_is_timed_and_reported_only_if_it_is_right():
    p, registry = problem("mvdr"), contest.Registry()
    benchmark = enter(p, right_map(p), registry=registry, is_peer=True, once=True)
    assert (benchmark.timed, benchmark.has_error, len(registry.entries)) == (1, False, 1)
    found, benchmark = right_map(p), FakeBenchmark()
    spoil_scale(found)
    with pytest.raises(accuracy.InaccurateContestantError, match="contestant gets no speed"):
        enter(p, found, registry=registry, benchmark=benchmark, once=True)
    assert (benchmark.has_error, benchmark.extra_info, len(registry.entries)) == (True, {}, 1)


def test_a_map_of_the_wrong_shape_is_refused():
    p = problem("mvdr")
    found = right_map(p)
    with pytest.raises(accuracy.InaccurateContestantError, match="shape"):
        enter(p, peers.Map(found.power.mT, found.plane.mT))


@pytest.mark.parametrize("operation", ["analysis", "analysis_factored", "synthesis"])
def test_no_speed_is_reported_for_wrong_values(operation):
    p = problem(operation)
    found = torch.from_numpy(brute_force(p))
    found[1] *= 1.01
    with pytest.raises(accuracy.InaccurateContestantError, match="contestant gets no speed"):
        enter(p, found)


def test_a_right_map_is_timed_and_reported_with_its_ratio():
    p, registry = problem("mvdr"), contest.Registry()
    enter(p, right_map(p), registry=registry, name="slow peer", is_peer=True)
    enter(p, right_map(p), registry=registry, name="fast peer", is_peer=True)
    registry.entries[0] = replace(registry.entries[0], points_per_second=registry.entries[0].points_per_second / 4)
    registry.entries[1] = replace(registry.entries[1], points_per_second=registry.entries[1].points_per_second / 2)
    benchmark = enter(p, right_map(p), registry=registry)
    info = benchmark.extra_info
    assert benchmark.timed >= 3
    assert info["points_per_second"] == pytest.approx(p.batch * p.size / 0.5)
    assert (info["best_peer"], info["ratio_to_best_peer"]) == ("fast peer", pytest.approx(2.0))
    assert info["peer_batch"] == p.batch
    assert 0 <= info["error_db_peaks"] < 1e-9
    assert 0 <= info["error_db_random"] < 1e-9
    assert info["peak_memory_mb"] >= 0 or math.isnan(info["peak_memory_mb"])
    lines = contest.summary_lines(registry)
    assert any("fast peer" in line for line in lines)
    assert max(len(line) for line in lines) <= 100


def test_an_error_that_is_no_number_is_refused():
    with pytest.raises(accuracy.InaccurateContestantError):
        accuracy.require_accuracy("contestant", accuracy.Errors(math.nan, 0.0), 1.0)


def test_every_operator_method_grid_and_batch_is_timed_and_each_work_has_a_peer():
    found = {(scenario, contestant.name) for scenario, contestant in bench_spectra.cases()}
    for operation in peers.OPERATIONS:
        for wavefront, methods in scenarios.METHODS.items():
            for grid in ("training", "reference"):
                for batch in (1, 32):
                    scenario = scenarios.Scenario(operation, wavefront, grid, batch)
                    assert {(scenario, f"risfast {method}") for method in methods} <= found
                    alone = scenarios.Scenario(operation, wavefront, grid, batch if grid == "training" else 1)
                    assert {(alone, peer.name) for peer in scenarios.PEERS} <= found


def test_the_scenes_put_every_source_on_a_grid_point():
    scenario = scenarios.Scenario("mvdr", "spherical", "training", 2)
    p = scenarios.problem_of(scenario)
    grid = scenarios.GRIDS["training"]()
    moved = scenarios.on_grid(scenarios.true_scenes(scenario.sources, "spherical", 2), grid).position
    A = oracles.steering(p.positions_m.numpy(), p.wavelength_m, moved.numpy())
    for b in range(2):
        expected = oracles.source_covariance(A[b], np.ones(scenario.sources), 0.0)
        np.testing.assert_allclose(p.matrix[b].numpy(), expected, atol=1e-5)
    for i, axis in enumerate((grid.azimuth_rad, grid.elevation_rad, grid.range_m)):
        assert (moved[..., i, None] == axis).any(-1).all()


def test_the_loop_finds_the_highest_point_of_the_fine_grid(monkeypatch):
    monkeypatch.setattr(search, "FINE_POINTS", (5, 4, 3))
    p = problem("mvdr")
    low = torch.tensor([[[-0.3, -0.2, 0.7], [0.1, 0.0, 1.0]]] * 2, dtype=torch.float64)
    high = low + torch.tensor([0.2, 0.1, 0.9], dtype=torch.float64)
    boxes = search.Boxes(low, high)
    found = search.refine_by_loop(p, boxes, peers.materialised)()
    highest = search.highest_on_fine_grids(p, boxes, 2)
    for b in range(2):
        for c in range(2):
            least, most = low[b, c].tolist(), high[b, c].tolist()
            azimuth, elevation = (np.linspace(least[i], most[i], n) for i, n in ((0, 5), (1, 4)))
            grid = oracles.box(azimuth, elevation, 1 / np.linspace(1 / least[2], 1 / most[2], 3))
            volume = oracles.capon(p.matrix[b : b + 1].numpy(), oracles.steering(POSITIONS, WAVELENGTH, grid))[0]
            best = np.unravel_index(volume.argmax(), volume.shape)
            np.testing.assert_allclose(found.position[b, c].numpy(), grid[best], rtol=1e-12)
            assert highest[b, c].item() == pytest.approx(volume.max(), rel=1e-9)
    errors = search.refinement_errors(p, found, highest)
    assert errors.worst_db < 2e-2
    assert search.refinement_errors(p, found, highest * 1.1).random_db == pytest.approx(10 * math.log10(1.1), abs=0.02)


def test_f1_counts_hits_misses_and_ghosts():
    truth = torch.tensor([[[0.0, 0.0, 2.0], [0.5, 0.1, 4.0]]], dtype=torch.float64)

    def sources(*positions):
        return [torch.tensor(positions, dtype=torch.float64).reshape(-1, 3)]

    assert search.f1_of(sources((0.01, 0.0, 2.1), (0.5, 0.1, 4.9)), truth) == 1.0
    assert search.f1_of(sources((0.01, 0.0, 2.1)), truth) == pytest.approx(2 / 3)
    assert search.f1_of(sources((0.01, 0.0, 2.1), (0.5, 0.1, 5.1)), truth) == pytest.approx(1 / 2)
    assert search.f1_of(sources((0.0, 0.0, 2.0), (0.0, 0.0, 2.1), (0.5, 0.1, 4.0)), truth) == pytest.approx(4 / 5)
    assert search.f1_of(sources(), truth) == 0.0


def test_calls_are_interleaved_and_counted():
    order = []
    times = measure.interleaved({"a": (lambda: order.append("a"), 2), "b": (lambda: order.append("b"), 1)}, rounds=3)
    assert "".join(order) == "ab" + "aab" * 3
    assert (times["a"].summary()["calls"], times["b"].summary()["calls"]) == (6, 3)
    assert times["a"].summary()["cpu_min_s"] <= times["a"].summary()["cpu_median_s"]


def test_peak_memory_sees_what_a_call_holds_for_a_while():
    size = 64 << 20
    with measure.peak_memory() as idle:
        pass
    with measure.peak_memory() as peak:
        block = torch.ones(size, dtype=torch.uint8)
        del block
    if math.isnan(peak.bytes):
        pytest.skip("this system tells no peak of resident memory")
    # The kernel counts resident pages a thread at a time, some hundred kilobytes late.
    assert size - (1 << 20) <= peak.bytes < size + (16 << 20)
    assert idle.bytes < 4 << 20


def small_row(**more):
    """One map of the small problem, with a peer."""
    p = problem("mvdr")
    return rows.Row("a small map", rows.MAP, lambda: p, (scenarios.MATERIALISED,), rounds=2, repeats=2, **more)


def test_a_row_is_timed_in_workers_and_beside_its_peers():
    tree, target = measure.risfast_tree(), rows.Target(rows.EARLIER, 1e-9, 1.0)
    result = rows.measure_row(small_row(target=target), 1.0, {rows.OWN: tree, rows.EARLIER: tree})
    assert list(result["contestants"]) == [rows.OWN, rows.EARLIER, scenarios.MATERIALISED.name]
    assert [c["calls"] for c in result["contestants"].values()] == [4, 4, 2]
    assert all(0 <= c["error_db"] < 1e-2 for c in result["contestants"].values())
    assert (result["against"], result["met"]) == (rows.EARLIER, True)
    assert "1e-09 x the earlier commit, aim 1 x  met" in rows.times_table([result])
    (group,) = compare.charted([result]).values()
    assert [name for name, _, _ in group] == list(result["contestants"])


def test_a_row_without_the_earlier_commit_is_neither_met_nor_missed():
    trees = {rows.OWN: measure.risfast_tree()}
    result = rows.measure_row(small_row(target=rows.Target(rows.EARLIER, 2, 3)), 1.0, trees)
    assert (result["against"], result["met"]) == (scenarios.MATERIALISED.name, None)
    late = rows.measure_row(small_row(target=rows.Target(rows.SECONDS, 1e-9, 0)), 1.0, trees)
    assert late["met"] is False


def test_a_row_with_a_wrong_result_is_not_timed():
    wrong = rows.Task(rows.job_of, lambda problem, found: accuracy.Errors(0.0, 1.0))
    with pytest.raises(accuracy.InaccurateContestantError, match="risfast auto gets no speed"):
        rows.measure_row(replace(small_row(), task=wrong), 1.0, {rows.OWN: measure.risfast_tree()})


def test_a_worker_runs_in_the_tree_that_it_is_told(tmp_path):
    with (
        measure.saved(rows.job_of(problem("mvdr"))) as job,
        pytest.raises(RuntimeError, match="imported risfast from"),
        measure.Worker(job, tmp_path),
    ):
        pass


def test_code_lines_leave_out_comments_blank_lines_and_docstrings(tmp_path):
    (tmp_path / "a.py").write_text('"""Of the\n\nfile."""\n\n# a comment\nX = [\n    1,  # one\n]\n')
    (tmp_path / "b.py").write_text('def f():\n    """What it does."""\n    return """\n    text"""\n')
    assert checks.code_lines(tmp_path) == 3 + 3


def test_the_rows_have_names_of_their_own_and_the_short_picture_has_a_peer_for_each_at_144_elements():
    works = [row.work for row in rows.rows()]
    assert len(set(works)) == len(works)
    assert {row.target.against for row in rows.rows() if row.target} <= {
        rows.EARLIER, rows.SECONDS, scenarios.ACOULAR.name, scenarios.MATERIALISED.name
    }  # fmt: skip
    found = {case.values[0].work for case in bench_rows.cases() if case.values[1].is_peer}
    assert set(works) - found <= {work for work in works if "32" in work or "64" in work or "from F" in work}


def test_the_sampled_covariances_have_full_rank_and_those_of_few_snapshots_that_of_their_factor():
    positions = torch.from_numpy(POSITIONS)
    full = scenarios.sampled_problem(positions, "fresnel")
    few = scenarios.sampled_problem(positions, "fresnel", snapshots=4).matrix
    factor = scenarios.sampled_problem(positions, "fresnel", snapshots=4, factor=True).matrix
    assert int(torch.linalg.matrix_rank(full.matrix, hermitian=True)) == N
    assert factor.shape == (1, N, 4)
    torch.testing.assert_close(factor @ factor.mH, few, rtol=1e-5, atol=1e-5)


def test_the_record_is_whole_and_names_no_machine():
    path = ROOT / "bench" / "results" / "cpu.json"
    if not path.exists():
        pytest.skip("no recorded run")
    text = path.read_text()
    record = json.loads(text)
    recorded = [r["work"] for r in record["times"]]
    assert recorded == [row.work for row in rows.rows() if row.work in recorded]
    assert {row.work for row in rows.rows() if not row.full} <= set(recorded)
    assert record["threads"] == 1
    assert record["memory"]
    assert record["accuracy"]
    for result in record["times"]:
        own = result["contestants"]["risfast auto"]["cpu_median_s"]
        if result["against"] is not None:
            other = result["contestants"][result["against"]]["cpu_median_s"]
            assert result["ratio"] == pytest.approx(other / own, rel=2e-3)
    assert str(ROOT) not in text
    assert platform.node() not in text


def test_a_row_of_the_history_takes_the_place_of_the_one_of_its_commit(tmp_path):
    from bench.history import COLUMNS, updated

    path = tmp_path / "history.csv"
    row = dict.fromkeys(COLUMNS, "1.0")
    updated(path, [{**row, "commit": "b", "date": "2026-02-01"}, {**row, "commit": "a", "date": "2026-01-01"}])
    updated(path, [{**row, "commit": "b", "date": "2026-02-01", "detection_ms": "2.0"}])
    head, first, second = (line.split(",") for line in path.read_text().splitlines())
    assert tuple(head) == COLUMNS
    assert (first[1], second[1], second[5]) == ("a", "b", "2.0")


def test_the_works_of_the_history_are_measured():
    from bench.history import COLUMNS, ROOT, measure

    found = measure(ROOT, rounds=1)
    assert [*found] == list(COLUMNS[2:6])
    assert all(value > 0 for value in found.values())
