"""Every shipped configuration of the kernels of inverses, synthesis, peaks, suppression, forms and Newton steps.

As in shipped_maps.py: at least two programs or tiles an axis, the last of them partial; N is odd or 144.
"""

from __future__ import annotations

import itertools

import numpy as np
import oracles
import pytest
import torch
from test_kernels_forms import brute_form, geometry_of, inverse_range
from test_kernels_interpreter import domain, kernel_module, on, poisoned
from test_peaks import (
    SEPARATION,
    Peaks,
    Selection,
    assert_is_brute_force_nms,
    candidates,
    candidates_on_sphere,
    quantised,
)
from test_refinement import random_positions

from tests.machine.judging import judge

__all__ = ["judge", "poisoned"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

dense = kernel_module("dense")
descent = kernel_module("descent")
forms = kernel_module("forms")
interpolate_adjoint = kernel_module("interpolate_adjoint")
inverse = kernel_module("inverse")
lag_adjoint = kernel_module("lag_adjoint")
lag_tables = kernel_module("lag_tables")
nms = kernel_module("nms")
peaks = kernel_module("peaks")
refine = kernel_module("refine")
synthesis = kernel_module("synthesis")
weights = kernel_module("weights")

WAVELENGTH = 0.3
RANGES = np.linspace(0.6, 9, 3)
DTYPES = [torch.float32, torch.float64]
KINDS = ["weights", "map"]
# Of sums of weights: relative to the sum of their absolute values, which is more than the largest entry.
SUM = {torch.float32: 1e-6, torch.float64: 1e-14}
# A matrix in float32 inverts to this, relative to the largest entry of the inverse.
INVERSE = {torch.float32: 2e-4, torch.float64: 1e-11}


def weights_of(kind, shape):
    """Weights as the kernels take them, of every plane or of one in each direction; and of every plane in float64."""
    rng = np.random.default_rng(4)
    if kind == "weights":
        p = rng.standard_normal(shape)
        return weights.PointWeights(on(p, torch.float64)), p
    values, plane = rng.standard_normal(shape[:-1]), rng.integers(0, shape[-1], shape[:-1])
    given = weights.PointWeights(on(values, torch.float64), plane=on(plane, torch.int32))
    return given, values[..., None] * (plane[..., None] == np.arange(shape[-1]))


def assert_synthesis(judge, actual, p, A, dtype):
    """The sum of p a a^H, exactly Hermitian."""
    actual, expected = actual.numpy(), oracles.synthesis(p, A)
    largest_sum = np.abs(p).reshape(len(p), -1).sum(1).max()
    judge.close(actual, expected, atol=SUM[dtype] * largest_sum / np.abs(expected).max())
    judge.equal(actual, actual.conj().swapaxes(1, 2))


@pytest.mark.parametrize(
    ("n", "wavefront", "kind", "batch"),
    [
        (33, "spherical", "weights", 2),
        (144, "spherical", "map", 1),
        (33, "fresnel", "map", 3),
        (144, "planar", "weights", 1),
    ],
)
def test_synthesis(judge, n, wavefront, kind, batch):
    positions = oracles.rectangular(12, 12) if n == 144 else oracles.volumetric(4, n, 0.3)
    axes = (np.radians(np.linspace(-50, 35, 7)), np.radians(np.linspace(-10, 28, 5)), RANGES)
    given, p = weights_of(kind, (batch, 7, 5, 3))
    points = dense.DensePoints.build(domain(positions, *axes, wavefront), "cpu")
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes), wavefront)
    assert_synthesis(judge, synthesis.dense_synthesis(given, points), p, A, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_interpolation(judge, kind):
    given, p = weights_of(kind, (2, 35, 19, 3))
    rng = np.random.default_rng(3)
    azimuth, elevation = rng.uniform(0, 1, (35, 67)), rng.uniform(0, 1, (19, 33))
    matrices = [on(x, torch.float32) for x in (azimuth, elevation)]
    actual = interpolate_adjoint.interpolate_adjoint(given, *matrices, 3)
    expected = np.einsum("baer,am,en->brmn", p, azimuth, elevation)
    judge.close(actual, expected, atol=1e-6 * np.abs(p).sum((1, 2, 3)).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [11, 12])
def test_lag_synthesis(judge, columns, kind, dtype):
    positions = oracles.rectangular(columns, 3 if columns == 11 else 12)
    axes = (np.radians(np.linspace(-60, 60, 33)), np.radians(np.linspace(-30, 30, 17)), RANGES)
    given, p = weights_of(kind, (2, 33, 17, 3))
    tables = lag_tables.LagTables.build(domain(positions, *axes, "fresnel"), dtype, "cpu")
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes), "fresnel")
    assert_synthesis(judge, lag_adjoint.lag_synthesis(given, tables), p, A, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "batch"), [(33, 3), (144, 2)])
def test_inverse_factor(judge, n, batch, dtype):
    R = np.stack([oracles.wishart(np.random.default_rng(scene), n, 3 * n) for scene in range(batch)])
    given = on(R, dtype.to_complex())
    expected = np.linalg.inv(given.to(torch.complex128).numpy() + 0.02 * np.eye(n))
    W, info = inverse.inverse_factor(given, torch.full((batch,), 0.02, dtype=dtype), dtype=dtype)
    assert not info.any()
    W = W.to(torch.complex128).numpy()
    assert not np.tril(W, -1).any()
    judge.close(W @ W.conj().swapaxes(1, 2), expected, atol=INVERSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "batch"), [(33, 3), (144, 2)])
def test_inverse(judge, n, batch, dtype):
    R = np.stack([oracles.wishart(np.random.default_rng(scene), n, 3 * n) for scene in range(batch)])
    given = on(R, dtype.to_complex())
    expected = np.linalg.inv(given.to(torch.complex128).numpy() + 0.02 * np.eye(n))
    Q, info = inverse.hermitian_inverse(given, torch.full((batch,), 0.02, dtype=dtype), dtype=dtype)
    assert not info.any()
    judge.close(Q, expected, atol=INVERSE[dtype])


def maxima_of(scene, window, k):
    """Places and values of the k highest points that no other in their window beats; of equal ones the first wins."""
    reach = [size // 2 for size in window]
    padded = np.pad(scene, [(half, half) for half in reach], constant_values=-np.inf)
    beaten = np.zeros(scene.shape, bool)
    for shift in itertools.product(*(range(-half, half + 1) for half in reach)):
        other = padded[
            tuple(slice(half + by, half + by + n) for half, by, n in zip(reach, shift, scene.shape, strict=True))
        ]
        if shift != (0, 0, 0):
            beaten |= other >= scene if shift < (0, 0, 0) else other > scene
    places = sorted(zip(*np.nonzero(~beaten), strict=True), key=lambda place: (-scene[place], place))[:k]
    return np.array(places), [scene[place] for place in places]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "shape"), [((7, 7, 3), (23, 17, 5)), ((21, 21, 21), (23, 25, 22))])
def test_maxima(judge, window, shape, dtype):
    volume = torch.cat([quantised((1, *shape), levels, 3, dtype) for levels in (3, 1000)])
    *found, bad = peaks.local_maxima(volume, window, 9, None)
    found = Peaks(*found)
    assert not bad.any()
    for scene in range(2):
        places, values = maxima_of(volume[scene].double().numpy(), window, 9)
        count = len(places)
        judge.equal(found.count[scene], count)
        judge.equal(found.index[scene, :count], places)
        judge.equal(found.value[scene, :count], values)
        assert (found.index[scene, count:] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("count", "on_sphere"), [(19, False), (19, True), (127, True), (1023, True), (2047, True), (2049, True)]
)
@pytest.mark.usefixtures("judge")
def test_suppression(count, on_sphere, dtype):
    position, score = candidates_on_sphere(2, count, 5, dtype) if on_sphere else candidates(2, count, count, 40, dtype)
    separation = (0.1, 0.2, 1.0) if on_sphere else SEPARATION
    *kept, bad = nms.nms(position, score, separation, 7, on_sphere)
    assert not bad.any()
    assert_is_brute_force_nms(Selection(*kept), position, score, separation, 7, on_sphere)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize(("n", "count"), [(33, 131), (144, 67)])
def test_forms(judge, n, count, factored, wavefront, dtype):
    rng = np.random.default_rng(n)
    positions = oracles.rectangular(12, 12) if n == 144 else oracles.volumetric(3, n, 0.35)
    matrix = oracles.complex_normal(rng, 2, n, 17) if factored else oracles.hermitian(rng, 2, n)
    matrix = on(matrix, torch.complex128)
    points = inverse_range(random_positions(rng, 2, count))
    actual = forms.forms(torch.as_tensor(points), matrix, factored, geometry_of(positions, wavefront), dtype)
    rounded = matrix.to(torch.complex128).numpy()
    for scene in range(2):
        expected = brute_form(rounded[scene], factored, positions, points[scene], wavefront)
        square = rounded[scene] @ rounded[scene].conj().T if factored else rounded[scene]
        # A phase in float32 may be wrong by 1e-5 rad; of the largest that the form can be.
        bound = (1e-5 if dtype == torch.float32 else 1e-14) * n * np.linalg.norm(square, 2)
        judge.close(actual[scene], expected, atol=bound / np.abs(expected).max())


# Newton steps: the stencil, the model and the choice, each against its formula. 37 candidates of two scenes are three
# programs of 32.
CANDIDATES = 74
STENCIL = np.array([step for step in itertools.product((-1, 0, 1), repeat=3) if np.abs(step).sum() <= 2], float)


def candidates_in_boxes():
    """Points, arms and boxes of candidates, some of them at a wall."""
    rng = np.random.default_rng(31)
    point = rng.uniform([-1.0, -0.5, 0.15], [1.0, 0.5, 1.6], (CANDIDATES, 3))
    low = point - rng.uniform(0, 0.3, point.shape) * (rng.random(point.shape) < 0.8)
    high = point + rng.uniform(0.01, 0.3, point.shape)
    return point, rng.uniform(0.001, 0.4, point.shape) * (high - low), low, high


def centres(point, step, low, high, scale):
    """Centres of the stencils, which move inwards at a wall, and their arms."""
    arm = step * scale
    return np.maximum(np.minimum(point, high - arm), low + arm), arm


def test_stencil(judge):
    given = candidates_in_boxes()
    around = torch.full((CANDIDATES, 19, 3), np.nan, dtype=torch.float64)
    tile = descent.stencil_configuration()
    operands = [on(x, torch.float64) for x in (*given, STENCIL)]
    descent.stencil_kernel[(-(-around.numel() // tile["BLOCK"]),)](*operands, around, 0.25, around.numel(), **tile)
    centre, arm = centres(*given, 0.25)
    judge.close(around, centre[:, None] + arm[:, None] * STENCIL, rtol=1e-14)


def quadratic_fit():
    """The model (1, x, x^2 / 2, cross terms) of 19 heights, [10, 19]."""
    x, y, z = STENCIL.T
    terms = [np.ones_like(x), x, y, z, x * x / 2, y * y / 2, z * z / 2, x * y, x * z, y * z]
    return np.linalg.pinv(np.stack(terms, 1))


def heights_in(dtype, *shape):
    """Random heights as ``dtype`` holds them."""
    return on(np.random.default_rng(7).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_newton(judge, dtype):
    given, fit = candidates_in_boxes(), quadratic_fit()
    heights = heights_in(dtype, CANDIDATES, 19)
    moved = torch.full((CANDIDATES, 2, 3), np.nan, dtype=torch.float64)
    tile = descent.step_configuration()
    boxes = [on(x, torch.float64) for x in given]
    programs = (-(-CANDIDATES // tile["BLOCK"]),)
    descent.newton_kernel[programs](*boxes, heights, on(fit, torch.float64), moved, 0.25, CANDIDATES, **tile)
    model = heights.double().numpy() @ fit.T
    hessian = model[:, [4, 7, 8, 7, 5, 9, 8, 9, 6]].reshape(-1, 3, 3)
    values, vectors = np.linalg.eigh(hessian)
    values = np.maximum(np.abs(values), 1e-6 * np.abs(hessian).max((1, 2))[:, None])
    move = -np.einsum("cij,cj,ckj,ck->ci", vectors, 1 / values, vectors, model[:, 1:4])
    point, step, low, high = given
    centre, arm = centres(point, step, low, high, 0.25)
    move = arm * np.clip(move, -2, 2)
    both = [np.clip(centre + part * move, low, high) for part in (1, 0.5)]
    judge.close(moved, np.stack(both, 1), atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_choose(judge, dtype):
    point, step, low, high = candidates_in_boxes()
    rng = np.random.default_rng(9)
    heights, moved_heights = heights_in(dtype, CANDIDATES, 19), heights_in(dtype, CANDIDATES, 2) - 1
    value, moved = rng.normal(-2, 1, CANDIDATES), rng.uniform(-1, 1, (CANDIDATES, 2, 3))
    tile = descent.step_configuration()
    chosen, lowest = on(point, torch.float64), on(value, torch.float64)
    boxes = [on(x, torch.float64) for x in (step, low, high, STENCIL)]
    operands = (chosen, lowest, *boxes, heights, on(moved, torch.float64), moved_heights)
    descent.choose_kernel[(-(-CANDIDATES // tile["BLOCK"]),)](*operands, 0.25, CANDIDATES, **tile)
    # The moves come before the stencil, and the full step before the half: the first of equal heights is taken.
    centre, arm = centres(point, step, low, high, 0.25)
    around = np.clip(centre[:, None] + arm[:, None] * STENCIL, low[:, None], high[:, None])
    places = np.concatenate([moved, around], 1)
    levels = np.concatenate([moved_heights.double().numpy(), heights.double().numpy()], 1)
    best = levels.argmin(1)
    better = levels.min(1) < value
    judge.equal(lowest, np.where(better, levels.min(1), value))
    judge.close(chosen, np.where(better[:, None], places[np.arange(CANDIDATES), best], point), rtol=1e-14)


@pytest.mark.parametrize(
    ("nodes", "points"), [((7, 7, 7), (9, 33, 35)), ((3, 17, 32), (9, 33, 5)), ((2, 41, 41), (9, 17, 70))]
)
def test_fine_grid(judge, nodes, points):
    rng = np.random.default_rng(sum(nodes))
    values = rng.normal(size=(3, *nodes)).astype(np.float32)
    matrices = [rng.uniform(0, 1, (p, n)).astype(np.float32) for p, n in zip(points, nodes, strict=True)]
    q = np.einsum("cijk,ai,ej,rk->caer", values, *(m.astype(float) for m in matrices), optimize=True).reshape(3, -1)
    key = torch.full((3,), refine._NO_KEY)
    tile = refine.grid_minimum_configuration(*nodes[1:])
    chunks = -(-points[0] // tile["AZIMUTHS"])
    operands = [on(x, torch.float32) for x in (values, *matrices)]
    precision = refine.dot_precision()
    refine.grid_minimum_kernel[(3 * chunks,)](*operands, key, *nodes, *points, chunks, PRECISION=precision, **tile)
    found = q[np.arange(3), (key & 0xFFFFFFFF).numpy()]
    judge.close(found, q.min(1), atol=1e-5 * np.abs(q).max() / np.abs(q.min(1)).max())
