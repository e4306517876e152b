"""Nodes of interpolation: whatever array, region, wavefront and tolerance, they reproduce what lies between them."""

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import mvdr_spectrum, plan
from risfast.ops.dense import sum_of_squares, to_images
from risfast.ops.domain import Domain, NodeSet
from risfast.ops.interpolation import AxisNodes, NodeMap, bessel_node_count, box_nodes
from risfast.ops.skeleton import Skeleton

WAVELENGTH = 0.3
TOLERANCES = [3e-9, 3e-12, 2e-14]  # complex64 and complex128 at N = 144, the least that float64 resolves


def ring(n, radius, plane):
    angle = 2 * np.pi * np.arange(n) / n
    positions = np.zeros((n, 3))
    positions[:, plane] = radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    return positions


def axis(low, high, count):
    return np.radians(np.linspace(low, high, count))


SURFACE = oracles.rectangular(8, 8)
WIDE = (axis(-60, 60, 121), axis(-30, 30, 61))
# positions, azimuths, elevations, ranges, wavefront
GEOMETRIES = {
    "surface": (SURFACE, *WIDE, [0.6, 1.3, 8.0], "spherical"),
    "planar waves": (SURFACE, *WIDE, [1.0, math.inf], "planar"),
    "fresnel": (SURFACE, *WIDE, [0.9, 5.0], "fresnel"),
    "far field too": (SURFACE, *WIDE, [0.7, math.inf], "spherical"),
    "off-centre": (oracles.rectangular(6, 5, centre=(0.3, -0.2)), *WIDE, [0.9, 3.0], "spherical"),
    "line": (oracles.rectangular(16, 1), axis(-80, 80, 161), axis(-20, 20, 21), [1.5, 6.0], "spherical"),
    "upright line": (oracles.rectangular(1, 12), axis(-60, 60, 31), axis(-75, 75, 151), [1.2], "spherical"),
    "ring all round": (ring(24, 0.4, [0, 2]), axis(-180, 180, 181), axis(-40, 40, 41), [0.8, 4.0], "spherical"),
    "open circle": (ring(24, 0.4, [0, 1]), axis(-180, 178, 180), axis(-90, 90, 91), [0.8, 4.0], "spherical"),
    "volume": (oracles.volumetric(4, 30, 0.4), axis(-90, 60, 151), axis(-30, 80, 111), [0.9, 3.0], "spherical"),
    "inside the array": (oracles.volumetric(7, 20, 0.6), *WIDE, [0.4, 0.55, 0.7], "spherical"),
    "one-sided": (SURFACE, axis(10, 80, 141), axis(0, 50, 101), [0.7, 2.0], "spherical"),
    "narrow": (SURFACE, axis(-4, 4, 81), axis(20, 23, 61), [0.7, 2.0], "spherical"),
    "uneven": (SURFACE, np.sort(np.random.default_rng(3).uniform(-1, 1, 90)), axis(-30, 30, 61), [1.0], "spherical"),
    "large": (oracles.rectangular(32, 32), axis(-60, 60, 181), axis(-30, 30, 121), [4.0, 30.0], "spherical"),
    "one element": (np.zeros((1, 3)), *WIDE, [1.0, 2.0], "spherical"),
    "two elements": (oracles.rectangular(2, 1), *WIDE, [0.5, 2.0], "planar"),
    "one azimuth": (SURFACE, axis(13, 13, 1), axis(-30, 30, 61), [0.8], "spherical"),
    "one elevation": (SURFACE, axis(-60, 60, 121), axis(0, 0, 1), [0.8], "spherical"),
    "one point": (SURFACE, axis(13, 13, 1), axis(7, 7, 1), [0.8], "spherical"),
}


def domain_of(name):
    positions, azimuth, elevation, ranges, wavefront = GEOMETRIES[name]
    axes = (torch.as_tensor(np.asarray(values, float)) for values in (azimuth, elevation, ranges))
    return Domain(torch.as_tensor(positions), 2 * math.pi / WAVELENGTH, wavefront, *axes, box=True)


def unseen_error(name, found: AxisNodes, is_elevation):
    """Largest error over the whole axis, rms over pairs, at planes and directions across it drawn anew."""
    positions, *axes, wavefront = GEOMETRIES[name]
    along, across = (np.asarray(axes[i], float) for i in ((1, 0) if is_elevation else (0, 1)))
    rng = np.random.default_rng(11)
    first, second = rng.integers(0, len(positions), (2, 400))
    worst = 0.0
    for _ in range(6):
        other, r = rng.choice(across), rng.choice(axes[2])

        def field(values, other=other, r=r):
            line = np.broadcast_to(other, values.shape)
            points = np.stack([*((line, values) if is_elevation else (values, line)), np.full(values.shape, r)], -1)
            a = oracles.steering(positions, WAVELENGTH, points, wavefront)
            return a[:, first].conj() * a[:, second]

        difference = found.matrix.numpy() @ field(found.nodes.numpy()) - field(along)
        worst = max(worst, float(np.sqrt((np.abs(difference) ** 2).mean(1).max())))
    return worst


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_nodes_reproduce_phase_differences_that_no_check_has_seen(name, tolerance):
    domain = domain_of(name)
    nodes = box_nodes(domain, tolerance)
    assert nodes.checked_error <= tolerance
    # The rounding of a phase of some hundred radians is an error of the oracle, not of the nodes.
    rounding = 2e-16 * 2 * math.pi / WAVELENGTH * (float(domain.positions.norm(dim=1).max()) + 10)
    for found, is_elevation in ((nodes.azimuth, False), (nodes.elevation, True)):
        values = domain.elevation if is_elevation else domain.azimuth
        if found.matrix is None:
            assert torch.equal(found.nodes, values)
            continue
        assert found.count < len(values)
        assert values[0] <= found.nodes[0]
        assert found.nodes[-1] <= max(values[-1], values[0] + 2 * math.pi)
        assert (found.nodes.diff() > 0).all()
        if domain.mirror.flips[int(is_elevation)]:  # then half of them are computed
            assert torch.equal(found.nodes, -found.nodes.flip(0))
            torch.testing.assert_close(found.matrix, found.matrix.flip(0, 1), rtol=0, atol=1e-11)
        # A plan aims at half of the error that is promised.
        assert unseen_error(name, found, is_elevation) <= 2 * tolerance + rounding


@pytest.mark.parametrize(
    ("dtype", "loading"), [(torch.complex64, 1e-2), (torch.complex64, 1e-4), (torch.complex128, 1e-2)]
)
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "large"])
def test_a_map_from_the_nodes_is_right_where_a_source_lies_on_the_grid(name, dtype, loading):
    """Errors of a quadratic form show where it is smallest: at a strong source on a grid point."""
    positions, azimuth, elevation, ranges, wavefront = GEOMETRIES[name]
    rng = np.random.default_rng(5)
    pick = np.stack([rng.integers(0, len(values), 3) for values in (azimuth, elevation, ranges)], -1)
    points = np.stack([np.asarray(values)[pick[:, i]] for i, values in enumerate((azimuth, elevation, ranges))], -1)
    sources = oracles.steering(positions, WAVELENGTH, points, wavefront)
    covariance = torch.as_tensor(oracles.source_covariance(sources, np.array([1.0, 1.0, 1.0]), 1e-6), dtype=dtype)
    array, grid = PlanarArray(positions, WAVELENGTH), SearchGrid(azimuth, elevation, ranges)
    options = {"loading": loading, "wavefront": wavefront, "method": "chebyshev", "reduce": "none"}
    volume = mvdr_spectrum(covariance, array, grid, **options).numpy()
    seen = covariance.to(torch.complex128).numpy()[None]
    check = np.concatenate([pick, np.stack([rng.integers(0, n, 500) for n in volume.shape], -1)])
    at = np.stack([np.asarray(values)[check[:, i]] for i, values in enumerate((azimuth, elevation, ranges))], -1)
    exact = oracles.capon(seen, oracles.steering(positions, WAVELENGTH, at, wavefront), loading)[0]
    error = np.abs(10 * np.log10(volume[tuple(check.T)] / exact)).max()
    assert error <= {torch.complex64: 1e-3, torch.complex128: 1e-6}[dtype] * (10 if loading < 1e-2 else 1)


def test_the_reference_surface_needs_few_nodes():
    array, grid = PlanarArray.rectangular(), SearchGrid.reference()
    azimuth, elevation = plan(array, grid, wavefront="spherical", method="chebyshev").nodes
    assert azimuth <= 48
    assert elevation <= 36


def test_a_smaller_loading_takes_more_nodes_and_a_single_element_one():
    array, grid = PlanarArray(SURFACE, WAVELENGTH), SearchGrid(*WIDE, [0.6, 1.3, 8.0])
    counts = [plan(array, grid, method="chebyshev", loading=loading).nodes for loading in (1e-2, 1e-4)]
    assert counts[0] < counts[1]
    assert box_nodes(domain_of("one element"), 1e-9).azimuth.count <= 2


@pytest.mark.parametrize("name", ["surface", "large", "one-sided", "ring all round"])
def test_there_are_fewer_nodes_than_polynomials_would_take(name):
    domain = domain_of(name)
    found = box_nodes(domain, 3e-9).azimuth.count
    reach = float(torch.pdist(domain.positions[:, [0, 2]]).max()) * domain.wavenumber
    separations = torch.linspace(0, reach, 100, dtype=torch.float64)
    half = float(domain.azimuth[-1] - domain.azimuth[0]) / 2
    assert found < 0.95 * bessel_node_count(separations * half, 3e-9, 10_000)


@pytest.mark.parametrize("name", ["surface", "off-centre", "one-sided", "line"])
@pytest.mark.parametrize("tolerance", TOLERANCES[:2])
def test_a_skeleton_holds_fewer_nodes_and_reproduces_the_others(name, tolerance):
    domain = domain_of(name)
    found = box_nodes(domain, tolerance)
    nodes = NodeSet(domain, found.azimuth.nodes, found.elevation.nodes, torch.complex128, keep=False)
    skeleton = Skeleton.find(nodes, tolerance, keep=False)
    assert skeleton is not None
    assert skeleton.count < 0.85 * nodes.count
    rng = np.random.default_rng(2)
    n = domain.n_elements
    rows = torch.as_tensor(oracles.complex_normal(rng, 3, n)) / math.sqrt(n)  # forms of unit power that no fit has seen
    rows = domain.mirror.transform(rows)[:, None]
    everywhere = nodes.unfold(skeleton.to_nodes(sum_of_squares(skeleton, rows, 0, skeleton.count)))
    exact = nodes.to_box(to_images(nodes, sum_of_squares(nodes, rows, 0, nodes.count)), 0, nodes.azimuth.half)
    for value, truth in zip(everywhere, exact, strict=True):
        torch.testing.assert_close(value, truth, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("count", [1, 2, 7, 200])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-9, 1e-14])
def test_mapped_nodes_lie_inside_and_stay_in_order(count, tolerance):
    nodes = NodeMap(-0.5, 2.0, count, tolerance).nodes
    assert nodes.shape == (count,)
    assert (nodes > -0.5).all()
    assert (nodes < 2.0).all()
    assert (nodes.diff() > 0).all()
