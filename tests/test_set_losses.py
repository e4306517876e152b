"""Losses between sets of positions: matched before compared."""

import itertools
import math

import numpy as np
import pytest
import torch
from gradients import gradient_of

from risfast.errors import ShapeError
from risfast.losses import angle_chamfer, assign_sources, position_huber

SCALE = (math.radians(5.0), math.radians(5.0), 0.2)


def draw(seed, batch, count):
    """Random positions (B, K, 3)."""
    rng = np.random.default_rng(seed)
    low, high = np.array([-3.1, -1.2, 0.5]), np.array([3.1, 1.2, 10.0])
    return torch.from_numpy(rng.uniform(low, high, (batch, count, 3)))


def masks(batch, count, seed=0):
    """Masks with every number of sources from none to all, in no order."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(count) < (torch.arange(batch) % (count + 1))[:, None]
    return torch.stack([row[torch.randperm(count, generator=generator)] for row in mask])


# assign_sources


@pytest.mark.parametrize(("slots", "sources"), [(1, 1), (5, 5), (5, 3), (4, 0), (6, 6), (8, 5)])
def test_the_assignment_costs_least_of_all(slots, sources):
    cost = torch.from_numpy(np.random.default_rng(slots).normal(size=(7, slots, sources)))
    mask = masks(7, sources)
    chosen = assign_sources(cost, mask)
    for b in range(7):
        present = mask[b].nonzero()[:, 0].tolist()
        assert chosen[b][~mask[b]].tolist() == [-1] * (sources - len(present))
        mine = chosen[b][mask[b]].tolist()
        assert len(set(mine)) == len(mine)
        paid = sum(float(cost[b, p, k]) for p, k in zip(mine, present, strict=True))
        least = min(
            sum(float(cost[b, p, k]) for p, k in zip(order, present, strict=True))
            for order in itertools.permutations(range(slots), len(present))
        )
        assert paid == pytest.approx(least)


@pytest.mark.parametrize("slots", [5, 6])
def test_a_cost_that_is_not_finite_does_not_fail_the_assignment(slots):
    cost = torch.full((2, slots, 3), math.nan)
    cost[1] = math.inf
    chosen = assign_sources(cost, torch.ones(2, 3, dtype=torch.bool))
    assert all(len(set(row)) == 3 for row in chosen.tolist())


def test_an_empty_batch_is_assigned():
    for slots in (3, 9):
        assert assign_sources(torch.zeros(0, slots, 2), torch.zeros(0, 2, dtype=torch.bool)).shape == (0, 2)


# position_huber


def huber_by_loops(predicted, truth):
    """Of one scene without masked sources, over all orders."""

    def cost(p, t):
        azimuth = math.remainder(p[0] - t[0], 2 * math.pi)
        errors = (azimuth / SCALE[0], (p[1] - t[1]) / SCALE[1], math.log(p[2] / t[2]) / SCALE[2])
        return sum(x * x / 2 if abs(x) <= 1 else abs(x) - 0.5 for x in errors)

    if not truth:
        return 0.0
    orders = itertools.permutations(predicted, len(truth))
    return min(sum(cost(p, t) for p, t in zip(order, truth, strict=True)) for order in orders) / len(truth)


@pytest.mark.parametrize("slots", [4, 6])
def test_position_huber_is_the_formula_under_the_best_order(slots):
    predicted, position, mask = draw(1, 9, slots), draw(2, 9, 4), masks(9, 4)
    predicted[:, :2] = position[:, 1:3] + 0.03
    expected = [huber_by_loops(predicted[b].tolist(), position[b][mask[b]].tolist()) for b in range(9)]
    np.testing.assert_allclose(position_huber(predicted, position, mask), expected, rtol=1e-12)


def test_position_huber_is_zero_at_the_truth_in_any_order_with_slots_to_spare():
    position, mask = draw(3, 6, 5), masks(6, 5)
    predicted = torch.cat([draw(4, 6, 2), position[:, [3, 1, 4, 0, 2]]], 1)
    assert float(position_huber(predicted, position, mask).max()) <= 1e-12


def test_position_huber_is_one_where_one_coordinate_is_off_by_one_and_a_half_scales():
    position, mask = draw(5, 3, 2), torch.ones(3, 2, dtype=torch.bool)
    predicted = position.clone()
    predicted[0, :, 0] += 1.5 * SCALE[0]
    predicted[1, :, 1] -= 1.5 * SCALE[1]
    predicted[2, :, 2] *= math.exp(1.5 * SCALE[2])
    torch.testing.assert_close(position_huber(predicted, position, mask), torch.ones(3, dtype=torch.float64))


def test_position_huber_wraps_azimuth_and_its_gradient_goes_the_short_way():
    position = torch.tensor([[[math.pi - 0.01, 0.0, 1.0]]], dtype=torch.float64)
    predicted = torch.tensor([[[-math.pi + 0.01, 0.0, 1.0]]], dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    value, gradient = gradient_of(lambda p: position_huber(p, position, mask), predicted)
    assert float(value) == pytest.approx((0.02 / SCALE[0]) ** 2 / 2)
    assert float(gradient[0, 0, 0]) == pytest.approx(0.02 / SCALE[0] ** 2)


def test_the_order_of_sources_or_predictions_never_changes_a_set_loss():
    predicted, position, mask = draw(6, 8, 5), draw(7, 8, 5), masks(8, 5)
    for loss in (position_huber, angle_chamfer):
        expected = loss(predicted, position, mask)
        order = [2, 4, 0, 3, 1]
        torch.testing.assert_close(loss(predicted, position[:, order], mask[:, order]), expected)
        torch.testing.assert_close(loss(predicted[:, order], position, mask), expected)


@pytest.mark.parametrize("loss", [position_huber, angle_chamfer])
def test_what_masked_rows_hold_does_not_matter(loss):
    predicted, position, mask = draw(8, 8, 5), draw(9, 8, 5), masks(8, 5)
    expected, slope = gradient_of(lambda p: loss(p, position, mask), predicted)
    for filling in (0.0, math.nan, 1e30):
        filled = torch.where(mask[..., None], position, torch.full_like(position, filling))
        value, gradient = gradient_of(lambda p, filled=filled: loss(p, filled, mask), predicted)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("loss", [position_huber, angle_chamfer])
@pytest.mark.parametrize("sources", [0, 2])
def test_set_losses_have_finite_gradients_at_identical_and_absent_sources(loss, sources):
    same = torch.tensor([0.3, 0.2, 2.0]).expand(2, 3, 3)
    predicted = same.clone()
    predicted[1, 0, 2] = 0.0  # a range whose logarithm is cut off
    mask = (torch.arange(3) < sources).expand(2, 3)
    value, gradient = gradient_of(lambda p: loss(p, same, mask), predicted)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())
    assert float(value[0]) == 0
    assert sources or bool((gradient == 0).all())


@pytest.mark.parametrize("loss", [position_huber, angle_chamfer])
def test_gradients_of_the_set_losses_are_those_of_finite_differences(loss):
    predicted, position, mask = draw(10, 3, 4).requires_grad_(), draw(11, 3, 3), masks(3, 3)
    assert torch.autograd.gradcheck(lambda p: loss(p, position, mask), predicted)


# angle_chamfer


def test_angle_chamfer_is_the_formula():
    predicted, position, mask = draw(12, 9, 6), draw(13, 9, 4), masks(9, 4)
    present = masks(9, 6, seed=1).flip(0)

    def cosine(p, t):
        return math.sin(p[1]) * math.sin(t[1]) + math.cos(p[1]) * math.cos(t[1]) * math.cos(p[0] - t[0])

    expected = []
    for b in range(9):
        here, there = predicted[b][present[b]].tolist(), position[b][mask[b]].tolist()
        if not here or not there:
            expected.append(0.0)
            continue
        table = np.array([[1 - cosine(p, t) for t in there] for p in here])
        expected.append((table.min(0).mean() + table.min(1).mean()) / 2)
    value = angle_chamfer(predicted, position, mask, predicted_mask=present)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-14)


def test_angle_chamfer_is_zero_where_the_directions_are_the_same_and_one_at_right_angles():
    position, mask = draw(14, 4, 3), torch.ones(4, 3, dtype=torch.bool)
    predicted = position[:, [2, 0, 1, 1]] * torch.tensor([1.0, 1.0, 7.0], dtype=torch.float64)
    predicted[..., 0] += 2 * math.pi
    assert float(angle_chamfer(predicted, position, mask).max()) <= 1e-14
    ahead = torch.zeros(1, 2, 3, dtype=torch.float64)
    aside = torch.tensor([[[math.pi / 2, 0.0, 1.0], [0.0, -math.pi / 2, 1.0]]], dtype=torch.float64)
    assert float(angle_chamfer(aside, ahead, torch.ones(1, 2, dtype=torch.bool))) == pytest.approx(1.0)


def test_angle_chamfer_of_empty_axes_is_zero_and_differentiable():
    position, mask = draw(15, 2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert angle_chamfer(position[:, :0], position, mask).tolist() == [0, 0]
    value, gradient = gradient_of(lambda p: angle_chamfer(p, position[:, :0], mask[:, :0]), position)
    assert value.tolist() == [0, 0]
    assert bool((gradient == 0).all())


POSITION, MASK = draw(16, 2, 3), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: position_huber(POSITION[:, :2], POSITION, MASK), ShapeError, "2 predictions .* up to 3 sources"),
        (lambda: position_huber(POSITION[:1], POSITION, MASK), ShapeError, "predicted must have shape"),
        (lambda: position_huber(POSITION.cfloat(), POSITION, MASK), TypeError, "predicted must be a real"),
        (lambda: position_huber(POSITION, POSITION, MASK, scale=(1.0, 0.0, 1.0)), ValueError, "scale"),
        (lambda: position_huber(POSITION, POSITION, MASK.int()), TypeError, "mask must be a bool"),
        (lambda: angle_chamfer(POSITION, POSITION[..., :2], MASK), ShapeError, "position must have shape"),
        (lambda: angle_chamfer(POSITION, POSITION, MASK, predicted_mask=MASK[:, :2]), ShapeError, "mask must have"),
        (lambda: assign_sources(torch.zeros(2, 3), MASK), ShapeError, "must belong together"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
