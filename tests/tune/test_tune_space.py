"""The search space fills real fields, and a choice becomes a configuration."""

from __future__ import annotations

import dataclasses

import pytest

from risfast.localize.pipeline import CandidateOptions, MapOptions, PipelineOptions
from risfast.simulate.system_file import SystemOptions
from risfast.train.config import BackboneOptions, OptimiserOptions, RunConfig
from risfast.tune.options import HpoConfig, StudyError
from risfast.tune.space import (
    SPACE,
    Choice,
    Float,
    Int,
    apply,
    check_same_space,
    describe_space,
    pipeline_options,
    space_lines,
    study_space,
    trial_config,
    tunes_pipeline,
    untuned,
)


def piped(source="own", follows=True, **candidates):
    """A training whose pipeline is this one; a polish follows or not."""
    return RunConfig(pipeline=PipelineOptions(candidates=CandidateOptions(source, **candidates), polished=follows))


def detection(**pipeline):
    return HpoConfig(what="detection", base=piped(**pipeline))


@pytest.mark.parametrize("kind", list(SPACE))
def test_every_parameter_is_a_field_whose_class_takes_both_ends_of_its_range(kind):
    for name, parameter in SPACE[kind].items():
        assert name in {item.name for item in dataclasses.fields(kind)}
        ends = parameter.values if isinstance(parameter, Choice) else (parameter.low, parameter.high)
        for value in ends:
            assert parameter.holds(value)
            extra = {"warmup": {"steps": 1000}}.get(name, {})
            assert getattr(kind(**{name: value, **extra}), name) == value


def test_a_parameter_holds_what_lies_in_it_alone():
    assert Float(1.0, 2.0).holds(1.5)
    assert not Float(1.0, 2.0).holds(2.5)
    assert Int(0, 10, step=5).holds(5)
    assert not Int(0, 10, step=5).holds(6)
    assert not Choice((1, 2)).holds(3)


def test_the_space_follows_what_is_tuned():
    training = study_space(HpoConfig())
    assert "backbone.options.width" in training
    assert "optimiser.lr" in training
    assert not any(name.startswith(("candidates", "map", "polish", "decision")) for name in training)
    assert not tunes_pipeline(HpoConfig())
    final = study_space(HpoConfig(objective="mvdr_final"))
    added = set(final) - set(training)
    assert {"candidates.least_count", "candidates.polished.max_sources", "polish.penalty"} <= added
    assert "candidates.polished.threshold" not in added
    threshold = study_space(detection(polished={"threshold": 0.2}))  # which outranks the least count
    assert "candidates.polished.threshold" in threshold
    assert "candidates.least_count" not in threshold
    assert "decision.least_confidence" in study_space(detection())  # the model that comes with the package has it
    capon = study_space(detection(source="capon", follows=False))
    assert {name.rpartition(".")[0] for name in capon} == {"map", "candidates.detection"}
    both = study_space(detection(source="capon"))
    assert {name.rpartition(".")[0] for name in both} == {"map", "candidates.polished_detection", "polish", "decision"}
    own = study_space(detection(follows=False))
    assert set(own) == {"candidates.own.threshold", "candidates.own.max_sources"}
    assert tunes_pipeline(detection())
    transformer = RunConfig(backbone=BackboneOptions(name="transformer"))
    assert "backbone.options.n_layers" in study_space(HpoConfig(base=transformer))
    started = RunConfig(backbone=BackboneOptions(weights="model"))
    assert not any(name.startswith("backbone") for name in study_space(HpoConfig(base=started)))


@pytest.mark.parametrize("steps", [4, 20, 100, 5000])
def test_no_choice_of_warmup_is_longer_than_the_run(steps):
    config = HpoConfig(base=RunConfig(optimiser=OptimiserOptions(steps=steps, warmup=min(4, steps))))
    warmup = study_space(config).get("optimiser.warmup")
    assert warmup is None or warmup.high <= steps // 4


def test_names_and_groups_choose_parameters_and_an_unknown_one_is_refused_with_those_that_are_known():
    chosen = study_space(HpoConfig(parameters=("objective", "optimiser.lr")))
    assert set(chosen) == {"objective.intensity", "objective.offset", "optimiser.lr"}
    with pytest.raises(ValueError, match=r"'optimiser.learning_rate' is not a parameter.*optimiser.lr.*--show-space"):
        study_space(HpoConfig(parameters=("optimiser.learning_rate",)))


def test_the_table_names_every_parameter_with_its_untuned_value():
    text = describe_space(HpoConfig())
    assert len(text.splitlines()) == len(study_space(HpoConfig())) + 1
    assert "optimiser.lr" in text
    assert untuned(HpoConfig())["optimiser.lr"] == OptimiserOptions().lr
    assert untuned(HpoConfig())["backbone.options.steps"] == 6
    given = RunConfig(backbone=BackboneOptions(options={"steps": 4}))
    assert untuned(HpoConfig(base=given))["backbone.options.steps"] == 4


def test_a_choice_changes_its_fields_and_nothing_else():
    base = RunConfig(backbone=BackboneOptions(options={"columns": 24}))
    choice = {"optimiser.lr": 5e-3, "backbone.options.steps": 4, "polish.penalty": 3.0}
    changed = apply(RunConfig, base, choice)
    assert changed == dataclasses.replace(
        base,
        optimiser=dataclasses.replace(base.optimiser, lr=5e-3),
        backbone=BackboneOptions(options={"columns": 24, "steps": 4}),
    )
    assert base.backbone.options == {"columns": 24}
    with pytest.raises(ValueError, match="lr"):
        apply(RunConfig, base, {"optimiser.lr": -1.0})


@pytest.mark.parametrize("base", [piped(), piped("capon"), piped("capon", False), piped("own", False)])
def test_every_parameter_of_detection_reaches_the_options_of_the_pipeline(base):
    config = HpoConfig(what="detection", base=base)
    for name, parameter in study_space(config).items():
        low = parameter.values[0] if isinstance(parameter, Choice) else parameter.low
        changed = pipeline_options(config, {name: low})
        inner = changed
        for step in name.split("."):
            inner = inner[step] if isinstance(inner, dict) else getattr(inner, step)
        assert inner == low
        assert (changed == base.pipeline) == (untuned(config)[name] == low)


def test_a_separation_in_range_follows_the_tolerance_of_the_setup_and_is_not_tuned_where_range_is_not_scored():
    shorter = dataclasses.replace(piped("capon"), system=SystemOptions(wavelength_m=0.03, spacing_m=0.015))
    name = "candidates.polished_detection.separation_m"
    for base, scale in ((piped("capon"), 1.0), (shorter, 0.1)):
        config = HpoConfig(what="detection", base=base)
        assert study_space(config)[name] == Float(0.2 * scale, 5.0 * scale, log=True)
        assert untuned(config)[name] == pytest.approx(0.5 * scale)
    planar = dataclasses.replace(piped("capon"), system=SystemOptions(wavefront="planar"))
    assert name not in study_space(HpoConfig(what="detection", base=planar))


def test_options_of_the_pipeline_go_with_the_training_that_they_are_tuned_with():
    config = HpoConfig(objective="mvdr_final", base=piped("capon", False))
    choice = {"optimiser.lr": 5e-3, "map.loading": 3e-3, "candidates.detection.max_db": 6.0}
    tuned = trial_config(config, choice)
    assert tuned.optimiser.lr == 5e-3
    assert tuned.pipeline.map == MapOptions(loading=3e-3)
    assert tuned.pipeline == pipeline_options(config, choice)
    assert tuned.pipeline.candidates.detection == dataclasses.replace(CandidateOptions().detection, max_db=6.0)
    assert dataclasses.replace(tuned, pipeline=config.base.pipeline, optimiser=config.base.optimiser) == config.base


def test_another_space_is_refused_by_the_parameter_that_differs():
    config = HpoConfig(parameters=("objective",))
    lines = space_lines(config)
    check_same_space(lines, config)
    with pytest.raises(StudyError, match=r"only this command has objective\.intensity; with another range objective\."):
        check_same_space(["objective.offset in 0 .. 9"], config)
    with pytest.raises(StudyError, match="in another order"):
        check_same_space(lines[::-1], config)
    with pytest.raises(StudyError, match=r"only the study has optimiser\.lr\).*--name"):
        check_same_space(space_lines(HpoConfig(parameters=("objective", "optimiser.lr"))), config)
