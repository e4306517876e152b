"""Plans: nodes by rule and by check, bounded tables, and what is said about them."""

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import clear_plans, mvdr_spectrum, plan
from risfast.ops.devices import bytes_of
from risfast.ops.interpolation import bessel_node_count, chebyshev_nodes, interpolation_matrix
from risfast.ops.plan import _evaluators


@pytest.mark.parametrize("c", [0.3, 4.0, 18.1, 36.2, 90.0])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8, 1e-12])
def test_the_node_rule_bounds_the_error_of_an_exponential_and_is_not_wasteful(c, tolerance):
    count = bessel_node_count(torch.tensor([c], dtype=torch.float64), tolerance, 1000)
    x = torch.linspace(-1, 1, 401, dtype=torch.float64)

    def error(n: int) -> float:
        nodes = chebyshev_nodes(-1.0, 1.0, n)
        exact = torch.exp(1j * c * x)
        guess = interpolation_matrix(nodes, -1.0, 1.0, x).to(exact.dtype) @ torch.exp(1j * c * nodes)
        return float((guess - exact).abs().max())

    assert error(count) <= max(tolerance, 1e-13)
    assert error(max(1, int(0.7 * count) - 2)) > tolerance


def test_the_node_rule_stops_at_the_axis():
    assert bessel_node_count(torch.tensor([5000.0], dtype=torch.float64), 1e-8, 361) == 361


def test_interpolation_reproduces_polynomials_and_its_own_nodes():
    nodes = chebyshev_nodes(-2.0, 3.0, 7)
    points = torch.cat([nodes, torch.linspace(-2, 3, 33, dtype=torch.float64)])
    matrix = interpolation_matrix(nodes, -2.0, 3.0, points)
    for power in range(7):
        torch.testing.assert_close(matrix @ nodes**power, points**power, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_elements_between_the_range_planes_do_not_break_the_error_bound(seed, dtype):
    """A phase bends hardest where a source passes an element, on whichever plane that is."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(24, 3))
    positions = direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(0.2, 0.8, (24, 1))
    ranges = np.array([0.3, 0.4, 0.55, 0.65, 0.75, 0.85, 1.3])
    array = PlanarArray(positions, 1.0)
    grid = SearchGrid.box(181, 91, ranges, np.pi / 3, np.pi / 6)
    x = rng.normal(size=(24, 3)) + 1j * rng.normal(size=(24, 3))
    covariance = x @ x.conj().T
    volume = mvdr_spectrum(torch.as_tensor(covariance, dtype=dtype), array, grid, reduce="none").numpy()
    pick = tuple(rng.integers(0, n, 4000) for n in volume.shape)
    axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
    points = np.stack([axis.numpy()[i] for axis, i in zip(axes, pick, strict=True)], -1)
    # The operator sees the covariance rounded to its dtype.
    seen = torch.as_tensor(covariance, dtype=dtype).to(torch.complex128).numpy()
    exact = oracles.capon(seen[None], oracles.steering(positions, 1.0, points))[0]
    error = np.abs(10 * np.log10(volume[pick] / exact)).max()
    assert error <= {torch.complex64: 1e-3, torch.complex128: 1e-6}[dtype]


def test_kept_tables_stay_within_their_bound_and_can_be_freed():
    clear_plans()
    array = PlanarArray.rectangular()
    R = torch.eye(144, dtype=torch.complex64)
    for n in range(12):
        mvdr_spectrum(R, array, SearchGrid.box(121 + 2 * n, 61, [0.6, 1.0, 2.0], 1.0, 0.5))
    assert 0 < sum(map(bytes_of, _evaluators._held.values())) <= _evaluators.most_bytes
    clear_plans()
    assert not _evaluators._held


def test_a_loading_that_varies_a_little_shares_its_nodes():
    array, grid = PlanarArray.rectangular(), SearchGrid.reference()
    assert plan(array, grid, loading=1.00e-2).nodes == plan(array, grid, loading=1.01e-2).nodes


def test_a_large_aperture_is_planned_at_once_and_not_interpolated():
    rng = np.random.default_rng(0)
    array = PlanarArray(np.c_[rng.uniform(-15, 15, (150, 2)), np.zeros(150)], 0.3)
    made = plan(array, SearchGrid.box(181, 91, [50.0, 100.0], 1.0, 0.5))
    assert made.method == "dense" or made.nodes == (181, 91)


@pytest.mark.parametrize("budget", [64 << 20, 256 << 20])
def test_the_plan_says_it_stays_within_the_budget(budget):
    for wavefront in ("spherical", "fresnel"):
        made = plan(
            PlanarArray.rectangular(), SearchGrid.reference(), batch=32, wavefront=wavefront, byte_budget=budget
        )
        assert made.bytes_working + made.bytes_held <= budget
        assert "method" in str(made)
