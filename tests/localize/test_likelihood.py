"""The likelihood, its gradient and the Fisher information, against the formulas and finite differences."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import SensorArray
from risfast.localize.likelihood import Likelihood, SourceState
from risfast.models.base import Measurement
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.steering import steering_phase_gradient

ARRAY = SensorArray.rectangular(4, 3)


def problem(wavefront="spherical", n_snapshots=3, n_antennas=4):
    config = SystemConfig(array=ARRAY, n_antennas=n_antennas, n_snapshots=n_snapshots, n_sources=(1, 3))
    scenes = generate_scenes(config, 4, range(3), dtype=torch.complex128)
    measurement = Measurement.of(scenes)
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(3, 3, 3, dtype=torch.float64, generator=generator) - 0.5
    position[..., 2] = 0.2 + torch.rand(3, 3, dtype=torch.float64, generator=generator)
    state = SourceState(
        position,
        0.05 + torch.rand(3, 3, dtype=torch.float64, generator=generator),
        0.5 + torch.rand(3, dtype=torch.float64, generator=generator),
        torch.tensor([[True, True, True], [True, False, True], [False, True, False]]),
    )
    return Likelihood(measurement, ARRAY, wavefront), state, scenes


def covariances(scenes, state, b, wavefront):
    """R_l [L, M, M] of one scene, by the formula."""
    there = state.mask[b].numpy()
    position = state.position[b].numpy()[there]
    points = np.column_stack([position[:, :2], 1 / position[:, 2]])
    a = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, points, wavefront)
    phi = (scenes.channel[b] * scenes.codes[b][:, None]).numpy()
    seen = np.einsum("lmn,kn->lmk", phi, a)
    power = state.power[b].numpy()[there]
    return np.einsum("lmk,k,lnk->lmn", seen, power, seen.conj()) + float(state.noise[b]) * np.eye(phi.shape[1])


def by_formula(scenes, state, b, wavefront):
    total = 0.0
    for r, y in zip(covariances(scenes, state, b, wavefront), scenes.y[b].numpy(), strict=True):
        total -= np.linalg.slogdet(r)[1] + (y.conj() @ np.linalg.solve(r, y)).real
    return total


@pytest.mark.parametrize("wavefront", ["spherical", "fresnel", "planar"])
def test_the_phase_gradient_is_that_of_the_phase(wavefront):
    generator = torch.Generator().manual_seed(1)
    azimuth, elevation = torch.rand(2, 5, dtype=torch.float64, generator=generator) - 0.5
    inverse = 0.1 + torch.rand(5, dtype=torch.float64, generator=generator)
    positions = torch.cat([ARRAY.positions_m, torch.rand(4, 3, dtype=torch.float64, generator=generator) * 0.3])

    def phase(az, el, inv):
        points = torch.stack([az, el, 1 / inv], -1).numpy()
        return oracles.phase(positions.numpy(), ARRAY.wavelength_m, points, wavefront)

    value, gradient = steering_phase_gradient(positions, azimuth, elevation, 1 / inverse, ARRAY.wavenumber, wavefront)
    np.testing.assert_allclose(value.numpy(), phase(azimuth, elevation, inverse), atol=1e-10)
    step = 1e-5
    for i in range(3):
        ends = []
        for sign in (1, -1):
            moved = [azimuth, elevation, inverse]
            moved[i] = moved[i] + sign * step
            ends.append(phase(*moved))
        np.testing.assert_allclose(gradient[:, i].numpy(), (ends[0] - ends[1]) / (2 * step), atol=1e-6)


@pytest.mark.parametrize("wavefront", ["spherical", "fresnel", "planar"])
def test_the_value_is_the_formula(wavefront):
    likelihood, state, scenes = problem(wavefront)
    exact = [by_formula(scenes, state, b, wavefront) for b in range(3)]
    np.testing.assert_allclose(likelihood.value(state).numpy(), exact, rtol=1e-10)
    np.testing.assert_allclose(likelihood.derivatives(state).value.numpy(), exact, rtol=1e-10)


def test_the_gradient_is_that_of_the_formula():
    likelihood, state, scenes = problem()
    gradient = likelihood.derivatives(state).gradient
    step = 1e-5
    for i in range(state.n_parameters):
        shift = torch.zeros(3, state.n_parameters, dtype=torch.float64)
        shift[:, i] = step
        for b in range(3):
            ends = [by_formula(scenes, state.moved(sign * shift), b, "spherical") for sign in (1, -1)]
            assert float(gradient[b, i]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-4, rel=1e-5)


def test_the_information_is_slepian_bangs_of_finite_differences():
    likelihood, state, scenes = problem(n_snapshots=2)
    information = likelihood.derivatives(state).information
    step = 1e-6
    k = 3
    for b in range(3):
        centre = covariances(scenes, state, b, "spherical")
        slopes = []
        for i in range(state.n_parameters):
            shift = torch.zeros(3, state.n_parameters, dtype=torch.float64)
            shift[:, i] = step
            up, down = (covariances(scenes, state.moved(sign * shift), b, "spherical") for sign in (1, -1))
            slopes.append(np.linalg.solve(centre, (up - down) / (2 * step)))
        exact = np.array([[np.einsum("lmn,lnm->", x, y).real for y in slopes] for x in slopes])
        there = np.append(np.tile(state.mask[b].numpy(), 4), True)
        found = information[b].numpy()
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))[np.ix_(there, there)]
        assert np.abs((found - exact)[np.ix_(there, there)] / scale).max() < 1e-5
        assert np.array_equal(found[~there][:, ~there], np.eye(int((~there).sum())))
        assert not found[~there][:, there].any()
    assert information.shape == (3, 4 * k + 1, 4 * k + 1)


def test_the_expected_gradient_at_the_truth_is_zero_and_its_covariance_the_information():
    array = SensorArray.rectangular(3, 2)
    config = SystemConfig(array=array, n_antennas=3, n_snapshots=4, n_sources=(2, 2), snr_db=(5.0, 5.0))
    scenes = generate_scenes(config, 9, range(1), dtype=torch.complex128)
    position = torch.cat([scenes.position[..., :2], 1 / scenes.position[..., 2:]], -1)
    one = SourceState(position, scenes.power.double(), scenes.noise_power.double(), scenes.mask)
    draws = 4000
    r = torch.as_tensor(np.array(covariances_of(array, scenes, one)))
    factor = torch.linalg.cholesky(r)
    generator = torch.Generator().manual_seed(3)
    white = torch.randn(draws, 4, 3, dtype=torch.complex128, generator=generator)
    y = (factor @ white[..., None])[..., 0]
    many = Measurement(y, scenes.codes.expand(draws, -1, -1), scenes.channel.expand(draws, -1, -1))
    state = SourceState(
        *(value.expand(draws, *value.shape[1:]) for value in (one.position, one.power, one.noise, one.mask))
    )
    found = Likelihood(many, array).derivatives(state)
    information = found.information[0]
    spread = information.diagonal().sqrt()
    mean = found.gradient.mean(0) / (spread / draws**0.5)
    assert float(mean.abs().max()) < 4.5  # standard errors
    covariance = found.gradient.mT @ found.gradient / draws
    assert float(((covariance - information) / torch.outer(spread, spread)).abs().max()) < 0.15


def covariances_of(array, scenes, state):
    points = np.column_stack([state.position[0, :, :2].numpy(), 1 / state.position[0, :, 2].numpy()])
    a = oracles.steering(array.positions_m.numpy(), array.wavelength_m, points)
    phi = (scenes.channel[0] * scenes.codes[0][:, None]).numpy()
    seen = np.einsum("lmn,kn->lmk", phi, a)
    return np.einsum("lmk,k,lnk->lmn", seen, state.power[0].numpy(), seen.conj()) + float(state.noise[0]) * np.eye(3)


@pytest.mark.parametrize("noise", [1.0, 1e-6])
def test_strong_sources_cancel_nothing(noise):
    """60 dB above the noise, sources cover all but a millionth of what the inverse covariance is made of."""
    likelihood, state, scenes = problem()
    state = SourceState(state.position, state.power, state.noise * noise, state.mask)
    found = likelihood.derivatives(state)
    exact = [by_formula(scenes, state, b, "spherical") for b in range(3)]
    np.testing.assert_allclose(found.value.numpy(), exact, rtol=1e-9)
    for b in range(3):  # the slope along the noise holds the square of the inverse
        slope = 0.0
        for r, y in zip(covariances(scenes, state, b, "spherical"), scenes.y[b].numpy(), strict=True):
            inverse = np.linalg.inv(r)
            slope += float(state.noise[b]) * (np.linalg.norm(inverse @ y) ** 2 - np.trace(inverse).real)
        assert float(found.gradient[b, -1]) == pytest.approx(slope, rel=1e-8)


def test_what_is_lost_without_a_source_is_the_difference_of_the_formula():
    likelihood, state, scenes = problem()
    losses = likelihood.losses(state)
    assert torch.equal(losses.isinf(), ~state.mask)
    for b in range(3):
        whole = by_formula(scenes, state, b, "spherical")
        for k in state.mask[b].nonzero()[:, 0].tolist():
            mask = state.mask.clone()
            mask[b, k] = False
            without = by_formula(scenes, SourceState(state.position, state.power, state.noise, mask), b, "spherical")
            assert float(losses[b, k]) == pytest.approx(whole - without, rel=1e-9)


def test_the_correction_is_what_the_inverse_covariance_lacks_to_white_noise():
    likelihood, state, scenes = problem()
    v = likelihood.correction(state).numpy()
    for b in range(3):
        white = np.eye(v.shape[2]) / float(state.noise[b])
        inverse = np.linalg.inv(covariances(scenes, state, b, "spherical"))
        np.testing.assert_allclose(white - v[b] @ v[b].conj().swapaxes(1, 2), inverse, atol=1e-10)


def test_the_profile_is_the_largest_gain_of_the_formula_over_the_power():
    likelihood, state, scenes = problem()
    mask = state.mask.clone()
    mask[:, 1] = False
    others = SourceState(state.position, state.power, state.noise, mask)
    path = state.position[:, 1:2] + torch.tensor([[0.02, -0.03, 0.05]], dtype=torch.float64)
    gain, power = likelihood.profile(others, path)
    for b in range(3):
        less = by_formula(scenes, others, b, "spherical")
        with_it = mask.clone()
        with_it[:, 1] = True
        position = state.position.clone()
        position[:, 1] = path[:, 0]
        values = []
        for p in np.geomspace(1e-6, 1e2, 400):
            powers = state.power.clone()
            powers[:, 1] = p
            more = SourceState(position, powers, state.noise, with_it)
            values.append(by_formula(scenes, more, b, "spherical") - less)
        best = max(*values, 0.0)
        assert float(gain[b, 0]) == pytest.approx(best, abs=2e-2 * max(best, 1.0))
        assert (float(power[b, 0]) > 0) == (float(gain[b, 0]) > 0)


def test_half_precision_of_the_products_hardly_moves_the_profile_of_strong_sources():
    """The gain is some L M times the SNR; its differences along a path decide."""
    config = SystemConfig(n_sources=(1, 1), n_snapshots=32, snr_db=(50.0, 50.0), range_m=(2.0, 4.0))
    scenes = generate_scenes(config, 6, range(2))
    position = torch.cat([scenes.position[..., :2], 1 / scenes.position[..., 2:]], -1).double()[:, :1]
    none = SourceState(
        position, torch.ones(2, 1).double(), scenes.noise_power.double(), torch.zeros(2, 1, dtype=torch.bool)
    )
    shift = torch.linspace(-1e-4, 1e-4, 9, dtype=torch.float64)[:, None] * torch.tensor([0.0, 0.0, 1.0])
    path = position + shift
    measurement = Measurement.of(scenes)
    gains = [
        Likelihood(measurement, config.array, dtype=dtype).profile(none, path)[0]
        for dtype in (torch.complex64, torch.complex128)
    ]
    differences = [gain - gain.mean(1, keepdim=True) for gain in gains]
    assert float((differences[0] - differences[1]).abs().max()) < 0.1


@pytest.mark.parametrize(("n_antennas", "sources"), [(1, 3), (2, 3), (4, 0)])
def test_more_sources_than_antennas_and_none_at_all(n_antennas, sources):
    likelihood, state, scenes = problem(n_antennas=n_antennas)
    state = SourceState(state.position, state.power, state.noise, torch.ones_like(state.mask) & (sources > 0))
    exact = [by_formula(scenes, state, b, "spherical") for b in range(3)]
    np.testing.assert_allclose(likelihood.value(state).numpy(), exact, rtol=1e-10)
    found = likelihood.derivatives(state)
    np.testing.assert_allclose(found.value.numpy(), exact, rtol=1e-10)
    shift = torch.zeros(3, state.n_parameters, dtype=torch.float64)
    shift[:, [0, 3, 6, 9, 12]] = 1e-6
    for b in range(3):
        ends = [by_formula(scenes, state.moved(sign * shift), b, "spherical") for sign in (1, -1)]
        slope = float(found.gradient[b, [0, 3, 6, 9, 12]].sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-3, rel=1e-5)


def test_a_source_on_an_element_has_finite_derivatives():
    line = torch.tensor([[x * 0.05, 0.0, 0.0] for x in range(-2, 3)], dtype=torch.float64)
    azimuth, elevation = torch.tensor([-torch.pi / 2, torch.pi / 2], dtype=torch.float64), torch.zeros(2).double()
    for r in (0.05, 0.1):
        _, gradient = steering_phase_gradient(line, azimuth, elevation, torch.full_like(azimuth, r), 60.0, "spherical")
        assert bool(gradient.isfinite().all())
