"""The quadratic form, and what all spectra share: both derivatives, numpy, autocast, conjugates, no scenes."""

import numpy as np
import pytest
import torch

from risfast import PlanarArray, SearchGrid
from risfast.detect import detect_sources
from risfast.ops import (
    QuadraticForm,
    analysis,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    synthesis,
)
from tests import oracles

ARRAY = PlanarArray.rectangular(3, 2)
GRID = SearchGrid(
    torch.linspace(-1, 1, 5, dtype=torch.float64), torch.linspace(-0.5, 0.5, 3, dtype=torch.float64), [1.0, 3.0]
)
CASES = [("spherical", "dense"), ("spherical", "chebyshev"), ("fresnel", "lag")]


def factor(batch=2, columns=3, dtype=np.complex128):
    return oracles.complex_normal(np.random.default_rng(3), batch, 6, columns).astype(dtype)


def covariance(batch=2, dtype=np.complex128):
    F = factor(batch)
    return (F @ F.conj().swapaxes(1, 2) + 0.3 * np.eye(6)).astype(dtype)  # three eigenvalues of the noise coincide


def hermitian(R):
    return (R + R.mH) / 2


SPECTRA = {
    "capon": lambda R, loading, **o: mvdr_spectrum(hermitian(R), ARRAY, GRID, loading=loading, **o),
    "capon form": lambda R, loading, **o: QuadraticForm.capon(hermitian(R), loading).spectrum(ARRAY, GRID, **o),
    "low rank": lambda R, loading, **o: mvdr_spectrum_lowrank(R[..., :2], ARRAY, GRID, loading=loading, **o),
    "low rank form": lambda R, loading, **o: QuadraticForm.capon_lowrank(R[..., :2], loading).spectrum(
        ARRAY, GRID, **o
    ),
    "bartlett": lambda R, loading, **o: bartlett_spectrum(hermitian(R), ARRAY, GRID, **o),
    "music": lambda R, loading, **o: music_spectrum(hermitian(R), ARRAY, GRID, n_sources=2, **o),
}


@pytest.mark.parametrize("reduce", ["max", "none"])
@pytest.mark.parametrize(("wavefront", "method"), CASES, ids="-".join)
@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectrum_has_first_and_second_derivatives(name, wavefront, method, reduce):
    def value(R, loading):
        found = SPECTRA[name](R, loading, wavefront=wavefront, method=method, reduce=reduce)
        return found if reduce == "none" else found.power

    R = torch.as_tensor(covariance(1)).requires_grad_()
    loading = torch.tensor(0.1, dtype=torch.float64, requires_grad=name not in ("bartlett", "music"))
    torch.autograd.gradcheck(value, (R, loading), eps=1e-6, atol=1e-5, fast_mode=True)
    torch.autograd.gradgradcheck(value, (R, loading), eps=1e-6, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize(("wavefront", "method"), CASES, ids="-".join)
def test_a_form_gives_the_maps_of_the_functions(wavefront, method):
    options = {"wavefront": wavefront, "method": method}
    R, F = covariance(dtype=np.complex64), factor(dtype=np.complex64)
    for form, function, given in (
        (QuadraticForm.capon, mvdr_spectrum, R),
        (QuadraticForm.capon_lowrank, mvdr_spectrum_lowrank, F),
    ):
        for reduce in ("max", "none"):
            found = form(given).spectrum(ARRAY, GRID, reduce=reduce, **options)
            expected = function(given, ARRAY, GRID, reduce=reduce, **options)
            for mine, theirs in zip(found, expected, strict=True):
                assert mine.dtype == theirs.dtype
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)


def test_the_definition_of_the_power_is_that_of_an_independent_program():
    R = covariance()
    points = np.stack(np.meshgrid(GRID.azimuth_rad, GRID.elevation_rad, GRID.range_m, indexing="ij"), -1).reshape(-1, 3)
    a = oracles.steering(np.asarray(ARRAY.positions_m), 2 * np.pi / ARRAY.wavenumber, points, "spherical")
    loaded = R + 0.1 * np.trace(R, axis1=1, axis2=2).real[:, None, None] / 6 * np.eye(6)
    q = np.einsum("gn,bnm,gm->bg", a.conj(), np.linalg.inv(loaded), a).real
    found = QuadraticForm.capon(R, 0.1).spectrum(ARRAY, GRID, reduce="none")
    np.testing.assert_allclose(found.reshape(2, -1), 6 / q, rtol=1e-9)


def test_numpy_and_conjugates_and_scale_and_lifted_covariances():
    R = torch.as_tensor(covariance(dtype=np.complex64))
    expected = mvdr_spectrum(R, ARRAY, GRID).power
    torch.testing.assert_close(mvdr_spectrum(R.numpy(), ARRAY, GRID).power, expected)
    torch.testing.assert_close(mvdr_spectrum(R.conj().resolve_conj().conj(), ARRAY, GRID).power, expected)
    lifted = mvdr_spectrum(R.to(torch.complex128), ARRAY, GRID).power
    torch.testing.assert_close(lifted.float(), expected, rtol=1e-4, atol=0)
    for scale in (1e-30, 1e30):
        scaled = mvdr_spectrum(R.to(torch.complex128) * scale, ARRAY, GRID).power
        torch.testing.assert_close(scaled / scale, lifted)
    p = np.ones((1, *GRID.shape))
    torch.testing.assert_close(synthesis(p, ARRAY, GRID), synthesis(torch.as_tensor(p), ARRAY, GRID))


def test_autocast_and_the_default_dtype_change_nothing():
    R = torch.as_tensor(covariance(dtype=np.complex64))
    uses = [
        lambda: mvdr_spectrum(R, ARRAY, GRID, method="chebyshev").power,
        lambda: mvdr_spectrum_lowrank(R[..., :2], ARRAY, GRID).power,
        lambda: analysis(R, ARRAY, GRID),
        lambda: music_spectrum(R, ARRAY, GRID, n_sources=2).power,
    ]
    expected = [use() for use in uses]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = [use() for use in uses]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        doubled = [use() for use in uses]
        detect_sources(R, ARRAY, GRID)
    finally:
        torch.set_default_dtype(before)
    for one, two, three in zip(expected, within, doubled, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("name", SPECTRA)
def test_no_scenes_give_no_maps(name):
    found = SPECTRA[name](torch.zeros(0, 6, 6, dtype=torch.complex64), 0.1)
    assert found.power.shape == (0, 5, 3)


@pytest.mark.parametrize("bad", [torch.tensor(-1.0), torch.tensor([0.1, 0.2]), torch.tensor(float("nan"))])
def test_a_loading_that_is_no_loading_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match="loading"):
        mvdr_spectrum(covariance(), ARRAY, GRID, loading=bad)
