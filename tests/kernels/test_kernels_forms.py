"""The kernels of forms at points of their own and of Newton steps on them, against the float64 brute force."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from test_kernels_interpreter import DEVICE, kernel_module, poisoned, tl, triton  # noqa: F401 - poisoned: a fixture
from test_refinement import ARRAYS, WAVELENGTH, random_positions

descent = kernel_module("descent")
forms = kernel_module("forms")
refine = kernel_module("refine")

# A GPU turns NaN and overflow into their IEEE results silently.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

WAVENUMBER = 2 * math.pi / WAVELENGTH


def geometry_of(positions, wavefront="spherical"):
    return forms.FormGeometry.build(torch.as_tensor(positions), WAVENUMBER, wavefront, DEVICE)


def on(array, dtype=None):
    return torch.as_tensor(np.ascontiguousarray(array)).to(DEVICE, dtype)


def inverse_range(points):
    """(azimuth, elevation, range) to (azimuth, elevation, 1/range) and back."""
    return np.concatenate([points[..., :2], 1 / points[..., 2:]], -1)


def brute_form(matrix, factored, positions, coordinates, wavefront="spherical"):
    """The form of one scene at (azimuth, elevation, 1/range) [..., 3]."""
    a = oracles.steering(positions, WAVELENGTH, inverse_range(coordinates), wavefront)
    if factored:
        return len(positions) - oracles.analysis_factored(matrix[None], a)[0]
    return oracles.analysis(matrix[None], a)[0]


@pytest.fixture
def large_tiles(monkeypatch):
    """The interpreter takes as long for a small tile as for a large one; the pinned tiles run in the other tests."""
    if DEVICE == "cpu":
        grid = {"AZIMUTHS": 64, "BLOCK_J": 16, "BLOCK_K": 16, "BLOCK_E": 64, "BLOCK_R": 64, "num_warps": 4}
        monkeypatch.setattr(forms, "form_configuration", lambda dtype: {"BLOCK_P": 1024, "BLOCK": 64, "num_warps": 4})
        monkeypatch.setattr(refine, "grid_minimum_configuration", lambda n_el, n_r: grid)


# Sine and cosine, forms


@triton.jit
def sincos_kernel(turns_ptr, sin_ptr, cos_ptr, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    s, c = forms.sincos_turns_double(tl.load(turns_ptr + i, mask=i < size, other=0.0))
    tl.store(sin_ptr + i, s, mask=i < size)
    tl.store(cos_ptr + i, c, mask=i < size)


def test_sine_and_cosine_are_accurate_to_4e_16_in_every_octant():
    edges = np.arange(-64, 65) / 8
    turns = np.concatenate([np.linspace(-4, 4, 20011), edges, edges + 1e-16, edges * (1 + 1e-15), [1e-300, 12345.678]])
    out = [torch.full((len(turns),), math.nan, dtype=torch.float64).to(DEVICE) for _ in range(2)]
    sincos_kernel[(1,)](on(turns), *out, len(turns), BLOCK=32768)
    pi = np.longdouble("3.14159265358979323846264338327950288")
    exact = 2 * pi * (turns.astype(np.longdouble) % 1)
    for ours, theirs in zip(out, (np.sin(exact), np.cos(exact)), strict=True):
        assert np.abs(ours.cpu().numpy() - theirs).max() < 4e-16


def assert_forms(elements, columns, count, entries, dtype, wavefront):
    """Forms of two scenes whose matrix is stored as ``entries``, computed in ``dtype``, against the brute force."""
    rng = np.random.default_rng(elements)
    positions = oracles.volumetric(3, elements, 0.35)
    factored = columns is not None
    shape = (2, elements, columns)
    matrix = oracles.complex_normal(rng, *shape) if factored else oracles.hermitian(rng, 2, elements)
    points = inverse_range(random_positions(rng, 2, count))
    given = on(matrix, entries)
    actual = forms.forms(on(points), given, factored, geometry_of(positions, wavefront), dtype)
    assert actual.dtype == dtype
    for scene in range(2):
        rounded = given[scene].cpu().to(torch.complex128).numpy()
        expected = brute_form(rounded, factored, positions, points[scene], wavefront)
        # A phase in float32 may be wrong by 1e-5 rad; of the largest that the form can be.
        largest = elements * np.linalg.norm(rounded @ rounded.conj().T if factored else rounded, 2)
        tolerance = (1e-5 if dtype == torch.float32 else 1e-14) * largest
        np.testing.assert_allclose(actual[scene].cpu().numpy(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("elements", "columns", "count"), [(19, None, 37), (19, 1, 70), (33, 33, 1), (1, 1, 3), (40, 17, 5)]
)
def test_forms_match_brute_force(elements, columns, count, dtype, wavefront):
    assert_forms(elements, columns, count, dtype.to_complex(), dtype, wavefront)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forms_at_infinity_are_planar(dtype, wavefront):
    rng = np.random.default_rng(3)
    positions = oracles.volumetric(3, 19, 0.35)
    Q = oracles.hermitian(rng, 1, 19)
    points = inverse_range(random_positions(rng, 1, 4))
    points[..., 2] = [0.0, 1e-300, 1e-30, 1e-18]
    actual = forms.forms(on(points), on(Q), False, geometry_of(positions, wavefront), dtype).cpu().numpy()
    expected = brute_form(Q[0], False, positions, points[0], "planar")
    tolerance = (1e-5 if dtype == torch.float32 else 1e-13) * 19 * np.linalg.norm(Q[0], 2)
    np.testing.assert_allclose(actual[0], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("columns", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forms_in_one_precision_take_a_matrix_in_the_other(dtype, columns):
    entries = torch.complex128 if dtype == torch.float32 else torch.complex64
    assert_forms(19, columns, 5, entries, dtype, "spherical")


def test_only_the_upper_triangle_of_blocks_is_read():
    rng = np.random.default_rng(1)
    positions = oracles.volumetric(3, 45, 0.35)
    matrix = oracles.hermitian(rng, 1, 45)
    points = inverse_range(random_positions(rng, 1, 9))
    expected = brute_form(matrix[0], False, positions, points[0])
    for row in range(16, 45):
        matrix[:, row, : row // 16 * 16] = np.nan
    actual = forms.forms(on(points), on(matrix), False, geometry_of(positions), torch.float64)
    np.testing.assert_allclose(actual[0].cpu().numpy(), expected, rtol=1e-10)


# Newton steps


@triton.jit
def move_kernel(model_ptr, move_ptr, C, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    at, there = model_ptr + c * 9, c < C
    gx, gy, gz = tl.load(at, there), tl.load(at + 1, there), tl.load(at + 2, there)
    xx, yy, zz = tl.load(at + 3, there), tl.load(at + 4, there), tl.load(at + 5, there)
    xy, xz, yz = tl.load(at + 6, there), tl.load(at + 7, there), tl.load(at + 8, there)
    x, y, z = descent.newton_move(gx, gy, gz, xx, yy, zz, xy, xz, yz)
    tl.store(move_ptr + c * 3, x, there)
    tl.store(move_ptr + c * 3 + 1, y, there)
    tl.store(move_ptr + c * 3 + 2, z, there)


def hessians():
    """Random, ill-conditioned, diagonal, degenerate: equal and opposite eigenvalues, rank one; and their gradients."""
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.normal(size=(120, 3, 3)))[0]
    values = rng.normal(size=(120, 3)) * 10.0 ** rng.uniform(-5, 5, (120, 3))
    values[:20] = rng.normal(size=(20, 1))
    values[20:40, 1] = values[20:40, 0]
    values[40:60, 1] = -values[40:60, 0]
    hessian = np.einsum("cij,cj,ckj->cik", basis, values, basis)
    hessian[100:110] *= np.eye(3)
    hessian[114:] = np.einsum("ci,cj->cij", *2 * [rng.integers(-2, 3, (6, 3)).astype(float)])
    return (hessian + hessian.swapaxes(1, 2)) / 2, rng.normal(size=(120, 3))


def test_moves_are_those_of_the_eigenvalue_decomposition():
    hessian, gradient = hessians()
    i, j = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
    models = np.concatenate([gradient, hessian[:, i, j]], 1)
    move = torch.full((len(models), 3), math.nan, dtype=torch.float64).to(DEVICE)
    move_kernel[(1,)](on(models), move, len(models), BLOCK=128)
    values, vectors = np.linalg.eigh(hessian)
    spring = 1e-6 * np.maximum(np.abs(hessian).max((1, 2)), np.finfo(float).tiny)[:, None]
    inverse = 1 / np.maximum(np.abs(values), spring)
    expected = -np.einsum("cij,cj,ckj,ck->ci", vectors, inverse, vectors, gradient)
    # Rounding of the smallest eigenvalues, against the spring that bounds them from below.
    tolerance = 1e-14 / 1e-6 * np.abs(gradient).max(1) * inverse.max(1)
    assert (np.abs(move.cpu().numpy() - expected).max(1) <= tolerance).all()


def test_a_model_without_slope_does_not_move():
    move = torch.full((3, 3), math.nan, dtype=torch.float64).to(DEVICE)
    move_kernel[(1,)](torch.zeros(3, 9, dtype=torch.float64).to(DEVICE), move, 3, BLOCK=4)
    assert not move.any()


def downhill_problem(count, batch=2):
    """Any Hermitian form, indefinite ones too: its landscape has saddles, ridges and steep walls."""
    rng = np.random.default_rng(31)
    positions = ARRAYS["volumetric"]
    Q = oracles.hermitian(rng, batch, len(positions))
    start = rng.uniform([-1.0, -0.5, 0.15], [1.0, 0.5, 1.6], (batch, count, 3))
    margin = rng.uniform(0.0, 0.3, start.shape) * (rng.random(start.shape) < 0.8)
    low = start - margin * [1, 1, 0.3]
    high = start + rng.uniform(0.01, 0.3, start.shape) * [1, 1, 0.3]
    step = rng.uniform(0.001, 0.4, start.shape) * (high - low)
    return positions, Q, start, step, low, high


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("shrink", [1.0, 0.125])
@pytest.mark.parametrize("iterations", [0, 3])
def test_descending_never_goes_uphill_nor_out_of_its_box(iterations, shrink):
    positions, Q, start, step, low, high = downhill_problem(37)
    given = [on(x) for x in (start, step, low, high, Q)]
    steps = {"iterations": iterations, "shrink": shrink}
    point, value = descent.descend(*given, False, geometry_of(positions), torch.float64, **steps)
    point, value = point.cpu().numpy(), value.cpu().numpy()
    for scene in range(2):
        np.testing.assert_allclose(value[scene], brute_form(Q[scene], False, positions, point[scene]), atol=1e-9)
        assert (value[scene] <= brute_form(Q[scene], False, positions, start[scene]) + 1e-9).all()
    assert (point >= low).all()
    assert (point <= high).all()
    assert torch.equal(given[0].cpu(), torch.as_tensor(start))  # the starts are not overwritten


def iteration(brute, start, step, low, high):
    """One iteration by the formulas: the lowest of the point, its stencil, and a full and a half Newton step."""
    stencil = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    stencil = stencil[np.abs(stencil).sum(1) <= 2]
    x, y, z = stencil.T.astype(float)
    model = np.stack([x**0, x, y, z, x * x / 2, y * y / 2, z * z / 2, x * y, x * z, y * z], 1)
    centre = np.maximum(np.minimum(start, high - step), low + step)
    around = centre[:, None] + step[:, None] * stencil
    fit = np.linalg.lstsq(model, brute(around).T, rcond=None)[0]
    values, vectors = np.linalg.eigh(fit[[4, 7, 8, 7, 5, 9, 8, 9, 6]].T.reshape(-1, 3, 3))
    move = -np.einsum("cij,cj,ckj,kc->ci", vectors, 1 / np.abs(values), vectors, fit[1:4]).clip(-2, 2)
    newton = centre[:, None] + step[:, None] * move[:, None] * [[1.0], [0.5]]
    points = np.clip(np.concatenate([start[:, None], newton, around], 1), low[:, None], high[:, None])
    heights = brute(points)
    each = np.arange(len(start))
    return points[each, heights.argmin(1)], heights.min(1)


def test_each_iteration_is_that_of_the_formulas():
    positions, Q, start, step, low, high = downhill_problem(37)
    given = [on(x) for x in (start, step, low, high, Q)]
    ours = descent.descend(*given, False, geometry_of(positions), torch.float64, iterations=1, shrink=1.0)
    for scene in range(2):

        def brute(coordinates, scene=scene):
            return brute_form(Q[scene], False, positions, coordinates.reshape(-1, 3)).reshape(coordinates.shape[:-1])

        point, value = iteration(brute, *(x[scene] for x in (start, step, low, high)))
        np.testing.assert_allclose(ours[1][scene].cpu().numpy(), value, atol=1e-9)
        np.testing.assert_allclose(ours[0][scene].cpu().numpy(), point, atol=1e-8)
