"""The rows of ``python -m bench.compare``, one contestant after another: risfast and its best peers.

The peers come first, so that the ratio to the best of them is known when risfast is timed.
"""

from __future__ import annotations

import resource
import statistics

import pytest

from bench import worker
from bench.contest import Entry, Match
from bench.measure import Worker, risfast_tree, saved
from bench.rows import OWN, problem_of_row, rows
from bench.scenarios import Contestant, forget_plans, our_bound_db


def cases():
    for row in rows():
        own = Contestant(OWN, False, lambda problem, row=row: worker.call_of(row.task.job(problem)), our_bound_db)
        for contestant in (*row.peers, own):
            name = f"{row.work}-{contestant.name}".replace(" ", "_")
            yield pytest.param(row, contestant, id=name, marks=[pytest.mark.full] * row.full)


@pytest.mark.parametrize(("row", "contestant"), list(cases()))
def test_row(contest, row, contestant):
    problem = problem_of_row(row)
    reason = contestant.unavailable(problem)
    if reason is not None:
        pytest.skip(reason)
    row.task.job(problem)  # boxes and volumes are not the contestant's
    forget_plans()
    contest(
        Match(row.work, problem.batch, problem.batch),
        contestant.name,
        lambda: contestant.prepare(problem),
        lambda found: row.task.check(problem, worker.plain(found)),
        contestant.bound_db(problem),
        is_peer=contestant.is_peer,
        once=contestant.once,
    )


def seconds_of_children():
    """Processor time of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.benchmark(group="a process that makes one map", timer=seconds_of_children)
def test_first_call(benchmark, registry):
    """What a process pays for its first map beyond ``import torch``: the median of three processes."""
    row, firsts = rows()[0], []
    problem = problem_of_row(row)
    with saved(row.task.job(problem)) as job:

        def first_call():
            with Worker(job, risfast_tree()) as process:
                firsts.append(process.first)

        benchmark.pedantic(first_call, rounds=3)
        with Worker(job, risfast_tree()) as process:
            errors = row.task.check(problem, process.result())
    assert errors.worst_db <= our_bound_db(problem)
    seconds, mib = (statistics.median(first[key] for first in firsts) for key in ("first_s", "first_mib"))
    benchmark.extra_info.update(first_call_s=seconds, first_call_mib=mib)
    group = "first map of a process, beyond import torch"
    registry.entries.append(Entry(group, OWN, False, 1, seconds, 1 / seconds, mib, errors))
