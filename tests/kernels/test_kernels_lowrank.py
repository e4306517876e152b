"""The low-rank Capon kernel in residual form against the float64 brute force; see test_kernels_interpreter.py."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from test_kernels_interpreter import (  # noqa: F401
    DEVICE,
    assert_map,
    domain,
    epilogue,
    expected_power,
    kernel_module,
    on,
    poisoned,
)

from risfast.errors import ShapeError

dense = kernel_module("dense")
launch = kernel_module("launch")
lowrank = kernel_module("lowrank")

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")

WAVELENGTH = 0.3
AXES = (np.radians(np.linspace(-50, 35, 13)), np.radians(np.linspace(-10, 28, 11)), [0.6, 1.7, 8.0])


def factors(seed, batch, n, columns, loading=1e-2):
    """F [B, N, K] in complex64, delta [B], and (F F^H + delta I) in float64."""
    rng = np.random.default_rng(seed)
    F = oracles.complex_normal(rng, batch, n, columns).astype(np.complex64)
    R = F.astype(complex) @ F.astype(complex).conj().swapaxes(1, 2)
    delta = loading * np.trace(R, axis1=1, axis2=2).real / n
    return F, delta, R + delta[:, None, None] * np.eye(n)


def residual_factors(F, delta):
    return lowrank.residual_factors(on(F), torch.as_tensor(delta).to(DEVICE))


def capon(delta, n):
    return launch.Epilogue("reciprocal", torch.as_tensor(n * delta).to(DEVICE))


@pytest.mark.parametrize("loading", [1e-2, 1e-4])
@pytest.mark.parametrize(("columns", "n"), [(1, 1), (1, 13), (10, 19), (16, 37), (17, 23), (32, 19)])
def test_the_residual_of_the_factors_is_woodburys_form(columns, n, loading):
    F, delta, R = factors(columns, 2, n, columns, loading)
    U, V, info = residual_factors(F, delta)
    assert U.dtype == V.dtype == torch.complex64
    assert not info.any()
    U, V = (x.cpu().numpy().astype(complex) for x in (U, V))
    residual = np.eye(n) - U @ V.conj().swapaxes(1, 2)
    actual = residual.conj().swapaxes(1, 2) @ residual
    expected = delta[:, None, None] * np.linalg.inv(R)
    # What rounding U and V to complex64 moves; the smallest singular value of the residual is near sqrt(loading).
    np.testing.assert_allclose(actual, expected, atol=2 * 1.2e-7 * np.sqrt(columns))
    assert np.linalg.norm(U, 2, axis=(1, 2)).max() < 2  # what is taken off a is never much larger than a


def test_dependent_and_vanishing_columns_do_no_harm():
    F, _, _ = factors(3, 2, 17, 4)
    F[0, :, 3] = F[0, :, 0] * 1j
    F[1, :, 2] = 0
    delta = np.array([0.1, 0.2])
    U, V, info = residual_factors(F, delta)
    assert not info.any()
    residual = np.eye(17) - U.cpu().numpy().astype(complex) @ V.cpu().numpy().astype(complex).conj().swapaxes(1, 2)
    R = F.astype(complex) @ F.astype(complex).conj().swapaxes(1, 2) + delta[:, None, None] * np.eye(17)
    actual = residual.conj().swapaxes(1, 2) @ residual
    np.testing.assert_allclose(actual, delta[:, None, None] * np.linalg.inv(R), atol=1e-6)


def test_a_factor_that_is_not_finite_is_reported():
    F, delta, _ = factors(4, 3, 11, 3)
    F[1, 2, 2] = np.nan
    assert residual_factors(F, delta)[2].tolist() == [0, 3, 0]


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize(("columns", "batch"), [(1, 1), (10, 3), (16, 2), (19, 2), (32, 1)])
def test_capon_map_matches_brute_force(columns, batch, wavefront):
    positions = oracles.volumetric(4, 23, 0.3)
    F, delta, R = factors(columns, batch, 23, columns)
    points = dense.DensePoints.build(domain(positions, *AXES, wavefront), DEVICE)
    U, V, _ = residual_factors(F, delta)
    expected = oracles.capon(R, oracles.steering(positions, WAVELENGTH, oracles.box(*AXES), wavefront), 0.0)
    assert_map(*lowrank.residual_power(U, V, points, capon(delta, 23)), expected, 5e-5)
    volume = lowrank.residual_power(U, V, points, capon(delta, 23), volume=True)[0].cpu().numpy()
    np.testing.assert_allclose(volume, expected, rtol=5e-5)


@pytest.mark.parametrize(
    ("form", "precision"), [("linear", "ieee"), ("reciprocal", "tf32x3"), ("complement", "tf32x3")]
)
def test_epilogues_scale_each_scene(form, precision):
    positions = oracles.irregular_plane(3, 11, 0.4)
    F, delta, R = factors(8, 3, 11, 4)
    points = dense.DensePoints.build(domain(positions, *AXES, "spherical"), DEVICE)
    U, V, _ = residual_factors(F, delta)
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*AXES))
    q = delta[:, None, None, None] * oracles.analysis(np.linalg.inv(R), A)
    expected = expected_power(q, form, 2 * 11)
    given = epilogue(form, 3, 2 * 11)
    assert_map(*lowrank.residual_power(U, V, points, given, precision=precision), expected, 5e-5)
    volume = lowrank.residual_power(U, V, points, given, precision=precision, volume=True)[0]
    np.testing.assert_allclose(volume.cpu().numpy(), expected, rtol=5e-5)


@pytest.mark.parametrize("count", [1, 67, 131])
def test_lists_of_points_each_have_their_range(count):
    positions = oracles.volumetric(9, 13, 0.3)
    rng = np.random.default_rng(count)
    where = np.stack([rng.uniform(-1, 1, count), rng.uniform(-0.5, 0.5, count), rng.uniform(0.5, 9, count)], 1)
    F, delta, R = factors(5, 2, 13, 3)
    points = dense.DensePoints.build(domain(positions, *where.T, "spherical", box=False), DEVICE)
    U, V, _ = residual_factors(F, delta)
    actual = lowrank.residual_power(U, V, points, capon(delta, 13), volume=True)[0].cpu().numpy()
    np.testing.assert_allclose(actual, oracles.capon(R, oracles.steering(positions, WAVELENGTH, where), 0.0), rtol=5e-5)


# Twice to five times the errors in dB that the module documents, by loading: other sources.
PEAK_DB = {1e-2: 5e-4, 1e-4: 2e-3}


@pytest.mark.parametrize("loading", PEAK_DB)
@pytest.mark.parametrize("columns", [5, 10])
def test_nothing_cancels_at_the_sources_of_the_reference_surface(columns, loading):
    positions = oracles.rectangular(12, 12)
    axes = (np.radians(np.linspace(-60, 60, 13)), np.radians(np.linspace(-30, 30, 7)), [0.85, 3.5])
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes))
    sources = A[[1, 5, 9, 6, 11], [2, 5, 1, 3, 6], [0, 1, 1, 0, 1]].T
    mixed = np.eye(5) if columns == 5 else oracles.complex_normal(np.random.default_rng(2), 5, columns)
    F = (sources @ mixed)[None].astype(np.complex64)
    R = F.astype(complex) @ F.astype(complex).conj().swapaxes(1, 2)
    delta = loading * np.trace(R, axis1=1, axis2=2).real / 144
    points = dense.DensePoints.build(domain(positions, *axes, "spherical"), DEVICE)
    U, V, _ = residual_factors(F, delta)
    volume = lowrank.residual_power(U, V, points, capon(delta, 144), volume=True)[0].cpu().numpy()
    assert oracles.worst_db(volume, oracles.capon(R, A, loading)) < PEAK_DB[loading]


def test_equal_planes_give_the_first_one():
    positions = oracles.rectangular(3, 2)
    F, delta, _ = factors(7, 1, 6, 2)
    points = dense.DensePoints.build(domain(positions, *AXES, "planar"), DEVICE)  # a planar phase ignores the range
    U, V, _ = residual_factors(F, delta)
    assert not lowrank.residual_power(U, V, points, capon(delta, 6))[1].any()


@pytest.mark.parametrize("columns", [3, 20])
def test_the_result_does_not_depend_on_the_tile(columns, monkeypatch):
    positions = oracles.volumetric(2, 21, 0.3)
    F, delta, _ = factors(6, 1, 21, columns)
    points = dense.DensePoints.build(domain(positions, *AXES, "spherical"), DEVICE)
    U, V, _ = residual_factors(F, delta)
    expected = lowrank.residual_power(U, V, points, capon(delta, 21), volume=True)[0].cpu().numpy()
    pinned = lowrank.residual_configuration(columns)
    other = pinned | {"BLOCK_G": 32, "BLOCK_N": 32}
    monkeypatch.setattr(lowrank, "residual_configuration", lambda columns: other)
    actual = lowrank.residual_power(U, V, points, capon(delta, 21), volume=True)[0].cpu().numpy()
    np.testing.assert_allclose(actual, expected, rtol=2e-5)


def test_empty_batches_give_empty_results():
    points = dense.DensePoints.build(domain(oracles.rectangular(3, 2), *AXES, "planar"), DEVICE)
    U, V, info = residual_factors(np.zeros((0, 6, 2)), np.zeros(0))
    assert U.shape == V.shape == (0, 6, 2)
    assert info.shape == (0,)
    assert lowrank.residual_power(U, V, points, capon(np.zeros(0), 6), volume=True)[0].shape == (0, 13, 11, 3)


def test_bad_operands_are_named():
    points = dense.DensePoints.build(domain(oracles.rectangular(3, 2), *AXES, "planar"), DEVICE)
    U, V, _ = residual_factors(*factors(1, 1, 6, 2)[:2])
    one = epilogue("linear", 1)
    with pytest.raises(ShapeError, match="K at most 32"):
        residual_factors(np.zeros((1, 40, 33)), np.ones(1))
    with pytest.raises(ShapeError, match=r"U and V must have shape \(B, 6, K\)"):
        lowrank.residual_power(U[:, :5], V[:, :5], points, one)
    with pytest.raises(TypeError, match="complex64"):
        lowrank.residual_power(U.to(torch.complex128), V, points, one)
    with pytest.raises(ValueError, match="precision must be one of"):
        lowrank.residual_power(U, V, points, one, precision="bf16")
    with pytest.raises(ValueError, match="one device"):
        lowrank.residual_power(U, V.to("meta"), points, one)
    listed = dense.DensePoints.build(domain(oracles.rectangular(3, 2), [0.1], [0.2], [1.0], "planar", False), DEVICE)
    with pytest.raises(ValueError, match="ask for the volume"):
        lowrank.residual_power(U, V, listed, one)
