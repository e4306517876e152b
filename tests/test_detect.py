"""Detection on full-size scenes: how many sources, where, and what must not change the answer."""

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.covariance import effective_covariance, ls_covariance
from risfast.detect import DetectionOptions, detect_sources, detect_sources_lowrank
from risfast.errors import ShapeError
from risfast.evaluate import match, summarise
from risfast.geometry import Region, SearchGrid, SensorArray
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig, generate_scenes

SURFACE = SensorArray.rectangular()
POSITIONS = oracles.rectangular(12, 12)
TRAINING = SearchGrid.training()
SETUP = SystemConfig().setup  # the surface, over the region of the simulator
GRIDS = {"reference": None, "training": TRAINING}
SEED = 90817
SCENES = 200


def covariance_of(*sources, power=None, noise=0.0, wavefront="spherical", dtype=torch.complex64):
    """Covariance (1, 144, 144) and positions (K, 3) of sources in (degrees, degrees, metres)."""
    position = np.array(sources, float)
    position[:, :2] = np.radians(position[:, :2])
    a = oracles.steering(POSITIONS, 0.3, position, wavefront)
    R = oracles.source_covariance(a, np.ones(len(position)) if power is None else power, noise)
    return torch.from_numpy(R[None]).to(dtype), torch.from_numpy(position)


def scenes_of(count, seed=SEED, **system):
    return generate_scenes(SystemConfig(**system), seed, range(count))


def exact_covariance(scenes):
    """The true covariance to the last digit of float64."""
    factor = scenes.true_factor().to(torch.complex128)
    return factor @ factor.mH


def matches_of(found, scenes):
    return [match(s.position, scenes.position[b][scenes.mask[b]]) for b, s in enumerate(found)]


def assert_found(sources, truth, angle_deg, range_m):
    """As many as there are, each within these errors."""
    result = match(sources.position, truth)
    assert (len(sources), result.hits) == (len(truth), len(truth))
    error = np.abs(result.error)
    assert error[:, :2].max() <= math.radians(angle_deg)
    assert error[:, 2].max() <= range_m


def assert_same_sources(actual, expected, rtol=1e-5):
    """The same in the same order; angles to a hundred-thousandth of a radian, range and power relatively."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert len(a) == len(b)
        torch.testing.assert_close(a.azimuth, b.azimuth, atol=rtol, rtol=0)
        torch.testing.assert_close(a.elevation, b.elevation, atol=rtol, rtol=0)
        torch.testing.assert_close(a.range, b.range, atol=0, rtol=10 * rtol)
        torch.testing.assert_close(a.power, b.power, atol=0, rtol=10 * rtol)


def test_two_hundred_random_scenes_are_solved_from_their_true_covariances():
    matches = []
    for start in range(0, SCENES, 25):
        scenes = generate_scenes(SystemConfig(), SEED, range(start, start + 25))
        matches += matches_of(detect_sources(scenes.true_covariance(), SETUP), scenes)
    result = summarise(matches)
    assert result.scenes == SCENES
    assert result.f1 >= 0.98
    assert math.degrees(result.rmse_azimuth_rad) <= 0.05
    assert math.degrees(result.rmse_elevation_rad) <= 0.05
    assert result.rmse_range_m <= 0.06


def test_the_training_grid_finds_what_the_reference_grid_finds():
    scenes = scenes_of(40)
    result = summarise(matches_of(detect_sources(scenes.true_covariance(), SURFACE, TRAINING), scenes))
    assert result.f1 >= 0.98
    assert math.degrees(result.rmse_azimuth_rad) <= 0.05
    assert result.rmse_range_m <= 0.06


def test_fresnel_scenes_are_solved_with_the_fresnel_wavefront_and_not_with_another():
    scenes = scenes_of(20, wavefront="fresnel", range_m=(0.5, 3.0))
    R = scenes.true_covariance()
    right = summarise(matches_of(detect_sources(R, SURFACE, TRAINING, wavefront="fresnel"), scenes))
    wrong = summarise(matches_of(detect_sources(R, SURFACE, TRAINING), scenes))
    assert right.f1 >= 0.98
    assert right.rmse_range_m <= 0.06
    assert wrong.f1 < 0.9


def test_a_plane_wave_has_a_direction_and_no_range():
    R, truth = covariance_of((20, -10, 4.0), wavefront="planar")
    for setup, how in ((SETUP.replace(wavefront="planar"), {}), (SURFACE, {"wavefront": "planar"})):
        (found,) = detect_sources(R, setup, **how)
        assert len(found) == 1
        torch.testing.assert_close(found.position[0, :2], truth[0, :2], atol=1e-4, rtol=0)
        assert found.at_edge.tolist() == [False]


def test_a_bare_array_is_searched_over_all_that_it_can_tell_apart():
    """Half of the space before it, out to the far field; the region of a setup ends where it ends."""
    R, truth = covariance_of((-75, 50, 3.0), (40, -45, 0.8), (10, 5, 25.0), noise=1e-3)
    (found,) = detect_sources(R, SURFACE)
    assert_found(found, truth, angle_deg=0.02, range_m=0.1)
    (same,) = detect_sources(R, Setup(SURFACE))
    assert torch.equal(same.position, found.position)
    assert found.at_edge.tolist() == same.at_edge.tolist() == [False] * 3
    infinite = truth[:1].clone()
    infinite[0, 2] = math.inf
    R = torch.from_numpy(oracles.source_covariance(oracles.steering(POSITIONS, 0.3, infinite.numpy()), [1.0], 1e-3))
    (far,) = detect_sources(R[None], SURFACE)
    assert len(far) == 1
    torch.testing.assert_close(far.position[0, :2], infinite[0, :2], atol=1e-3, rtol=0)
    assert float(far.range) > 200  # 36 m is where the far field of this surface is said to begin
    R, _ = covariance_of((10, 5, 0.3), noise=1e-2)  # nearer than a quarter of the aperture
    for setup in (SURFACE, Setup(SURFACE)):
        assert bool(detect_sources(R, setup)[0].at_edge[0])


@pytest.mark.parametrize(
    ("source", "edge"),
    [((20, 5, 3.0), False), ((20, 5, 8.0), True), ((20, 5, 0.55), True), ((-33, 5, 3.0), True), ((20, 13, 3.0), True)],
)
def test_a_source_beyond_the_region_ends_at_its_edge_and_says_so(source, edge):
    region = Region((math.radians(-30), math.radians(40)), (math.radians(-12), math.radians(12)), (1.0, 5.0))
    R, _ = covariance_of(source, noise=1e-2)
    (found,) = detect_sources(R, Setup(SURFACE, region))
    assert len(found) >= 1
    assert bool(found.at_edge[0]) == edge
    for value, (low, high) in zip(
        found.position.unbind(1), (region.azimuth_rad, region.elevation_rad, region.range_m), strict=True
    ):
        assert ((value >= low - 1e-9) & (value <= high + 1e-9)).all()


def test_a_wavefront_that_contradicts_the_setup_is_refused():
    R, _ = covariance_of((20, -10, 4.0))
    with pytest.raises(ValueError, match="wavefront is 'fresnel', and that of the setup is 'spherical'"):
        detect_sources(R, SETUP, TRAINING, wavefront="fresnel")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("range_m", [0.5, 0.52, 0.69, 1.07, 1.6, 2.6, 4.6, 7.6, 10.0])
def test_sources_between_and_beyond_the_range_planes_are_found(range_m, grid):
    R, truth = covariance_of((20, -10, range_m), noise=1e-3)
    (found,) = detect_sources(R, SETUP, GRIDS[grid])
    assert_found(found, truth, angle_deg=1e-3, range_m=1e-3 * range_m)


@pytest.mark.parametrize("grid", GRIDS)
def test_sources_in_the_corners_of_the_field_of_view_are_found(grid):
    R, truth = covariance_of((-60, -30, 0.5), (60, 30, 10), (-60, 30, 2.0), (60, -30, 0.7))
    (found,) = detect_sources(R, SETUP, GRIDS[grid])
    assert_found(found, truth, angle_deg=1e-2, range_m=1e-2)
    assert float(found.azimuth.abs().max()) <= math.radians(60) * (1 + 1e-12)
    assert float(found.elevation.abs().max()) <= math.radians(30) * (1 + 1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("step_deg", "range_m"), [(3, 2.0), (3, 8.0), (5, 2.0), (5, 8.0)])
def test_sources_a_few_degrees_apart_are_told_apart(step_deg, range_m, grid):
    # The beam of the surface is 8 degrees wide.
    R, truth = covariance_of((10, 0, range_m), (10 + step_deg, 0, range_m))
    (found,) = detect_sources(R, SETUP, GRIDS[grid])
    assert_found(found, truth, angle_deg=0.05, range_m=0.01)


def test_a_source_under_the_slope_of_a_neighbour_on_the_next_plane_is_found():
    # Each is a maximum of its nearest plane; a few points away, on the other's plane, the slope of the other is higher.
    R, truth = covariance_of((-9.6, -13.4, 4.39), (-6.8, -11.9, 3.22), noise=0.1)
    (found,) = detect_sources(R, SURFACE, SearchGrid.reference())
    assert_found(found, truth, angle_deg=0.05, range_m=0.05)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ranges", [(0.6, 2.0), (1.0, 1.6), (1.0, 2.0), (2.0, 4.0), (3.0, 9.0)])
def test_sources_behind_one_another_are_told_apart(ranges, grid):
    R, truth = covariance_of(*[(10, 5, r) for r in ranges])
    (found,) = detect_sources(R, SETUP, GRIDS[grid])
    assert_found(found, truth, angle_deg=0.05, range_m=0.05)


def test_a_source_ten_decibels_down_is_found_and_one_fifteen_down_is_not_a_source():
    R, truth = covariance_of((-25, 5, 3.0), (30, -12, 1.8), (0, 20, 5.0), power=[1.0, 0.1, 0.0316], noise=1e-2)
    (found,) = detect_sources(R, SURFACE, TRAINING, options=DetectionOptions(max_db=12.0))
    assert_found(found, truth[:2], angle_deg=1e-2, range_m=1e-2)
    (more,) = detect_sources(R, SURFACE, TRAINING, options=DetectionOptions(max_db=18.0))
    assert_found(more, truth, angle_deg=1e-2, range_m=2e-2)


@pytest.mark.parametrize("range_m", [1.9, 2.0, 2.15])
def test_one_range_plane_is_enough_for_sources_near_it(range_m):
    grid = SearchGrid(TRAINING.azimuth_rad, TRAINING.elevation_rad, [2.0])
    R, truth = covariance_of((20, -10, range_m), noise=1e-2)
    (found,) = detect_sources(R, SURFACE, grid)
    assert_found(found, truth, angle_deg=1e-2, range_m=1e-3)


@pytest.mark.parametrize("range_m", [1.0, 5.0])
def test_a_source_far_from_the_only_plane_is_found_no_farther_than_a_tenth_from_it(range_m):
    grid = SearchGrid(TRAINING.azimuth_rad, TRAINING.elevation_rad, [2.0])
    R, truth = covariance_of((20, -10, range_m), noise=1e-2)
    (found,) = detect_sources(R, SURFACE, grid)
    assert ((found.range >= 2.0 / 1.1 - 1e-9) & (found.range <= 2.0 * 1.1 + 1e-9)).all()
    assert float((found.position[0, :2] - truth[0, :2]).abs().max()) < math.radians(5)


def test_a_factor_gives_the_sources_of_its_covariance():
    factor = scenes_of(8).true_factor().to(torch.complex128)
    from_factor = detect_sources_lowrank(factor, SURFACE, TRAINING)
    assert_same_sources(from_factor, detect_sources(factor @ factor.mH, SURFACE, TRAINING))
    (single,) = detect_sources_lowrank(factor[3], SURFACE, TRAINING)
    assert_same_sources([single], from_factor[3:4])


def test_the_order_of_the_elements_does_not_matter():
    R = exact_covariance(scenes_of(4)) + 1e-3 * torch.eye(144)
    order = torch.from_numpy(np.random.default_rng(5).permutation(144))
    shuffled = SensorArray(SURFACE.positions_m[order], SURFACE.wavelength_m)
    plain = detect_sources(R, SURFACE, TRAINING)
    assert_same_sources(detect_sources(R[:, order][:, :, order], shuffled, TRAINING), plain)


def test_a_mirrored_scene_has_mirrored_sources():
    R, truth = covariance_of((-25, 5, 3.0), (40, -12, 1.3), noise=1e-3, dtype=torch.complex128)
    mirror = torch.arange(144).reshape(12, 12).flip(0).reshape(-1)  # x to -x
    (found,) = detect_sources(R[:, mirror][:, :, mirror], SURFACE, TRAINING)
    assert_found(found, truth * torch.tensor([-1.0, 1.0, 1.0]), angle_deg=1e-3, range_m=1e-3)


def test_both_dtypes_find_the_same_sources():
    R = exact_covariance(scenes_of(6)) + 1e-2 * torch.eye(144)
    double = detect_sources(R, SURFACE, TRAINING)
    single = detect_sources(R.to(torch.complex64), SURFACE, TRAINING)
    assert_same_sources(single, double, rtol=1e-4)
    assert all(
        t.dtype == torch.float64 for s in single for t in (s.azimuth, s.range, s.power, s.confidence, s.prominence_db)
    )


def test_a_batch_finds_what_its_scenes_find_in_any_order_and_every_time():
    R = exact_covariance(scenes_of(19))  # more than are worked on at once on the reference grid
    batch = detect_sources(R, SETUP)
    again = detect_sources(R, SETUP)
    assert all(torch.equal(a.position, b.position) for a, b in zip(batch, again, strict=True))
    assert all(torch.equal(a.power, b.power) for a, b in zip(batch, again, strict=True))
    backwards = detect_sources(R.flip(0), SETUP)
    assert_same_sources(backwards[::-1], batch)
    (alone,) = detect_sources(R[18], SETUP)
    assert_same_sources([alone], batch[18:19])


def test_strided_covariances_are_covariances():
    R = scenes_of(2).true_covariance()
    wide = torch.zeros(4, 144, 288, dtype=R.dtype)
    wide[::2, :, 1::2] = R
    assert_same_sources(detect_sources(wide[::2, :, 1::2], SURFACE, TRAINING), detect_sources(R, SURFACE, TRAINING))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_no_scenes_give_an_empty_list(dtype):
    assert detect_sources(torch.zeros(0, 144, 144, dtype=dtype), SETUP) == []
    assert detect_sources_lowrank(torch.zeros(0, 144, 3, dtype=dtype), SETUP) == []


def test_a_single_covariance_gives_a_list_of_one():
    R, truth = covariance_of((-25, 5, 3.0))
    found = detect_sources(R[0], SURFACE, TRAINING)
    assert isinstance(found, list)
    assert len(found) == 1
    assert_found(found[0], truth, angle_deg=1e-3, range_m=1e-3)


def test_powers_are_capon_powers_strongest_first_and_stand_out_of_the_median_as_they_say():
    R, _ = covariance_of((-25, 5, 3.0), (30, -12, 1.8), power=[0.5, 1.0], noise=0.1, dtype=torch.complex128)
    (found,) = detect_sources(R, SURFACE, TRAINING)
    assert len(found) == 2
    assert (found.power.diff() <= 0).all()
    expected = oracles.capon(R.numpy(), oracles.steering(POSITIONS, 0.3, found.position.numpy()))[0]
    np.testing.assert_allclose(found.power.numpy(), expected, rtol=1e-8)
    points = oracles.box(TRAINING.azimuth_rad, TRAINING.elevation_rad, TRAINING.range_m)
    power = oracles.capon(R.numpy(), oracles.steering(POSITIONS, 0.3, points))[0]
    background = np.median(power.max(-1))
    np.testing.assert_allclose(found.prominence_db.numpy(), 10 * np.log10(expected / background), atol=1e-4)
    assert found.confidence.isnan().all()  # a peak says nothing of the probability of a hit


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_sources_keeps_the_strongest(limit):
    R = scenes_of(5, n_sources=(3, 5)).true_covariance()
    free = detect_sources(R, SURFACE, TRAINING)
    capped = detect_sources(R, SURFACE, TRAINING, options=DetectionOptions(max_sources=limit))
    for few, all_of_them in zip(capped, free, strict=True):
        assert len(few) == min(limit, len(all_of_them))
        assert torch.equal(few.position, all_of_them.position[:limit])


def test_candidates_bound_what_can_be_found():
    R = scenes_of(6, n_sources=(3, 3)).true_covariance()
    found = detect_sources(R, SURFACE, TRAINING, options=DetectionOptions(candidates=2))
    assert all(1 <= len(s) <= 2 for s in found)


@pytest.mark.parametrize("points", [(5, 5, 5), (21, 33, 9)])
def test_the_fine_grid_only_helps_the_steps_below_it(points):
    R = exact_covariance(scenes_of(6))
    coarse = detect_sources(R, SURFACE, TRAINING, options=DetectionOptions(refine_points=points))
    plain = detect_sources(R, SURFACE, TRAINING)
    for a, b in zip(coarse, plain, strict=True):
        assert len(a) == len(b)
        assert match(a.position, b.position).distance_m.max() < 0.05


@pytest.fixture(scope="module")
def sampled():
    """Least-squares covariances of measurements: maps with a rough background."""
    scenes = scenes_of(6, n_snapshots=32)
    return effective_covariance(ls_covariance(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power))


@pytest.mark.parametrize("max_db", [3.0, 12.0])
@pytest.mark.parametrize("z", [-3.0, 3.0, 8.0])
def test_the_test_against_the_background_never_adds_a_source(sampled, z, max_db):
    def detect(mad_z):
        options = DetectionOptions(max_db=max_db, mad_z=mad_z)
        return detect_sources(sampled, SURFACE, TRAINING, options=options)

    without, tested = detect(None), detect(z)
    for all_of_them, few in zip(without, tested, strict=True):
        assert len(few) <= len(all_of_them)
        assert torch.equal(few.position, all_of_them.position[: len(few)])
        assert (10 * (few.power / all_of_them.power[0]).log10() >= -max_db - 1e-9).all()
    if z == 8.0:
        assert sum(map(len, tested)) < sum(map(len, without))


@pytest.mark.parametrize("name", ["max_db", "mad_z", "prominence_db"])
def test_a_stricter_threshold_keeps_a_prefix(sampled, name):
    values = {"max_db": (12.0, 6.0, 3.0, 1.0), "mad_z": (2.0, 4.0, 6.0, 9.0), "prominence_db": (0.0, 0.5, 1.0, 2.0)}
    counts = []
    before = None
    for value in values[name]:
        found = detect_sources(sampled, SURFACE, TRAINING, options=DetectionOptions(**{name: value}))
        if before is not None:
            for few, many in zip(found, before, strict=True):
                assert torch.equal(few.position, many.position[: len(few)])
        before = found
        counts.append(sum(map(len, found)))
    assert counts[-1] < counts[0]


@pytest.mark.parametrize("snapshots", [16, 64, 288, 2000])
def test_whatever_is_found_in_white_noise_stands_out_little(snapshots):
    rng = np.random.default_rng(snapshots)
    noise = torch.from_numpy(np.stack([oracles.wishart(rng, 144, snapshots) for _ in range(4)]))
    found = detect_sources(noise.to(torch.complex64), SETUP)
    signal = detect_sources(scenes_of(4).true_covariance(), SETUP)
    highest = max((float(s.prominence_db.max()) for s in found if len(s)), default=0.0)
    assert highest < 1.5
    assert min(float(s.prominence_db.min()) for s in signal) > 13


BAD = {
    "not square": (torch.zeros(2, 144, 5, dtype=torch.complex64), ShapeError, "R must be square"),
    "other N": (torch.zeros(2, 100, 100, dtype=torch.complex64), ShapeError, "R must have N = 144 rows"),
    "one dimension": (torch.zeros(144, dtype=torch.complex64), ShapeError, "R must have shape"),
    "four dimensions": (torch.zeros(1, 1, 144, 144, dtype=torch.complex64), ShapeError, "R must have shape"),
    "no scenes of another N": (torch.zeros(0, 9, 9, dtype=torch.complex64), ShapeError, "R must have N = 144 rows"),
    "NaN": (torch.full((1, 144, 144), math.nan, dtype=torch.complex64), ValueError, "R must be finite"),
    "not Hermitian": (torch.eye(144, dtype=torch.complex64).roll(1, 0), ValueError, "R must be Hermitian"),
    "zero": (torch.zeros(1, 144, 144, dtype=torch.complex64), ValueError, "R must have a positive trace"),
    "real": (torch.eye(144), TypeError, "R must be complex64 or complex128"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_covariance_is_refused_by_name(fault):
    matrix, error, text = BAD[fault]
    with pytest.raises(error, match=text):
        detect_sources(matrix, SURFACE, TRAINING)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"wavefront": "flat"}, ValueError, "wavefront must be one of"),
        ({"method": "fast"}, ValueError, "method must be one of"),
        ({"method": "lag"}, ValueError, "method='lag' needs"),
        ({"loading": -1e-2}, ValueError, "loading must be finite"),
        ({"loading": math.nan}, ValueError, "loading must be finite"),
        ({"setup": POSITIONS}, TypeError, "array must be a risfast.geometry.SensorArray"),
    ],
)
def test_a_bad_argument_is_refused_by_name(change, error, text):
    R, _ = covariance_of((-25, 5, 3.0))
    call = {"setup": SURFACE, "grid": TRAINING, **change}
    with pytest.raises(error, match=text):
        detect_sources(R, **call)


def test_a_factor_needs_loading():
    F = torch.ones(1, 144, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="loading must be finite and > 0"):
        detect_sources_lowrank(F, SURFACE, TRAINING, loading=0.0)
    with pytest.raises(ShapeError, match="looks transposed"):
        detect_sources_lowrank(F.mT, SURFACE, TRAINING)
