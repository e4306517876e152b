"""Setups, regions and tolerances: what follows from an array, what survives being written, and what is refused."""

from __future__ import annotations

import io
import json
import math
import pickle

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import Region, SearchGrid, SensorArray, uniform_axis
from risfast.models.atoms import AtomAxes, RangeCells
from risfast.setup import Setup, Tolerance
from risfast.simulate.scenes import SystemConfig

HALF, FULL = (-math.pi / 2, math.pi / 2), (-math.pi, math.pi)
FRONT = Region((-1.0, 1.0), (-0.5, 0.5), (0.5, 10.0))
SURFACE = SensorArray.rectangular(5, 4, 0.15, 0.3)
RING = SensorArray.circular(8, 0.1, 0.3)
REFERENCE = SystemConfig().setup


def line(axis, n=6, spacing=0.15):
    positions = np.zeros((n, 3))
    positions[:, axis] = np.arange(n) * spacing
    return positions


ARRAYS = {
    "planar": (oracles.rectangular(5, 4), HALF, HALF),
    "planar, one column": (oracles.rectangular(1, 6), (0.0, 0.0), HALF),
    "random in the plane": (oracles.irregular_plane(0, 9, 0.4), HALF, HALF),
    "in the y-z plane": (oracles.rectangular(4, 3)[:, [2, 1, 0]], (0.0, math.pi), HALF),
    "line along x": (line(0), HALF, (0.0, 0.0)),
    "line along y": (line(1), (0.0, 0.0), HALF),
    "line along z": (line(2), (0.0, math.pi), (0.0, 0.0)),
    "ring in the x-z plane": (RING.positions_m.numpy(), FULL, (0.0, 0.0)),
    "volume": (oracles.volumetric(0, 9, 0.4), FULL, HALF),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (3.0, -2.0, 5.0)])
def test_the_region_follows_from_what_the_array_can_tell_apart(name, shift):
    positions, azimuth, elevation = ARRAYS[name]
    aperture = max(np.linalg.norm(a - b) for a in positions for b in positions)
    region = Region.of(SensorArray(positions + np.array(shift), 0.3))
    assert region.azimuth_rad == pytest.approx(azimuth, abs=1e-9)
    assert region.elevation_rad == pytest.approx(elevation, abs=1e-9)
    assert region.range_m[0] == pytest.approx(aperture / 4)
    assert region.range_m[1] == math.inf
    assert region.inverse_range == pytest.approx((0.0, 4 / aperture))
    assert Setup(SensorArray(positions + np.array(shift), 0.3)).region == region


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
def test_a_turned_plane_looks_along_its_normal(degrees):
    turn = math.radians(degrees)
    x, y, _ = oracles.rectangular(4, 4).T
    region = Region.of(SensorArray(np.stack([x * math.cos(turn), y, -x * math.sin(turn)], 1), 0.3))
    normal = turn if math.cos(turn) > 0 else turn - math.pi  # of the two, the one with the greater z
    middle = sum(region.azimuth_rad) / 2
    assert math.cos(middle - normal) == pytest.approx(1)
    assert region.azimuth_rad[1] - region.azimuth_rad[0] == pytest.approx(math.pi)


@pytest.mark.parametrize("positions", [[[0.0, 0, 0]], [[1.0, 2, 3]] * 4])
def test_a_single_point_sees_no_direction(positions):
    with pytest.raises(ValueError, match="single point sees no direction"):
        Setup(SensorArray(positions, 0.3))
    assert Setup(SensorArray(positions, 0.3), FRONT).region is FRONT


def test_a_plane_that_is_tilted_in_elevation_needs_a_region():
    tilted = oracles.rectangular(4, 4) @ np.array([[1, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])
    with pytest.raises(ValueError, match="tilted in elevation"):
        Setup(SensorArray(tilted, 0.3))
    assert Setup(SensorArray(tilted, 0.3), FRONT).region is FRONT


def test_the_tolerance_follows_from_the_wavelength_and_the_wavefront():
    five = math.radians(5)
    assert REFERENCE.tolerance.limits == pytest.approx((five, five, 1.0))
    assert Setup(SensorArray(SURFACE.positions_m, 0.03)).tolerance.limits == pytest.approx((five, five, 0.1))
    assert Setup(SURFACE, wavefront="planar").tolerance.range_m == math.inf
    assert Setup(SURFACE, tolerance=Tolerance(range_m=0.2)).tolerance.range_m == 0.2


SETUPS = [
    REFERENCE,
    Setup(RING, sampling="direct", speed_m_s=343),
    Setup(SURFACE, wavefront="planar"),
    Setup(SensorArray(oracles.volumetric(1, 7, 0.3), 0.1), FRONT, "fresnel", tolerance=Tolerance(0.01, 0.02, 0.03)),
    Setup(SensorArray(line(0), 0.1), FRONT),
]


def rebuilt_by_torch(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("setup", SETUPS)
def test_setups_survive_json_pickle_and_torch(setup):
    by_json = Setup.from_json(json.loads(json.dumps(setup.to_json(), allow_nan=False)))
    for again in (by_json, pickle.loads(pickle.dumps(setup)), rebuilt_by_torch(setup)):
        assert again == setup
        assert hash(again) == hash(setup)
        assert torch.equal(again.array.positions_m, setup.array.positions_m)
        assert again.array.lattice == setup.array.lattice
        assert again.search_grid(4.0) == setup.search_grid(4.0)


@pytest.mark.parametrize("value", [SURFACE, FRONT, Tolerance(), REFERENCE.search_grid(2.0), Setup(RING).search_grid()])
def test_the_parts_survive_pickle_and_torch(value):
    for again in (pickle.loads(pickle.dumps(value)), rebuilt_by_torch(value)):
        assert again == value
        assert hash(again) == hash(value)


def test_equal_means_every_field():
    one = Setup(SURFACE, FRONT)
    same = Setup(SensorArray(SURFACE.positions_m.clone(), 0.3), Region(*vars(FRONT).values()))
    assert one == same
    assert len({one, same}) == 1
    nudged = SURFACE.positions_m.clone()
    nudged[3, 1] = math.nextafter(float(nudged[3, 1]), 1)
    others = [
        one.replace(array=SensorArray(nudged, 0.3)),
        one.replace(array=SensorArray(SURFACE.positions_m, 0.3 + 1e-12)),
        one.replace(array=SensorArray(SURFACE.positions_m.flip(0), 0.3)),
        one.replace(region=None),
        one.replace(wavefront="fresnel"),
        one.replace(sampling="direct"),
        one.replace(speed_m_s=343.0),
        one.replace(tolerance=Tolerance(range_m=2.0)),
    ]
    assert len({one, *others}) == 9
    assert one != "setup"


def test_what_is_equal_has_one_hash():
    signed = [[-0.0, 0, 0], [0.1, -0.0, 0]]
    plain = [[0.0, 0, 0], [0.1, 0.0, 0]]
    assert SensorArray(signed, 0.3) == SensorArray(plain, 0.3)
    assert hash(SensorArray(signed, 0.3)) == hash(SensorArray(plain, 0.3))
    grids = [SearchGrid([zero], [0.0], [1.0]) for zero in (0.0, -0.0)]
    assert grids[0] == grids[1]
    assert hash(grids[0]) == hash(grids[1])


@pytest.mark.parametrize("factor", [0.3, 7.0])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_scaled_setup_is_the_same_problem_in_other_units(setup, factor):
    scaled = setup.scaled(factor)
    np.testing.assert_allclose(scaled.array.positions_m, factor * setup.array.positions_m.numpy(), rtol=1e-15)
    assert scaled.array.wavelength_m == pytest.approx(factor * setup.array.wavelength_m)
    assert scaled.region.range_m == pytest.approx([factor * r for r in setup.region.range_m])
    assert scaled.region.azimuth_rad == setup.region.azimuth_rad
    assert scaled.tolerance.range_m == pytest.approx(factor * setup.tolerance.range_m)
    assert scaled.tolerance.azimuth_rad == setup.tolerance.azimuth_rad
    assert (scaled.wavefront, scaled.sampling) == (setup.wavefront, setup.sampling)
    one, other = setup.search_grid(4.0), scaled.search_grid(4.0)
    np.testing.assert_allclose(other.azimuth_rad, one.azimuth_rad, atol=1e-12)
    np.testing.assert_allclose(other.range_m, factor * one.range_m.numpy(), rtol=1e-12)
    if setup.array.n_elements > 1:
        assert AtomAxes.of(scaled).shape == AtomAxes.of(setup).shape


def test_the_grid_of_the_reference_system_has_the_angles_of_the_reference_grid():
    grid, expected = REFERENCE.search_grid(), SearchGrid.reference()
    assert grid.shape == (361, 181, 7)
    assert torch.equal(grid.azimuth_rad, expected.azimuth_rad)
    assert torch.equal(grid.elevation_rad, expected.elevation_rad)
    assert AtomAxes.of(REFERENCE).shape == (25, 15, 10)


@pytest.mark.parametrize("region", [FRONT, None, Region((-1.0, 1.0), (0.2, 0.2), (0.3, math.inf))])
@pytest.mark.parametrize("wavefront", ["spherical", "fresnel"])
def test_planes_are_uniform_in_inverse_range_from_end_to_end(region, wavefront):
    setup = Setup(SURFACE, region, wavefront)
    planes = setup.search_grid().range_m.numpy()
    assert (planes[0], planes[-1]) == setup.region.range_m
    steps = np.diff(1 / planes)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    # Phase of curvature at the outermost element from one plane to the next.
    outermost = np.max(np.sum(SURFACE.positions_m.numpy() ** 2, 1))
    assert -steps[0] * math.pi / 0.3 * outermost <= 4.6 + 1e-9


def test_planar_waves_have_one_plane_and_a_fixed_range_has_its_own():
    assert Setup(SURFACE, wavefront="planar").search_grid().range_m.tolist() == [math.inf]
    assert Setup(SURFACE, Region(HALF, HALF, (2.0, 2.0))).search_grid().range_m.tolist() == [2.0]


@pytest.mark.parametrize("most", [1, 20, 1000, 12345, 10**6])
@pytest.mark.parametrize("setup", [*SETUPS, Setup(SensorArray.rectangular()), Setup(RING)])
def test_a_grid_keeps_to_its_budget_and_uses_it(setup, most):
    free, grid = setup.search_grid(most_points=1 << 40), setup.search_grid(most_points=most)
    planes = len(free.range_m)
    assert torch.equal(grid.range_m, free.range_m)
    assert grid.size <= max(most, planes)
    assert all(few <= many for few, many in zip(grid.shape, free.shape, strict=True))
    if free.size <= most:
        assert grid == free
    else:
        az, el, _ = grid.shape
        assert (az + 2) * (el + 1) * planes > most or (az + 1) * (el + 1) * planes > most


def test_a_grid_is_finer_where_the_array_is_wider():
    narrow, wide = Setup(SensorArray.rectangular(4, 4), FRONT), Setup(SensorArray.rectangular(8, 4), FRONT)
    fine, coarse = wide.search_grid().azimuth_rad, narrow.search_grid().azimuth_rad
    assert len(fine) - 1 == pytest.approx((len(coarse) - 1) * 7 / 3, abs=2)
    beam = 0.3 / (3 * 0.15)
    assert float(coarse[1] - coarse[0]) == pytest.approx(beam / 31.25, rel=0.02)


@pytest.mark.parametrize("ends", [FULL, (0.0, 2 * math.pi)])
@pytest.mark.parametrize("density", [0.3, 1.0, 31.25])
def test_a_full_circle_has_every_direction_once_and_evenly(ends, density):
    region = Region(ends, (0.0, 0.0), (0.5, math.inf))
    assert region.full_circle
    setup = Setup(RING, region)
    for azimuth in (setup.search_grid(density).azimuth_rad.numpy(), AtomAxes.of(setup).coordinates[0].numpy()):
        gaps = np.diff([*azimuth, azimuth[0] + 2 * math.pi])
        np.testing.assert_allclose(gaps, 2 * math.pi / len(azimuth), atol=1e-9)
        assert azimuth[0] > ends[0]
        assert azimuth[-1] < ends[1]


def test_an_axis_of_one_point_on_a_full_circle_is_a_point():
    assert uniform_axis(-math.pi, math.pi, 2, closed=True).tolist() == [0.0]
    assert Setup(RING).search_grid(most_points=2).shape == (1, 1, 2)
    assert AtomAxes(1, 1, 1, FULL, (0, 0), (1, 2)).coordinates[0].tolist() == [0.0]


def test_cells_of_a_region_without_end_are_ordered_numbers():
    cells = RangeCells(AtomAxes(3, 3, 3, HALF, HALF, (0.5, math.inf)), 4)
    assert cells.edges[0] == 0.5
    assert cells.edges[-1] == math.inf
    assert (cells.edges[1:] > cells.edges[:-1]).all()
    assert torch.isfinite(cells.centres).all()
    assert ((cells.centres > cells.edges[:-1]) & (cells.centres < cells.edges[1:])).all()
    assert torch.isfinite(RangeCells(AtomAxes(3, 3, 1, HALF, HALF, (0.5, math.inf)), 4).centres).all()


@pytest.mark.parametrize(
    ("azimuth", "elevation", "range_m", "message"),
    [
        ((1.0, -1.0), (-0.5, 0.5), (0.5, 10.0), "azimuth_rad is inside out"),
        ((-1.0, 1.0), (0.5, -0.5), (0.5, 10.0), "elevation_rad is inside out"),
        ((-1.0, 1.0), (-0.5, 0.5), (10.0, 0.5), "range_m is inside out"),
        ((-60.0, 60.0), (-0.5, 0.5), (0.5, 10.0), "azimuth_rad.*degrees"),
        ((-1.0, 1.0), (-30.0, 30.0), (0.5, 10.0), "elevation_rad.*degrees"),
        ((-1.0, 1.0), (-0.5, 1.6), (0.5, 10.0), "elevation_rad must lie within"),
        ((-1.0, math.nan), (-0.5, 0.5), (0.5, 10.0), "azimuth_rad must be a pair of numbers"),
        ((-1.0, 1.0), (-0.5, 0.5), (math.nan, 10.0), "range_m must be a pair of numbers"),
        ((-1.0, 1.0), (-0.5, 0.5), (0.0, 10.0), "finite range above 0"),
        ((-1.0, 1.0), (-0.5, 0.5), (-1.0, 10.0), "finite range above 0"),
        ((-1.0, 1.0), (-0.5, 0.5), (math.inf, math.inf), "finite range above 0"),
        ((-math.pi, math.pi + 0.1), (-0.5, 0.5), (0.5, 10.0), "at most a full circle"),
        ((-1.0,), (-0.5, 0.5), (0.5, 10.0), "must be a pair"),
        (1.0, (-0.5, 0.5), (0.5, 10.0), "must be a pair"),
        (None, (-0.5, 0.5), (0.5, 10.0), "must be a pair"),
    ],
)
def test_wrong_regions_are_refused(azimuth, elevation, range_m, message):
    with pytest.raises(ValueError, match=message):
        Region(azimuth, elevation, range_m)


@pytest.mark.parametrize("azimuth", [(2.0, 3.0), (-3.0, -1.7), (1.7, 4.5)])
def test_a_region_behind_a_planar_array_is_refused(azimuth):
    with pytest.raises(ValueError, match=r"region lies behind the array.*front"):
        Setup(SURFACE, Region(azimuth, (-0.5, 0.5), (0.5, 10.0)))
    with pytest.raises(ValueError, match="behind"):
        Setup(SURFACE).replace(region=Region(azimuth, (-0.5, 0.5), (0.5, 10.0)))
    assert Setup(RING, Region(azimuth, (0.0, 0.0), (0.5, 10.0))).region.azimuth_rad == azimuth


@pytest.mark.parametrize("azimuth", [(1.5, 3.0), (-3.0, -1.5), (5.0, 6.0), (-math.pi, math.pi)])
def test_a_region_that_is_partly_in_front_is_taken(azimuth):
    assert Setup(SURFACE, Region(azimuth, (-0.5, 0.5), (0.5, 10.0))).region.azimuth_rad == azimuth


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavefront": "round"}, "wavefront"),
        ({"sampling": "sparse"}, "sampling must be one of surface, direct"),
        ({"speed_m_s": 0.0}, "speed_m_s"),
        ({"speed_m_s": math.nan}, "speed_m_s"),
        ({"speed_m_s": math.inf}, "speed_m_s"),
        ({"speed_m_s": "343"}, "speed_m_s"),
    ],
)
def test_wrong_options_of_a_setup_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Setup(SURFACE, **change)


def test_a_region_is_no_tuple():
    with pytest.raises(TypeError, match=r"region must be a risfast\.Region, got tuple"):
        Setup(SURFACE, ((-1.0, 1.0), (-0.5, 0.5), (0.5, 10.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"azimuth_rad": -0.1}, "at least 0"),
        ({"range_m": math.nan}, "at least 0"),
        ({"azimuth_rad": 7.0}, "is it in degrees"),
        ({"elevation_rad": 5.0}, "is it in degrees"),
    ],
)
def test_wrong_tolerances_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Tolerance(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"format": None},
        {"more": 1},
        {"wavefront": None},
        {"wavefront": ["spherical"]},
        {"sampling": 3},
        {"speed_m_s": "343"},
        {"array": 3},
        {"array": {"n_h": 3}},
        {"array": {"n_h": "a", "n_v": 2, "spacing_m": 0.1, "wavelength_m": 1}},
        {"array": {"positions_m": "abc", "wavelength_m": 1}},
        {"array": {"positions_m": [[0, 0], [0, 1]], "wavelength_m": 1}},
        {"region": {"azimuth_rad": [0, 1], "elevation_rad": [0, 1]}},
        {"region": {"azimuth_rad": [0, "a"], "elevation_rad": [0, 1], "range_m": [1, 2]}},
        {"region": {"azimuth_rad": 1, "elevation_rad": [0, 1], "range_m": [1, 2]}},
        {"region": {"azimuth_rad": [1, 0], "elevation_rad": [0, 1], "range_m": [1, 2]}},
        {"tolerance": None},
        {"tolerance": {"azimuth_rad": [1, 2], "elevation_rad": 1, "range_m": 1}},
        {"tolerance": {"azimuth_rad": True, "elevation_rad": 1, "range_m": 1}},
    ],
)
def test_descriptions_that_make_no_setup_are_refused(change):
    assert Setup.from_json(REFERENCE.to_json()) == REFERENCE
    with pytest.raises(ValueError, match=r"\w"):
        Setup.from_json({**REFERENCE.to_json(), **change})


@pytest.mark.parametrize("missing", ["format", "array", "region", "tolerance", "wavefront"])
def test_descriptions_that_lack_a_field_are_refused(missing):
    described = REFERENCE.to_json()
    del described[missing]
    with pytest.raises(ValueError, match=missing):
        Setup.from_json(described)
    with pytest.raises(ValueError, match="must be a table"):
        Setup.from_json([])


def edge(region, *position):
    return bool(region.at_edge(torch.tensor(position, dtype=torch.float64)))


def test_edges_are_ends_of_intervals_and_of_nothing_else():
    assert not edge(FRONT, 0.9, 0.4, 9.0)
    for position in [(1.0, 0, 2), (-1.0, 0, 2), (0, 0.5, 2), (0, -0.5, 2), (0, 0, 0.5), (0, 0, 10.0)]:
        assert edge(FRONT, *position)
    assert not edge(FRONT, 0, 0, math.nan)
    assert edge(FRONT, 1.0, 0, math.nan)
    everywhere = Region(FULL, HALF, (0.5, math.inf))
    for position in [(math.pi, 0, 2), (-math.pi, 0, 2), (0, math.pi / 2, 2), (0, 0, math.inf), (0, 0, 1e12)]:
        assert not edge(everywhere, *position)
    assert edge(everywhere, 0, 0, 0.5)
    fixed = Region((-1.0, 1.0), (0.2, 0.2), (3.0, 3.0))
    assert not edge(fixed, 0.0, 0.2, 3.0)
    assert edge(fixed, 1.0, 0.2, 3.0)


def test_bands_and_gains_travel_with_a_setup() -> None:
    array = SensorArray.rectangular(4, 2, 0.05, 0.3)
    setup = Setup(array, sampling="direct", wavelengths_m=(0.2, 0.1, 0.4), gains=[1 + 0.1j] * 8)
    assert setup.n_bands == 3
    assert setup.array.wavelength_m == 0.1  # the shortest
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup
    assert setup.scaled(2.0).wavelengths_m == (0.4, 0.2, 0.8)
    assert Setup(array).wavelengths_m == (0.3,)
    assert Setup(array).replace(array=SensorArray(array.positions_m, 0.7)).wavelengths_m == (0.7,)
    assert "gains" not in Setup(array).to_json()
    for wrong in ((), (0.1, -1.0), (math.nan,)):
        with pytest.raises(ValueError, match="wavelengths_m must be positive"):
            Setup(array, sampling="direct", wavelengths_m=wrong)
    with pytest.raises(ValueError, match="sampled directly"):
        Setup(array, wavelengths_m=(0.1, 0.2))
    for gains in ([1.0] * 7, [0.0] * 8, [math.nan] * 8):
        with pytest.raises(ValueError, match="gains must be 8"):
            Setup(array, gains=gains)
