"""What a step learns from is a function of the seed and the step."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_backbone import TINY

from risfast.train.batches import FlySource, plan_batch
from risfast.train.config import DataOptions

DATA = DataOptions(snapshots=(6, 9, 12), weights=(0.5, 0.3, 0.2), noise_known=0.25, seed=5)


def test_batches_do_not_depend_on_the_order_they_are_planned_in_or_on_global_state() -> None:
    forward = [plan_batch(DATA, 8, step) for step in range(20)]
    torch.manual_seed(99)
    torch.rand(7)
    for step in reversed(range(20)):
        again = plan_batch(DATA, 8, step)
        assert (again.n_snapshots, again.noise_known) == (forward[step].n_snapshots, forward[step].noise_known)
        assert torch.equal(again.indices, forward[step].indices)


def test_no_scene_is_seen_twice_without_a_pool() -> None:
    seen = torch.cat([plan_batch(DATA, 8, step).indices for step in range(50)])
    assert torch.equal(seen.sort().values, torch.arange(400))


def test_a_pool_comes_round() -> None:
    data = DataOptions(snapshots=(6,), weights=(1.0,), pool=20)
    seen = torch.cat([plan_batch(data, 8, step).indices for step in range(5)])
    assert torch.equal(seen.bincount(), torch.full((20,), 2))


def test_shares_are_those_asked_for() -> None:
    steps = 4000
    plans = [plan_batch(DATA, 1, step) for step in range(steps)]
    shares = {6: 0.5, 9: 0.3, 12: 0.2}
    for n, share in shares.items():
        count = sum(plan.n_snapshots == n for plan in plans)
        assert abs(count - steps * share) < 4.5 * math.sqrt(steps * share * (1 - share))  # 4.5 sigma of a binomial
    known = sum(plan.noise_known for plan in plans)
    assert abs(known - 1000) < 4.5 * math.sqrt(steps * 0.25 * 0.75)


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_the_noise_is_never_or_always_known_at_the_ends(share: float, expected: bool) -> None:
    data = DataOptions(noise_known=share)
    assert all(plan_batch(data, 1, step).noise_known is expected for step in range(200))


def test_a_weight_of_zero_is_never_drawn() -> None:
    data = DataOptions(snapshots=(6, 9), weights=(0.0, 2.0))
    assert {plan_batch(data, 1, step).n_snapshots for step in range(200)} == {9}


def test_the_parts_of_a_batch_are_the_batch() -> None:
    batch = plan_batch(DATA, 12, 3)
    parts = [batch.part(i, 4) for i in range(4)]
    assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)
    assert {part.n_snapshots for part in parts} == {batch.n_snapshots}


def test_a_scene_made_on_the_fly_is_the_same_in_any_batch() -> None:
    source = FlySource(lambda n: TINY.system.system(n, ("random",)), 3)
    together = source.scenes(6, torch.arange(4), torch.device("cpu"))
    alone = source.scenes(6, torch.tensor([2]), torch.device("cpu"))
    assert together.config.n_snapshots == 6
    torch.testing.assert_close(together.y[2:3], alone.y, rtol=1e-6, atol=1e-6)
