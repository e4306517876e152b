"""The methods of the demo: what each finds in every scene, in what time, and how it is scored beside the bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from risfast.covariance import als_covariance, covariance_from_factor, effective_covariance, ls_covariance
from risfast.detect import detect_sources
from risfast.evaluate import Match, match
from risfast.evaluate.bounds import SourceBound
from risfast.evaluate.collected import Truth, bound_errors
from risfast.evaluate.figures import Interval, bootstrap
from risfast.evaluate.matching import Array
from risfast.evaluate.metrics import Scores, score_scenes
from risfast.geometry import SearchGrid
from risfast.localize import Localizer, pipeline
from risfast.models import CovarianceEstimate
from risfast.simulate.scenes import Scenes
from risfast.sources import Sources

__all__ = [
    "ALS",
    "LOCALIZER",
    "LS",
    "TRUE",
    "Answer",
    "BoundReference",
    "MethodRun",
    "MethodScore",
    "bound_reference",
    "demo_methods",
    "run_method",
    "score_run",
    "true_positions",
]

LOCALIZER = "risfast Localizer"
TRUE, LS, ALS = "Capon, true covariance", "Capon, LS covariance", "Capon, ALS covariance"


class Answer(NamedTuple):
    """What a method made of B scenes."""

    sources: list[Sources]
    covariance: Tensor  # (B, N, N) The effective covariance that its spectrum is drawn from
    # (K, 3, 3) Of each source's (azimuth, elevation, range) in radians and metres, where the method says how sure it is
    position_covariance: list[Tensor] | None = None


Method = Callable[[Scenes], Answer]


class MethodRun(NamedTuple):
    """One method on all scenes."""

    found: list[list[Sources]]  # By batch, one each scene
    shown: Answer  # Of the scene that is drawn alone, B = 1
    seconds: float  # Wall time of all scenes


class MethodScore(NamedTuple):
    """How one method did."""

    name: str
    matches: list[Match]  # One per scene
    # Every figure of :data:`risfast.evaluate.figures.FIGURES` with its 95 % interval over the scenes
    figures: dict[str, Interval]
    # Wall time in milliseconds, from the measurements (of the first Capon row: from the covariance) to the sources
    ms_per_scene: float


class BoundReference(NamedTuple):
    """What unbiased estimators that reach the Cramér-Rao bound would do on the same scenes."""

    # Mean over the sources of the chance that an error as large as the bound is a hit, with its 95 % interval
    implied_recall: Interval
    median_xyz_m: float  # Median position error in metres
    # (T, D) D random position errors of each of the T sources in metres, Gaussian with the bound's covariance
    error_m: Array


def demo_methods(localizer: Localizer, grid: SearchGrid) -> dict[str, Method]:
    """The localizer, and Capon on covariances of three kinds."""
    # None is told how many sources there are. The localizer estimates the noise; the sample covariances are told it.
    # The rank of ALS is the most sources that the system allows.

    def localized(scenes: Scenes) -> Answer:
        measurement = pipeline.measure(scenes, localizer.options)
        result = pipeline.run(localizer.parts, measurement, localizer.options)
        estimate = CovarianceEstimate(result.factor, noise_power=result.noise_power)
        covariance = pipeline.effective(estimate, measurement, localizer.options)
        return Answer(result.sources, covariance, result.position_covariance)

    def capon(estimate: Callable[[Scenes], Tensor]) -> Method:
        def searched(scenes: Scenes) -> Answer:
            covariance = effective_covariance(estimate(scenes))
            return Answer(detect_sources(covariance, localizer.setup, grid), covariance)

        return searched

    kinds = {TRUE: Scenes.true_covariance, LS: _least_squares, ALS: _alternating_least_squares}
    return {LOCALIZER: localized, **{name: capon(estimate) for name, estimate in kinds.items()}}


def _least_squares(scenes: Scenes) -> Tensor:
    return ls_covariance(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power)


def _alternating_least_squares(scenes: Scenes) -> Tensor:
    # The rank is what the system allows at most; the number of sources in the scene is not for an estimator to know.
    rank = scenes.config.max_sources
    factor = als_covariance(scenes.y, scenes.codes, scenes.channel, rank, noise_power=scenes.noise_power)
    return covariance_from_factor(factor)


def run_method(method: Method, parts: Sequence[Scenes], shown: int, report: Callable[[int], None]) -> MethodRun:
    """One method on every scene."""
    found: list[list[Sources]] = []
    kept: list[Answer] = []
    seconds, done = 0.0, 0
    for part in parts:
        started = time.perf_counter()
        answer = method(part)
        _synchronise(answer.covariance.device)
        seconds += time.perf_counter() - started
        found.append(answer.sources)
        if done <= shown < done + len(part):
            kept.append(_one(answer, shown - done))
        done += len(part)
        report(done)
    return MethodRun(found, kept[0], seconds)


def _one(answer: Answer, index: int) -> Answer:
    position = answer.position_covariance
    one = slice(index, index + 1)
    return Answer(answer.sources[one], answer.covariance[one], None if position is None else position[one])


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock around its work tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def true_positions(parts: Sequence[Scenes]) -> list[Tensor]:
    """The true sources of every scene.

    -> (K, 3)
    """
    return [part.position[b][part.mask[b]].cpu() for part in parts for b in range(len(part))]


def score_run(name: str, run: MethodRun, parts: Sequence[Scenes], bounds: Sequence[SourceBound]) -> MethodScore:
    """Match and score what a method found."""
    scored = [score_scenes(f, p, bound=b) for f, p, b in zip(run.found, parts, bounds, strict=True)]
    flat = [sources for part in run.found for sources in part]
    gate = parts[0].config.setup.tolerance
    matches = [match(f.position, t, gate) for f, t in zip(flat, true_positions(parts), strict=True)]
    return MethodScore(name, matches, bootstrap(Scores.joined(scored)), 1e3 * run.seconds / len(matches))


def bound_reference(parts: Sequence[Scenes], bounds: Sequence[SourceBound], implied: Interval) -> BoundReference:
    """The bound over all scenes, in the figures that methods are compared by."""

    def sources(rows: Sequence[Tensor]) -> Array:
        """Of the true sources of all batches, one after the other."""
        chosen = [row[part.mask].double().cpu() for row, part in zip(rows, parts, strict=True)]
        return torch.cat(chosen).numpy()

    truth = Truth(
        snr_db=torch.cat([part.snr_db for part in parts]).double().cpu().numpy(),
        count=torch.cat([part.n_sources for part in parts]).cpu().numpy(),
        position=sources([part.position for part in parts]),
        covariance=sources([bound.covariance for bound in bounds]),
        position_m=sources([bound.position_m for bound in bounds]),
        implied=sources([bound.implied_recall() for bound in bounds]),
    )
    error_m = bound_errors(truth)
    return BoundReference(implied, float(np.median(error_m)), error_m)
