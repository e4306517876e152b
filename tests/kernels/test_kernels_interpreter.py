"""The Triton kernels against the float64 brute force: in Triton's interpreter, or on a GPU.

RISFAST_TEST_DEVICE=cuda runs the same tests on the first GPU. Without it they need the interpreter, which Triton only
honours if it is asked for before the first import.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

DEVICE = os.environ.get("RISFAST_TEST_DEVICE", "cpu")
if DEVICE == "cpu" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")
import triton.language as tl  # noqa: E402

if DEVICE == "cpu" and isinstance(tl.sum, triton.runtime.jit.JITFunction):
    reason = "triton was imported without its interpreter; test_kernels_process.py runs this file in a fresh process"
    pytest.skip(reason, allow_module_level=True)

sys.path.append(str(Path(__file__).resolve().parents[2]))
from bench.gpu_compiled import kernel_module  # noqa: E402
from bench.gpu_interpreter import patch_once_a_launch  # noqa: E402

if DEVICE == "cpu":
    patch_once_a_launch()

device = kernel_module("device")
dense = kernel_module("dense")
interpolate = kernel_module("interpolate")
lag = kernel_module("lag")
lag_tables = kernel_module("lag_tables")
launch = kernel_module("launch")

from risfast.errors import ShapeError  # noqa: E402
from risfast.ops.domain import domain_of  # noqa: E402
from risfast.ops.interpolation import box_nodes  # noqa: E402
from risfast.ops.spectra import EPILOGUES  # noqa: E402

# Lanes beyond the end of an array may divide by zero: a GPU does so silently, and nothing of it is stored.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")

WAVELENGTH = 0.3
RANGES = [0.6, 1.7, 8.0]
ORDER = [7, 0, 11, 3, 14, 5, 1, 9, 12, 2, 10, 4, 13, 6, 8]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh memory holds NaN, or the largest int: whatever a kernel leaves out is seen."""
    empty = torch.empty

    def filled(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        if not tensor.is_floating_point() and not tensor.is_complex():
            return tensor.fill_(torch.iinfo(tensor.dtype).max)
        return tensor.fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", filled)


def domain(positions, azimuth, elevation, ranges, wavefront, box=True):
    axes = tuple(torch.as_tensor(np.asarray(axis, float)) for axis in (azimuth, elevation, ranges))
    return domain_of(torch.as_tensor(positions), axes, 2 * np.pi / WAVELENGTH, wavefront, box)


def on(array, dtype=torch.complex64):
    return torch.as_tensor(array).to(DEVICE, dtype)


def epilogue(form, batch, offset=0):
    scale = torch.linspace(0.5, 2.0, batch, dtype=torch.float64)
    return launch.Epilogue(form, scale.to(DEVICE), offset)


def expected_power(q, form, offset=0):
    scale = np.linspace(0.5, 2.0, len(q)).reshape(-1, *[1] * (q.ndim - 1))
    return {"linear": scale * q, "reciprocal": scale / q, "complement": scale / (offset - q)}[form]


def assert_map(actual, plane, volume, rtol):
    """Power and plane of a map against the float64 volume; where two planes tie within the error, either may win."""
    actual, plane = actual.cpu().numpy(), plane.cpu().numpy()
    best, _ = oracles.maximum_over_planes(volume)
    np.testing.assert_allclose(actual, best, rtol=rtol)
    assert plane.min() >= 0
    assert plane.max() < volume.shape[-1]
    chosen = np.take_along_axis(volume, plane[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(chosen, best, rtol=2 * rtol)


# --- Helpers ----------------------------------------------------------------------------------------------------------


@triton.jit
def sincos_kernel(turns_ptr, sin_ptr, cos_ptr, G, BLOCK: tl.constexpr):
    g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s, c = device.sincos_turns(tl.load(turns_ptr + g, mask=g < G, other=0.0))
    tl.store(sin_ptr + g, s, mask=g < G)
    tl.store(cos_ptr + g, c, mask=g < G)


def test_sine_and_cosine_are_accurate_to_9e_8_in_every_octant():
    near = np.concatenate([np.linspace(-4, 4, 20011), np.arange(-64, 65) / 8, np.arange(-64, 65) / 8 + 1e-7])
    turns = torch.tensor(np.concatenate([near, np.linspace(-2000, 2000, 4001)]), dtype=torch.float32)
    sine, cosine = torch.full_like(turns, torch.nan), torch.full_like(turns, torch.nan)
    sine, cosine, given = sine.to(DEVICE), cosine.to(DEVICE), turns.to(DEVICE)
    sincos_kernel[(triton.cdiv(len(turns), 8192),)](given, sine, cosine, len(turns), BLOCK=8192)
    exact = 2 * np.pi * turns.double().numpy()
    assert np.abs(sine.cpu().numpy() - np.sin(exact)).max() < 9e-8
    assert np.abs(cosine.cpu().numpy() - np.cos(exact)).max() < 9e-8


@pytest.mark.skipif(DEVICE != "cpu", reason="about the interpreter")
def test_a_launch_leaves_the_language_as_it_was():
    before = dict(vars(tl))
    out = torch.empty(3)
    sincos_kernel[(1,)](torch.ones(3), out, torch.empty(3), 3, BLOCK=4)
    assert out.isfinite().all()
    assert vars(tl) == before


@triton.jit
def turns_kernel(u_ptr, p_ptr, out_ptr, r, G, N, WAVEFRONT: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr):
    g, n = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_N)
    ux, uy, uz = (tl.load(u_ptr + c * G + g, mask=g < G, other=0.0)[:, None] for c in range(3))
    px, py, pz = (tl.load(p_ptr + c * N + n, mask=n < N, other=0.0)[None, :] for c in range(3))
    turns = device.steering_turns(ux, uy, uz, r, px, py, pz, WAVEFRONT)
    tl.store(out_ptr + g[:, None] * N + n[None, :], turns, mask=(g < G)[:, None] & (n < N)[None, :])


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("r", [0.5, 100.0])
def test_phase_stays_below_1e_5_rad(wavefront, r):
    positions = oracles.volumetric(1, 13, 0.8)
    points = np.concatenate([np.random.default_rng(2).uniform(-1.3, 1.3, (29, 2)), np.full((29, 1), r)], 1)
    u = on(oracles.direction(points[:, 0], points[:, 1]).T.copy(), torch.float32)
    p = on(positions.T / WAVELENGTH, torch.float32).contiguous()
    out = torch.empty(29, 13).to(DEVICE)
    turns_kernel[(1,)](u, p, out, r / WAVELENGTH, 29, 13, WAVEFRONT=wavefront, BLOCK_G=32, BLOCK_N=16)
    exact = oracles.phase(positions, WAVELENGTH, points, wavefront)
    assert np.abs(2 * np.pi * out.cpu().double().numpy() - exact).max() < 1e-5


# --- Lag --------------------------------------------------------------------------------------------------------------

LATTICES = {
    "permuted": oracles.rectangular(3, 5)[ORDER],
    "off-centre": oracles.rectangular(4, 3, 0.15, 0.1, centre=(0.2, -0.35)),
    "linear": oracles.rectangular(7, 1),
    "upright": oracles.rectangular(1, 6),
    "wide": oracles.rectangular(18, 2, 0.1),
}
GRIDS = {
    "symmetric, odd": (np.radians(np.linspace(-60, 60, 7)), np.radians(np.linspace(-30, 30, 3))),
    "symmetric, even": (np.radians(np.linspace(-60, 60, 6)), np.radians(np.linspace(-30, 30, 2))),
    "azimuth symmetric": (np.radians(np.linspace(-60, 60, 5)), np.radians([-11, 3])),
    "elevation symmetric": (np.radians([-50, -7, 20]), np.radians([-9, 9])),
    "neither": (np.radians([-50, -7, 20]), np.radians([-9, 12])),
}


def inverse_covariances(seed, batch, n):
    rng = np.random.default_rng(seed)
    return np.stack([np.linalg.inv(oracles.wishart(rng, n, 3 * n) + 0.1 * np.eye(n)) for _ in range(batch)])


def lag_case(array, grid, wavefront, batch, dtype):
    """Q [B, N, N], its tables, and the volume of a^H Q a in float64."""
    positions = LATTICES[array]
    Q = inverse_covariances(5, batch, len(positions))
    axes = (*GRIDS[grid], RANGES)
    tables = lag_tables.LagTables.build(domain(positions, *axes, wavefront), dtype, DEVICE)
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes), wavefront)
    return on(Q, dtype.to_complex()), tables, oracles.analysis(Q, A)


@pytest.mark.parametrize(
    ("array", "dtype", "planes"),
    # Ten planes are more than one program holds.
    [*((name, torch.float32, 2) for name in LATTICES), ("permuted", torch.float64, 10)],
)
def test_lag_coefficients_are_weighted_sums_along_the_diagonals(array, dtype, planes):
    positions = LATTICES[array]
    n = len(positions)
    rng = np.random.default_rng(3)
    Q = oracles.hermitian(rng, 1, n)
    ranges = np.linspace(0.6, 9, planes)
    tables = lag_tables.LagTables.build(domain(positions, [0.1], [0.2], ranges, "fresnel"), dtype, DEVICE)
    actual = lag.lag_coefficients(on(Q, dtype.to_complex()), tables).cpu().numpy()
    low = positions.min(0)
    step = [np.diff(np.unique(np.round(positions[:, c], 9))).min(initial=1.0) for c in range(2)]
    cell = np.round((positions[:, :2] - low[:2]) / step).astype(int)
    k = 2 * np.pi / WAVELENGTH
    w = np.exp(-1j * k * (positions**2).sum(1) / (2 * ranges[:, None]))  # [R, N]
    expected = np.zeros_like(actual, dtype=complex)
    n_v = cell[:, 1].max() + 1
    for i in range(n):
        for j in range(n):
            d_h, d_v = cell[j] - cell[i]
            if d_h >= 0:
                factor = 2 if d_h else 1
                expected[:, :, d_h, d_v + n_v - 1] += factor * Q[:, i, j, None] * w[:, i].conj() * w[:, j]
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(actual, expected, atol=tolerance)


@pytest.mark.parametrize(("wavefront", "dtype"), [("fresnel", torch.float32), ("planar", torch.float64)])
@pytest.mark.parametrize("grid", GRIDS)
def test_lag_map_matches_brute_force_on_every_symmetry(grid, wavefront, dtype):
    Q, tables, q = lag_case("permuted", grid, wavefront, 2, dtype)
    power, plane = lag.lag_power(Q, tables, epilogue("reciprocal", 2))
    assert_map(power, plane, expected_power(q, "reciprocal"), 2e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("array", LATTICES)
def test_lag_volume_matches_brute_force_on_every_lattice(array):
    Q, tables, q = lag_case(array, "symmetric, odd", "fresnel", 1, torch.float32)
    actual = lag.lag_power(Q, tables, epilogue("linear", 1), volume=True)[0].cpu().numpy()
    np.testing.assert_allclose(actual, expected_power(q, "linear"), rtol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["linear", "reciprocal", "complement"])
def test_lag_epilogues_scale_each_scene(form, dtype):
    Q, tables, q = lag_case("off-centre", "azimuth symmetric", "fresnel", 3, dtype)
    offset = int(2 * q.max())
    expected = expected_power(q, form, offset)
    rtol = 5e-5 if dtype == torch.float32 else 1e-12
    given = epilogue(form, 3, offset)
    assert_map(*lag.lag_power(Q, tables, given), expected, rtol)
    np.testing.assert_allclose(lag.lag_power(Q, tables, given, volume=True)[0].cpu().numpy(), expected, rtol=rtol)


def test_lag_map_covers_more_azimuths_than_one_program_and_more_scenes():
    positions = oracles.rectangular(2, 2)
    axes = (np.radians(np.linspace(-60, 60, 401)), np.radians([5.0]), [0.9])
    Q = inverse_covariances(6, 9, 4)
    tables = lag_tables.LagTables.build(domain(positions, *axes, "fresnel"), torch.float32, DEVICE)
    power, plane = lag.lag_power(on(Q), tables, epilogue("reciprocal", 9))
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes), "fresnel")
    assert_map(power, plane, expected_power(oracles.analysis(Q, A), "reciprocal"), 2e-5)


def test_lag_on_the_reference_surface_is_within_a_hundredth_of_a_decibel():
    positions = oracles.rectangular(12, 12)
    axes = (np.radians(np.linspace(-60, 60, 31)), np.radians([-10.0, 10.0]), [0.85, 3.5])
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes), "fresnel")
    sources = A[[4, 21], [0, 1], [0, 1]]
    R = oracles.loaded(oracles.source_covariance(sources, [1.0, 1.0], 1e-3)[None], 1e-2)
    tables = lag_tables.LagTables.build(domain(positions, *axes, "fresnel"), torch.float32, DEVICE)
    one = launch.Epilogue("reciprocal", torch.full((1,), 144.0, device=DEVICE))
    power, _ = lag.lag_power(on(np.linalg.inv(R)), tables, one)
    expected, _ = oracles.maximum_over_planes(oracles.capon(R, A, 0.0))
    assert oracles.worst_db(power.cpu().numpy(), expected) < 1e-2


def test_equal_planes_give_the_first_one():
    positions = oracles.rectangular(3, 2)
    axes = (np.radians([-20.0, 0.0, 20.0]), np.radians([4.0]), [1.0, 2.0, 3.0])  # a planar phase ignores the range
    Q = inverse_covariances(7, 1, 6)
    scene = domain(positions, *axes, "planar")
    tables = lag_tables.LagTables.build(scene, torch.float32, DEVICE)
    points = dense.DensePoints.build(scene, DEVICE)
    W = on(np.linalg.cholesky(Q))
    for form in EPILOGUES:
        assert not lag.lag_power(on(Q), tables, epilogue(form, 1, 1000))[1].any()
        assert not dense.dense_power(W, points, epilogue(form, 1, 1000))[1].any()


# --- Dense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize(("columns", "batch"), [(1, 1), (1, 3), (10, 1), (10, 3), (16, 2), (19, 2), (37, 1)])
def test_dense_map_matches_brute_force(columns, batch, wavefront):
    positions = oracles.volumetric(4, 19, 0.3)
    axes = (np.radians(np.linspace(-50, 35, 13)), np.radians(np.linspace(-10, 28, 11)), RANGES)
    W = oracles.complex_normal(np.random.default_rng(columns), batch, 19, columns)
    points = dense.DensePoints.build(domain(positions, *axes, wavefront), DEVICE)
    q = oracles.analysis_factored(W, oracles.steering(positions, WAVELENGTH, oracles.box(*axes), wavefront))
    power, plane = dense.dense_power(on(W), points, epilogue("linear", batch))
    assert_map(power, plane, expected_power(q, "linear"), 2e-5)


@pytest.mark.parametrize(
    ("form", "precision"), [("linear", "ieee"), ("reciprocal", "tf32x3"), ("complement", "tf32x3")]
)
def test_dense_epilogues_scale_each_scene(form, precision):
    positions = oracles.irregular_plane(3, 11, 0.4)
    axes = (np.radians(np.linspace(-60, 60, 5)), np.radians([-20, 7]), RANGES)
    W = oracles.complex_normal(np.random.default_rng(8), 3, 11, 4)
    points = dense.DensePoints.build(domain(positions, *axes, "spherical"), DEVICE)
    q = oracles.analysis_factored(W, oracles.steering(positions, WAVELENGTH, oracles.box(*axes)))
    expected = expected_power(q, form, int(2 * q.max()))
    given = epilogue(form, 3, int(2 * q.max()))
    assert_map(*dense.dense_power(on(W), points, given, precision=precision), expected, 5e-5)
    volume = dense.dense_power(on(W), points, given, precision=precision, volume=True)[0]
    np.testing.assert_allclose(volume.cpu().numpy(), expected, rtol=5e-5)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("count", [1, 67, 131])
def test_dense_evaluates_lists_of_points_each_with_its_range(count, wavefront):
    positions = oracles.volumetric(9, 7, 0.3)
    rng = np.random.default_rng(count)
    where = np.stack([rng.uniform(-1, 1, count), rng.uniform(-0.5, 0.5, count), rng.uniform(0.5, 9, count)], 1)
    W = oracles.complex_normal(rng, 2, 7, 3)
    points = dense.DensePoints.build(domain(positions, *where.T, wavefront, box=False), DEVICE)
    actual = dense.dense_power(on(W), points, epilogue("linear", 2), volume=True)[0].cpu().numpy()
    q = oracles.analysis_factored(W, oracles.steering(positions, WAVELENGTH, where, wavefront))
    np.testing.assert_allclose(actual, expected_power(q, "linear"), rtol=2e-4, atol=1e-5)


def test_dense_capon_of_full_rank_from_the_triangular_factor():
    positions = oracles.rectangular(12, 12)
    axes = (np.radians(np.linspace(-60, 60, 8)), np.radians(np.linspace(-30, 30, 5)), [0.85, 3.5])
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes))
    R = oracles.loaded(oracles.source_covariance(A[[2, 6], [1, 3], [0, 1]], [1.0, 0.3], 1e-3)[None], 1e-2)
    W = np.linalg.inv(np.linalg.cholesky(R)).conj().swapaxes(-1, -2)  # upper triangular, W W^H = R^-1
    points = dense.DensePoints.build(domain(positions, *axes, "spherical"), DEVICE)
    one = launch.Epilogue("reciprocal", torch.full((1,), 144.0, device=DEVICE))
    expected, _ = oracles.maximum_over_planes(oracles.capon(R, A, 0.0))
    for triangular in (True, False):
        power, _ = dense.dense_power(on(W), points, one, triangular=triangular)
        assert oracles.worst_db(power.cpu().numpy(), expected) < 1e-3


def test_a_triangular_factor_is_not_read_below_its_last_row():
    positions = oracles.rectangular(6, 8)
    axes = (np.radians([-20.0, 30.0]), np.radians([5.0]), [1.0])
    W = np.triu(oracles.complex_normal(np.random.default_rng(1), 1, 48, 48))
    q = oracles.analysis_factored(W, oracles.steering(positions, WAVELENGTH, oracles.box(*axes)))
    W[:, 32:, :32] = np.nan  # rows that no column of the first block reaches
    points = dense.DensePoints.build(domain(positions, *axes, "spherical"), DEVICE)
    actual = dense.dense_power(on(W), points, epilogue("linear", 1), triangular=True, volume=True)[0].cpu().numpy()
    np.testing.assert_allclose(actual, expected_power(q, "linear"), rtol=2e-5)


# --- Interpolation ----------------------------------------------------------------------------------------------------


def interpolation_case(nodes, grid, batch):
    """Nodes and both matrices as the kernels take them, and the product in float64."""
    rng = np.random.default_rng(nodes[0])
    values = rng.uniform(1, 2, (batch, 3, *nodes))
    azimuth, elevation = (rng.uniform(0, 1, sizes) for sizes in zip(grid, nodes, strict=True))
    q = np.einsum("am,brmn,en->baer", azimuth, values, elevation, optimize=True)
    return [on(x, torch.float32) for x in (values, azimuth, elevation)], q


@pytest.mark.parametrize("form", ["linear", "reciprocal", "complement"])
@pytest.mark.parametrize(
    ("nodes", "grid", "batch"), [((1, 1), (67, 71), 2), ((17, 5), (67, 71), 2), ((44, 28), (1, 3), 1)]
)
def test_interpolation_is_the_product_of_both_matrices(nodes, grid, batch, form):
    given, q = interpolation_case(nodes, grid, batch)
    offset = int(2 * q.max()) + 1
    expected = expected_power(q, form, offset)
    assert_map(*interpolate.interpolated_power(*given, epilogue(form, batch, offset)), expected, 2e-5)
    volume = interpolate.interpolated_power(*given, epilogue(form, batch, offset), volume=True)[0].cpu().numpy()
    np.testing.assert_allclose(volume, expected, rtol=2e-5)


def test_interpolation_from_the_nodes_of_the_reference_system():
    given, q = interpolation_case((60, 36), (67, 35), 1)
    power, plane = interpolate.interpolated_power(*given, epilogue("reciprocal", 1))
    assert_map(power, plane, expected_power(q, "reciprocal"), 2e-5)


def test_chebyshev_capon_of_dense_nodes_matches_brute_force():
    positions = oracles.rectangular(5, 4)
    axes = (np.radians(np.linspace(-60, 60, 61)), np.radians(np.linspace(-30, 30, 33)), [0.85, 3.5])
    scene = domain(positions, *axes, "spherical")
    nodes = box_nodes(scene, 1e-6)
    assert nodes.azimuth.count < 61
    Q = inverse_covariances(4, 1, 20)
    at = domain(positions, nodes.azimuth.nodes.numpy(), nodes.elevation.nodes.numpy(), axes[2], "spherical")
    points = dense.DensePoints.build(at, DEVICE)
    q = dense.dense_power(on(np.linalg.cholesky(Q)), points, epilogue("linear", 1), volume=True)[0]
    matrices = [
        on(torch.eye(axis.count) if axis.matrix is None else axis.matrix, torch.float32)
        for axis in (nodes.azimuth, nodes.elevation)
    ]
    power, _ = interpolate.interpolated_power(2 * q.permute(0, 3, 1, 2), *matrices, epilogue("reciprocal", 1))
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes))
    expected, _ = oracles.maximum_over_planes(expected_power(oracles.analysis(Q, A), "reciprocal"))
    assert oracles.worst_db(power.cpu().numpy(), expected) < 1e-3


# --- Launchers --------------------------------------------------------------------------------------------------------


def test_empty_batches_give_empty_results():
    scene = domain(oracles.rectangular(3, 2), [0.1, 0.2], [0.3], RANGES, "fresnel")
    tables = lag_tables.LagTables.build(scene, torch.float32, DEVICE)
    points = dense.DensePoints.build(scene, DEVICE)
    assert lag.lag_power(on(np.zeros((0, 6, 6))), tables, epilogue("linear", 0))[0].shape == (0, 2, 1)
    assert dense.dense_power(on(np.zeros((0, 6, 2))), points, epilogue("linear", 0), volume=True)[0].shape == (
        0,
        2,
        1,
        3,
    )


def test_bad_operands_are_named():
    scene = domain(oracles.rectangular(3, 2), [0.1, 0.2], [0.3], RANGES, "fresnel")
    tables = lag_tables.LagTables.build(scene, torch.float32, DEVICE)
    points = dense.DensePoints.build(scene, DEVICE)
    with pytest.raises(ShapeError, match="matrix must have shape"):
        lag.lag_power(on(np.zeros((2, 5, 6))), tables, epilogue("linear", 2))
    with pytest.raises(ShapeError, match="transposed"):
        dense.dense_power(on(np.zeros((1, 2, 6))), points, epilogue("linear", 1))
    with pytest.raises(TypeError, match="complex64"):
        dense.dense_power(on(np.zeros((1, 6, 2)), torch.complex128), points, epilogue("linear", 1))
    with pytest.raises(ValueError, match="precision must be one of"):
        dense.dense_power(on(np.zeros((1, 6, 2))), points, epilogue("linear", 1), precision="bf16")
    with pytest.raises(ShapeError, match="scale must have shape"):
        dense.dense_power(on(np.zeros((2, 6, 2))), points, epilogue("linear", 1))
    with pytest.raises(ValueError, match="form must be one of"):
        launch.Epilogue("square", torch.ones(1))
    for columns, dtype in ((65, torch.float32), (33, torch.float64)):
        with pytest.raises(ValueError, match=f"no configuration for {columns} columns"):
            lag.lag_configuration(columns, dtype)
    spherical = domain(oracles.rectangular(3, 2), [0.1], [0.3], RANGES, "spherical")
    with pytest.raises(ValueError, match="fresnel or planar"):
        lag_tables.LagTables.build(spherical, torch.float32, DEVICE)
    with pytest.raises(ValueError, match="one device"):
        launch.check_operands(lag.lag_rows_kernel, a=torch.ones(1), b=torch.ones(1, device="meta"))
