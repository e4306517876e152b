"""A model of a 6 x 4 surface whose suite takes seconds, and one finished run of it that several files look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from risfast.evaluate.collected import Collected, collect
from risfast.evaluate.records import ResultsFolder
from risfast.evaluate.suite import SuiteConfig, run_suite
from risfast.geometry import SensorArray
from risfast.models import build_backbone
from risfast.models.files import save_model
from risfast.report.outcome import SuiteOutcome, finish
from risfast.simulate.scenes import SystemConfig

ARRAY = SensorArray.rectangular(6, 4)
SETUP = SystemConfig(array=ARRAY).setup
METHODS = ("localizer", "localizer_raw", "greedy_ml", "ls_capon")
RESAMPLES = 20


def save_tiny_model(folder: Path) -> Path:
    """An untrained backbone: it starts at the classical fit, and finds sources."""
    options: dict[str, Any] = {
        **{"steps": 4, "width": 4, "head_width": 4, "columns": 8},
        "axes": {"n_azimuth": 11, "n_elevation": 7, "n_range": 5},
    }
    backbone = build_backbone("unrolled", SETUP, options)
    save_model(folder, "unrolled", backbone.state_dict(), SETUP, options, {"made": "by a test"})
    return folder


def tiny_config(model: Path | None, **changes: Any) -> SuiteConfig:
    """Two methods, eighteen scenes in two chunks, six snapshots; with changes."""
    usual: dict[str, Any] = {
        **{"suite": "main", "scenes": 18, "snapshots": (6,), "methods": ("localizer_raw", "greedy_ml")},
        **{"seed": 3, "model": model},
    }
    return SuiteConfig(**{**usual, **changes})


class Finished(NamedTuple):
    """A run of the whole suite with everything that it wrote."""

    config: SuiteConfig
    results: ResultsFolder
    collected: Collected
    outcome: SuiteOutcome
    export: Path


_kept: list[Finished] = []


def finished(factory: pytest.TempPathFactory) -> Finished:
    """The suite ``all`` on the tiny model, run once a session."""
    if not _kept:
        folder = factory.mktemp("suite")
        model = save_tiny_model(folder / "model")
        config = tiny_config(model, suite="all", scenes=6, snapshots=(8, 5), methods=METHODS)
        results = run_suite(config, folder / "out")
        outcome = finish(config, results, resamples=RESAMPLES, export=folder / "export")
        collected = collect(results, config.sets(config.build_methods()), config.snapshots, SETUP.tolerance)
        _kept.append(Finished(config, results, collected, outcome, folder / "export"))
    return _kept[0]
