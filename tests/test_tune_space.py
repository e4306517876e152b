"""The search space fills real fields, and a choice becomes a configuration."""

from __future__ import annotations

import dataclasses

import pytest

from risfast.localize import LocalizerOptions
from risfast.train.config import BackboneOptions, OptimiserOptions, RunConfig
from risfast.tune.errors import StudyError
from risfast.tune.options import HpoConfig, ScoreOptions
from risfast.tune.space import (
    SPACE,
    Choice,
    Float,
    Int,
    apply,
    check_same_space,
    describe_space,
    read_out_options,
    space_lines,
    study_space,
    untuned,
)


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
    assert not any(name.startswith(("candidates", "detection", "polish")) for name in training)
    final = study_space(HpoConfig(objective="mvdr_final"))
    assert {"candidates.threshold", "polish.penalty"} <= set(final) - set(training)
    capon = study_space(HpoConfig(what="detection", read_out="capon", score=ScoreOptions(polish=False)))
    assert {name.partition(".")[0] for name in capon} == {"covariance", "detection"}
    own = study_space(HpoConfig(what="detection", score=ScoreOptions(polish=False)))
    assert set(own) == {"own.threshold", "own.max_sources"}
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


def test_read_out_options_are_those_of_the_localizer_and_of_the_covariance():
    config = HpoConfig(what="detection", read_out="capon", score=ScoreOptions(polish=False))
    localizer, covariance = read_out_options(config, {"covariance.loading": 3e-3, "detection.max_db": 6.0})
    tuned = dataclasses.replace(LocalizerOptions().detection, max_db=6.0)
    assert localizer == LocalizerOptions(read_out="capon", detection=tuned)
    assert (covariance.loading, covariance.beta) == (3e-3, 0.0)
    polished, _ = read_out_options(HpoConfig(read_out="capon"), {"detection.max_db": 6.0})
    assert polished.capon_candidates == polished.detection == tuned  # what is tuned is what the polish is given


def test_another_space_is_refused_by_the_parameter_that_differs():
    config = HpoConfig(parameters=("objective",))
    check_same_space(space_lines(config), config)
    with pytest.raises(StudyError, match=r"optimiser\.lr differs.*--name"):
        check_same_space(space_lines(HpoConfig(parameters=("objective", "optimiser.lr"))), config)
