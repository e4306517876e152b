"""One path: whoever localises gives the very same answers, under options, waves and a region that are no defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from risfast.detect import DetectionOptions
from risfast.evaluate.matching import match, summarise
from risfast.evaluate.methods import Methods, measurement_of
from risfast.io import write_options
from risfast.localize import Localizer, pipeline
from risfast.localize.localizer import OPTIONS_FILE
from risfast.localize.pipeline import CandidateOptions, DecisionOptions, MapOptions, Parts, PipelineOptions
from risfast.localize.polish import PolishOptions
from risfast.localize.refiner import Refiner
from risfast.models import build_backbone
from risfast.models.files import save_model
from risfast.report.demo import demo_methods
from risfast.report.demo_pictures import LOCALIZER
from risfast.simulate.scenes import Scenes, generate_scenes
from risfast.simulate.system_file import SystemOptions
from risfast.sources import Sources
from risfast.train import confidence, validation
from risfast.train.config import DataOptions, RunConfig, ValidationOptions
from risfast.tune.objectives import DetectionObjective, judging_scenes
from risfast.tune.options import HpoConfig, ScoreOptions

BASE = RunConfig(
    system=SystemOptions(
        n_h=5,
        n_v=4,
        n_antennas=4,
        n_sources=(1, 2),
        snr_db=(5.0, 20.0),
        azimuth_deg=(-50.0, 35.0),
        elevation_deg=(-10.0, 30.0),
        range_m=(0.4, 3.0),
        wavefront="fresnel",
    ),
    data=DataOptions(snapshots=(8,), weights=(1.0,), code_kinds=("random",)),
    validation=ValidationOptions(snapshots=(8,)),
)
SYSTEM = BASE.system.system(8, ("random",))
COUNT, SEED = 5, 17
DETECTION = DetectionOptions(
    max_db=15.0, mad_z=1.0, candidates=6, refine_points=(9, 9, 9), separation_rad=0.15, separation_m=0.3
)


def options_of(source: str, *, polished: bool = True) -> PipelineOptions:
    """Nothing that matters here is as it is by default."""
    return PipelineOptions(
        map=MapOptions(points_per_beam=6.0, loading=3e-3, blend=0.2, shrinkage=True),
        candidates=CandidateOptions(
            source, {"threshold": 0.05, "max_sources": 5}, {"max_sources": 6}, 0.1, DETECTION, DETECTION
        ),
        polish=PolishOptions(iterations=6, births=1, max_sources=5, penalty=1.0, range_points=24),
        decision=DecisionOptions(least_confidence=0.0),
        polished=polished,
        scenes_at_once=COUNT,
    )


def assert_same(one: list[Sources], other: list[Sources]) -> None:
    """Bit for bit, NaN included."""
    assert [len(s) for s in one] == [len(s) for s in other]
    for a, b in zip(one, other, strict=True):
        for item in dataclasses.fields(Sources):
            torch.testing.assert_close(getattr(a, item.name), getattr(b, item.name), rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone that expects something, and not the same everywhere."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    options = {"steps": 3, "width": 4, "head_width": 4, "range_cells": 2, "columns": 8}
    module = build_backbone("unrolled", SYSTEM.setup, options)
    with torch.no_grad():
        for parameter in module.head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_model(folder, "unrolled", module.state_dict(), SYSTEM.setup, module.options(), {})
    return folder


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return generate_scenes(SYSTEM, SEED, range(COUNT))


def answers(model: Path, scenes: Scenes, options: PipelineOptions) -> list[Sources]:
    """What everyone has to give: those of the localizer."""
    found = Localizer.load(model, options=options).localize(scenes.y, scenes.codes, scenes.channel)
    assert any(len(s) for s in found)
    return found


@pytest.mark.parametrize("polished", [True, False])
@pytest.mark.parametrize("source", ["own", "capon"])
def test_the_pipeline_the_suite_and_the_demo_are_the_localizer(
    model: Path, scenes: Scenes, source: str, polished: bool
) -> None:
    options = options_of(source, polished=polished)
    expected = answers(model, scenes, options)
    localizer = Localizer.load(model, options=options)
    measurement = pipeline.measure(scenes, options)
    assert_same(pipeline.run(localizer.parts, measurement, options).sources, expected)
    assert_same(demo_methods(localizer, options.grid(SYSTEM.setup))[LOCALIZER](scenes).sources, expected)
    try:
        write_options(model / OPTIONS_FILE, options)
        method = Methods(model)["localizer" if polished else "localizer_raw"]
        assert_same(method.find(scenes, *measurement_of(scenes, "blind")).sources, expected)
        assert_same(Localizer.load(model).localize(measurement), expected)
    finally:
        (model / OPTIONS_FILE).unlink()


@pytest.mark.parametrize("source", ["own", "capon"])
def test_the_confidence_is_fitted_on_what_the_localizer_polishes(model: Path, scenes: Scenes, source: str) -> None:
    options = options_of(source)
    expected = answers(model, scenes, options)
    subject = dataclasses.replace(confidence.Subject.load(model), options=options, system=SYSTEM)
    labelled = confidence.labelled(subject, SYSTEM.n_snapshots, range(COUNT), SEED)
    hit = []
    for i, sources in enumerate(expected):
        pairs = match(sources.position, scenes.position[i][scenes.mask[i]], SYSTEM.setup.tolerance)
        outcome = np.zeros(len(sources))
        outcome[pairs.pairs[pairs.hit, 0]] = 1.0
        hit.append(outcome)
    assert labelled.hit.tolist() == np.concatenate(hit).tolist()
    with torch.no_grad():
        polished, _ = confidence.polished_scenes(subject, pipeline.measure(scenes, options))
    assert_same(polished.sources, expected)


@pytest.mark.parametrize("source", ["own", "capon"])
def test_validation_scores_what_the_localizer_finds_without_a_polish(model: Path, scenes: Scenes, source: str) -> None:
    options = options_of(source, polished=False)
    expected, capon = answers(model, scenes, options), answers(model, scenes, options_of("capon", polished=False))
    parts = Localizer.load(model, options=options).parts
    measurement = pipeline.measure(scenes, options)
    with torch.no_grad():
        estimate = pipeline.estimate(parts, measurement)
        assert_same(validation.capon_answers(parts, measurement, estimate, options), capon)
        figures, _ = validation.validate(parts, scenes, options, batch_size=COUNT, capon_scenes=COUNT)
    for prefix, found in (("", expected), ("capon_", capon)):
        truth = [scenes.position[i][scenes.mask[i]] for i in range(COUNT)]
        pairs = zip(found, truth, strict=True)
        summary = summarise([match(s.position, t, SYSTEM.setup.tolerance) for s, t in pairs])
        for name in ("f1", "precision", "recall", "ghosts_per_scene", "count_accuracy"):
            assert figures[f"{prefix}{name}"] == getattr(summary, name)


@pytest.mark.parametrize("polished", [True, False])
@pytest.mark.parametrize("source", ["own", "capon"])
def test_tuning_judges_what_the_localizer_finds(model: Path, tmp_path: Path, source: str, polished: bool) -> None:
    options = options_of(source, polished=polished)
    base = dataclasses.replace(BASE, pipeline=options)
    config = HpoConfig(what="detection", base=base, model=str(model), score=ScoreOptions(scenes=COUNT))
    expected = answers(model, judging_scenes(config)["L8"], options)
    objective = DetectionObjective(config, tmp_path)
    for _ in range(2):  # the second time from what is cached
        assert_same(objective.sources("L8", {}), expected)


class Flat(torch.nn.Module):
    """A refiner that learned nothing: every direction is as likely as any other, which no guard believes."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.full_like(maps[:, 0], 0.9)


@pytest.mark.parametrize("polished", [True, False])
def test_where_the_refiner_is_not_believed_the_answer_is_that_of_capon_peaks(
    model: Path, scenes: Scenes, polished: bool
) -> None:
    expected = answers(model, scenes, options_of("capon", polished=polished))
    options = options_of("refined", polished=polished)
    own = Localizer.load(model).parts
    refiner = Refiner(Flat(), options.grid(SYSTEM.setup))
    parts = Parts(own.backbone, own.setup, refiner=refiner)
    with pytest.warns(UserWarning, match="cannot be believed"):
        found = pipeline.run(parts, pipeline.measure(scenes, options), options)
    assert all(found.refused)
    assert_same(found.sources, expected)
