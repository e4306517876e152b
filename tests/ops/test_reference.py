"""The executable definition against the independent brute force, and the operators against the definition."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from risfast import ops
from risfast.geometry import SearchGrid, SensorArray
from risfast.ops import reference
from risfast.ops.refinement import refine_peaks

WAVELENGTH = 0.3
ARRAYS = {"lattice": oracles.rectangular(4, 3), "scattered": oracles.volumetric(2, 9, 0.3)}
GRID = SearchGrid(np.linspace(-0.9, 0.7, 12), np.linspace(-0.4, 0.5, 7), [0.6, 1.5, np.inf])
CASES = [(name, wavefront) for name in ARRAYS for wavefront in oracles.WAVEFRONTS]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    """Array, wavefront, and random matrices, factors and weights of two scenes."""
    name, wavefront = request.param
    positions, rng = ARRAYS[name], np.random.default_rng(3)
    n = len(positions)
    R = np.stack([oracles.wishart(rng, n, 3 * n) for _ in range(2)])
    F, p = oracles.complex_normal(rng, 2, n, 3), rng.standard_normal((2, *GRID.shape))
    matrices = [torch.as_tensor(x) for x in (R, oracles.hermitian(rng, 2, n), F, p)]
    return SensorArray(torch.as_tensor(positions), WAVELENGTH), wavefront, *matrices


def test_the_definition_is_the_brute_force(case):
    array, wavefront, R, Q, F, p = case
    A = reference.steering(array, GRID.points(), wavefront)
    points = oracles.box(GRID.azimuth_rad, GRID.elevation_rad, GRID.range_m)
    expected = oracles.steering(array.positions_m.numpy(), WAVELENGTH, points, wavefront)
    np.testing.assert_allclose(A, expected, atol=1e-12)
    for found, wanted in (
        (reference.capon(R, A, 1e-3), oracles.capon(R, expected, 1e-3)),
        (reference.capon_lowrank(F, A), oracles.capon_lowrank(F, expected)),
        (1 / reference.music(R, A, 2), oracles.music_null(R, expected, 2)),
        (reference.bartlett(R, A), oracles.bartlett(R, expected)),
        (reference.analysis(Q, A), oracles.analysis(Q, expected)),
        (reference.analysis_factored(F, A), oracles.analysis_factored(F, expected)),
        (reference.synthesis(p, A), oracles.synthesis(p, expected)),
        (reference.loaded_inverse(R), np.linalg.inv(oracles.loaded(R, 1e-2))),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-10)


def test_every_operator_computes_its_definition(case):
    array, wavefront, R, Q, F, p = case
    A, how = reference.steering(array, GRID.points(), wavefront), {"wavefront": wavefront}
    for found, wanted in (
        (ops.mvdr_spectrum(R, array, GRID, reduce="none", **how), reference.capon(R, A)),
        (ops.mvdr_spectrum_lowrank(F, array, GRID, reduce="none", **how), reference.capon_lowrank(F, A)),
        (ops.music_spectrum(R, array, GRID, n_sources=2, reduce="none", **how), reference.music(R, A, 2)),
        (ops.bartlett_spectrum(R, array, GRID, reduce="none", **how), reference.bartlett(R, A)),
    ):
        assert oracles.worst_db(found.numpy(), wanted.numpy()) < 1e-6
    for found, wanted in (
        (ops.analysis(Q, array, GRID, factored=False, **how), reference.analysis(Q, A)),
        (ops.analysis(F, array, GRID, **how), reference.analysis_factored(F, A)),
        (ops.synthesis(p, array, GRID, **how), reference.synthesis(p, A)),
        (torch.ops.risfast.loaded_inverse(R, torch.tensor(1e-2)), reference.loaded_inverse(R)),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-11 * float(wanted.abs().max()))


def test_gradients_are_those_of_the_definition(case):
    array, wavefront, R, _, F, p = case
    A = reference.steering(array, GRID.points(), wavefront)
    for operator, definition, given in (
        (ops.mvdr_spectrum, reference.capon, R),
        (ops.mvdr_spectrum_lowrank, reference.capon_lowrank, F),
    ):
        found, wanted = (given.clone().requires_grad_() for _ in range(2))
        loading = [torch.tensor(1e-2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        (operator(found, array, GRID, loading=loading[0], wavefront=wavefront, reduce="none") * p).sum().backward()
        (definition(wanted, A, loading[1]) * p).sum().backward()
        np.testing.assert_allclose(found.grad, wanted.grad, atol=1e-6 * float(wanted.grad.abs().max()))
        np.testing.assert_allclose(loading[0].grad, loading[1].grad, rtol=1e-6)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_refinement_reaches_the_best_point_of_the_fine_grid(wavefront):
    array = SensorArray(torch.as_tensor(ARRAYS["lattice"]), WAVELENGTH)
    source = torch.tensor([0.21, -0.13, 1.4], dtype=torch.float64)
    a = reference.steering(array, source, wavefront)
    R = (torch.outer(a, a.conj()) + 0.05 * torch.eye(12))[None]
    low, high = (source + torch.tensor([[[side * 0.06, side * 0.05, side * 0.4]]]) for side in (-1, 1))
    position, power = reference.refine(R, array, low, high, (21, 21, 21), wavefront=wavefront)
    found = refine_peaks(R, array, low, high, points=(21, 21, 21), wavefront=wavefront)
    assert 0 <= 10 * float((found.power / power).log10()) + 1e-3 < 0.1
    if wavefront != "planar":  # which knows no range
        assert bool(((found.position - position).abs() <= (high - low) / 20).all())
