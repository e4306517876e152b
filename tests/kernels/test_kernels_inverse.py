"""The batched Cholesky factor and inverse kernels against numpy in float64; see test_kernels_interpreter.py."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from test_kernels_interpreter import DEVICE, domain, kernel_module, on, poisoned  # noqa: F401

from risfast.errors import ShapeError

dense = kernel_module("dense")
inverse = kernel_module("inverse")
launch = kernel_module("launch")

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

WAVELENGTH = 0.3
# A few hundred roundings, relative to the norm of the inverse times the condition (at most 50 here).
TOLERANCE = {torch.float32: 50 * 200 * 1.2e-7, torch.float64: 50 * 200 * 2.3e-16}


def covariances(seed, batch, n):
    """Well-conditioned covariances [B, N, N] and loadings [B]."""
    rng = np.random.default_rng(seed)
    R = np.stack([oracles.wishart(rng, n, 2 * n) for _ in range(batch)]).reshape(batch, n, n)
    return R, np.linspace(0.2, 0.4, batch)


def given(R, delta, dtype=torch.complex128):
    return on(R, dtype), torch.as_tensor(np.asarray(delta, float)).to(DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n", "batch"), [(1, 3), (7, 2), (16, 1), (17, 1), (37, 2), (53, 1), (64, 1)])
def test_factor_and_inverse_match_numpy(n, batch, dtype):
    R, delta = covariances(n, batch, n)
    loaded = R + delta[:, None, None] * np.eye(n)
    exact = np.linalg.inv(loaded)
    W, info = inverse.inverse_factor(*given(R, delta), dtype=dtype)
    Q, info_q = inverse.hermitian_inverse(*given(R, delta), dtype=dtype)
    assert W.dtype == Q.dtype == dtype.to_complex()
    assert info.dtype == torch.int32
    assert not info.any()
    assert not info_q.any()
    W, Q = W.cpu().numpy(), Q.cpu().numpy()
    size = np.linalg.norm(exact, axis=(1, 2)).max()
    expected = np.linalg.inv(np.linalg.cholesky(loaded)).conj().swapaxes(1, 2)
    np.testing.assert_allclose(W, expected, atol=TOLERANCE[dtype] * size)
    np.testing.assert_allclose(Q, exact, atol=TOLERANCE[dtype] * size)
    assert not np.tril(W, -1).any()
    assert np.array_equal(Q, Q.conj().swapaxes(1, 2))


def test_a_complex64_covariance_is_taken_as_it_is():
    R, delta = covariances(3, 2, 19)
    single = R.astype(np.complex64)
    Q, _ = inverse.hermitian_inverse(*given(single, delta, torch.complex64), dtype=torch.float64)
    exact = np.linalg.inv(
        (single + single.conj().swapaxes(1, 2)).astype(complex) / 2 + delta[:, None, None] * np.eye(19)
    )
    np.testing.assert_allclose(Q.cpu().numpy(), exact, atol=1e-12)


def test_only_the_hermitian_part_counts():
    R, delta = covariances(4, 1, 21)
    X = oracles.complex_normal(np.random.default_rng(5), 1, 21, 21)
    skewed = R + X - X.conj().swapaxes(1, 2)
    for compute in (inverse.inverse_factor, inverse.hermitian_inverse):
        expected, actual = (compute(*given(M, delta), dtype=torch.float64)[0].cpu().numpy() for M in (R, skewed))
        np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_a_lazily_conjugated_view_is_the_matrix_it_stands_for():
    R, delta = covariances(6, 2, 9)
    matrix, loading = given(R, delta)
    plain, _ = inverse.hermitian_inverse(matrix, loading, dtype=torch.float64)
    lazy, _ = inverse.hermitian_inverse(matrix.conj(), loading, dtype=torch.float64)
    np.testing.assert_allclose(lazy.cpu().numpy(), plain.cpu().numpy().conj(), atol=1e-13)


def test_the_first_pivot_that_is_not_positive_is_reported():
    n, batch = 37, 5
    R, delta = covariances(7, batch, n)
    loaded = R + delta[:, None, None] * np.eye(n)
    R[1, 0, 0] = -1.0
    # The 20th pivot is the Schur complement of the 20th element given those before it; take a little more than it.
    corner = loaded[2, :20, :20]
    pivot = 1 / np.linalg.inv(corner)[-1, -1].real
    R[2, 19, 19] -= 1.1 * pivot
    R[3, 36, 36] = np.nan
    info = inverse.inverse_factor(*given(R, delta), dtype=torch.float64)[1]
    assert info.tolist() == [0, 1, 20, 37, 0]
    Q, info = inverse.hermitian_inverse(*given(R, delta), dtype=torch.float32)
    assert info.tolist() == [0, 1, 20, 37, 0]
    finite = np.isfinite(Q.cpu().numpy()).all(axis=(1, 2))
    assert finite.tolist() == [True, False, False, False, True]


def test_scenes_do_not_see_each_other():
    R, delta = covariances(8, 3, 35)
    together, _ = inverse.hermitian_inverse(*given(R, delta))
    for scene in range(3):
        alone, _ = inverse.hermitian_inverse(*given(R[scene : scene + 1], delta[scene : scene + 1]))
        assert torch.equal(alone[0], together[scene])


@pytest.mark.parametrize("rows", [32, 64])
def test_the_result_does_not_depend_on_the_tile(rows, monkeypatch):
    R, delta = covariances(9, 1, 45)
    expected, _ = inverse.inverse_factor(*given(R, delta), dtype=torch.float64)
    pinned = inverse.inverse_configuration(torch.float64)
    monkeypatch.setattr(inverse, "inverse_configuration", lambda dtype: pinned | {"BLOCK_M": rows})
    actual, _ = inverse.inverse_factor(*given(R, delta), dtype=torch.float64)
    np.testing.assert_allclose(actual.cpu().numpy(), expected.cpu().numpy(), atol=1e-13)


# Four times the errors of the map in dB that the module documents for float32, by loading: other sources, other sums.
DOCUMENTED_DB = {1e-2: 8e-4, 1e-3: 6e-3, 1e-4: 5e-2}


@pytest.mark.parametrize("loading", DOCUMENTED_DB)
def test_the_capon_map_of_the_reference_surface_is_within_the_documented_error(loading):
    positions = oracles.rectangular(12, 12)
    axes = (np.radians(np.linspace(-60, 60, 25)), np.radians(np.linspace(-30, 30, 13)), [0.85, 3.5])
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes))
    sources = A[[2, 13, 20], [3, 8, 11], [0, 1, 1]]  # on the grid, where the error is largest
    R = oracles.source_covariance(sources, [1.0, 0.7, 0.4], 0.0)[None]
    R *= 144 / np.trace(R[0]).real
    expected = oracles.capon(R, A, loading)
    W, info = inverse.inverse_factor(*given(R, [loading], torch.complex64))
    Q, _ = inverse.hermitian_inverse(*given(R, [loading], torch.complex64))
    assert not info.any()
    from_factor = 144 / oracles.analysis_factored(W.cpu().numpy(), A)
    from_inverse = 144 / oracles.analysis(Q.cpu().numpy(), A)
    assert oracles.worst_db(from_factor, expected) < DOCUMENTED_DB[loading]
    assert oracles.worst_db(from_inverse, expected) < DOCUMENTED_DB[loading]
    if loading == 1e-4:
        W, _ = inverse.inverse_factor(*given(R, [loading]), dtype=torch.float64)
        assert oracles.worst_db(144 / oracles.analysis_factored(W.cpu().numpy(), A), expected) < 1e-8


def test_the_factor_feeds_dense_analysis():
    positions = oracles.irregular_plane(3, 23, 0.5)
    axes = (np.radians([-40.0, 3.0, 25.0]), np.radians([-12.0, 9.0]), [0.9, 4.0])
    R, delta = covariances(11, 2, 23)
    W, _ = inverse.inverse_factor(*given(R, delta))
    points = dense.DensePoints.build(domain(positions, *axes, "spherical"), DEVICE)
    capon = launch.Epilogue("reciprocal", torch.full((2,), 23.0, device=DEVICE))
    volume = dense.dense_power(W, points, capon, triangular=True, volume=True)[0].cpu().numpy()
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes))
    expected = oracles.capon(R + delta[:, None, None] * np.eye(23), A, 0.0)
    assert oracles.worst_db(volume, expected) < 1e-3


def test_an_empty_batch_gives_empty_results():
    W, info = inverse.inverse_factor(*given(np.zeros((0, 5, 5)), np.zeros(0)))
    Q, _ = inverse.hermitian_inverse(*given(np.zeros((0, 5, 5)), np.zeros(0)))
    assert W.shape == Q.shape == (0, 5, 5)
    assert info.shape == (0,)


def test_bad_operands_are_named():
    R, delta = given(*covariances(1, 2, 5))
    with pytest.raises(ShapeError, match=r"covariance must have shape \(B, N, N\)"):
        inverse.inverse_factor(R[0], delta)
    with pytest.raises(ShapeError, match="delta must have shape"):
        inverse.inverse_factor(R, delta[:1])
    with pytest.raises(ShapeError, match="1 to 256 elements, got 257"):
        inverse.inverse_factor(torch.ones(1, 257, 257, dtype=torch.complex64, device=DEVICE), delta[:1])
    with pytest.raises(TypeError, match="complex64 or complex128"):
        inverse.hermitian_inverse(R.real, delta)
    with pytest.raises(ValueError, match="dtype must be"):
        inverse.hermitian_inverse(R, delta, dtype=torch.float16)
    with pytest.raises(ValueError, match="one device"):
        inverse.inverse_factor(R, delta.to("meta"))
