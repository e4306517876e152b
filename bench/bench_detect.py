"""Detection from a covariance to sources, beside the same steps put together from plain parts.

The gate: F1 of at least 0.95 with hits within 5 degrees, 5 degrees and 1 m, and powers that are right in dB at the
positions that are named. Points are those of the coarse grid.
"""

import math

import pytest

from bench import search
from bench.accuracy import Errors
from bench.contest import Match
from bench.scenarios import (
    GRIDS,
    SOURCES,
    Scenario,
    float32_bound_db,
    forget_plans,
    our_bound_db,
    problem_of,
    true_scenes,
)
from risfast.detect import detect_sources, detect_sources_lowrank

LEAST_F1 = 0.95


def detect(problem):
    array, grid = search.geometry_of(problem)
    run = detect_sources_lowrank if problem.operation == "mvdr_lowrank" else detect_sources
    return lambda: run(problem.matrix, array, grid, loading=problem.loading, wavefront=problem.wavefront)


def check(problem, truth, found):
    """Errors of the named powers; infinite where too few sources are hit."""
    worst = max(search.power_error_db(problem, b, s.position, s.power) for b, s in enumerate(found))
    return Errors(worst, 0.0 if search.f1_of(found, truth) >= LEAST_F1 else math.inf)


def scenario_of(operation, grid, batch):
    return Scenario(operation, "spherical", grid, batch, rank=SOURCES, snapped=False)


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("operation", ["mvdr", "mvdr_lowrank"])
@pytest.mark.parametrize("contestant", ["plain parts", "risfast"])
def test_detection(contest, operation, grid, batch, contestant):
    is_peer = contestant == "plain parts"
    if is_peer and (batch > 1 or operation != "mvdr"):
        pytest.skip("the peer is timed on one scene, from its covariance")
    scenario = scenario_of(operation, grid, batch)
    problem, truth = problem_of(scenario), true_scenes(SOURCES, "spherical", batch).position
    forget_plans()
    peer_group = f"detection, {scenario_of('mvdr', grid, 1).title}"
    contest(
        Match(f"detection, {scenario.title}", problem.batch * problem.size, batch, peer_group),
        contestant,
        (lambda: search.detect_by_plain_parts(problem)) if is_peer else lambda: detect(problem),
        lambda found: check(problem, truth, found),
        float32_bound_db(problem) if is_peer else our_bound_db(problem),
        is_peer=is_peer,
    )
