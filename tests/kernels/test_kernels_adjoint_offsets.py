"""Offsets past 2^31 in the adjoints, the peaks and the refinement; see test_kernels_offsets.py."""

from __future__ import annotations

import math
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
    equal_at_the_end,
    equal_to_rounding,
    kernel_module,
    random,
)

dense = kernel_module("dense")
descent = kernel_module("descent")
forms = kernel_module("forms")
interpolate_adjoint = kernel_module("interpolate_adjoint")
lag_adjoint = kernel_module("lag_adjoint")
lag_tables = kernel_module("lag_tables")
nms = kernel_module("nms")
peaks = kernel_module("peaks")
refine = kernel_module("refine")
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


def of_map(zeros, batch, values, plane):
    """Weights of the winning planes of a map."""
    return weights.PointWeights(*(ending(zeros, batch, tensor) for tensor in (values, plane)))


@pytest.mark.parametrize("winner", [False, True])
def test_synthesis_reads_weights(holes, last, winner):
    n_az, n_el = 16, 8
    points = dense.DensePoints.build(box(n_az, n_el), "cpu")
    p = random(1, n_az, n_el, 2)
    plane = (random(1, n_az, n_el, seed=2) > 0).int()
    small = of_map(holes, 1, p[..., 0], plane) if winner else weights.PointWeights(p)
    expected = synthesis.dense_synthesis(small, points)
    batch = beyond(n_az * n_el * (1 if winner else 2))
    if winner:
        large = of_map(holes, batch, p[..., 0], plane)
    else:  # stored plane by plane, so that nothing is copied
        large = weights.PointWeights(ending(holes, batch, p.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    last(1)
    parts = synthesis.synthesis_parts(batch, N, n_az * n_el)
    assert parts == 1  # so that the last program sums all points
    found = synthesis.dense_synthesis(large, points)[-1]
    np.testing.assert_allclose(found, expected[0], atol=2e-6 * float(expected.abs().max()), rtol=0)


def test_synthesis_writes_parts_and_sums(holes, last):
    points = dense.DensePoints.build(box(2, 2), "cpu")
    p = random(2, 2, 2, 2)
    expected = synthesis.dense_synthesis(weights.PointWeights(p), points)
    batch = beyond(2 * N * N)
    large = weights.PointWeights(ending(holes, batch, p.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    last(1)
    equal_at_the_end(synthesis.dense_synthesis(large, points), expected)


def test_the_sum_of_parts_steps_over_parts(holes, last):
    parts, batch = 3, beyond(2 * 3 * 20 * 20)
    part = holes(parts, batch, 20, 20, 2)
    part[:, -1] = random(parts, 20, 20, 2)
    out = holes(batch, 20, 20, 2)
    last(1)
    synthesis.sum_parts_kernel[(batch,)](part, out, batch, 20, parts, 1, **synthesis.sum_configuration())
    upper = torch.triu(torch.ones(20, 20)).bool()
    expected = part[0, -1] + part[1, -1] + part[2, -1]
    assert torch.equal(out[-1, ..., 0][upper], expected[..., 0][upper])
    assert torch.equal(out[-1, ..., 0], out[-1, ..., 0].mT)


@pytest.mark.parametrize("winner", [False, True])
def test_adjoint_interpolation_reads_weights_and_writes_nodes(holes, last, winner):
    n_az, n_el = 40, 24
    azimuth, elevation = random(n_az, 20, seed=3), random(n_el, 18, seed=4)
    p = random(1, n_az, n_el, 2)
    plane = (random(1, n_az, n_el, seed=2) > 0).int()
    small = of_map(holes, 1, p[..., 0], plane) if winner else weights.PointWeights(p)
    expected = interpolate_adjoint.interpolate_adjoint(small, azimuth, elevation, 2)
    batch = beyond(2 * 20 * 18)
    assert batch * n_az * n_el > PAST
    if winner:
        large = of_map(holes, batch, p[..., 0], plane)
    else:
        large = weights.PointWeights(ending(holes, batch, p.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    last(2)  # the planes of one scene
    equal_at_the_end(interpolate_adjoint.interpolate_adjoint(large, azimuth, elevation, 2), expected)


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("winner", [False, True])
def test_the_adjoint_of_the_lag_method_in_its_three_steps(holes, last, monkeypatch, kind, winner):
    dtype, planes = REAL[kind], 16
    ranges = tuple(np.linspace(0.7, 8.0, planes))
    tables = lag_tables.LagTables.build(box(20, 10, ranges, "fresnel"), dtype, "cpu")
    p = random(1, planes, 10, 20, dtype=dtype)
    plane = (random(1, 10, 20, seed=2).abs() * 8).int() % planes

    def made(batch):
        if not winner:
            return weights.PointWeights(ending(holes, batch, p).permute(0, 3, 2, 1))
        return weights.PointWeights(*(ending(holes, batch, tensor).mT for tensor in (p[:, 0], plane)))

    expected_rows = lag_adjoint._rows(made(1), tables, planes, torch.device("cpu"))
    expected_lags = lag_adjoint._lags(expected_rows, tables)
    expected = lag_adjoint.lag_synthesis(made(1), tables)
    cpu, batch = torch.device("cpu"), beyond(10 * 20)
    last(1)
    rows = lag_adjoint._rows(made(batch), tables, planes, cpu)  # [2, G_el, B, R, n_h]
    assert rows.numel() > PAST
    equal_to_rounding(rows[:, -1, -1], expected_rows[:, -1, 0])
    rows[:, :, -1] = expected_rows[:, :, 0]
    last(2 * math.ceil(planes * 4 / 32))
    lags = lag_adjoint._lags(rows, tables)
    assert lags.numel() > PAST
    equal_at_the_end(lags, expected_lags)
    monkeypatch.setattr(lag_adjoint, "_rows", lambda *_: rows)
    monkeypatch.setattr(lag_adjoint, "_lags", lambda *_: lags)
    last(1)  # all of a matrix of 12 x 12
    found = lag_adjoint.lag_synthesis(weights.PointWeights(torch.zeros(1).expand(batch, 20, 10, planes)), tables)
    assert found.numel() * 2 > PAST
    equal_at_the_end(found, expected)


# --- Peaks and refinement ---------------------------------------------------------------------------------------------


def test_maxima_and_their_ranks_step_over_buffers(last, holes):
    volume = random(1, 60, 60, 1)
    expected = [peaks.local_maxima(volume, (5, 5, 1), k) for k in (64, 512)]
    last(8)  # the parts of the ranks of the last scene, and its blocks of cells
    for k, wanted in zip((64, 512), expected, strict=True):
        batch = beyond(400 if k == 64 else 3 * k)  # cells of the buffer, or indices that are returned
        found = peaks.local_maxima(volume.expand(batch, 60, 60, 1), (5, 5, 1), k)
        for actual, alone in zip(found[:3], wanted[:3], strict=True):
            equal_at_the_end(actual, alone)


@pytest.mark.parametrize(("candidates", "k"), [(2100, 4), (40, 6000)])
def test_suppression_reads_candidates_and_writes_indices(holes, last, candidates, k):
    position, score = random(1, candidates, 3), random(1, candidates, seed=1)
    box_size = (0.4, 0.4, 0.4)
    expected = nms.nms(position, score, box_size, k)
    batch = beyond(max(candidates, k))
    last(1)
    large = ending(holes, batch, position), ending(holes, batch, score)
    index, count, bad = nms.nms(*large, box_size, k)
    equal_at_the_end(index, expected[0])
    assert (count[-1], bad[-1]) == (expected[1][0], 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factored", [False, True])
def test_forms_read_matrices_and_points(holes, last, factored, dtype):
    matrix = random(1, N, 60 if factored else N, dtype=torch.complex128)
    matrix = matrix if factored else matrix + matrix.mH
    geometry = forms.FormGeometry.build(torch.as_tensor(LATTICE), 20.9, "spherical", "cpu")
    points = random(1, 700, 3, dtype=torch.float64).abs() * 0.3 + 0.1
    expected = forms.forms(points, matrix, factored, geometry, dtype)
    batch = beyond(2 * N * matrix.shape[2])
    assert batch * points[0].numel() > PAST
    last(5)
    large = ending(holes, batch, points), ending(holes, batch, matrix)
    equal_at_the_end(forms.forms(*large, factored, geometry, dtype)[:, -256:], expected[:, -256:])


def test_the_steps_of_a_descent_count_candidates_in_int64(holes, last):
    count = beyond(3)  # candidates, each with 3 coordinates and 19 heights; a multiple of the tile of 8
    tail = 32 + count % 32
    point = random(tail, 3, dtype=torch.float64).abs() * 0.1 + 0.5
    step, low, high = torch.full_like(point, 0.1), torch.zeros_like(point), torch.ones_like(point)
    heights, moved = random(tail, 19, dtype=torch.float64), random(tail, 6, dtype=torch.float64, seed=1)
    moved_heights, value = random(tail, 2, dtype=torch.float64, seed=2), torch.full((tail,), 9.0, dtype=torch.float64)
    stencil, fit = descent._tables(torch.device("cpu"))
    tile = descent.step_configuration()

    def descended(batch, kept):
        geometry = [kept(tensor) for tensor in (step, low, high)]
        around, to, at = kept(torch.zeros(tail, 57).double()), kept(torch.zeros(tail, 6).double()), kept(point)
        best = kept(value)
        blocks = (triton.cdiv(batch, tile["BLOCK"]),)
        given = kept(heights)
        stencil_tile = descent.stencil_configuration()
        stencil_blocks = (triton.cdiv(57 * batch, stencil_tile["BLOCK"]),)
        descent.stencil_kernel[stencil_blocks](at, *geometry, stencil, around, 1.0, 57 * batch, **stencil_tile)
        descent.newton_kernel[blocks](at, *geometry, given, fit, to, 1.0, batch, **tile)
        others = kept(moved), kept(moved_heights)
        descent.choose_kernel[blocks](at, best, *geometry, stencil, given, *others, 1.0, batch, **tile)
        return around, to, at, best

    expected = descended(tail, lambda tensor: tensor.clone())
    last(1)
    found = descended(count, lambda tensor: ending(holes, count, tensor))
    assert found[3].numel() * 3 > PAST
    for actual, wanted in zip(found, expected, strict=True):
        equal_at_the_end(actual, wanted, 8)


def test_the_fine_grid_counts_boxes_in_int64(holes, last):
    nodes = random(1, 7, 8, 9)
    matrices = [random(count, n, seed=n) for count, n in ((9, 7), (10, 8), (11, 9))]
    tile = refine.grid_minimum_configuration(8, 9)
    chunks = triton.cdiv(9, tile["AZIMUTHS"])

    def smallest(values):
        key = torch.full((len(values),), refine._NO_KEY, dtype=torch.int64)
        sizes = (*nodes.shape[1:], 9, 10, 11, chunks)
        refine.grid_minimum_kernel[(len(values) * chunks,)](values, *matrices, key, *sizes, PRECISION="ieee", **tile)
        return key

    expected = smallest(nodes)
    last(chunks)
    equal_at_the_end(smallest(ending(holes, beyond(nodes.numel()), nodes)), expected)
