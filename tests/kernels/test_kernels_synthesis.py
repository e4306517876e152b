"""The synthesis kernels against the float64 brute force.

See test_kernels_interpreter.py for how these tests run.
"""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from test_kernels_interpreter import (  # noqa: F401
    DEVICE,
    GRIDS,
    LATTICES,
    RANGES,
    domain,
    kernel_module,
    on,
    poisoned,
)

from risfast.errors import ShapeError

dense = kernel_module("dense")
interpolate_adjoint = kernel_module("interpolate_adjoint")
lag_adjoint = kernel_module("lag_adjoint")
lag_tables = kernel_module("lag_tables")
launch = kernel_module("launch")
synthesis = kernel_module("synthesis")
weights = kernel_module("weights")

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")

WAVELENGTH = 0.3
AXES = (np.radians(np.linspace(-50, 35, 7)), np.radians(np.linspace(-10, 28, 5)), RANGES)
# Of single precision, relative to the sum of the absolute weights: what one element of S can be.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def given(values, **options):
    return weights.PointWeights(on(values, torch.float64), **options)


def assert_synthesis(actual, p, A, dtype=torch.float32):
    assert actual.dtype == dtype.to_complex()
    actual = actual.cpu().numpy()
    scale = np.abs(p).reshape(len(p), -1).sum(1).max()
    np.testing.assert_allclose(actual, oracles.synthesis(p, A), atol=TOLERANCE[dtype] * scale)
    assert np.array_equal(actual, actual.conj().swapaxes(1, 2))


# --- Dense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize(("n", "batch"), [(1, 1), (19, 3), (37, 1)])
def test_dense_synthesis_matches_brute_force(n, batch, wavefront):
    positions = oracles.volumetric(4, n, 0.3)
    points = dense.DensePoints.build(domain(positions, *AXES, wavefront), DEVICE)
    p = np.random.default_rng(n).standard_normal((batch, 7, 5, 3))
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*AXES), wavefront)
    assert_synthesis(synthesis.dense_synthesis(given(p), points), p, A)


@pytest.mark.parametrize(("count", "precision"), [(1, "ieee"), (67, "tf32x3"), (131, "ieee")])
def test_dense_synthesis_of_lists_of_points_each_with_its_range(count, precision):
    positions = oracles.irregular_plane(9, 13, 0.4)
    rng = np.random.default_rng(count)
    where = np.stack([rng.uniform(-1, 1, count), rng.uniform(-0.5, 0.5, count), rng.uniform(0.5, 9, count)], 1)
    points = dense.DensePoints.build(domain(positions, *where.T, "spherical", box=False), DEVICE)
    p = rng.standard_normal((2, count))
    A = oracles.steering(positions, WAVELENGTH, where)
    assert_synthesis(synthesis.dense_synthesis(given(p), points, precision=precision), p, A)


def dense_case(seed=1, n=17):
    positions = oracles.volumetric(seed, n, 0.3)
    points = dense.DensePoints.build(domain(positions, *AXES, "spherical"), DEVICE)
    return points, oracles.steering(positions, WAVELENGTH, oracles.box(*AXES))


@pytest.mark.parametrize("parts", [1, 2, 3, 11])
def test_the_sum_does_not_depend_on_its_parts(parts, monkeypatch):
    points, A = dense_case()
    p = np.random.default_rng(parts).standard_normal((2, 7, 5, 3))
    monkeypatch.setattr(synthesis, "synthesis_parts", lambda *sizes: parts)
    assert_synthesis(synthesis.dense_synthesis(given(p), points), p, A)


def test_parts_cover_every_point_and_fill_a_gpu_only_where_scenes_do_not():
    assert synthesis.synthesis_parts(256, 144, 65341) == 1
    assert synthesis.synthesis_parts(1, 144, 65341) > 10
    assert synthesis.synthesis_parts(1, 144, 5) == 1
    assert synthesis.synthesis_parts(1, 1, 33) == 3


def test_equal_inputs_give_equal_bits():
    points, _ = dense_case()
    p = given(np.random.default_rng(2).standard_normal((1, 7, 5, 3)))
    assert torch.equal(synthesis.dense_synthesis(p, points), synthesis.dense_synthesis(p, points))


def test_the_result_does_not_depend_on_the_tile(monkeypatch):
    points, A = dense_case(n=35)
    p = np.random.default_rng(3).standard_normal((1, 7, 5, 3))
    for tile in ({"BLOCK_G": 64, "BLOCK_N": 16}, {"BLOCK_G": 32, "BLOCK_N": 64}):
        monkeypatch.setattr(synthesis, "synthesis_configuration", lambda tile=tile: tile | {"num_warps": 4})
        assert_synthesis(synthesis.dense_synthesis(given(p), points), p, A)


def test_analysis_and_synthesis_are_adjoint():
    points, _ = dense_case()
    rng = np.random.default_rng(5)
    W = oracles.complex_normal(rng, 2, 17, 3)
    p = rng.standard_normal((2, 7, 5, 3))
    q = (
        dense.dense_power(on(W), points, launch.Epilogue("linear", torch.ones(2, device=DEVICE)), volume=True)[0]
        .cpu()
        .numpy()
    )
    S = synthesis.dense_synthesis(given(p), points).cpu().numpy()
    inner = np.einsum("bnk,bnm,bmk->b", W.conj(), S, W).real
    np.testing.assert_allclose(inner, (p * q).sum((1, 2, 3)), atol=1e-6 * np.abs(p * q).sum())


# --- Structured -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_az", "n_el"), [(1, 1), (17, 5), (67, 37)])
@pytest.mark.parametrize(("g_az", "g_el", "batch"), [(67, 41, 2), (1, 3, 1)])
def test_adjoint_interpolation_is_the_product_of_both_transposed_matrices(n_az, n_el, g_az, g_el, batch):
    rng = np.random.default_rng(n_az)
    p = rng.standard_normal((batch, g_az, g_el, 3))
    azimuth, elevation = rng.uniform(0, 1, (g_az, n_az)), rng.uniform(0, 1, (g_el, n_el))
    matrices = [on(x, torch.float32) for x in (azimuth, elevation)]
    actual = interpolate_adjoint.interpolate_adjoint(given(p), *matrices, 3).cpu().numpy()
    expected = np.einsum("baer,am,en->brmn", p, azimuth, elevation)
    np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(p).sum((1, 2, 3)).max())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("array", "wavefront", "dtype"),
    [("permuted", "fresnel", torch.float32), ("off-centre", "planar", torch.float64)],
)
def test_lag_synthesis_matches_brute_force_on_every_symmetry(array, wavefront, grid, dtype):
    axes = (*GRIDS[grid], RANGES)
    tables = lag_tables.LagTables.build(domain(LATTICES[array], *axes, wavefront), dtype, DEVICE)
    p = np.random.default_rng(6).standard_normal((2, len(axes[0]), len(axes[1]), 3))
    A = oracles.steering(LATTICES[array], WAVELENGTH, oracles.box(*axes), wavefront)
    assert_synthesis(lag_adjoint.lag_synthesis(given(p), tables), p, A, dtype)


@pytest.mark.parametrize("array", LATTICES)
def test_lag_synthesis_matches_brute_force_on_every_lattice(array):
    axes = (np.radians(np.linspace(-60, 60, 71)), np.radians([-20.0, 4.0]), np.linspace(0.6, 9, 10))
    tables = lag_tables.LagTables.build(domain(LATTICES[array], *axes, "fresnel"), torch.float64, DEVICE)
    p = np.random.default_rng(7).standard_normal((2, 71, 2, 10))
    A = oracles.steering(LATTICES[array], WAVELENGTH, oracles.box(*axes), "fresnel")
    assert_synthesis(lag_adjoint.lag_synthesis(given(p), tables), p, A, torch.float64)


# --- Weights of winning planes ----------------------------------------------------------------------------------------


def test_weights_of_a_map_are_those_of_the_planes_that_won():
    rng = np.random.default_rng(8)
    values, plane = rng.standard_normal((2, 7, 5)), rng.integers(0, 3, (2, 7, 5))
    of_map = given(values, plane=on(plane, torch.int32))
    p = values[..., None] * (plane[..., None] == np.arange(3))
    points, A = dense_case()
    assert_synthesis(synthesis.dense_synthesis(of_map, points), p, A)
    azimuth, elevation = rng.uniform(0, 1, (7, 4)), rng.uniform(0, 1, (5, 3))
    matrices = [on(x, torch.float32) for x in (azimuth, elevation)]
    nodes = interpolate_adjoint.interpolate_adjoint(of_map, *matrices, 3).cpu().numpy()
    expected = np.einsum("baer,am,en->brmn", p, azimuth, elevation)
    np.testing.assert_allclose(nodes, expected, atol=1e-6 * np.abs(p).sum())
    positions = oracles.rectangular(3, 2)
    tables = lag_tables.LagTables.build(domain(positions, *AXES, "fresnel"), torch.float64, DEVICE)
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*AXES), "fresnel")
    assert_synthesis(lag_adjoint.lag_synthesis(of_map, tables), p, A, torch.float64)


# --- Launchers --------------------------------------------------------------------------------------------------------


def test_empty_batches_give_empty_results():
    points, _ = dense_case()
    nothing = given(np.zeros((0, 7, 5, 3)))
    tables = lag_tables.LagTables.build(domain(oracles.rectangular(3, 2), *AXES, "fresnel"), torch.float32, DEVICE)
    eye = [torch.eye(7, device=DEVICE), torch.eye(5, device=DEVICE)]
    assert synthesis.dense_synthesis(nothing, points).shape == (0, 17, 17)
    assert lag_adjoint.lag_synthesis(nothing, tables).shape == (0, 6, 6)
    assert interpolate_adjoint.interpolate_adjoint(nothing, *eye, 3).shape == (0, 3, 7, 5)


def test_bad_operands_are_named():
    points, _ = dense_case()
    p = given(np.zeros((2, 7, 5, 3)))
    with pytest.raises(ShapeError, match=r"weights must have shape \(B, 7, 5, 3\)"):
        synthesis.dense_synthesis(given(np.zeros((2, 5, 7, 3))), points)
    with pytest.raises(ValueError, match="precision must be one of"):
        synthesis.dense_synthesis(p, points, precision="bf16")
    listed = dense.DensePoints.build(domain(oracles.rectangular(2, 1), [0.1], [0.2], [1.0], "planar", False), DEVICE)
    planes = given(np.zeros((1, 1)), plane=on(np.zeros((1, 1)), torch.int32))
    with pytest.raises(ShapeError, match="a list of points has none"):
        synthesis.dense_synthesis(planes, listed)
    with pytest.raises(ShapeError, match="plane must have the shape of the weights"):
        given(np.zeros((2, 7, 5)), plane=on(np.zeros((2, 7, 4)), torch.int32))
    with pytest.raises(ShapeError, match="azimuth must be a matrix"):
        interpolate_adjoint.interpolate_adjoint(p, torch.ones(7), torch.eye(5), 3)
    with pytest.raises(TypeError, match="elevation must be float32"):
        interpolate_adjoint.interpolate_adjoint(p, torch.eye(7), torch.eye(5).double(), 3)
    with pytest.raises(ValueError, match="one device"):
        synthesis.dense_synthesis(weights.PointWeights(p.values.to("meta")), points)
