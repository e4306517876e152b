"""Detection where earlier code went wrong: scales, flat maps, thin grids, closed axes, lazy conjugates."""

import math

import pytest
import torch

from risfast import DetectionOptions, Region, SearchGrid, SensorArray, Setup, detect_sources, detect_sources_lowrank
from risfast.geometry import direction_cosines
from risfast.steering import steering_vectors

SURFACE = SensorArray.rectangular(8, 8, 0.15, 0.3)
GRID = SearchGrid.box(121, 61, [0.55, 0.85, 1.3, 2.0, 3.5, 6.0, 9.5], math.radians(60), math.radians(30))
TRUE = torch.tensor([[0.17, 0.09, 2.0], [-0.52, -0.17, 5.0]], dtype=torch.float64)


def factor(array: SensorArray, position: torch.Tensor) -> torch.Tensor:
    return steering_vectors(array, *position.unbind(-1), dtype=torch.complex128).mT


def two_sources() -> torch.Tensor:
    a = factor(SURFACE, TRUE)
    return a @ a.mH + 0.1 * torch.eye(64)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("exponent", [-30, -12, 0, 12, 30])
def test_the_unit_of_power_changes_nothing_but_the_power(exponent, dtype):
    scale = 10.0**exponent
    (plain,) = detect_sources(two_sources().to(dtype), SURFACE, GRID)
    (scaled,) = detect_sources((two_sources() * scale).to(dtype), SURFACE, GRID)
    torch.testing.assert_close(scaled.position, plain.position, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaled.power / scale, plain.power, rtol=1e-3, atol=0)
    torch.testing.assert_close(scaled.prominence_db, plain.prominence_db, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_flat_map_holds_no_source(seed):
    """White noise seen exactly, or almost: nothing stands out, so nothing is found."""
    generator = torch.Generator().manual_seed(seed)
    almost = torch.eye(64) + torch.diag(torch.rand(64, generator=generator)) * 1e-3
    for covariance in (torch.eye(64), almost):
        (found,) = detect_sources(covariance.to(torch.complex64), SURFACE, GRID)
        assert len(found) == 0


def test_a_linear_array_is_searched_on_one_elevation():
    array = SensorArray.linear(16, 0.15, 0.3)
    position = torch.tensor([[0.35, 0.1, 2.2]], dtype=torch.float64)
    a = factor(array, position)
    grid = SearchGrid(torch.linspace(-1, 1, 181), [0.1], [1.0, 2.0, 4.0])
    (found,) = detect_sources(a @ a.mH + 0.01 * torch.eye(16), array, grid)
    assert len(found) == 1
    torch.testing.assert_close(found.position, position, atol=1e-3, rtol=1e-3)


def test_a_lazily_conjugated_factor_is_that_factor():
    f = factor(SURFACE, TRUE)
    (lazy,) = detect_sources_lowrank(f.conj().resolve_conj().conj(), SURFACE, GRID)
    (plain,) = detect_sources_lowrank(f, SURFACE, GRID)
    torch.testing.assert_close(lazy.position, plain.position)


def test_a_source_at_the_seam_of_a_closed_azimuth_axis_is_one():
    turn = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    ring = SensorArray(torch.stack([0.5 * turn.cos(), torch.zeros(24).double(), 0.5 * turn.sin()], -1), 0.3)
    a = factor(ring, torch.tensor([[math.pi - 0.001, 0.0, 3.0]], dtype=torch.float64))
    grid = SearchGrid(torch.linspace(-math.pi, math.pi, 361, dtype=torch.float64), [0.0], [2.0, 3.0, 5.0])
    region = Region((-math.pi, math.pi), (0.0, 0.0), (1.0, 10.0))
    for setup, given in ((ring, grid), (Setup(ring, region), None), (ring, None)):
        (found,) = detect_sources(a @ a.mH + 0.1 * torch.eye(24), setup, given)
        assert len(found) == 1
        assert math.cos(float(found.azimuth) - (math.pi - 0.001)) > math.cos(0.01)
        assert float(found.range) == pytest.approx(3.0, abs=1e-4)
        assert found.at_edge.tolist() == [False]


def box_of_elements() -> SensorArray:
    """64 elements that fill a cube of 0.42 m, off their lattice, so that no direction looks like another."""
    generator = torch.Generator().manual_seed(3)
    cube = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1).reshape(-1, 3).double() * 0.14
    return SensorArray(cube - cube.mean(0) + 0.02 * torch.randn(64, 3, generator=generator, dtype=torch.float64), 0.3)


VOLUME = box_of_elements()


def degrees(start: float, end: float, step: float) -> torch.Tensor:
    return torch.deg2rad(torch.arange(start, end + step / 2, step, dtype=torch.float64))


AZIMUTHS = {
    "closed": degrees(-180, 180, 2),
    "open": degrees(0, 358, 2),
    "half a step inside": degrees(-179, 179, 2),
}
ELEVATIONS = {"to the poles": degrees(-90, 90, 2), "around the poles": degrees(-89, 89, 2)}
PLANES = [0.9, 1.3, 2.0, 4.0, math.inf]


def assert_finds(found, truth, angle_deg=0.3):
    """As many as there are, and each in its direction."""
    assert len(found) == len(truth)
    u, v = (direction_cosines(p[:, 0], p[:, 1]) for p in (truth, found.position.double()))
    apart = (u[:, None] - v).norm(dim=-1)
    assert float(apart.amin(1).max()) < math.radians(angle_deg)


@pytest.mark.parametrize("azimuths", AZIMUTHS)
@pytest.mark.parametrize("elevations", ELEVATIONS)
@pytest.mark.parametrize(
    "place",
    [(17, 90), (17, -90), (140, 85), (-115, 89.3), (179.94, 11), (0.01, 11), (-0.01, -11), (-179.0, 5), (180, -88.8)],
)
def test_a_source_anywhere_on_the_sphere_is_one(azimuths, elevations, place):
    truth = torch.tensor([[math.radians(place[0]), math.radians(place[1]), 1.6]], dtype=torch.float64)
    a = factor(VOLUME, truth)
    grid = SearchGrid(AZIMUTHS[azimuths], ELEVATIONS[elevations], PLANES)
    (found,) = detect_sources(a @ a.mH + 0.1 * torch.eye(64), VOLUME, grid)
    assert_finds(found, truth)
    assert float(found.range) == pytest.approx(1.6, rel=1e-2)


@pytest.mark.parametrize("second", [(57, 11), (-120, 60), (179.9, 0)])
def test_a_source_at_a_pole_leaves_room_for_another(second):
    truth = torch.tensor([[0.3, math.pi / 2, 1.6], [*map(math.radians, second), 2.0]], dtype=torch.float64)
    a = factor(VOLUME, truth) * torch.tensor([1.0, 0.7])
    options = DetectionOptions(candidates=4)  # fewer than the points of the pole's row
    for grid in (SearchGrid(AZIMUTHS["closed"], ELEVATIONS["to the poles"], PLANES), None):
        (found,) = detect_sources(a @ a.mH + 0.1 * torch.eye(64), VOLUME, grid, options=options)
        assert_finds(found, truth)


@pytest.mark.parametrize(
    ("array", "places"),
    [
        (VOLUME, [(0, 86), (180, 86)]),
        (VOLUME, [(30, 87), (120, 87)]),
        (VOLUME, [(20, 10), (24, 10)]),
        (SURFACE, [(0, 0), (4, 0)]),
        (SURFACE, [(30, 80), (-30, 80)]),
        (SURFACE, [(70, 0), (85, 0)]),
        (SURFACE, [(80, 40), (80, 50)]),
    ],
)
def test_two_sources_with_a_valley_between_them_are_two(array, places):
    """Also about a pole, and where a plane sees little of the angle."""
    truth = torch.tensor([[*map(math.radians, place), 1.6] for place in places], dtype=torch.float64)
    a = factor(array, truth) * torch.tensor([1.0, 0.8])
    (found,) = detect_sources(a @ a.mH + 1e-3 * torch.eye(64), array, loading=1e-4)
    assert_finds(found, truth)


def test_a_plane_sees_one_source_at_its_pole():
    truth = torch.tensor([[0.0, math.pi / 2, 1.5]], dtype=torch.float64)
    a = factor(SURFACE, truth)
    (found,) = detect_sources(a @ a.mH + 0.1 * torch.eye(64), SURFACE)
    assert_finds(found, truth, 2.0)  # along the plane a map is flat: at 89 degrees it is within 0.01 dB of its top


@pytest.mark.parametrize("place", [(57, 28), (57, 90), (180, 0)])
def test_a_source_in_the_far_field_is_found_at_the_end_of_the_range_axis(place):
    truth = torch.tensor([[*map(math.radians, place), math.inf]], dtype=torch.float64)
    a = factor(VOLUME, truth)
    for setup, grid in (
        (VOLUME, None),
        (VOLUME, SearchGrid(AZIMUTHS["open"], ELEVATIONS["to the poles"], PLANES)),
        (Setup(VOLUME, wavefront="planar"), None),
    ):
        (found,) = detect_sources(a @ a.mH + 0.1 * torch.eye(64), setup, grid)
        assert_finds(found, truth)
        assert 1 / float(found.range) < 1e-4  # with 0.4 m of aperture this is 1e-5 rad


def test_an_empty_batch_has_no_detections():
    none = torch.zeros(0, 64, 64, dtype=torch.complex64)
    grid = SearchGrid(AZIMUTHS["open"], ELEVATIONS["to the poles"], PLANES)
    for array, given in ((SURFACE, GRID), (VOLUME, grid)):
        assert detect_sources(none, array, given) == []
        assert detect_sources_lowrank(none[:, :, :3], array, given) == []


def test_strided_and_lazily_conjugated_covariances_are_those_covariances():
    R = two_sources()
    (plain,) = detect_sources(R, SURFACE, GRID)
    wide = torch.stack([R, -R], -1)[..., 0]
    for same in (wide, R.conj().resolve_conj().conj(), R.mT.contiguous().mT, R.mH.mH):
        (found,) = detect_sources(same, SURFACE, GRID)
        torch.testing.assert_close(found.position, plain.position, atol=1e-7, rtol=1e-7)


def test_a_default_dtype_of_float64_changes_nothing():
    truth = torch.tensor([[0.3, math.pi / 2, 1.6]], dtype=torch.float64)
    grid = SearchGrid(AZIMUTHS["open"], ELEVATIONS["to the poles"], PLANES)
    a = factor(VOLUME, truth)
    cases = ((two_sources(), SURFACE, GRID), (a @ a.mH + 0.1 * torch.eye(64), VOLUME, grid))
    for R, array, given in cases:
        (plain,) = detect_sources(R, array, given)
        torch.set_default_dtype(torch.float64)
        try:
            (found,) = detect_sources(R, array, given)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found.position, plain.position, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("plane", ["xz", "xy"])
@pytest.mark.parametrize("range_m", [1.2, 3.0, 6.0])
def test_the_range_of_a_source_is_found_by_an_array_whose_elements_are_all_as_far_from_its_middle(plane, range_m):
    """By the distance of elements from the middle alone, the wavefront of a ring would not be bent."""
    ring = SensorArray.circular(24, 0.5, 0.3, plane=plane)
    region = Region((0.2, 1.2), (0.0, 0.0), (1.0, 10.0))
    truth = torch.tensor([[0.7, 0.0, range_m]], dtype=torch.float64)
    a = factor(ring, truth)
    for setup, grid in (
        (Setup(ring, region), None),
        (ring, SearchGrid(torch.linspace(0.2, 1.2, 121), [0.0], [1.0, 1.7, 4.0, 20.0])),
    ):
        (found,) = detect_sources(a @ a.mH + 0.1 * torch.eye(24), setup, grid)
        torch.testing.assert_close(found.position[:1], truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_db", 0.0),
        ("mad_z", math.nan),
        ("prominence_db", -1.0),
        ("max_sources", 0),
        ("max_sources", 1.5),
        ("candidates", 0),
        ("candidates", 2.5),
        ("window", (6, 7, 3)),
        ("refine_points", (0, 41, 41)),
        ("separation_m", 0.0),
    ],
)
def test_an_option_that_cannot_be_met_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        DetectionOptions(**{name: value})


@pytest.mark.parametrize("wrong", [[[1.0]], torch.eye(64), torch.eye(64).numpy(), None])
def test_what_is_no_covariance_is_refused_by_name(wrong):
    with pytest.raises(TypeError, match="R must be"):
        detect_sources(wrong, SURFACE, GRID)
