"""The misspecified Cramér-Rao bound against the formulas, and against maximum likelihood with the wrong model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_expected_likelihood import (
    ARRAY,
    CONFIG,
    SEED,
    hessian,
    made,
    objective,
    score_covariance,
    theta_of,
    true_covariances,
)

from risfast.evaluate.bounds import implied_recall, scene_bound
from risfast.evaluate.expected_likelihood import pseudo_true_parameters
from risfast.evaluate.mismatched import mismatched_bound, mismatched_cramer_rao_bound, true_responses
from risfast.geometry import Region, SensorArray
from risfast.localize.likelihood import Box, Likelihood, SourceState, ascend
from risfast.models.base import Measurement
from risfast.setup import Setup
from risfast.simulate.impairments import Impairments
from risfast.simulate.scenes import Coherence, SystemConfig, generate_scenes

PERFECT = SystemConfig(**{**vars(CONFIG), "impairments": Impairments()})
EVERY_IMPAIRMENT = Impairments(0.3, 0.1, 0.2, 0.02, 0.02, 0.01, 0.5, 0.05)


def jacobian(az, el, r):
    """Of (x, y, z) along azimuth, elevation and range."""
    return np.array(
        [
            [r * math.cos(az) * math.cos(el), -r * math.sin(az) * math.sin(el), math.sin(az) * math.cos(el)],
            [0.0, r * math.cos(el), math.sin(el)],
            [-r * math.sin(az) * math.cos(el), -r * math.cos(az) * math.sin(el), math.cos(az) * math.cos(el)],
        ]
    )


def point(az, el, r):
    return r * np.array([math.sin(az) * math.cos(el), math.sin(el), math.cos(az) * math.cos(el)])


@pytest.mark.parametrize("wavefront", ["spherical", "fresnel", "planar"])
def test_without_mismatch_it_is_the_cramer_rao_bound(wavefront):
    scenes = generate_scenes(
        SystemConfig(**{**vars(PERFECT), "wavefront": wavefront}), SEED, range(20), dtype=torch.complex128
    )
    assert len(set(scenes.n_sources.tolist())) == 3
    plain, found = scene_bound(scenes), mismatched_bound(scenes)
    assert bool(found.found.all())
    torch.testing.assert_close(found.covariance, plain.covariance, rtol=1e-6, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(found.position_m, plain.position_m, rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(found.deviation, plain.deviation, rtol=1e-6, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(found.implied_recall(), plain.implied_recall(), rtol=0, atol=1e-6, equal_nan=True)
    angles = found.bias[..., :2][scenes.mask]
    assert float(angles.abs().max()) < 1e-9
    if wavefront != "planar":
        assert float(found.bias[..., 2][scenes.mask].abs().max()) < 1e-9


@pytest.mark.parametrize("wavefront", ["spherical", "fresnel"])
def test_bias_and_covariance_are_those_of_finite_differences_at_the_pseudo_true_point(wavefront):
    scenes, factor, state, model = made(wavefront)
    theta_0 = pseudo_true_parameters(model, state).state
    found = mismatched_bound(scenes, SEED, wavefront=wavefront)
    for b in range(len(scenes)):
        k, s, theta = int(scenes.n_sources[b]), true_covariances(scenes, b, factor), theta_of(theta_0, b)
        inverse = np.linalg.inv(hessian(lambda at, b=b, s=s: objective(scenes, b, s, at, wavefront), theta))
        sandwich = inverse @ score_covariance(scenes, b, s, theta, wavefront) @ inverse
        for i in range(k):
            own = [i, k + i, 2 * k + i]
            (az, el, inv), true = theta[own], scenes.position[b, i].numpy()
            slope = np.array([1.0, 1.0, -1 / inv**2])
            block = sandwich[np.ix_(own, own)] * np.outer(slope, slope)
            scale = np.sqrt(np.outer(np.diag(block), np.diag(block)))
            # Second differences are good to 1e-6; the condition number of the Hessian multiplies that.
            np.testing.assert_allclose(found.covariance[b, i].numpy() / scale, block / scale, atol=1e-3)
            np.testing.assert_allclose(found.bias[b, i].numpy(), [az, el, 1 / inv] - true, rtol=1e-9, atol=1e-12)
            j = jacobian(az, el, 1 / inv)
            square = np.trace(j @ block @ j.T) + np.square(point(az, el, 1 / inv) - point(*true)).sum()
            assert float(found.position_m[b, i]) == pytest.approx(math.sqrt(square), rel=1e-3)
        assert bool(found.covariance[b, k:].isnan().all())
        assert bool(found.bias[b, k:].isnan().all())
        assert bool(found.position_m[b, k:].isnan().all())


def test_maximum_likelihood_with_wrong_codes_has_this_bias_and_this_covariance():
    draws = 500
    config = SystemConfig(
        array=ARRAY,
        n_antennas=8,
        n_snapshots=96,
        n_sources=(2, 2),
        snr_db=(25.0, 25.0),
        range_m=(0.5, 1.2),
        min_separation_rad=math.radians(40),
        azimuth_rad=(-0.8, 0.8),
        elevation_rad=(-0.3, 0.3),
        impairments=Impairments(code_phase_noise_rad=0.15, position_jitter_m=0.004),
    )
    scenes = generate_scenes(config, 2, [0], dtype=torch.complex128)
    bound = mismatched_bound(scenes, 2)
    factor, state = true_responses(scenes, 2)
    generator = torch.Generator().manual_seed(5)
    white = torch.randn(draws, 96, 8, 1, dtype=torch.complex128, generator=generator)
    y = (torch.linalg.cholesky(torch.as_tensor(true_covariances(scenes, 0, factor))) @ white)[..., 0]
    likelihood = Likelihood(
        Measurement(y, scenes.codes.expand(draws, -1, -1), scenes.channel.expand(draws, -1, -1)), ARRAY
    )
    least = torch.full((draws,), 1e-9, dtype=torch.float64)
    box = Box.of(Setup(ARRAY, Region((-1.5, 1.5), (-1.5, 1.5), (0.1, 20.0))), least, least)
    at = state.take(torch.zeros(draws, dtype=torch.int64))
    error = ascend(likelihood, at, box, 30).state.position.clone()
    error[..., 2] = 1 / error[..., 2]
    error = error - scenes.position[0]
    deviation = bound.deviation[0]
    bias = (error.mean(0) - bound.bias[0]) / deviation
    assert float((bound.bias[0].abs() / deviation).max()) > 2  # there is one to be found
    # Four standard errors of the mean; what is of second order in the error is a tenth of a deviation with 768 numbers.
    assert float(bias.abs().max()) < 4 / math.sqrt(draws) + 0.1
    ratio = error.std(0) / deviation
    assert float(ratio.min()) > 0.9
    assert float(ratio.max()) < 1.15
    plain = scene_bound(scenes).deviation[0]
    assert float((error.std(0) / plain).min()) > 1.15  # which the bound of the nominal system does not tell
    for i in range(2):
        unit = deviation[i, :, None] * deviation[i]
        between = error[:, i].T.cov() / unit - bound.covariance[0, i] / unit
        assert float(between.abs().max()) < 0.25


def test_with_a_planar_wavefront_assumed_no_range_is_determined():
    scenes = generate_scenes(PERFECT, SEED, range(6), dtype=torch.complex128)
    found = mismatched_bound(scenes, wavefront="planar")
    assert bool(found.found.all())
    assert bool(found.deviation[..., 2][scenes.mask].isinf().all())
    assert bool(found.bias[..., 2].isnan().all())
    assert bool(found.bias[..., :2][scenes.mask].isfinite().all())
    assert bool(found.position_m[scenes.mask].isinf().all())
    assert not bool(found.implied_recall()[scenes.mask].any())
    factor, state = true_responses(scenes)
    model = made("planar", len(scenes), PERFECT)[-1]
    theta_0 = pseudo_true_parameters(model, state).state
    for b in range(len(scenes)):
        k, s, theta = int(scenes.n_sources[b]), true_covariances(scenes, b, factor), theta_of(theta_0, b)
        keep = [*range(2 * k), *range(3 * k, 4 * k + 1)]
        full = hessian(lambda at, b=b, s=s: objective(scenes, b, s, at, "planar"), theta)[np.ix_(keep, keep)]
        score = score_covariance(scenes, b, s, theta, "planar")[np.ix_(keep, keep)]
        sandwich = np.linalg.inv(full) @ score @ np.linalg.inv(full)
        for i in range(k):
            block = sandwich[np.ix_([i, k + i], [i, k + i])]
            scale = np.sqrt(np.outer(np.diag(block), np.diag(block)))
            np.testing.assert_allclose(found.covariance[b, i, :2, :2].numpy() / scale, block / scale, atol=1e-3)


def test_a_wrong_array_moves_directions_as_its_scale_says():
    """A surface taken for 2 % larger: the direction cosines of plane waves come out 2 % smaller."""
    config = SystemConfig(**{**vars(PERFECT), "n_sources": (1, 1), "wavefront": "planar"})
    scenes = generate_scenes(config, SEED, range(3), dtype=torch.complex128)
    found = mismatched_bound(scenes, array=SensorArray(ARRAY.positions_m * 1.02, ARRAY.wavelength_m))
    azimuth, elevation = scenes.position[:, 0, 0], scenes.position[:, 0, 1]
    got = scenes.position[:, 0, :2] + found.bias[:, 0, :2]
    # The search ends within 5e-5 of a standard deviation, which are some hundredths of a radian.
    torch.testing.assert_close(got[:, 1].sin(), elevation.sin() / 1.02, rtol=0, atol=1e-5)
    expected = azimuth.sin() * elevation.cos() / 1.02
    torch.testing.assert_close(got[:, 0].sin() * got[:, 1].cos(), expected, rtol=0, atol=1e-5)


def test_a_plane_wave_taken_for_a_spherical_one_has_no_range_where_it_ends_at_the_limit():
    config = SystemConfig(**{**vars(PERFECT), "wavefront": "planar", "n_sources": (2, 2)})
    scenes, factor, state, model = made(count=4, config=config)
    held = ~pseudo_true_parameters(model, state).free[:, 4:6]
    assert bool(held.any())
    found = mismatched_cramer_rao_bound(model.likelihood, state, factor)
    assert bool(found.found.all())
    assert bool(found.position_m[held].isinf().all())
    assert bool(found.bias[held][:, 2].isnan().all())
    assert bool(found.deviation[held][:, :2].isfinite().all())
    assert not bool(found.implied_recall()[held].any())
    assert len(scenes) == 4


def test_where_the_search_does_not_end_nothing_is_said():
    scenes, factor, state, model = made()
    noise = torch.where(torch.arange(4) == 1, 0.0, state.noise)
    found = mismatched_cramer_rao_bound(
        model.likelihood, SourceState(state.position, state.power, noise, state.mask), factor
    )
    assert found.found.tolist() == [True, False, True, True]
    for values in (found.covariance, found.bias, found.position_m, found.implied_recall()):
        assert bool(values[1].isnan().all())
        assert bool(values[0][scenes.mask[0]].isfinite().all())


def test_the_bound_of_a_scene_does_not_depend_on_its_batch():
    whole = mismatched_bound(generate_scenes(CONFIG, SEED, range(20), dtype=torch.complex128), SEED)
    alone = mismatched_bound(generate_scenes(CONFIG, SEED, [17], dtype=torch.complex128), SEED)
    for name in ("covariance", "bias", "position_m"):
        torch.testing.assert_close(
            getattr(alone, name)[0], getattr(whole, name)[17], rtol=1e-6, atol=1e-9, equal_nan=True
        )


def test_no_scenes_and_no_sources_have_bounds_of_fitting_shape():
    nothing = mismatched_bound(generate_scenes(CONFIG, 1, []), 1)
    assert (nothing.covariance.shape, nothing.bias.shape, nothing.found.shape) == ((0, 3, 3, 3), (0, 3, 3), (0,))
    for config in ({"n_sources": (0, 0)}, {"n_sources": (0, 1)}):
        scenes = generate_scenes(SystemConfig(**{**vars(CONFIG), **config}), 1, range(6))
        found = mismatched_bound(scenes, 1)
        assert found.position_m.shape == scenes.mask.shape
        assert bool((found.position_m.isnan() == ~scenes.mask).all())
        assert bool(found.found.all())


# ---- the truth


def noiseless(**changes):
    config = SystemConfig(**{**vars(CONFIG), "n_antennas": 6, "n_sources": (3, 3), "snr_db": (200.0, 200.0), **changes})
    return generate_scenes(config, SEED, range(4), dtype=torch.complex128)


def outside(y, factor):
    """Share of the snapshots' energy that lies outside the columns of F_l."""
    basis = np.linalg.qr(factor.numpy())[0]
    y = y.numpy()[..., None]
    rest = y - basis @ (basis.conj().swapaxes(-1, -2) @ y)
    return (np.abs(rest) ** 2).sum() / (np.abs(y) ** 2).sum()


def test_snapshots_without_noise_lie_in_the_true_responses():
    scenes = noiseless(impairments=EVERY_IMPAIRMENT)
    factor, _ = true_responses(scenes, SEED)
    assert factor.shape == (4, 8, 6, 3)
    assert outside(scenes.y, factor) < 1e-18
    assert outside(scenes.y, true_responses(noiseless(), SEED)[0]) > 1e-3  # the nominal system is another
    assert outside(scenes.y, true_responses(scenes, SEED + 1)[0]) > 1e-3


def test_coherent_sources_are_seen_as_one():
    scenes = noiseless(n_sources=(2, 2), coherence=Coherence(1.0, 2, 1.0))
    factor, state = true_responses(scenes, SEED)
    assert factor.shape == (4, 8, 6, 3)
    assert not bool(factor[..., :2].any())
    assert outside(scenes.y, factor[..., 2:]) < 1e-18
    # Partly coherent: the same power of each source, and the correlation between them.
    partly = noiseless(n_sources=(2, 2), coherence=Coherence(1.0, 2, 0.6))
    mixed, _ = true_responses(partly, SEED)
    alone, _ = true_responses(noiseless(n_sources=(2, 2), impairments=CONFIG.impairments), SEED)
    gram = torch.linalg.lstsq(alone.flatten(1, 2), mixed.flatten(1, 2)).solution
    correlation = gram @ gram.mH
    torch.testing.assert_close(correlation.diagonal(dim1=1, dim2=2).real, state.power * 0 + 1)
    torch.testing.assert_close(correlation[:, 0, 1].abs(), torch.full((4,), 0.6, dtype=torch.float64))


def test_the_seed_is_asked_for_where_it_matters():
    with pytest.raises(ValueError, match="seed must be that of the scenes"):
        mismatched_bound(generate_scenes(CONFIG, SEED, range(2)))
    coherent = SystemConfig(**{**vars(PERFECT), "n_sources": (2, 2), "coherence": Coherence(1.0)})
    with pytest.raises(ValueError, match="seed must be that of the scenes"):
        mismatched_bound(generate_scenes(coherent, SEED, range(2)))
    with pytest.raises(ValueError, match="wavefront must be one of"):
        mismatched_bound(generate_scenes(PERFECT, SEED, range(2)), wavefront="flat")


def test_implied_recall_counts_the_bias():
    scenes = generate_scenes(CONFIG, SEED, range(6), dtype=torch.complex128)
    found = mismatched_bound(scenes, SEED)
    own = found.implied_recall()[scenes.mask]
    torch.testing.assert_close(own, implied_recall(found.covariance, bias=found.bias)[scenes.mask], rtol=0, atol=0)
    assert bool((own <= implied_recall(found.covariance)[scenes.mask] + 1e-8).all())  # a shift only loses
    assert float(own.min()) < float(own.max())


def test_the_reference_system_loses_what_its_codes_lose():
    """More phase error costs more, and the position bound is never below that of the covariance alone."""
    median = []
    for degrees in (2, 6, 17):
        config = SystemConfig(n_snapshots=16, impairments=Impairments(code_phase_noise_rad=math.radians(degrees)))
        scenes = generate_scenes(config, 7, range(8))
        found = mismatched_bound(scenes, 7)
        median.append(float(found.position_m[scenes.mask].nanmedian()))
        reached = found.position_m[scenes.mask] >= found.deviation[..., 2][scenes.mask] * (1 - 1e-9)
        assert bool(reached[found.position_m[scenes.mask].isfinite()].all())
    assert median == sorted(median)
