"""The localizer: from raw arrays to sources, and what it refuses."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from risfast.covariance import effective_covariance, ls_covariance
from risfast.detect import DetectionOptions, detect_sources
from risfast.errors import ShapeError
from risfast.evaluate import match
from risfast.geometry import Region, SearchGrid, SensorArray
from risfast.io.options_file import write_options
from risfast.localize import CandidateOptions, DecisionOptions, Localizer, MapOptions, PipelineOptions, pipeline
from risfast.localize.polish import PolishOptions
from risfast.localize.refiner import Refiner
from risfast.models import Measurement, build_backbone
from risfast.models.files import read_card, save_model
from risfast.models.refiner import GuardResult, RefinerOptions, SpectrumRefiner
from risfast.setup import Setup
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.sources import Sources
from risfast.steering import steering_vectors

ARRAY = SensorArray.rectangular(6, 6)
SETUP = SystemConfig(array=ARRAY).setup
SMALL = {"steps": 2, "width": 4, "head_width": 4, "axes": {"n_azimuth": 9, "n_elevation": 7, "n_range": 4}}
CAPON = CandidateOptions(source="capon")


@pytest.fixture(scope="module")
def localizer():
    return Localizer.classical(SETUP)


def scenes_of(count=3, n_snapshots=16):
    config = SystemConfig(
        array=ARRAY,
        n_antennas=8,
        n_snapshots=n_snapshots,
        n_sources=(2, 2),
        snr_db=(15.0, 15.0),
        range_m=(0.6, 2.0),
        min_separation_rad=math.radians(25),
        code_kinds=("random",),
    )
    return generate_scenes(config, 5, range(count))


def hits_and_ghosts(found, scenes):
    results = [match(s.position, scenes.position[i][scenes.mask[i]]) for i, s in enumerate(found)]
    return sum(r.hits for r in results), sum(r.ghosts for r in results)


def test_the_classical_localizer_finds_strong_sources(localizer):
    scenes = scenes_of()
    found = localizer.localize(scenes.y, scenes.codes, scenes.channel)
    assert hits_and_ghosts(found, scenes) == (6, 0)


def test_numpy_one_scene_and_a_batch_agree(localizer):
    scenes = scenes_of()
    batch = localizer.localize(scenes.y, scenes.codes, scenes.channel)
    arrays = [t[1].numpy().astype(np.complex128) for t in (scenes.y, scenes.codes, scenes.channel)]
    [one] = localizer.localize(*arrays)
    torch.testing.assert_close(one.position, batch[1].position, rtol=1e-3, atol=1e-3)


def test_scenes_at_once_do_not_matter():
    scenes = scenes_of()
    whole = Localizer.classical(SETUP).localize(scenes.y, scenes.codes, scenes.channel)
    options = PipelineOptions(scenes_at_once=2)
    parts = Localizer.classical(SETUP, options=options).localize(scenes.y, scenes.codes, scenes.channel)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.position, b.position, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("polish", [True, False])
def test_the_analysis_holds_covariances_noise_and_times(localizer, polish):
    scenes = scenes_of()
    result = localizer.analyse(scenes.y, scenes.codes, scenes.channel, polish=polish)
    assert result.factor.shape[:2] == (3, 36)
    assert set(result.seconds) == {"backbone", "detection"} | ({"polish"} if polish else set())
    if not polish:
        assert result.position_covariance is None
        return
    for sources, covariance in zip(result.sources, result.position_covariance, strict=True):
        assert covariance.shape == (len(sources), 3, 3)
        assert (torch.linalg.eigvalsh(covariance) > 0).all()
    assert result.setup == SETUP
    assert result.notes == ()
    ratio = result.noise_power / scenes.noise_power
    assert ((ratio > 0.6) & (ratio < 1.6)).all()


def test_capon_peaks_can_be_the_candidates():
    scenes = scenes_of()
    options = PipelineOptions(candidates=CAPON, polish=PolishOptions(births=0))
    found = Localizer.classical(SETUP, options=options).localize(scenes.y, scenes.codes, scenes.channel)
    hits, _ = hits_and_ghosts(found, scenes)
    assert hits >= 5


@pytest.mark.parametrize("shrinkage", [False, True])
def test_capon_candidates_are_those_of_the_blended_covariance(shrinkage):
    scenes = scenes_of()
    detection = DetectionOptions(max_db=9.0, separation_m=0.2)
    options = PipelineOptions(
        map=MapOptions(points_per_beam=12, blend=0.4, loading=3e-3, shrinkage=shrinkage),
        candidates=replace(CAPON, detection=detection),
        polished=False,
    )
    localizer = Localizer.classical(SETUP, options=options)
    measured = (scenes.y, scenes.codes, scenes.channel)
    result = localizer.analyse(*measured)
    noise = localizer.backbone(Measurement(*measured)).noise_power
    fitted = (result.factor @ result.factor.mH).to(torch.complex128)
    sample = ls_covariance(*measured, noise_power=noise).to(torch.complex128)
    snr_db = 10 * (scenes.y.abs().double().square().mean((1, 2)) / noise.double() - 1).log10() if shrinkage else None
    blended = effective_covariance(fitted, sample=sample, beta=0.4, snr_db=snr_db)
    expected = detect_sources(blended, SETUP, SETUP.search_grid(points_per_beam=12), loading=3e-3, options=detection)
    assert sum(map(len, expected)) > 0
    for found, one in zip(result.sources, expected, strict=True):
        torch.testing.assert_close(found.position.double(), one.position, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.prominence_db, one.prominence_db, rtol=1e-3, atol=1e-3)
        assert found.confidence.isnan().all()
    plain = replace(options, map=replace(options.map, blend=0.0, shrinkage=False))
    alone = Localizer.classical(SETUP, options=plain).localize(*measured)
    assert any(
        len(a) != len(b) or not torch.equal(a.power, b.power) for a, b in zip(alone, result.sources, strict=True)
    )


def test_a_refiner_gives_the_candidates_and_what_its_guard_refused_is_told(monkeypatch):
    """The network and its maps stand aside: the truth is what is found, and one scene's map is not believed."""
    scenes = scenes_of()
    found = [
        Sources.at(p[m].double(), torch.ones(int(m.sum())).double())
        for p, m in zip(scenes.position, scenes.mask, strict=True)
    ]
    verdict = GuardResult(torch.tensor([True, False, True]), ((), ("saturated",), ()))
    given = [found[0], Sources.empty(), found[2]]
    monkeypatch.setattr(pipeline, "estimate_maps", lambda *_: None)
    monkeypatch.setattr(pipeline, "refined_sources", lambda *_: (list(given), verdict))
    grid = SearchGrid.box(31, 21, [0.6, 2.0], 0.8, 0.4)
    refiner = Refiner(SpectrumRefiner(RefinerOptions(1, (8, 16), (2,))), grid)
    fit = Localizer.classical(SETUP).backbone
    chosen = CandidateOptions(source="refined", detection=DetectionOptions())
    refined = PipelineOptions(candidates=chosen, polished=False)
    with pytest.warns(UserWarning, match=r"1 of 3 scenes cannot be believed.*scene 1: saturated"):
        result = Localizer(fit, SETUP, refined, refiner=refiner).analyse(scenes.y, scenes.codes, scenes.channel)
    assert result.refused == ((), ("saturated",), ())
    for i in (0, 2):
        torch.testing.assert_close(result.sources[i].position, found[i].position)
    capon = replace(refined, candidates=replace(CAPON, detection=DetectionOptions()))
    peaks = Localizer.classical(SETUP, options=capon).localize(scenes.y, scenes.codes, scenes.channel)
    assert len(peaks[1]) > 0
    torch.testing.assert_close(result.sources[1].position, peaks[1].position)
    own = Localizer(fit, SETUP, refiner=refiner).analyse(scenes.y, scenes.codes, scenes.channel)
    assert own.refused == ()
    with pytest.raises(ValueError, match="needs a refiner"):
        Localizer(fit, SETUP, refined)


@pytest.mark.parametrize("helps", [True, False])
def test_a_refiner_in_the_model_folder_is_loaded_where_it_helps(tmp_path, helps):
    backbone = build_backbone("unrolled", SETUP, SMALL)
    save_model(tmp_path, "unrolled", backbone.state_dict(), SETUP, SMALL, {})
    refiner = SpectrumRefiner(RefinerOptions(1, (8, 16), (2,)))
    axes = {name: axis.tolist() for name, axis in vars(SearchGrid.box(31, 21, [0.6, 2.0], 0.8, 0.4)).items()}
    card = {
        "helps": helps,
        "reading": {"maps": ["capon"], "threshold": 0.25},
        "grid": axes,
        "backbone": {"sha256": read_card(tmp_path)["sha256"]},
    }
    save_model(tmp_path / "refiner", "refiner", refiner.state_dict(), SETUP, refiner.options(), card)
    refined = PipelineOptions(candidates=CandidateOptions(source="refined"))
    if helps:
        loaded = Localizer.load(tmp_path, options=refined).parts.refiner
        assert loaded.reading.threshold == 0.25
        assert loaded.grid.shape == (31, 21, 2)
    else:
        assert Localizer.load(tmp_path).parts.refiner is None
        with pytest.raises(ValueError, match="none whose own test says that it helps"):
            Localizer.load(tmp_path, options=refined)


def test_a_learned_backbone_runs_without_training():
    scenes = scenes_of()
    localizer = Localizer(build_backbone("unrolled", SETUP, SMALL), SETUP)
    assert len(localizer.localize(scenes.y, scenes.codes, scenes.channel)) == 3


def test_the_options_of_a_model_folder_are_its_own_unless_others_are_given(tmp_path):
    backbone = build_backbone("unrolled", SETUP, SMALL)
    save_model(tmp_path, "unrolled", backbone.state_dict(), SETUP, SMALL, {})
    assert Localizer.load(tmp_path).options == PipelineOptions()
    stored = PipelineOptions(map=MapOptions(loading=5e-3), decision=DecisionOptions(max_sources=2))
    write_options(tmp_path / "options.toml", stored)
    loaded = Localizer.load(tmp_path)
    assert loaded.options == stored
    assert loaded.setup == SETUP
    other = PipelineOptions(polished=False)
    assert Localizer.load(tmp_path, options=other).options == other
    write_options(tmp_path / "other.toml", other)
    assert Localizer.load(tmp_path, options=tmp_path / "other.toml").options == other


def test_a_known_count_is_met_and_more_than_are_heard_are_found_too(localizer):
    scenes = scenes_of()
    measured = (scenes.y, scenes.codes, scenes.channel)
    usual = localizer.localize(*measured)
    for counts in (1, np.array([1, 2, 3]), 0):
        found = localizer.localize(*measured, n_sources=counts)
        assert [len(s) for s in found] == np.broadcast_to(counts, 3).tolist()
    two = localizer.localize(*measured, n_sources=2)
    for a, b in zip(two, usual, strict=True):
        torch.testing.assert_close(a.position, b.position)
    for wrong, error, text in (
        (-1, ValueError, "n_sources must hold whole numbers"),
        (1.5, ValueError, "n_sources must hold whole numbers"),
        ([1, 2], ShapeError, "n_sources must be one number or have shape"),
    ):
        with pytest.raises(error, match=text):
            localizer.localize(*measured, n_sources=wrong)


def test_data_at_another_scale_and_in_another_order_are_fitted_to_the_model_and_it_is_said(localizer):
    scenes = scenes_of()
    plain = localizer.analyse(scenes.y, scenes.codes, scenes.channel)
    order = torch.from_numpy(np.random.default_rng(3).permutation(36))
    theirs = SensorArray(ARRAY.positions_m[order] * 0.1, ARRAY.wavelength_m * 0.1)
    moved = localizer.analyse(scenes.y, scenes.codes[..., order], scenes.channel[..., order], array=theirs)
    assert [note.split(":")[0] for note in moved.notes] == ["rescaled", "reordered"]
    assert moved.setup.array == theirs
    assert moved.setup.region.range_m == pytest.approx([0.1 * r for r in SETUP.region.range_m])
    assert moved.setup.tolerance.range_m == pytest.approx(0.1 * SETUP.tolerance.range_m)
    unit = torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64)
    for a, b in zip(moved.sources, plain.sources, strict=True):
        torch.testing.assert_close(a.position, b.position * unit)
        torch.testing.assert_close(a.confidence, b.confidence)
    for a, b in zip(moved.position_covariance, plain.position_covariance, strict=True):
        torch.testing.assert_close(a, b * unit[:, None] * unit)
    torch.testing.assert_close(moved.factor, plain.factor[:, order])
    for other in (SensorArray.rectangular(6, 5), SensorArray(ARRAY.positions_m * 1.02, ARRAY.wavelength_m)):
        with pytest.raises(ValueError, match=r"another array|array of 30 elements"):
            localizer.localize(scenes.y, scenes.codes, scenes.channel, array=other)
    with pytest.raises(ValueError, match="wavefront"):
        localizer.localize(scenes.y, scenes.codes, scenes.channel, array=SETUP.replace(wavefront="fresnel"))


def direct_snapshots(array, position, snapshots=40, noise=0.03):
    generator = torch.Generator().manual_seed(1)
    a = steering_vectors(array, *torch.tensor(position).double().unbind(-1), dtype=torch.complex128)
    emitted, rest = (
        torch.randn(snapshots, n, dtype=torch.complex128, generator=generator) for n in (len(a), array.n_elements)
    )
    return emitted @ a + noise * rest


def test_an_array_that_is_sampled_directly_needs_no_codes():
    truth = [[0.3, -0.1, 1.0], [-0.6, 0.2, 0.7]]
    x = direct_snapshots(ARRAY, truth)
    region = Region((-1.0, 1.0), (-0.5, 0.5), (0.5, 3.0))
    setup = Setup(ARRAY, region, sampling="direct")
    for localizer in (Localizer.classical(setup), Localizer.classical(ARRAY, region=region)):
        [found] = localizer.localize(x)
        assert match(found.position, torch.tensor(truth)).hits == 2
        assert len(found) == 2
    [numpy] = Localizer.classical(setup).localize(x.numpy())
    torch.testing.assert_close(numpy.position, found.position, rtol=1e-3, atol=1e-3)
    scenes = scenes_of()
    with pytest.raises(ValueError, match="sampling of this setup is direct"):
        Localizer.classical(setup).localize(scenes.y, scenes.codes, scenes.channel)
    with pytest.raises(ValueError, match="codes and channel are missing"):
        Localizer.classical(SETUP).localize(x)
    with pytest.raises(ValueError, match="channel is missing"):
        Localizer.classical(SETUP).localize(scenes.y, scenes.codes)
    with pytest.raises(ShapeError):
        Localizer.classical(setup).localize(x[:, :30])


def test_waves_without_curvature_have_directions_and_no_range():
    config = replace(scenes_of().config, wavefront="planar", n_sources=(1, 1))
    scenes = generate_scenes(config, 5, range(2))
    localizer = Localizer.classical(config.setup)
    for polish in (True, False):
        for i, found in enumerate(localizer.localize(scenes.y, scenes.codes, scenes.channel, polish=polish)):
            assert len(found) == 1
            assert found.range.isnan().all()
            assert found.at_edge.tolist() == [False]
            off = (found.position[0, :2] - scenes.position[i, 0, :2].double()).abs()
            assert float(off.max()) < math.radians(5)


def test_an_empty_batch_is_an_empty_list(localizer):
    scenes = scenes_of()
    assert localizer.localize(scenes.y[:0], scenes.codes[:0], scenes.channel[:0]) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": lambda y: y.mT}, ShapeError, "y"),
        ({"codes": lambda c: c.mT}, ShapeError, "codes"),
        ({"channel": lambda h: h.mT}, ShapeError, "channel"),
        ({"y": lambda y: y[0]}, ValueError, "2 dimensions"),
        ({"y": lambda y: y.real}, TypeError, "y must be complex"),
        ({"y": lambda y: y * float("nan")}, ValueError, r"y\[0\] holds values that are not finite"),
        ({"y": lambda y: y * 0}, ValueError, r"y\[0\] is zero"),
        ({"y": lambda y: y[:, :0], "codes": lambda c: c[:, :0]}, ValueError, "no snapshot"),
    ],
)
def test_wrong_measurements_are_refused(localizer, change, error, message):
    scenes = scenes_of(2)
    given = {"y": scenes.y, "codes": scenes.codes, "channel": scenes.channel}
    for name, mutate in change.items():
        given[name] = mutate(given[name])
    with pytest.raises(error, match=message):
        localizer.localize(**given)


@pytest.mark.parametrize("noise", [-3.0, 0.0, float("nan")])
def test_a_noise_power_in_db_is_refused_where_it_is_plain(localizer, noise):
    scenes = scenes_of(2)
    with pytest.raises(ValueError, match="not in dB"):
        localizer.localize(scenes.y, scenes.codes, scenes.channel, noise_power=noise)


def test_a_noise_power_above_what_is_received_is_warned_of(localizer):
    scenes = scenes_of(2)
    level = 20 * float(scenes.y.abs().square().mean())
    with pytest.warns(UserWarning, match="is it in dB"):
        localizer.localize(scenes.y, scenes.codes, scenes.channel, noise_power=level)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        localizer.localize(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power.numpy())


@pytest.mark.parametrize(
    ("make", "wrong", "told"),
    [
        (CandidateOptions, {"source": "music"}, "source must be one of"),
        (CandidateOptions, {"least_count": 0.0}, "least_count"),
        (CandidateOptions, {"least_count": 1.5}, "least_count"),
        (CandidateOptions, {"least_count": math.nan}, "least_count"),
        (MapOptions, {"blend": 1.5}, "blend must lie"),
        (MapOptions, {"loading": -1.0}, "loading must be finite"),
        (MapOptions, {"points_per_beam": 0.0}, "points_per_beam must be positive"),
        (MapOptions, {"most_points": 0}, "most_points"),
        (DecisionOptions, {"least_confidence": 1.0}, "least_confidence"),
        (DecisionOptions, {"max_sources": 0}, "max_sources"),
        (PipelineOptions, {"scenes_at_once": 0}, "scenes_at_once"),
    ],
)
def test_wrong_options_are_refused(make, wrong, told):
    with pytest.raises(ValueError, match=told):
        make(**wrong)


def test_fewer_expected_sources_make_more_candidates():
    scenes = generate_scenes(SystemConfig(n_sources=(3, 5), snr_db=(0.0, 5.0), n_snapshots=16), 12, range(6))
    counts = []
    for least in (0.1, 0.9):
        options = PipelineOptions(
            candidates=CandidateOptions(least_count=least),
            decision=DecisionOptions(least_confidence=0.0),
            polish=PolishOptions(births=0, penalty=0.0),
        )
        localizer = Localizer.from_pretrained(options)
        counts.append(sum(map(len, localizer.localize(scenes.y, scenes.codes, scenes.channel))))
    assert counts[0] > counts[1]
