"""False alarms of noise at the rate that is asked for, and one source for one on small arrays."""

import math

import numpy as np
import oracles
import pytest
import torch

from risfast import Region, SearchGrid, SensorArray, Setup, detect_sources, detect_sources_lowrank
from risfast.detect import share_limits, significant

RING = SensorArray.circular(9, 0.22, 0.3, plane="xz")
LINE = SensorArray.linear(6, 0.15, 0.3)
AXES = ("azimuth_rad", "elevation_rad", "range_m")
ARRAYS = {
    f"{name}{n}": make(n)
    for n in (6, 9, 12)
    for name, make in (
        ("line", lambda n: SensorArray.linear(n, 0.15, 0.3)),
        ("ring", lambda n: SensorArray.circular(n, 0.075 / math.sin(math.pi / n), 0.3, plane="xz")),
    )
}


def complex_normal(random, *shape):
    return (random.standard_normal(shape) + 1j * random.standard_normal(shape)) / math.sqrt(2)


def covariances(array, points, snapshots, *, noise=1.0, seed=0):
    """Sample covariances (B, N, N) of unit sources at points (B, K, 3) in white noise."""
    random = np.random.default_rng(seed)
    b, k, _ = points.shape
    a = oracles.steering(array.positions_m.numpy(), array.wavelength_m, points)
    x = complex_normal(random, b, snapshots, k) @ a
    x = x + math.sqrt(noise) * complex_normal(random, b, snapshots, array.n_elements)
    return torch.from_numpy(np.einsum("bln,blm->bnm", x, x.conj()) / snapshots)


def noise_covariances(array, scenes, snapshots, seed=0):
    return covariances(array, np.ones((scenes, 0, 3)), snapshots, seed=seed)


def points_in(region, scenes, seed=0):
    """Uniform in the angles and in 1/range, (B, 1, 3)."""
    share = np.random.default_rng(seed).uniform(size=(scenes, 1, 3))
    ends = np.array([region.azimuth_rad, region.elevation_rad, 1 / np.array(region.range_m)])
    place = ends[:, 0] + share * (ends[:, 1] - ends[:, 0])
    place[..., 2] = 1 / place[..., 2]
    return place


@pytest.mark.parametrize(("array", "snapshots"), [(RING, 1), (LINE, 3), (LINE, 60)], ids=["ring1", "line3", "line60"])
def test_noise_makes_false_alarms_at_the_rate_that_is_asked_for(array, snapshots):
    R = noise_covariances(array, 400, snapshots, seed=snapshots)
    found = detect_sources(R, Setup(array), snapshots=snapshots, false_alarm=0.1)
    assert 20 <= sum(len(sources) > 0 for sources in found) <= 80  # 40, within a factor of two


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_one_strong_source_near_a_small_array_is_one_source(array):
    setup = Setup(array)
    points = points_in(setup.region, 60)
    found = detect_sources(covariances(array, points, 100, noise=1e-2), setup, snapshots=100)
    single = [len(sources) == 1 for sources in found]
    assert sum(single) >= 57
    # Toward the ends of a line the azimuth is not resolved; its sine is.
    error = [
        abs(math.sin(float(sources.azimuth[0])) - math.sin(point[0, 0]))
        for sources, point, one in zip(found, points, single, strict=True)
        if one
    ]
    assert np.median(error) < 0.02


def test_a_weak_source_beside_a_strong_one_is_found_where_the_median_of_the_map_hides_it():
    points = np.array([[[-0.5, 0.0, 3.0], [0.6, 0.0, 2.0]]])
    random = np.random.default_rng(3)
    a = oracles.steering(LINE.positions_m.numpy(), 0.3, points)
    x = (complex_normal(random, 1, 200, 2) * [1.0, 0.4]) @ a + 0.5 * complex_normal(random, 1, 200, 6)
    R = torch.from_numpy(np.einsum("bln,blm->bnm", x, x.conj()) / 200)
    (blind,) = detect_sources(R, Setup(LINE))
    (told,) = detect_sources(R, Setup(LINE), snapshots=200)
    assert len(blind) < 2
    np.testing.assert_allclose(np.sort(told.azimuth.numpy()), points[0, :, 0], atol=0.06)


def test_the_answer_depends_neither_on_scale_nor_on_the_form_of_the_covariance():
    random = np.random.default_rng(4)
    a = oracles.steering(RING.positions_m.numpy(), 0.3, np.array([[1.0, 0.0, 2.0]]))
    x = complex_normal(random, 4, 1) @ a + 0.1 * complex_normal(random, 4, 9)
    factor = torch.from_numpy(x.T / 2)
    R = factor @ factor.mH
    (plain,) = detect_sources(R, Setup(RING), snapshots=4)
    assert len(plain) == 1
    for (other,) in (
        detect_sources(R * 1e9, Setup(RING), snapshots=4),
        detect_sources_lowrank(factor, Setup(RING), snapshots=4),
    ):
        torch.testing.assert_close(other.position, plain.position, atol=1e-5, rtol=1e-4)


def test_a_grid_of_its_own_is_tested_over_its_own_region():
    narrow = Setup(RING, Region((-0.5, 0.5), (0.0, 0.0), (1.0, 8.0)))
    R = noise_covariances(RING, 200, 20, seed=8)
    for setup, grid in ((narrow, None), (RING, SearchGrid(*[getattr(narrow.search_grid(), axis) for axis in AXES]))):
        found = detect_sources(R, setup, grid, snapshots=20, false_alarm=0.1)
        assert 10 <= sum(len(sources) > 0 for sources in found) <= 40


@pytest.mark.parametrize(("n", "snapshots"), [(2, 1), (6, 3), (5, 40)])
def test_noise_has_the_share_of_the_limit_in_one_beam_with_the_probability_asked_for(n, snapshots):
    limits = share_limits(n, snapshots, 1.0, 0.1, 3)
    assert len(limits) == min(3, n - 1)
    random = np.random.default_rng(5)
    for before, limit in enumerate(limits):
        power = np.abs(complex_normal(random, 20000, snapshots, n - before)) ** 2
        share = power[..., 0].sum(1) / power.sum((1, 2))
        assert 0.09 < (share > limit).mean() < 0.11


def test_a_candidate_that_the_sources_account_for_is_none():
    """A side lobe, and a second copy of a peak."""
    places = np.array([[0.3, 0.0, 2.0], [-0.6, 0.0, 2.0], [0.9, 0.0, 2.0], [0.3, 0.0, 2.0]])
    a = oracles.steering(RING.positions_m.numpy(), 0.3, places)
    R = oracles.source_covariance(a[:2], [1.0, 0.5], 0.1).reshape(1, 9, 9)
    kept = significant(torch.from_numpy(R), torch.from_numpy(a.T[None]), share_limits(9, 100, 100.0, 0.01, 4), 1e-2)
    assert kept[0, :2].tolist() == [True, True] or kept[0, 1:].tolist() == [True, False, True]
    assert int(kept.sum()) == 2
    assert not bool(kept[0, 2])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"snapshots": 0}, "snapshots must be a whole number of at least 1, got 0"),
        ({"snapshots": 2.5}, "snapshots must be a whole number"),
        ({"snapshots": True}, "snapshots must be a whole number"),
        ({"snapshots": 5, "false_alarm": 0.0}, "false_alarm must be a probability between 0 and 1, got 0.0"),
        ({"snapshots": 5, "false_alarm": math.nan}, "false_alarm must be a probability"),
    ],
)
def test_what_makes_no_test_is_refused(told, message):
    with pytest.raises(ValueError, match=message):
        detect_sources(torch.eye(9) + 0j, Setup(RING), **told)
