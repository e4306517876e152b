"""Arrays, lattices, grids and coordinates."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from risfast.errors import ShapeError
from risfast.geometry import (
    PlanarArray,
    Region,
    SearchGrid,
    SensorArray,
    alias_wavelength,
    ambiguities,
    cartesian_to_spherical,
    direction_cosines,
    find_lattice,
    most_sources,
    spherical_to_cartesian,
)

PERMUTATION = [7, 0, 11, 3, 14, 5, 1, 9, 12, 2, 10, 4, 13, 6, 8]


def lattice_positions(lattice, positions):
    """The elements in lattice order, as [n_h, n_v, 3]."""
    return np.asarray(positions)[list(lattice.order)].reshape(lattice.n_h, lattice.n_v, 3)


# ---- arrays


@pytest.mark.parametrize(("n_h", "n_v"), [(1, 1), (1, 4), (5, 1), (3, 5), (12, 12)])
def test_rectangular_array_is_centred_and_counts_columns_slowest(n_h, n_v):
    array = PlanarArray.rectangular(n_h, n_v, spacing_m=0.2, wavelength_m=0.5)
    np.testing.assert_allclose(array.positions_m.numpy(), oracles.rectangular(n_h, n_v, 0.2), atol=1e-15)
    assert array.n_elements == n_h * n_v
    np.testing.assert_allclose(array.positions_m.mean(0).numpy(), 0, atol=1e-15)


def test_default_array_is_the_reference_surface():
    array = PlanarArray.rectangular()
    assert array.n_elements == 144
    assert float(array.positions_m[0, 0]) == pytest.approx(-5.5 * 0.15)
    assert array.wavenumber == pytest.approx(2 * math.pi / 0.3)
    assert array.aperture_m == pytest.approx(11 * 0.15 * math.sqrt(2))
    assert array.fraunhofer_distance_m == pytest.approx(2 * (11 * 0.15) ** 2 * 2 / 0.3)


def test_linear_array_lies_along_x():
    array = PlanarArray.linear(4, 0.1, 0.2)
    np.testing.assert_allclose(array.positions_m[:, 0].numpy(), [-0.15, -0.05, 0.05, 0.15])
    assert not array.positions_m[:, 1:].any()
    assert array.aperture_m == pytest.approx(0.3)


def test_single_element_has_no_aperture():
    array = PlanarArray([[0.3, -0.1, 0.2]], 0.3)
    assert array.aperture_m == 0
    assert array.fraunhofer_distance_m == 0


def test_array_keeps_its_own_copy_of_the_positions():
    mine = torch.from_numpy(oracles.rectangular(2, 3))
    array = PlanarArray(mine, 0.3)
    before = array.positions_m.clone()
    mine.zero_()
    assert torch.equal(array.positions_m, before)


@pytest.mark.parametrize("make", [list, np.asarray, torch.as_tensor, lambda v: torch.as_tensor(v, dtype=torch.float32)])
def test_positions_come_as_lists_numpy_or_tensors_and_are_kept_in_float64(make):
    array = PlanarArray(make([[0.0, 0.0, 0.0], [0.5, 0.25, -0.5]]), 0.3)
    assert array.positions_m.dtype == torch.float64
    assert array.positions_m.tolist() == [[0, 0, 0], [0.5, 0.25, -0.5]]


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        (np.zeros((0, 3)), "positions_m"),
        (np.zeros((4, 2)), "positions_m"),
        (np.zeros(3), "positions_m"),
        (np.zeros((2, 4, 3)), "positions_m"),
        (np.arange(12.0).reshape(3, 4), "transposed"),
    ],
)
def test_array_refuses_positions_of_the_wrong_shape(positions, says):
    with pytest.raises(ShapeError, match=says):
        PlanarArray(positions, 0.3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_array_refuses_positions_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="positions_m"):
        PlanarArray([[0, 0, 0], [0, bad, 0]], 0.3)


@pytest.mark.parametrize("wavelength", [0, -0.3, math.nan, math.inf])
def test_array_refuses_a_wavelength_that_is_not_positive(wavelength):
    with pytest.raises(ValueError, match="wavelength_m"):
        PlanarArray([[0, 0, 0]], wavelength)


@pytest.mark.parametrize(
    ("kwargs", "name"), [({"n_h": 0}, "n_h"), ({"n_v": -1}, "n_v"), ({"spacing_m": 0}, "spacing_m")]
)
def test_rectangular_array_refuses_empty_sides_and_zero_spacing(kwargs, name):
    with pytest.raises(ValueError, match=name):
        PlanarArray.rectangular(**kwargs)


def test_array_cannot_be_reassigned():
    array = PlanarArray.rectangular(2, 2)
    with pytest.raises(AttributeError):
        array.wavelength_m = 1.0  # type: ignore[misc]


# ---- lattices


@pytest.mark.parametrize("order", [list(range(15)), PERMUTATION, list(range(14, -1, -1))])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.4, -1.3)])
def test_lattice_is_found_in_any_element_order_and_place(order, centre):
    positions = oracles.rectangular(3, 5, 0.15, 0.11, centre)[order]
    lattice = PlanarArray(positions, 0.3).lattice
    assert (lattice.n_h, lattice.n_v) == (3, 5)
    assert lattice.spacing_h_m == pytest.approx(0.15)
    assert lattice.spacing_v_m == pytest.approx(0.11)
    ordered = lattice_positions(lattice, positions)
    np.testing.assert_allclose(np.diff(ordered[..., 0], axis=0), 0.15)
    np.testing.assert_allclose(np.diff(ordered[..., 1], axis=1), 0.11)
    np.testing.assert_allclose(np.diff(ordered[..., 0], axis=1), 0, atol=1e-15)
    np.testing.assert_allclose(np.diff(ordered[..., 1], axis=0), 0, atol=1e-15)


@pytest.mark.parametrize(("n_h", "n_v"), [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_thin_arrays_are_lattices(n_h, n_v):
    lattice = PlanarArray(oracles.rectangular(n_h, n_v), 0.3).lattice
    assert (lattice.n_h, lattice.n_v) == (n_h, n_v)
    assert sorted(lattice.order) == list(range(n_h * n_v))


def test_positions_rounded_to_float32_are_still_a_lattice():
    positions = torch.from_numpy(oracles.rectangular(12, 12)).float()
    assert find_lattice(positions).n_h == 12


def not_a_lattice():
    regular = oracles.rectangular(3, 4)
    jittered, lifted, tilted = regular.copy(), regular.copy(), regular.copy()
    jittered[5, 0] += 1e-4
    lifted[:, 2] = 0.05
    tilted[:, 2] = 0.1 * tilted[:, 0]
    stretched = regular.copy()
    stretched[stretched[:, 0] > 0.1, 0] += 0.05
    doubled = regular.copy()
    doubled[3] = doubled[4]
    angle = 0.3
    turned = regular @ np.array(
        [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    return {
        "one element out of place": jittered,
        "not in the plane z = 0": lifted,
        "tilted out of the plane": tilted,
        "columns of unequal spacing": stretched,
        "two elements in one place": doubled,
        "an empty corner": regular[:-1],
        "turned in its plane": turned,
        "irregular": oracles.irregular_plane(0, 12, 0.5),
        "volumetric": oracles.volumetric(0, 12, 0.5),
        "two elements on a diagonal": np.array([[0.0, 0, 0], [0.1, 0.1, 0]]),
        "two elements in one place only": np.zeros((2, 3)),
    }


@pytest.mark.parametrize("name", not_a_lattice())
def test_what_is_not_a_full_uniform_lattice_is_not_taken_for_one(name):
    assert PlanarArray(not_a_lattice()[name], 0.3).lattice is None


# ---- grids


def test_reference_grid_is_the_one_of_the_reference_system():
    grid = SearchGrid.reference()
    assert grid.shape == (361, 181, 7)
    assert grid.size == 361 * 181 * 7
    np.testing.assert_allclose(grid.azimuth_rad.numpy(), np.radians(np.linspace(-60, 60, 361)), atol=1e-14)
    np.testing.assert_allclose(grid.elevation_rad.numpy(), np.radians(np.linspace(-30, 30, 181)), atol=1e-14)
    assert grid.range_m.tolist() == list(oracles.REFERENCE_RANGES_M)


def test_training_grid_has_the_planes_of_the_reference_grid():
    grid = SearchGrid.training()
    assert grid.shape == (61, 41, 7)
    assert torch.equal(grid.range_m, SearchGrid.reference().range_m)
    assert float(grid.azimuth_rad[-1]) == pytest.approx(math.radians(60))


@pytest.mark.parametrize("count", [1, 2, 5, 180, 361])
def test_box_axes_are_exactly_antisymmetric(count):
    axis = SearchGrid.box(count, 1, [1.0], 1.0, 0.5).azimuth_rad
    assert torch.equal(axis, -axis.flip(0))


def test_grid_points_are_in_the_order_azimuth_elevation_range():
    azimuth, elevation, r = [-0.2, 0.1, 0.5], [0.0, 0.3], [0.5, 1.0, 2.0, 9.0]
    points = SearchGrid(azimuth, elevation, r).points()
    assert points.shape == (3, 2, 4, 3)
    np.testing.assert_array_equal(points.numpy(), oracles.box(azimuth, elevation, r))


@pytest.mark.parametrize("axis", ["azimuth_rad", "elevation_rad", "range_m"])
@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([], ShapeError),
        ([[0.1, 0.2]], ShapeError),
        (0.3, ShapeError),
        ([0.2, 0.1], ValueError),
        ([0.1, 0.1], ValueError),
        ([0.1, math.nan], ValueError),
        ([-math.inf, 0.1], ValueError),
        ([0.1, math.inf, math.inf], ValueError),
    ],
)
def test_grid_refuses_axes_that_are_empty_unsorted_or_not_finite(axis, values, error):
    axes = {"azimuth_rad": [0.0], "elevation_rad": [0.0], "range_m": [1.0], axis: values}
    with pytest.raises(error, match=axis):
        SearchGrid(**axes)


def test_the_last_plane_of_a_grid_may_be_the_far_field():
    grid = SearchGrid([-0.2, 0.1], [0.0], [2.0, math.inf])
    assert grid.shape == (2, 1, 2)
    np.testing.assert_array_equal(grid.points().numpy(), oracles.box([-0.2, 0.1], [0.0], [2.0, math.inf]))
    assert "range 2 .. inf m" in repr(grid)
    assert SearchGrid([0.0], [0.0], [math.inf]).size == 1
    for axis in ("azimuth_rad", "elevation_rad"):
        with pytest.raises(ValueError, match=f"{axis} must be finite"):
            SearchGrid(**{"azimuth_rad": [0.0], "elevation_rad": [0.0], "range_m": [1.0], axis: [0.0, math.inf]})


@pytest.mark.parametrize("r", [[0.0, 1.0], [-1.0, 1.0], [-0.5]])
def test_grid_refuses_ranges_that_are_not_positive(r):
    with pytest.raises(ValueError, match="range_m"):
        SearchGrid([0.0], [0.0], r)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "name"), [([-60.0, 60.0], [0.0], "azimuth_rad"), ([0.0], [-30, 30], "elevation_rad")]
)
def test_grid_recognises_degrees(azimuth, elevation, name):
    with pytest.raises(ValueError, match=rf"{name}.*degrees"):
        SearchGrid(azimuth, elevation, [1.0])


def test_grid_keeps_its_own_copy_of_the_axes():
    axis = np.array([0.5, 1.0, 2.0])
    grid = SearchGrid([0.0], [0.0], axis)
    axis[:] = -1
    assert grid.range_m.tolist() == [0.5, 1.0, 2.0]


# ---- coordinates


@pytest.mark.parametrize(
    ("azimuth", "elevation", "expected"),
    [(0, 0, [0, 0, 1]), (90, 0, [1, 0, 0]), (0, 90, [0, 1, 0]), (-90, 0, [-1, 0, 0]), (180, 0, [0, 0, -1])],
)
def test_azimuth_turns_towards_x_and_elevation_towards_y(azimuth, elevation, expected):
    u = direction_cosines(torch.tensor(math.radians(azimuth)).double(), torch.tensor(math.radians(elevation)).double())
    np.testing.assert_allclose(u.numpy(), expected, atol=1e-7)


def test_direction_cosines_broadcast_to_unit_vectors():
    azimuth, elevation = torch.linspace(-3, 3, 7).double()[:, None], torch.linspace(-1.5, 1.5, 4).double()
    u = direction_cosines(azimuth, elevation)
    np.testing.assert_allclose(u.numpy(), oracles.direction(azimuth.numpy(), elevation.numpy()), atol=1e-15)
    np.testing.assert_allclose(u.norm(dim=-1).numpy(), 1, atol=1e-15)


@settings(derandomize=True, deadline=None)
@given(
    st.floats(-math.pi + 1e-6, math.pi - 1e-6),
    st.floats(-math.pi / 2 + 1e-4, math.pi / 2 - 1e-4),
    st.floats(1e-3, 1e5),
)
def test_spherical_and_cartesian_coordinates_are_inverse(azimuth, elevation, r):
    position = torch.tensor([azimuth, elevation, r], dtype=torch.float64)
    back = cartesian_to_spherical(spherical_to_cartesian(position))
    np.testing.assert_allclose(back[:2].numpy(), position[:2].numpy(), atol=1e-9)
    assert float(back[2]) == pytest.approx(r, rel=1e-12)


def test_far_points_are_infinitely_far_along_their_direction():
    position = torch.tensor([[0.0, 0.0, math.inf], [-0.3, 0.4, math.inf], [math.pi / 2, 0.0, 2.0]])
    xyz = spherical_to_cartesian(position)
    assert xyz[:2].tolist() == [[0.0, 0.0, math.inf], [-math.inf, math.inf, math.inf]]
    np.testing.assert_allclose(xyz[2], [2.0, 0.0, 0.0], atol=1e-6)


def test_conversions_keep_leading_dimensions_and_dtype():
    position = torch.rand(2, 0, 3, 3)
    assert spherical_to_cartesian(position).shape == (2, 0, 3, 3)
    assert cartesian_to_spherical(torch.rand(4, 3)).dtype == torch.float32


# ---- what an array cannot tell apart


def lobes_of(spacing, span_deg=90.0):
    half = math.radians(span_deg)
    array = SensorArray.linear(8, spacing, 1.0)
    return any("grating" in said for said in ambiguities(array, Region((-half, half), (0, 0), (1, math.inf))))


def test_grating_lobes_are_said_where_the_region_holds_two_of_them():
    assert not lobes_of(0.5)
    assert lobes_of(0.51)
    # sin 30 - sin(-30) = 1 wavelength / spacing
    assert not lobes_of(0.99, 30.0)
    assert lobes_of(1.01, 30.0)
    wide = SensorArray.rectangular(4, 4, 0.4, 1.0).positions_m * torch.tensor([1.0, 2.0, 1.0])
    assert any("grating" in said for said in ambiguities(SensorArray(wide, 1.0), Region.of(SensorArray(wide, 1.0))))


@pytest.mark.parametrize(
    ("array", "shortest"),
    [
        (SensorArray.linear(8, 0.3, 1.0), 0.6),
        (SensorArray.circular(4, 1.0, 1.0), 2 * math.sqrt(2)),
        (SensorArray(torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.4, 0.3, 0]]), 1.0), 0.2),
        (SensorArray([[0.0, 0.0, 0.0]], 1.0), 0.0),
    ],
)
def test_the_alias_wavelength_is_twice_the_spacing(array, shortest):
    assert alias_wavelength(array) == pytest.approx(shortest)


def test_the_most_sources_are_the_distances_along_a_line_and_else_one_less_than_the_elements():
    assert most_sources(SensorArray.linear(8, 0.3, 1.0)) == 7
    sparse = SensorArray(torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [4.0, 0, 0], [6.0, 0, 0]]), 1.0)
    assert most_sources(sparse) == 6  # 1 2 3 4 5 6
    assert most_sources(SensorArray.circular(5, 0.3, 1.0)) == 4


def test_lines_planes_and_rings_say_what_they_cannot_tell():
    def said(array):
        return " ".join(ambiguities(array, Region.of(array)))

    assert "line" in said(SensorArray.linear(8, 0.5, 1.0))
    assert "mirror image behind" in said(SensorArray.rectangular())
    ring = SensorArray.circular(5, 0.3, 1.0)
    assert "own height" in said(ring)
    above = Region((-math.pi, math.pi), (0.0, 1.0), (1.0, math.inf))
    assert "mirror image below" in " ".join(ambiguities(ring, above))
    assert said(SensorArray(torch.eye(4, 3) * 0.4, 1.0)) == ""


# ---- boxes


@pytest.mark.parametrize(
    "box",
    [
        ((-3.0, 3.0), (-1.0, 2.0), (1.0, 6.0)),
        ((1.0, 3.0), (1.0, 2.0), (-4.0, -2.0)),
        ((-0.5, 0.3), (-3.0, -1.0), (-2.0, -1.0)),  # across azimuth 180 degrees
        ((-1.0, 1.0), (0.5, 2.0), (-1.0, 1.0)),  # over the elements
        ((-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0)),  # around them
    ],
)
def test_the_region_of_a_box_is_the_smallest_that_holds_it(box):
    region = Region.box_m(*box)
    grid = torch.cartesian_prod(*(torch.linspace(low, high, 41, dtype=torch.float64) for low, high in box))
    position = cartesian_to_spherical(grid)
    middle = sum(region.azimuth_rad) / 2
    azimuth = torch.remainder(position[:, 0] - middle + math.pi, 2 * math.pi) - math.pi + middle
    for values, (low, high), step in (
        (azimuth, region.azimuth_rad, 0.2),
        (position[:, 1], region.elevation_rad, 0.1),
        (position[:, 2], region.range_m, 0.1),
    ):
        assert float(values.max()) <= high + 1e-9
        assert float(values.max()) >= high - step
        if values is not azimuth and low != region.range_m[0]:
            assert float(values.min()) == pytest.approx(low, abs=step)
    assert float(azimuth.min()) >= region.azimuth_rad[0] - 1e-9
    assert bool(region.holds(position).all())
    assert not bool(region.holds(position * torch.tensor([1.0, 1.0, 5.0])).all())


def test_a_box_with_a_side_that_is_no_interval_is_refused():
    for side in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (0.0, math.nan), 3.0):
        with pytest.raises(ValueError, match="y of a box"):
            Region.box_m((0, 1), side, (1, 2))


def test_places_on_a_face_are_at_the_edge_and_a_little_outside_is_still_held():
    region = Region.box_m((-1, 1), (-1, 1), (1, 3))
    places = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 2.0], [0.0, 0.0, 3.03], [0.0, 0.0, 3.05]]).double()
    position = cartesian_to_spherical(places)
    assert region.at_edge(position).tolist() == [False, True, True, True]
    assert region.holds(position).tolist() == [True, True, True, False]
