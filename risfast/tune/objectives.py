"""What a trial of a training is judged by."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from risfast.evaluate.figures import figures
from risfast.evaluate.metrics import Scores, score_scenes
from risfast.localize import Localizer, pipeline
from risfast.localize.confidence import HitModel
from risfast.localize.pipeline import PipelineOptions
from risfast.models import build_backbone
from risfast.models.files import Build, load_model
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes
from risfast.train.backbone import train_backbone
from risfast.train.config import RunConfig
from risfast.train.runs import RunProgress, validation_sets
from risfast.tune.options import HpoConfig, ScoreOptions, TrialRejectedError
from risfast.tune.space import pipeline_options, trial_config
from risfast.tune.worker import Result

# What the value is made of, for each scene: the sums that a resample of scenes adds up.
_SUMS = ("sources", "estimates", "hits", "pairs", "squared_m2")


def judging_scenes(config: HpoConfig, device: torch.device | str = "cpu") -> dict[str, Scenes]:
    """The fixed scenes of a study, one set for each L that the base configuration validates at."""
    return validation_sets(config.base, config.score.seed, config.score.scenes, torch.device(device))


def farthest_m(setup: Setup) -> float:
    """No two points of the region, and so none that are reported or true, are farther apart; metres."""
    return 2 * setup.region.range_m[1]


def scene_sums(scores: Scores) -> dict[str, list[float]]:
    """For each scene what :func:`value_of_sums` adds up."""
    count = len(scores)
    paired = ~np.isnan(scores.source_error[:, 3])
    squared = np.square(np.where(paired, scores.source_error[:, 3], 0.0))

    def by_scene(values: Any) -> list[float]:
        return [float(v) for v in np.bincount(scores.source_scene, weights=values, minlength=count)]

    return {
        "sources": [float(v) for v in scores.n_true],
        "estimates": [float(v) for v in scores.n_estimated],
        "hits": by_scene(scores.source_hit.astype(float)),
        "pairs": by_scene(paired.astype(float)),
        "squared_m2": by_scene(squared),
    }


def value_of_sums(totals: Mapping[str, Any], options: ScoreOptions, farthest: float) -> Any:
    """``mvdr_final`` of summed scenes; arrays of sums give arrays.

    totals (...) -> (...)
    """
    pairs, hits = np.asarray(totals["pairs"], float), np.asarray(totals["hits"], float)
    squared = np.asarray(totals["squared_m2"], float)
    rmse = np.where(pairs > 0, np.sqrt(squared / np.maximum(pairs, 1)), farthest)
    both = np.asarray(totals["sources"], float) + np.asarray(totals["estimates"], float)
    f1 = np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0)
    rmse = np.where(both == 0, 0.0, rmse)  # scenes without sources, and nothing found
    return rmse / options.xyz_norm_m + options.f1_weight * (1 - f1)


def final_value(scores: Mapping[str, Scores], options: ScoreOptions, farthest: float) -> Result:
    """``mvdr_final`` over all sets together, with the figures of each set and the sums of each scene."""
    sums = {name: scene_sums(found) for name, found in scores.items()}
    joined = {key: [v for part in sums.values() for v in part[key]] for key in _SUMS}
    totals = {key: math.fsum(values) for key, values in joined.items()}
    value = float(value_of_sums(totals, options, farthest))
    together = figures(Scores.joined(list(scores.values())))
    attributes = {"figures": together, "sets": {name: figures(found) for name, found in scores.items()}, "sums": joined}
    return Result(value, attributes)


class TrainingObjective:
    """Train with the choice applied, and judge the validation or the model that comes out."""

    def __init__(self, config: HpoConfig, build: Build | None = None) -> None:
        self._config, self._build = config, build or build_backbone
        self._scenes = judging_scenes(config) if config.objective == "mvdr_final" else {}

    def run_config(self, choice: Mapping[str, Any], seed: int) -> RunConfig:
        """The training that a choice stands for."""
        config = trial_config(self._config, choice)
        # Capon detection and the final table are for people; here they would only cost time.
        judged = replace(config.validation, capon_scenes=0, test_scenes=0)
        return replace(config, seed=seed, validation=judged)

    def __call__(
        self, choice: Mapping[str, Any], seed: int, folder: Path, report: Callable[[int, float], None]
    ) -> Result:
        """Train, report each validation, and judge."""
        config = self.run_config(choice, seed)
        began, validations = time.monotonic(), dict[int, float]()

        def watch(progress: RunProgress) -> None:
            """A run tells each step once its validation, if there was one, is in."""
            step, last = progress.step, config.optimiser.steps
            validated = step and (step % config.validation.every == 0 or step == last) and step not in validations
            if validated and not progress.note:
                validations[step] = progress.nmse + self._config.score.f1_weight * (1 - progress.f1)
                report(step, validations[step])

        try:
            outcome = train_backbone(config, folder, watch, build=self._build)
        finally:  # a trial is begun anew, never resumed: only its model and metrics stay
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        assert outcome is not None  # one process
        if not outcome.complete:
            raise TrialRejectedError("machine.minutes ended its training before its last step")
        if self._config.objective == "surrogate":
            finite = [value for value in validations.values() if math.isfinite(value)]
            if not finite:
                raise TrialRejectedError("no validation gave a finite value")
            result = Result(min(finite), {"validations": validations})
        else:
            result = self._judge(outcome.model, pipeline_options(self._config, choice), config.machine.device)
        return Result(result.value, {**result.attributes, "train_seconds": round(time.monotonic() - began, 3)})

    def _judge(self, model: Path, options: PipelineOptions, device: str) -> Result:
        module, card = load_model(model, self._build, device)
        localizer = Localizer(module, Setup.from_json(card["setup"]), options, HitModel.load(model))
        scores, seconds = {}, 0.0
        for name, scenes in self._scenes.items():
            measurement = pipeline.measure(scenes, options).to(device)
            began = time.monotonic()
            found = localizer.localize(measurement)
            seconds += time.monotonic() - began
            scores[name] = score_scenes(found, scenes, tolerance=localizer.setup.tolerance)
        result = final_value(scores, self._config.score, farthest_m(localizer.setup))
        count = sum(len(scenes) for scenes in self._scenes.values())
        extra = {"seconds_per_scene": seconds / count, "parameters": card.get("parameters")}
        return Result(result.value, {**result.attributes, **extra})
