"""Fit the probability of a hit of a trained backbone's polished sources.

    python -m risfast.train.confidence --model runs/x/model

localises scenes of a seed of its own (no training and no test uses it), matches them with the truth, fits the
logistic regression of :mod:`risfast.confidence`, writes ``confidence.json`` into the model folder, and draws how
often sources of each probability were hits on other scenes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from risfast.confidence import FEATURES, HitModel, hit_features
from risfast.data.scenes import SystemConfig, generate_scenes
from risfast.evaluate import match
from risfast.localize import Localizer
from risfast.models import Measurement
from risfast.polish import polish_sources

SEED = 640_001
CODE_KINDS = ("dft", "random", "hadamard", "mixed")
_BATCH = 16
_DECAY = 1e-3


@torch.no_grad()
def labelled(localizer: Localizer, snapshots: int, scenes: range, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Features and outcomes of the sources found in scenes of the reference system.

    Parameters
    ----------
    localizer : Localizer
        With a backbone that has a map of expected counts.
    snapshots : int
        L.
    scenes : range
        Indices of the scenes.
    seed : int

    Returns
    -------
    features : float64 tensor, shape (S, len(FEATURES))
    hit : float64 tensor, shape (S,)
        1 where the source is within the tolerance of the true source that it is matched with.
    """
    config = SystemConfig(n_snapshots=snapshots, code_kinds=CODE_KINDS)
    rows, hits = [], []
    for start in range(0, len(scenes), _BATCH):
        batch = generate_scenes(config, seed, scenes[start : start + _BATCH])
        measurement = Measurement.of(batch, noise_known=False)
        estimate = localizer.backbone(measurement)
        found = localizer.backbone.sources(estimate, **localizer.options.candidates)  # type: ignore[operator]
        polished = polish_sources(
            measurement,
            found,
            localizer.backbone.atoms,  # type: ignore[arg-type]
            localizer.options.polish,
            noise_power=estimate.noise_power,
        )
        rows += hit_features(polished, estimate.sources, localizer.backbone.range_cells, snapshots)  # type: ignore[arg-type]
        for i, sources in enumerate(polished.sources):
            pairs = match(sources.position, batch.position[i][batch.mask[i]])
            outcome = torch.zeros(len(sources), dtype=torch.float64)
            outcome[torch.as_tensor(pairs.pairs[pairs.hit, 0])] = 1.0
            hits.append(outcome)
        sys.stderr.write(f"\rL = {snapshots}: {min(start + _BATCH, len(scenes))}/{len(scenes)} scenes")
    sys.stderr.write("\n")
    return torch.cat(rows), torch.cat(hits)


def fit(features: Tensor, hit: Tensor) -> HitModel:
    """Maximum-likelihood logistic regression with a small ridge on the standardised weights.

    Parameters
    ----------
    features : float64 tensor, shape (S, len(FEATURES))
    hit : float64 tensor, shape (S,)

    Returns
    -------
    HitModel

    Raises
    ------
    ValueError
        All sources are hits, or none is.

    Notes
    -----
    Newton's method: the objective is convex.
    """
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

    Parameters
    ----------
    probability, hit : float64 tensors, shape (S,)
    bins : int
        Of equal counts.

    Returns
    -------
    float64 tensor, shape (bins, 3)
        Mean probability, share of hits, and the standard error of that share.
    """
    order = probability.argsort()
    rows = []
    for part in order.chunk(bins):
        share = hit[part].mean()
        error = (share * (1 - share) / len(part)).sqrt()
        rows.append(torch.stack([probability[part].mean(), share, error]))
    return torch.stack(rows)


def draw(path: Path, curves: dict[str, Tensor]) -> None:
    """Write the reliability diagram.

    Parameters
    ----------
    path : Path
        PNG.
    curves : dict of str to tensor
        Results of :func:`reliability`.
    """
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, label="calibrated")
    for name, rows in curves.items():
        axes.errorbar(rows[:, 0], rows[:, 1], 2 * rows[:, 2], fmt="o-", ms=4, capsize=2, label=name)
    axes.set(xlabel="confidence", ylabel="share of hits", title="Unseen scenes: hits among reported sources")
    axes.legend()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """Fit, check on other scenes, write and draw.

    Parameters
    ----------
    arguments : list of str, optional
        Of the command line.
    """
    parser = argparse.ArgumentParser(description="Fit the probability of a hit of a model's polished sources.")
    parser.add_argument("--model", type=Path, required=True, help="model folder; confidence.json is written into it")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes for each number of snapshots")
    parser.add_argument("--snapshots", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--picture", type=Path, default=Path("confidence.png"))
    given = parser.parse_args(arguments)
    localizer = Localizer.load(given.model)
    parts = {n: labelled(localizer, n, range(given.scenes)) for n in given.snapshots}
    cut = {n: int(0.8 * len(hit)) for n, (_, hit) in parts.items()}
    held_in = fit(
        torch.cat([x[: cut[n]] for n, (x, _) in parts.items()]), torch.cat([h[: cut[n]] for n, (_, h) in parts.items()])
    )
    curves = {}
    for n, (x, hit) in parts.items():
        p, h = held_in.probability(x[cut[n] :]), hit[cut[n] :]
        curves[f"L = {n}"] = reliability(p, h)
        print(f"L = {n}: Brier score {float((p - h).square().mean()):.3f}, of the mean {float(h.var()):.3f}")
    draw(given.picture, curves)
    model = fit(torch.cat([x for x, _ in parts.values()]), torch.cat([h for _, h in parts.values()]))
    for name, weight in zip(FEATURES, model.weights, strict=True):
        print(f"{name:36s} {weight:8.3f}")
    model.save(
        given.model,
        {"seed": SEED, "scenes": given.scenes, "snapshots": given.snapshots, "codes": list(CODE_KINDS)},
    )


if __name__ == "__main__":
    main()
