"""What a trial is judged by: the localizer on fixed scenes, after a training or with a trained model."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors.torch import load, save

from risfast import __version__
from risfast.detect import RefinedPeaks
from risfast.errors import FileFormatError
from risfast.evaluate.figures import figures
from risfast.evaluate.metrics import Scores, score_scenes
from risfast.io.durable import replace_file
from risfast.io.guard import HELD_BYTES, parsing, read_whole
from risfast.io.toml_file import as_table
from risfast.localize import Localizer, pipeline
from risfast.localize.confidence import HitModel
from risfast.localize.pipeline import Parts, PipelineOptions
from risfast.models import build_backbone
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.models.files import Build, load_model, read_card
from risfast.models.unrolled import UnrolledBackbone
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes
from risfast.sources import Sources
from risfast.train.backbone import train_backbone
from risfast.train.config import RunConfig
from risfast.train.runs import RunProgress, validation_sets
from risfast.tune.options import HpoConfig, ScoreOptions, StudyError, TrialRejectedError
from risfast.tune.space import model_folder, pipeline_options, start_options, trial_config
from risfast.tune.study import Result

_T = TypeVar("_T")

# Of the options of detection, those that the peaks of a map depend on.
_OF_PEAKS = ("candidates", "window", "refine_points", "range_margin")
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
    paired = ~np.isnan(scores.source_error[:, 3])
    squared = np.square(np.where(paired, scores.source_error[:, 3], 0.0))
    by_source = {"hits": scores.source_hit, "pairs": paired, "squared_m2": squared}
    by_scene = {"sources": scores.n_true, "estimates": scores.n_estimated} | {
        name: np.bincount(scores.source_scene, weights=values, minlength=len(scores))
        for name, values in by_source.items()
    }
    return {name: np.asarray(values, float).tolist() for name, values in by_scene.items()}


def value_of_sums(totals: Mapping[str, Any], options: ScoreOptions, farthest: float) -> Any:
    """``mvdr_final`` of summed scenes; arrays of sums give arrays.

    totals (...) -> (...)
    """
    sources, estimates, hits, pairs, squared = (np.asarray(totals[name], float) for name in _SUMS)
    rmse = np.where(pairs > 0, np.sqrt(squared / np.maximum(pairs, 1)), farthest)
    both = sources + estimates
    f1 = np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0)
    rmse = np.where(both == 0, 0.0, rmse)  # scenes without sources, and nothing found
    return rmse / options.xyz_norm_m + options.f1_weight * (1 - f1)


def final_value(scores: Mapping[str, Scores], options: ScoreOptions, farthest: float, **more: Any) -> Result:
    """``mvdr_final`` over all sets together, with the figures of each set, the sums of each scene, and more."""
    sums = {name: scene_sums(found) for name, found in scores.items()}
    joined = {key: [v for part in sums.values() for v in part[key]] for key in _SUMS}
    totals = {key: math.fsum(values) for key, values in joined.items()}
    value = float(value_of_sums(totals, options, farthest))
    together = figures(Scores.joined(list(scores.values())))
    sets = {name: figures(found) for name, found in scores.items()}
    return Result(value, {"figures": together, "sets": sets, "sums": joined, **more})


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

        def measured(name: str) -> Measurement:
            return pipeline.measure(self._scenes[name], options).to(device)

        scores, seconds = _judged(self._scenes, measured, localizer.localize, localizer.setup)
        more = {"seconds_per_scene": seconds, "parameters": card.get("parameters")}
        return final_value(scores, self._config.score, farthest_m(localizer.setup), **more)


def _judged(
    sets: Mapping[str, Scenes], prepared: Callable[[str], _T], located: Callable[[_T], list[Sources]], setup: Setup
) -> tuple[dict[str, Scores], float]:
    """Scores of every set, and the seconds a scene that locating took; what is prepared is not counted."""
    scores, seconds = {}, 0.0
    for name, scenes in sets.items():
        given = prepared(name)
        began = time.monotonic()
        found = located(given)
        seconds += time.monotonic() - began
        scores[name] = score_scenes(found, scenes, tolerance=setup.tolerance)
    return scores, seconds / sum(len(scenes) for scenes in sets.values())


class _Batch(NamedTuple):
    """Scenes that go through the pipeline together, and what the backbone makes of them."""

    measurement: Measurement
    estimate: CovarianceEstimate
    peaks: RefinedPeaks | None


class DetectionObjective:
    """Take the estimates of a trained backbone to sources with the choice applied, and judge these."""

    # The steps are those of :mod:`risfast.localize.pipeline`; estimates, and the peaks of Capon maps, are cached.

    def __init__(self, config: HpoConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        model, self._start = model_folder(config), start_options(config)
        self._device = torch.device(config.base.machine.device)
        self._weights = read_card(model)["sha256"]
        self._parts = Localizer.load(model, self._device, self._start).parts
        _check_setup(model, self._parts.setup, config.base.system.setup())
        _check_source(self._parts, self._start)
        self._scenes = judging_scenes(config)
        self._estimates: dict[str, list[_Batch]] = {}
        self._peaks: dict[str, RefinedPeaks] = {}

    def __call__(
        self, choice: Mapping[str, Any], seed: int, folder: Path, report: Callable[[int, float], None]
    ) -> Result:
        """Judge one choice; nothing in it is random, and it needs no folder."""
        scores, seconds = self.judged(choice)
        # Where nothing is polished nearly all was cached: its time says nothing about production.
        timed = {"seconds_per_scene": seconds} if self._start.polished else {}
        return final_value(scores, self._config.score, farthest_m(self._parts.setup), **timed)

    def judged(self, choice: Mapping[str, Any]) -> tuple[dict[str, Scores], float]:
        """Scores of every set by its name, and seconds a scene; what the choice leaves out is as without tuning."""
        options, setup = pipeline_options(self._config, choice), self._parts.setup
        located = partial(self._located, options=options)
        return _judged(self._scenes, partial(self._batches, options=options), located, setup)

    def sources(self, name: str, choice: Mapping[str, Any]) -> list[Sources]:
        """The sources of the scenes of a set with a choice applied: what is scored."""
        options = pipeline_options(self._config, choice)
        return self._located(self._batches(name, options), options)

    @torch.no_grad()
    def _located(self, batches: list[_Batch], options: PipelineOptions) -> list[Sources]:
        found: list[Sources] = []
        for measurement, estimate, peaks in batches:
            found += pipeline.after_estimate(self._parts, measurement, estimate, options, peaks=peaks).sources
        return found

    @torch.no_grad()
    def _batches(self, name: str, options: PipelineOptions) -> list[_Batch]:
        """The scenes of a set, in the batches that :func:`risfast.localize.pipeline.run` makes."""
        if name not in self._estimates:
            measurement = pipeline.measure(self._scenes[name], options).to(self._device)
            size = options.scenes_at_once
            parts = [measurement[i : i + size] for i in range(0, len(measurement), size)]
            self._estimates[name] = [_Batch(part, pipeline.estimate(self._parts, part), None) for part in parts]
        batches = self._estimates[name]
        if options.candidates.source != "capon":
            return batches
        peaks = self._cached_peaks(name, batches, options)
        each = zip(*(field.split([len(b.measurement) for b in batches]) for field in peaks), strict=True)
        return [batch._replace(peaks=RefinedPeaks(*part)) for batch, part in zip(batches, each, strict=True)]

    def _cached_peaks(self, name: str, batches: list[_Batch], options: PipelineOptions) -> RefinedPeaks:
        """Capon peaks of a set: from memory, from the folder, or made."""
        key = self._digest(name, options)
        if key not in self._peaks:
            path = self._folder / f"peaks-{key}.safetensors"
            found = _read_peaks(path, sum(len(batch.measurement) for batch in batches))
            if found is None:
                each = [pipeline.effective(batch.estimate, batch.measurement, options) for batch in batches]
                parts = [pipeline.map_peaks(covariance, self._parts.setup, options) for covariance in each]
                found = RefinedPeaks(*(torch.cat(field) for field in zip(*parts, strict=True)))
                self._folder.mkdir(parents=True, exist_ok=True)
                replace_file(path, save({field: v.cpu().contiguous() for field, v in found._asdict().items()}))
            self._peaks[key] = RefinedPeaks(*(field.to(self._device) for field in found))
        return self._peaks[key]

    def _digest(self, name: str, options: PipelineOptions) -> str:
        """Of everything that the peaks depend on."""
        detection = as_table(options.capon_detection)
        parts = {
            "version": __version__,
            "weights": self._weights,
            "setup": self._parts.setup.to_json(),
            "scenes": [name, self._config.score.seed, self._config.score.scenes],
            "system": [as_table(self._config.base.system), self._config.base.data.code_kinds],
            "map": as_table(options.map),
            "detection": [detection[field] for field in _OF_PEAKS],
            "batches": [options.noise_known, options.scenes_at_once, self._device.type],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _check_setup(model: Path, own: Setup, wanted: Setup) -> None:
    if own == wanted:
        return
    others = [item.name for item in fields(Setup) if getattr(own, item.name) != getattr(wanted, item.name)]
    raise StudyError(
        f"{model} was trained for another {' and another '.join(others)} than the scenes of the study have; give its "
        "own with --base.system.n-h, --base.system.range-m and the like"
    )


def _check_source(parts: Parts, start: PipelineOptions) -> None:
    backbone = parts.backbone
    maps = isinstance(backbone, UnrolledBackbone) and backbone.settings.corrections
    if start.candidates.source == "own" and not maps:
        raise StudyError(
            "this model has no map of sources of its own to tune; give --base.pipeline.candidates.source capon"
        )


def _read_peaks(path: Path, scenes: int) -> RefinedPeaks | None:
    """Peaks that were cached; None where there are none, or they cannot be used and must be made again."""
    try:
        data = read_whole(path, "peaks of maps", HELD_BYTES)
        with parsing(path, "safetensors"):
            found = RefinedPeaks(**load(data))
    except FileFormatError:
        return None
    count = found.power.shape[-1] if found.power.ndim else 0
    shapes = ((scenes, count, 3), (scenes, count), (scenes,), (scenes,))
    fits = all(field.shape == shape and field.is_floating_point() for field, shape in zip(found, shapes, strict=True))
    return found if fits else None
