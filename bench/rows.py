"""The rows of the comparison: what is timed against what, and what it has to reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import bench_peaks, peers, search
from bench.accuracy import measure_errors, require_accuracy
from bench.measure import interleaved, probe_in_process
from bench.peers import Call, Problem
from bench.scenarios import (
    ACOULAR,
    CACHED_GEMM,
    DENSE_COMPILED,
    DENSE_EAGER,
    MATERIALISED,
    Contestant,
    Scenario,
    float32_bound_db,
    operator_call,
    our_bound_db,
    ours,
    problem_of,
    true_scenes,
)
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import mvdr_spectrum, plan
from risfast.ops.peaks_reference import local_maxima_3d_reference
from risfast.ops.refinement import refine_peaks

_MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One work, the peers it is timed against, and what has to be reached against the first of them.

    ``make`` gives the calls, risfast's first, each after its result has passed the gate. ``repeats`` is how many calls
    of risfast stand between two of a peer.
    """

    work: str
    target: float | None
    make: Callable[[], dict[str, Call]]
    rounds: int
    repeats: int


def _admitted(contestant: Contestant, problem: Problem) -> Call | None:
    """The call of a contestant whose result is right, or None where it cannot run here."""
    if contestant.unavailable(problem) is not None:
        return None
    call = contestant.prepare(problem)
    require_accuracy(contestant.name, measure_errors(problem, call()), contestant.bound_db(problem))
    return call


def _spectrum(scenario: Scenario, *field: Contestant) -> Callable[[], dict[str, Call]]:
    def make() -> dict[str, Call]:
        problem = problem_of(scenario)
        calls = {c.name: _admitted(c, problem) for c in (ours(), *field)}
        return {name: call for name, call in calls.items() if call is not None}

    return make


def _kept(points: torch.Tensor, found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Grid indices [20, 3] that suppression leaves."""
    kept = bench_peaks.suppress(points, *found)
    return found[0][kept.index[: int(kept.count)].numpy()]


def _by_definition(volume: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Maxima by the plain statement of what one is."""
    index, value, _ = local_maxima_3d_reference(volume, bench_peaks.WINDOW, bench_peaks.PEAKS, None)
    return index[0].numpy(), value[0].numpy()


def _peaks() -> dict[str, Call]:
    """Maxima and suppression on the Capon volume of five sources; scipy in the memory order that suits it.

    Where neighbours tie, a peer lists each of them and risfast the first: what must be equal is the 20 that are left.
    """
    scenes = true_scenes(5, "spherical", 1)
    array, grid = PlanarArray.rectangular(), SearchGrid.reference()
    volume = mvdr_spectrum(scenes.true_covariance().to(torch.complex64), array, grid, reduce="none")
    packed, points = volume.contiguous(), grid.points()
    expected = _kept(points, _by_definition(packed))
    calls: dict[str, Call] = {}
    for name, find, layout in (
        ("risfast auto", bench_peaks.maxima_risfast, volume),
        ("scipy maximum_filter, packed volume", bench_peaks.maxima_scipy, packed),
        ("scipy maximum_filter, volume by planes", bench_peaks.maxima_scipy, volume),
        ("scikit-image peak_local_max", bench_peaks.maxima_skimage, packed),
    ):
        np.testing.assert_array_equal(_kept(points, find(layout)), expected, err_msg=name)
        calls[name] = lambda find=find, layout=layout: bench_peaks.suppress(points, *find(layout))
    return calls


def _refinement(kind: Callable[[Problem], search.Boxes]) -> Callable[[], dict[str, Call]]:
    def make() -> dict[str, Call]:
        problem = problem_of(Scenario("mvdr", "spherical", "reference", 1, snapped=False))
        array, _ = search.geometry_of(problem)
        boxes = kind(problem)
        highest = search.highest_on_fine_grids(problem, boxes, 1)
        calls: dict[str, Call] = {
            "risfast auto": lambda: refine_peaks(
                problem.matrix, array, boxes.low, boxes.high, loading=problem.loading, points=search.FINE_POINTS
            ),
            "loop, steering rebuilt": search.refine_by_loop(problem, boxes, peers.materialised),
            "loop, real sines and GEMM": search.refine_by_loop(problem, boxes, peers.dense_eager),
        }
        for i, (name, call) in enumerate(calls.items()):
            bound = float32_bound_db(problem) if i else our_bound_db(problem)
            require_accuracy(name, search.refinement_errors(problem, call(), highest), bound)
        return calls

    return make


def rows() -> list[Row]:
    """The rows of times. Peers after the first are there for comparison; the target is against the first."""
    fresnel = Scenario("mvdr", "fresnel", "reference", 1)
    spherical = Scenario("mvdr", "spherical", "reference", 1)
    low_rank = Scenario("mvdr_lowrank", "spherical", "reference", 1)
    torch_peers = (CACHED_GEMM, DENSE_EAGER, DENSE_COMPILED)
    return [
        Row("Capon, full rank, fresnel", 1000, _spectrum(fresnel, MATERIALISED, *torch_peers), 7, 9),
        Row("Capon, full rank, spherical", 80, _spectrum(spherical, ACOULAR, MATERIALISED, *torch_peers), 5, 7),
        Row("Capon, low rank K = 10, spherical", 400, _spectrum(low_rank, ACOULAR, *torch_peers), 5, 9),
        Row("3D maxima and suppression, 20 best", 1, _peaks, 30, 1),
        Row("refinement of 20 candidates, 41 x 41 x 41", 300, _refinement(search.detection_boxes), 3, 7),
        Row("refinement of 20 wide boxes, 41 x 41 x 41", None, _refinement(search.wide_boxes), 3, 7),
    ]


def measure_row(row: Row, rounds_scale: float) -> dict[str, Any]:
    """Times of a row, interleaved, and risfast's ratio to each peer."""
    calls = row.make()
    own, *others = calls
    rounds = max(1, round(row.rounds * rounds_scale))
    times = interleaved({name: (call, row.repeats if name == own else 1) for name, call in calls.items()}, rounds)
    summary = {name: t.summary() for name, t in times.items()}
    base = summary[own]
    ratios = {
        name: {
            clock: summary[name][f"{clock}_s"] / base[f"{clock}_s"]
            for clock in ("cpu_median", "cpu_min", "wall_median", "wall_min")
        }
        for name in others
    }
    reached = ratios[others[0]]["cpu_median"]
    return {
        "work": row.work,
        "against": others[0],
        "target": row.target,
        "ratio": reached,
        "met": None if row.target is None else reached >= row.target,
        "contestants": summary,
        "ratios": ratios,
    }


def measure_memory() -> Iterator[dict[str, Any]]:
    """Peak memory of 2.5D calls of 32 scenes, each the first call of its own process.

    By default below 400 MB above the inputs; with a budget, working memory (without the two output maps, as the budget
    is documented) within the budget.
    """
    limit_mb = 400.0
    for operation in ("mvdr", "mvdr_lowrank"):
        for wavefront, method in (("spherical", "auto"), ("fresnel", "auto"), ("spherical", "dense")):
            for budget in (None, 64, 128):
                if method == "dense" and budget == 128:
                    continue
                # Dense works through the training grid: its memory follows the tile, not the grid.
                grid = "training" if method == "dense" else "reference"
                found = probe_in_process(
                    operation=operation, wavefront=wavefront, grid=grid, batch=32, method=method, budget_mb=budget
                )
                above = found["peak_mb"] - (found["outputs_mb"] if budget else 0.0)
                allowed = budget or limit_mb / 1.048576
                yield {**found, "counted_mb": above, "allowed_mb": allowed, "met": above <= allowed}


def measure_accuracy() -> Iterator[dict[str, Any]]:
    """Errors at loading 1e-2 of what ``auto`` chooses on the reference grid, and what the plan expects."""
    bounds = {
        ("mvdr", torch.complex64): 1e-3,
        ("mvdr_lowrank", torch.complex64): 1e-2,
        ("mvdr", torch.complex128): 1e-6,
        ("mvdr_lowrank", torch.complex128): 1e-6,
    }
    for (operation, dtype), bound in bounds.items():
        for wavefront in ("spherical", "fresnel"):
            scenario = Scenario(operation, wavefront, "reference", 4, dtype)
            problem = problem_of(scenario)
            errors = measure_errors(problem, operator_call(problem)())
            made = plan(
                PlanarArray.rectangular(),
                SearchGrid.reference(),
                operation=operation,
                batch=4,
                rank=problem.matrix.shape[-1] if operation == "mvdr_lowrank" else None,
                wavefront=wavefront,
                dtype=dtype,
            )
            yield {
                "operation": operation,
                "wavefront": wavefront,
                "dtype": str(dtype).removeprefix("torch."),
                "method": made.method,
                "peaks_db": errors.peaks_db,
                "random_db": errors.random_db,
                "bound_db": bound,
                "met": errors.worst_db <= bound,
            }


def times_table(results: list[dict[str, Any]]) -> str:
    """Times and ratios as text, one line a contestant."""
    lines = []
    for result in results:
        target = "no target" if result["target"] is None else f"at least {result['target']:g} x"
        verdict = {True: "met", False: "MISSED", None: ""}[result["met"]]
        lines.append(f"{result['work']}: {target} {result['against']}, measured {result['ratio']:.4g} x  {verdict}")
        for name, t in result["contestants"].items():
            ratio = result["ratios"].get(name)
            against = "" if ratio is None else f"  {ratio['cpu_median']:8.4g} x (wall {ratio['wall_median']:.4g} x)"
            median, least = t["cpu_median_s"] * 1e3, t["cpu_min_s"] * 1e3
            lines.append(f"    {name:40s} {median:11.3f} ms median {least:11.3f} ms least{against}")
    return "\n".join(lines)


def checks_table(memory: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> str:
    """Memory and errors as text."""
    lines = ["peak memory, B = 32"]
    for m in memory:
        asked = "default budget" if m["budget_mb"] is None else f"budget {m['budget_mb']} MB"
        lines.append(
            f"    {m['operation']:13s} {m['wavefront']:10s} {m['method']:6s} {m['grid']:10s} {asked:15s} "
            f"{m['peak_mb']:6.1f} MiB above inputs, {m['outputs_mb']:5.1f} MiB of it outputs  "
            f"{'met' if m['met'] else 'MISSED'}"
        )
    lines.append("error against float64, loading 1e-2, B = 4, reference grid")
    for a in accuracy:
        worst = max(a["peaks_db"], a["random_db"])
        shown = f"{worst:.1e}" if math.isfinite(worst) else "not finite"
        lines.append(
            f"    {a['operation']:13s} {a['wavefront']:10s} {a['dtype']:10s} {a['method']:10s} {shown} dB, "
            f"bound {a['bound_db']:g} dB  {'met' if a['met'] else 'MISSED'}"
        )
    return "\n".join(lines)


def round_figures(value: Any) -> Any:
    """Four significant digits for the record: more is noise."""
    if isinstance(value, dict):
        return {key: round_figures(v) for key, v in value.items()}
    if isinstance(value, list):
        return [round_figures(v) for v in value]
    return float(np.format_float_positional(value, 4, fractional=False)) if isinstance(value, float) else value
