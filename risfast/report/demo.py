"""What risfast does, on full-size scenes of the reference system: the shipped localizer beside the bound and Capon."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from risfast.baselines.capon import AlsCapon, LsCapon
from risfast.covariance import effective_covariance
from risfast.detect import detect_sources
from risfast.evaluate import match
from risfast.evaluate.collected import bound_errors, score_against, truth_of
from risfast.evaluate.figures import Interval, bootstrap
from risfast.evaluate.matching import Array
from risfast.evaluate.metrics import Scores
from risfast.evaluate.suite import truth_record
from risfast.geometry import SearchGrid, direction_cosines
from risfast.localize import Localizer, pipeline
from risfast.models import CovarianceEstimate, Measurement
from risfast.report.demo_options import SEEDS, DemoOptions
from risfast.report.demo_pictures import ALS, LOCALIZER, LS, TRUE, Answer, Illustration, StageReport, draw_demo
from risfast.report.tables import Sheet
from risfast.setup import MOST_POINTS
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes
from risfast.sources import Sources

DemoMethod = Callable[[Scenes], Answer]

_SCENES_AT_ONCE = 10
_FIRST_SEED = 0x64656D6F * SEEDS  # the demo's own block: the shipped checkpoint was trained on none of it
_TEXT_WIDTH = 105  # of the table
_LEGIBLE_RAD = math.radians(8.0)  # closer markers touch in the picture
_TYPICAL_SNR_DB = 3.0  # from the middle of the range
_POINTS = {"reference": MOST_POINTS, "training": 1 << 14}  # at most, of a grid


class MethodScore(NamedTuple):
    """How one method did."""

    name: str
    scores: Scores
    # Every figure of :data:`risfast.evaluate.figures.FIGURES` with its 95 % interval over the scenes
    figures: dict[str, Interval]
    # Wall time in milliseconds, from the measurements (of the first Capon row: from the covariance) to the sources
    ms_per_scene: float


class BoundReference(NamedTuple):
    """What unbiased estimators that reach the Cramér-Rao bound would do on the same scenes."""

    # Mean over the sources of the chance that an error as large as the bound is a hit, with its 95 % interval
    implied_recall: Interval
    # (T, D) D random position errors of each of the T sources in metres, Gaussian with the bound's covariance
    error_m: Array


class DemoReport(NamedTuple):
    """Everything the demo has to say."""

    scores: list[MethodScore]  # One per method, the localizer first
    bound: BoundReference  # On the same scenes
    pictures: Mapping[str, Path]  # What each picture shows, and where it is
    options: DemoOptions  # What was asked for
    system: SystemConfig  # What was simulated


def run_demo(options: DemoOptions, progress: StageReport | None = None) -> DemoReport:
    """Simulate scenes, localise their sources with each method, score what was found and draw pictures."""
    report = progress or (lambda stage, done, total: None)
    options.output.mkdir(parents=True, exist_ok=True)
    parts = _simulate(options, report)
    system = parts[0].config
    shown = illustrative_scene(parts)
    scene = demo_scenes(options, range(shown, shown + 1))
    localizer = Localizer.from_pretrained().to(options.device)
    grid = localizer.setup.search_grid(most_points=_POINTS[options.grid])
    gate = system.setup.tolerance
    truth = truth_of([truth_record(part, 0, gate) for part in parts])
    methods = demo_methods(localizer, grid)
    # Also a first call, which builds plans and tables; the clock is to show what a scene costs.
    answers: dict[str, Answer] = {}
    for name, method in methods.items():
        report("preparing", len(answers), len(methods))
        answers[name] = method(scene)
    report("preparing", len(methods), len(methods))
    scores = []
    for name, method in methods.items():
        found, seconds = _timed(name, method, parts, report)
        own = score_against([sources.position for sources in found], truth, gate)
        scores.append(MethodScore(name, own, bootstrap(own), 1e3 * seconds / options.scenes))
    bound = BoundReference(scores[0].figures["implied_recall"], bound_errors(truth))
    taken = f"{options.snapshots} snapshots of {system.n_antennas} antennas at {float(scene.snr_db[0]):.0f} dB SNR"
    true = scene.position[0][scene.mask[0]].cpu()
    illustration = Illustration(
        shown,
        {LOCALIZER: taken, TRUE: "the true covariance", LS: f"{taken}, least squares"},
        true,
        answers,
        {name: match(answer.sources[0].position, true, gate) for name, answer in answers.items()},
    )
    by_name = {score.name: score.scores for score in scores}
    pictures = draw_demo(options.output, localizer.setup, grid, illustration, by_name, bound.error_m, report)
    return DemoReport(scores, bound, pictures, options, system)


def demo_methods(localizer: Localizer, grid: SearchGrid) -> dict[str, DemoMethod]:
    """The localizer, and Capon on covariances of three kinds."""
    # None is told how many sources there are. The localizer estimates the noise; the sample covariances are told it.

    def localized(scenes: Scenes) -> Answer:
        measurement = pipeline.measure(scenes, localizer.options)
        result = pipeline.run(localizer.parts, measurement, localizer.options)
        estimate = CovarianceEstimate(result.factor, noise_power=result.noise_power)
        covariance = pipeline.effective(estimate, measurement, localizer.options)
        return Answer(result.sources, covariance, result.position_covariance)

    def capon(estimate: Callable[[Scenes], Tensor]) -> DemoMethod:
        def searched(scenes: Scenes) -> Answer:
            covariance = effective_covariance(estimate(scenes))
            return Answer(detect_sources(covariance, localizer.setup, grid), covariance)

        return searched

    def sampled(kind: type[LsCapon]) -> Callable[[Scenes], Tensor]:
        estimator = kind(localizer.setup)
        return lambda scenes: estimator.covariance(Measurement.of(scenes, noise_known=True), None)

    kinds = {TRUE: Scenes.true_covariance, LS: sampled(LsCapon), ALS: sampled(AlsCapon)}
    return {LOCALIZER: localized, **{name: capon(estimate) for name, estimate in kinds.items()}}


def _timed(name: str, method: DemoMethod, parts: Sequence[Scenes], report: StageReport) -> tuple[list[Sources], float]:
    """What a method finds in every scene, and its wall time."""
    found: list[Sources] = []
    seconds, total = 0.0, sum(map(len, parts))
    report(name, 0, total)
    for part in parts:
        started = time.perf_counter()
        answer = method(part)
        if answer.covariance.is_cuda:  # so that the clock tells the truth
            torch.cuda.synchronize(answer.covariance.device)
        seconds += time.perf_counter() - started
        found += answer.sources
        report(name, len(found), total)
    return found, seconds


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


def _simulate(options: DemoOptions, report: StageReport) -> list[Scenes]:
    """The scenes, in batches that are small enough to show progress."""
    parts: list[Scenes] = []
    for first in range(0, options.scenes, _SCENES_AT_ONCE):
        report("simulating", first, options.scenes)
        parts.append(demo_scenes(options, range(first, min(first + _SCENES_AT_ONCE, options.scenes))))
    report("simulating", options.scenes, options.scenes)
    return parts


_HEADS = (
    *("method", "scenes", "F1", "95 %\ninterval", "recall", "false alarms\na scene", "median\nxyz m", "count\nright"),
    "ms\na scene",
)


def format_scores(report: DemoReport) -> str:
    """The table: one line per method, and one for the Cramér-Rao bound."""
    options, bound, (low, high) = report.options, report.bound, report.system.snr_db
    conditions = (
        f"{options.scenes} scenes of the reference system (seed {options.seed}), {len(bound.error_m)} sources, "
        f"{options.snapshots} snapshots a scene, SNR {low:g} to {high:g} dB"
    )
    scenes, implied, error = str(options.scenes), f"{bound.implied_recall.value:.3f}", float(np.median(bound.error_m))
    localizer, *others = [(score.name, scenes, *_cells(score)) for score in report.scores]
    of_bound = ("Cramer-Rao bound", scenes, "-", "-", implied, "-", _rounded(error), "-", "-")
    return f"{conditions}\n\n{Sheet(_HEADS, [localizer, of_bound, *others]).text()}"


def _cells(score: MethodScore) -> tuple[str, ...]:
    f1, names = score.figures["f1"], ("recall", "ghosts_per_scene", "median_xyz_pairs_m", "count_accuracy")
    recall, ghosts, error_m, right = (score.figures[name].value for name in names)
    found = (f"{f1.value:.3f}", f"{f1.low:.2f}-{f1.high:.2f}", f"{recall:.3f}", f"{ghosts:.2f}")
    return (*found, _rounded(error_m), f"{right:.2f}", f"{score.ms_per_scene:.0f}")


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
