"""What risfast does, on full-size scenes of the reference system: from the true covariance and from samples."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.covariance import als_covariance, covariance_from_factor, effective_covariance, ls_covariance
from risfast.data.scenes import Scenes, SystemConfig, generate_scenes
from risfast.demo_pictures import Illustration, draw_demo
from risfast.detect import Sources, detect_sources
from risfast.evaluate import Match, Summary, Tolerance, match, summarise
from risfast.geometry import SearchGrid, direction_cosines

__all__ = [
    "GRIDS",
    "DemoOptions",
    "DemoReport",
    "MethodScore",
    "explanation",
    "format_scores",
    "illustrative_scene",
    "run_demo",
]

TRUE, LS, ALS = "true covariance", "LS sample", "ALS sample"

ReportProgress = Callable[[str, int, int], None]

GRIDS: dict[str, Callable[[], SearchGrid]] = {"reference": SearchGrid.reference, "training": SearchGrid.training}

_SCENES_AT_ONCE = 4
_TEXT_WIDTH = 105  # of the table
_LEGIBLE_RAD = math.radians(8.0)  # closer markers touch in the picture
_TYPICAL_SNR_DB = 3.0  # from the middle of the range


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo.

    Parameters
    ----------
    scenes : int
        Number of scenes, >= 1.
    seed : int
        The same seed gives the same scenes.
    snapshots : int
        L of each scene, >= 1.
    grid : {"reference", "training"}
        Search grid.
    output : Path
        Folder for the pictures; made if it is not there.
    device : str
        Where everything is computed.

    Raises
    ------
    ValueError
        A count is below 1 or the grid is unknown.
    """

    scenes: int = 20
    seed: int = 0
    snapshots: int = 64
    grid: str = "reference"
    output: Path = Path("risfast-demo")
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the counts and the grid."""
        for name in ("scenes", "snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.grid not in GRIDS:
            raise ValueError(f"grid must be one of {', '.join(GRIDS)}; got {self.grid!r}")


class MethodScore(NamedTuple):
    """How one kind of covariance did.

    Attributes
    ----------
    name : str
        Which kind of covariance.
    matches : list of Match
        One per scene.
    summary : Summary
        Of all scenes.
    covariance_ms, detection_ms : float
        Wall time per scene in milliseconds: from the measurements to the covariance, and from there to the sources.
    """

    name: str
    matches: list[Match]
    summary: Summary
    covariance_ms: float
    detection_ms: float


class DemoReport(NamedTuple):
    """Everything the demo has to say.

    Attributes
    ----------
    scores : list of MethodScore
        One per kind of covariance.
    pictures : mapping of str to Path
        What each picture shows, and where it is.
    shown_scene : int
        Index of the scene in the spectrum and the range pictures.
    options : DemoOptions
        What was asked for.
    system : SystemConfig
        What was simulated.
    """

    scores: list[MethodScore]
    pictures: Mapping[str, Path]
    shown_scene: int
    options: DemoOptions
    system: SystemConfig


class _Run(NamedTuple):
    """One method on all scenes: what it found, from which covariance of the shown scene, and how long it took."""

    found: list[Sources]
    shown: Tensor
    covariance_s: float
    detection_s: float


def run_demo(options: DemoOptions, progress: ReportProgress | None = None) -> DemoReport:
    """Simulate scenes, localise their sources from each kind of covariance, score them and draw pictures.

    Parameters
    ----------
    options : DemoOptions
        How many scenes, which, and where the pictures go.
    progress : callable, optional
        Called with a stage, the steps done and the steps to do.

    Returns
    -------
    DemoReport

    Raises
    ------
    OSError
        The folder for the pictures cannot be made or written.
    """
    report = progress or _silent
    options.output.mkdir(parents=True, exist_ok=True)
    parts = _simulate(options, report)
    truth = [part.position[b][part.mask[b]].cpu() for part in parts for b in range(len(part))]
    shown = illustrative_scene(parts)
    grid = GRIDS[options.grid]()
    # The first call builds the plan for this array and grid; the clock below is to show what a scene costs.
    report("preparing", 0, 1)
    detect_sources(effective_covariance(_true(parts[0])), parts[0].config.array, grid)
    report("preparing", 1, 1)
    runs = {name: _localise(name, make, parts, grid, shown, report) for name, make in _ESTIMATORS.items()}
    scores = [_score(name, run, truth) for name, run in runs.items()]
    report("drawing", 0, 1)
    snr_db = float(torch.cat([part.snr_db for part in parts])[shown])
    illustration = Illustration(
        shown,
        {TRUE: "the true covariance", LS: f"{options.snapshots} snapshots at {snr_db:.0f} dB SNR, least squares"},
        truth[shown],
        {name: run.shown for name, run in runs.items()},
        {name: run.found[shown] for name, run in runs.items()},
        {score.name: score.matches[shown] for score in scores},
    )
    matches = {score.name: score.matches for score in scores}
    pictures = draw_demo(options.output, parts[0].config.array, grid, illustration, matches)
    report("drawing", 1, 1)
    return DemoReport(scores, pictures, shown, options, parts[0].config)


def _silent(stage: str, done: int, total: int) -> None:
    """No one wants to know."""


def illustrative_scene(parts: Sequence[Scenes]) -> int:
    """The scene to draw, chosen from what was simulated alone, never from what was found.

    The one with the most sources (the farthest apart in angle, if several have as many) among those whose sources can
    be told apart in a picture and whose SNR is near the middle of what the system has, where there are such.

    Parameters
    ----------
    parts : sequence of Scenes
        Batches of scenes, counted through.

    Returns
    -------
    int
        Its index, counted over all batches.
    """
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


def _simulate(options: DemoOptions, report: ReportProgress) -> list[Scenes]:
    """The scenes, in batches that are small enough to show progress."""
    system = SystemConfig(n_snapshots=options.snapshots)
    parts: list[Scenes] = []
    for first in range(0, options.scenes, _SCENES_AT_ONCE):
        report("simulating", first, options.scenes)
        last = min(first + _SCENES_AT_ONCE, options.scenes)
        parts.append(generate_scenes(system, options.seed, range(first, last), device=options.device))
    report("simulating", options.scenes, options.scenes)
    return parts


def _true(scenes: Scenes) -> Tensor:
    return scenes.true_covariance()


def _least_squares(scenes: Scenes) -> Tensor:
    return ls_covariance(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power)


def _alternating_least_squares(scenes: Scenes) -> Tensor:
    # The rank is what the system allows at most; the number of sources in the scene is not for an estimator to know.
    rank = scenes.config.max_sources
    factor = als_covariance(scenes.y, scenes.codes, scenes.channel, rank, noise_power=scenes.noise_power)
    return covariance_from_factor(factor)


_ESTIMATORS: dict[str, Callable[[Scenes], Tensor]] = {TRUE: _true, LS: _least_squares, ALS: _alternating_least_squares}


def _localise(
    name: str,
    estimate: Callable[[Scenes], Tensor],
    parts: Sequence[Scenes],
    grid: SearchGrid,
    shown: int,
    report: ReportProgress,
) -> _Run:
    """One method on every scene."""
    found: list[Sources] = []
    covariances: list[Tensor] = []
    covariance_s = detection_s = 0.0
    n_scenes = sum(len(part) for part in parts)
    report(name, 0, n_scenes)
    for part in parts:
        started = time.perf_counter()
        covariance = effective_covariance(estimate(part))
        _synchronise(covariance.device)
        estimated = time.perf_counter()
        found += detect_sources(covariance, part.config.array, grid)
        _synchronise(covariance.device)
        covariance_s += estimated - started
        detection_s += time.perf_counter() - estimated
        covariances += covariance.unbind()
        report(name, len(found), n_scenes)
    return _Run(found, covariances[shown], covariance_s, detection_s)


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock around its work tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _score(name: str, run: _Run, truth: Sequence[Tensor]) -> MethodScore:
    matches = [match(found.position, true) for found, true in zip(run.found, truth, strict=True)]
    per_scene_ms = 1e3 / len(matches)
    return MethodScore(
        name, matches, summarise(matches), run.covariance_s * per_scene_ms, run.detection_s * per_scene_ms
    )


def format_scores(report: DemoReport) -> str:
    """The table: one line per kind of covariance; errors are those of the hits, in degrees and metres.

    Parameters
    ----------
    report : DemoReport

    Returns
    -------
    str
        Lines without trailing blanks: the conditions, an empty line, two of headings, and the rows.
    """
    columns = (
        "method",
        "found",
        "missed",
        "ghosts",
        "F1",
        "az deg",
        "el deg",
        "range m",
        "xyz m",
        "ms/scene",
        "ms/scene",
    )
    above = ("", "", "", "", "", "rms", "rms", "rms", "median", "covariance", "detection")
    rows = [above, columns, *(_table_row(score) for score in report.scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([_conditions(report), "", *(line.rstrip() for line in lines)])


def _conditions(report: DemoReport) -> str:
    summary, (low, high) = report.scores[0].summary, report.system.snr_db
    return (
        f"{summary.scenes} scenes of the reference system (seed {report.options.seed}), {summary.sources} sources, "
        f"{report.options.snapshots} snapshots a scene, SNR {low:g} to {high:g} dB"
    )


def _table_row(score: MethodScore) -> tuple[str, ...]:
    s = score.summary
    errors = (
        math.degrees(s.rmse_azimuth_rad),
        math.degrees(s.rmse_elevation_rad),
        s.rmse_range_m,
        s.median_xyz_pairs_m,
    )
    return (
        score.name,
        *(str(count) for count in (s.found, s.missed, s.ghosts)),
        f"{s.f1:.3f}",
        *(_rounded(error) for error in errors),
        *(f"{duration:.0f}" for duration in (score.covariance_ms, score.detection_ms)),
    )


def _rounded(error: float) -> str:
    if math.isnan(error):
        return "-"
    return f"{error:.3f}" if error >= 5e-4 else f"{error:.0e}"


def explanation(report: DemoReport) -> str:
    """How to read the table, and why the sample covariances do worse than the true one.

    Parameters
    ----------
    report : DemoReport

    Returns
    -------
    str
        Lines of at most 105 characters.
    """
    gate, system = Tolerance(), report.system
    lines = (
        f"found: within {math.degrees(gate.azimuth_rad):g} deg, {math.degrees(gate.elevation_rad):g} deg and "
        f"{gate.range_m:g} m after optimal matching; rms errors are of these, the median is of all matched pairs.",
        "The true covariance is what no measurement gives: it shows what the search itself can do. Each snapshot tells "
        f"the sample covariances only {system.n_antennas} noisy numbers about the field on {system.array.n_elements} "
        "elements, so they are incomplete and biased, their peaks are broad, and they lose sources and range.",
    )
    return "\n".join(textwrap.fill(line, _TEXT_WIDTH) for line in lines)
