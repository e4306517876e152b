"""Detection that is tuned on cached estimates is the detection of production, and what it finds is a file for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save

from risfast.detect import DetectionOptions, RefinedPeaks
from risfast.evaluate.metrics import score_scenes
from risfast.geometry import Region, SensorArray
from risfast.io import read_options, write_options
from risfast.localize import Localizer, pipeline
from risfast.localize.localizer import OPTIONS_FILE
from risfast.localize.pipeline import CandidateOptions, MapOptions, PipelineOptions
from risfast.localize.polish import PolishOptions
from risfast.models import build_backbone
from risfast.models.files import save_model
from risfast.setup import Tolerance
from risfast.simulate.system_file import SystemOptions
from risfast.train.config import DataOptions, RunConfig, ValidationOptions
from risfast.tune.objectives import DetectionObjective, _read_peaks, farthest_m, final_value, judging_scenes
from risfast.tune.options import HpoConfig, ScoreOptions, StudyError
from risfast.tune.results import write_best, write_study
from risfast.tune.space import pipeline_options
from risfast.tune.study import finished_trials, open_study, work

OPTIONS = {"steps": 2, "width": 4, "head_width": 4, "range_cells": 2, "columns": 8}
MAP = MapOptions(points_per_beam=6.0)
FEW = DetectionOptions(candidates=6, refine_points=(9, 9, 9))
BASE = RunConfig(
    system=SystemOptions(
        n_h=5, n_v=4, n_antennas=4, n_sources=(1, 2), azimuth_deg=(-50.0, 40.0), range_m=(0.4, 6.0), wavefront="fresnel"
    ),
    data=DataOptions(snapshots=(8,), weights=(1.0,)),
    validation=ValidationOptions(snapshots=(8,)),
)
SETUP = BASE.system.setup()


def saved_model(folder, setup=SETUP, **options):
    torch.manual_seed(0)
    module = build_backbone("unrolled", setup, {**OPTIONS, **options})
    with torch.no_grad():  # an untrained head expects the same everywhere
        for parameter in module.head.parameters() if module.settings.corrections else ():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_model(folder, "unrolled", module.state_dict(), setup, module.options(), {})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """One folder of cached peaks for many trials."""
    return tmp_path_factory.mktemp("peaks")


def study(model, source="own", polished=False, **changes):
    candidates = CandidateOptions(source, detection=FEW, polished_detection=FEW)
    polish = PolishOptions(iterations=3, births=1, max_sources=4, range_points=8)
    options = PipelineOptions(MAP, candidates, polish, polished=polished, scenes_at_once=3)
    base = dataclasses.replace(BASE, pipeline=options)
    return HpoConfig(what="detection", base=base, model=str(model), **{"score": ScoreOptions(scenes=4), **changes})


def same(one, other):
    """Bit for bit, NaN included."""
    for a, b in zip(one, other, strict=True):
        assert len(a) == len(b)
        for name in ("position", "power", "confidence", "prominence_db", "at_edge"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)


def report(step, value):
    raise AssertionError("detection has no intermediate values")


def answers(model, scenes, options):
    """Of production: blind, on the model's folder, with nothing cached."""
    return Localizer.load(model, options=options).localize(pipeline.measure(scenes))


@pytest.mark.parametrize("threshold", [0.05, 0.08, 0.5])
@pytest.mark.parametrize("most", [4, 12])
def test_own_detection_is_the_localizers(model, tmp_path, threshold, most):
    config = study(model)
    objective = DetectionObjective(config, tmp_path)
    scenes = judging_scenes(config)["L8"]
    choice = {"candidates.own.threshold": threshold, "candidates.own.max_sources": most}
    own = CandidateOptions(own={"threshold": threshold, "max_sources": most})
    expected = answers(model, scenes, dataclasses.replace(config.base.pipeline, candidates=own))
    assert any(len(found) for found in expected) or threshold == 0.5
    same(objective.sources("L8", choice), expected)
    value = objective(choice, 0, tmp_path / "trial", report).value
    scores = score_scenes(expected, scenes, tolerance=SETUP.tolerance)
    assert value == final_value({"L8": scores}, config.score, farthest_m(SETUP)).value


def test_polished_detection_is_the_localizers(model, tmp_path):
    config = study(model, polished=True)
    objective = DetectionObjective(config, tmp_path)
    choice = {"candidates.least_count": 0.2, "polish.penalty": 1.0, "polish.births": 0}
    start = config.base.pipeline
    polish = dataclasses.replace(start.polish, penalty=1.0, births=0)
    options = dataclasses.replace(start, candidates=CandidateOptions(least_count=0.2), polish=polish)
    expected = answers(model, judging_scenes(config)["L8"], options)
    for _ in range(2):  # the second time from memory
        same(objective.sources("L8", choice), expected)


NARROW = {"max_db": 30.0, "mad_z": 0.0, "prominence_db": 0.0, "separation_rad": 0.01, "separation_m": 0.2}
WIDE = {"max_db": 30.0, "mad_z": 0.0, "prominence_db": 3.0, "separation_rad": 0.3, "separation_m": 5.0}


@pytest.mark.parametrize(
    ("polished", "loading", "blend", "changes"),
    [
        (False, 1e-2, 0.0, {"max_db": 20.0, "mad_z": 1.0}),
        (False, 1e-2, 0.0, NARROW),
        (False, 1e-2, 0.0, WIDE),
        (False, 3e-3, 0.2, NARROW),
        (True, 3e-3, 0.2, WIDE),
    ],
)
def test_thresholds_on_cached_peaks_give_what_the_localizer_gives(model, peaks, polished, loading, blend, changes):
    config = study(model, "capon", polished)
    objective = DetectionObjective(config, peaks)
    group = "polished_detection" if polished else "detection"
    choice = {f"candidates.{group}.{name}": value for name, value in changes.items()}
    choice |= {"map.loading": loading, "map.blend": blend}
    start = config.base.pipeline
    detection = dataclasses.replace(getattr(start.candidates, group), **changes)
    options = dataclasses.replace(
        start,
        map=dataclasses.replace(MAP, loading=loading, blend=blend),
        candidates=dataclasses.replace(start.candidates, **{group: detection}),
    )
    expected = answers(model, judging_scenes(config)["L8"], options)
    assert any(len(found) for found in expected)
    same(objective.sources("L8", choice), expected)


def test_capon_peaks_are_kept_for_the_next_worker_and_made_again_when_damaged(model, tmp_path):
    config = study(model, "capon")
    first = DetectionObjective(config, tmp_path).sources("L8", {})
    (kept,) = tmp_path.iterdir()
    time = kept.stat().st_mtime_ns
    same(DetectionObjective(config, tmp_path).sources("L8", {}), first)
    assert kept.stat().st_mtime_ns == time
    kept.write_bytes(kept.read_bytes()[:100])
    same(DetectionObjective(config, tmp_path).sources("L8", {}), first)
    assert kept.stat().st_size > 100


def test_cached_peaks_that_do_not_fit_are_made_again(tmp_path):
    path, good = (
        tmp_path / "peaks.safetensors",
        RefinedPeaks(torch.zeros(3, 5, 3), torch.zeros(3, 5), torch.zeros(3), torch.zeros(3)),
    )
    for changes, fits in (
        ({}, True),
        ({"position": torch.zeros(3, 4, 3)}, False),
        ({"power": torch.zeros(())}, False),
        ({"mad_db": torch.zeros(3, dtype=torch.int64)}, False),
        ({"median_db": torch.zeros(2)}, False),
        ({"more": torch.zeros(2)}, False),
    ):
        path.write_bytes(save({**good._asdict(), **changes}))
        assert (_read_peaks(path, 3) is not None) == fits
    assert _read_peaks(tmp_path / "missing", 3) is None
    assert _read_peaks(tmp_path, 3) is None


def test_peaks_of_another_map_and_of_other_scenes_are_others(model, tmp_path):
    config = study(model, "capon")
    finer = dataclasses.replace(config.base.pipeline, map=dataclasses.replace(MAP, points_per_beam=7.0))
    for changed in (
        config,
        dataclasses.replace(config, base=dataclasses.replace(config.base, pipeline=finer)),
        dataclasses.replace(config, score=ScoreOptions(scenes=4, seed=5)),
    ):
        DetectionObjective(changed, tmp_path).sources("L8", {"candidates.detection.max_db": 20.0})
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("source", "polished"), [("capon", False), ("own", True)])
def test_tuned_options_in_their_file_give_the_answers_that_were_scored(model, tmp_path, source, polished):
    config = study(model, source, polished, trials=3, storage="journal", seed=3)
    objective = DetectionObjective(config, tmp_path / "cache")
    scenes = judging_scenes(config)["L8"]
    with open_study(config, tmp_path) as opened:
        work(opened, objective, lambda line: None)
        files = write_study(opened, tmp_path / "results")
        assert files["options"] == tmp_path / "results" / OPTIONS_FILE
        assert read_options(files["options"]) == pipeline_options(config, finished_trials(opened)[0].params)
        for trial in finished_trials(opened)[:2]:  # one of them at least is not the start
            path = write_best(opened, trial, tmp_path / str(trial.number))["options"]
            found = answers(model, scenes, path)
            same(found, objective.sources("L8", trial.params))
            scores = score_scenes(found, scenes, tolerance=SETUP.tolerance)
            assert final_value({"L8": scores}, config.score, farthest_m(SETUP)).value == trial.value
            assert read_options(path) != config.base.pipeline or trial.number == 0


def test_trials_start_from_the_options_of_the_model_unless_others_are_given(tmp_path):
    folder = saved_model(tmp_path / "model")
    stored = PipelineOptions(map=MAP, candidates=CandidateOptions("capon", detection=FEW), polished=False)
    write_options(folder / OPTIONS_FILE, stored)
    plain = HpoConfig(what="detection", base=BASE, model=str(folder), score=ScoreOptions(scenes=3))
    scenes = judging_scenes(plain)["L8"]
    same(DetectionObjective(plain, tmp_path).sources("L8", {}), answers(folder, scenes, stored))
    given = dataclasses.replace(stored, candidates=CandidateOptions("own"))
    other = dataclasses.replace(plain, base=dataclasses.replace(BASE, pipeline=given))
    same(DetectionObjective(other, tmp_path).sources("L8", {}), answers(folder, scenes, given))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"array": SensorArray.rectangular(5, 4, 0.14, 0.3)}, "array"),
        ({"region": Region(SETUP.region.azimuth_rad, SETUP.region.elevation_rad, (0.4, 7.0))}, "region"),
        ({"wavefront": "spherical"}, "wavefront"),
        ({"tolerance": Tolerance(0.1, 0.1, 0.5)}, "tolerance"),
    ],
)
def test_a_model_of_another_setup_is_refused(tmp_path, changes, what):
    saved_model(tmp_path, SETUP.replace(**changes))
    with pytest.raises(StudyError, match=rf"another {what} than the scenes.*--base\.system\.n-h"):
        DetectionObjective(study(tmp_path), tmp_path)


def test_a_model_without_detection_of_its_own_is_refused(tmp_path):
    saved_model(tmp_path, corrections=False)
    with pytest.raises(StudyError, match=r"--base\.pipeline\.candidates\.source capon"):
        DetectionObjective(study(tmp_path), tmp_path)
