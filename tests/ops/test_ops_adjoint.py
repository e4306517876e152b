"""Analysis and synthesis: values, adjointness, and the gradients of everything that is differentiable."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import analysis, mvdr_spectrum, mvdr_spectrum_lowrank, synthesis

WAVELENGTH = 0.3
ARRAYS = {
    "rectangular": oracles.rectangular(3, 5),
    "permuted": oracles.rectangular(3, 2)[[4, 0, 2, 5, 1, 3]],
    "linear": oracles.rectangular(7, 1),
    "single": np.array([[0.0, 0.0, 0.0]]),
    "irregular": oracles.irregular_plane(3, 11, 0.4),
    "volumetric": oracles.volumetric(4, 9, 0.3),
}
GRIDS = {
    "asymmetric": (np.radians(np.linspace(-50, 35, 7)), np.radians(np.linspace(-10, 28, 5)), [0.6, 1.7, 8.0]),
    "symmetric": (np.radians(np.linspace(-60, 60, 31)), np.radians(np.linspace(-30, 30, 19)), [0.85]),
    "one point": (np.radians([-21]), np.radians([7]), [2.0]),
}
LATTICES = ("rectangular", "permuted", "linear", "single")
TOLERANCE = {torch.complex64: 1e-5, torch.complex128: 1e-8}  # relative to the largest value a quadratic form can take


def methods_for(name, wavefront):
    """Every method that is valid; auto is one of them, and is tested by itself on the reference surface."""
    lag = ("lag",) if name in LATTICES and wavefront != "spherical" else ()
    return ("dense", "chebyshev", *lag)


def make(name, key):
    axes = GRIDS[key]
    return PlanarArray(ARRAYS[name], WAVELENGTH), SearchGrid(*(np.asarray(axis, float) for axis in axes))


def grid_steering(array, grid, wavefront):
    points = oracles.box(grid.azimuth_rad.numpy(), grid.elevation_rad.numpy(), grid.range_m.numpy())
    return oracles.steering(array.positions_m.numpy(), array.wavelength_m, points, wavefront)


def scattered(count, seed=0):
    """A list of points in no order, [count, 3]."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(-1, 1, count), rng.uniform(-0.5, 0.5, count), rng.uniform(0.5, 10, count)], axis=-1)


def tensor(values, dtype=None):
    return torch.as_tensor(np.asarray(values)).to(dtype) if dtype else torch.as_tensor(np.asarray(values))


# ---- values


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_analysis_of_a_hermitian_matrix_matches_brute_force(name, wavefront, dtype):
    for key in GRIDS:
        array, grid = make(name, key)
        n = array.n_elements
        A = grid_steering(array, grid, wavefront)
        Q = tensor(oracles.hermitian(np.random.default_rng(1), 2, n), dtype)
        expected = oracles.analysis(Q.numpy(), A)
        scale = n * np.linalg.norm(Q.numpy(), 2, axis=(-2, -1)).max()
        for method in methods_for(name, wavefront):
            q = analysis(Q, array, grid, wavefront=wavefront, method=method)
            assert q.dtype == dtype.to_real()
            np.testing.assert_allclose(q.numpy(), expected, atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_analysis_of_a_factor_matches_brute_force(name, wavefront, dtype):
    for key in GRIDS:
        array, grid = make(name, key)
        n = array.n_elements
        A = grid_steering(array, grid, wavefront)
        for rank in (1, 2, n, n + 3):
            W = tensor(oracles.complex_normal(np.random.default_rng(rank), 2, n, rank), dtype)
            expected = oracles.analysis_factored(W.numpy(), A)
            scale = n * np.linalg.norm(W.numpy(), 2, axis=(-2, -1)).max() ** 2
            for method in methods_for(name, wavefront):
                q = analysis(W, array, grid, factored=True, wavefront=wavefront, method=method)
                np.testing.assert_allclose(q.numpy(), expected, atol=TOLERANCE[dtype] * scale, rtol=0)
                assert float(q.min()) >= -TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_synthesis_matches_brute_force(name, wavefront, dtype):
    for key in GRIDS:
        array, grid = make(name, key)
        A = grid_steering(array, grid, wavefront)
        p = tensor(np.random.default_rng(2).standard_normal((2, *grid.shape)), dtype.to_real())
        expected = oracles.synthesis(p.numpy(), A)
        scale = np.abs(p.numpy()).sum(axis=(1, 2, 3)).max()
        for method in methods_for(name, wavefront):
            S = synthesis(p, array, grid, wavefront=wavefront, method=method)
            assert S.dtype == dtype
            np.testing.assert_allclose(S.numpy(), expected, atol=TOLERANCE[dtype] * scale, rtol=0)
            np.testing.assert_allclose(S.numpy(), S.mH.resolve_conj().numpy(), atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("count", [1, 53])
def test_the_pair_matches_brute_force_on_a_list_of_points(name, wavefront, dtype, count):
    array, points = PlanarArray(ARRAYS[name], WAVELENGTH), scattered(count)
    n = array.n_elements
    A = oracles.steering(ARRAYS[name], WAVELENGTH, points, wavefront)
    rng = np.random.default_rng(3)
    Q = tensor(oracles.hermitian(rng, 3, n), dtype)
    W = tensor(oracles.complex_normal(rng, 3, n, 2), dtype)
    p = tensor(rng.standard_normal((3, count)), dtype.to_real())
    scale = n * np.linalg.norm(Q.numpy(), 2, axis=(-2, -1)).max()
    for method in ("auto", "dense"):
        options = {"wavefront": wavefront, "method": method}
        q = analysis(Q, array, torch.from_numpy(points), **options)
        np.testing.assert_allclose(q.numpy(), oracles.analysis(Q.numpy(), A), atol=TOLERANCE[dtype] * scale, rtol=0)
        q = analysis(W, array, torch.from_numpy(points), factored=True, **options)
        expected = oracles.analysis_factored(W.numpy(), A)
        np.testing.assert_allclose(q.numpy(), expected, atol=TOLERANCE[dtype] * expected.max() * n, rtol=0)
        S = synthesis(p, array, torch.from_numpy(points), **options)
        total = np.abs(p.numpy()).sum(axis=1).max()
        np.testing.assert_allclose(S.numpy(), oracles.synthesis(p.numpy(), A), atol=TOLERANCE[dtype] * total, rtol=0)


def test_points_on_a_grid_give_the_values_of_the_grid():
    array, grid = make("volumetric", "asymmetric")
    Q = tensor(oracles.hermitian(np.random.default_rng(1), 2, 9))
    on_points = analysis(Q, array, grid.points().reshape(-1, 3)).reshape(2, *grid.shape)
    np.testing.assert_allclose(on_points.numpy(), analysis(Q, array, grid).numpy(), atol=1e-6)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_the_pair_matches_brute_force_on_the_reference_surface(wavefront):
    array = PlanarArray.rectangular()
    axes = (np.radians(np.linspace(-60, 60, 25)), np.radians(np.linspace(-30, 30, 13)), [0.55, 2.0, 9.5])
    grid = SearchGrid(*(np.asarray(axis, float) for axis in axes))
    A = grid_steering(array, grid, wavefront)
    rng = np.random.default_rng(4)
    for dtype, tolerance in TOLERANCE.items():
        Q = tensor(oracles.hermitian(rng, 1, 144), dtype)
        W = tensor(oracles.complex_normal(rng, 1, 144, 10), dtype)
        p = tensor(rng.standard_normal((1, *grid.shape)), dtype.to_real())
        expected = (
            oracles.analysis(Q.numpy(), A),
            oracles.analysis_factored(W.numpy(), A),
            oracles.synthesis(p.numpy(), A),
        )
        scales = (
            144 * np.linalg.norm(Q.numpy()[0], 2),
            144 * np.linalg.norm(W.numpy()[0], 2) ** 2,
            np.abs(p.numpy()).sum(),
        )
        for method in ("auto", *methods_for("rectangular", wavefront)):
            options = {"wavefront": wavefront, "method": method}
            results = (
                analysis(Q, array, grid, **options),
                analysis(W, array, grid, **options),
                synthesis(p, array, grid, **options),
            )
            for actual, exact, scale in zip(results, expected, scales, strict=True):
                np.testing.assert_allclose(actual.numpy(), exact, atol=tolerance * scale, rtol=0)


# ---- what the arguments mean


def test_a_square_matrix_is_hermitian_unless_it_is_said_to_be_a_factor():
    array, grid = make("volumetric", "one point")
    a = grid_steering(array, grid, "spherical")[0, 0, 0]
    Q = oracles.hermitian(np.random.default_rng(7), 1, 9)
    as_matrix = float(analysis(tensor(Q), array, grid)[0, 0, 0, 0])
    as_factor = float(analysis(tensor(Q), array, grid, factored=True)[0, 0, 0, 0])
    assert as_matrix == pytest.approx((a.conj() @ Q[0] @ a).real, rel=1e-9)
    assert as_factor == pytest.approx(np.sum(np.abs(Q[0].conj().T @ a) ** 2), rel=1e-9)


def test_a_tall_matrix_is_a_factor_and_cannot_be_said_to_be_hermitian():
    array, grid = make("volumetric", "one point")
    W = tensor(oracles.complex_normal(np.random.default_rng(7), 1, 9, 2))
    assert torch.equal(analysis(W, array, grid), analysis(W, array, grid, factored=True))
    with pytest.raises(ValueError, match=r"factored|W_or_Q"):
        analysis(W, array, grid, factored=False)


def test_a_matrix_without_a_batch_gives_values_without_a_batch():
    array, grid = make("rectangular", "asymmetric")
    rng = np.random.default_rng(8)
    Q, W = tensor(oracles.hermitian(rng, 1, 15)), tensor(oracles.complex_normal(rng, 1, 15, 3))
    points = torch.from_numpy(scattered(6))
    for matrix in (Q, W):
        assert torch.equal(analysis(matrix[0], array, grid), analysis(matrix, array, grid)[0])
        assert analysis(matrix[0], array, points).shape == (6,)


def test_synthesis_computes_in_the_dtype_that_is_asked_for():
    array, grid = make("rectangular", "asymmetric")
    p = tensor(np.random.default_rng(2).uniform(0, 1, (1, *grid.shape)))
    expected = oracles.synthesis(p.numpy(), grid_steering(array, grid, "spherical"))
    assert synthesis(p, array, grid).dtype == torch.complex128
    assert synthesis(p.float(), array, grid).dtype == torch.complex64
    assert synthesis(p, array, grid, dtype=torch.complex64).dtype == torch.complex64
    raised = synthesis(p.float(), array, grid, dtype=torch.complex128)
    assert raised.dtype == torch.complex128
    np.testing.assert_allclose(raised.numpy(), expected, atol=1e-6 * p.sum())


def test_synthesis_of_one_atom_is_the_outer_product_of_its_steering_vector():
    array, grid = make("irregular", "asymmetric")
    A = grid_steering(array, grid, "spherical")
    p = torch.zeros(1, *grid.shape, dtype=torch.float64)
    p[0, 3, 1, 2] = -2.5
    a = A[3, 1, 2]
    np.testing.assert_allclose(synthesis(p, array, grid)[0].numpy(), -2.5 * np.outer(a, a.conj()), atol=1e-8)


# ---- adjointness


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("key", GRIDS)
def test_analysis_and_synthesis_are_adjoint(name, key, wavefront):
    array, grid = make(name, key)
    rng = np.random.default_rng(9)
    Q = tensor(oracles.hermitian(rng, 1, array.n_elements))
    p = tensor(rng.standard_normal((1, *grid.shape)))
    size = float(p.norm() * Q.norm()) * array.n_elements * np.sqrt(grid.size)
    for method in methods_for(name, wavefront):
        options = {"wavefront": wavefront, "method": method}
        left = float((analysis(Q, array, grid, **options) * p).sum())
        right = float((Q.conj() * synthesis(p, array, grid, **options)).sum().real)
        # Even where a method approximates the steering vectors, it must do so in both in the same way.
        assert left == pytest.approx(right, abs=1e-13 * size), method


def test_analysis_and_synthesis_are_adjoint_on_points():
    array, points = PlanarArray(ARRAYS["volumetric"], WAVELENGTH), torch.from_numpy(scattered(41))
    rng = np.random.default_rng(9)
    Q, p = tensor(oracles.hermitian(rng, 1, 9)), tensor(rng.standard_normal((1, 41)))
    left = float((analysis(Q, array, points) * p).sum())
    right = float((Q.conj() * synthesis(p, array, points)).sum().real)
    assert left == pytest.approx(right, rel=1e-12)


# ---- gradients

SMALL = (np.radians([-40, 7, 31]), np.radians([-12, 20]), [0.6, 3.0])
CASES = [
    ("volumetric", "spherical", "dense"),
    ("volumetric", "spherical", "chebyshev"),
    ("permuted", "fresnel", "lag"),
    ("permuted", "planar", "lag"),
    ("permuted", "spherical", "auto"),
]


def small(name, wavefront, method):
    array = PlanarArray(ARRAYS[name][:6], WAVELENGTH)
    grid = SearchGrid(*(np.asarray(axis, float) for axis in SMALL))
    return array, grid, {"wavefront": wavefront, "method": method}


def variable(rng, *shape):
    return torch.from_numpy(oracles.complex_normal(rng, *shape)).requires_grad_()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradients_of_analysis_are_right_to_second_order(case):
    array, grid, options = small(*case)
    rng = np.random.default_rng(10)

    def of_matrix(X):
        return analysis(X + X.mH, array, grid, **options)

    def of_factor(W):
        return analysis(W, array, grid, factored=True, **options)

    X, W = variable(rng, 1, 6, 6), variable(rng, 2, 6, 2)
    assert gradcheck(of_matrix, (X,))
    assert gradgradcheck(of_matrix, (X,))
    assert gradcheck(of_factor, (W,))
    assert gradgradcheck(of_factor, (W,))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradients_of_synthesis_are_right_to_second_order(case):
    array, grid, options = small(*case)
    p = torch.from_numpy(np.random.default_rng(11).standard_normal((2, *grid.shape))).requires_grad_()

    def squared(p):  # a non-linear function behind it, so that second derivatives do not vanish
        return synthesis(p, array, grid, **options).abs().square()

    assert gradcheck(lambda p: synthesis(p, array, grid, **options), (p,))
    assert gradcheck(squared, (p,))
    assert gradgradcheck(squared, (p,))


def test_gradients_of_the_pair_on_points_are_right():
    array, points = PlanarArray(ARRAYS["volumetric"][:5], WAVELENGTH), torch.from_numpy(scattered(7))
    rng = np.random.default_rng(12)
    X, W, p = variable(rng, 1, 5, 5), variable(rng, 1, 5, 2), torch.from_numpy(rng.standard_normal((1, 7)))
    assert gradcheck(lambda X: analysis(X + X.mH, array, points), (X,))
    assert gradgradcheck(lambda W: analysis(W, array, points), (W,))
    assert gradgradcheck(lambda p: synthesis(p, array, points).abs().square(), (p.requires_grad_(),))


@pytest.mark.parametrize("loading", [1e-2, 0.3])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradient_of_capon_in_the_covariance_is_right(case, loading):
    array, grid, options = small(*case)
    X = variable(np.random.default_rng(13), 1, 6, 6)

    def volume(X):
        R = X @ X.mH + torch.eye(6)
        return mvdr_spectrum(R, array, grid, loading=loading, reduce="none", **options)

    def best(X):
        R = X @ X.mH + torch.eye(6)
        return mvdr_spectrum(R, array, grid, loading=loading, **options).power

    assert gradcheck(volume, (X,))
    assert gradcheck(best, (X,))


@pytest.mark.parametrize(("rank", "loading"), [(1, 1e-2), (2, 0.3), (6, 1e-2), (8, 0.3)])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradient_of_lowrank_capon_in_the_factor_is_right(case, rank, loading):
    array, grid, options = small(*case)
    F = variable(np.random.default_rng(14), 1, 6, rank)
    assert gradcheck(lambda F: mvdr_spectrum_lowrank(F, array, grid, loading=loading, reduce="none", **options), (F,))
    assert gradcheck(lambda F: mvdr_spectrum_lowrank(F, array, grid, loading=loading, **options).power, (F,))


def degenerate_factors():
    """Factors whose singular vectors are not unique: a gradient through an SVD would divide by zero."""
    rng = np.random.default_rng(15)
    orthonormal = np.linalg.qr(oracles.complex_normal(rng, 6, 3))[0]
    column = oracles.complex_normal(rng, 6, 1)
    return {
        "equal singular values": orthonormal,
        "equal columns": np.repeat(column, 3, axis=1),
        "a zero column": np.concatenate([column, np.zeros((6, 1)), 1j * orthonormal[:, :1]], axis=1),
        "identity": np.eye(6).astype(complex),
    }


@pytest.mark.parametrize("name", degenerate_factors())
@pytest.mark.parametrize("case", CASES[:3], ids="-".join)
def test_gradient_of_lowrank_capon_is_right_where_singular_values_coincide(case, name):
    array, grid, options = small(*case)
    F = torch.from_numpy(degenerate_factors()[name][None]).requires_grad_()
    assert gradcheck(lambda F: mvdr_spectrum_lowrank(F, array, grid, loading=0.1, reduce="none", **options), (F,))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduce", ["none", "max"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradient_in_the_covariance_is_hermitian_and_the_slope_of_the_brute_force(case, reduce, dtype):
    """Along any Hermitian direction H, Re <R.grad, H> is the derivative of the float64 oracle."""
    array, grid, options = small(*case)
    rng = np.random.default_rng(16)
    A = grid_steering(array, grid, options["wavefront"])
    n = array.n_elements
    R = tensor(oracles.wishart(rng, n, 20)[None] + 0.1 * np.eye(n), dtype)
    R = ((R + R.mH) / 2).requires_grad_()
    H = oracles.hermitian(rng, 1, n)
    result = mvdr_spectrum(R, array, grid, reduce=reduce, **options)
    power = result if reduce == "none" else result.power
    weights = rng.uniform(0.5, 1.5, power.shape)
    (power * tensor(weights, dtype.to_real())).sum().backward()
    assert R.grad.dtype == dtype

    def objective(step):
        volume = oracles.capon(R.detach().numpy() + step * H, A)
        if reduce == "max":
            volume = oracles.maximum_over_planes(volume)[0]
        return np.sum(volume * weights)

    h = 1e-4
    slope = (8 * (objective(h) - objective(-h)) - (objective(2 * h) - objective(-2 * h))) / (12 * h)
    tolerance = 1e-3 if dtype == torch.complex64 else 1e-8
    assert np.sum(R.grad.numpy().conj() * H).real == pytest.approx(slope, rel=tolerance)
    np.testing.assert_allclose(
        R.grad.numpy(), R.grad.mH.resolve_conj().numpy(), atol=tolerance * float(R.grad.abs().max())
    )


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradient_in_the_factor_is_the_slope_of_the_brute_force_in_complex64(case):
    array, grid, options = small(*case)
    rng = np.random.default_rng(17)
    A = grid_steering(array, grid, options["wavefront"])
    F = tensor(oracles.complex_normal(rng, 1, 6, 2), torch.complex64).requires_grad_()
    H = oracles.complex_normal(rng, 1, 6, 2)
    power = mvdr_spectrum_lowrank(F, array, grid, loading=0.05, **options).power
    power.sum().backward()

    def objective(step):
        volume = oracles.capon_lowrank(F.detach().numpy() + step * H, A, 0.05)
        return np.sum(oracles.maximum_over_planes(volume)[0])

    h = 1e-4
    slope = (8 * (objective(h) - objective(-h)) - (objective(2 * h) - objective(-2 * h))) / (12 * h)
    assert F.grad.dtype == torch.complex64
    assert np.sum(F.grad.numpy().conj() * H).real == pytest.approx(slope, rel=1e-3)


def test_gradients_reach_a_whole_batch_and_only_its_own_scene():
    array, grid, options = small("volumetric", "spherical", "dense")
    F = variable(np.random.default_rng(18), 3, 6, 2)
    mvdr_spectrum_lowrank(F, array, grid, **options).power[1].sum().backward()
    assert not F.grad[[0, 2]].any()
    assert bool(F.grad[1].abs().min() > 0)


def test_gradients_of_the_reference_surface_are_adjoint_to_its_values():
    """The whole reference problem in complex64: the gradient of <p, analysis(Q)> in Q is synthesis(p)."""
    array, grid = PlanarArray.rectangular(), SearchGrid.training()
    rng = np.random.default_rng(19)
    Q = tensor(oracles.hermitian(rng, 1, 144), torch.complex64).requires_grad_()
    p = tensor(rng.uniform(0, 1, (1, *grid.shape)), torch.float32).requires_grad_()
    (analysis(Q, array, grid) * p.detach()).sum().backward()
    S = synthesis(p, array, grid)
    np.testing.assert_allclose(Q.grad.numpy(), S.detach().numpy(), atol=1e-5 * float(p.detach().sum()))
    (S * Q.detach().conj()).real.sum().backward()
    scale = 144 * np.linalg.norm(Q.detach().numpy()[0], 2)
    np.testing.assert_allclose(p.grad.numpy(), analysis(Q.detach(), array, grid).numpy(), atol=1e-5 * scale)
