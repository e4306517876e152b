"""Every operator and method beside its peers: two grids, one scene and thirty-two.

Peers come first, so that the ratio to the best of them is known when risfast is timed. On the reference grid they take
one scene at a time: then the ratio is of points per second, and ``peer_batch`` says so.
"""

import itertools

import pytest
import torch

from bench.accuracy import measure_errors
from bench.contest import Match
from bench.peers import OPERATIONS
from bench.scenarios import BATCHES, GRIDS, METHODS, PEERS, Scenario, forget_plans, ours, problem_of

pytestmark = pytest.mark.full


def cases():
    for operation, wavefront, grid, batch in itertools.product(OPERATIONS, METHODS, GRIDS, BATCHES):
        field = PEERS if grid == "training" or batch == 1 else ()
        for contestant in (*field, *(ours(method) for method in METHODS[wavefront])):
            yield Scenario(operation, wavefront, grid, batch), contestant
    for operation, wavefront in itertools.product(("mvdr", "mvdr_lowrank"), METHODS):
        yield Scenario(operation, wavefront, "reference", 1, torch.complex128), ours()


def named(value):
    return (value.title if isinstance(value, Scenario) else value.name).replace(" ", "_")


@pytest.mark.parametrize(("scenario", "contestant"), list(cases()), ids=named)
def test_operator(contest, scenario, contestant):
    problem = problem_of(scenario)
    reason = contestant.unavailable(problem)
    if reason is not None:
        pytest.skip(reason)
    if contestant.needs_warming:
        contestant.prepare(problem)()
    forget_plans()
    peer_group = scenario.title.replace(", complex128", "")
    if scenario.grid == "reference":  # the peers took one scene
        peer_group = peer_group.replace(f"B = {scenario.batch}", "B = 1")
    contest(
        Match(scenario.title, problem.batch * problem.size, problem.batch, peer_group),
        contestant.name,
        lambda: contestant.prepare(problem),
        lambda result: measure_errors(problem, result),
        contestant.bound_db(problem),
        is_peer=contestant.is_peer,
        once=contestant.once,
    )
