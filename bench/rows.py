"""The rows of the comparison: what is timed against what, and what it has to reach."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import peers, search, worker
from bench.accuracy import Errors, measure_errors, require_accuracy
from bench.measure import Worker, interleaved, saved
from bench.peers import Map, Problem
from bench.scenarios import (
    ACOULAR,
    CACHED_GEMM,
    MATERIALISED,
    PYROOMACOUSTICS,
    SOURCES,
    Contestant,
    Scenario,
    float32_bound_db,
    our_bound_db,
    problem_of,
    sampled_problem,
    true_scenes,
)
from risfast.geometry import PlanarArray
from risfast.ops import mvdr_spectrum, reference

OWN = "risfast auto"
EARLIER = "the earlier commit"  # what --against names
SECONDS = "processor seconds"
LEAST_F1 = 0.95


class Task(NamedTuple):
    """What is asked of a problem: the job of a worker, and the errors of its result (tensors alone)."""

    job: Callable[[Problem], dict[str, Any]]
    check: Callable[[Problem, Any], Errors]


class Target(NamedTuple):
    """A ratio to a contestant, or the processor seconds of a call: at least, and aimed at."""

    against: str
    least: float
    aim: float


@dataclass(frozen=True)
class Row:
    """One work, the peers it is timed against, and what has to be reached.

    ``repeats`` is how many calls of risfast stand between two of a peer. A row of ``full`` is left out of the short
    picture; one that is not of the ``table`` is left out of the table of the README.
    """

    work: str
    task: Task
    problem: Callable[[], Problem]
    peers: tuple[Contestant, ...] = ()
    target: Target | None = None
    rounds: int = 5
    repeats: int = 7
    full: bool = False
    table: bool = True


@lru_cache(maxsize=1)
def problem_of_row(row: Row) -> Problem:
    """The problem, kept while the contestants of one row take their turns."""
    return row.problem()


def job_of(problem: Problem, operation: str | None = None, **more: Any) -> dict[str, Any]:
    """What a worker needs to know of a problem."""
    names = [field.name for field in fields(Problem) if field.name != "operation"]
    return {"operation": operation or problem.operation, **{n: getattr(problem, n) for n in names}, **more}


MAP = Task(job_of, lambda problem, found: measure_errors(problem, Map(*found)))


@lru_cache(maxsize=1)
def _boxes(problem: Problem, kind: Callable[[Problem], search.Boxes]) -> search.Boxes:
    return kind(problem)


@lru_cache(maxsize=1)
def _highest(problem: Problem, kind: Callable[[Problem], search.Boxes]) -> torch.Tensor:
    return search.highest_on_fine_grids(problem, _boxes(problem, kind), 1)


def refinement(kind: Callable[[Problem], search.Boxes]) -> Task:
    """20 boxes of one scene; each is held against its own fine grid."""

    def job(problem: Problem) -> dict[str, Any]:
        boxes = _boxes(problem, kind)
        factored = problem.operation == "mvdr_lowrank"
        return job_of(problem, "refine", low=boxes.low, high=boxes.high, factored=factored, points=search.FINE_POINTS)

    def check(problem: Problem, found: Any) -> Errors:
        return search.refinement_errors(problem, search.Refined(*found), _highest(problem, kind))

    return Task(job, check)


def _boxes_row(
    work: str,
    kind: Callable[[Problem], search.Boxes],
    problem: Callable[[], Problem],
    target: Target | None = None,
) -> Row:
    def loop(problem: Problem) -> peers.Call:
        return search.refine_by_loop(problem, _boxes(problem, kind), peers.dense_eager)

    peer = Contestant("loop over the boxes", True, loop, float32_bound_db, once=True)
    return Row(work, refinement(kind), problem, (peer,), target, 3)


def _detection_errors(problem: Problem, found: Any) -> Errors:
    """Of the powers at the positions that are named; infinite where too few sources are hit."""
    worst = max(search.power_error_db(problem, b, position, power) for b, (position, power) in enumerate(found))
    truth = true_scenes(SOURCES, problem.wavefront, problem.batch).position.double()
    enough = search.f1_of([position for position, _ in found], truth) >= LEAST_F1
    return Errors(worst, 0.0 if enough else math.inf)


DETECTION = Task(
    lambda problem: job_of(problem, "detect" if problem.operation == "mvdr" else "detect_lowrank"), _detection_errors
)
PLAIN_PARTS = Contestant("plain parts", True, search.detect_by_plain_parts, float32_bound_db, once=True)


def _detection_row(work: str, problem: Callable[[], Problem], target: Target | None = None) -> Row:
    # The peer takes R of one scene.
    return Row(work, DETECTION, problem, () if target is None else (PLAIN_PARTS,), target, 3)


@lru_cache(maxsize=1)
def _volume(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    array, grid = search.geometry_of(problem)
    return mvdr_spectrum(problem.matrix, array, grid, loading=problem.loading, reduce="none"), grid.points()


def _peaks_job(problem: Problem) -> dict[str, Any]:
    volume, points = _volume(problem)
    options = {"window": search.WINDOW, "candidates": search.PEAKS, "separation": search.SEPARATION}
    return {"operation": "peaks", "volume": volume, "grid_points": points, "kept": search.KEPT, **options}


def _peaks_errors(problem: Problem, found: Any) -> Errors:
    """None where the 20 that are left are those of the plain statement of what a maximum is.

    Where neighbours tie, a peer lists each of them and risfast the first.
    """
    volume, points = _volume(problem)
    index, value, _ = reference.local_maxima_3d(volume.contiguous(), search.WINDOW, search.PEAKS, None)
    same = torch.equal(found, search.suppress(points, index[0], value[0]))
    return Errors(0.0, 0.0 if same else math.inf)


def _scipy_peaks(problem: Problem) -> peers.Call:
    volume, points = _volume(problem)
    packed = volume[0].contiguous().numpy()  # the memory order that suits it
    return lambda: search.suppress(points, *search.maxima_by_scipy(packed))


def _skimage_peaks(problem: Problem) -> peers.Call:
    volume, points = _volume(problem)
    packed = volume[0].contiguous().numpy()
    return lambda: search.suppress(points, *search.maxima_by_skimage(packed))


def _no_skimage(problem: Problem) -> str | None:
    missing = importlib.util.find_spec("skimage") is None
    return "scikit-image is not installed (pip install .[bench])" if missing else None


PEAKS = Task(_peaks_job, _peaks_errors)
SCIPY_PEAKS = Contestant("scipy maximum_filter", True, _scipy_peaks, float32_bound_db)
SKIMAGE_PEAKS = Contestant("scikit-image", True, _skimage_peaks, float32_bound_db, _no_skimage)


def _surface(n: int, wavefront: str, **options: Any) -> Callable[[], Problem]:
    """n x n elements at half a wavelength."""
    return lambda: sampled_problem(PlanarArray.rectangular(n, n).positions_m, wavefront, **options)


def _scattered() -> Problem:
    """144 elements anywhere in the square that the reference surface fills."""
    surface = PlanarArray.rectangular().positions_m
    place = torch.rand(len(surface), 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positions = torch.zeros_like(surface)
    positions[:, :2] = surface[:, :2].amin(0) + place * (surface[:, :2].amax(0) - surface[:, :2].amin(0))
    return sampled_problem(positions, "spherical")


def _music() -> Problem:
    """The pseudospectrum of the covariance of the Capon rows."""
    return replace(_surface(12, "spherical")(), operation="music")


def _of(operation: str, wavefront: str, batch: int = 1, **options: Any) -> Callable[[], Problem]:
    return lambda: problem_of(Scenario(operation, wavefront, "reference", batch, **options))


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every row, with its own name."""
    wide, narrow = search.wide_boxes, search.detection_boxes
    plain, known, filters = (MATERIALISED, CACHED_GEMM), (ACOULAR, CACHED_GEMM), (SCIPY_PEAKS, SKIMAGE_PEAKS)
    low_rank = _of("mvdr_lowrank", "spherical")
    few, factor = (_surface(32, "spherical", snapshots=64, factor=given) for given in (False, True))
    clear = {"rank": SOURCES, "snapped": False}
    timed = [
        Row("Capon, full rank, fresnel", MAP, _surface(12, "fresnel"), plain, Target(MATERIALISED.name, 1350, 2400)),
        Row("Capon, full rank, spherical", MAP, _surface(12, "spherical"), known, Target(ACOULAR.name, 330, 600)),
        Row("Capon, low rank K = 10, spherical", MAP, low_rank, known, Target(ACOULAR.name, 1000, 1500)),
        Row("MUSIC, spherical", MAP, _music, (PYROOMACOUSTICS, CACHED_GEMM), None, 3),
        Row("Capon, full rank, fresnel, B = 32", MAP, _surface(12, "fresnel", batch=32), (), Target(EARLIER, 1.7, 2.5)),
        Row("Capon, random planar array, spherical", MAP, _scattered, (CACHED_GEMM,), Target(EARLIER, 1.8, 4)),
        Row("3D maxima and suppression, 20 best", PEAKS, _surface(12, "spherical"), filters, None, 30, 1),
        _boxes_row("20 wide boxes, 41 x 41 x 41, fresnel", wide, _surface(12, "fresnel"), Target(EARLIER, 5, 12)),
        _detection_row("detection from R, spherical", _of("mvdr", "spherical", **clear), Target(EARLIER, 3, 7)),
    ]
    # A call takes seconds; that of 64 x 64 elements ten of them, most for the inverse.
    large = [
        Row("32 x 32, full rank, spherical", MAP, _surface(32, "spherical"), (), Target(EARLIER, 2, 10), 3, 1),
        Row("32 x 32, R of 64 snapshots, spherical", MAP, few, (), Target(SECONDS, 1.2, 0.5), 3, 1),
        Row("32 x 32, factor of 64 snapshots, spherical", MAP, factor, (), Target(SECONDS, 0.5, 0.1), 3, 1),
    ]
    few = _surface(64, "fresnel", snapshots=64)
    largest = [
        Row("64 x 64, full rank, fresnel", MAP, _surface(64, "fresnel"), (), Target(SECONDS, 7, 6), 2, 1),
        Row("64 x 64, R of 64 snapshots, fresnel", MAP, few, (), Target(SECONDS, 1, 0.3), 2, 1),
    ]
    left_out = [
        _boxes_row("20 boxes of detection, spherical", narrow, _of("mvdr", "spherical", snapped=False)),
        _boxes_row("20 boxes of detection, factor, fresnel", narrow, _of("mvdr_lowrank", "fresnel", snapped=False)),
        _detection_row("detection from F, spherical", _of("mvdr_lowrank", "spherical", **clear)),
        _detection_row("detection from R, spherical, B = 32", _of("mvdr", "spherical", 32, **clear)),
    ]
    return (
        *timed,
        *large,
        *(replace(row, full=True) for row in largest),
        *(replace(row, full=True, table=False) for row in left_out),
    )


def _admitted(row: Row, workers: Mapping[str, Worker]) -> tuple[dict[str, tuple[Any, int]], dict[str, float]]:
    """Calls of the contestants whose result is right, with their number a round, and their errors in dB."""
    problem = problem_of_row(row)
    calls: dict[str, tuple[Any, int]] = {}
    errors = {}

    def admit(name: str, call: Any, repeats: int, found: Any, bound_db: float) -> None:
        calls[name], error = (call, repeats), row.task.check(problem, found)
        errors[name] = error.worst_db
        require_accuracy(name, error, bound_db)

    for name, own in workers.items():
        # The earlier commit is timed whatever its error is; the error stands beside its time.
        admit(name, own, row.repeats, own.result(), our_bound_db(problem) if name == OWN else math.inf)
    for peer in row.peers:
        if peer.unavailable(problem) is None:
            call = peer.prepare(problem)
            admit(peer.name, call, 1, worker.plain(call()), peer.bound_db(problem))
    return calls, errors


def measure_row(row: Row, rounds_scale: float, trees: Mapping[str, Path]) -> dict[str, Any]:
    """Times of a row, taking turns: risfast of every tree in a process of its own, the peers in this one."""
    with saved(row.task.job(problem_of_row(row))) as job, ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(job, tree)) for name, tree in trees.items()}
        calls, errors = _admitted(row, workers)
        times = interleaved(calls, max(1, round(row.rounds * rounds_scale)))
    summary = {name: {**t.summary(), "error_db": errors[name]} for name, t in times.items()}
    base = summary[OWN]
    clocks = ("cpu_median", "cpu_min", "wall_median", "wall_min")
    ratios = {
        name: {clock: other[f"{clock}_s"] / base[f"{clock}_s"] for clock in clocks}
        for name, other in summary.items()
        if name != OWN
    }
    measured = {"work": row.work, "batch": problem_of_row(row).batch, "contestants": summary, "ratios": ratios}
    problem_of_row.cache_clear()
    return {**measured, **_verdict(row.target, base, ratios)}


def _verdict(target: Target | None, base: Mapping[str, float], ratios: Mapping[str, Any]) -> dict[str, Any]:
    """Against whom, what was asked for, what was reached; nothing is met where the one to compare with is not there."""
    against = next(iter(ratios), None) if target is None or target.against not in ratios else target.against
    ratio = None if against is None else ratios[against]["cpu_median"]
    asked = {} if target is None else target._asdict()
    met = None
    if target is not None and target.against == SECONDS:
        met = base["cpu_median_s"] <= target.least
    elif target is not None and target.against == against:
        met = ratio >= target.least
    return {"against": against, "ratio": ratio, "target": asked or None, "met": met}


def times_table(results: list[dict[str, Any]]) -> str:
    """Times, ratios and errors as text of at most 100 columns, one line a contestant."""
    lines = []
    for result in results:
        asked = ""
        if result["target"] is not None:
            target = Target(**result["target"])
            asked = f": {target.least:g} s, aim {target.aim:g} s"
            if target.against != SECONDS:
                asked = f": {target.least:g} x {target.against}, aim {target.aim:g} x"
        lines.append(result["work"] + asked + {True: "  met", False: "  MISSED", None: ""}[result["met"]])
        for name, t in result["contestants"].items():
            ratio = result["ratios"].get(name)
            against = "" if ratio is None else f"{ratio['cpu_median']:8.4g} x (wall {ratio['wall_median']:.4g} x)"
            median, least = t["cpu_median_s"] * 1e3, t["cpu_min_s"] * 1e3
            lines.append(f"  {name:24s}{median:10.2f} ms, least{least:10.2f} ms  {t['error_db']:7.1e} dB {against}")
    return "\n".join(lines)


def round_figures(value: Any) -> Any:
    """Four significant digits for the record: more is noise."""
    if isinstance(value, dict):
        return {key: round_figures(v) for key, v in value.items()}
    if isinstance(value, list):
        return [round_figures(v) for v in value]
    return float(np.format_float_positional(value, 4, fractional=False)) if isinstance(value, float) else value
