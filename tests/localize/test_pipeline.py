"""The pipeline: its steps one by one are the whole, and every option does what its formula says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch

from risfast.detect import DetectionOptions, detect_sources
from risfast.geometry import Region, SearchGrid, SensorArray
from risfast.localize import CandidateOptions, DecisionOptions, Localizer, MapOptions, PipelineOptions, pipeline
from risfast.localize.confidence import FEATURES, HitModel
from risfast.localize.pipeline import Parts
from risfast.localize.polish import PolishOptions
from risfast.models import Measurement, build_backbone
from risfast.models.base import CovarianceEstimate
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig, generate_scenes

ARRAY = SensorArray.rectangular(5, 5)
REGION = Region((-0.8, 0.5), (-0.3, 0.5), (0.4, 4.0))
FRESNEL = Setup(ARRAY, REGION, "fresnel")
POINTS = np.array([[0.2, 0.1, 1.5], [-0.5, -0.1, 0.9]])


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(3)
    a = oracles.steering(ARRAY.positions_m.numpy(), 0.3, POINTS, "fresnel")
    x = oracles.complex_normal(rng, 3, 12, 2) @ a
    codes = np.exp(2j * np.pi * rng.random(x.shape))
    channel = oracles.complex_normal(rng, 3, 8, 25)
    y = np.einsum("bmn,bln->blm", channel, codes * x)
    y = y + 0.4 * oracles.complex_normal(rng, *y.shape)
    return Measurement(*map(torch.tensor, (y, codes, channel)))


def parts_of(setup=FRESNEL, calibration=None):
    return Parts(Localizer.classical(setup).backbone, setup, calibration)


@pytest.fixture(scope="module")
def found(measured):
    with torch.no_grad():
        return parts_of().backbone(measured)


def equal(one, other):
    assert len(one) == len(other)
    assert sum(map(len, one)) > 0
    for a, b in zip(one, other, strict=True):
        for name in ("azimuth", "elevation", "range", "power", "confidence", "prominence_db", "at_edge"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


LOOSE = DetectionOptions(max_db=6.0, mad_z=None)
CAPON = CandidateOptions(source="capon", detection=LOOSE, polished_detection=LOOSE)
COARSE = MapOptions(points_per_beam=12.0, loading=3e-2, blend=0.3, shrinkage=True)
OPTIONS = {
    "defaults": PipelineOptions(),
    "capon": PipelineOptions(map=COARSE, candidates=CAPON),
    "capon alone": PipelineOptions(map=COARSE, candidates=CAPON, polished=False),
    "own alone": PipelineOptions(candidates=CandidateOptions(own={"max_db": 6.0}), polished=False),
    "few births": PipelineOptions(polish=PolishOptions(births=1, penalty=1.0, range_points=16)),
    "one": PipelineOptions(decision=DecisionOptions(max_sources=1)),
}


@pytest.mark.parametrize("n_sources", [None, torch.tensor([1, 2, 3])])
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_steps_one_by_one_are_the_whole(measured, name, n_sources):
    options, parts = OPTIONS[name], parts_of()
    whole = pipeline.run(parts, measured, options, n_sources)
    found = pipeline.estimate(parts, measured)
    starts, refused = pipeline.candidates(parts, measured, found, options)
    assert torch.equal(whole.factor, found.factor)
    assert whole.refused == refused == ()
    assert whole.setup is FRESNEL
    if not options.polished:
        equal(whole.sources, starts if n_sources is None else [s[:k] for s, k in zip(starts, n_sources, strict=True)])
        assert whole.position_covariance is None
        return
    polished = pipeline.polish(parts, measured, starts, found, options)
    decided = pipeline.decide(parts, measured, polished, found, options, n_sources)
    equal(whole.sources, decided.sources)
    assert torch.equal(whole.noise_power, decided.noise_power)
    for one, other in zip(whole.position_covariance, decided.covariance, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_the_localizer_calls_the_pipeline(measured):
    options = OPTIONS["capon"]
    parts = parts_of()
    equal(
        Localizer(parts.backbone, FRESNEL, options).localize(measured), pipeline.run(parts, measured, options).sources
    )


def covariances(found):
    factor = found.factor.numpy().astype(complex)
    return factor @ factor.conj().swapaxes(1, 2)


def of_trace_n(r):
    r = (r + r.conj().swapaxes(1, 2)) / 2
    return r * (r.shape[-1] / np.trace(r, axis1=1, axis2=2).real)[:, None, None]


def least_squares(measured, noise):
    """mean_l x_l x_l^H of ridge regressions, the ridge sigma^2 over the power of an element."""
    covariance = []
    given = (measured.y.numpy(), measured.codes.numpy(), measured.channel.numpy(), noise)
    for y, codes, h, sigma2 in zip(*given, strict=True):
        gain = np.mean([np.sum(np.abs(h * c) ** 2) / len(h) for c in codes])
        element = max(np.mean(np.abs(y) ** 2) - sigma2, 0.01 * np.mean(np.abs(y) ** 2)) / gain
        x = []
        for row, c in zip(y, codes, strict=True):
            phi = h * c
            ridge = max(sigma2 / element, 1e-6 * gain)
            x.append(phi.conj().T @ np.linalg.solve(phi @ phi.conj().T + ridge * np.eye(len(h)), row))
        x = np.array(x)
        covariance.append(x.T @ x.conj() / len(x))
    return np.array(covariance)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("blend", "shrinkage"), [(0.0, False), (0.4, False), (0.0, True), (0.25, True), (1.0, False)])
def test_the_covariance_of_the_map_is_the_formula(measured, found, blend, shrinkage, known):
    options = PipelineOptions(map=MapOptions(blend=blend, shrinkage=shrinkage))
    noise = found.noise_power.numpy().astype(float)
    if known:
        noise = np.array([0.1, 0.16, 0.3])
        measured = replace(measured, noise_power=torch.tensor(noise))
    expected = (1 - blend) * of_trace_n(covariances(found)) + blend * of_trace_n(least_squares(measured, noise))
    if shrinkage:
        received = np.mean(np.abs(measured.y.numpy()) ** 2, axis=(1, 2))
        snr = received / noise - 1
        keep = (snr / (1 + snr))[:, None, None]
        expected = keep * expected + (1 - keep) * np.eye(25)
    actual = pipeline.effective(found, measured, options).numpy()
    np.testing.assert_allclose(actual, expected, atol=2e-5 * 25)
    np.testing.assert_allclose(np.trace(actual, axis1=1, axis2=2), 25, rtol=1e-5)


def test_blend_and_shrinkage_need_the_measurement(found):
    assert pipeline.effective(found, None, PipelineOptions()).shape == (3, 25, 25)
    for options in (MapOptions(blend=0.1), MapOptions(shrinkage=True)):
        with pytest.raises(ValueError, match="need the measurement"):
            pipeline.effective(found, None, PipelineOptions(map=options))


@pytest.mark.parametrize("wavefront", ["fresnel", "spherical", "planar"])
@pytest.mark.parametrize("loading", [1e-2, 1e-1])
def test_the_map_is_that_of_the_setup(measured, found, wavefront, loading):
    setup = FRESNEL.replace(wavefront=wavefront)
    options = PipelineOptions(map=MapOptions(points_per_beam=3.0, loading=loading))
    matrix = pipeline.effective(found, measured, options)
    map_, grid = pipeline.spectrum(matrix, setup, options)
    assert grid == setup.search_grid(3.0) == options.grid(setup)
    box = oracles.box(grid.azimuth_rad, grid.elevation_rad, grid.range_m)
    a = oracles.steering(ARRAY.positions_m.numpy(), 0.3, box, wavefront)
    power, plane = oracles.maximum_over_planes(oracles.capon(matrix.numpy(), a, loading))
    assert oracles.worst_db(map_.power, power) < 0.01
    assert (map_.plane.numpy() == plane).mean() > 0.95


@pytest.mark.parametrize("polished", [True, False])
def test_capon_candidates_are_the_detections_on_the_grid_of_the_setup(measured, found, polished):
    mine = CandidateOptions(source="capon", detection=LOOSE, polished_detection=DetectionOptions(max_db=9.0))
    options = PipelineOptions(map=MapOptions(points_per_beam=11.0, loading=2e-2), candidates=mine, polished=polished)
    starts, _ = pipeline.candidates(parts_of(), measured, found, options)
    matrix = pipeline.effective(found, measured, options)
    # The same grid from its definition: angles as the aperture resolves them, planes uniform in 1/range.
    extent = 0.15 * math.hypot(4, 0)
    counts = [
        math.ceil((high - low) * extent / 0.3 * 11.0 - 1e-6) + 1
        for low, high in (REGION.azimuth_rad, REGION.elevation_rad)
    ]
    n_planes = math.ceil((1 / 0.4 - 1 / 4.0) * math.pi / 0.3 * 2 * 0.3**2 / 4.6) + 1
    planes = 1 / np.linspace(1 / 0.4, 1 / 4.0, n_planes)
    planes[0], planes[-1] = REGION.range_m
    grid = SearchGrid(
        np.linspace(*REGION.azimuth_rad, counts[0]), np.linspace(*REGION.elevation_rad, counts[1]), planes
    )
    assert grid.shape == options.grid(FRESNEL).shape
    detection = mine.polished_detection if polished else mine.detection
    expected = detect_sources(matrix, FRESNEL, grid, loading=2e-2, options=detection)
    assert [len(s) for s in starts] == [len(s) for s in expected]
    for one, other in zip(starts, expected, strict=True):
        np.testing.assert_allclose(one.position, other.position, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.power, other.power, rtol=1e-5)
        inside = [REGION.azimuth_rad, REGION.elevation_rad, REGION.range_m]
        for axis, (low, high) in enumerate(inside):
            assert ((one.position[:, axis] >= low) & (one.position[:, axis] <= high)).all()
    elsewhere = detect_sources(matrix, FRESNEL.replace(wavefront="spherical"), grid, loading=2e-2, options=detection)
    assert any(
        len(a) != len(b) or not np.allclose(a.position, b.position, atol=1e-4)
        for a, b in zip(starts, elsewhere, strict=True)
    )


def test_cached_peaks_are_the_same_candidates(measured, found):
    options = OPTIONS["capon"]
    matrix = pipeline.effective(found, measured, options)
    peaks = pipeline.map_peaks(matrix, FRESNEL, options)
    equal(
        pipeline.candidates(parts_of(), measured, found, options, peaks)[0],
        pipeline.candidates(parts_of(), measured, found, options)[0],
    )
    equal(pipeline.capon_peaks(matrix, FRESNEL, options), pipeline.chosen_peaks(peaks, FRESNEL, options))


@pytest.mark.parametrize("most", [1, 2])
@torch.no_grad()
def test_of_more_sources_the_strongest_are_reported(measured, most):
    loose = PipelineOptions(polish=PolishOptions(penalty=0.1))
    free = pipeline.run(parts_of(), measured, loose)
    assert all(len(s) > most for s in free.sources)
    few = pipeline.run(parts_of(), measured, replace(loose, decision=DecisionOptions(max_sources=most)))
    equal(few.sources, [s[:most] for s in free.sources])
    for one, other, sources in zip(few.position_covariance, free.position_covariance, few.sources, strict=True):
        assert torch.equal(one, other[:most])
        assert (sources.power.diff() <= 0).all()


@pytest.fixture(scope="module")
def learned():
    """An untrained network, whose map of counts is flat, and a calibration that goes by the gain alone."""
    small = {"steps": 2, "width": 4, "head_width": 4, "axes": {"n_azimuth": 9, "n_elevation": 7, "n_range": 4}}
    setup = Setup(ARRAY, REGION)
    torch.manual_seed(0)
    backbone = build_backbone("unrolled", setup, small)
    weights = [0.0] * len(FEATURES)
    weights[FEATURES.index("log gain")] = 1.0
    return Parts(backbone.eval(), setup, HitModel(tuple(weights), -3.0))


@torch.no_grad()
def test_confidence_decides_what_is_kept_unless_the_number_is_known(measured, learned):
    everything = PipelineOptions(polish=PolishOptions(penalty=0.1), decision=DecisionOptions(least_confidence=0.0))
    free = pipeline.run(learned, measured, everything)
    confidences = torch.cat([s.confidence for s in free.sources])
    least = float(confidences.median())
    strict = replace(everything, decision=DecisionOptions(least_confidence=least))
    kept = pipeline.run(learned, measured, strict)
    equal(kept.sources, [s[s.confidence >= least] for s in free.sources])
    assert 0 < sum(map(len, kept.sources)) < len(confidences)
    counts = torch.tensor([1, 1, 2])
    known = pipeline.run(learned, measured, strict, counts)
    for sources, count, all_of_them in zip(known.sources, counts.tolist(), free.sources, strict=True):
        best = all_of_them.confidence.sort(descending=True).values[:count]
        np.testing.assert_array_equal(sources.confidence.sort(descending=True).values, best)


@torch.no_grad()
def test_the_noise_is_told_only_where_the_options_say_so():
    scenes = generate_scenes(SystemConfig(array=ARRAY, n_antennas=6, n_snapshots=8), 0, range(2))
    assert pipeline.measure(scenes).noise_power is None
    assert pipeline.measure(scenes, PipelineOptions()).noise_power is None
    told = pipeline.measure(scenes, PipelineOptions(noise_known=True))
    assert torch.equal(told.noise_power, scenes.noise_power)
    assert {name for name in vars(told)} == {"y", "codes", "channel", "noise_power", "pooled"}


@torch.no_grad()
def test_an_empty_batch_passes_every_step(measured):
    result = pipeline.run(parts_of(), measured[:0], OPTIONS["capon"])
    assert result.sources == result.position_covariance == []
    assert result.factor.shape[0] == 0


@torch.no_grad()
def test_candidates_of_planar_waves_have_no_range_without_polish(measured):
    planar = Setup(ARRAY, REGION, "planar")
    options = PipelineOptions(candidates=CAPON, polished=False)
    for sources in pipeline.run(parts_of(planar), measured, options).sources:
        assert len(sources) > 0
        assert sources.range.isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MapOptions(points_per_beam=0.0), "points_per_beam"),
        (lambda: MapOptions(points_per_beam=math.nan), "points_per_beam"),
        (lambda: MapOptions(most_points=0), "most_points"),
        (lambda: MapOptions(loading=-1.0), "loading"),
        (lambda: MapOptions(blend=1.5), "blend"),
        (lambda: MapOptions(blend=math.nan), "blend"),
        (lambda: CandidateOptions(source="music"), "candidates.source must be one of own, capon, refined"),
        (lambda: CandidateOptions(least_count=0.0), "least_count"),
        (lambda: DecisionOptions(least_confidence=1.0), "least_confidence"),
        (lambda: DecisionOptions(least_confidence=math.nan), "least_confidence"),
        (lambda: DecisionOptions(max_sources=0), "max_sources"),
        (lambda: PipelineOptions(scenes_at_once=0), "scenes_at_once"),
        (lambda: PolishOptions(range_points=1), "range_points"),
        (lambda: PolishOptions(range_mass=1.5), "range_mass"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refined_candidates_need_a_refiner(measured, found):
    options = PipelineOptions(candidates=CandidateOptions(source="refined"))
    with pytest.raises(ValueError, match="no refiner"):
        pipeline.candidates(parts_of(), measured, found, options)
    assert isinstance(found, CovarianceEstimate)
