"""Fit the probability of each number of sources of a model, from the evidence for it.

    python -m risfast.train.count --model runs/x/model

localises scenes of a seed of its own, on the path and with the options that the model is used with, fits the
temperature and the offsets of :class:`risfast.localize.count.CountModel` to their true numbers, of sources of equal
powers and of powers that fall with range, writes ``count.json`` into the model folder, and draws how often the most
probable number was right on other scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from risfast.localize import pipeline
from risfast.localize.count import COUNTS, CountModel, load_counts, polished_evidence, save_counts
from risfast.simulate.scenes import SystemConfig, generate_scenes
from risfast.train.confidence import Subject, draw, polished_scenes, reliability

SEED = 640_003
# Sources of one power are counted as such; a spread is for all.
_GAINS = {"equal": ("equal",), "spread": ("equal", "inverse_range")}
_RIDGE = 1e-3  # holds the offsets of numbers that no scene has
_STEPS = 100


class Counted(NamedTuple):
    """Evidence for each number of sources, and the true one."""

    evidence: Tensor  # (S, K + 1)
    number: Tensor  # (S,)

    @classmethod
    def joined(cls, parts: Sequence[Counted]) -> Counted:
        """All of several."""
        return cls(torch.cat([p.evidence for p in parts]), torch.cat([p.number for p in parts]))


def counted(subject: Subject, system: SystemConfig, powers: str, scenes: range, seed: int = SEED) -> Counted:
    """Evidence for the scenes of a system."""
    parts, options = [], subject.options
    with tqdm(total=len(scenes), unit="scenes", desc=f"{powers}, {system.gain}, L = {system.n_snapshots}") as bar:
        for start in range(0, len(scenes), options.scenes_at_once):
            batch = generate_scenes(system, seed, scenes[start : start + options.scenes_at_once])
            measurement = pipeline.measure(batch, options)
            polished, _ = polished_scenes(subject, measurement)
            evidence = polished_evidence(measurement, polished, subject.parts.atoms, options.polish, powers)
            parts.append(Counted(evidence, batch.n_sources))
            bar.update(len(batch))
    return Counted.joined(parts)


def fit_counts(data: Counted, most: int) -> CountModel:
    """Maximum likelihood with a small ridge on the offsets.

    ``most`` sources are what scenes have at the most; all larger numbers share one more offset.
    """
    evidence = data.evidence - data.evidence.amax(1, keepdim=True)
    rows = torch.arange(evidence.shape[1]).clamp_max(most + 1)
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(most + 2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature, offsets], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = log_temperature.exp() * evidence + offsets[rows]
        value = torch.nn.functional.cross_entropy(logits, data.number) + _RIDGE * offsets.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return CountModel(float(log_temperature.detach().exp()), tuple(offsets.tolist()))


def fit_counts_from_arguments(arguments: list[str] | None = None) -> None:
    """Fit, check on other scenes, write and draw."""
    parser = argparse.ArgumentParser(description="Fit the probability of each number of sources of a model.")
    parser.add_argument("--model", type=Path, required=True, help="model folder; count.json is written into it")
    parser.add_argument(
        "--scenes", type=int, default=1000, help="scenes for each number of snapshots and kind of power"
    )
    parser.add_argument("--snapshots", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--powers", nargs="+", choices=COUNTS[1:], default=COUNTS[1:], help="what is fitted")
    parser.add_argument("--picture", type=Path, default=Path("count.png"))
    given = parser.parse_args(arguments)
    if min(given.scenes, *given.snapshots) < 1:
        parser.error("--scenes and --snapshots must be at least 1")
    subject = Subject.load(given.model)
    most = subject.system.max_sources
    most_tried = subject.options.polish.max_sources
    if most > most_tried:
        parser.error(f"scenes have up to {most} sources, and the polish looks for {most_tried} at the most")
    known, fitted = load_counts(given.model)
    models, curves = dict(known), {}
    for powers in given.powers:
        parts = []
        for length in given.snapshots:
            for gain in _GAINS[powers]:
                # A scene without a source is one of the numbers.
                system = replace(subject.system, n_snapshots=length, gain=gain, n_sources=(0, most))
                parts.append(counted(subject, system, powers, range(given.scenes)))
        cut = int(0.8 * given.scenes)
        tried = fit_counts(Counted.joined([Counted(*(v[:cut] for v in part)) for part in parts]), most)
        rest = Counted.joined([Counted(*(v[cut:] for v in part)) for part in parts])
        probability, likeliest = tried.probability(rest.evidence).max(1)
        right = (likeliest == rest.number).double()
        curves[f"{powers} powers"] = reliability(probability, right)
        print(f"{powers}: {float(right.mean()):.3f} right, {float(probability.mean()):.3f} said, on other scenes")
        models[powers] = fit_counts(Counted.joined(parts), most)
        print(models[powers])
        fitted[powers] = {"seed": SEED, "scenes": given.scenes, "snapshots": given.snapshots}
    draw(given.picture, curves, ("probability of the likeliest number", "share of scenes where it is right"))
    save_counts(given.model, models, fitted)


if __name__ == "__main__":
    fit_counts_from_arguments()
