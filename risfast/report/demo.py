"""What risfast does, on full-size scenes of the reference system: the shipped localizer beside the bound and Capon."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from risfast.evaluate.bounds import scene_bound
from risfast.evaluate.demo_methods import (
    LOCALIZER,
    LS,
    TRUE,
    BoundReference,
    MethodScore,
    bound_reference,
    demo_methods,
    run_method,
    score_run,
    true_positions,
)
from risfast.evaluate.demo_options import SEEDS, DemoOptions
from risfast.evaluate.figures import Interval
from risfast.geometry import direction_cosines
from risfast.localize import Localizer
from risfast.report.demo_pictures import Illustration, draw_demo
from risfast.setup import MOST_POINTS
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes

__all__ = [
    "DemoOptions",
    "DemoReport",
    "demo_scenes",
    "explanation",
    "format_scores",
    "illustrative_scene",
    "run_demo",
]

ReportProgress = Callable[[str, int, int], None]

_SCENES_AT_ONCE = 10
_FIRST_SEED = 0x64656D6F * SEEDS  # the demo's own block: the shipped checkpoint was trained on none of it
_TEXT_WIDTH = 105  # of the table
_LEGIBLE_RAD = math.radians(8.0)  # closer markers touch in the picture
_TYPICAL_SNR_DB = 3.0  # from the middle of the range
_POINTS = {"reference": MOST_POINTS, "training": 1 << 14}  # at most, of a grid


class DemoReport(NamedTuple):
    """Everything the demo has to say."""

    scores: list[MethodScore]  # One per method, the localizer first
    bound: BoundReference  # On the same scenes
    pictures: Mapping[str, Path]  # What each picture shows, and where it is
    shown_scene: int  # Index of the scene in the pictures of a single scene
    options: DemoOptions  # What was asked for
    system: SystemConfig  # What was simulated


def run_demo(options: DemoOptions, progress: ReportProgress | None = None) -> DemoReport:
    """Simulate scenes, localise their sources with each method, score what was found and draw pictures."""
    report = progress or _silent
    options.output.mkdir(parents=True, exist_ok=True)
    parts = _simulate(options, report)
    shown = illustrative_scene(parts)
    report("preparing", 0, 1)
    localizer = Localizer.from_pretrained().to(options.device)
    grid = localizer.setup.search_grid(most_points=_POINTS[options.grid])
    bounds = [scene_bound(part) for part in parts]
    methods = demo_methods(localizer, grid)
    # A first call builds plans and tables; the clock is to show what a scene costs.
    for method in methods.values():
        method(demo_scenes(options, range(1)))
    report("preparing", 1, 1)
    runs = {}
    for name, method in methods.items():
        runs[name] = run_method(method, parts, shown, _of_stage(report, name, options.scenes))
    scores = [score_run(name, run, parts, bounds) for name, run in runs.items()]
    bound = bound_reference(parts, bounds, scores[0].figures["implied_recall"])
    report("drawing", 0, 1)
    snr_db = float(torch.cat([part.snr_db for part in parts])[shown])
    taken = f"{options.snapshots} snapshots of {parts[0].config.n_antennas} antennas at {snr_db:.0f} dB SNR"
    illustration = Illustration(
        shown,
        {LOCALIZER: taken, TRUE: "the true covariance", LS: f"{taken}, least squares"},
        true_positions(parts)[shown],
        {name: run.shown for name, run in runs.items()},
        {score.name: score.matches[shown] for score in scores},
    )
    matches = {score.name: score.matches for score in scores}
    pictures = draw_demo(options.output, localizer.setup, grid, illustration, matches, bound)
    report("drawing", 1, 1)
    return DemoReport(scores, bound, pictures, shown, options, parts[0].config)


def _silent(stage: str, done: int, total: int) -> None:
    """No one wants to know."""


def _of_stage(report: ReportProgress, stage: str, total: int) -> Callable[[int], None]:
    """Says how far one stage is; it has begun."""
    report(stage, 0, total)
    return lambda done: report(stage, done, total)


def illustrative_scene(parts: Sequence[Scenes]) -> int:
    """The scene to draw, chosen from what was simulated alone, never from what was found."""
    # The one with the most sources (the farthest apart in angle, if several have as many) among those whose sources can
    # be told apart in a picture and whose SNR is near the middle of what the system has, where there are such.
    middle_db = sum(parts[0].config.snr_db) / 2

    def rank(part: Scenes, b: int) -> tuple[bool, bool, int, float]:
        position = part.position[b][part.mask[b]].double().cpu()
        direction = direction_cosines(position[:, 0], position[:, 1])
        cosine = (direction @ direction.T).fill_diagonal_(-1)
        nearest = float(cosine.max().clamp(-1, 1).acos()) if len(position) > 1 else math.pi
        typical = abs(float(part.snr_db[b]) - middle_db) <= _TYPICAL_SNR_DB
        return nearest >= _LEGIBLE_RAD, typical, len(position), nearest

    ranked = [rank(part, b) for part in parts for b in range(len(part))]
    return ranked.index(max(ranked))


def demo_scenes(options: DemoOptions, indices: range) -> Scenes:
    """Scenes of the reference system that the demo is about."""
    system = SystemConfig(n_snapshots=options.snapshots)
    return generate_scenes(system, _FIRST_SEED + options.seed, indices, device=options.device)


def _simulate(options: DemoOptions, report: ReportProgress) -> list[Scenes]:
    """The scenes, in batches that are small enough to show progress."""
    parts: list[Scenes] = []
    for first in range(0, options.scenes, _SCENES_AT_ONCE):
        report("simulating", first, options.scenes)
        parts.append(demo_scenes(options, range(first, min(first + _SCENES_AT_ONCE, options.scenes))))
    report("simulating", options.scenes, options.scenes)
    return parts


_ABOVE = ("", "", "", "95 %", "", "ghosts", "median", "count", "ms")
_COLUMNS = ("method", "scenes", "F1", "interval", "recall", "a scene", "xyz m", "right", "a scene")


def format_scores(report: DemoReport) -> str:
    """The table: one line per method, and one for the Cramér-Rao bound."""
    localizer, *others = [_table_row(score, report.options.scenes) for score in report.scores]
    rows = [_ABOVE, _COLUMNS, localizer, _bound_row(report), *others]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([_conditions(report), "", *(line.rstrip() for line in lines)])


def _conditions(report: DemoReport) -> str:
    sources, (low, high) = len(report.bound.error_m), report.system.snr_db
    return (
        f"{report.options.scenes} scenes of the reference system (seed {report.options.seed}), {sources} sources, "
        f"{report.options.snapshots} snapshots a scene, SNR {low:g} to {high:g} dB"
    )


def _table_row(score: MethodScore, scenes: int) -> tuple[str, ...]:
    f1 = score.figures["f1"]
    shares = ("recall", "ghosts_per_scene", "median_xyz_pairs_m", "count_accuracy")
    recall, ghosts, error_m, right = (score.figures[name].value for name in shares)
    return (
        score.name,
        str(scenes),
        f"{f1.value:.3f}",
        _interval(f1),
        f"{recall:.3f}",
        f"{ghosts:.2f}",
        _rounded(error_m),
        f"{right:.2f}",
        f"{score.ms_per_scene:.0f}",
    )


def _bound_row(report: DemoReport) -> tuple[str, ...]:
    bound = report.bound
    recall, error = f"{bound.implied_recall.value:.3f}", _rounded(bound.median_xyz_m)
    return ("Cramer-Rao bound", str(report.options.scenes), "-", "-", recall, "-", error, "-", "-")


def _interval(value: Interval) -> str:
    return f"{value.low:.2f}-{value.high:.2f}"


def _rounded(error: float) -> str:
    if not math.isfinite(error):
        return "-"
    return f"{error:.3f}" if error >= 5e-4 else f"{error:.0e}"


def explanation(report: DemoReport) -> str:
    """How to read the table."""
    gate, system = report.system.setup.tolerance, report.system
    lines = (
        f"A source counts as found within {math.degrees(gate.azimuth_rad):g} deg, "
        f"{math.degrees(gate.elevation_rad):g} deg and {gate.range_m:g} m after optimal matching; the median error is "
        "of all matched pairs, found or not. The localizer is told neither the number of sources nor the noise.",
        "Cramer-Rao bound: the recall and the error that Gaussian errors as large as the bound would have. It is a "
        "reference and no ceiling: an estimator that knows the field of view can do better where the bound is wide.",
        "Capon on the true covariance is what no measurement gives: it shows what the search alone can do. Each "
        f"snapshot tells the sample covariances only {system.n_antennas} noisy numbers about the field on "
        f"{system.array.n_elements} elements, so they are incomplete, and their peaks are broad.",
    )
    return "\n".join(textwrap.fill(line, _TEXT_WIDTH) for line in lines)
