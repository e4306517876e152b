"""The Cramér-Rao bound against an independent Fisher information and against maximum likelihood itself."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import oracles
import pytest
import torch
from scipy import integrate, stats

from risfast.errors import ShapeError
from risfast.evaluate import Tolerance
from risfast.evaluate.bounds import cramer_rao_bound, implied_recall, scene_bound, true_state
from risfast.geometry import SensorArray
from risfast.localize import Localizer
from risfast.localize.likelihood import Likelihood, SourceState
from risfast.localize.polish import PolishOptions, polish_sources
from risfast.models.atoms import AtomAxes, AtomGrid
from risfast.models.base import Measurement
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.sources import Sources

ARRAY = SensorArray.rectangular(4, 3)
CONFIG = SystemConfig(array=ARRAY, n_antennas=4, n_snapshots=8, n_sources=(1, 3), range_m=(0.5, 2.0))
WIDE = Tolerance(math.pi, math.pi / 2, 1e6)


def covariances(scenes, b, parameters, wavefront):
    """R_l [L, M, M] for parameters (azimuth, elevation, range, log power) by source and then the log noise."""
    by_source, noise = np.reshape(parameters[:-1], (-1, 4)), math.exp(parameters[-1])
    array = scenes.config.array
    a = oracles.steering(array.positions_m.numpy(), array.wavelength_m, by_source[:, :3], wavefront)
    result = []
    for code in scenes.codes[b].numpy():
        seen = scenes.channel[b].numpy() @ np.diag(code) @ a.T  # [M, K]
        result.append(seen @ np.diag(np.exp(by_source[:, 3])) @ seen.conj().T + noise * np.eye(len(seen)))
    return np.array(result)


def information(scenes, b, parameters, wavefront):
    """sum_l tr(R^-1 dR_i R^-1 dR_j) from central differences."""
    centre = covariances(scenes, b, parameters, wavefront)
    slopes = []
    for i in range(len(parameters)):
        step = np.zeros(len(parameters))
        step[i] = 1e-5
        ends = [covariances(scenes, b, parameters + sign * step, wavefront) for sign in (1, -1)]
        slopes.append([np.linalg.solve(r, d) for r, d in zip(centre, (ends[0] - ends[1]) / 2e-5, strict=True)])
    return np.array([[sum(np.trace(x @ y).real for x, y in zip(p, q, strict=True)) for q in slopes] for p in slopes])


def truth(scenes, b):
    k = int(scenes.mask[b].sum())
    position = scenes.position[b, :k].double().numpy()
    power = scenes.power[b, :k].double().log().numpy()
    return np.append(np.column_stack([position, power]).ravel(), math.log(float(scenes.noise_power[b])))


@pytest.mark.parametrize("wavefront", ["spherical", "fresnel"])
def test_the_bound_is_the_inverse_of_the_information_of_finite_differences(wavefront):
    config = SystemConfig(**{**vars(CONFIG), "wavefront": wavefront})
    scenes = generate_scenes(config, 3, range(6), dtype=torch.complex128)
    assert len(set(scenes.n_sources.tolist())) > 1
    bound = scene_bound(scenes)
    for b in range(6):
        k = int(scenes.mask[b].sum())
        exact = np.linalg.inv(information(scenes, b, truth(scenes, b), wavefront))
        for i in range(k):
            block = exact[4 * i : 4 * i + 3, 4 * i : 4 * i + 3]
            scale = np.sqrt(np.outer(np.diag(block), np.diag(block)))
            # Central differences are good to 1e-6; the condition number of the information multiplies that.
            np.testing.assert_allclose(bound.covariance[b, i].numpy() / scale, block / scale, atol=2e-4)
            az, el, r = scenes.position[b, i].tolist()
            jacobian = np.array(
                [
                    [r * math.cos(az) * math.cos(el), -r * math.sin(az) * math.sin(el), math.sin(az) * math.cos(el)],
                    [0.0, r * math.cos(el), math.sin(el)],
                    [-r * math.sin(az) * math.cos(el), -r * math.cos(az) * math.sin(el), math.cos(az) * math.cos(el)],
                ]
            )
            rms = math.sqrt(np.trace(jacobian @ block @ jacobian.T))
            assert float(bound.position_m[b, i]) == pytest.approx(rms, rel=2e-4)
        assert bound.covariance[b, k:].isnan().all()
        assert bound.position_m[b, k:].isnan().all()


def test_deviations_are_the_roots_of_the_diagonal():
    bound = scene_bound(generate_scenes(CONFIG, 3, range(4), dtype=torch.complex128))
    np.testing.assert_allclose(
        bound.deviation.square().numpy(), bound.covariance.diagonal(dim1=-2, dim2=-1).numpy(), rtol=1e-12
    )


def test_the_bound_of_a_scene_does_not_depend_on_its_batch():
    scenes = generate_scenes(CONFIG, 3, range(20), dtype=torch.complex128)
    whole = scene_bound(scenes)
    alone = scene_bound(generate_scenes(CONFIG, 3, [18], dtype=torch.complex128))
    np.testing.assert_allclose(alone.covariance[0].numpy(), whole.covariance[18].numpy(), rtol=1e-6)


def test_a_planar_wavefront_says_nothing_of_range():
    config = SystemConfig(**{**vars(CONFIG), "wavefront": "planar", "n_sources": (2, 2)})
    scenes = generate_scenes(config, 1, range(3), dtype=torch.complex128)
    bound = scene_bound(scenes)
    assert bool(bound.deviation[..., 2].isinf().all())
    assert bool(bound.position_m.isinf().all())
    assert not bound.implied_recall().any()
    for b in range(3):
        full = information(scenes, b, truth(scenes, b), "planar")
        keep = [0, 1, 3, 4, 5, 7, 8]
        exact = np.linalg.inv(full[np.ix_(keep, keep)])
        for i in range(2):
            block = exact[3 * i : 3 * i + 2, 3 * i : 3 * i + 2]
            np.testing.assert_allclose(bound.covariance[b, i, :2, :2].numpy(), block, rtol=2e-4)


def test_fewer_measurements_than_parameters_leave_the_sources_unbounded():
    config = SystemConfig(**{**vars(CONFIG), "n_antennas": 2, "n_snapshots": 1, "n_sources": (3, 3)})
    bound = scene_bound(generate_scenes(config, 1, range(2), dtype=torch.complex128))
    assert bool(bound.position_m.isinf().all())


def test_no_scenes_and_no_sources_have_bounds_of_fitting_shape():
    nothing = scene_bound(generate_scenes(CONFIG, 1, []))
    assert (nothing.covariance.shape, nothing.position_m.shape) == ((0, 3, 3, 3), (0, 3))
    empty = scene_bound(generate_scenes(SystemConfig(**{**vars(CONFIG), "n_sources": (0, 0)}), 1, range(2)))
    assert (empty.covariance.shape, empty.position_m.shape) == ((2, 0, 3, 3), (2, 0))


def test_maximum_likelihood_at_high_snr_reaches_the_bound():
    draws = 600
    config = SystemConfig(
        array=ARRAY,
        n_antennas=6,
        n_snapshots=24,
        n_sources=(2, 2),
        snr_db=(25.0, 25.0),
        range_m=(0.5, 1.2),
        min_separation_rad=math.radians(40),
        azimuth_rad=(-0.8, 0.8),
        elevation_rad=(-0.3, 0.3),
    )
    scenes = generate_scenes(config, 2, [0], dtype=torch.complex128)
    bound = scene_bound(scenes)
    r = torch.as_tensor(covariances(scenes, 0, truth(scenes, 0), "spherical"))
    generator = torch.Generator().manual_seed(5)
    white = torch.randn(draws, 24, 6, 1, dtype=torch.complex128, generator=generator)
    y = (torch.linalg.cholesky(r) @ white)[..., 0]
    many = Measurement(
        y,
        scenes.codes.expand(draws, -1, -1),
        scenes.channel.expand(draws, -1, -1),
        scenes.noise_power.expand(draws),
    )
    position = scenes.position[0].double()
    start = Sources.at(position, scenes.power[0].double())
    axes = AtomAxes(9, 7, 5, range_m=(0.3, 3.0))
    atoms = AtomGrid(Setup(ARRAY, axes.region), axes)
    options = PolishOptions(iterations=30, births=0, penalty=0.0, range_points=0, max_sources=2)
    found = polish_sources(many, [start] * draws, atoms, options)
    error = []
    for sources in found.sources:
        at = sources.position
        assert len(at) == 2
        order = (at[:, None, :2] - position[:, :2]).norm(dim=-1).argmin(0)  # 40 degrees apart, never mixed up
        error.append(at[order] - position)
    rms = torch.stack(error).square().mean(0).sqrt()
    ratio = rms / bound.deviation[0]
    # The standard error of each ratio is 1 / sqrt(2 draws) = 0.03.
    assert float(ratio.min()) > 0.9
    assert float(ratio.max()) < 1.2


def random_covariance(rng, flatness, spread):
    axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    c = axes @ np.diag(10 ** rng.uniform(-flatness, 0, 3)) @ axes.T
    unit = 1 / np.sqrt(np.diag(c))
    deviation = np.array([0.087, 0.087, 1.0]) * 10 ** rng.uniform(-spread, spread, 3)
    return c * np.outer(unit, unit) * np.outer(deviation, deviation)


@pytest.mark.parametrize("flatness", [0, 1, 3])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_implied_recall_is_the_normal_probability_of_the_box(flatness, spread):
    rng = np.random.default_rng((flatness, int(10 * spread)))
    matrices = np.array([random_covariance(rng, flatness, spread) for _ in range(8)])
    found = implied_recall(torch.as_tensor(matrices)).numpy()
    gate = Tolerance()
    limit = np.array([gate.azimuth_rad, gate.elevation_rad, gate.range_m])
    for matrix, chance in zip(matrices, found, strict=True):
        scaled = matrix / np.outer(limit, limit)  # scipy's own accuracy is best for a box of size one
        exact = stats.multivariate_normal.cdf(
            np.ones(3), cov=scaled, lower_limit=-np.ones(3), abseps=1e-7, releps=0, maxpts=1_000_000
        )
        assert chance == pytest.approx(exact, abs=1e-6)  # ten times what scipy is asked for


@pytest.mark.parametrize("correlation", [0.0, 0.7, -0.99, 0.99999])
@pytest.mark.parametrize("width", [0.2, 1.0, 5.0])
def test_implied_recall_is_accurate_to_1e_8_however_correlated(correlation, width):
    """Two correlated coordinates and an independent one: a one-dimensional integral."""
    matrix = np.diag([1.0, width**2, 0.49])
    matrix[0, 1] = matrix[1, 0] = correlation * width
    beside = math.sqrt(1 - correlation**2)

    def inside(z):
        mean = correlation * z
        return stats.norm.pdf(z) * (
            stats.norm.cdf((1 / width - mean) / beside) - stats.norm.cdf((-1 / width - mean) / beside)
        )

    edges = sorted(
        {min(1.0, abs(1 / (width * correlation)) + s * 8 * beside) for s in (-1, 0, 1)} if correlation else {}
    )
    cuts = [0.0, *(e for e in edges if 0 < e < 1), 1.0]
    half = sum(integrate.quad(inside, a, b, epsabs=1e-12, epsrel=1e-12)[0] for a, b in itertools.pairwise(cuts))
    exact = 2 * half * (stats.norm.cdf(1 / 0.7) - stats.norm.cdf(-1 / 0.7))
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        turned = torch.as_tensor(matrix[np.ix_(order, order)])
        assert float(implied_recall(turned, Tolerance(1.0, 1.0, 1.0))) == pytest.approx(exact, abs=1e-8)


def test_implied_recall_at_its_ends():
    assert float(implied_recall(torch.zeros(3, 3, dtype=torch.float64))) == pytest.approx(1.0, abs=1e-8)
    huge = 1e12 * torch.eye(3, dtype=torch.float64)
    assert 0 <= float(implied_recall(huge)) < 1e-15
    unbounded = torch.diag(torch.tensor([1e-6, 1e-6, torch.inf], dtype=torch.float64))
    missing = torch.full((3, 3), torch.nan, dtype=torch.float64)
    both = implied_recall(torch.stack([unbounded, missing]))
    assert float(both[0]) == 0
    assert bool(both[1].isnan())
    assert implied_recall(torch.zeros(0, 2, 3, 3)).shape == (0, 2)


def test_implied_recall_of_independent_errors_is_the_product():
    deviation = torch.tensor([[0.05, 0.2, 0.8], [0.001, 0.1, 3.0]], dtype=torch.float64)
    found = implied_recall(torch.diag_embed(deviation.square()))
    limit = np.array([math.radians(5), math.radians(5), 1.0])
    exact = (2 * stats.norm.cdf(limit / deviation.numpy()) - 1).prod(1)
    np.testing.assert_allclose(found.numpy(), exact, atol=1e-8)


@pytest.mark.parametrize("flatness", [0, 1, 3])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_implied_recall_of_a_biased_error_is_the_normal_probability_of_the_box(flatness, spread):
    rng = np.random.default_rng((7, flatness, int(10 * spread)))
    gate = Tolerance()
    limit = np.array([gate.azimuth_rad, gate.elevation_rad, gate.range_m])
    matrices = np.array([random_covariance(rng, flatness, spread) for _ in range(8)])
    bias = limit * rng.uniform(-1.5, 1.5, (8, 3))
    found = implied_recall(torch.as_tensor(matrices), bias=torch.as_tensor(bias)).numpy()
    for matrix, mean, chance in zip(matrices, bias, found, strict=True):
        exact = stats.multivariate_normal.cdf(
            np.ones(3),
            mean=mean / limit,
            cov=matrix / np.outer(limit, limit),
            lower_limit=-np.ones(3),
            abseps=1e-7,
            releps=0,
            maxpts=1_000_000,
        )
        assert chance == pytest.approx(exact, abs=1e-6)  # ten times what scipy is asked for


@pytest.mark.parametrize("correlation", [0.0, 0.7, -0.99, 0.99999])
@pytest.mark.parametrize("width", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("shift", [(0.3, 0.2, -0.4), (-0.9, 1.2, 0.0), (0.0, -2.0, 1.0)])
def test_implied_recall_of_a_biased_error_is_accurate_to_1e_8_however_correlated(correlation, width, shift):
    """Two correlated coordinates and an independent one: a one-dimensional integral."""
    matrix = np.diag([1.0, width**2, 0.49])
    matrix[0, 1] = matrix[1, 0] = correlation * width
    beside = math.sqrt(1 - correlation**2)
    low, high = ((side - shift[1]) / width for side in (-1, 1))

    def inside(z):
        mean = correlation * z
        return stats.norm.pdf(z) * (stats.norm.cdf((high - mean) / beside) - stats.norm.cdf((low - mean) / beside))

    ends = [-1 - shift[0], 1 - shift[0]]
    bends = [(face + s * 8 * beside) / correlation for face in (low, high) for s in (-1, 0, 1)] if correlation else []
    cuts = sorted({*ends, *(b for b in bends if ends[0] < b < ends[1])})
    chance = sum(integrate.quad(inside, a, b, epsabs=1e-12, epsrel=1e-12)[0] for a, b in itertools.pairwise(cuts))
    exact = chance * (stats.norm.cdf((1 - shift[2]) / 0.7) - stats.norm.cdf((-1 - shift[2]) / 0.7))
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        turned, moved = torch.as_tensor(matrix[np.ix_(order, order)]), torch.tensor(shift, dtype=torch.float64)[order]
        for sign in (1, -1):
            found = implied_recall(turned, Tolerance(1.0, 1.0, 1.0), sign * moved)
            assert float(found) == pytest.approx(exact, abs=1e-8)


def test_a_bias_of_zero_is_none():
    rng = np.random.default_rng(3)
    matrices = torch.as_tensor(np.array([random_covariance(rng, 2, 1.0) for _ in range(20)])).reshape(4, 5, 3, 3)
    with_zero = implied_recall(matrices, bias=torch.zeros(4, 5, 3, dtype=torch.float64))
    np.testing.assert_allclose(with_zero.numpy(), implied_recall(matrices).numpy(), atol=1e-8)


def test_implied_recall_of_a_biased_error_at_its_ends():
    sharp = 1e-8 * torch.eye(3, dtype=torch.float64)
    unbounded = torch.diag(torch.tensor([1e-6, 1e-6, torch.inf], dtype=torch.float64))
    cases = [
        (sharp, [0.05, -0.05, 0.9], 1.0),
        (sharp, [0.0, 0.0, 1.1], 0.0),
        (sharp, [0.0, -0.1, 0.0], 0.0),
        (sharp, [0.0, 0.0, math.inf], 0.0),
        (sharp, [0.0, 0.0, 1.0], 0.5),  # right on a face
        (unbounded, [0.0, 0.0, math.nan], 0.0),
        (sharp, [0.0, 0.0, math.nan], math.nan),
        (torch.full((3, 3), torch.nan, dtype=torch.float64), [0.0, 0.0, 0.0], math.nan),
    ]
    covariance = torch.stack([c for c, _, _ in cases])
    found = implied_recall(covariance, bias=torch.tensor([b for _, b, _ in cases], dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), [e for _, _, e in cases], atol=1e-8)
    with pytest.raises(ShapeError, match="bias must have shape"):
        implied_recall(sharp, bias=torch.zeros(2))


def test_bad_covariances_and_tolerances_are_named():
    with pytest.raises(ShapeError, match=r"\(\.\.\., 3, 3\)"):
        implied_recall(torch.zeros(3))
    with pytest.raises(ValueError, match="positive semi-definite"):
        implied_recall(torch.diag(torch.tensor([1.0, -1.0, 1.0])))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        implied_recall(torch.eye(3), Tolerance(0.0))


def test_where_range_is_not_scored_the_chance_is_that_of_the_angles():
    rng = np.random.default_rng(12)
    covariance = torch.as_tensor(np.stack([random_covariance(rng, 1.0, 1.0) for _ in range(6)]))
    bias = torch.as_tensor(rng.normal(0, 0.05, (6, 3)))
    gate = Tolerance(0.1, 0.2, math.inf)
    for shift in (None, bias):
        wide = implied_recall(covariance, Tolerance(0.1, 0.2, 1e6), shift)
        np.testing.assert_allclose(implied_recall(covariance, gate, shift).numpy(), wide.numpy(), atol=1e-7)
    unbounded = covariance.clone()
    unbounded[:, 2, :2] = unbounded[:, :2, 2] = 0.0
    unbounded[:, 2, 2] = math.inf
    assert (implied_recall(unbounded) == 0).all()
    np.testing.assert_array_equal(implied_recall(unbounded, gate).numpy(), implied_recall(covariance, gate).numpy())


def test_more_snapshots_of_the_same_kind_halve_the_variance():
    scenes = generate_scenes(CONFIG, 8, range(3), dtype=torch.complex128)
    state = true_state(scenes)
    once = cramer_rao_bound(Likelihood(Measurement.of(scenes), ARRAY), state)
    doubled = Measurement(
        torch.cat([scenes.y, scenes.y], 1), torch.cat([scenes.codes, scenes.codes], 1), scenes.channel
    )
    twice = cramer_rao_bound(Likelihood(doubled, ARRAY), state)
    np.testing.assert_allclose(twice.covariance.numpy() * 2, once.covariance.numpy(), rtol=1e-5)
    assert bool((twice.implied_recall() >= once.implied_recall())[scenes.mask].all())


def test_the_reference_system_at_64_snapshots_can_be_solved_for_86_percent_of_its_sources():
    """A slice of the figure in the notes on the system: 0.86 on average over scenes, SNR -5 .. 20 dB."""
    scenes = generate_scenes(SystemConfig(), 77, range(48))
    bound = scene_bound(scenes)
    found = torch.where(scenes.mask, bound.implied_recall(), 0.0).sum(1) / scenes.n_sources
    error = float(found.std()) / math.sqrt(48)
    assert float(found.mean()) == pytest.approx(0.86, abs=3 * error + 0.005)  # the note rounds
    assert float(implied_recall(bound.covariance, WIDE)[scenes.mask].min()) > 0.999


@pytest.mark.parametrize("length", [1, 3, 40])
def test_the_bound_of_an_array_that_is_sampled_directly_is_that_of_its_snapshots_one_by_one(length):
    config = SystemConfig(array=ARRAY, n_snapshots=length, n_sources=(1, 2), range_m=(0.5, 2.0), sampling="direct")
    scenes = generate_scenes(config, 3, range(3), dtype=torch.complex128)
    bound, state = scene_bound(scenes), true_state(scenes)
    one_by_one = Likelihood(Measurement(scenes.y, scenes.codes, scenes.channel), ARRAY)
    exact = cramer_rao_bound(one_by_one, state)
    np.testing.assert_allclose(bound.covariance, exact.covariance, rtol=1e-6)
    one = dataclasses.replace(config, n_snapshots=1)
    alone = scene_bound(dataclasses.replace(scenes, config=one, y=scenes.y[:, :1], codes=scenes.codes[:, :1]))
    np.testing.assert_allclose(alone.covariance / length, bound.covariance, rtol=1e-6)


def test_the_information_of_bands_adds_up():
    config = SystemConfig(
        array=ARRAY, n_snapshots=50, n_sources=(1, 2), range_m=(0.5, 2.0), sampling="direct", wavelengths_m=(0.3, 0.36)
    )
    scenes = generate_scenes(config, 3, range(4), dtype=torch.complex128)
    both, state = scene_bound(scenes), true_state(scenes)
    assert state.power.shape == (4, 2, 2)
    for scene in range(4):
        k, position = int(scenes.mask[scene].sum()), 0
        for band, wavelength in enumerate(config.wavelengths_m):
            alone = Measurement.direct(scenes.y[scene : scene + 1, band])
            array = SensorArray(ARRAY.positions_m, wavelength)
            own = SourceState(
                state.position[[scene], :k],
                state.power[[scene], band, :k],
                state.noise[[scene], band],
                state.mask[[scene], :k],
            )
            found = Likelihood(alone, array).derivatives(own).information[0]
            # What is left of the places once powers and noise are not known: a Schur complement.
            places, across, rest = found[: 3 * k, : 3 * k], found[: 3 * k, 3 * k :], found[3 * k :, 3 * k :]
            position = position + places - across @ torch.linalg.solve(rest, across.mT)
        inverse = torch.linalg.inv(position)
        for source in range(k):
            index = torch.tensor([source, k + source, 2 * k + source])
            block = inverse[index][:, index]
            scale = torch.tensor([1.0, 1.0, -(float(scenes.position[scene, source, 2]) ** 2)], dtype=torch.float64)
            expected = block * scale[:, None] * scale
            np.testing.assert_allclose(both.covariance[scene, source], expected, rtol=1e-6, atol=1e-15)


def test_maximum_likelihood_of_bands_reaches_their_bound():
    config = SystemConfig(
        array=SensorArray.rectangular(4, 4),
        n_snapshots=100,
        n_sources=(1, 1),
        snr_db=(15.0, 15.0),
        azimuth_rad=(-0.5, 0.5),
        elevation_rad=(-0.3, 0.3),
        range_m=(0.6, 1.2),
        sampling="direct",
        wavelengths_m=(0.3, 0.36),
    )
    scenes = generate_scenes(config, 4, range(60))
    deviation = scene_bound(scenes).deviation[:, 0]
    found = Localizer.classical(config.setup).localize(Measurement.of(scenes))
    assert all(len(sources) == 1 for sources in found)
    error = torch.cat([sources.position for sources in found]) - scenes.position[:, 0]
    ratio = (error / deviation).square().mean(0).sqrt()
    np.testing.assert_allclose(ratio, 1.0, atol=0.3)  # three deviations of 60 scenes
