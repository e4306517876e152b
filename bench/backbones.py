"""Backbones side by side on the same unseen scenes: covariance error, sources found, time.

    python -m bench.backbones                                   # the shipped default and the classical fits
    python -m bench.backbones --model runs/transformer/model    # another trained model in the same table

writes ``bench/results/backbones.json`` and ``.png``. The scenes are of the reference system with 3-bit DFT and random
codes, of a seed that no training uses. Differences are paired over scenes, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from bench.measure import cpu_model, versions
from risfast.evaluate import match
from risfast.losses import factor_nmse
from risfast.models import Measurement, build_backbone
from risfast.models.atoms import AtomAxes
from risfast.models.files import load_model
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes

RESULTS = Path(__file__).parent / "results"
SEED = 77_001
CODE_KINDS = ("dft", "random")
FINE = AtomAxes(37, 21, 16)  # 12 432 atoms
FINE_NAME = "classical, 30 steps, 12 432 atoms"
_PAIRED = "less those of 12 432 atoms, paired"
RESAMPLES = 2000
LOW_SNR_DB = 5.0


@dataclass
class Scores:
    """Per scene figures of one backbone on one set."""

    name: str
    nmse: list[float] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    estimated: list[int] = field(default_factory=list)
    true: list[int] = field(default_factory=list)
    snr_db: list[float] = field(default_factory=list)
    vectors: list[torch.Tensor] = field(default_factory=list)  # factors, for the correlation between scenes
    seconds_batched: float = math.nan
    seconds_alone: float = math.nan

    def f1(self, picked: np.ndarray | slice = slice(None)) -> float:
        """2 hits / (estimated + true) over some of the scenes."""
        hits, estimated, true = (np.asarray(v)[picked].sum() for v in (self.hits, self.estimated, self.true))
        return float(2 * hits / max(estimated + true, 1))

    def correlation(self) -> float:
        """Mean cosine between the covariances of neighbouring, different scenes."""
        values = []
        for a, b in zip(self.vectors[:-1], self.vectors[1:], strict=True):
            cross = (a.mH @ b).abs().square().sum()
            norms = (a.mH @ a).abs().square().sum().sqrt() * (b.mH @ b).abs().square().sum().sqrt()
            values.append(float(cross / norms))
        return float(np.mean(values))


def classical(steps: int, axes: AtomAxes | None = None) -> Callable[[SystemConfig], nn.Module]:
    """The fit without learned parts."""

    def make(config: SystemConfig) -> nn.Module:
        options = UnrolledOptions(steps=steps, corrections=False, columns=96, axes=axes)
        return UnrolledBackbone(config.setup, options).eval()

    return make


def trained(folder: Path) -> Callable[[SystemConfig], nn.Module]:
    """A trained model."""
    return lambda config: load_model(folder, build_backbone, setup=config.setup)[0]


@torch.no_grad()
def score(name: str, module: nn.Module, scenes: Scenes, batch: int, alone: int) -> Scores:
    """Run a backbone over the scenes, in batches and some of them alone."""
    scores = Scores(name, true=scenes.n_sources.tolist(), snr_db=scenes.snr_db.tolist())
    measurement, truth = Measurement.of(scenes), scenes.true_factor()
    module(measurement[:1])
    spent = 0.0
    for start in range(0, len(scenes), batch):
        part = slice(start, min(start + batch, len(scenes)))
        began = time.process_time()
        estimate = module(measurement[part])
        spent += time.process_time() - began
        scores.nmse += factor_nmse(estimate.factor, truth[part]).tolist()
        scores.vectors += list(estimate.factor)
        for i, sources in enumerate(module.sources(estimate), start):
            result = match(sources.position, scenes.position[i][scenes.mask[i]], scenes.config.setup.tolerance)
            scores.hits.append(result.hits)
            scores.estimated.append(result.n_estimated)
        sys.stderr.write(f"\r{name}: {part.stop}/{len(scenes)}")
    sys.stderr.write("\n")
    scores.seconds_batched = spent / len(scenes)
    times = []
    for i in range(min(alone, len(scenes))):
        began = time.process_time()
        module(measurement[i : i + 1])
        times.append(time.process_time() - began)
    scores.seconds_alone = float(np.median(times)) if times else math.nan
    return scores


def interval(statistic: Callable[[np.ndarray], float], n: int) -> list[float]:
    """95 % bootstrap interval of a statistic of scene indices."""
    generator = np.random.default_rng(0)
    values = [statistic(generator.integers(0, n, n)) for _ in range(RESAMPLES)]
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def row(scores: Scores, reference: Scores) -> dict[str, object]:
    """Figures of one backbone, and its paired differences to the reference."""
    nmse, other = np.array(scores.nmse), np.array(reference.nmse)
    n = len(nmse)
    low = np.array(scores.snr_db) < LOW_SNR_DB
    hits, estimated, true = (sum(v) for v in (scores.hits, scores.estimated, scores.true))
    return {
        "nmse_mean": float(nmse.mean()),
        "nmse_mean_interval": interval(lambda i: float(nmse[i].mean()), n),
        "nmse_median": float(np.median(nmse)),
        "correlation": scores.correlation(),
        "f1": scores.f1(),
        "f1_interval": interval(scores.f1, n),
        "precision": hits / max(estimated, 1),
        "recall": hits / max(true, 1),
        "ghosts_per_scene": (estimated - hits) / n,
        "count_accuracy": float(np.mean(np.array(scores.estimated) == np.array(scores.true))),
        "f1_below_5_db": scores.f1(low),
        "f1_above_5_db": scores.f1(~low),
        "nmse_less_reference": float((nmse - other).mean()),
        "nmse_less_reference_interval": interval(lambda i: float((nmse - other)[i].mean()), n),
        "f1_less_reference": scores.f1() - reference.f1(),
        "f1_less_reference_interval": interval(lambda i: scores.f1(i) - reference.f1(i), n),
        "ms_batched": 1e3 * scores.seconds_batched,
        "ms_alone": 1e3 * scores.seconds_alone,
    }


def table(results: dict[str, dict[str, dict[str, object]]]) -> str:
    """What the terminal shows."""
    lines = []
    for name, rows in results.items():
        width = max(len(label) for label in (*rows, _PAIRED))
        heads = "NMSE mean  median  correl.     F1  <5 dB  >5 dB  ghosts  count  ms batched  alone"
        lines.append(f"{name}\n{'':{width}}  {heads}")
        lines += [
            f"{method:{width}}  {r['nmse_mean']:9.3f}  {r['nmse_median']:6.3f}  {r['correlation']:7.3f}  "
            f"{r['f1']:5.3f}  {r['f1_below_5_db']:5.3f}  {r['f1_above_5_db']:5.3f}  {r['ghosts_per_scene']:6.2f}  "
            f"{r['count_accuracy']:5.2f}  {r['ms_batched']:10.1f}  {r['ms_alone']:5.1f}"
            for method, r in rows.items()
        ]
        lines.append(f"{_PAIRED:{width}}  {'NMSE':23s}  F1")
        lines += [
            f"{method:{width}}  {difference(r, 'nmse_less_reference')}  {difference(r, 'f1_less_reference')}"
            for method, r in rows.items()
            if method != FINE_NAME
        ]
    return "\n".join(lines)


def difference(r: dict[str, object], key: str) -> str:
    """A paired difference with its interval."""
    low, high = r[f"{key}_interval"]  # type: ignore[misc]
    return f"{r[key]:+.3f} [{low:+.3f}, {high:+.3f}]"


def picture(results: dict[str, dict[str, dict[str, object]]], path: Path) -> None:
    """F1 and NMSE of every backbone, with intervals."""
    figure = Figure(figsize=(11, 0.8 + 1.1 * max(map(len, results.values()))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 * len(results), squeeze=False, sharey=True)[0]
    for column, (name, rows) in enumerate(results.items()):
        for ax, key, label in ((axes[2 * column], "nmse_mean", "NMSE, mean"), (axes[2 * column + 1], "f1", "F1")):
            for i, r in enumerate(rows.values()):
                low, high = r[f"{key}_interval"]  # type: ignore[misc]
                ax.barh(i, r[key], color="tab:blue" if i == 0 else "0.75")
                ax.plot([low, high], [i, i], color="black", linewidth=1.5)
            ax.set_yticks(range(len(rows)), list(rows))
            ax.set_title(name, fontsize="medium")
            ax.set_xlabel(label)
            ax.invert_yaxis() if column == 0 and key == "nmse_mean" else None
    figure.savefig(path, dpi=120)


def save(results: dict[str, dict[str, dict[str, object]]], options: argparse.Namespace) -> None:
    """The file of figures and the picture."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    made = {"seed": SEED, "scenes": options.scenes, "code_kinds": CODE_KINDS, "threads": options.threads}
    content = {"made": made, "cpu": cpu_model(), "versions": versions(), "reference": FINE_NAME, "results": results}
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    picture(results, options.output.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="scenes of each set (default: 300)")
    parser.add_argument("--snapshots", type=int, nargs="+", default=[16, 64], help="values of L (default: 16 64)")
    parser.add_argument("--default", type=Path, default=DEFAULT_MODEL, help="model folder of the first row")
    parser.add_argument("--model", type=Path, action="append", default=[], help="further model folders")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "backbones.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    methods: dict[str, Callable[[SystemConfig], nn.Module]] = {
        "default": trained(options.default),
        "classical, 6 steps": classical(6),
        "classical, 30 steps": classical(30),
        FINE_NAME: classical(30, FINE),
        **{folder.parent.name: trained(folder) for folder in options.model},
    }
    results: dict[str, dict[str, dict[str, object]]] = {}
    for n_snapshots in options.snapshots:
        config = SystemConfig(n_snapshots=n_snapshots, code_kinds=CODE_KINDS)
        scenes = generate_scenes(config, SEED, range(options.scenes))
        scores = {name: score(name, make(config), scenes, 16, 20) for name, make in methods.items()}
        results[f"L = {n_snapshots}"] = {name: row(s, scores[FINE_NAME]) for name, s in scores.items()}
        save(results, options)  # a set takes minutes: the next may be interrupted
    print(table(results))


if __name__ == "__main__":
    main()
