"""Fit the probability of a hit of a trained backbone's polished sources.

    python -m risfast.train.confidence --model runs/x/model

localises scenes of a seed of its own (no training and no test uses it), on the path and with the options that the
model is used with, matches them with the truth, fits the logistic regression of :mod:`risfast.localize.confidence`,
writes ``confidence.json`` into the model folder, and draws how often sources of each probability were hits on other
scenes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from risfast.evaluate import match
from risfast.io.guard import inside
from risfast.io.options_file import read_options
from risfast.io.toml_file import from_table
from risfast.localize import pipeline
from risfast.localize.confidence import FEATURES, HitModel, hit_features
from risfast.localize.localizer import OPTIONS_FILE, REFINER_FOLDER
from risfast.localize.pipeline import Parts, PipelineOptions
from risfast.localize.polish import Polished
from risfast.localize.refiner import load_helpful_refiner
from risfast.models import build_backbone
from risfast.models.base import Measurement, SourceMap
from risfast.models.files import MODEL_CARD, load_model
from risfast.setup import Setup
from risfast.simulate.codes import CODE_KINDS
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.simulate.system_file import SystemOptions

SEED = 640_001
_DECAY = 1e-3
_LOG_SECONDS = 20.0  # between two lines of progress where stderr is no terminal


class Labelled(NamedTuple):
    """Sources that were found, and which of them are hits."""

    features: Tensor  # (S, len(FEATURES)
    hit: Tensor  # (S,) 1 where the source is within the tolerance of the true source that it is matched with

    @classmethod
    def joined(cls, parts: Sequence[Labelled]) -> Labelled:
        """All of several."""
        return cls(torch.cat([p.features for p in parts]), torch.cat([p.hit for p in parts]))


@dataclass(frozen=True)
class Subject:
    """A model whose confidence is fitted: without calibration, with the options that it is used with."""

    parts: Parts  # With a backbone that has a map of expected counts
    options: PipelineOptions
    system: SystemConfig  # Whose scenes it is fitted on; their L is not looked at
    folder: Path | None = None  # Where the model is; further processes read it from there

    @classmethod
    def load(cls, folder: Path) -> Subject:
        """From a model folder, whatever its ``confidence.json`` is of."""
        module, card = load_model(folder, build_backbone)
        setup = Setup.from_json(card["setup"])
        stored, within = inside(folder, OPTIONS_FILE), folder / REFINER_FOLDER
        options = read_options(stored) if stored.is_file() else PipelineOptions()
        refiner = load_helpful_refiner(within, card, setup) if (within / MODEL_CARD).is_file() else None
        return cls(Parts(module, setup, refiner=refiner), options, training_system(setup, card), folder)


def training_system(setup: Setup, card: dict[str, Any]) -> SystemConfig:
    """The system that a model was trained on, as its card says, or the reference system's with the model's setup."""
    training = card.get("training", {})
    # The array is the setup's, whatever became of the file that it was read from.
    told = {**training.get("system", {}), "array": "", "wavefront": setup.wavefront}
    kinds = tuple(training.get("data", {}).get("code_kinds", CODE_KINDS))
    intervals: dict[str, Any] = setup.region.intervals
    return replace(from_table(SystemOptions, told).system(1, kinds), array=setup.array, **intervals)


@torch.no_grad()
def labelled(subject: Subject, snapshots: int, scenes: range, seed: int = SEED) -> Labelled:
    """Features and outcomes of the sources that the polish of some scenes ends with, before any decision."""
    system, at_once = replace(subject.system, n_snapshots=snapshots), subject.options.scenes_at_once
    rows, hits = [torch.zeros(0, len(FEATURES), dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
    for start in range(0, len(scenes), at_once):
        batch = generate_scenes(system, seed, scenes[start : start + at_once])
        polished, maps = polished_scenes(subject, pipeline.measure(batch, subject.options))
        cells = subject.parts.backbone.range_cells
        rows += hit_features(polished, maps, cells, subject.parts.setup, snapshots)  # type: ignore[arg-type]
        for i, sources in enumerate(polished.sources):
            pairs = match(sources.position, batch.position[i][batch.mask[i]], subject.parts.setup.tolerance)
            outcome = torch.zeros(len(sources), dtype=torch.float64)
            outcome[torch.as_tensor(pairs.pairs[pairs.hit, 0])] = 1.0
            hits.append(outcome)
    return Labelled(torch.cat(rows), torch.cat(hits))


def polished_scenes(subject: Subject, measurement: Measurement) -> tuple[Polished, SourceMap]:
    """The path up to where the confidence decides."""
    parts, options = subject.parts, replace(subject.options, polished=True)
    found = pipeline.estimate(parts, measurement)
    if found.sources is None:
        raise ValueError("this backbone expects no counts of sources: there is nothing to fit its confidence on")
    starts, _ = pipeline.candidates(parts, measurement, found, options)
    return pipeline.polish(parts, measurement, starts, found, options), found.sources


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> Subject:
    """What a process of a pool works with, on one thread."""
    torch.set_num_threads(1)
    return Subject.load(folder)


def _task(folder: Path, of: tuple[int, range]) -> Labelled:
    return labelled(_loaded(folder), *of)


def all_labelled(subject: Subject, snapshots: Sequence[int], scenes: int, workers: int = 1) -> dict[int, Labelled]:
    """:func:`labelled` for each L; the same from any number of processes."""
    size = subject.options.scenes_at_once
    tasks = [(n, range(a, min(a + size, scenes))) for n in snapshots for a in range(0, scenes, size)]
    parts: dict[int, list[Labelled]] = {n: [] for n in snapshots}
    between = 0.1 if sys.stderr.isatty() else _LOG_SECONDS
    with tqdm(total=scenes * len(snapshots), unit="scenes", desc="localising", mininterval=between) as bar:
        for (n, part), found in zip(tasks, _results(subject, tasks, workers), strict=True):
            parts[n].append(found)
            bar.update(len(part))
    return {n: Labelled.joined(found) for n, found in parts.items()}


def _results(subject: Subject, tasks: Sequence[tuple[int, range]], workers: int) -> Iterator[Labelled]:
    if workers == 1:
        yield from (labelled(subject, *task) for task in tasks)
        return
    if subject.folder is None:
        raise ValueError("further processes read the model from its folder, and this one has none")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(partial(_task, subject.folder), tasks)


def fit(features: Tensor, hit: Tensor) -> HitModel:
    """Maximum-likelihood logistic regression with a small ridge on the standardised weights.

    features (S, len(FEATURES), hit (S,)
    """
    # Newton's method: the objective is convex.
    if not 0 < float(hit.mean()) < 1:
        raise ValueError("a hit model needs sources that are hits and sources that are not; take more scenes")
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-9)
    x = torch.cat([(features - mean) / deviation, torch.ones_like(hit)[:, None]], 1)
    ridge = _DECAY * len(hit) * torch.eye(x.shape[1], dtype=x.dtype)
    ridge[-1, -1] = 0.0
    w = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        gradient = x.mT @ (hit - p) - ridge @ w
        step = torch.linalg.solve((x * (p * (1 - p))[:, None]).mT @ x + ridge, gradient)
        w = w + step
        if float(step.abs().max()) < 1e-9:
            break
    weights = w[:-1] / deviation
    return HitModel(tuple(weights.tolist()), float(w[-1] - weights @ mean))


def reliability(probability: Tensor, hit: Tensor, bins: int = 10) -> Tensor:
    """How often sources of about the same probability were hits.

    probability, hit (S,) -> (bins, 3)
    """
    order = probability.argsort()
    rows = []
    for part in order.chunk(bins):
        share = hit[part].mean()
        rows.append(torch.stack([probability[part].mean(), share, (share * (1 - share) / len(part)).sqrt()]))
    return torch.stack(rows)


def draw(
    path: Path,
    curves: dict[str, Tensor],
    labels: tuple[str, str] = ("confidence", "share of hits among reported sources"),
) -> None:
    """Write the reliability diagram."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, label="calibrated")
    for name, rows in curves.items():
        axes.errorbar(rows[:, 0], rows[:, 1], 2 * rows[:, 2], fmt="o-", ms=4, capsize=2, label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1], title="Scenes that it was not fitted on")
    axes.legend()
    figure.savefig(path, dpi=110)


def fit_from_arguments(arguments: list[str] | None = None) -> None:
    """Fit, check on other scenes, write and draw."""
    parser = argparse.ArgumentParser(description="Fit the probability of a hit of a model's polished sources.")
    parser.add_argument("--model", type=Path, required=True, help="model folder; confidence.json is written into it")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes for each number of snapshots")
    parser.add_argument("--snapshots", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--picture", type=Path, default=Path("confidence.png"))
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    given = parser.parse_args(arguments)
    if min(given.scenes, given.workers, *given.snapshots) < 1:
        parser.error("--scenes, --workers and --snapshots must be at least 1")
    subject = Subject.load(given.model)
    parts = all_labelled(subject, given.snapshots, given.scenes, given.workers)
    cut = {n: int(0.8 * len(part.hit)) for n, part in parts.items()}
    held_in = fit(*Labelled.joined([Labelled(x[: cut[n]], hit[: cut[n]]) for n, (x, hit) in parts.items()]))
    curves = {}
    for n, (x, hit) in parts.items():
        p, h = held_in.probability(x[cut[n] :]), hit[cut[n] :]
        curves[f"L = {n}"] = reliability(p, h)
        print(f"L = {n}: Brier score {float((p - h).square().mean()):.3f}, of the mean {float(h.var()):.3f}")
    draw(given.picture, curves)
    model = fit(*Labelled.joined(list(parts.values())))
    for name, weight in zip(FEATURES, model.weights, strict=True):
        print(f"{name:46s} {weight:8.3f}")
    kinds = list(subject.system.code_kinds)
    model.save(given.model, {"seed": SEED, "scenes": given.scenes, "snapshots": given.snapshots, "codes": kinds})


if __name__ == "__main__":
    fit_from_arguments()
