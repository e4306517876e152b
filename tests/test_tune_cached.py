"""Detection that is read out of kept estimates is the detection of production."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from risfast.covariance import covariance_from_factor, effective_covariance, ls_covariance
from risfast.detect import DetectionOptions, detect_sources
from risfast.evaluate.metrics import score_scenes
from risfast.geometry import PlanarArray, SearchGrid
from risfast.localize import Localizer, LocalizerOptions
from risfast.model_files import save_model
from risfast.models import build_backbone
from risfast.models.base import Measurement
from risfast.polish import PolishOptions
from risfast.train.config import DataOptions, RunConfig, SystemOptions, ValidationOptions
from risfast.tune.cached import DetectionObjective, capon_peaks, chosen_sources
from risfast.tune.errors import StudyError
from risfast.tune.objectives import farthest_m, final_value, judging_scenes
from risfast.tune.options import HpoConfig, ScoreOptions

OPTIONS = {
    "steps": 2,
    "width": 4,
    "head_width": 4,
    "range_cells": 2,
    "columns": 8,
    "axes": {"n_azimuth": 9, "n_elevation": 7, "n_range": 4},
}
BASE = RunConfig(
    system=SystemOptions(n_h=5, n_v=4, n_antennas=4, n_sources=(1, 2)),
    data=DataOptions(snapshots=(8,), weights=(1.0,)),
    validation=ValidationOptions(snapshots=(8,)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    array = BASE.system.planar_array()
    module = build_backbone("unrolled", array, OPTIONS)
    with torch.no_grad():  # an untrained head expects the same everywhere
        for parameter in module.head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_model(folder, "unrolled", module.state_dict(), array, module.options(), {})
    return folder


def study(model, **changes):
    score = ScoreOptions(scenes=5, polish=changes.pop("polish", False))
    return HpoConfig(what="detection", base=BASE, model=str(model), score=score, **changes)


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert len(a) == len(b)
        torch.testing.assert_close(a.position, b.position, rtol=0, atol=0)
        torch.testing.assert_close(a.confidence, b.confidence, rtol=0, atol=1e-12)


def report(step, value):
    raise AssertionError("detection has no intermediate values")


@pytest.mark.parametrize("threshold", [0.05, 0.08, 0.5])
@pytest.mark.parametrize("most", [4, 12])
def test_own_detection_is_the_localizers(model, tmp_path, threshold, most):
    config = study(model)
    objective = DetectionObjective(config, tmp_path)
    scenes = judging_scenes(config)["L8"]
    choice = {"own.threshold": threshold, "own.max_sources": most}
    localizer = Localizer.load(model, LocalizerOptions(own={"threshold": threshold, "max_sources": most}))
    expected = localizer.localize(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power, polish=False)
    assert any(len(found) for found in expected) or threshold == 0.5
    same(objective.sources("L8", scenes, choice), expected)
    value = objective(choice, 0, tmp_path / "trial", report).value
    scores = score_scenes(expected, scenes)
    assert value == final_value({"L8": scores}, config.score, farthest_m(scenes.config)).value


def test_polished_detection_is_the_localizers(model, tmp_path):
    config = study(model, polish=True)
    objective = DetectionObjective(config, tmp_path)
    scenes = judging_scenes(config)["L8"]
    choice = {"candidates.threshold": 0.1, "polish.penalty": 1.0, "polish.births": 1}
    options = LocalizerOptions(candidates={"threshold": 0.1}, polish=PolishOptions(penalty=1.0, births=1))
    expected = Localizer.load(model, options).localize(
        scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power
    )
    for _ in range(2):  # the second time from memory
        same(objective.sources("L8", scenes, choice), expected)


def covariances(count=4):
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(count, 20, 3, dtype=torch.complex128, generator=generator)
    return effective_covariance(factor @ factor.mH)


@pytest.mark.parametrize(
    "options",
    [
        DetectionOptions(),
        DetectionOptions(max_db=3.0, mad_z=None),
        DetectionOptions(max_db=40.0, mad_z=1.0, prominence_db=0.0),
        DetectionOptions(max_db=40.0, mad_z=None, prominence_db=3.0, separation_rad=0.3, separation_m=5.0),
        DetectionOptions(max_db=40.0, mad_z=0.0, max_sources=2, separation_rad=0.01, separation_m=0.1),
    ],
)
@pytest.mark.parametrize("loading", [1e-2, 1e-3])
def test_thresholds_on_kept_peaks_give_what_detection_gives(options, loading):
    array, grid = PlanarArray.rectangular(5, 4, 0.15, 0.3), SearchGrid.training()
    matrix = covariances()
    peaks = capon_peaks(matrix, array, grid, loading, options)
    same(chosen_sources(peaks, options), detect_sources(matrix, array, grid, loading=loading, options=options))


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_capon_detection_is_that_of_the_effective_covariance(model, tmp_path, beta):
    config = study(model, read_out="capon")
    objective = DetectionObjective(config, tmp_path)
    scenes = judging_scenes(config)["L8"]
    loose = DetectionOptions(max_db=8.0)
    choice = {
        "covariance.loading": 3e-3,
        "covariance.beta": beta,
        "detection.max_db": 8.0,
        "detection.mad_z": loose.mad_z,
        "detection.separation_rad": loose.separation_rad,
    }
    module = Localizer.load(model).backbone
    with torch.no_grad():
        estimate = module(Measurement.of(scenes))
    sample = ls_covariance(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power)
    matrix = effective_covariance(covariance_from_factor(estimate.factor), sample=sample, beta=beta)
    expected = detect_sources(matrix, BASE.system.planar_array(), loading=3e-3, options=loose)
    assert any(len(found) for found in expected)
    same(objective.sources("L8", scenes, choice), expected)


def test_capon_peaks_are_kept_for_the_next_worker_and_made_again_when_damaged(model, tmp_path):
    config = study(model, read_out="capon")
    scenes = judging_scenes(config)["L8"]
    first = DetectionObjective(config, tmp_path).sources("L8", scenes, {})
    (kept,) = tmp_path.iterdir()
    time = kept.stat().st_mtime_ns
    same(DetectionObjective(config, tmp_path).sources("L8", scenes, {}), first)
    assert kept.stat().st_mtime_ns == time
    kept.write_bytes(kept.read_bytes()[:100])
    same(DetectionObjective(config, tmp_path).sources("L8", scenes, {}), first)
    assert kept.stat().st_size > 100


def test_a_model_of_another_array_and_a_read_out_that_it_does_not_have_are_refused(model, tmp_path):
    other = dataclasses.replace(study(model), base=RunConfig())
    with pytest.raises(StudyError, match=r"another array.*--base\.system\.n-h"):
        DetectionObjective(other, tmp_path)
    array = BASE.system.planar_array()
    classical = build_backbone("unrolled", array, {**OPTIONS, "corrections": False})
    save_model(tmp_path / "classical", "unrolled", classical.state_dict(), array, classical.options(), {})
    with pytest.raises(StudyError, match="--read-out capon"):
        DetectionObjective(study(tmp_path / "classical"), tmp_path)
