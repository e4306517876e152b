"""Likelihood polish: what it finds, what it takes away, and that it never makes things worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import scipy.optimize
import torch

from risfast.data.scenes import SystemConfig, generate_scenes
from risfast.detect import Sources
from risfast.evaluate import match
from risfast.geometry import PlanarArray
from risfast.likelihood import Likelihood, SourceState
from risfast.models.atoms import AtomAxes, AtomGrid
from risfast.models.base import Measurement
from risfast.polish import PolishOptions, _statistics, polish_sources
from risfast.scoring import Box, ascend

ARRAY = PlanarArray.rectangular(6, 6)
GRID = AtomGrid(ARRAY, AtomAxes(15, 9, 6, range_m=(0.5, 3.0)))


def scenes_of(count=4, snr=15.0, n_sources=(2, 2), seed=5, n_snapshots=16):
    config = SystemConfig(
        array=ARRAY,
        n_antennas=8,
        n_snapshots=n_snapshots,
        n_sources=n_sources,
        snr_db=(snr, snr),
        range_m=(0.6, 2.0),
        min_separation_rad=math.radians(25),
        code_kinds=("random",),
    )
    return generate_scenes(config, seed, range(count))


def as_sources(position, power):
    return Sources(*position.double().unbind(1), power.double(), torch.ones(len(position), dtype=torch.float64))


def truth_of(scenes):
    return [as_sources(scenes.position[i][m], scenes.power[i][m]) for i, m in enumerate(scenes.mask)]


def state_of(found, noise):
    width = max(*map(len, found), 1)
    position = torch.ones(len(found), width, 3, dtype=torch.float64)
    power = torch.ones(len(found), width, dtype=torch.float64)
    mask = torch.zeros(len(found), width, dtype=torch.bool)
    for i, sources in enumerate(found):
        k = len(sources)
        position[i, :k] = torch.stack([sources.azimuth, sources.elevation, 1 / sources.range], -1)
        power[i, :k], mask[i, :k] = sources.power, True
    return SourceState(position, power, noise, mask)


def penalised(scenes, found, noise):
    value = Likelihood(Measurement.of(scenes), ARRAY).value(state_of(found, noise))
    penalty = 2 * math.log(scenes.y.shape[1] * scenes.y.shape[2])
    return value - penalty * torch.tensor([len(s) for s in found])


def hits(found, scenes):
    results = [match(s.position, scenes.position[i][scenes.mask[i]]) for i, s in enumerate(found)]
    return sum(r.hits for r in results), sum(r.ghosts for r in results)


@pytest.mark.parametrize("start", ["nothing", "coarse"])
def test_strong_sources_are_found_from_nothing_and_from_coarse_candidates(start):
    scenes = scenes_of()
    candidates = None
    if start == "coarse":
        shift = torch.tensor([0.05, -0.04, 0.1])
        candidates = [as_sources(scenes.position[i] + shift, torch.full((2,), 0.3)) for i in range(4)]
    polished = polish_sources(Measurement.of(scenes, noise_known=False), candidates, GRID)
    assert hits(polished.sources, scenes) == (8, 0)
    for i, sources in enumerate(polished.sources):
        result = match(sources.position, scenes.position[i][scenes.mask[i]])
        assert float(result.distance_m.max()) < 0.15
    ratio = polished.noise_power / scenes.noise_power
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


def test_the_penalised_likelihood_never_falls():
    scenes = scenes_of(snr=3.0, n_sources=(1, 3), seed=8)
    options = PolishOptions(range_points=0)
    generator = torch.Generator().manual_seed(0)
    for spread in (0.0, 0.1, 0.4):
        candidates = []
        for sources in truth_of(scenes):
            wrong = spread * (torch.rand(sources.position.shape, generator=generator, dtype=torch.float64) - 0.5)
            candidates.append(as_sources(sources.position + wrong, sources.power))
        polished = polish_sources(Measurement.of(scenes), candidates, GRID, options)
        before = penalised(scenes, candidates, scenes.noise_power.double())
        after = penalised(scenes, polished.sources, polished.noise_power)
        assert (after >= before - 0.05).all()  # its products are complex64
        k = torch.tensor([len(s) for s in polished.sources])
        penalty = 2 * math.log(16 * 8)
        torch.testing.assert_close(after, polished.log_likelihood - penalty * k, rtol=0, atol=0.05)


def test_a_spurious_candidate_dies_and_a_missing_one_is_born():
    scenes = scenes_of()
    ghost = torch.tensor([[0.9, 0.4, 2.5]])
    too_many = [
        as_sources(torch.cat([scenes.position[i], ghost]), torch.cat([scenes.power[i], torch.tensor([0.3])]))
        for i in range(4)
    ]
    measurement = Measurement.of(scenes)
    assert hits(polish_sources(measurement, too_many, GRID).sources, scenes) == (8, 0)
    too_few = [as_sources(scenes.position[i][:1], scenes.power[i][:1]) for i in range(4)]
    assert hits(polish_sources(measurement, too_few, GRID).sources, scenes) == (8, 0)
    none_born = polish_sources(measurement, too_few, GRID, PolishOptions(births=0)).sources
    assert [len(s) for s in none_born] == [1, 1, 1, 1]


def test_two_candidates_of_one_source_become_one():
    """Neither of them would be missed little: the other has half of the power."""
    config = SystemConfig(n_sources=(2, 2), snr_db=(15.0, 15.0), range_m=(1.0, 4.0))
    scenes = generate_scenes(config, 3, range(1))
    place = [[0.2820, 0.2694, 2.6646], [-0.1717, 0.2556, 2.1974], [0.2820, 0.2694, 2.6646]]
    candidates = [as_sources(torch.tensor(place), torch.tensor([0.18, 0.19, 0.18]))]
    measurement = Measurement.of(scenes, noise_known=False)
    grid = AtomGrid(config.array)
    found = polish_sources(measurement, candidates, grid, noise_power=scenes.noise_power).sources
    assert len(found[0]) == 2
    assert hits(found, scenes) == (2, 0)


def test_two_sources_that_look_alike_stay_two_where_the_snapshots_tell_them_apart():
    """Squared correlation about 0.9 at 50 dB."""
    scenes = scenes_of(4, snr=50.0, n_sources=(1, 1))
    array, position = ARRAY, scenes.position[:, :1].double()
    position = torch.cat([position, position + torch.tensor([0.04, 0.0, 0.0], dtype=torch.float64)], 1)
    points = position.reshape(-1, 3).numpy()
    a = torch.as_tensor(oracles.steering(array.positions_m.numpy(), array.wavelength_m, points)).reshape(4, 2, -1)
    likeness = (a[:, 0].conj() * a[:, 1]).sum(1).abs().square() / ARRAY.n_elements**2
    assert bool((likeness > 0.85).all())
    generator = torch.Generator().manual_seed(0)
    emitted = torch.randn(4, 16, 2, dtype=torch.complex128, generator=generator)
    phi = (scenes.channel[:, None] * scenes.codes[:, :, None]).to(torch.complex128)
    y = torch.einsum("blmn,bkn,blk->blm", phi, a, emitted)
    y = y + 1e-3 * y.abs().mean() * torch.randn(y.shape, dtype=torch.complex128, generator=generator)
    candidates = [as_sources(p, torch.ones(2)) for p in position]
    measurement = Measurement(y, scenes.codes.to(y.dtype), scenes.channel.to(y.dtype))
    found = polish_sources(measurement, candidates, GRID).sources
    assert [len(s) for s in found] == [2] * 4


@pytest.mark.parametrize("wavefront", ["planar", "spherical"])
def test_a_range_that_cannot_be_seen_is_as_certain_as_the_prior(wavefront):
    """Plane waves, or a single element: within a metre of any range lies that share of the ranges, and no more."""
    array = ARRAY if wavefront == "planar" else PlanarArray.rectangular(1, 1)
    config = SystemConfig(
        array=array, n_antennas=8, n_snapshots=16, n_sources=(1, 1), snr_db=(15.0, 15.0), wavefront=wavefront
    )
    scenes = generate_scenes(config, 2, range(2))
    grid = AtomGrid(array, AtomAxes(15, 9, 6, range_m=(0.5, 10.0)), wavefront)
    points = torch.linspace(0.5, 10.0, 64, dtype=torch.float64)
    share = float(((points[:, None] - points).abs() <= 1).sum(1).max()) / 64
    polished = polish_sources(Measurement.of(scenes), truth_of(scenes), grid, PolishOptions(births=0))
    for sources, covariance in zip(polished.sources, polished.covariance, strict=True):
        assert float(sources.confidence) == pytest.approx(share, abs=1e-6)
        assert float(covariance[0, 2, 2]) > 10.0  # square metres


@pytest.mark.parametrize("factor", [1e-18, 1e9])
def test_units_do_not_matter(factor):
    scenes = scenes_of(3)
    plain = Measurement.of(scenes)
    usual = polish_sources(plain, None, GRID).sources
    codes, channel = plain.codes.to(torch.complex128), plain.channel.to(torch.complex128)
    scaled = Measurement(plain.y.to(torch.complex128) * factor, codes, channel)
    for one, other in zip(usual, polish_sources(scaled, None, GRID).sources, strict=True):
        np.testing.assert_allclose(other.position.numpy(), one.position.numpy(), atol=1e-3)
        np.testing.assert_allclose(other.power.numpy(), one.power.numpy() * factor**2, rtol=1e-3)


def test_noise_alone_has_no_sources():
    scenes = scenes_of(8, n_sources=(0, 0))
    polished = polish_sources(Measurement.of(scenes, noise_known=False), None, GRID)
    assert sum(len(s) for s in polished.sources) <= 1  # of 8 scenes; the criterion errs once in a few hundred
    assert torch.isfinite(polished.log_likelihood).all()


def test_a_scene_does_not_depend_on_its_batch():
    scenes = scenes_of(n_sources=(1, 3), seed=11)
    measurement = Measurement.of(scenes, noise_known=False)
    whole = polish_sources(measurement, None, GRID)
    for i in range(4):
        alone = polish_sources(measurement[i : i + 1], None, GRID)
        assert len(alone.sources[0]) == len(whole.sources[i])
        torch.testing.assert_close(alone.sources[0].position, whole.sources[i].position, rtol=1e-2, atol=1e-2)


def test_the_covariance_is_the_inverse_information_in_metres_of_range():
    scenes = scenes_of(1, snr=20.0, n_sources=(1, 1))
    polished = polish_sources(Measurement.of(scenes), None, GRID, PolishOptions(range_points=0))
    [sources], [covariance] = polished.sources, polished.covariance
    state = state_of([sources], polished.noise_power)
    information = Likelihood(Measurement.of(scenes), ARRAY).derivatives(state).information[0]
    inverse = torch.linalg.inv(information)[:3, :3]
    scale = torch.tensor([1.0, 1.0, -(float(sources.range) ** 2)], dtype=torch.float64)  # d range = -r^2 d(1/range)
    torch.testing.assert_close(covariance[0], inverse * scale[:, None] * scale, rtol=1e-2, atol=1e-12)


def test_a_flat_range_is_reported_where_most_of_it_lies():
    far = AtomGrid(PlanarArray.rectangular(3, 3), AtomAxes(9, 7, 4))
    config = SystemConfig(array=far.array, n_antennas=8, n_snapshots=8, n_sources=(1, 1), snr_db=(10.0, 10.0))
    scenes = generate_scenes(config, 2, range(6))
    measurement = Measurement.of(scenes)
    start = truth_of(scenes)
    peak = polish_sources(measurement, start, far, PolishOptions(range_points=0, births=0)).sources
    mean = polish_sources(measurement, start, far, PolishOptions(births=0)).sources
    for one, other in zip(peak, mean, strict=True):
        assert 0.5 <= float(other.range) <= 10.0
        assert 0 < float(other.confidence) <= 1
        assert float(one.confidence) == 1
    # A 3 x 3 surface cannot tell 3 m from 10 m: no range holds all of the posterior.
    assert min(float(s.confidence) for s in mean) < 0.7


def test_degenerate_measurements_end_well():
    scenes = scenes_of(2)
    silent = Measurement(torch.zeros_like(scenes.y), scenes.codes, scenes.channel)
    assert [len(s) for s in polish_sources(silent, None, GRID).sources] == [0, 0]
    one = Measurement.of(scenes_of(2, n_snapshots=1), noise_known=False)
    assert len(polish_sources(one, None, GRID).sources) == 2
    assert polish_sources(Measurement.of(scenes)[:0], None, GRID).sources == []


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"births": -1}, {"max_sources": 0}, {"penalty": -1.0}, {"range_tolerance_m": 0.0}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PolishOptions(**wrong)


def test_the_gain_is_what_the_likelihood_loses_without_the_source():
    scenes = scenes_of()
    options = PolishOptions(range_points=0)  # the sources are reported where the likelihood is largest
    found = polish_sources(Measurement.of(scenes), None, GRID, options)
    likelihood = Likelihood(Measurement.of(scenes), ARRAY)
    whole = likelihood.value(state_of(found.sources, found.noise_power))
    for i, sources in enumerate(found.sources):
        assert len(sources) > 0
        for k in range(len(sources)):
            fewer = list(found.sources)
            keep = torch.arange(len(sources)) != k
            fewer[i] = as_sources(sources.position[keep], sources.power[keep])
            without = likelihood.value(state_of(fewer, found.noise_power))[i]
            assert float(found.gain[i][k]) == pytest.approx(float(whole[i] - without), rel=1e-4, abs=0.05)


def brute_statistics(scenes, state):
    """n and d of every atom of GRID, by their definitions."""
    axes = GRID.axes
    azimuth, elevation = (axis.asin().numpy() for axis in axes.sines)
    points = np.stack(np.meshgrid(azimuth, elevation, 1 / axes.inverse_range.numpy(), indexing="ij"), -1).reshape(-1, 3)
    atoms = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, points)
    n, d = [], []
    for b in range(len(scenes)):
        phi = (scenes.channel[b] * scenes.codes[b][:, None]).to(torch.complex128).numpy()
        sources = state.position[b][state.mask[b]].numpy()
        places = np.column_stack([sources[:, :2], 1 / sources[:, 2]])
        seen = np.einsum("lmn,kn->lmk", phi, oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, places))
        r = np.einsum("lmk,k,lnk->lmn", seen, state.power[b][state.mask[b]].numpy(), seen.conj())
        inverse = np.linalg.inv(r + float(state.noise[b]) * np.eye(phi.shape[1]))
        responses = np.einsum("lmn,gn->lmg", phi, atoms)
        whitened = np.einsum("lmg,lmp->lpg", responses.conj(), inverse)
        n.append((np.abs(np.einsum("lpg,lp->lg", whitened, scenes.y[b].to(torch.complex128).numpy())) ** 2).sum(0))
        d.append(np.einsum("lpg,lpg->g", whitened, responses).real)
    return np.array(n), np.array(d)


def test_the_statistics_of_the_atoms_are_their_definition():
    scenes = scenes_of(3, snr=10.0, n_sources=(1, 3))
    state = state_of(truth_of(scenes), scenes.noise_power.double())
    likelihood = Likelihood(Measurement.of(scenes), ARRAY, dtype=torch.complex64)
    for found, exact in zip(_statistics(likelihood, state, GRID), brute_statistics(scenes, state), strict=True):
        error = np.abs(found.numpy() - exact).max(1) / exact.max(1)
        assert error.max() < 4e-3  # the maps of the atoms hold 60 dB of the largest entry of a matrix


def climbing():
    """A likelihood, states a little off the truth, and a box around everything."""
    scenes = scenes_of(3, snr=10.0)
    state = state_of(truth_of(scenes), scenes.noise_power.double())
    moved = state.moved(torch.full((3, state.n_parameters), 0.01, dtype=torch.float64))
    low, high = torch.tensor([[-1.5, -1.5, 0.1], [1.5, 1.5, 3.0]], dtype=torch.float64)
    least = torch.full((3,), 1e-12, dtype=torch.float64)
    box = Box(low, high, least, least)
    return Likelihood(Measurement.of(scenes), ARRAY), moved, box


def test_a_goal_out_of_reach_ends_the_climb_and_one_in_reach_does_not_change_it():
    likelihood, state, box = climbing()
    free = ascend(likelihood, state, box, 20)
    start = likelihood.value(state)
    assert bool((free.value > start + 0.1).all())
    goal = torch.stack([free.value[0] + 1e6, free.value[1] - 1e-3, free.value[2] + 1e6])
    found = ascend(likelihood, state, box, 20, goal)
    np.testing.assert_allclose(found.value[[0, 2]].numpy(), start[[0, 2]].numpy(), rtol=1e-12)
    assert float(found.value[1]) == pytest.approx(float(free.value[1]), rel=1e-12)


def test_a_coordinate_at_a_bound_stays_there_and_the_others_reach_their_best():
    likelihood, state, box = climbing()
    best = ascend(likelihood, state, box, 40).state
    azimuth = float(best.position[0, 0, 0])
    bound = state.position.clone()
    bound[0, 0, 0] = azimuth - 0.02
    high = torch.tensor([azimuth - 0.02, 1.5, 3.0], dtype=torch.float64)
    others = [i for i in range(bound.shape[1]) if i and float(bound[0, i, 0]) > azimuth - 0.02]
    assert not others, "the second source must lie inside for this to test the first"
    one = torch.tensor([0])
    part, narrow = likelihood[one], Box(box.low, high, box.least_power[:1], box.least_noise[:1])
    start = narrow.clamp(replace(state, position=bound).take(one))
    found = ascend(part, start, narrow, 10)
    assert float(found.state.position[0, 0, 0]) == azimuth - 0.02
    assert float(part.derivatives(found.state).gradient[0, 0]) > 0  # it would go on

    def loss(step):  # of all the others
        shift = torch.tensor(np.insert(step, 0, 0.0))[None]
        return -float(part.value(narrow.clamp(found.state.moved(shift))))

    rest = scipy.optimize.minimize(loss, np.zeros(found.state.n_parameters - 1), method="Nelder-Mead")
    assert -rest.fun - float(found.value) < 0.05  # without holding the coordinate it is 0.13
