"""What a suite ends with: tables, the report, and the slice that a rerun is compared with."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from risfast.evaluate.collected import Collected, collect
from risfast.evaluate.methods import DEFAULT_METHODS
from risfast.evaluate.records import ENVIRONMENT, ResultsFolder, json_bytes
from risfast.evaluate.suite import SuiteConfig
from risfast.evaluate.tables import (
    Edges,
    Table,
    calibration_rows,
    frozen_rows,
    group_rows,
    groups_of,
    headline_rows,
    mismatch_rows,
    scene_rows,
    timing_rows,
    write_csv,
    write_parquet,
)
from risfast.io.durable import replace_file
from risfast.io.guard import inside, load_json
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.report.page import Findings, latex_tables, report_html

FROZEN, SUITE_JSON = "frozen.csv", "suite.json"
_FROZEN_METHODS = ("localizer", "localizer_raw", "greedy_ml")
# Small enough to be kept with the code.
_EXPORTED = ("headline", "figures", "calibration", "mismatch", "timing", "frozen")
_NOT_EXPORTED = ("sources", "recall_over_implied", "gospa_m", "rmse")  # figures whose names start so


@dataclass(frozen=True)
class SuiteOutcome:
    """What was written."""

    report: Path  # The page
    tables: Path  # The folder of tables
    exported: Path | None
    notes: tuple[str, ...]  # What a user should know
    headline: Table


def command_of(config: SuiteConfig) -> str:
    """The command line that repeats a suite."""
    words = ["risfast", "evaluate", "--suite", config.suite, "--scenes", str(config.scenes)]
    words += ["--snapshots", *map(str, config.snapshots), "--seed", str(config.seed)]
    if config.methods != DEFAULT_METHODS:
        words += ["--methods", *config.methods]
    if config.model != DEFAULT_MODEL:
        words += ["--model", "none" if config.model is None else config.model.name]
    if config.system is not None:
        words += ["--system", "system.toml"]
    if config.setup is not None:
        words += ["--setup", "setup.toml"]
    if config.device != "cpu":
        words += ["--device", config.device]
    for name in ("transformer", "refiner", "options"):
        if (path := getattr(config, name)) is not None:
            words += [f"--{name}", path.name]
    return shlex.join(words)


def finish(
    config: SuiteConfig,
    results: ResultsFolder,
    *,
    resamples: int = 1000,
    export: Path | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> SuiteOutcome:
    """Make tables and the report from the records."""
    tell = report or (lambda stage, done, total: None)
    methods = config.build_methods()
    sets = config.sets(methods)
    tell("scoring", 0, 1)
    collected = collect(results, sets, config.snapshots, methods.setup.tolerance)
    edges, counted = Edges.of(config.nominal(methods)), partial(tell, "tables")
    groups = groups_of(collected, sets, config.snapshots, edges=edges, resamples=resamples, report=counted)
    made = {
        "headline": headline_rows(collected, groups),
        "figures": group_rows(groups),
        "timing": timing_rows(collected),
        "calibration": calibration_rows(collected),
        "scenes": scene_rows(collected),
        "frozen": frozen_rows(collected, _FROZEN_METHODS),
    }
    if mismatch := mismatch_rows(collected, sets, config.snapshots):  # not every suite has any
        made["mismatch"] = mismatch
    folder = results.folder / "tables"
    folder.mkdir(exist_ok=True)
    failures = failure_notes(collected)
    notes = (*_write_tables(folder, made), *failures)
    tell("report", 0, 1)
    made_by = {
        "command": command_of(config),
        "config": results.config,
        "environment": load_json(inside(results.folder, ENVIRONMENT), "the environment of an evaluation"),
    }
    findings = Findings(config, methods, sets, collected, groups, made, made_by, failures)
    for name, text in latex_tables(findings).items():
        replace_file(folder / name, text.encode())
    page = results.folder / "report.html"
    replace_file(page, report_html(findings).encode())
    if export is not None:
        _export(export, made, made_by)
    tell("report", 1, 1)
    return SuiteOutcome(page, folder, export, notes, made["headline"])


def failure_notes(collected: Collected) -> list[str]:
    """Which methods failed on how many scenes."""
    counts: dict[str, list[int]] = {}
    for key, failed in collected.failures.items():
        both = counts.setdefault(key.label, [0, 0])
        both[0], both[1] = both[0] + failed, both[1] + len(collected.scores[key])
    return [
        f"{label} failed with an error on {failed} of {scenes} scenes, which count as scenes without estimates"
        for label, (failed, scenes) in counts.items()
        if failed
    ]


def _write_tables(folder: Path, made: Mapping[str, Table]) -> tuple[str, ...]:
    for name, rows in made.items():
        write_csv(folder / f"{name}.csv", rows)
    if all([write_parquet(folder / f"{name}.parquet", rows) for name, rows in made.items()]):
        return ()
    return ("tables were written as CSV only: pip install pyarrow to have them as Parquet too",)


def _export(folder: Path, made: Mapping[str, Table], made_by: Mapping[str, Any]) -> None:
    """Small tables, and what made them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        if name in _EXPORTED:
            write_csv(
                folder / f"{name}.csv", [row for row in rows if not row.get("figure", "").startswith(_NOT_EXPORTED)]
            )
    replace_file(folder / SUITE_JSON, json_bytes(made_by))
