"""What can be tuned: a parameter for a field of each options class, by the class that it fills.

Names of parameters are paths: into :class:`risfast.train.config.RunConfig` for a training, and into
:class:`risfast.localize.pipeline.PipelineOptions` for the way from an estimate to sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from risfast.detect import DetectionOptions
from risfast.io.guard import inside
from risfast.io.options_file import read_options
from risfast.io.toml_file import NONE, as_table, from_table
from risfast.localize.confidence import CONFIDENCE_FILE
from risfast.localize.localizer import OPTIONS_FILE
from risfast.localize.pipeline import CandidateOptions, DecisionOptions, MapOptions, PipelineOptions
from risfast.localize.polish import PolishOptions
from risfast.losses import ObjectiveOptions
from risfast.models.decode import MapDetection
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.transformer import TransformerOptions
from risfast.models.unrolled import UnrolledOptions
from risfast.train.config import OptimiserOptions, RunConfig
from risfast.tune.options import HpoConfig, StudyError

if TYPE_CHECKING:  # the table of a space needs no study
    from optuna.trial import Trial

_T = TypeVar("_T")


@dataclass(frozen=True)
class Float:
    """A number between two bounds."""

    low: float  # The bounds, both included
    high: float  # The bounds, both included
    log: bool = False  # Uniform in the logarithm, where low > 0; uniform otherwise

    def suggest(self, trial: Trial, name: str) -> float:
        """A value from the study's sampler."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        return isinstance(value, float | int) and self.low <= value <= self.high

    def __str__(self) -> str:
        """For people."""
        return f"{self.low:g} .. {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Int:
    """A whole number between two bounds."""

    low: int  # The bounds, both included
    high: int  # The bounds, both included
    step: int = 1  # Distance of neighbours, counted from ``low``

    def suggest(self, trial: Trial, name: str) -> int:
        """A value from the study's sampler."""
        return trial.suggest_int(name, self.low, self.high, step=self.step)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        return isinstance(value, int) and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def __str__(self) -> str:
        """For people."""
        return f"{self.low} .. {self.high}{f' by {self.step}' if self.step > 1 else ''}"


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[float | int | str, ...]  # In their order

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value from the study's sampler."""
        return trial.suggest_categorical(name, self.values)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        return value in self.values

    def __str__(self) -> str:
        """For people."""
        return " | ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in self.values)


Parameter = Float | Int | Choice


SPACE: dict[type, dict[str, Parameter]] = {
    UnrolledOptions: {
        "steps": Int(3, 10),
        "width": Choice((8, 12, 16, 24)),
        "head_width": Choice((12, 16, 24, 32)),
        "range_cells": Choice((4, 8, 12)),
        "columns": Choice((24, 48, 96)),
    },
    TransformerOptions: {
        "width": Choice((64, 96, 128)),
        "n_layers": Int(1, 4),
        "hidden": Choice((128, 224, 384)),
        "n_columns": Int(3, 8),
    },
    ObjectiveOptions: {"intensity": Float(5e-3, 0.5, log=True), "offset": Float(1e-2, 1.0, log=True)},
    OptimiserOptions: {
        "lr": Float(2e-4, 1e-2, log=True),
        "min_lr": Float(1e-6, 1e-4, log=True),
        "warmup": Int(0, 200, step=10),
        "weight_decay": Float(1e-4, 1e-1, log=True),
        "clip_norm": Float(0.1, 10.0, log=True),
        "ema_decay": Choice((0.99, 0.995, 0.998, 0.999)),
    },
    MapDetection: {"threshold": Float(0.05, 0.7), "max_sources": Int(4, 12)},
    PolishOptions: {"iterations": Int(3, 10), "births": Int(0, 6), "penalty": Float(0.5, 4.0)},
    CandidateOptions: {"least_count": Float(0.05, 0.7)},
    DecisionOptions: {"least_confidence": Float(0.05, 0.7)},
    # The peaks of a map for each pair of these two are cached, so they are few.
    MapOptions: {"loading": Choice((1e-3, 3e-3, 1e-2, 3e-2, 1e-1)), "blend": Choice((0.0, 0.2))},
    DetectionOptions: {
        "max_db": Float(1.0, 30.0),
        "mad_z": Float(0.0, 16.0),
        "prominence_db": Float(0.0, 10.0),
        "separation_rad": Float(math.radians(0.5), math.radians(10.0), log=True),
        "separation_m": Float(0.2, 5.0, log=True),
    },
}
"""Parameters by the options class whose fields they fill."""

_BACKBONES = {"unrolled": UnrolledOptions, "transformer": TransformerOptions}


def _part(prefix: str, kind: type) -> dict[str, Parameter]:
    return {f"{prefix}.{name}": parameter for name, parameter in SPACE[kind].items()}


def _training(base: RunConfig) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    if base.backbone.name in _BACKBONES:
        found |= _part("backbone.options", _BACKBONES[base.backbone.name])
    found |= _part("objective", ObjectiveOptions) | _part("optimiser", OptimiserOptions)
    warmup = found["optimiser.warmup"]
    assert isinstance(warmup, Int)
    longest = min(warmup.high, base.optimiser.steps // 4 // warmup.step * warmup.step)
    if longest < warmup.step:  # a run too short for a warm-up of several lengths keeps its own
        del found["optimiser.warmup"]
    else:
        found["optimiser.warmup"] = replace(warmup, high=longest)
    if base.backbone.weights:  # the architecture is that of the weights
        found = {name: p for name, p in found.items() if not name.startswith("backbone.")}
    return found


def _detection(config: HpoConfig) -> dict[str, Parameter]:
    """Fields of the pipeline's options that the trial's way from an estimate to sources reads."""
    start = start_options(config)
    chosen, found = start.candidates, {}
    if chosen.source == "capon":
        group = "candidates.polished_detection" if start.polished else "candidates.detection"
        found = _part("map", MapOptions) | _part(group, DetectionOptions)
        tolerance = config.base.system.setup().tolerance.range_m
        apart = found.pop(f"{group}.separation_m")
        assert isinstance(apart, Float)
        if math.isfinite(tolerance):  # where range is scored; the space is that of a tolerance of 1 m
            found[f"{group}.separation_m"] = replace(apart, low=apart.low * tolerance, high=apart.high * tolerance)
    elif chosen.source == "own":
        found = _part("candidates.polished" if start.polished else "candidates.own", MapDetection)
        if start.polished and "threshold" not in chosen.polished:  # the least count is the threshold then
            del found["candidates.polished.threshold"]
            found = _part("candidates", CandidateOptions) | found
    if not start.polished:
        return found
    found |= _part("polish", PolishOptions)
    if config.what == "detection" and (model_folder(config) / CONFIDENCE_FILE).is_file():
        found |= _part("decision", DecisionOptions)
    return found


def model_folder(config: HpoConfig) -> Path:
    """Where the model is whose detection is tuned."""
    return Path(config.model) if config.model else DEFAULT_MODEL


def start_options(config: HpoConfig) -> PipelineOptions:
    """The options of the pipeline without tuning."""
    # Those of ``config.base.pipeline``; a study of detection that leaves them at their defaults starts from those that
    # are stored with its model.
    stored = inside(model_folder(config), OPTIONS_FILE)
    if config.what == "detection" and config.base.pipeline == PipelineOptions() and stored.is_file():
        return read_options(stored)
    return config.base.pipeline


def _whole(config: HpoConfig) -> dict[str, Parameter]:
    if config.what == "detection":
        return _detection(config)
    found = _training(config.base)
    # The surrogate does not run the whole pipeline: options of it would only add noise.
    if config.objective == "mvdr_final" and config.base.backbone.name == "unrolled":
        found |= _detection(config)
    return found


def study_space(config: HpoConfig) -> dict[str, Parameter]:
    """The parameters of a study, by name."""
    space = _whole(config)
    if not config.parameters:
        return space
    chosen = {wanted: [n for n in space if f"{n}.".startswith(f"{wanted}.")] for wanted in config.parameters}
    for wanted, found in chosen.items():
        if not found:
            raise ValueError(
                f"parameters: {wanted!r} is not a parameter of this study; its parameters are {', '.join(space)} "
                "(--show-space prints their ranges)"
            )
    return {name: parameter for name, parameter in space.items() if any(name in found for found in chosen.values())}


def describe_space(config: HpoConfig) -> str:
    """A table: name, range and the value without tuning."""
    rows = [("parameter", "range", "untuned")]
    defaults = untuned(config)
    for name, parameter in study_space(config).items():
        value = defaults[name]
        rows.append((name, str(parameter), f"{value:g}" if isinstance(value, float) else str(value)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def untuned(config: HpoConfig) -> dict[str, Any]:
    """What each parameter is without tuning: the base configuration's value, or the default of its class."""
    start = start_options(config)
    table = as_table(config.base) | as_table(start, complete=True)
    kinds = {
        "backbone.options": _BACKBONES.get(config.base.backbone.name),
        "candidates.polished": MapDetection,
        "candidates.own": MapDetection,
    }
    found = {}
    for name in study_space(config):
        prefix, _, last = name.rpartition(".")
        inner: Any = reduce(getitem, prefix.split("."), table)
        kind = kinds.get(prefix)
        value = inner[last] if last in inner else getattr(kind() if kind else None, last)
        if last == "separation_m" and value == NONE:  # it follows the tolerance
            value = start.capon_detection.separation(config.base.system.setup())[2]
        found[name] = None if value == NONE else value
    return found


def apply(kind: type[_T], base: _T, choice: Mapping[str, Any]) -> _T:
    """``base`` with some of its fields replaced; choices of other classes are left alone."""
    table = as_table(base)
    for name, value in choice.items():
        *steps, last = name.split(".")
        if steps and steps[0] in table:
            reduce(lambda inner, step: inner.setdefault(step, {}), steps, table)[last] = value
    return from_table(kind, table)


def pipeline_options(config: HpoConfig, choice: Mapping[str, Any]) -> PipelineOptions:
    """The options of the pipeline that a choice stands for: what is scored, and what a file of the results holds."""
    return apply(PipelineOptions, start_options(config), choice)


def trial_config(config: HpoConfig, choice: Mapping[str, Any]) -> RunConfig:
    """The training that a choice stands for."""
    return replace(apply(RunConfig, config.base, choice), pipeline=pipeline_options(config, choice))


def tunes_pipeline(config: HpoConfig) -> bool:
    """Whether a parameter of the study is an option of the pipeline."""
    groups = {item.name for item in fields(PipelineOptions)}
    return any(name.partition(".")[0] in groups for name in study_space(config))


def check_same_space(stored: Sequence[str], config: HpoConfig) -> None:
    """Refuse a study that was made for another space."""
    now = space_lines(config)
    if list(stored) == now:
        return
    before, here = (dict(line.split(" in ", 1) for line in lines) for lines in (stored, now))
    parts = {
        "only the study has": [name for name in before if name not in here],
        "only this command has": [name for name in here if name not in before],
        "with another range": [name for name in before if name in here and before[name] != here[name]],
    }
    said = "; ".join(f"{what} {', '.join(names)}" for what, names in parts.items() if names)
    raise StudyError(
        f"the study was made for another search space ({said or 'in another order'}); go on with the version and the "
        "options that it was made with, or give another --name"
    )


def space_lines(config: HpoConfig) -> list[str]:
    """The space as lines of text, which the study keeps."""
    return [f"{name} in {parameter}" for name, parameter in study_space(config).items()]
