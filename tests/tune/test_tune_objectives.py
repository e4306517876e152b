"""Trials of a training: judged by their validations, or by what the localizer finds with the model."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from optuna import TrialPruned
from tiny_backbone import build, tiny
from tuning_process import without_pictures

from risfast.detect import DetectionOptions
from risfast.evaluate.metrics import score, score_scenes
from risfast.io import read_options
from risfast.io.toml_file import read_toml
from risfast.localize import Localizer, pipeline
from risfast.localize.pipeline import CandidateOptions
from risfast.setup import Tolerance
from risfast.simulate.scenes import generate_scenes
from risfast.simulate.system_file import SystemOptions
from risfast.train.config import BackboneOptions, RunConfig
from risfast.train.loop import TrainingError
from risfast.tune.objectives import TrainingObjective, farthest_m, final_value, scene_sums, value_of_sums
from risfast.tune.options import HpoConfig, ScoreOptions
from risfast.tune.results import write_study
from risfast.tune.study import finished_trials, open_study, work

SMALL = {"steps": 2, "width": 4, "head_width": 4, "range_cells": 2, "columns": 8}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    without_pictures(monkeypatch)


def study(**changes):
    base = tiny()
    raw = dataclasses.replace(base, pipeline=dataclasses.replace(base.pipeline, polished=False))
    return HpoConfig(base=raw, score=ScoreOptions(scenes=4), **changes)


def cartesian(position):
    azimuth, elevation, r = position
    return r * np.array(
        [
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
            math.cos(azimuth) * math.cos(elevation),
        ]
    )


def brute_force(found, true, options, farthest):
    """From the definition, over all assignments: the least sum of squared normalised distances is not asked for here,
    so that scenes with one source and one estimate leave no choice."""
    squared, hits = [], 0
    for (estimate,), (source,) in ((f, t) for f, t in zip(found, true, strict=True) if len(f) and len(t)):
        squared.append(float(np.square(cartesian(estimate) - cartesian(source)).sum()))
        error = np.abs(np.asarray(estimate) - np.asarray(source))
        hits += bool(error[0] <= math.radians(5) and error[1] <= math.radians(5) and error[2] <= 1.0)
    sources, estimates = sum(map(len, true)), sum(map(len, found))
    if not squared:
        return farthest / options.xyz_norm_m + options.f1_weight
    precision, recall = hits / estimates, hits / sources
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return math.sqrt(sum(squared) / len(squared)) / options.xyz_norm_m + options.f1_weight * (1 - f1)


def array(points):
    return np.array(points, dtype=float).reshape(-1, 3)


@pytest.mark.parametrize("options", [ScoreOptions(), ScoreOptions(xyz_norm_m=0.7, f1_weight=3.0)])
def test_final_value_is_its_definition(options):
    true = [[(0.1, 0.2, 2.0)], [(-0.5, 0.0, 5.0)], [(0.7, -0.1, 1.0)], []]
    found = [[(0.12, 0.2, 2.3)], [(0.5, 0.0, 5.0)], [], [(0.0, 0.0, 3.0)]]
    scores = score([array(f) for f in found], [array(t) for t in true])
    result = final_value({"L16": scores}, options, 22.0)
    assert result.value == pytest.approx(brute_force(found, true, options, 22.0), rel=1e-12)
    assert result.attributes["figures"]["f1"] == result.attributes["sets"]["L16"]["f1"]


def test_the_value_of_summed_sets_is_that_of_all_scenes_together():
    rng = np.random.default_rng(0)

    def points(k):
        return np.stack([rng.uniform(-1, 1, k), rng.uniform(-0.5, 0.5, k), rng.uniform(0.5, 9, k)], 1)

    true = [points(k) for k in (1, 2, 3, 0, 2)]
    found = [points(k) for k in (2, 2, 1, 1, 0)]
    options = ScoreOptions()
    together = final_value({"all": score(found, true)}, options, 22.0)
    apart = final_value({"a": score(found[:2], true[:2]), "b": score(found[2:], true[2:])}, options, 22.0)
    assert apart.value == pytest.approx(together.value, rel=1e-12)
    figures = together.attributes["figures"]
    expected = figures["rmse_xyz_pairs_m"] / options.xyz_norm_m + 1 - figures["f1"]
    assert together.value == pytest.approx(expected, rel=1e-12)


def test_nothing_found_has_the_largest_value_and_nothing_to_find_the_smallest():
    options, empty, one = ScoreOptions(), array([]), array([(0.0, 0.0, 2.0)])
    worst = final_value({"L": score([empty], [one])}, options, 22.0).value
    assert worst == 22.0 / options.xyz_norm_m + options.f1_weight
    for other in itertools.product((-1.0, 1.0), (-0.5, 0.5), (0.5, 10.0)):
        assert final_value({"L": score([array([other])], [one])}, options, 22.0).value < worst
    assert final_value({"L": score([empty], [empty])}, options, 22.0).value == 0.0


def test_sums_of_resampled_scenes_give_one_value_each():
    true, found = [array([(0.0, 0.0, 2.0)])] * 3, [array([(0.0, 0.0, 2.0 + 0.3 * i)]) for i in range(3)]
    sums = scene_sums(score(found, true))
    weights = np.eye(3)
    values = value_of_sums({k: weights @ np.array(v) for k, v in sums.items()}, ScoreOptions(), 22.0)
    np.testing.assert_allclose(values, [0.0, 0.03, 0.06], atol=1e-12)


def test_surrogate_reports_each_validation_and_returns_the_best(tmp_path):
    seen = {}
    objective = TrainingObjective(study(), build)
    result = objective({"optimiser.lr": 5e-3}, 7, tmp_path / "trial", seen.__setitem__)
    assert list(seen) == [4, 8, 12]  # validations of twelve steps, every four
    assert result.value == min(seen.values())
    config = read_toml(RunConfig, tmp_path / "trial" / "config.toml")
    assert (config.seed, config.optimiser.lr) == (7, 5e-3)
    assert not (tmp_path / "trial" / "checkpoints").exists()
    assert (tmp_path / "trial" / "model").is_dir()


def test_the_same_choice_and_seed_give_the_same_value_and_another_seed_another(tmp_path):
    objective = TrainingObjective(study(), build)
    values = [objective({}, seed, tmp_path / str(i), lambda *_: None).value for i, seed in enumerate((1, 1, 2))]
    assert values[0] == values[1] != values[2]


def test_a_report_that_prunes_ends_the_training_there(tmp_path):
    def prune(step, value):
        raise TrialPruned

    with pytest.raises(TrialPruned):
        TrainingObjective(study(), build)({}, 0, tmp_path / "trial", prune)
    assert not (tmp_path / "trial" / "model").exists()


def test_final_objective_is_what_the_localizer_finds_on_the_fixed_scenes(tmp_path, monkeypatch):
    config = study(objective="mvdr_final")
    result = TrainingObjective(config, build)({}, 3, tmp_path / "trial", lambda *_: None)
    base = config.base
    scenes = generate_scenes(base.system.system(6, base.data.code_kinds), config.score.seed, range(4))
    monkeypatch.setattr("risfast.localize.localizer.build_backbone", build)
    localizer = Localizer.load(tmp_path / "trial" / "model")  # with the options that are stored there
    assert localizer.options == base.pipeline
    found = localizer.localize(pipeline.measure(scenes))
    scores = score_scenes(found, scenes, tolerance=base.system.setup().tolerance)
    assert result.value == final_value({"L6": scores}, config.score, 2 * base.system.range_m[1]).value
    assert set(result.attributes) >= {"figures", "sets", "sums", "seconds_per_scene", "train_seconds"}


def test_tuned_options_of_the_pipeline_judge_the_training_that_they_were_tuned_with(tmp_path, monkeypatch):
    """The model of the trial keeps them, the file of the results holds them, and both answer what was scored."""
    config = dataclasses.replace(study(objective="mvdr_final"), trials=2, storage="journal", parameters=("map",))
    capon = CandidateOptions("capon", detection=DetectionOptions(candidates=6, refine_points=(9, 9, 9)))
    piped = dataclasses.replace(config.base.pipeline, candidates=capon)
    # The space of the pipeline is that of the default backbone.
    base = dataclasses.replace(config.base, pipeline=piped, backbone=BackboneOptions(options=SMALL))
    config = dataclasses.replace(config, base=base)
    objective = TrainingObjective(config)
    scenes = generate_scenes(base.system.system(6, base.data.code_kinds), config.score.seed, range(4))
    with open_study(config, tmp_path) as opened:
        work(opened, objective, lambda line: None, fixed=[{"map.loading": 0.1, "map.blend": 0.2}])
        files, best = write_study(opened, tmp_path / "results"), finished_trials(opened)[0]
    assert read_toml(RunConfig, files["best"]).pipeline == read_options(files["options"])
    assert read_options(files["options"]).map == dataclasses.replace(piped.map, loading=0.1, blend=0.2)
    (model,) = (tmp_path / "trials").glob("*/model")
    kept = Localizer.load(model)
    given = Localizer.load(model, options=files["options"])
    assert kept.options == given.options
    scores = score_scenes(given.localize(pipeline.measure(scenes)), scenes, tolerance=base.system.setup().tolerance)
    assert final_value({"L6": scores}, config.score, farthest_m(base.system.setup())).value == best.value


@pytest.mark.parametrize("region", [(0.5, 4.0), (0.5, 10.0)])
def test_no_two_points_of_a_region_are_farther_apart_than_the_farthest(region):
    setup = dataclasses.replace(SystemOptions(), range_m=region).setup()
    corners = [cartesian((a, e, r)) for a, e, r in itertools.product((-1.04, 1.04), (-0.52, 0.52), region)]
    widest = max(np.linalg.norm(a - b) for a, b in itertools.combinations(corners, 2))
    assert widest <= farthest_m(setup) == 2 * region[1]


def test_hits_count_where_no_range_is_known():
    """Planar waves tell no range: no distance of a pair is known, and trials still differ by what they hit."""
    anywhere = Tolerance(math.radians(5), math.radians(5), math.inf)
    true = [array([(0.1, 0.2, 2.0)])] * 2
    both = [array([(0.1, 0.2, math.nan)])] * 2
    values = [
        final_value({"L": score(found, true, tolerance=anywhere)}, ScoreOptions(), 20.0).value
        for found in (both, [both[0], array([])], [array([])] * 2)
    ]
    assert values == pytest.approx([2.0, 2.0 + 1 / 3, 3.0])


def test_a_training_that_diverges_says_so(tmp_path):
    base = dataclasses.replace(
        tiny(optimiser={"steps": 60, "lr": 1e6, "warmup": 0, "clip_norm": 0.0, "divergence": 0.01}),
    )
    config = dataclasses.replace(study(), base=base)
    with pytest.raises((TrainingError, FloatingPointError)):
        TrainingObjective(config, build)({}, 0, tmp_path / "trial", lambda *_: None)


def test_judging_scenes_are_no_scenes_of_training_or_validation():
    base = tiny()
    with pytest.raises(ValueError, match=r"score\.seed must differ"):
        HpoConfig(base=base, score=ScoreOptions(seed=base.validation.seed))
    assert torch.is_tensor(TrainingObjective(study(objective="mvdr_final"), build)._scenes["L6"].y)
