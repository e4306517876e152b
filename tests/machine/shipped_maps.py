"""Every shipped configuration of the kernels of maps, on problems small enough to be executed.

Each axis has at least two programs or tiles, the last of them partial; N is odd or 144. Collected by its name alone,
in a process that ``tests.machine.plugin`` prepared: see README.md.
"""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from test_kernels_interpreter import domain, epilogue, expected_power, interpolation_case, kernel_module, on, poisoned
from test_kernels_lowrank import factors, residual_factors

from tests.machine.judging import judge

__all__ = ["judge", "poisoned"]  # fixtures

dense = kernel_module("dense")
interpolate = kernel_module("interpolate")
lag = kernel_module("lag")
lag_tables = kernel_module("lag_tables")
lowrank = kernel_module("lowrank")

# Lanes beyond the end of an array may divide by zero: a GPU does so silently, and nothing of it is stored.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

WAVELENGTH = 0.3
RANGES = np.linspace(0.6, 9, 3)
# 143 directions: two tiles of 64 or 128, the last one partial.
AXES = (np.radians(np.linspace(-50, 35, 13)), np.radians(np.linspace(-10, 28, 11)), RANGES)
DTYPES = [torch.float32, torch.float64]
FORMS = [("reciprocal", False), ("complement", False), ("linear", True)]
FLOAT32, FLOAT64 = 1e-4, 1e-11


def inverse_covariances(batch, n):
    """Inverses of well-conditioned covariances."""
    rng = np.random.default_rng(5)
    return np.stack([np.linalg.inv(oracles.wishart(rng, n, 3 * n) + 0.1 * np.eye(n)) for _ in range(batch)])


def array_of(n):
    """The reference surface, or any points."""
    return oracles.rectangular(12, 12) if n == 144 else oracles.volumetric(4, n, 0.3)


# Columns, rows, azimuths, elevations, planes, scenes. More half-azimuths than one program covers, and nine scenes for
# programs of eight; or, on the reference surface, more elevations, vertical lags and planes than one tile holds.
WIDE = {1: (7, 401), 12: (3, 401), 16: (2, 273), 32: (1, 145), 64: (1, 81)}
WIDE_CASES = [(n_h, n_v, azimuths, 3, 3, 9) for n_h, (n_v, azimuths) in WIDE.items()]
TALL_CASE = (12, 12, 5, 67, 9, 2)


def assert_lag(judge, case, form, volume, dtype, entries):
    n_h, n_v, n_az, n_el, n_r, batch = case
    positions = oracles.rectangular(n_h, n_v, 0.05)
    axes = (np.radians(np.linspace(-60, 60, n_az)), np.radians(np.linspace(-30, 30, n_el)), np.linspace(0.6, 9, n_r))
    Q = on(inverse_covariances(batch, len(positions)), entries)
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*axes), "fresnel")
    q = oracles.analysis(Q.to(torch.complex128).numpy(), A)
    offset = int(2 * q.max()) + 1
    tables = lag_tables.LagTables.build(domain(positions, *axes, "fresnel"), dtype, "cpu")
    options, expected = epilogue(form, batch, offset), expected_power(q, form, offset)
    rtol = FLOAT32 if dtype == torch.float32 else FLOAT64
    if volume:
        judge.close(lag.lag_power(Q, tables, options, volume=True)[0], expected, rtol=rtol)
    else:
        judge.map(*lag.lag_power(Q, tables, options), expected, rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", WIDE_CASES, ids=lambda case: f"{case[0]} columns")
def test_lag_of_columns(judge, case, dtype):
    if case[0] == 64 and dtype == torch.float64:
        pytest.skip("64 columns in float64 are refused")
    assert_lag(judge, case, "reciprocal", False, dtype, dtype.to_complex())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("form", "volume"), FORMS[1:])
def test_lag_of_forms(judge, form, volume, dtype):
    assert_lag(judge, WIDE_CASES[1], form, volume, dtype, dtype.to_complex())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entries", [torch.complex64, torch.complex128])
def test_lag_of_the_reference_surface(judge, dtype, entries):
    assert_lag(judge, TALL_CASE, "reciprocal", False, dtype, entries)


@pytest.mark.parametrize("n", [33, 144])
@pytest.mark.parametrize(
    ("columns", "batch", "wavefront", "form", "volume"),
    [
        (10, 1, "spherical", "complement", False),
        (10, 3, "spherical", "complement", False),
        (10, 3, "fresnel", "linear", True),
        (16, 3, "planar", "reciprocal", False),
        (144, 2, "fresnel", "linear", True),
    ],
)
def test_dense(judge, n, columns, batch, wavefront, form, volume):
    columns = min(columns, n)
    positions = array_of(n)
    W = oracles.complex_normal(np.random.default_rng(n), batch, n, columns)
    q = oracles.analysis_factored(W, oracles.steering(positions, WAVELENGTH, oracles.box(*AXES), wavefront))
    offset = int(2 * q.max()) + 1
    points = dense.DensePoints.build(domain(positions, *AXES, wavefront), "cpu")
    options, expected = epilogue(form, batch, offset), expected_power(q, form, offset)
    if volume:
        judge.close(dense.dense_power(on(W), points, options, volume=True)[0], expected, atol=FLOAT32)
    else:
        judge.map(*dense.dense_power(on(W), points, options), expected, 2e-4)


@pytest.mark.parametrize("n", [33, 144])
def test_dense_triangular(judge, n):
    positions = array_of(n)
    rng = np.random.default_rng(n)
    R = np.stack([oracles.wishart(rng, n, 3 * n) + 0.1 * np.eye(n) for _ in range(2)])
    W = np.linalg.inv(np.linalg.cholesky(R)).conj().swapaxes(-1, -2)
    q = oracles.analysis_factored(W, oracles.steering(positions, WAVELENGTH, oracles.box(*AXES)))
    points = dense.DensePoints.build(domain(positions, *AXES, "spherical"), "cpu")
    options = epilogue("reciprocal", 2)
    judge.map(*dense.dense_power(on(W), points, options, triangular=True), expected_power(q, "reciprocal"), 2e-4)


@pytest.mark.parametrize(("form", "volume"), FORMS)
@pytest.mark.parametrize(("nodes", "grid"), [((5, 7), (67, 35)), ((33, 19), (70, 33))])
def test_interpolate(judge, nodes, grid, form, volume):
    given, q = interpolation_case(nodes, grid, 2)
    offset = int(2 * q.max()) + 1
    options, expected = epilogue(form, 2, offset), expected_power(q, form, offset)
    if volume:
        judge.close(interpolate.interpolated_power(*given, options, volume=True)[0], expected, rtol=2e-5)
    else:
        judge.map(*interpolate.interpolated_power(*given, options), expected, 2e-5)


@pytest.mark.parametrize("n", [33, 144])
@pytest.mark.parametrize(
    ("columns", "wavefront", "form", "volume"),
    [
        (10, "spherical", "reciprocal", False),
        (16, "fresnel", "complement", False),
        (16, "planar", "linear", True),
        (10, "spherical", "reciprocal", True),
        (32, "spherical", "reciprocal", False),
        (32, "fresnel", "linear", True),
    ],
)
def test_residual(judge, n, columns, wavefront, form, volume):
    positions = array_of(n)
    F, delta, R = factors(columns, 2, n, columns)
    A = oracles.steering(positions, WAVELENGTH, oracles.box(*AXES), wavefront)
    q = delta[:, None, None, None] * oracles.analysis(np.linalg.inv(R), A)
    U, V, info = residual_factors(F, delta)
    assert not info.any()
    points = dense.DensePoints.build(domain(positions, *AXES, wavefront), "cpu")
    options, expected = epilogue(form, 2, 2 * n), expected_power(q, form, 2 * n)
    if volume:
        judge.close(lowrank.residual_power(U, V, points, options, volume=True)[0], expected, rtol=5e-4)
    else:
        judge.map(*lowrank.residual_power(U, V, points, options), expected, 5e-4)
