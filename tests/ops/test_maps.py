"""What makes maps fast keeps them right: float32 where a form is strong, a few snapshots found, numbers of planes."""

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import QuadraticForm, devices, mvdr_spectrum, mvdr_spectrum_lowrank, spectra

WAVELENGTH = 0.3
AZIMUTH, ELEVATION = np.radians(np.linspace(-60, 60, 61)), np.radians(np.linspace(-30, 30, 31))
RANGES = [0.7, 2.0, math.inf]
METHODS = [("lag", "fresnel"), ("chebyshev", "spherical"), ("dense", "spherical")]


def problem(n, wavefront, snr_db, sources=2, seed=0):
    """Array, grid, steering vectors [G, N] of the grid, and a covariance of sources on and between its points."""
    rng = np.random.default_rng(seed)
    positions = oracles.rectangular(n, n)
    grid = SearchGrid(*(torch.as_tensor(x) for x in (AZIMUTH, ELEVATION, RANGES)))
    A = oracles.steering(positions, WAVELENGTH, oracles.box(AZIMUTH, ELEVATION, RANGES), wavefront).reshape(-1, n * n)
    at = np.stack([rng.choice(AZIMUTH, sources), rng.uniform(-0.4, 0.4, sources), rng.choice(RANGES, sources)], -1)
    steered = oracles.steering(positions, WAVELENGTH, at, wavefront)
    R = oracles.source_covariance(steered, 10 ** (snr_db / 10) * np.ones(sources), 1.0)
    return PlanarArray(torch.as_tensor(positions), WAVELENGTH), grid, A, R


def of_grid(power):
    return power.reshape(len(AZIMUTH), len(ELEVATION), len(RANGES))


@pytest.mark.parametrize("snr_db", [-10, 20, 60])
@pytest.mark.parametrize(("method", "wavefront"), METHODS)
def test_a_map_from_complex64_is_exact_where_the_form_is_weak(method, wavefront, snr_db):
    array, grid, A, R = problem(8, wavefront, snr_db)
    R = R.astype(np.complex64)
    expected = of_grid(oracles.capon(R[None].astype(complex), A)).max(-1)
    power, plane = mvdr_spectrum(torch.as_tensor(R), array, grid, wavefront=wavefront, method=method)
    assert oracles.worst_db(power.numpy(), expected) < 1e-3
    volume = mvdr_spectrum(torch.as_tensor(R), array, grid, wavefront=wavefront, method=method, reduce="none")
    won = volume.gather(-1, plane.long()[..., None])[..., 0]
    assert oracles.worst_db(won.numpy(), expected) < 1e-3


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("method", "wavefront"), METHODS)
def test_a_map_of_a_factor_in_complex64_is_exact_where_the_form_is_weak(method, wavefront, columns):
    array, grid, A, _ = problem(8, wavefront, 0)
    rng = np.random.default_rng(columns)
    F = A[rng.choice(len(A), columns)].T.astype(np.complex64)
    expected = of_grid(oracles.capon_lowrank(F[None], A)).max(-1)
    power, _ = mvdr_spectrum_lowrank(torch.as_tensor(F), array, grid, wavefront=wavefront, method=method)
    assert oracles.worst_db(power.numpy(), expected) < 1e-2


def test_a_scene_that_is_weak_all_over_is_computed_in_float64(monkeypatch):
    array, grid, A, R = problem(8, "spherical", 20)
    asked = []
    extreme = spectra._extreme

    def counted(*args, single):
        asked.append(single)
        return extreme(*args, single=single)

    monkeypatch.setattr(spectra, "_extreme", counted)
    monkeypatch.setattr(spectra, "_MOST_WEAK", 0.0)
    power, _ = mvdr_spectrum(torch.as_tensor(R.astype(np.complex64)), array, grid, method="chebyshev")
    assert asked == [True, False]
    expected = of_grid(oracles.capon(R[None].astype(np.complex64), A)).max(-1)
    assert oracles.worst_db(power.numpy(), expected) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("planes", [1, 2, 7, 16, 17, 300])
def test_extremes_over_planes_and_the_first_of_equals(planes, largest, dtype):
    values = torch.randint(1, 4, (2, planes, 5, 3), generator=torch.Generator().manual_seed(planes)).to(dtype) / 3
    numbers = spectra._PlaneNumbers(dtype, planes, largest)
    best, plane = numbers.split(numbers.extreme(values.clone()))
    found = (values.max if largest else values.min)(1)
    torch.testing.assert_close(best, found.values.to(best.dtype), rtol=2e-6 if planes < 17 else 1e-7, atol=0)
    first = (values == found.values[:, None]).int().argmax(1)
    assert torch.equal(plane, first.to(torch.int32))


@pytest.mark.parametrize(("method", "wavefront"), METHODS)
@pytest.mark.parametrize("snapshots", [1, 20])
def test_a_large_covariance_of_a_few_snapshots_is_its_factor(method, wavefront, snapshots):
    array, grid, A, _ = problem(24, wavefront, 0)
    rng = np.random.default_rng(5)
    at = rng.choice(len(A), 2)
    x = A[at].T @ oracles.complex_normal(rng, 2, snapshots) + 0.3 * oracles.complex_normal(rng, 576, snapshots)
    x = x.astype(np.complex64)
    R = torch.as_tensor(x @ x.conj().T / snapshots)[None]
    factor = spectra.sampled_factor(R)
    assert factor is not None
    assert factor.shape == (1, 576, snapshots)
    some = np.unique(np.concatenate([at, rng.choice(len(A), 200)]))
    expected = oracles.capon(R.numpy().astype(complex), A[some])[0]
    volume = mvdr_spectrum(R, array, grid, wavefront=wavefront, method=method, reduce="none")
    assert oracles.worst_db(volume[0].numpy().ravel()[some], expected) < 1e-3


def test_the_inverse_of_a_large_covariance_of_a_few_snapshots_is_whole():
    x = oracles.complex_normal(np.random.default_rng(2), 576, 20).astype(np.complex64)
    R = (x @ x.conj().T / 20)[None]
    expected = R.shape[-1] / oracles.capon(R, np.eye(576), 1e-2)[0]
    form = QuadraticForm.capon(torch.as_tensor(R))
    diagonal = form.matrix[0].diagonal().real * 576 / form.scale[0]
    np.testing.assert_allclose(diagonal.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize(("method", "wavefront"), METHODS)
@pytest.mark.parametrize("scale", [1e-35, 1e35])
def test_a_covariance_at_the_ends_of_float32_has_the_map_of_its_scale(scale, method, wavefront):
    array, grid, _, R = problem(6, wavefront, 20)
    R = torch.as_tensor(R / np.trace(R).real).to(torch.complex64)
    expected, _ = mvdr_spectrum(R, array, grid, wavefront=wavefront, method=method)
    power, _ = mvdr_spectrum(R * scale, array, grid, wavefront=wavefront, method=method)
    torch.testing.assert_close(power.double() / scale, expected.double(), rtol=1e-4, atol=0)


def test_a_large_covariance_of_full_rank_has_no_factor():
    rng = np.random.default_rng(0)
    strong = oracles.complex_normal(rng, 600, 1)
    for noise in (100.0, 1.0):
        R = 600 * strong @ strong.conj().T + noise * np.eye(600)
        assert spectra.sampled_factor(torch.as_tensor(R.astype(np.complex64))[None]) is None
    assert spectra.sampled_factor(torch.as_tensor(-strong @ strong.conj().T)[None]) is None


def test_a_small_map_takes_one_thread_and_gives_the_others_back(monkeypatch):
    array, grid, _, R = problem(4, "spherical", 20)
    seen = []
    extreme = spectra._extreme

    def counted(*args, single):
        seen.append(torch.get_num_threads())
        return extreme(*args, single=single)

    monkeypatch.setattr(spectra, "_extreme", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        mvdr_spectrum(torch.as_tensor(R), array, grid)
        assert (seen, torch.get_num_threads()) == ([1], 2)
        with pytest.raises(ValueError, match="finite"):
            mvdr_spectrum(torch.as_tensor(R) * math.nan, array, grid)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(devices, "_SMALL_BYTES", 0)
        mvdr_spectrum(torch.as_tensor(R), array, grid)
        assert seen == [1, 2]
    finally:
        torch.set_num_threads(before)
