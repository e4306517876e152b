"""The atom grid: analysis and synthesis against the brute force, and each the other's adjoint."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import PlanarArray
from risfast.models.atoms import AtomAxes, AtomGrid, _significant

ARRAYS = {
    "square": lambda: PlanarArray.rectangular(4, 4),
    "odd rectangle": lambda: PlanarArray.rectangular(5, 3),
    "line": lambda: PlanarArray.rectangular(7, 1),
    "one element": lambda: PlanarArray.rectangular(1, 1),
    "irregular": lambda: PlanarArray(torch.rand(9, 3, generator=torch.Generator().manual_seed(1)) - 0.5, 0.3),
}
AXES = AtomAxes(7, 5, 3)


def steering(array, axes, wavefront="spherical"):
    """[G, N] complex128, from the oracle."""
    sines = axes.sines
    points = oracles.box(np.arcsin(sines[0].numpy()), np.arcsin(sines[1].numpy()), 1 / axes.inverse_range.numpy())
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
    grid = AtomGrid(array, AXES, wavefront)
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
    grid = AtomGrid(array, AXES)
    power = torch.randn(3, *AXES.shape, generator=torch.Generator().manual_seed(5))
    q = hermitian(array, 3, seed=6)
    left = (grid.analysis(q) * power).sum((1, 2, 3))
    right = (q.conj() * grid.synthesis(power)).sum((1, 2)).real
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * float(left.abs().max()))


@pytest.mark.parametrize("name", ARRAYS)
def test_products_for_the_analysis_are_those_of_the_whole_matrices(name):
    array = ARRAYS[name]()
    grid = AtomGrid(array, AXES)
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
    grid = AtomGrid(PlanarArray.rectangular(3, 2), AXES)
    assert grid.synthesis(torch.zeros(1, *AXES.shape)).abs().max() == 0
    assert grid.synthesis(torch.zeros(0, *AXES.shape)).shape == (0, 6, 6)
    assert grid.analysis(torch.zeros(0, 6, 6, dtype=torch.complex64)).shape == (0, *AXES.shape)


def test_the_reference_grid_keeps_half_of_the_singular_values_and_60_db():
    grid = AtomGrid(PlanarArray.rectangular())
    assert grid.shape == (25, 15, 10)
    a = steering(grid.array, grid.axes)
    one = torch.zeros(1, *grid.shape)
    one[0, 3, 11, 2] = 1
    index = (3 * 15 + 11) * 10 + 2
    exact = np.outer(a[index], a[index].conj())
    error = to_elements(grid, grid.synthesis(one))[0].numpy() - exact
    assert np.linalg.norm(error) <= 2e-3 * np.linalg.norm(exact)
    assert max(grid.ranks) <= 520  # of 1040 atoms that are not mirror images of each other


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
    for sines in axes.sines:
        assert torch.equal(sines, -sines.flip(0))
    r = 1 / axes.inverse_range
    assert (r.diff() > 0).all()
    assert r[0] == pytest.approx(0.5)
    assert r[-1] == pytest.approx(10.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_azimuth": 1},
        {"n_range": 0},
        {"azimuth_rad": math.pi / 2},
        {"elevation_rad": 0.0},
        {"range_m": (0.0, 1.0)},
        {"range_m": (2.0, 1.0)},
    ],
)
def test_wrong_axes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AtomAxes(**wrong)


def test_the_maps_compute_on_the_device_of_their_input():
    # The meta device has no values: a table that stayed on the CPU shows as a mixture of devices.
    grid = AtomGrid(PlanarArray.rectangular(4, 4), AXES).to("meta")
    rows = torch.empty(2, 5, 16, dtype=torch.complex64, device="meta")
    assert grid.transform(rows).device.type == "meta"
    assert grid.synthesis(torch.empty(2, *AXES.shape, device="meta")).shape == (2, 16, 16)
    assert grid.analysis(torch.empty(2, 16, 16, dtype=torch.complex64, device="meta")).shape == (2, *AXES.shape)
