"""Refinement of 20 candidates a scene on 41 x 41 x 41 points each, beside the loop that evaluates every point."""

from functools import lru_cache

import pytest

from bench import peers, search
from bench.contest import Match
from bench.scenarios import Scenario, float32_bound_db, our_bound_db, problem_of
from risfast.ops.refinement import refine_peaks

BOXES = {"detection": search.detection_boxes, "wide": search.wide_boxes}
LOOPS = {"loop, steering rebuilt": peers.materialised, "loop, real sines and GEMM": peers.dense_eager}
FINE = 41**3


@lru_cache(maxsize=2)
def truth(scenario, kind):
    """Problem, boxes and the highest power in each box of the first scene."""
    problem = problem_of(scenario)
    boxes = BOXES[kind](problem)
    return problem, boxes, search.highest_on_fine_grids(problem, boxes, 1)


def refine(problem, boxes):
    array, _ = search.geometry_of(problem)
    return lambda: refine_peaks(
        problem.matrix,
        array,
        boxes.low,
        boxes.high,
        factored=problem.operation == "mvdr_lowrank",
        loading=problem.loading,
        wavefront=problem.wavefront,
        points=search.FINE_POINTS,
    )


CASES = [
    (operation, wavefront, "detection")
    for operation in ("mvdr", "mvdr_lowrank")
    for wavefront in ("spherical", "fresnel")
]


@pytest.mark.parametrize("contestant", [*LOOPS, "risfast"])
@pytest.mark.parametrize(("operation", "wavefront", "kind"), [*CASES, ("mvdr", "spherical", "wide")])
def test_refinement(contest, operation, wavefront, kind, contestant):
    scenario = Scenario(operation, wavefront, "reference", 1, snapped=False)
    problem, boxes, highest = truth(scenario, kind)
    is_peer = contestant in LOOPS
    contest(
        Match(f"refinement of 20 {kind} boxes, {scenario.title}", boxes.low.shape[1] * FINE, 1),
        contestant,
        (lambda: search.refine_by_loop(problem, boxes, LOOPS[contestant]))
        if is_peer
        else lambda: refine(problem, boxes),
        lambda found: search.refinement_errors(problem, found, highest),
        float32_bound_db(problem) if is_peer else our_bound_db(problem),
        is_peer=is_peer,
    )


@pytest.mark.parametrize("operation", ["mvdr", "mvdr_lowrank"])
def test_refinement_of_a_batch(contest, operation):
    """32 scenes; each is checked at the positions that it names, the first also against its fine grids."""
    scenario = Scenario(operation, "spherical", "reference", 32, snapped=False)
    problem, boxes, highest = truth(scenario, "detection")
    alone = Scenario(operation, "spherical", "reference", 1, snapped=False)
    name = "refinement of 20 detection boxes"
    points = problem.batch * boxes.low.shape[1] * FINE
    contest(
        Match(f"{name}, {scenario.title}", points, problem.batch, f"{name}, {alone.title}"),
        "risfast",
        lambda: refine(problem, boxes),
        lambda found: search.refinement_errors(problem, found, highest),
        our_bound_db(problem),
        is_peer=False,
    )
