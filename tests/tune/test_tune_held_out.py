"""What a study of detection found is held against no tuning at all, on scenes that no trial has seen."""

from __future__ import annotations

import dataclasses

import pytest
from test_tune_cached import model, study  # noqa: F401 - model is a fixture

from risfast.evaluate.figures import bootstrap_difference, figures
from risfast.evaluate.metrics import score_scenes
from risfast.localize import Localizer, pipeline
from risfast.localize.pipeline import CandidateOptions
from risfast.simulate.scenes import generate_scenes
from risfast.tune.objectives import judging_scenes
from risfast.tune.options import HpoConfig
from risfast.tune.results import held_out, held_out_text
from risfast.tune.study import slot_seed


def localised(config, scenes, **own):
    options = dataclasses.replace(config.base.pipeline, candidates=CandidateOptions(own=own))
    localizer = Localizer.load(config.model, options=options)
    found = localizer.localize(pipeline.measure(scenes))
    return score_scenes(found, scenes, tolerance=localizer.setup.tolerance)


def test_both_are_judged_by_the_localizer_on_the_same_scenes_of_another_seed(model, tmp_path):  # noqa: F811
    config = study(model)
    found = held_out(config, {"candidates.own.threshold": 0.05, "candidates.own.max_sources": 4}, 7, tmp_path)
    system = judging_scenes(config)["L8"].config
    scenes = generate_scenes(system, slot_seed(config.score.seed, 0), range(7))
    tuned, untuned = localised(config, scenes, threshold=0.05, max_sources=4), localised(config, scenes)
    assert found.scenes == 7
    for name in ("f1", "precision", "recall", "rmse_xyz_pairs_m", "estimates"):
        assert found.tuned[name] == pytest.approx(figures(tuned)[name], nan_ok=True)
        assert found.untuned[name] == pytest.approx(figures(untuned)[name], nan_ok=True)
        assert found.difference[name] == pytest.approx(bootstrap_difference(tuned, untuned)[name], nan_ok=True)
    assert found.tuned["estimates"] != found.untuned["estimates"]


def test_no_tuning_has_no_gain(model, tmp_path):  # noqa: F811
    found = held_out(study(model), {}, 5, tmp_path)
    assert all(found.difference["f1"][i] == 0.0 for i in range(3))
    text = held_out_text(found)
    assert "on 5 other scenes" in text
    assert "+0.0000 [+0.0000, +0.0000]" in next(line for line in text.splitlines() if line.startswith("f1"))


def test_a_study_of_training_and_a_single_scene_are_refused(model, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="risfast evaluate"):
        held_out(HpoConfig(), {}, 5, tmp_path)
    with pytest.raises(ValueError, match=r"score\.scenes must be at least 2, got 1"):
        held_out(study(model), {}, 1, tmp_path)


def test_scenes_of_the_check_are_none_of_the_study(model):  # noqa: F811
    config = study(model)
    other = dataclasses.replace(config, score=dataclasses.replace(config.score, seed=slot_seed(config.score.seed, 0)))
    one, two = judging_scenes(config)["L8"], judging_scenes(other)["L8"]
    assert not (one.channel == two.channel).all(-1).all(-1).any()
