"""Detection where earlier code went wrong: scales, flat maps, thin grids, closed axes, lazy conjugates."""

import math

import pytest
import torch

from risfast import DetectionOptions, PlanarArray, SearchGrid, detect_sources, detect_sources_lowrank
from risfast.steering import steering_vectors

SURFACE = PlanarArray.rectangular(8, 8, 0.15, 0.3)
GRID = SearchGrid.box(121, 61, [0.55, 0.85, 1.3, 2.0, 3.5, 6.0, 9.5], math.radians(60), math.radians(30))
TRUE = torch.tensor([[0.17, 0.09, 2.0], [-0.52, -0.17, 5.0]], dtype=torch.float64)


def factor(array: PlanarArray, position: torch.Tensor) -> torch.Tensor:
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
    torch.testing.assert_close(scaled.confidence, plain.confidence, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_flat_map_holds_no_source(seed):
    """White noise seen exactly, or almost: nothing stands out, so nothing is found."""
    generator = torch.Generator().manual_seed(seed)
    almost = torch.eye(64) + torch.diag(torch.rand(64, generator=generator)) * 1e-3
    for covariance in (torch.eye(64), almost):
        (found,) = detect_sources(covariance.to(torch.complex64), SURFACE, GRID)
        assert len(found) == 0


def test_a_linear_array_is_searched_on_one_elevation():
    array = PlanarArray.linear(16, 0.15, 0.3)
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
    ring = PlanarArray(torch.stack([0.5 * turn.cos(), torch.zeros(24).double(), 0.5 * turn.sin()], -1), 0.3)
    a = factor(ring, torch.tensor([[math.pi - 0.001, 0.0, 3.0]], dtype=torch.float64))
    grid = SearchGrid(torch.linspace(-math.pi, math.pi, 361, dtype=torch.float64), [0.0], [2.0, 3.0, 5.0])
    (found,) = detect_sources(a @ a.mH + 0.1 * torch.eye(24), ring, grid)
    assert len(found) == 1
    assert math.cos(float(found.azimuth) - (math.pi - 0.001)) > math.cos(0.01)


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


@pytest.mark.parametrize("wrong", [[[1.0]], torch.eye(64), None])
def test_what_is_no_covariance_is_refused_by_name(wrong):
    with pytest.raises(TypeError, match="R must be"):
        detect_sources(wrong, SURFACE, GRID)
