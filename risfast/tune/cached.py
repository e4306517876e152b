"""Detection tuned without training: the backbone estimates every covariance once, trials do what follows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from risfast import __version__
from risfast.detect import RefinedPeaks
from risfast.evaluate.metrics import Scores, score_scenes
from risfast.io.durable import replace_file
from risfast.io.toml_file import as_table
from risfast.localize import Localizer, pipeline
from risfast.localize.pipeline import Parts, PipelineOptions
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.models.files import read_card
from risfast.models.unrolled import UnrolledBackbone
from risfast.setup import Setup
from risfast.sources import Sources
from risfast.tune.objectives import farthest_m, final_value, judging_scenes
from risfast.tune.options import HpoConfig, StudyError
from risfast.tune.space import model_folder, pipeline_options, start_options
from risfast.tune.worker import Result

# Of the options of detection, those that the peaks of a map depend on.
_OF_PEAKS = ("candidates", "window", "refine_points", "range_margin")


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
        scores, seconds = self._judged(choice)
        result = final_value(scores, self._config.score, farthest_m(self._parts.setup))
        if not self._start.polished:  # nearly all of it was cached: its time says nothing about production
            return result
        count = sum(len(found) for found in scores.values())
        return Result(result.value, {**result.attributes, "seconds_per_scene": seconds / count})

    def scores(self, choice: Mapping[str, Any]) -> dict[str, Scores]:
        """What becomes of the sources of every set, by its name; what the choice leaves out is as without tuning."""
        return self._judged(choice)[0]

    def _judged(self, choice: Mapping[str, Any]) -> tuple[dict[str, Scores], float]:
        """Scores of every set, and seconds of what was not cached."""
        options = pipeline_options(self._config, choice)
        found, spent = {}, 0.0
        for name, scenes in self._scenes.items():
            batches = self._batches(name, options)
            began = time.monotonic()
            sources = self._located(batches, options)
            spent += time.monotonic() - began
            found[name] = score_scenes(sources, scenes, tolerance=self._parts.setup.tolerance)
        return found, spent

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
            found = _read_peaks(path)
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


def _read_peaks(path: Path) -> RefinedPeaks | None:
    """Peaks that were cached; None where there are none, or they cannot be read and must be made again."""
    try:
        held: dict[str, Tensor] = load(path.read_bytes())
        return RefinedPeaks(**held)
    except (FileNotFoundError, SafetensorError, TypeError):
        return None
