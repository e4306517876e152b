"""Every operator and method beside its peers: two grids, one scene and thirty-two.

Peers come first, so that the ratio to the best of them is known when risfast is timed. On the reference grid they take
one scene at a time: then the ratio is of points per second, and ``peer_batch`` says so.
"""

import pytest
import torch

from bench.accuracy import measure_errors
from bench.contest import Match
from bench.peers import OPERATIONS
from bench.scenarios import BATCHES, GRIDS, METHODS, PEERS, Scenario, forget_plans, ours, problem_of

pytestmark = pytest.mark.full


def cases():
    for operation in OPERATIONS:
        for wavefront in METHODS:
            for grid in GRIDS:
                for batch in BATCHES:
                    field = PEERS if grid == "training" or batch == 1 else ()
                    for contestant in (*field, *(ours(method) for method in METHODS[wavefront])):
                        name = f"{operation}-{wavefront}-{grid}-B{batch}-{contestant.name}".replace(" ", "_")
                        yield pytest.param(Scenario(operation, wavefront, grid, batch), contestant, id=name)


@pytest.mark.parametrize(("scenario", "contestant"), list(cases()))
def test_operator(contest, scenario, contestant):
    problem = problem_of(scenario)
    reason = contestant.unavailable(problem)
    if reason is not None:
        pytest.skip(reason)
    if contestant.needs_warming:
        contestant.prepare(problem)()
    forget_plans()
    peers_are_alone = scenario.grid == "reference" and scenario.batch > 1
    peer_group = scenario.title.replace(f"B = {scenario.batch}", "B = 1") if peers_are_alone else None
    contest(
        Match(scenario.title, problem.batch * problem.size, problem.batch, peer_group),
        contestant.name,
        lambda: contestant.prepare(problem),
        lambda result: measure_errors(problem, result),
        contestant.bound_db(problem),
        is_peer=contestant.is_peer,
    )


@pytest.mark.parametrize("wavefront", METHODS)
@pytest.mark.parametrize("operation", ["mvdr", "mvdr_lowrank"])
def test_operator_in_double_precision(contest, operation, wavefront):
    scenario = Scenario(operation, wavefront, "reference", 1, torch.complex128)
    problem, contestant = problem_of(scenario), ours()
    forget_plans()
    contest(
        Match(scenario.title, problem.size, 1, scenario.title.replace(", complex128", "")),
        contestant.name,
        lambda: contestant.prepare(problem),
        lambda result: measure_errors(problem, result),
        contestant.bound_db(problem),
        is_peer=False,
    )
