"""The expected log-likelihood under a wrong model against one written from the formulas, and its maximum."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.evaluate.expected_likelihood import ExpectedLikelihood, pseudo_true_parameters
from risfast.evaluate.mismatched import true_responses
from risfast.geometry import SensorArray
from risfast.localize.likelihood import Likelihood, SourceState
from risfast.models.base import Measurement
from risfast.simulate.impairments import Impairments
from risfast.simulate.scenes import SystemConfig, generate_scenes

ARRAY = SensorArray.rectangular(4, 3)
IMPAIRED = Impairments(code_phase_noise_rad=0.3, dropped_elements=0.1, wavelength_jitter=0.02, position_jitter_m=0.01)
CONFIG = SystemConfig(
    array=ARRAY,
    n_antennas=4,
    n_snapshots=8,
    n_sources=(1, 3),
    range_m=(0.5, 2.0),
    min_separation_rad=math.radians(30),
    impairments=IMPAIRED,
)
SEED = 3


def assumed(scenes, b, theta, wavefront):
    """R_l [L, M, M] for (azimuth, elevation, 1/range, log power), coordinate by coordinate, and then the log noise."""
    azimuth, elevation, inverse, power = np.reshape(theta[:-1], (4, -1))
    array = scenes.config.array
    points = np.stack([azimuth, elevation, 1 / inverse], -1)
    a = oracles.steering(array.positions_m.numpy(), array.wavelength_m, points, wavefront)
    result = []
    for code in scenes.codes[b].numpy():
        seen = scenes.channel[b].numpy() @ np.diag(code) @ a.T  # [M, K]
        result.append(seen @ np.diag(np.exp(power)) @ seen.conj().T + math.exp(theta[-1]) * np.eye(len(seen)))
    return np.array(result)


def true_covariances(scenes, b, factor):
    f = factor[b].numpy()
    return f @ f.conj().swapaxes(1, 2) + float(scenes.noise_power[b]) * np.eye(f.shape[1])


def objective(scenes, b, s, theta, wavefront):
    """-sum_l tr(R_l^-1 S_l) + log det R_l."""
    r = assumed(scenes, b, theta, wavefront)
    traces = [np.trace(np.linalg.solve(one, other)).real for one, other in zip(r, s, strict=True)]
    return -sum(traces) - np.linalg.slogdet(r)[1].sum()


def slopes(function, theta, step=1e-4):
    """Derivatives by central differences with the error of the second order taken out."""
    result = []
    for i in range(len(theta)):
        way = np.zeros(len(theta))
        way[i] = step
        one, two = ((function(theta + n * way) - function(theta - n * way)) / (2 * n * step) for n in (1, 2))
        result.append((4 * one - two) / 3)
    return np.array(result)


def hessian(function, theta, step=1e-3):
    return slopes(lambda at: slopes(function, at, step), theta, step)


def score_covariance(scenes, b, s, theta, wavefront):
    """sum_l tr(R^-1 dR_i R^-1 S R^-1 dR_j R^-1 S)."""
    r = assumed(scenes, b, theta, wavefront)
    d = slopes(lambda at: assumed(scenes, b, at, wavefront), theta)  # [P, L, M, M]
    t = np.array([np.linalg.solve(one, other) for one, other in zip(r, s, strict=True)])  # R^-1 S
    u = np.array([np.linalg.solve(r, one) @ t for one in d])  # R^-1 dR R^-1 S
    return np.einsum("ilmn,jlnm->ij", u, u).real


def theta_of(state, b):
    k = int(state.mask[b].sum())
    position, power = state.position[b, :k].numpy(), state.power[b, :k].numpy()
    return np.concatenate([position.T.ravel(), np.log(power), [math.log(float(state.noise[b]))]])


def kept(k, of):
    """Where the parameters of the first k of ``of`` slots are."""
    return [*(c * of + i for c in range(4) for i in range(k)), 4 * of]


def made(wavefront="spherical", count=4, config=CONFIG):
    scenes = generate_scenes(config, SEED, range(count), dtype=torch.complex128)
    factor, state = true_responses(scenes, SEED)
    likelihood = Likelihood(Measurement.of(scenes), ARRAY, wavefront)
    return scenes, factor, state, ExpectedLikelihood(likelihood, factor, state.noise)


def elsewhere(state):
    """Away from the truth, where every term counts."""
    generator = torch.Generator().manual_seed(1)
    step = 0.05 * torch.randn(len(state.noise), state.n_parameters, generator=generator, dtype=torch.float64)
    return state.moved(step)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_value_gradient_and_hessian_are_those_of_finite_differences(wavefront):
    scenes, factor, state, model = made(wavefront)
    assert len(set(scenes.n_sources.tolist())) > 1
    at = elsewhere(state)
    found = model.expected(at)
    for b in range(len(scenes)):
        k, s, theta = int(scenes.n_sources[b]), true_covariances(scenes, b, factor), theta_of(at, b)

        def value(point, b=b, s=s):
            return objective(scenes, b, s, point, wavefront)

        keep = kept(k, state.mask.shape[1])
        assert float(found.value[b]) == pytest.approx(value(theta), rel=1e-11)
        # Differences of fourth order: 1e-9 of the largest derivative, and 1e-7 of the largest second one.
        exact = slopes(value, theta)
        np.testing.assert_allclose(found.gradient[b].numpy()[keep], exact, atol=1e-8 * np.abs(exact).max())
        exact = hessian(value, theta)
        np.testing.assert_allclose(found.hessian[b].numpy()[np.ix_(keep, keep)], exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_the_covariance_of_the_score_is_the_trace_of_the_formula(wavefront):
    scenes, factor, state, model = made(wavefront)
    at = elsewhere(state)
    found = model.expected(at).score
    for b in range(len(scenes)):
        exact = score_covariance(scenes, b, true_covariances(scenes, b, factor), theta_of(at, b), wavefront)
        keep = kept(int(scenes.n_sources[b]), state.mask.shape[1])
        np.testing.assert_allclose(found[b].numpy()[np.ix_(keep, keep)], exact, atol=1e-8 * np.abs(exact).max())


def test_parameters_of_sources_that_do_not_exist_have_no_derivatives():
    scenes, _, state, model = made()
    found = model.expected(state)
    there = torch.cat([state.mask.repeat(1, 4), state.mask.new_ones(len(scenes), 1)], 1)
    assert not bool(there.all())
    assert not bool(found.gradient[~there].any())
    for matrices in (found.hessian, found.score):
        assert not bool(matrices[~there].any())
        assert not bool(matrices.mT[~there].any())
        torch.testing.assert_close(matrices, matrices.mT)


def test_where_the_model_is_right_all_is_the_fisher_information():
    scenes, _, state, model = made(config=SystemConfig(**{**vars(CONFIG), "impairments": Impairments()}))
    found = model.expected(state)
    information = model.likelihood.derivatives(state).information
    there = torch.cat([state.mask.repeat(1, 4), state.mask.new_ones(len(scenes), 1)], 1)
    exact = torch.where(there[:, :, None] & there[:, None], information, 0.0)
    scale = exact.abs().amax((1, 2), keepdim=True)
    for matrices in (found.score, -found.hessian):
        torch.testing.assert_close(matrices / scale, exact / scale, rtol=0, atol=1e-12)
    assert float(found.gradient.abs().max()) < 1e-9 * float(scale.max())
    assert pseudo_true_parameters(model, state).state.position.equal(state.position)


def test_snapshots_drawn_from_the_truth_have_this_gradient_and_this_covariance():
    scenes, factor, state, model = made(count=1)
    found = model.expected(state)
    draws = 4000
    generator = torch.Generator().manual_seed(2)
    shape = (draws, *scenes.y.shape[1:], 1)
    white = torch.randn(shape, dtype=torch.complex128, generator=generator)
    y = (torch.linalg.cholesky(torch.as_tensor(true_covariances(scenes, 0, factor))) @ white)[..., 0]
    many = Measurement(y, scenes.codes.expand(draws, -1, -1), scenes.channel.expand(draws, -1, -1))
    gradient = Likelihood(many, ARRAY).derivatives(state.take(torch.zeros(draws, dtype=torch.int64))).gradient
    keep = kept(int(scenes.n_sources[0]), state.mask.shape[1])
    gradient, score = gradient[:, keep], found.score[0][keep][:, keep]
    deviation = score.diagonal().sqrt()
    mean = (gradient.mean(0) - found.gradient[0, keep]) / deviation
    assert float(mean.abs().max()) < 4 / math.sqrt(draws)
    between = gradient.T.cov() / deviation[:, None] / deviation
    error = between - score / deviation[:, None] / deviation
    # Of a product of two nearly Gaussian numbers: variance 1 + rho^2 <= 2; a gradient's tails are a little heavier.
    assert float(error.abs().max()) < 6 * math.sqrt(2 / draws)


def test_at_the_nearest_minimum_the_slopes_are_zero_and_the_curvature_is_positive():
    scenes, factor, state, model = made()
    found = pseudo_true_parameters(model, state)
    assert bool(found.converged.all())
    assert bool(found.free.all())
    for b in range(len(scenes)):
        s, start, theta = true_covariances(scenes, b, factor), theta_of(state, b), theta_of(found.state, b)

        def value(point, b=b, s=s):
            return objective(scenes, b, s, point, "spherical")

        gradient, curvature = slopes(value, theta), -hessian(value, theta)
        assert np.linalg.eigvalsh(curvature).min() > 0
        assert gradient @ np.linalg.solve(curvature, gradient) < 1e-6  # a thousandth of a standard deviation
        moved = theta - start
        assert math.sqrt(moved @ curvature @ moved) > 0.5  # the truth would not pass
        assert value(start) < float(found.expected.value[b])


def test_a_plane_wave_taken_for_a_spherical_one_ends_at_the_limit_of_the_range():
    config = SystemConfig(**{**vars(CONFIG), "wavefront": "planar", "n_sources": (2, 2), "impairments": Impairments()})
    scenes, _, state, model = made(config=config)
    found = pseudo_true_parameters(model, state)
    assert bool(found.converged.all())
    far = (1 / found.state.position[..., 2]) > 100 * scenes.position[..., 2]
    assert bool(far.any())
    held = ~found.free[:, 4:6]
    assert bool((held <= far).all())  # what is held at the limit is far
    assert bool(found.free[:, [0, 1, 2, 3, 6, 7, 8]].all())


def test_a_covariance_that_is_not_definite_ends_the_search_at_once():
    _, _, state, model = made()
    silent = SourceState(state.position, state.power, torch.where(torch.arange(4) == 1, 0.0, state.noise), state.mask)
    found = pseudo_true_parameters(model, silent)
    assert found.converged.tolist() == [True, False, True, True]


def test_the_search_needs_no_gradients_and_leaves_none():
    _, _, state, model = made()
    inside = pseudo_true_parameters(model, state)
    with torch.no_grad():
        outside = pseudo_true_parameters(model, state)
    assert inside.state.position.equal(outside.state.position)
    assert not inside.expected.hessian.requires_grad
