"""What can be tuned: a parameter for a field of each options class, by the class that it fills."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from risfast.confidence import CONFIDENCE_FILE
from risfast.detect import DetectionOptions
from risfast.localize import LocalizerOptions
from risfast.models.decode import MapDetection
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.transformer import TransformerOptions
from risfast.models.unrolled import UnrolledOptions
from risfast.objective import ObjectiveOptions
from risfast.polish import PolishOptions
from risfast.toml_file import as_table, from_table
from risfast.train.config import OptimiserOptions, RunConfig
from risfast.tune.errors import StudyError
from risfast.tune.options import HpoConfig
from risfast.tune.parameters import Choice, Float, Int, Parameter

__all__ = [
    "SPACE",
    "Choice",
    "CovarianceOptions",
    "Float",
    "Int",
    "Parameter",
    "apply",
    "check_same_space",
    "describe_space",
    "model_folder",
    "read_out_options",
    "space_lines",
    "study_space",
    "untuned",
]

T = TypeVar("T")


@dataclass(frozen=True)
class CovarianceOptions:
    """How the covariance that Capon detection starts from is prepared; see :func:`risfast.effective_covariance`.

    Attributes
    ----------
    loading : float
        Diagonal loading over trace(R) / N, given to the detection.
    beta : float
        Share of the least-squares sample covariance.
    """

    loading: float = 1e-2
    beta: float = 0.0


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
    ObjectiveOptions: {
        "intensity": Float(5e-3, 0.5, log=True),
        "offset": Float(1e-2, 1.0, log=True),
    },
    OptimiserOptions: {
        "lr": Float(2e-4, 1e-2, log=True),
        "min_lr": Float(1e-6, 1e-4, log=True),
        "warmup": Int(0, 200, step=10),
        "weight_decay": Float(1e-4, 1e-1, log=True),
        "clip_norm": Float(0.1, 10.0, log=True),
        "ema_decay": Choice((0.99, 0.995, 0.998, 0.999)),
    },
    MapDetection: {
        "threshold": Float(0.05, 0.7),
        "max_sources": Int(4, 12),
    },
    PolishOptions: {
        "iterations": Int(3, 10),
        "births": Int(0, 6),
        "penalty": Float(0.5, 4.0),
    },
    LocalizerOptions: {
        "least_confidence": Float(0.05, 0.7),
    },
    # A spectrum for each pair of these two is kept, so they are few.
    CovarianceOptions: {
        "loading": Choice((1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
        "beta": Choice((0.0, 0.2)),
    },
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
    if config.read_out == "capon":
        found = _part("covariance", CovarianceOptions) | _part("detection", DetectionOptions)
    elif config.score.polish:
        found = _part("candidates", MapDetection)
    else:
        found = _part("own", MapDetection)
    if not config.score.polish:
        return found
    found |= _part("polish", PolishOptions)
    if config.what == "detection" and (model_folder(config) / CONFIDENCE_FILE).is_file():
        found |= _part("localizer", LocalizerOptions)
    return found


def model_folder(config: HpoConfig) -> Path:
    """Where the model is whose detection is tuned.

    Parameters
    ----------
    config : HpoConfig

    Returns
    -------
    Path
        Of the model that comes with the package, where none is named.
    """
    return Path(config.model) if config.model else DEFAULT_MODEL


def _whole(config: HpoConfig) -> dict[str, Parameter]:
    if config.what == "detection":
        return _detection(config)
    found = _training(config.base)
    # The surrogate does not run the localizer: its options would only add noise.
    if config.objective == "mvdr_final" and config.base.backbone.name == "unrolled":
        found |= {name: p for name, p in _detection(config).items() if not name.startswith("covariance.")}
    return found


def study_space(config: HpoConfig) -> dict[str, Parameter]:
    """The parameters of a study, by name.

    Parameters
    ----------
    config : HpoConfig

    Returns
    -------
    dict of str to Parameter
        In the order of the space.

    Raises
    ------
    ValueError
        ``config.parameters`` holds a name that is not in the space.
    """
    space = _whole(config)
    if not config.parameters:
        return space
    chosen: dict[str, Parameter] = {}
    for wanted in config.parameters:
        found = {n: p for n, p in space.items() if n == wanted or n.startswith(f"{wanted}.")}
        if not found:
            raise ValueError(
                f"parameters: {wanted!r} is not a parameter of this study; its parameters are {', '.join(space)} "
                "(--show-space prints their ranges)"
            )
        chosen |= found
    return {name: parameter for name, parameter in space.items() if name in chosen}


def describe_space(config: HpoConfig) -> str:
    """A table: name, range and the value without tuning.

    Parameters
    ----------
    config : HpoConfig

    Returns
    -------
    str
    """
    rows = [("parameter", "range", "untuned")]
    defaults = untuned(config)
    for name, parameter in study_space(config).items():
        value = defaults[name]
        rows.append((name, str(parameter), f"{value:g}" if isinstance(value, float) else str(value)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def untuned(config: HpoConfig) -> dict[str, Any]:
    """What each parameter is without tuning: the base configuration's value, or the default of its class.

    Parameters
    ----------
    config : HpoConfig

    Returns
    -------
    dict of str to value
        By the names of :func:`study_space`.
    """
    table = as_table(config.base) | as_table(LocalizerOptions())
    table |= {"covariance": as_table(CovarianceOptions()), "localizer": as_table(LocalizerOptions())}
    kinds = {
        "backbone.options": _BACKBONES.get(config.base.backbone.name),
        "candidates": MapDetection,
        "own": MapDetection,
    }
    found = {}
    for name in study_space(config):
        prefix, _, last = name.rpartition(".")
        inner: Any = table
        for step in prefix.split("."):
            inner = inner[step]
        kind = kinds.get(prefix)
        found[name] = inner[last] if last in inner else getattr(kind() if kind else None, last)
    return found


def apply(kind: type[T], base: T, choice: Mapping[str, Any]) -> T:
    """``base`` with some of its fields replaced; choices of other classes are left alone.

    Parameters
    ----------
    kind : type
        A dataclass.
    base : kind
    choice : mapping of str to value
        By dotted names; those whose first part is no field of ``kind`` belong to something else.

    Returns
    -------
    kind

    Raises
    ------
    ValueError
        The dataclass refuses a value.
    """
    table = as_table(base)
    for name, value in choice.items():
        first, *steps = name.split(".")
        if first not in table or not steps:
            continue
        inner = table[first]
        for step in steps[:-1]:
            inner = inner.setdefault(step, {})
        inner[steps[-1]] = value
    return from_table(kind, table)


def read_out_options(config: HpoConfig, choice: Mapping[str, Any]) -> tuple[LocalizerOptions, CovarianceOptions]:
    """The localizer's options, and those of the covariance, that a choice stands for.

    Parameters
    ----------
    config : HpoConfig
    choice : mapping of str to value

    Returns
    -------
    (LocalizerOptions, CovarianceOptions)
    """
    localizer = apply(LocalizerOptions, LocalizerOptions(read_out=config.read_out), choice)
    if config.score.polish:  # what is tuned is what the polish is given
        localizer = replace(localizer, capon_candidates=localizer.detection)
    return (
        replace(localizer, **_of(choice, "localizer")),
        replace(CovarianceOptions(), **_of(choice, "covariance")),
    )


def _of(choice: Mapping[str, Any], group: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in choice.items() if name.startswith(f"{group}.")}


def check_same_space(stored: Sequence[str], config: HpoConfig) -> None:
    """Refuse a study that was made for another space.

    Parameters
    ----------
    stored : sequence of str
        Its space, as :func:`space_lines` gave it.
    config : HpoConfig
        Of now.

    Raises
    ------
    StudyError
        Naming the first parameter that differs.
    """
    now = space_lines(config)
    if list(stored) != now:
        other = sorted(set(stored) ^ set(now))
        raise StudyError(
            f"the study was made for another search space: {other[0].split(' in ')[0] if other else 'its order'} "
            "differs; go on with the version and the options that it was made with, or give another --name"
        )


def space_lines(config: HpoConfig) -> list[str]:
    """The space as lines of text, which the study keeps.

    Parameters
    ----------
    config : HpoConfig

    Returns
    -------
    list of str
        One a parameter.
    """
    return [f"{name} in {parameter}" for name, parameter in study_space(config).items()]
