"""Every baseline behind the one interface: what it finds, how many, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import oracles
import pytest
import torch

from risfast.baselines import BASELINES, build_baseline
from risfast.baselines.base import completed
from risfast.baselines.capon import AlsCaponOptions, CaponOptions, TransformerCapon, TransformerCaponOptions
from risfast.baselines.decoupled import DecoupledMusic, DecoupledMusicOptions, SeparableMusicOptions
from risfast.baselines.fits import GreedyMl, GreedyMlOptions, SblOptions
from risfast.baselines.music import LsMusic, MusicOptions, RangeMusic, RangeMusicOptions, RangeSweep, model_order
from risfast.errors import ShapeError
from risfast.evaluate import match
from risfast.geometry import Region, SearchGrid, SensorArray
from risfast.models import Measurement
from risfast.models.atoms import AtomAxes
from risfast.models.base import CovarianceEstimate
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.sources import Sources

ARRAY = SensorArray.rectangular(6, 6)
CONFIG = SystemConfig(
    array=ARRAY,
    n_antennas=12,
    n_snapshots=24,
    n_sources=(1, 1),
    snr_db=(30.0, 30.0),
    range_m=(1.2, 2.0),
    azimuth_rad=(-0.7, 0.7),
    elevation_rad=(-0.4, 0.4),
    rician_factor=(0.5, 0.5),
)
GRID = SearchGrid.box(61, 41, [0.8, 1.1, 1.5, 2.1, 3.0], math.radians(60), math.radians(30))
AXES = AtomAxes(17, 11, 8, range_m=(0.7, 3.5))
WIDE = {"azimuth_rad": (-math.pi / 3, math.pi / 3), "elevation_rad": (-math.pi / 6, math.pi / 6)}
SETUP = Setup(ARRAY, Region(**WIDE, range_m=(0.7, 3.5)))
REFERENCE = SystemConfig().setup
NAMES = list(BASELINES)
OPTIONS = {
    "ls_capon": CaponOptions(grid=GRID),
    "als_capon": AlsCaponOptions(rank=3, capon=CaponOptions(grid=GRID)),
    "ls_music": MusicOptions(grid=GRID),
    "bartlett": MusicOptions(grid=GRID),
    "decoupled_music": DecoupledMusicOptions(),
    # Sources that the criterion sees in noise lend their angles to the pairs: this one is told that there is one.
    "separable_music": SeparableMusicOptions(max_sources=1),
    "range_music": RangeMusicOptions(),
    "sbl": SblOptions(axes=AXES),
    "greedy_ml": GreedyMlOptions(axes=AXES),
    "transformer_capon": TransformerCaponOptions(n_antennas=12, capon=CaponOptions(grid=GRID)),
    "true_capon": CaponOptions(grid=GRID),
}


class TrueFactor(torch.nn.Module):
    """A network that has learned everything."""

    def __init__(self, scenes):
        super().__init__()
        self.answers = {tuple(y.flatten().tolist()): f for y, f in zip(scenes.y, scenes.true_factor(), strict=True)}

    def forward(self, measurement):
        return CovarianceEstimate(torch.stack([self.answers[tuple(y.flatten().tolist())] for y in measurement.y]))


def made(name, scenes, setup=SETUP):
    baseline = build_baseline(name, setup, OPTIONS[name])
    if name == "true_capon":
        return baseline.with_truth(scenes.true_covariance())
    if name == "transformer_capon":
        return TransformerCapon(setup, OPTIONS[name], TrueFactor(scenes))
    return baseline


def some(first, count, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return generate_scenes(config, 11, range(first, first + count))


def hits(found, scenes):
    """Hits in each scene."""
    pairs = zip(found, scenes.position, scenes.mask, strict=True)
    return [match(sources.position, position[mask], SETUP.tolerance).hits for sources, position, mask in pairs]


@pytest.mark.parametrize("name", NAMES)
def test_without_options_a_baseline_has_those_of_its_name(name):
    """Two names may share a class, but not what they do."""
    assert build_baseline(name, REFERENCE).options == BASELINES[name].Options()


@pytest.mark.parametrize("name", NAMES)
def test_a_strong_lone_source_is_found(name):
    scenes = some(0, 4)
    baseline = made(name, scenes)
    told = baseline.localize(Measurement.of(scenes), scenes.n_sources)
    assert [len(s) for s in told] == [1] * 4
    assert hits(told, scenes) == [1] * 4
    assert hits(baseline.localize(Measurement.of(scenes)), scenes) == [1] * 4


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("transformer_capon", "true_capon")])
@pytest.mark.parametrize("length", [12, 80])
def test_a_lone_source_of_an_array_that_is_sampled_directly_is_found(name, length):
    scenes = some(0, 3, sampling="direct", n_snapshots=length)
    baseline = build_baseline(name, SETUP.replace(sampling="direct"), OPTIONS[name])
    assert hits(baseline.localize(Measurement.of(scenes), scenes.n_sources), scenes) == [1] * 3
    few = baseline.localize(Measurement.of(scenes), torch.tensor([0, 2, 3]))
    assert [len(s) for s in few] == [0, 2, 3]


def test_bartlett_peaks_are_the_maxima_of_its_spectrum():
    scenes = some(0, 2, sampling="direct", n_sources=(2, 2))
    measurement, setup = Measurement.of(scenes), SETUP.replace(sampling="direct")
    found = build_baseline("bartlett", setup, OPTIONS["bartlett"]).localize(measurement, torch.tensor([1, 1]))
    for r, sources in zip(measurement.covariance.numpy(), found, strict=True):

        def power(place, r=r):
            a = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, np.atleast_2d(place))[0]
            return (a.conj() @ r @ a).real

        top = power(sources.position.numpy()[0])
        for step in np.vstack([np.diag([0.01, 0.01, 0.05]), -np.diag([0.01, 0.01, 0.05])]):
            assert power(sources.position.numpy()[0] + step) < top
        azimuth, elevation, distance = (axis.numpy() for axis in (GRID.azimuth_rad, GRID.elevation_rad, GRID.range_m))
        rng = np.random.default_rng(0)
        points = np.column_stack([rng.choice(axis, 300) for axis in (azimuth, elevation, distance)])
        assert max(map(power, points)) < top


@pytest.mark.parametrize("name", NAMES)
def test_as_many_sources_come_back_as_were_asked_for(name):
    scenes = some(20, 4, n_sources=(2, 2), snr_db=(0.0, 0.0))
    counts = torch.tensor([0, 1, 3, 6])
    found = made(name, scenes).localize(Measurement.of(scenes), counts)
    assert [len(s) for s in found] == counts.tolist()
    for sources in found:
        assert bool(sources.position.isfinite().all())
        assert bool((sources.range > 0).all())
        assert sources.power.dtype == sources.position.dtype == torch.float64
        confidence = sources.confidence  # only the end of a polish says how probable a hit is
        assert bool((confidence.isnan() | ((confidence >= 0) & (confidence <= 1) & (name == "greedy_ml"))).all())
        assert len(sources.position.unique(dim=0)) == len(sources)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_measurements_give_the_same_sources_in_any_batch(name):
    scenes = some(40, 3, n_sources=(1, 2), snr_db=(20.0, 20.0))
    measurement = Measurement.of(scenes)
    baseline = made(name, scenes)
    one, two = (baseline.localize(measurement) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.position, b.position)
        assert torch.equal(a.power, b.power)
    if name == "true_capon":
        baseline = baseline.with_truth(scenes.true_covariance()[1:2])
    alone = baseline.localize(measurement[1:2])[0]
    # float32 products round differently in another batch: the position moves by what that is worth, not by cells.
    np.testing.assert_allclose(alone.position.numpy(), one[1].position.numpy(), atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_noise_alone_is_no_reason_to_fail(name):
    scenes = some(60, 6, n_sources=(0, 0))
    measurement = Measurement.of(scenes, noise_known=False)
    if name == "true_capon":
        with pytest.warns(RuntimeWarning, match="trace"):
            found = made(name, scenes).localize(measurement)
    elif name == "transformer_capon":
        found = build_baseline(name, SETUP, OPTIONS[name]).localize(measurement)
    else:
        found = made(name, scenes).localize(measurement)
    assert len(found) == 6
    for sources in found:
        assert bool(sources.position.isfinite().all())
    if name in ("greedy_ml", "true_capon"):
        # The penalty of 2 ln(288) = 11 leaves noise a source in few scenes of a hundred; a flat map has no peak.
        assert sum(len(s) for s in found) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_no_scenes_have_no_answers(name):
    scenes = some(0, 1)
    baseline = made(name, scenes)
    if name == "true_capon":
        baseline = baseline.with_truth(scenes.true_covariance()[:0])
    nothing = Measurement.of(scenes)[:0]
    assert baseline.localize(nothing) == []
    assert baseline.localize(nothing, torch.zeros(0, dtype=torch.long)) == []


@pytest.mark.parametrize("name", NAMES)
def test_bad_requests_are_named(name):
    scenes = some(0, 2)
    baseline = made(name, scenes)
    good = Measurement.of(scenes)
    with pytest.raises(ShapeError, match="N = 36"):
        baseline.localize(Measurement(good.y, good.codes[..., :30], good.channel[..., :30]))
    with pytest.raises(ShapeError, match="batch axis"):
        baseline.localize(Measurement(good.y[0], good.codes[0], good.channel[0]))
    with pytest.raises(ValueError, match="no snapshot"):
        baseline.localize(Measurement(good.y[:, :0], good.codes[:, :0], good.channel))
    broken = good.y.clone()
    broken[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="y must be finite"):
        baseline.localize(Measurement(broken, good.codes, good.channel))
    with pytest.raises(ValueError, match=r"y\[1\] is zero"):
        baseline.localize(Measurement(good.y * torch.tensor([1.0, 0.0])[:, None, None], good.codes, good.channel))
    with pytest.raises(ShapeError, match="n_sources"):
        baseline.localize(good, torch.tensor([1]))
    with pytest.raises(TypeError, match="integers"):
        baseline.localize(good, torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match="n_sources must be at least 0"):
        baseline.localize(good, torch.tensor([1, -1]))


def test_baselines_are_made_by_name_with_options_of_their_own():
    for name, kind in BASELINES.items():
        assert isinstance(build_baseline(name, SETUP), kind)
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind.Options().anything = 1
    with pytest.raises(ValueError, match="ls_capon, als_capon"):
        build_baseline("oracle", SETUP)
    with pytest.raises(TypeError, match="SblOptions"):
        build_baseline("sbl", SETUP, CaponOptions())


@pytest.mark.parametrize(
    "bad",
    [
        lambda: CaponOptions(loading=0.0),
        lambda: AlsCaponOptions(rank=0),
        lambda: MusicOptions(criterion="bic"),
        lambda: MusicOptions(max_sources=0),
        lambda: DecoupledMusicOptions(share=0.0),
        lambda: DecoupledMusicOptions(n_phases=1),
        lambda: DecoupledMusicOptions(criterion="bic"),
    ],
)
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        bad()


def test_the_true_covariance_has_to_be_that_of_the_scenes():
    scenes = some(0, 2)
    baseline = build_baseline("true_capon", SETUP, OPTIONS["true_capon"])
    with pytest.raises(ValueError, match="got none"):
        baseline.localize(Measurement.of(scenes))
    with pytest.raises(ValueError, match="that of 1 scenes"):
        baseline.with_truth(scenes.true_covariance()[:1]).localize(Measurement.of(scenes))


def test_a_fresh_transformer_depends_on_its_seed_alone():
    scenes = some(0, 2)
    before = torch.get_rng_state()
    answers = []
    for seed in (1, 1, 2):
        options = dataclasses.replace(OPTIONS["transformer_capon"], seed=seed)
        answers.append(
            build_baseline("transformer_capon", SETUP, options).localize(Measurement.of(scenes), scenes.n_sources)
        )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(answers[0][0].position, answers[1][0].position)
    assert not torch.equal(answers[0][0].position, answers[2][0].position)


def sources_at(rows):
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return Sources.at(rows[:, :3], rows[:, 3])


def test_missing_sources_are_filled_up_from_the_strongest_points_beside_those_found():
    axes = [torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.0]), torch.tensor([1.0, 2.0])]
    volume = torch.tensor([[[9.0, 1.0]], [[8.0, 2.0]], [[7.0, 3.0]]])
    found = sources_at([[0.01, 0.0, 1.1, 9.5]])
    gate = (0.15, 0.15, 0.5)
    full = completed(found, 4, axes, volume, gate)
    expected = [[0.01, 0.0, 1.1, 9.5], [0.2, 0.0, 1.0, 7.0], [0.2, 0.0, 2.0, 3.0], [0.0, 0.0, 2.0, 1.0]]
    np.testing.assert_allclose(torch.column_stack([full.position, full.power]).numpy(), expected, rtol=1e-6)
    # With every point near another the strongest that are left make up the rest.
    crowded = completed(found, 7, axes, volume, (9.0, 9.0, 9.0))
    assert crowded.power.tolist() == [9.5, 9, 8, 7, 3, 2, 1]
    assert completed(full, 2, axes, volume, gate).power.tolist() == [9.5, 7]
    with pytest.raises(ValueError, match="6 points"):
        completed(sources_at([]), 7, axes, volume, gate)


@pytest.mark.parametrize("criterion", ["mdl", "aic"])
def test_the_order_is_that_of_the_formula(criterion):
    rng = np.random.default_rng(0)
    value = rng.uniform(0.1, 5, (6, 7))
    expected = []
    for row in np.sort(value, 1)[:, ::-1]:
        costs = []
        for k in range(7):
            rest = row[k:]
            likelihood = 50 * len(rest) * math.log(np.prod(rest) ** (1 / len(rest)) / np.mean(rest))
            free = k * (14 - k)
            costs.append(-2 * likelihood + (2 * free if criterion == "aic" else free * math.log(50)))
        expected.append(int(np.argmin(costs)))
    assert model_order(torch.as_tensor(value), 50, criterion).tolist() == expected
    assert model_order(torch.as_tensor(value), 50, criterion, 1).max() <= 1


def test_the_order_of_strong_sources_in_white_noise_is_their_number():
    rng = np.random.default_rng(2)
    for k in range(4):
        x = oracles.complex_normal(rng, 8, 2000)
        a = oracles.complex_normal(rng, 8, k)
        x = x + 3 * a @ oracles.complex_normal(rng, k, 2000)
        value = np.linalg.eigvalsh(x @ x.conj().T / 2000)
        assert model_order(torch.as_tensor(value[None]), 2000).tolist() == [k]


def test_music_reports_the_deepest_nulls_of_the_spectrum():
    scenes = some(80, 2, n_sources=(3, 3), min_separation_rad=math.radians(25))
    covariance = scenes.true_covariance() + 0.01 * torch.eye(36)
    found = LsMusic(SETUP, OPTIONS["ls_music"]).of_covariance(covariance, 3)
    for b in range(2):
        assert match(found[b].position, scenes.position[b]).hits == 3
        step = torch.tensor([[0.02, 0, 0], [0, 0.02, 0], [0, 0, 0.05]], dtype=torch.float64)
        for point in found[b].position:
            points = torch.cat([point[None], point + step, point - step]).numpy()
            a = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, points)
            null = oracles.music_null(covariance[b : b + 1].numpy(), a, 3)[0]
            assert null[0] < 1e-6
            assert null[1:].min() > 10 * null[0]


def test_music_needs_a_noise_subspace():
    scenes = some(0, 1)
    with pytest.raises(ValueError, match="below the 36 elements"):
        made("ls_music", scenes).localize(Measurement.of(scenes), torch.tensor([36]))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_greedy_likelihood_with_a_given_number_keeps_the_sources_that_matter(count):
    """Three equal sources: fewer are three less those that cost the least; a fourth joins the three."""
    scenes = some(100, 2, n_sources=(3, 3), min_separation_rad=math.radians(30), azimuth_rad=(-0.9, 0.9))
    found = made("greedy_ml", scenes).localize(Measurement.of(scenes), torch.full((2,), count))
    assert [len(s) for s in found] == [count] * 2
    assert hits(found, scenes) == [min(count, 3)] * 2


def test_greedy_likelihood_fills_up_what_it_cannot_bear(monkeypatch):
    scenes = some(0, 2)
    monkeypatch.setattr(
        "risfast.baselines.fits.polish_sources",
        lambda measurement, *_: type("Nothing", (), {"sources": [sources_at([])] * len(measurement)}),
    )
    found = GreedyMl(SETUP, OPTIONS["greedy_ml"]).localize(Measurement.of(scenes), torch.tensor([1, 2]))
    assert [len(s) for s in found] == [1, 2]
    # The strongest point of the matched filter lies in the direction of the lone strong source.
    error = found[0].position[0, :2] - scenes.position[0, 0, :2]
    assert float(error.abs().max()) < math.radians(10)


@pytest.mark.parametrize("array", [SensorArray.rectangular(8, 6), SensorArray.rectangular(10, 8, spacing_m=0.075)])
def test_decoupled_music_is_exact_for_fresnel_wavefronts(array):
    """With doubled spacings of a wavelength (aliases) and of half a wavelength (none)."""
    config = dataclasses.replace(
        CONFIG,
        array=array,
        n_sources=(1, 3),
        wavefront="fresnel",
        range_m=(1.0, 2.5),
        min_separation_rad=math.radians(25),
    )
    scenes = generate_scenes(config, 4, range(8), dtype=torch.complex128)
    covariance = scenes.true_covariance() + 1e-3 * torch.eye(array.n_elements)
    method = DecoupledMusic(Setup(array, SETUP.region, "fresnel"), DecoupledMusicOptions(share=0.75))
    for b in range(8):
        found = method.of_covariance(covariance[b : b + 1], int(scenes.n_sources[b]))[0]
        pairs = match(found.position, scenes.position[b][scenes.mask[b]])
        assert pairs.hits == int(scenes.n_sources[b])
        assert float(np.abs(pairs.error[:, :2]).max()) < math.radians(0.5)


def test_decoupled_music_serves_spherical_waves_from_four_metres_on():
    config = SystemConfig(n_sources=(1, 4), range_m=(4.0, 10.0), min_separation_rad=math.radians(12))
    scenes = generate_scenes(config, 3, range(6), dtype=torch.complex128)
    covariance = scenes.true_covariance() + 1e-3 * torch.eye(144)
    method = DecoupledMusic(REFERENCE)
    for b in range(6):
        found = method.of_covariance(covariance[b : b + 1], int(scenes.n_sources[b]))[0]
        assert match(found.position, scenes.position[b][scenes.mask[b]]).hits == int(scenes.n_sources[b])


@pytest.mark.parametrize("spacing_m", [0.15, 0.075])
def test_separate_angles_are_paired_where_two_sources_share_one(spacing_m):
    """With doubled spacings of a wavelength (aliases) and of half a wavelength (none)."""
    position = torch.tensor([[0.35, 0.15, 5.0], [0.35, -0.2, 6.0], [-0.3, -0.2, 8.0]], dtype=torch.float64)
    array = SensorArray.rectangular(12, 12, spacing_m=spacing_m)
    a = torch.as_tensor(oracles.steering(array.positions_m.numpy(), array.wavelength_m, position.numpy(), "fresnel"))
    covariance = a.mT @ a.conj() + 1e-3 * torch.eye(144)
    setup = Setup(array, REFERENCE.region, "fresnel")
    found = DecoupledMusic(setup, SeparableMusicOptions()).of_covariance(covariance[None], 3)[0]
    pairs = match(found.position, position)
    assert pairs.hits == 3
    assert float(np.abs(pairs.error[:, :2]).max()) < math.radians(0.5)


def test_a_range_sweep_ends_at_the_deepest_null():
    sweep = RangeSweep(SETUP, 60)
    a = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, np.array([[0.3, -0.1, 1.37]]))[0]
    u = a / np.linalg.norm(a)
    null, r = sweep.deepest(torch.as_tensor(u.conj())[None], 0.3, -0.1)
    assert r == pytest.approx(1.37, abs=2e-3)
    assert null == pytest.approx(0.0, abs=1e-6)
    null, r = sweep.deepest(torch.as_tensor(u.conj())[None], 0.1, 0.2)
    ranges = np.linspace(0.7, 3.5, 2001)
    points = np.column_stack([np.full(2001, 0.1), np.full(2001, 0.2), ranges])
    steering = oracles.steering(ARRAY.positions_m.numpy(), ARRAY.wavelength_m, points)
    exact = 1 - np.abs(steering @ u.conj()) ** 2 / 36
    assert null == pytest.approx(exact.min(), abs=1e-5)
    assert r == pytest.approx(ranges[exact.argmin()], abs=2e-2)


def test_range_music_is_exact_for_plane_waves_and_wrong_near_the_surface():
    array = SensorArray.rectangular(8, 8)
    far, near = (1000.0, 0.8)
    errors = {}
    for r in (far, near):
        points = np.array([[0.4, 0.2, r], [-0.5, -0.1, 1.1 * r]])
        a = torch.as_tensor(oracles.steering(array.positions_m.numpy(), array.wavelength_m, points))
        covariance = (a.mT @ a.conj() + 1e-4 * torch.eye(64))[None]
        setup = Setup(array, Region(**WIDE, range_m=(0.5, math.inf)))
        found = RangeMusic(setup).of_covariance(covariance, 2)[0]
        pairs = match(found.position, torch.as_tensor(points))
        errors[r] = float(np.abs(pairs.error[:, :2]).max())
    assert errors[far] < math.radians(0.05)
    assert errors[near] > math.radians(0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"criterion": "bic"},
        {"max_sources": 0},
        {"n_ranges": 2},
    ],
)
def test_range_music_refuses_wrong_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RangeMusicOptions(**wrong)
    with pytest.raises(ValueError, match="directions"):
        DecoupledMusicOptions(directions="both")


def test_decoupled_music_keeps_to_its_field_of_view():
    array = SensorArray.rectangular(8, 8, spacing_m=0.075)  # no aliases: most phases belong to nothing in view
    setup = Setup(array, Region((-0.1, 0.5), (-0.05, 0.35), (0.7, 3.5)))
    noise = torch.as_tensor(oracles.wishart(np.random.default_rng(0), 64, 20))[None]
    found = DecoupledMusic(setup).of_covariance(noise, 6)[0]
    assert len(found) == 6
    region = setup.region
    intervals = (region.azimuth_rad, region.elevation_rad, region.range_m)
    for values, (low, high) in zip(found.position.T, intervals, strict=True):
        assert float(values.min()) >= low - 1e-9
        assert float(values.max()) <= high + 1e-9


def test_decoupled_music_does_not_mind_the_order_of_the_elements():
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    shuffled = SensorArray(ARRAY.positions_m[order], ARRAY.wavelength_m)
    scenes = some(0, 1)
    covariance = scenes.true_covariance()
    plain = DecoupledMusic(SETUP).of_covariance(covariance, 1)[0]
    turned = DecoupledMusic(SETUP.replace(array=shuffled)).of_covariance(covariance[:, order][:, :, order], 1)[0]
    np.testing.assert_allclose(turned.position.numpy(), plain.position.numpy(), rtol=1e-5)


def test_decoupled_music_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="uniform planar lattice"):
        DecoupledMusic(SETUP.replace(array=SensorArray(torch.rand(9, 3), 0.3)))
    with pytest.raises(ValueError, match="uniform planar lattice"):
        DecoupledMusic(SETUP.replace(array=SensorArray.linear(8, 0.15, 0.3)))
    method = DecoupledMusic(SETUP)
    assert method.most_sources == 9  # 3 x 3 parts of 4 x 4
    with pytest.raises(ValueError, match=r"1 \.\. 9"):
        method.of_covariance(torch.eye(36, dtype=torch.complex64)[None], 10)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "transformer_capon"])
def test_region_and_wavefront_are_those_of_the_setup(name):
    """Away from the middle, on a quarter of the directions, with a plane wave: a direction, and no range."""
    region = Region((0.1, 0.7), (-0.4, 0.0), (1.0, math.inf))
    setup = Setup(ARRAY, region, "planar")
    config = dataclasses.replace(CONFIG, azimuth_rad=(0.2, 0.6), elevation_rad=(-0.3, -0.1), wavefront="planar")
    scenes = generate_scenes(config, 5, range(2))
    baseline = build_baseline(name, setup)
    if name == "true_capon":
        baseline = baseline.with_truth(scenes.true_covariance())
    found = baseline.localize(Measurement.of(scenes), scenes.n_sources)
    for sources, position in zip(found, scenes.position, strict=True):
        assert sources.range.isnan().all()
        assert match(sources.position, position, setup.tolerance).hits == 1
    count = 1 if name == "separable_music" else 3  # its pairs of angles are few in so small a region
    for sources in baseline.localize(Measurement.of(scenes), torch.tensor([count, count])):
        assert len(sources) == count
        assert bool(((sources.azimuth >= 0.1 - 1e-6) & (sources.azimuth <= 0.7 + 1e-6)).all())
        assert bool(((sources.elevation >= -0.4 - 1e-6) & (sources.elevation <= 1e-6)).all())


def test_a_point_at_infinity_is_near_another_there():
    axes = [torch.tensor([0.0, 0.1, 0.4]), torch.tensor([0.0]), torch.tensor([1.0, math.inf])]
    volume = torch.tensor([[[1.0, 9.0]], [[2.0, 8.0]], [[3.0, 7.0]]])
    full = completed(sources_at([[0.0, 0.0, math.inf, 9.5]]), 2, axes, volume, (0.15, 0.15, 0.5))
    assert full.power.tolist() == [9.5, 7.0]
