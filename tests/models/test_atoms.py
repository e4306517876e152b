"""The atom grid: analysis and synthesis against the brute force, and each the other's adjoint."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import Region, SensorArray
from risfast.models.atoms import AtomAxes, AtomGrid, _significant
from risfast.setup import Setup

ARRAYS = {
    "square": lambda: SensorArray.rectangular(4, 4),
    "odd rectangle": lambda: SensorArray.rectangular(5, 3),
    "line": lambda: SensorArray.rectangular(7, 1),
    "one element": lambda: SensorArray.rectangular(1, 1),
    "irregular": lambda: SensorArray(torch.rand(9, 3, generator=torch.Generator().manual_seed(1)) - 0.5, 0.3),
}
AXES = AtomAxes(7, 5, 3)
# Uniform in azimuth: beyond the front, round the circle, out to the far field, on one elevation, off centre.
WIDE = {
    "front": AXES,
    "behind": AtomAxes(6, 4, 3, azimuth_rad=(-2.0, 2.5), elevation_rad=(-0.3, 0.9)),
    "circle": AtomAxes(8, 1, 3, azimuth_rad=math.pi, elevation_rad=(0.0, 0.0), range_m=(0.5, math.inf)),
    "sphere": AtomAxes(8, 5, 2, azimuth_rad=math.pi, elevation_rad=math.pi / 2, range_m=(0.5, math.inf)),
    "one range": AtomAxes(5, 3, 1),
}


def setup_of(array, wavefront="spherical", axes=AXES):
    return Setup(array, axes.region, wavefront)


def grid_of(array, axes=AXES, wavefront="spherical"):
    return AtomGrid(setup_of(array, wavefront, axes), axes)


def steering(array, axes, wavefront="spherical"):
    """[G, N] complex128, from the oracle."""
    azimuth, elevation = axes.angles(axes.coordinates)
    points = oracles.box(azimuth.numpy(), elevation.numpy(), (1 / axes.inverse_range).numpy())
    return oracles.steering(array.positions_m.numpy(), array.wavelength_m, points.reshape(-1, 3), wavefront)


def hermitian(array, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = array.n_elements
    x = torch.randn(batch, n, n, dtype=torch.complex64, generator=generator)
    return x + x.mH


def to_elements(grid, matrix):
    """From the mirror basis to the order of the elements: T M T^T with T the transform of the unit vectors."""
    basis = grid.transform(torch.eye(grid.array.n_elements)).to(matrix.dtype)
    return basis @ matrix @ basis.mT


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("wavefront", ["spherical", "fresnel", "planar"])
def test_synthesis_and_analysis_match_the_brute_force(name, wavefront):
    array = ARRAYS[name]()
    grid = grid_of(array, AXES, wavefront)
    a = steering(array, AXES, wavefront)
    power = torch.rand(2, *AXES.shape, generator=torch.Generator().manual_seed(3))
    exact = np.einsum("bg,gn,gm->bnm", power.flatten(1).double().numpy(), a, a.conj())
    found = to_elements(grid, grid.synthesis(power)).numpy()
    # The maps leave out singular values below 1e-3 of the largest.
    assert np.abs(found - exact).max() <= 2e-3 * np.abs(exact).max()

    q = hermitian(array, 2)
    exact = np.einsum("gn,bnm,gm->bg", a.conj(), q.to(torch.complex128).numpy(), a).real.reshape(2, *AXES.shape)
    basis = grid.transform(torch.eye(array.n_elements)).to(q.dtype)
    found = grid.analysis(basis.mT @ q @ basis).numpy()
    scale = np.linalg.norm(q.numpy(), axis=(1, 2)).max() * array.n_elements
    assert np.abs(found - exact).max() <= 2e-3 * scale


@pytest.mark.parametrize("name", ARRAYS)
def test_analysis_and_synthesis_are_adjoint(name):
    array = ARRAYS[name]()
    grid = grid_of(array)
    power = torch.randn(3, *AXES.shape, generator=torch.Generator().manual_seed(5))
    q = hermitian(array, 3, seed=6)
    left = (grid.analysis(q) * power).sum((1, 2, 3))
    right = (q.conj() * grid.synthesis(power)).sum((1, 2)).real
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * float(left.abs().max()))


@pytest.mark.parametrize("name", ARRAYS)
def test_products_for_the_analysis_are_those_of_the_whole_matrices(name):
    array = ARRAYS[name]()
    grid = grid_of(array)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 11, array.n_elements, dtype=torch.complex64, generator=generator)
    weights = torch.rand(2, 11, 1, generator=generator)
    whole = np.einsum("bjn,bjm->bnm", x.numpy().conj(), (weights * x).numpy())
    found = grid.products(x, weights * x).numpy()
    above = found != 0
    np.testing.assert_allclose(found[above], whole[above], rtol=1e-4, atol=1e-4)
    assert above[:, *np.triu_indices(array.n_elements)].all()
    exact = grid.analysis(torch.as_tensor(whole))
    torch.testing.assert_close(grid.analysis(torch.as_tensor(found)), exact, rtol=1e-4, atol=1e-3)
    assert grid.products(x[:0], x[:0]).shape == (0, array.n_elements, array.n_elements)


def test_synthesis_of_nothing_and_of_no_scene():
    grid = grid_of(SensorArray.rectangular(3, 2))
    assert grid.synthesis(torch.zeros(1, *AXES.shape)).abs().max() == 0
    assert grid.synthesis(torch.zeros(0, *AXES.shape)).shape == (0, 6, 6)
    assert grid.analysis(torch.zeros(0, 6, 6, dtype=torch.complex64)).shape == (0, *AXES.shape)


def test_the_reference_grid_keeps_half_of_the_singular_values_and_60_db():
    grid = AtomGrid(setup_of(SensorArray.rectangular()))
    assert grid.axes == AtomAxes()  # what follows from the reference setup is the reference grid
    assert grid.shape == (25, 15, 10)
    a = steering(grid.array, grid.axes)
    one = torch.zeros(1, *grid.shape)
    one[0, 3, 11, 2] = 1
    index = (3 * 15 + 11) * 10 + 2
    exact = np.outer(a[index], a[index].conj())
    error = to_elements(grid, grid.synthesis(one))[0].numpy() - exact
    assert np.linalg.norm(error) <= 2e-3 * np.linalg.norm(exact)
    ranks = [part.shape[0] for name, part in grid.named_buffers() if name.startswith("right_")]
    assert max(ranks) <= 520  # of 1040 atoms that are not mirror images of each other


def test_a_finer_grid_leaves_out_no_more_than_the_reference_grid():
    # Every atom ten times: the singular values grow by the root of ten, what may be left out does not.
    values = torch.logspace(-12, 2, 300, dtype=torch.float64)
    kept = _significant(values, 3750)
    assert torch.equal(kept, values > 1e-6 * values[-1])
    finer = _significant(10 * values, 37_500)
    assert (10 * values)[~finer].max() <= 1e-6 * values[-1] < (10 * values)[finer].min()
    assert torch.equal(_significant(values, 400), kept)  # and a coarser one keeps to its own largest


def test_axes_are_antisymmetric_and_ranges_increase():
    axes = AtomAxes()
    for coordinate, reach in zip(axes.coordinates, (60, 30), strict=True):
        assert torch.equal(coordinate, -coordinate.flip(0))
        assert float(coordinate[-1]) == pytest.approx(math.sin(math.radians(reach)))
        torch.testing.assert_close(coordinate.diff(), coordinate.diff()[:1].expand(len(coordinate) - 1))
    r = 1 / axes.inverse_range
    assert (r.diff() > 0).all()
    assert r[0] == pytest.approx(0.5)
    assert r[-1] == pytest.approx(10.0)


@pytest.mark.parametrize("name", WIDE)
def test_axes_cover_their_region_and_coordinates_are_undone_by_angles(name):
    axes = WIDE[name]
    azimuth, elevation = axes.angles(axes.coordinates)
    assert (azimuth.diff() > 0).all()
    assert (elevation.diff() > 0).all()
    points = torch.stack(torch.meshgrid(azimuth, elevation, indexing="ij"), -1)
    for i, coordinate in enumerate(axes.coordinates_of(points)):
        shape = (-1, 1) if i == 0 else (1, -1)
        torch.testing.assert_close(coordinate, axes.coordinates[i].reshape(shape).expand(axes.shape[:2]))
    low, high = axes.azimuth_rad
    if axes.region.full_circle:  # n even steps close the circle, and no direction comes twice
        step = 2 * math.pi / axes.n_azimuth
        torch.testing.assert_close(azimuth.diff(), torch.full_like(azimuth[1:], step))
        assert float(azimuth[0] + 2 * math.pi - azimuth[-1]) == pytest.approx(step)
    else:
        assert azimuth[[0, -1]].tolist() == pytest.approx([low, high])
    assert float(elevation.abs().max()) < math.pi / 2 - 0.05  # at a pole every azimuth is the same direction
    far, near = axes.region.inverse_range
    assert float(axes.inverse_range[-1]) == pytest.approx(far)
    assert axes.n_range == 1 or float(axes.inverse_range[0]) == pytest.approx(near)
    torch.testing.assert_close(
        torch.tensor(axes.spacing, dtype=torch.float64)[:2],
        torch.stack([c.diff()[0] if len(c) > 1 else torch.tensor(1.0) for c in axes.coordinates]).double(),
    )


@pytest.mark.parametrize("name", WIDE)
def test_the_maps_are_exact_on_axes_of_every_kind(name):
    axes = WIDE[name]
    for array in (SensorArray.circular(9, 0.4, 0.3, plane="xz"), SensorArray.rectangular(3, 2)):
        grid = grid_of(array, axes)
        a = steering(array, axes)
        power = torch.rand(2, *axes.shape, generator=torch.Generator().manual_seed(3))
        exact = np.einsum("bg,gn,gm->bnm", power.flatten(1).double().numpy(), a, a.conj())
        found = to_elements(grid, grid.synthesis(power)).numpy()
        assert np.abs(found - exact).max() <= 2e-3 * np.abs(exact).max()
        q = hermitian(array, 2)
        basis = grid.transform(torch.eye(array.n_elements)).to(q.dtype)
        exact = np.einsum("gn,bnm,gm->bg", a.conj(), q.to(torch.complex128).numpy(), a).real.reshape(2, *axes.shape)
        scale = np.linalg.norm(q.numpy(), axis=(1, 2)).max() * array.n_elements
        assert np.abs(grid.analysis(basis.mT @ q @ basis).numpy() - exact).max() <= 2e-3 * scale


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_axes_of_a_setup_do_not_depend_on_the_unit_of_length(scale):
    setup = Setup(SensorArray.rectangular(8, 5), Region((-0.9, 0.7), (-0.2, 0.6), (0.4, 6.0)))
    plain, scaled = AtomAxes.of(setup), AtomAxes.of(setup.scaled(scale))
    assert scaled.shape == plain.shape
    torch.testing.assert_close(scaled.inverse_range * scale, plain.inverse_range)


def test_axes_of_a_setup_follow_aperture_curvature_and_region():
    reference = setup_of(SensorArray.rectangular())
    assert AtomAxes.of(reference) == AtomAxes()
    small, wider = (AtomAxes.of(setup_of(SensorArray.rectangular(n, 6))) for n in (6, 11))
    assert abs((wider.n_azimuth - 1) - 2 * (small.n_azimuth - 1)) <= 2  # twice the aperture
    assert wider.n_elevation == small.n_elevation
    assert wider.n_range > small.n_range  # elements farther out see more curvature
    assert AtomAxes.of(reference.replace(wavefront="planar", tolerance=None)).n_range == 1
    fixed = Region((-1.0, 1.0), (0.1, 0.1), (2.0, 2.0))
    one = AtomAxes.of(reference.replace(region=fixed))
    assert one.shape[1:] == (1, 1)
    assert float(one.angles(one.coordinates)[1]) == pytest.approx(0.1)
    assert one.inverse_range.tolist() == pytest.approx([0.5])
    far = AtomAxes.of(Setup(SensorArray.rectangular(6, 6)))
    assert float(far.inverse_range[-1]) == 0.0


def test_a_setup_that_wants_too_many_atoms_gets_coarser_axes_of_about_the_same_shape():
    array = SensorArray.rectangular(48, 24)
    axes = AtomAxes.of(setup_of(array))
    assert 500 <= math.prod(axes.shape) <= 20_000
    assert axes.n_azimuth > axes.n_elevation > 1
    assert axes.n_range > 1


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"n_azimuth": 0}, "n_azimuth"),
        ({"n_range": 0}, "n_range"),
        ({"azimuth_rad": 60.0}, "azimuth_rad"),
        ({"azimuth_rad": (1.0, -1.0)}, "azimuth_rad"),
        ({"elevation_rad": math.pi}, "elevation_rad"),
        ({"elevation_rad": (0.2, 0.1)}, "elevation_rad"),
        ({"range_m": (0.0, 1.0)}, "range_m"),
        ({"range_m": (2.0, 1.0)}, "range_m"),
    ],
)
def test_wrong_axes_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        AtomAxes(**wrong)


def test_the_maps_compute_on_the_device_of_their_input():
    # The meta device has no values: a table that stayed on the CPU shows as a mixture of devices.
    grid = grid_of(SensorArray.rectangular(4, 4)).to("meta")
    rows = torch.empty(2, 5, 16, dtype=torch.complex64, device="meta")
    assert grid.transform(rows).device.type == "meta"
    assert grid.synthesis(torch.empty(2, *AXES.shape, device="meta")).shape == (2, 16, 16)
    assert grid.analysis(torch.empty(2, 16, 16, dtype=torch.complex64, device="meta")).shape == (2, *AXES.shape)
