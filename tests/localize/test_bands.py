"""Several narrow bands at once: the sum of their likelihoods by the formula, and what one band cannot find."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch

from risfast import Localizer, Region, SensorArray, Setup
from risfast.errors import ShapeError
from risfast.localize.bands import BandLikelihood
from risfast.localize.likelihood import SourceState
from risfast.models.base import Measurement

WAVELENGTHS = (0.3, 0.2, 0.45)
ARRAY = SensorArray.rectangular(3, 2)
N, F = ARRAY.n_elements, len(WAVELENGTHS)
SETUP = Setup(ARRAY, sampling="direct", wavelengths_m=WAVELENGTHS)
COUNTS = (9.0, 4.5, 20.0)


def rows(scenes=2, seed=0):
    return torch.as_tensor(oracles.complex_normal(np.random.default_rng(seed), scenes, F, N, N))


def state(scenes=2):
    generator = torch.Generator().manual_seed(1)
    position = torch.rand(scenes, 2, 3, dtype=torch.float64, generator=generator) - 0.5
    position[..., 2] = 0.3 + torch.rand(scenes, 2, dtype=torch.float64, generator=generator)
    power = torch.rand(scenes, F, 2, dtype=torch.float64, generator=generator) + 0.5
    noise = torch.rand(scenes, F, dtype=torch.float64, generator=generator) + 0.5
    return SourceState(position, power, noise, torch.tensor([[True, True], [False, True]])[:scenes])


def by_formula(x, at, b):
    """-sum_f L_f (log det R_f + tr(R_f^-1 S_f))."""
    there = at.mask[b].numpy()
    points = at.position[b].numpy()[there]
    points = np.column_stack([points[:, :2], 1 / points[:, 2]])
    total = 0.0
    for f, (wavelength, count) in enumerate(zip(WAVELENGTHS, COUNTS, strict=True)):
        a = oracles.steering(ARRAY.positions_m.numpy(), wavelength, points).T
        r = (a * at.power[b, f].numpy()[there]) @ a.conj().T + float(at.noise[b, f]) * np.eye(N)
        s = x[b, f].numpy().T @ x[b, f].numpy().conj()
        total -= count * np.linalg.slogdet(r)[1] + np.trace(np.linalg.solve(r, s)).real
    return total


def test_the_value_and_its_derivatives_are_those_of_the_formula():
    x, at = rows(), state()
    likelihood = BandLikelihood(Measurement.direct(x, pooled=COUNTS), SETUP)
    assert likelihood.shape == (2, F, N)
    assert likelihood.size == sum(COUNTS) * N
    found = likelihood.derivatives(at)
    step = 1e-6
    for b in range(2):
        exact = by_formula(x, at, b)
        assert float(likelihood.value(at)[b]) == pytest.approx(exact, rel=1e-12)
        assert float(found.value[b]) == pytest.approx(exact, rel=1e-12)
        for i in range(at.n_parameters):
            shift = torch.zeros(2, at.n_parameters, dtype=torch.float64)
            shift[:, i] = step
            slope = (by_formula(x, at.moved(shift), b) - by_formula(x, at.moved(-shift), b)) / (2 * step)
            assert float(found.gradient[b, i]) == pytest.approx(slope, rel=1e-5, abs=1e-5)
    drop = likelihood.losses(at)
    alone = SourceState(at.position, at.power, at.noise, torch.tensor([[True, False], [False, True]]))
    assert float(drop[0, 1]) == pytest.approx(by_formula(x, at, 0) - by_formula(x, alone, 0), rel=1e-10)


def test_the_information_is_the_curvature_of_the_expected_likelihood():
    at = state(1)
    covariances = []
    points = at.position[0].numpy()
    points = np.column_stack([points[:, :2], 1 / points[:, 2]])
    for f, (wavelength, count) in enumerate(zip(WAVELENGTHS, COUNTS, strict=True)):
        a = oracles.steering(ARRAY.positions_m.numpy(), wavelength, points).T
        r = (a * at.power[0, f].numpy()) @ a.conj().T + float(at.noise[0, f]) * np.eye(N)
        covariances.append(np.linalg.cholesky(r * count).T)  # rows whose outer products add up to the expected ones
    x = torch.as_tensor(np.stack(covariances))[None]
    likelihood = BandLikelihood(Measurement.direct(x, pooled=COUNTS), SETUP)
    information = likelihood.derivatives(at).information[0]
    np.testing.assert_allclose(information, information.mT, rtol=1e-12)
    step = 1e-5
    for i in range(at.n_parameters):
        shift = torch.zeros(1, at.n_parameters, dtype=torch.float64)
        shift[:, i] = step
        up, down = (likelihood.derivatives(at.moved(sign * shift)).gradient[0] for sign in (1, -1))
        np.testing.assert_allclose(-(up - down) / (2 * step), information[i], rtol=1e-4, atol=1e-3)


def test_a_scene_among_others_is_the_scene_alone():
    measurement, at = Measurement.direct(rows(), pooled=COUNTS), state()
    likelihood = BandLikelihood(measurement, SETUP)
    second = torch.tensor([1])
    assert len(measurement) == 2
    assert measurement[1:].y.shape[0] == F
    assert torch.equal(measurement[second].y, measurement.y[F:])
    assert float(likelihood[second].value(at.take(second))) == float(likelihood.value(at)[1])


def wide_snapshots(setup, sources, length, rng, noise=0.1):
    """Snapshots (F, L, N) of sources (K, 3) with independent signals of unit power in each band."""
    found = []
    for wavelength in setup.wavelengths_m:
        a = oracles.steering(setup.array.positions_m.numpy(), wavelength, sources)
        signal = oracles.complex_normal(rng, length, len(sources))
        found.append(signal @ a + math.sqrt(noise) * oracles.complex_normal(rng, length, setup.array.n_elements))
    return np.stack(found)


LINE = Region((-math.pi / 2, math.pi / 2), (0.0, 0.0), (0.3, math.inf))


def test_the_grid_lobes_of_single_frequencies_disappear():
    """A sparse line hears a source and its grid lobes alike in one band, and tells them apart over several."""
    positions = np.zeros((6, 3))
    positions[:, 0] = 0.2 * np.arange(6) - 0.5
    wavelengths = (0.11, 0.1, 0.09, 0.08)
    setup = Setup(SensorArray(positions, 0.08), LINE, wavefront="planar", sampling="direct", wavelengths_m=wavelengths)
    truth = np.array([[0.35, 0.0, 1e9]])
    x = wide_snapshots(setup, truth, 50, np.random.default_rng(3))
    # sin(azimuth) + wavelength / spacing is as good a direction in one band.
    for f, wavelength in enumerate(wavelengths):
        lobe = np.array([[math.asin(math.sin(0.35) - wavelength / 0.2), 0.0, 1e9]])
        a, b = (oracles.steering(positions, wavelength, place)[0] for place in (truth, lobe))
        assert abs(np.vdot(a, b)) == pytest.approx(6, rel=1e-9)
        narrow = setup.replace(array=SensorArray(positions, wavelength), wavelengths_m=(wavelength,))
        assert len(Localizer.classical(narrow).localize(x[f])[0]) >= 1  # at one of the lobes, whichever
    [found] = Localizer.classical(setup).localize(x)
    assert len(found) == 1
    assert float(found.azimuth[0]) == pytest.approx(0.35, abs=0.01)


def test_bands_determine_what_one_of_them_does_not():
    rng = np.random.default_rng(4)
    array = SensorArray(np.random.default_rng(5).uniform(-0.4, 0.4, (16, 3)) * [1, 1, 0], 0.1)
    region = Region((-1.0, 1.0), (-0.5, 0.5), (0.3, 3.0))
    setup = Setup(array, region, sampling="direct", wavelengths_m=tuple(np.linspace(0.1, 0.3, 6)))
    truth = np.array([[0.3, -0.1, 0.8], [-0.4, 0.2, 1.5]])
    x = wide_snapshots(setup, truth, 60, rng)
    localizer = Localizer.classical(setup)
    result = localizer.analyse(x)
    [found] = result.sources
    assert len(found) == 2
    order = found.azimuth.argsort(descending=True)
    np.testing.assert_allclose(found.position[order], truth, atol=0.02)
    assert result.noise_power.shape == (1, 6)
    np.testing.assert_allclose(result.noise_power, 0.1, rtol=0.3)
    narrow = setup.replace(array=SensorArray(array.positions_m, 0.3), wavelengths_m=(0.3,))
    alone = Localizer.classical(narrow).analyse(x[-1])
    [one], [all_of_them] = alone.position_covariance, result.position_covariance
    nearest = int(alone.sources[0].azimuth.argmax())
    assert float(all_of_them[order[0], 0, 0]) < float(one[nearest, 0, 0]) / 10
    # The covariances say the same as the snapshots, whole numbers or not.
    covariance = np.einsum("flm,fln->fmn", x, x.conj()) / 60
    [again] = localizer.localize(covariance, snapshots=[60.0] * 6)
    np.testing.assert_allclose(again.position, found.position, rtol=1e-6, atol=1e-8)


def test_what_does_not_fit_the_bands_is_refused():
    localizer = Localizer.classical(SETUP)
    with pytest.raises(ShapeError, match=r"x must have shape \(3, L, 6\)"):
        localizer.localize(rows()[0, 0])
    with pytest.raises(ShapeError, match=r"covariance of shape \(3, 6, 6\)"):
        localizer.localize(torch.eye(N, dtype=torch.complex128), snapshots=5)
    with pytest.raises(ValueError, match="one for each of 3 bands"):
        localizer.localize(rows()[0], snapshots=[3, 3])


def test_data_of_other_bands_are_refused_and_another_order_of_elements_is_not():
    localizer = Localizer.classical(SETUP)
    x = wide_snapshots(SETUP, np.array([[0.2, 0.1, 5.0]]), 40, np.random.default_rng(6))
    with pytest.raises(ValueError, match="other bands than the model"):
        localizer.localize(x, array=SETUP.replace(wavelengths_m=WAVELENGTHS[::-1]))
    order = [3, 1, 0, 5, 4, 2]
    turned = SETUP.replace(array=SensorArray(ARRAY.positions_m[order], 0.2), wavelengths_m=WAVELENGTHS)
    whole, other = localizer.analyse(x), localizer.analyse(x[..., order], array=turned)
    np.testing.assert_allclose(other.sources[0].position, whole.sources[0].position, rtol=1e-4)
    covariances = [found.factor @ found.factor.mH for found in (whole, other)]
    np.testing.assert_allclose(covariances[1], covariances[0][..., order, :][..., order], atol=1e-12)


def test_no_scene_has_no_sources():
    localizer = Localizer.classical(SETUP)
    assert localizer.localize(rows(0)) == []
    assert localizer.localize(torch.zeros(0, F, N, N, dtype=torch.complex128), snapshots=5) == []
    assert Localizer.classical(Setup(ARRAY, sampling="direct")).localize(rows(0)[:, 0]) == []


def test_without_a_polish_the_peaks_of_all_bands_are_the_answer():
    x = wide_snapshots(SETUP, np.array([[0.2, 0.1, 5.0]]), 40, np.random.default_rng(6))
    [found] = Localizer.classical(SETUP).localize(x, polish=False)
    assert len(found) >= 1
    np.testing.assert_allclose(found.position[0, :2], [0.2, 0.1], atol=0.15)


def test_as_many_sources_as_are_known_come_with_their_mismatch():
    x = wide_snapshots(SETUP, np.array([[0.2, 0.1, 5.0]]), 40, np.random.default_rng(6))
    found = Localizer.classical(SETUP).analyse(x, n_sources=2)
    assert len(found.sources[0]) == len(found.mismatch[0]) == len(found.position_covariance[0]) == 2


def test_noise_powers_of_scenes_are_those_of_their_bands():
    measurement = Measurement.direct(rows(3), noise_power=torch.tensor([1.0, 2.0, 3.0]), pooled=COUNTS)
    assert measurement.noise_power.shape == (3, F)
    assert measurement[torch.tensor([1])].noise_power.tolist() == [[2.0] * F]
