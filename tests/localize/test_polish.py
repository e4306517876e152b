"""Likelihood polish: what it finds, what it takes away, and that it never makes things worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import scipy.optimize
import torch

from risfast.evaluate import match
from risfast.geometry import Region, SensorArray
from risfast.localize.likelihood import Box, Likelihood, SourceState, ascend
from risfast.localize.polish import PolishOptions, polish_sources
from risfast.localize.source_sets import atom_statistics
from risfast.models.atoms import AtomAxes, AtomGrid
from risfast.models.base import Measurement
from risfast.setup import Setup, Tolerance
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.sources import Sources

ARRAY = SensorArray.rectangular(6, 6)
AXES = AtomAxes(15, 9, 6, range_m=(0.5, 3.0))
GRID = AtomGrid(Setup(ARRAY, AXES.region), AXES)


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
    return Sources.at(position.double(), power.double())


def blind_of(scenes):
    return Measurement.of(scenes)


def measurement_of(scenes):
    return Measurement.of(scenes, noise_known=True)


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
    value = Likelihood(measurement_of(scenes), ARRAY).value(state_of(found, noise))
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
    polished = polish_sources(blind_of(scenes), candidates, GRID)
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
        polished = polish_sources(measurement_of(scenes), candidates, GRID, options)
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
    measurement = measurement_of(scenes)
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
    measurement = blind_of(scenes)
    grid = AtomGrid(config.setup)
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


def expected_confidence(polished, scene, setup, shape):
    """There at all (penalised likelihood), times every coordinate within its tolerance, by the definitions."""
    presence = torch.sigmoid(polished.gain[scene] - 2 * math.log(shape[1] * shape[2]))
    deviation = polished.covariance[scene].diagonal(dim1=1, dim2=2)[:, :2].sqrt()
    limits = torch.tensor(setup.tolerance.limits, dtype=torch.float64)
    within = torch.special.ndtr(limits[:2] / deviation) * 2 - 1
    ranged = torch.where(polished.sources[scene].range.isnan(), 0.0, polished.range_mass[scene])
    return presence * within.prod(1) * (ranged if limits[2] < math.inf else 1.0)


@pytest.mark.parametrize("wavefront", ["planar", "spherical"])
def test_a_range_that_cannot_be_seen_is_no_number_and_as_certain_as_the_prior(wavefront):
    """Plane waves, or a single element: within a metre of any range lies that share of the ranges, and no more."""
    array = ARRAY if wavefront == "planar" else SensorArray.rectangular(1, 1)
    config = SystemConfig(
        array=array, n_antennas=8, n_snapshots=16, n_sources=(1, 1), snr_db=(15.0, 15.0), wavefront=wavefront
    )
    setup = config.setup.replace(tolerance=Tolerance(range_m=1.0))
    scenes = generate_scenes(config, 2, range(2))
    grid = AtomGrid(setup, AtomAxes(15, 9, 6, range_m=(0.5, 10.0)))
    points = torch.linspace(0.5, 10.0, 64, dtype=torch.float64)
    share = float(((points[:, None] - points).abs() <= 1).sum(1).max()) / 64
    polished = polish_sources(measurement_of(scenes), truth_of(scenes), grid, PolishOptions(births=0))
    for i, sources in enumerate(polished.sources):
        assert sources.range.isnan().tolist() == [True]
        assert float(polished.covariance[i][0, 2, 2]) == math.inf
        assert float(polished.range_mass[i]) == pytest.approx(share, abs=1e-6)
        assert float(sources.confidence) == 0  # a range that is not known is not within the tolerance
    # Where range is not scored, the angles decide.
    unscored = AtomGrid(setup.replace(tolerance=Tolerance(range_m=math.inf)), grid.axes)
    polished = polish_sources(measurement_of(scenes), truth_of(scenes), unscored, PolishOptions(births=0))
    for i, sources in enumerate(polished.sources):
        expected = expected_confidence(polished, i, unscored.setup, scenes.y.shape)
        torch.testing.assert_close(sources.confidence, expected)
        assert (float(expected) > 0.99) == (wavefront == "planar")  # one element sees no direction either


def test_a_number_can_be_asked_for_where_the_range_is_not_determined():
    config = SystemConfig(array=ARRAY, n_antennas=8, n_sources=(1, 1), snr_db=(15.0, 15.0), wavefront="planar")
    scenes = generate_scenes(config, 2, range(2))
    grid = AtomGrid(config.setup)
    options = PolishOptions(births=0, range_mass=0.0)
    for sources in polish_sources(measurement_of(scenes), truth_of(scenes), grid, options).sources:
        assert 0.5 <= float(sources.range) <= 10.0


def received(setup, position, seed=0, snapshots=64, snr=100.0):
    """Snapshots of an array that is sampled directly, of sources [K, 3] of power 1."""
    generator = torch.Generator().manual_seed(seed)
    n = setup.array.n_elements
    points = torch.tensor(position, dtype=torch.float64)
    a = oracles.steering(setup.array.positions_m.numpy(), setup.array.wavelength_m, points.numpy(), setup.wavefront)
    emitted, noise = (
        torch.randn(1, snapshots, k, dtype=torch.complex128, generator=generator) for k in (len(position), n)
    )
    codes = torch.ones(1, snapshots, n, dtype=torch.complex128)
    return Measurement(
        emitted @ torch.as_tensor(a) + noise / math.sqrt(snr), codes, torch.eye(n, dtype=codes.dtype)[None]
    )


def test_a_region_without_end_has_sources_at_a_range_and_sources_in_the_far_field():
    setup = Setup(ARRAY)  # half of the space, out to infinity
    near, far = (0.2, -0.1, 0.8), (-0.5, 0.3, math.inf)
    polished = polish_sources(received(setup, [near, far]), None, AtomGrid(setup))
    [sources], [covariance] = polished.sources, polished.covariance
    assert len(sources) == 2
    order = sources.azimuth.argsort(descending=True)
    found, spread = sources[order], covariance[order]
    np.testing.assert_allclose(found.position[0].numpy(), near, atol=0.03)
    assert 0 < float(spread[0, 2, 2]) < 0.03**2
    np.testing.assert_allclose(found.position[1, :2].numpy(), far[:2], atol=0.01)
    # Its likelihood hardly tells ranges beyond 100 m apart: no number, or one far out of which little is certain.
    if found.range[1].isnan():
        assert float(spread[1, 2, 2]) == math.inf
        assert float(found.confidence[1]) == 0
    else:
        assert float(found.range[1]) > 20
        assert float(found.confidence[1]) < 0.2
    assert found.at_edge.tolist() == [False, False]
    torch.testing.assert_close(sources.confidence, expected_confidence(polished, 0, setup, (1, 64, 36)))


@pytest.mark.parametrize(
    ("position", "edge"), [((0.2, -0.1, 0.7), False), ((0.2, -0.1, 4.0), True), ((0.75, -0.1, 0.7), True)]
)
def test_a_source_beyond_the_region_ends_at_its_edge_and_says_so(position, edge):
    region = Region((-0.6, 0.6), (-0.4, 0.4), (0.4, 1.5))
    setup = Setup(ARRAY, region)
    start = [as_sources(torch.tensor([[min(position[0], 0.6), position[1], min(position[2], 1.5)]]), torch.ones(1))]
    options = PolishOptions(births=0, range_points=0)
    [sources] = polish_sources(received(setup, [position]), start, AtomGrid(setup), options).sources
    assert sources.at_edge.tolist() == [edge]
    ends = (region.azimuth_rad, region.elevation_rad, region.range_m)
    for value, (low, high) in zip(sources.position[0], ends, strict=True):
        assert low - 1e-9 <= float(value) <= high + 1e-9
    if position[2] > 1.5:
        assert float(sources.range) == pytest.approx(1.5)
    if position[0] > 0.6:
        assert float(sources.azimuth) == 0.6


def test_coordinates_that_the_region_fixes_stay_and_are_certain():
    ring = SensorArray.circular(16, 0.4, 0.3, plane="xz")
    setup = Setup(ring, Region((-math.pi, math.pi), (0.1, 0.1), (2.0, 2.0)))
    polished = polish_sources(received(setup, [(1.9, 0.1, 2.0)]), None, AtomGrid(setup))
    [sources], [covariance] = polished.sources, polished.covariance
    np.testing.assert_allclose(sources.position.numpy(), [[1.9, 0.1, 2.0]], atol=0.01)
    assert float(sources.elevation) == 0.1
    assert float(sources.range) == pytest.approx(2.0, abs=1e-12)
    assert float(covariance[0, 0, 0]) > 0
    assert covariance[0, 1:].abs().max() < 1e-12
    assert sources.at_edge.tolist() == [False]  # a fixed coordinate has no edge
    assert float(sources.confidence) > 0.99


@pytest.mark.parametrize("start", [math.pi - 0.05, -math.pi + 0.05])
@pytest.mark.parametrize("azimuth", [math.pi - 0.02, -math.pi + 0.02])
def test_the_seam_of_a_full_circle_stops_no_source(start, azimuth):
    ring = SensorArray.circular(16, 0.4, 0.3, plane="xz")
    setup = Setup(ring, Region((-math.pi, math.pi), (0.0, 0.0), (0.5, 10.0)))
    begin = [as_sources(torch.tensor([[start, 0.0, 2.0]]), torch.ones(1))]
    measurement = received(setup, [(azimuth, 0.0, 2.0)])
    [sources] = polish_sources(measurement, begin, AtomGrid(setup), PolishOptions(births=0)).sources
    assert len(sources) == 1
    assert float(sources.azimuth) == pytest.approx(azimuth, abs=5e-3)
    assert sources.at_edge.tolist() == [False]


@pytest.mark.parametrize("factor", [1e-18, 1e9])
def test_units_do_not_matter(factor):
    scenes = scenes_of(3)
    plain = measurement_of(scenes)
    usual = polish_sources(plain, None, GRID).sources
    codes, channel = plain.codes.to(torch.complex128), plain.channel.to(torch.complex128)
    scaled = Measurement(plain.y.to(torch.complex128) * factor, codes, channel)
    for one, other in zip(usual, polish_sources(scaled, None, GRID).sources, strict=True):
        np.testing.assert_allclose(other.position.numpy(), one.position.numpy(), atol=1e-3)
        np.testing.assert_allclose(other.power.numpy(), one.power.numpy() * factor**2, rtol=1e-3)


def test_noise_alone_has_no_sources():
    scenes = scenes_of(8, n_sources=(0, 0))
    polished = polish_sources(blind_of(scenes), None, GRID)
    assert sum(len(s) for s in polished.sources) <= 1  # of 8 scenes; the criterion errs once in a few hundred
    assert torch.isfinite(polished.log_likelihood).all()


def test_a_scene_does_not_depend_on_its_batch():
    scenes = scenes_of(n_sources=(1, 3), seed=11)
    measurement = blind_of(scenes)
    whole = polish_sources(measurement, None, GRID)
    for i in range(4):
        alone = polish_sources(measurement[i : i + 1], None, GRID)
        assert len(alone.sources[0]) == len(whole.sources[i])
        torch.testing.assert_close(alone.sources[0].position, whole.sources[i].position, rtol=1e-2, atol=1e-2)


def test_the_covariance_is_the_inverse_information_in_metres_of_range():
    scenes = scenes_of(1, snr=20.0, n_sources=(1, 1))
    polished = polish_sources(measurement_of(scenes), None, GRID, PolishOptions(range_points=0))
    [sources], [covariance] = polished.sources, polished.covariance
    state = state_of([sources], polished.noise_power)
    information = Likelihood(measurement_of(scenes), ARRAY).derivatives(state).information[0]
    inverse = torch.linalg.inv(information)[:3, :3]
    scale = torch.tensor([1.0, 1.0, -(float(sources.range) ** 2)], dtype=torch.float64)  # d range = -r^2 d(1/range)
    torch.testing.assert_close(covariance[0], inverse * scale[:, None] * scale, rtol=1e-2, atol=1e-12)


def test_a_flat_range_is_reported_where_most_of_it_lies():
    config = SystemConfig(
        array=SensorArray.rectangular(3, 3), n_antennas=8, n_snapshots=8, n_sources=(1, 1), snr_db=(10.0, 10.0)
    )
    far = AtomGrid(config.setup, AtomAxes(9, 7, 4))
    scenes = generate_scenes(config, 2, range(6))
    start = truth_of(scenes)
    peak = polish_sources(measurement_of(scenes), start, far, PolishOptions(range_points=0, births=0))
    mean = polish_sources(measurement_of(scenes), start, far, PolishOptions(births=0))
    for polished in (peak, mean):
        for i, sources in enumerate(polished.sources):
            expected = expected_confidence(polished, i, far.setup, scenes.y.shape)
            torch.testing.assert_close(sources.confidence, expected)
            assert 0.5 - 1e-9 <= float(sources.range) <= 10.0 + 1e-9
    assert [float(mass) for mass in peak.range_mass] == [1.0] * 6  # of a posterior that was not looked at
    assert all(0 < float(mass) <= 1 for mass in mean.range_mass)
    # A 3 x 3 surface cannot tell 3 m from 10 m: no range holds all of the posterior.
    assert min(float(mass) for mass in mean.range_mass) < 0.7


def test_the_likeliest_window_is_that_of_a_posterior_that_is_uniform_in_range():
    """Against the likelihood on a fine grid of ranges, everything but the power as it was found."""
    config = SystemConfig(
        array=SensorArray.rectangular(3, 3), n_antennas=8, n_snapshots=8, n_sources=(1, 1), snr_db=(10.0, 10.0)
    )
    scenes = generate_scenes(config, 2, range(6))
    grid = AtomGrid(config.setup, AtomAxes(9, 7, 4))
    measurement = measurement_of(scenes)
    peak = polish_sources(measurement, truth_of(scenes), grid, PolishOptions(range_points=0, births=0))
    mean = polish_sources(measurement, truth_of(scenes), grid, PolishOptions(births=0))
    likelihood = Likelihood(measurement, config.array)
    found = state_of(peak.sources, peak.noise_power)
    r = torch.linspace(0.5, 10.0, 64, dtype=torch.float64)
    own = likelihood.derivatives(found).information[:, :3, :3]
    slope = -torch.linalg.solve(own[:, :2, :2], own[:, :2, 2:])[..., 0]
    path = found.position[:, :1] + torch.cat([slope, torch.ones(6, 1).double()], 1)[:, None] * (
        (1 / r)[None, :, None] - found.position[:, :1, 2:]
    )
    low, high = config.setup.region.bounds()
    path = torch.maximum(torch.minimum(path, high), low)
    gain, _ = likelihood.profile(replace(found, mask=torch.zeros_like(found.mask)), path)
    posterior = gain.softmax(1)
    window = ((r[:, None] - r).abs() <= 1.0).double()
    mass, best = (posterior @ window).max(1)
    weights = posterior * window[best]
    centre = (weights * r).sum(1) / weights.sum(1)
    blunt = [i for i in range(6) if float(mass[i]) < 0.9]  # where it decides, and the tolerance holds 0.2 of it
    assert blunt
    assert float(mass.min()) > 0.2
    for i in blunt:
        assert float(mean.sources[i].range) == pytest.approx(float(centre[i]), abs=0.05)
        assert float(mean.range_mass[i]) == pytest.approx(float(mass[i]), abs=0.02)


def test_degenerate_measurements_end_well():
    scenes = scenes_of(2)
    silent = Measurement(torch.zeros_like(scenes.y), scenes.codes, scenes.channel)
    assert [len(s) for s in polish_sources(silent, None, GRID).sources] == [0, 0]
    one = blind_of(scenes_of(2, n_snapshots=1))
    assert len(polish_sources(one, None, GRID).sources) == 2
    assert polish_sources(measurement_of(scenes)[:0], None, GRID).sources == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"births": -1},
        {"max_sources": 0},
        {"penalty": -1.0},
        {"range_points": 1},
        {"range_mass": 1.5},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PolishOptions(**wrong)


def test_the_gain_is_what_the_likelihood_loses_without_the_source():
    scenes = scenes_of()
    options = PolishOptions(range_points=0)  # the sources are reported where the likelihood is largest
    found = polish_sources(measurement_of(scenes), None, GRID, options)
    likelihood = Likelihood(measurement_of(scenes), ARRAY)
    whole = likelihood.value(state_of(found.sources, found.noise_power))
    for i, sources in enumerate(found.sources):
        assert len(sources) > 0
        for k in range(len(sources)):
            fewer = list(found.sources)
            keep = torch.arange(len(sources)) != k
            fewer[i] = as_sources(sources.position[keep], sources.power[keep])
            without = likelihood.value(state_of(fewer, found.noise_power))[i]
            assert float(found.gain[i][k]) == pytest.approx(float(whole[i] - without), rel=1e-4, abs=0.05)


def brutestatistics(scenes, state):
    """n and d of every atom of GRID, by their definitions."""
    axes = GRID.axes
    azimuth, elevation = (angle.numpy() for angle in axes.angles(axes.coordinates))
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
    likelihood = Likelihood(measurement_of(scenes), ARRAY, dtype=torch.complex64)
    for found, exact in zip(atom_statistics(likelihood, state, GRID), brutestatistics(scenes, state), strict=True):
        error = np.abs(found.numpy() - exact).max(1) / exact.max(1)
        assert error.max() < 4e-3  # the maps of the atoms hold 60 dB of the largest entry of a matrix


def climbing():
    """A likelihood, states a little off the truth, and a box around everything."""
    scenes = scenes_of(3, snr=10.0)
    state = state_of(truth_of(scenes), scenes.noise_power.double())
    moved = state.moved(torch.full((3, state.n_parameters), 0.01, dtype=torch.float64))
    least = torch.full((3,), 1e-12, dtype=torch.float64)
    box = Box.of(Setup(ARRAY, Region((-1.5, 1.5), (-1.5, 1.5), (1 / 3, 10.0))), least, least)
    return Likelihood(measurement_of(scenes), ARRAY), moved, box


def test_a_goal_out_of_reach_ends_the_climb_and_one_in_reach_does_not_change_it():
    likelihood, state, box = climbing()
    free = ascend(likelihood, state, box, 20)
    start = likelihood.value(state)
    assert bool((free.value > start + 0.1).all())
    goal = torch.stack([free.value[0] + 1e6, free.value[1] - 1e-3, free.value[2] + 1e6])
    found = ascend(likelihood, state, box, 20, goal)
    np.testing.assert_allclose(found.value[[0, 2]].numpy(), start[[0, 2]].numpy(), rtol=1e-12)
    assert float(found.value[1]) == pytest.approx(float(free.value[1]), rel=1e-12)


@pytest.mark.parametrize("fixed", ["nothing", "range"])
def test_a_precise_climb_ends_at_one_maximum_from_any_start_beside_it(fixed):
    likelihood, state, box = climbing()
    if fixed == "range":
        box = replace(box, low=box.low.new_tensor([-1.5, -1.5, 0.3]), high=box.high.new_tensor([1.5, 1.5, 0.3]))
    starts = [box.clamp(state.moved(torch.full((3, state.n_parameters), by).double())) for by in (0.0, -0.02)]
    usual, precise = ([ascend(likelihood, at, box, 40, precise=p) for at in starts] for p in (False, True))

    def apart(ends):
        return float((ends[0].state.position - ends[1].state.position).abs()[state.mask].max())

    assert apart(precise) < 1e-4 < apart(usual)
    for start, rough, end in zip(starts, usual, precise, strict=True):
        assert bool((end.value >= rough.value - 1e-9).all())
        assert bool((end.value > likelihood.value(start)).all())
    held = torch.zeros(3, state.n_parameters, dtype=torch.bool)
    held[:, 2 * state.mask.shape[1] : 3 * state.mask.shape[1]] = fixed == "range"
    at = likelihood.derivatives(precise[0].state)
    slope = torch.where(held, 0.0, at.gradient)
    information = torch.where(held[:, None] | held[:, :, None], 0.0, at.information) + torch.diag_embed(held.double())
    left = (slope * torch.linalg.solve(information, slope)).sum(1) / 2  # that the likelihood may still rise by
    assert bool((left < 1e-6).all())


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
    part, narrow = likelihood[one], replace(box[one], high=high)
    start = narrow.clamp(replace(state, position=bound).take(one))
    found = ascend(part, start, narrow, 10)
    assert float(found.state.position[0, 0, 0]) == azimuth - 0.02
    assert float(part.derivatives(found.state).gradient[0, 0]) > 0  # it would go on

    def loss(step):  # of all the others
        shift = torch.tensor(np.insert(step, 0, 0.0))[None]
        return -float(part.value(narrow.clamp(found.state.moved(shift))))

    rest = scipy.optimize.minimize(loss, np.zeros(found.state.n_parameters - 1), method="Nelder-Mead")
    assert -rest.fun - float(found.value) < 0.05  # without holding the coordinate it is 0.13
