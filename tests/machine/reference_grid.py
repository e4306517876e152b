"""The reference grid, 361 x 181 x 7 points and 144 elements, as machine code; collected by its name alone.

See test_machine_full.py. The oracle looks at some of the points.
"""

from __future__ import annotations

import numpy as np
import oracles
import torch
from test_kernels_interpreter import domain, epilogue, kernel_module, on, poisoned
from test_peaks import quantised

import risfast.ops  # noqa: F401 - registers the CPU operators

__all__ = ["poisoned"]  # a fixture

dense = kernel_module("dense")
lag = kernel_module("lag")
lag_tables = kernel_module("lag_tables")
peaks = kernel_module("peaks")

WAVELENGTH = 0.3
RANGES = np.array([0.55, 0.85, 1.3, 2, 3.5, 6, 9.5])
AXES = (np.radians(np.linspace(-90, 90, 361)), np.radians(np.linspace(-45, 45, 181)), RANGES)
SURFACE = oracles.rectangular(12, 12)
BATCH = 2
LOOKED_AT = 400


def assert_power_at_some_points(power, quadratic, form, offset, rtol):
    """``quadratic`` is a function of a scene and its points; the map is the best of their planes."""
    power, rng = power.numpy(), np.random.default_rng(0)
    assert np.isfinite(power).all()
    for scene in range(BATCH):
        a, e = rng.integers(361, size=LOOKED_AT), rng.integers(181, size=LOOKED_AT)
        shape = (LOOKED_AT, len(RANGES))
        parts = [np.broadcast_to(x, shape) for x in (AXES[0][a][:, None], AXES[1][e][:, None], RANGES)]
        q = quadratic(scene, np.stack(parts, -1))
        scale = np.linspace(0.5, 2.0, BATCH)[scene]
        expected = scale / q if form == "reciprocal" else scale / (offset - q)
        np.testing.assert_allclose(power[scene, a, e], expected.max(-1), rtol=rtol)


def steering(points, wavefront):
    return oracles.steering(SURFACE, WAVELENGTH, points, wavefront)


def test_dense_map():
    W = oracles.complex_normal(np.random.default_rng(1), BATCH, 144, 10)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    points = dense.DensePoints.build(domain(SURFACE, *AXES, "spherical"), "cpu")
    offset = 144 * 10
    power, _ = dense.dense_power(on(W), points, epilogue("complement", BATCH, offset))

    def quadratic(scene, at):
        return oracles.analysis_factored(W[scene][None], steering(at, "spherical"))[0]

    assert_power_at_some_points(power, quadratic, "complement", offset, 2e-4)


def test_lag_map():
    rng = np.random.default_rng(5)
    Q = np.stack([np.linalg.inv(oracles.wishart(rng, 144, 432) + 0.1 * np.eye(144)) for _ in range(BATCH)])
    for dtype, rtol in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        tables = lag_tables.LagTables.build(domain(SURFACE, *AXES, "fresnel"), dtype, "cpu")
        power, _ = lag.lag_power(on(Q, dtype.to_complex()), tables, epilogue("reciprocal", BATCH))

        def quadratic(scene, at):
            return oracles.analysis(Q[scene][None], steering(at, "fresnel"))[0]

        assert_power_at_some_points(power, quadratic, "reciprocal", 0, rtol)


def test_maxima():
    volume = quantised((1, 361, 181, 7), 100000, 3)
    *found, bad = peaks.local_maxima(volume, (7, 7, 3), 64, None)
    assert not bad.any()
    expected = torch.ops.risfast.local_maxima_3d(volume, (7, 7, 3), 64, None)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
