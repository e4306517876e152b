"""Losses of maps: focal, and the blobs that maps are held to."""

import math

import numpy as np
import pytest
import torch
from gradients import gradient_of

from risfast.errors import ShapeError
from risfast.geometry import SearchGrid
from risfast.losses import blob_heatmap, focal_heatmap

GRID = SearchGrid.training()
RNG = np.random.default_rng(77)


# focal_heatmap


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (1.0, 1.0), (0.0, 3.5)])
def test_focal_heatmap_is_the_formula(alpha, gamma):
    logits, target = RNG.normal(size=(3, 4, 5)) * 3, RNG.uniform(size=(3, 4, 5)) ** 3
    expected = []
    for z, t in zip(logits, target, strict=True):
        p = 1 / (1 + np.exp(-z))
        cell = (alpha * t + (1 - alpha) * (1 - t)) * abs(t - p) ** gamma
        cell = cell * (-t * np.log(p) - (1 - t) * np.log(1 - p))
        expected.append(cell.sum() / max(1.0, t.sum()))
    value = focal_heatmap(torch.from_numpy(logits), torch.from_numpy(target), alpha=alpha, gamma=gamma)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_focal_heatmap_is_zero_at_soft_and_hard_targets():
    soft = torch.tensor([[0.01, 0.5, 0.93]], dtype=torch.float64)
    assert float(focal_heatmap(soft.logit(), soft)) <= 1e-20
    hard = torch.tensor([[0.0, 1.0, 0.0]])
    assert float(focal_heatmap((hard * 2 - 1) * 200, hard)) == 0


def test_focal_heatmap_is_one_where_a_single_source_costs_one_nat_over_alpha():
    # p -> 0 at the only source: alpha |1 - p|^gamma (-ln p) -> -alpha z
    value = focal_heatmap(torch.tensor([[-40.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    assert float(value) == pytest.approx(0.25 * 40)
    assert float(focal_heatmap(torch.tensor([[-4.0 * 1e1]]), torch.ones(1, 1), alpha=1 / 40)) == pytest.approx(1.0)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_heatmap_has_finite_gradients_where_the_sigmoid_saturates(gamma):
    logits = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]]).repeat(3, 1)
    target = torch.tensor([0.0, 0.5, 1.0])[:, None].expand(3, 5)
    value, gradient = gradient_of(lambda z: focal_heatmap(z, target, gamma=gamma), logits)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())


def test_focal_heatmap_of_an_empty_scene_is_that_of_its_background():
    value = focal_heatmap(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    assert float(value) == pytest.approx(6 * 0.75 * 0.25 * math.log(2))


# blob_heatmap


def scene_of(*sources):
    position = torch.tensor(sources, dtype=torch.float64).reshape(1, -1, 3)
    position[..., :2] = position[..., :2].deg2rad()
    return position, torch.ones(position.shape[:2], dtype=torch.bool)


def test_blob_heatmap_is_the_formula():
    position, mask = scene_of((3.3, -7.1, 2.0), (7.0, -9.0, 5.0), (59.0, 29.0, 1.0))
    sigma = (math.radians(3.0), math.radians(1.5))
    expected = np.zeros((61, 41))
    for i, azimuth in enumerate(np.radians(np.linspace(-60, 60, 61))):
        for j, elevation in enumerate(np.radians(np.linspace(-30, 30, 41))):
            for a, e, _ in position[0].tolist():
                x, y = (azimuth - a) / sigma[0], (elevation - e) / sigma[1]
                expected[i, j] = max(expected[i, j], math.exp(-(x * x + y * y) / 2))
    np.testing.assert_allclose(blob_heatmap(position, mask, GRID, sigma_rad=sigma)[0], expected, atol=1e-12)


def test_blob_heatmap_is_one_at_sources_on_the_grid_and_zero_without_any():
    position, mask = scene_of((-20.0, 15.0, 2.0), (0.0, 0.0, 1.0))
    heat = blob_heatmap(position, mask, GRID)
    assert float(heat[0, 20, 30]) == pytest.approx(1.0)
    assert float(heat[0, 30, 20]) == pytest.approx(1.0)
    assert float(heat.max()) <= 1
    assert float(blob_heatmap(position, ~mask, GRID).max()) == 0
    assert blob_heatmap(position[:, :0], mask[:, :0], GRID).shape == (1, 61, 41)


def test_blob_heatmap_wraps_azimuth():
    circle = SearchGrid.box(72, 5, [1.0], math.radians(177.5), math.radians(10.0))
    position, mask = scene_of((179.0, 0.0, 1.0))
    heat = blob_heatmap(position, mask, circle)[0, :, 2]
    assert float(heat[0]) == pytest.approx(math.exp(-(3.5**2) / 8))
    assert float(heat[-1]) == pytest.approx(math.exp(-(1.5**2) / 8))


def test_neither_the_order_of_sources_nor_identical_or_masked_ones_change_the_blobs():
    position, mask = scene_of((10.0, 5.0, 2.0), (-30.0, 2.0, 1.0), (12.0, 6.0, 3.0))
    heat = blob_heatmap(position, mask, GRID)
    assert torch.equal(blob_heatmap(position[:, [2, 0, 1]], mask, GRID), heat)
    twice = position[:, [0, 1, 2, 0, 1]]
    assert torch.equal(blob_heatmap(twice, torch.ones(1, 5, dtype=torch.bool), GRID), heat)
    other = twice.clone()
    other[:, 3:] = 0
    assert torch.equal(blob_heatmap(other, torch.arange(5)[None] < 3, GRID), heat)


MAP = torch.zeros(1, 2, 3)
PLACE, HERE = scene_of((0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: focal_heatmap(MAP, MAP[:, :1]), ShapeError, "share a shape"),
        (lambda: focal_heatmap(MAP, MAP, alpha=2.0), ValueError, "alpha"),
        (lambda: focal_heatmap(MAP, MAP, gamma=0.5), ValueError, "gamma"),
        (lambda: focal_heatmap(MAP, MAP - 0.1), ValueError, "target must lie"),
        (lambda: focal_heatmap(MAP, MAP + math.nan), ValueError, "target must lie"),
        (lambda: blob_heatmap(PLACE, HERE, GRID, sigma_rad=(0.0, 1.0)), ValueError, "sigma_rad"),
        (lambda: blob_heatmap(PLACE[..., :2], HERE, GRID), ShapeError, "position must have shape"),
        (lambda: blob_heatmap(PLACE, HERE[0], GRID), ShapeError, "mask must have shape"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
