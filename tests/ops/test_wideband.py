"""Maps of many frequencies against their formulas, band by band and point by point."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from risfast import SearchGrid, SensorArray, Setup, detect_sources
from risfast.errors import ShapeError
from risfast.ops import band_spectrum

WAVELENGTHS = (0.3, 0.2, 0.45)
POSITIONS = oracles.irregular_plane(3, 7, 0.3)
SETUP = Setup(SensorArray(POSITIONS, 0.3), sampling="direct", wavelengths_m=WAVELENGTHS)
AXES = (np.linspace(-0.9, 0.8, 7), np.linspace(-0.4, 0.5, 5), np.array([0.5, 1.0, 4.0]))
GRID = SearchGrid(*(torch.as_tensor(axis) for axis in AXES))


def covariances(scenes=2, seed=0):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-6, 6, (scenes, 3))  # bands may be of any power
    return np.stack([[oracles.wishart(rng, 7, 20) * scale[b, f] for f in range(3)] for b in range(scenes)])


def volumes(matrices, fusion):
    found = []
    points = oracles.box(*AXES)
    for wavelength, matrix in zip(WAVELENGTHS, matrices, strict=True):
        a = oracles.steering(POSITIONS, wavelength, points)
        if fusion == "phat":
            phases = np.exp(1j * np.angle(matrix)) - np.eye(7)
            found.append(np.einsum("...n,nm,...m->...", a.conj(), phases, a).real / (7 * 6))
        else:
            found.append(oracles.capon(matrix[None], a)[0] / (np.trace(matrix).real / 7))
    return np.stack(found)


@pytest.mark.parametrize("fusion", ["geometric", "sum", "phat"])
def test_maps_are_the_means_of_their_bands(fusion):
    given = covariances()
    found = band_spectrum(torch.as_tensor(given), SETUP, GRID, fusion=fusion)
    for b in range(2):
        bands = volumes(given[b], fusion)
        whole = np.exp(np.log(bands).mean(0)) if fusion == "geometric" else bands.mean(0)
        power, plane = oracles.maximum_over_planes(whole)
        np.testing.assert_allclose(found.power[b], power, rtol=2e-4, atol=1e-6)
        assert (found.plane[b].numpy() == plane).mean() > 0.95  # planes of a far direction look alike
    [alone] = band_spectrum(torch.as_tensor(given[1]), SETUP, GRID, fusion=fusion)[:1]
    assert torch.equal(alone, found.power[1])


def test_phases_that_agree_have_the_value_one():
    place = np.array([0.1, 0.05, 1.0])
    a = [oracles.steering(POSITIONS, w, place[None])[0] for w in WAVELENGTHS]
    matrices = np.stack([np.outer(v, v.conj()) * (1 + f) for f, v in enumerate(a)])
    grid = SearchGrid(*(torch.tensor([v]) for v in place))
    found = band_spectrum(torch.as_tensor(matrices), SETUP, grid, fusion="phat")
    assert float(found.power) == pytest.approx(1.0, abs=1e-5)


def test_what_does_not_fit_is_refused():
    given = torch.as_tensor(covariances())
    with pytest.raises(ValueError, match="fusion must be one of geometric, sum, phat"):
        band_spectrum(given, SETUP, GRID, fusion="product")
    with pytest.raises(ShapeError, match=r"\(3, 7, 7\)"):
        band_spectrum(given[:, :2], SETUP, GRID)
    with pytest.raises(ValueError, match="no positive trace"):
        band_spectrum(torch.zeros_like(given), SETUP, GRID)
    with pytest.raises(ValueError, match="the setup is of 3 bands"):
        detect_sources(given[0, 0], SETUP)


def test_gains_are_divided_out_and_no_scene_has_no_map():
    gains = np.exp(0.3j * np.arange(7)) * np.linspace(0.5, 2.0, 7)
    given = torch.as_tensor(covariances(1))
    gained = given * torch.as_tensor(np.outer(gains, gains.conj()))
    setup = Setup(SETUP.array, sampling="direct", wavelengths_m=WAVELENGTHS, gains=gains)
    np.testing.assert_allclose(
        band_spectrum(gained, setup, GRID).power, band_spectrum(given, SETUP, GRID).power, rtol=1e-4
    )
    assert band_spectrum(given[:0], SETUP, GRID).power.shape == (0, 7, 5)
