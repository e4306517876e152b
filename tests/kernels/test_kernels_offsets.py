"""Offsets past 2^31 in the kernels of maps: the last scene of a batch that no memory holds comes out as it is alone."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

DEVICE = os.environ.get("RISFAST_TEST_DEVICE", "cpu")
if DEVICE != "cpu":
    pytest.skip("takes tens of GB of the device for what the interpreter shows", allow_module_level=True)
if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")
import triton.language as tl  # noqa: E402

if isinstance(tl.sum, triton.runtime.jit.JITFunction):
    reason = "triton was imported without its interpreter; test_kernels_process.py runs this file in a fresh process"
    pytest.skip(reason, allow_module_level=True)
import large_operands as large  # noqa: E402
from large_operands import (  # noqa: E402
    LATTICE,
    PAST,
    REAL,
    N,
    beyond,
    box,
    ending,
    epilogue,
    equal_at_the_end,
    equal_to_rounding,
    kernel_module,
    random,
)

from risfast.errors import ShapeError  # noqa: E402

dense = kernel_module("dense")
forms = kernel_module("forms")
interpolate = kernel_module("interpolate")
interpolate_adjoint = kernel_module("interpolate_adjoint")
inverse = kernel_module("inverse")
lag = kernel_module("lag")
lag_adjoint = kernel_module("lag_adjoint")
lag_evaluate = kernel_module("lag_evaluate")
lag_tables = kernel_module("lag_tables")
launch = kernel_module("launch")
lowrank = kernel_module("lowrank")
nms = kernel_module("nms")
synthesis = kernel_module("synthesis")
weights = kernel_module("weights")

# Lanes beyond the end of an array may divide by zero: a GPU does so silently, and nothing of it is stored.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")


@pytest.fixture
def holes(tmp_path, monkeypatch):
    return large.memory_with_holes(tmp_path, monkeypatch)


@pytest.fixture
def last(monkeypatch):
    return large.last_programs(monkeypatch)


def test_the_harness_sees_an_offset_that_wraps_around(holes, last):
    @triton.jit
    def copy_kernel(in_ptr, out_ptr, numbers, WIDE: tl.constexpr):
        scene = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
        at = scene * numbers + tl.arange(0, 4)
        tl.store(out_ptr + tl.arange(0, 4), tl.load(in_ptr + at))

    batch = beyond(1 << 20)
    given = ending(holes, batch, random(1, 1 << 20))
    last(1)
    out = torch.zeros(4)
    copy_kernel[(batch,)](given, out, 1 << 20, WIDE=True)
    assert torch.equal(out, given[-1, :4])
    with pytest.raises(Exception, match="an address outside all operands"):
        copy_kernel[(batch,)](given, out, 1 << 20, WIDE=False)


# --- Maps and volumes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [16, 160])
def test_dense_reads_factors(holes, last, columns):
    points = dense.DensePoints.build(box(), "cpu")
    tail = random(2, N, columns, dtype=torch.complex64)
    batch = beyond(2 * N * columns)
    expected = dense.dense_power(tail, points, epilogue(2))
    last(4)
    power, plane = dense.dense_power(ending(holes, batch, tail), points, epilogue(batch))
    equal_at_the_end(power, expected[0])
    assert torch.equal(plane[-1], expected[1][-1])


def test_dense_and_the_residual_write_volumes(holes, last):
    points = dense.DensePoints.build(large.many_points(1 << 16), "cpu")
    batch = beyond(1 << 16)
    factor, other = random(2, N, 2, dtype=torch.complex64), random(2, N, 2, dtype=torch.complex64, seed=1)
    last(2)
    expected = dense.dense_power(factor, points, epilogue(2), volume=True)[0]
    actual = dense.dense_power(ending(holes, batch, factor), points, epilogue(batch), volume=True)[0]
    equal_at_the_end(actual[:, -128:], expected[:, -128:])
    pair = ending(holes, batch, factor), ending(holes, batch, other)
    expected = lowrank.residual_power(factor, other, points, epilogue(2), volume=True)[0]
    equal_at_the_end(
        lowrank.residual_power(*pair, points, epilogue(batch), volume=True)[0][:, -128:], expected[:, -128:]
    )


@pytest.mark.parametrize("columns", [16, 32])
def test_the_residual_reads_factors(holes, last, columns):
    points = dense.DensePoints.build(box(), "cpu")
    tails = [random(2, N, columns, dtype=torch.complex64, seed=seed) for seed in (0, 1)]
    batch = beyond(2 * N * columns)
    expected = lowrank.residual_power(*tails, points, epilogue(2, "reciprocal"))
    last(2)
    pair = [ending(holes, batch, tail) for tail in tails]
    power, plane = lowrank.residual_power(*pair, points, epilogue(batch, "reciprocal"))
    equal_at_the_end(power, expected[0])
    assert torch.equal(plane[-1], expected[1][-1])


def test_interpolation_reads_nodes_and_writes_volumes(holes, last):
    nodes, azimuth, elevation = random(1, 2, 90, 70), random(40, 90, seed=1), random(30, 70, seed=2)
    batch = beyond(2 * 90 * 70)
    expected = interpolate.interpolated_power(nodes, azimuth, elevation, epilogue(1))
    last(1)
    power, plane = interpolate.interpolated_power(ending(holes, batch, nodes), azimuth, elevation, epilogue(batch))
    equal_at_the_end(power, expected[0])
    assert torch.equal(plane[-1], expected[1][-1])
    nodes, azimuth, elevation = random(1, 2, 3, 2), random(320, 3, seed=1), random(320, 2, seed=2)
    batch = beyond(2 * 320 * 320)
    expected = interpolate.interpolated_power(nodes, azimuth, elevation, epilogue(1), volume=True)[0]
    actual = interpolate.interpolated_power(
        ending(holes, batch, nodes), azimuth, elevation, epilogue(batch), volume=True
    )[0]
    equal_at_the_end(actual[:, -32:, -32:], expected[:, -32:, -32:])


both_kinds = pytest.mark.parametrize("kind", REAL)


@both_kinds
def test_lag_coefficients_read_matrices_and_write_coefficients(holes, last, kind):
    matrix = random(1, N, N, dtype=kind)
    tables = lag_tables.LagTables.build(box(wavefront="fresnel"), REAL[kind], "cpu")
    many = lag_tables.LagTables.build(box(ranges=MANY_RANGES, wavefront="fresnel"), REAL[kind], "cpu")
    expected, expected_many = lag.lag_coefficients(matrix, tables), lag.lag_coefficients(matrix, many)
    last(5)  # the vertical lags of one scene, then the blocks of planes of its last lag
    equal_at_the_end(lag.lag_coefficients(ending(holes, beyond(2 * N * N), matrix), tables), expected)
    actual = lag.lag_coefficients(ending(holes, beyond(2 * 40 * 4 * 5), matrix), many)
    equal_at_the_end(actual[..., -1], expected_many[..., -1])


MANY_RANGES = tuple(np.linspace(0.6, 9.0, 40))


@both_kinds
def test_lag_rows_and_evaluation(holes, last, kind):
    dtype, planes = REAL[kind], 16
    ranges = tuple(np.linspace(0.6, 9.0, planes))
    tables = lag_tables.LagTables.build(box(ranges=ranges, wavefront="fresnel"), dtype, "cpu")
    tail = random(8, planes, 4, 5, dtype=kind)
    expected = lag.lag_rows(tail, tables)
    maps = launch.best_and_plane((8, 3, 5), dtype, torch.device("cpu"))
    lag_evaluate.lag_evaluate(expected, tables, epilogue(8), (*maps, None))
    volume = torch.empty(8, planes, 3, 5, dtype=dtype)
    lag_evaluate.lag_evaluate(expected, tables, epilogue(8), (*maps, volume))
    last(1)
    batch = beyond(2 * planes * 4 * 5)
    rows = lag.lag_rows(ending(holes, batch, tail), tables)
    equal_to_rounding(rows[:, :, -1, -8:], expected[:, :, -1, -8:])  # one tile of 8 planes and 4 lags
    batch = beyond(planes * 3 * 5)
    rows = holes(2, 3, batch, planes, 4, dtype=dtype)
    rows[:, :, -8:] = expected
    assert rows[0].numel() > PAST / 2
    found = launch.best_and_plane((batch, 3, 5), dtype, torch.device("cpu"))
    lag_evaluate.lag_evaluate(rows, tables, epilogue(batch), (*found, None))
    equal_at_the_end(found[0][:, -1], maps[0][:, -1], 8)  # the last program's elevation
    assert torch.equal(found[1][-8:, -1], maps[1][:, -1])
    large = holes(batch, planes, 3, 5, dtype=dtype)
    lag_evaluate.lag_evaluate(rows, tables, epilogue(batch), (*found, large))
    equal_at_the_end(large[:, :, -1], volume[:, :, -1], 8)


# --- Operands ---------------------------------------------------------------------------------------------------------


@both_kinds
def test_the_inverse_reads_and_writes_matrices(holes, last, kind):
    F = random(1, 48, 48, dtype=kind)
    R, delta = F @ F.mH, torch.full((1,), 0.5)
    factor, info = inverse.inverse_factor(R, delta, dtype=REAL[kind])
    expected = inverse.inverse_from_factor(factor)
    assert info.tolist() == [0]
    batch = beyond(2 * 48 * 48)
    last(1)
    actual, info = inverse.inverse_factor(ending(holes, batch, R), torch.full((batch,), 0.5), dtype=REAL[kind])
    equal_at_the_end(actual, factor)
    assert info[-1] == 0
    last(4)  # the tiles of one scene
    equal_at_the_end(inverse.inverse_from_factor(ending(holes, batch, factor)), expected)


# --- What a scene may hold --------------------------------------------------------------------------------------------


def expanded(*shape, dtype=torch.float32):
    return torch.zeros(1, dtype=dtype).expand(shape)


def scenes_that_int32_cannot_count():
    """Calls of launchers, by name; nothing of the operands is in memory."""
    huge = 1 << 31
    points = dense.DensePoints(expanded(3, N), expanded(3, huge), expanded(huge), (huge,), "spherical")
    factor = expanded(1, N, 2, dtype=torch.complex64)
    tables = lag_tables.LagTables.build(box(wavefront="fresnel"), torch.float32, "cpu")
    many = lag_tables.LagTables(**{**vars(tables), "n_azimuth": 1 << 16, "n_elevation": 1 << 15})
    geometry = forms.FormGeometry.build(torch.as_tensor(LATTICE), 20.9, "spherical", "cpu")
    wide, tall = expanded(1 << 16, 2), expanded(1 << 15, 2)
    grid = weights.PointWeights(expanded(1, 1 << 16, 1 << 15, 2))
    return {
        "dense": lambda: dense.dense_power(factor, points, epilogue(1), volume=True)[0],
        "residual": lambda: lowrank.residual_power(factor, factor, points, epilogue(1), volume=True)[0],
        "synthesis": lambda: synthesis.dense_synthesis(weights.PointWeights(expanded(1, huge)), points),
        "interpolation": lambda: interpolate.interpolated_power(expanded(1, 2, 2, 2), wide, tall, epilogue(1)),
        "its adjoint": lambda: interpolate_adjoint.interpolate_adjoint(grid, wide, tall, 2),
        "lag": lambda: lag_adjoint.lag_synthesis(grid, many),
        "suppression": lambda: nms.nms(expanded(1, huge // 3 + 1, 3), expanded(1, huge // 3 + 1), (1, 1, 1), 1),
        "forms": lambda: forms.forms(
            expanded(1, huge, 3, dtype=torch.float64),
            expanded(1, N, 2, dtype=torch.complex128),
            True,
            geometry,
            torch.float32,
        ),
    }


@pytest.mark.parametrize("name", scenes_that_int32_cannot_count())
def test_a_scene_that_int32_cannot_count_is_refused(name):
    with pytest.raises(ShapeError, match="cut the grid or the list of points into parts"):
        scenes_that_int32_cannot_count()[name]()
