"""The sweep that chose the defaults of detection.

    OMP_NUM_THREADS=1 python -m bench.detection_sweep

takes about eight minutes on one core and writes ``bench/results/detection_sweep.csv`` and ``.png``; ``--quick`` looks
at a tenth of the scenes.

Peaks are refined once for each loading, window and number of candidates, by :func:`risfast.detect.detect_sources` with
its thresholds open. Suppression is greedy from the strongest peak down, so every threshold keeps a prefix of the same
list: prefixes are matched with the truth once, and thresholds then cost a look-up.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from risfast.covariance import als_covariance, covariance_from_factor, effective_covariance, ls_covariance
from risfast.detect import DetectionOptions, detect_sources
from risfast.evaluate import match
from risfast.ops import mvdr_spectrum, nms_3d
from risfast.setup import MOST_POINTS
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes

SEED = 2024
SCENES_AT_ONCE = 10
SHIPPED = DetectionOptions(separation_m=0.5)  # half the tolerance of the reference surface, as the default is there
SHIPPED_LOADING = 1e-2
SHIPPED_RULE = "peak"
MAD_TO_SIGMA = 1.4826
GATE = SystemConfig().setup.tolerance

LOADINGS = (1e-3, 1e-2, 1e-1, 1.0)
MAX_DB = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0)
MAD_Z = (0.0, 3.0, 4.0, 5.0, 6.0, 8.0)
PROMINENCE_DB = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
SEPARATIONS = ((0.25, 0.25), (1.0, 0.5), (2.0, 0.5), (5.0, 1.0), (5.0, math.inf), (10.0, math.inf))  # degrees, metres
WINDOWS = ((3, 3, 1), (3, 3, 3), (7, 7, 1), (7, 7, 3), (15, 15, 3))
CANDIDATES = (5, 10, 20, 40)
GRIDS = {"reference": MOST_POINTS, "training": 1 << 14}  # points at most
FEW_BATCHES = 3  # for what matters little: grid, window, candidates, separation
CSV_FIELDS = (
    *("covariance", "scenes", "loading", "grid", "window", "candidates", "separation_deg", "separation_m"),
    *("rule", "max_db", "mad_z", "prominence_db", "f1", "precision", "recall", "ghosts_per_scene", "count_accuracy"),
    *("rmse_azimuth_deg", "rmse_elevation_deg", "rmse_range_m"),
)

Row = dict[str, str | float]


class Thresholds(NamedTuple):
    """``rule`` "peak": max_db below the strongest power; "excess": of the powers less the background, its median."""

    rule: str
    max_db: float
    mad_z: float
    prominence_db: float


DEFAULT = Thresholds(SHIPPED_RULE, SHIPPED.max_db, SHIPPED.mad_z or 0.0, SHIPPED.prominence_db)
SWEPT = (
    *(DEFAULT._replace(rule="peak", max_db=max_db, mad_z=z) for max_db in MAX_DB for z in MAD_Z),
    *(DEFAULT._replace(rule="excess", max_db=max_db, mad_z=z) for max_db in MAX_DB for z in (4.0, 5.0, 6.0)),
    *(DEFAULT._replace(prominence_db=p) for p in PROMINENCE_DB),
)


def _true(scenes: Scenes) -> torch.Tensor:
    return scenes.true_covariance()


def _noisy(scenes: Scenes) -> torch.Tensor:
    """What an endless number of snapshots at the surface itself would give: white noise at the SNR of the scene."""
    return effective_covariance(scenes.true_covariance(), snr_db=scenes.snr_db)


def _least_squares(scenes: Scenes) -> torch.Tensor:
    return effective_covariance(ls_covariance(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power))


def _low_rank(scenes: Scenes) -> torch.Tensor:
    rank = scenes.config.max_sources
    factor = als_covariance(scenes.y, scenes.codes, scenes.channel, rank, noise_power=scenes.noise_power)
    return effective_covariance(covariance_from_factor(factor))


@dataclass(frozen=True)
class Family:
    """One kind of covariance and the scenes that it is made from."""

    name: str
    n_scenes: int
    system: SystemConfig
    estimate: Callable[[Scenes], torch.Tensor]


FAMILIES = (
    Family("true", 200, SystemConfig(), _true),
    Family("true, power 1/r^2", 60, SystemConfig(gain="inverse_range"), _true),
    Family("true + noise", 60, SystemConfig(), _noisy),
    Family("LS, L = 64", 100, SystemConfig(n_snapshots=64), _least_squares),
    Family("ALS, L = 64", 100, SystemConfig(n_snapshots=64), _low_rank),
    Family("LS, L = 16", 100, SystemConfig(n_snapshots=16), _least_squares),
    Family("ALS, L = 16", 100, SystemConfig(n_snapshots=16), _low_rank),
)


class Ranking(NamedTuple):
    """All refined peaks of one scene, strongest first."""

    position: torch.Tensor  # [P, 3] azimuth, elevation (radians), range (metres)
    level_db: np.ndarray  # [P]
    background_db: float  # median of the map
    mad_db: float
    truth: torch.Tensor  # [K, 3]


class Score(NamedTuple):
    """What each prefix of the list of peaks that survive suppression is worth in one scene."""

    level_db: np.ndarray  # [P]
    background_db: float
    mad_db: float
    n_true: int
    hits: np.ndarray  # [P + 1]
    squared_error: np.ndarray  # [P + 1, 3], summed over the hits


def rank_peaks(
    parts: Sequence[torch.Tensor], scenes: Sequence[Scenes], loading: float, options: DetectionOptions, grid: str
) -> list[Ranking]:
    """Refine the peaks of every scene once, with every threshold open."""
    # Suppression is applied afterwards: a separation this small only merges walks that ended at the same point.
    closed = {"max_sources": None, "separation_rad": 1e-9, "separation_m": 1e-9}
    opened = replace(options, max_db=1e3, mad_z=None, prominence_db=0.0, **closed)
    rankings: list[Ranking] = []
    for covariance, part in zip(parts, scenes, strict=True):
        setup = part.config.setup
        search = setup.search_grid(most_points=GRIDS[grid])
        level = 10 * mvdr_spectrum(covariance, setup.array, search, loading=loading).power.flatten(1).double().log10()
        median = level.median(1).values
        mad = (level - median[:, None]).abs().median(1).values
        found = detect_sources(covariance, setup, search, loading=loading, options=opened)
        rankings += [
            Ranking(s.position, 10 * s.power.log10().numpy(), float(median[b]), float(mad[b]), _truth(part, b))
            for b, s in enumerate(found)
        ]
    return rankings


def _truth(scenes: Scenes, b: int) -> torch.Tensor:
    return scenes.position[b][scenes.mask[b]].double()


def score_prefixes(rankings: Sequence[Ranking], separation_deg: float, separation_m: float) -> list[Score]:
    """Suppress neighbours, then match every prefix of what is left with the truth."""
    angle = math.radians(separation_deg)
    scores: list[Score] = []
    for ranking in rankings:
        level = torch.from_numpy(ranking.level_db)
        kept = nms_3d(ranking.position, level, separation=(angle, angle, separation_m), k=len(level))
        index = kept.index[: int(kept.count)]
        matches = [match(ranking.position[index[:n]], ranking.truth, GATE) for n in range(len(index) + 1)]
        scores.append(
            Score(
                level[index].numpy(),
                ranking.background_db,
                ranking.mad_db,
                len(ranking.truth),
                np.array([m.hits for m in matches]),
                np.stack([np.square(m.error[m.hit]).sum(0) for m in matches]),
            )
        )
    return scores


def prefix_length(score: Score, thresholds: Thresholds) -> int:
    """How many peaks pass."""
    contrast = score.level_db - score.background_db
    level = contrast
    if thresholds.rule == "excess":
        level = 10 * np.log10(np.maximum(10 ** (contrast / 10) - 1, 1e-12))
    least = max(thresholds.mad_z * MAD_TO_SIGMA * score.mad_db, thresholds.prominence_db)
    return int(((level >= level[:1] - thresholds.max_db) & (contrast >= least)).sum())


def figures(scores: Sequence[Score], thresholds: Thresholds) -> Row:
    """F1 and the rest at one setting of the thresholds."""
    length = np.array([prefix_length(s, thresholds) for s in scores])
    true = np.array([s.n_true for s in scores])
    hits = np.array([s.hits[n] for s, n in zip(scores, length, strict=True)]).sum()
    squared = np.stack([s.squared_error[n] for s, n in zip(scores, length, strict=True)]).sum(0)
    azimuth, elevation, r = np.sqrt(squared / hits) if hits else np.full(3, math.nan)
    return {
        "f1": 2 * hits / (length.sum() + true.sum()),
        "precision": hits / length.sum() if length.sum() else 0.0,
        "recall": hits / true.sum(),
        "ghosts_per_scene": (length.sum() - hits) / len(scores),
        "count_accuracy": float((length == true).mean()),
        "rmse_azimuth_deg": math.degrees(azimuth),
        "rmse_elevation_deg": math.degrees(elevation),
        "rmse_range_m": r,
    }


def check_against_detection(
    covariance: torch.Tensor, scenes: Scenes, rankings: Sequence[Ranking], options: DetectionOptions
) -> None:
    """The look-up finds what detection itself finds with the same options."""
    found = detect_sources(covariance, scenes.config.setup, loading=SHIPPED_LOADING, options=options)
    scores = score_prefixes(rankings[: len(scenes)], math.degrees(options.separation_rad), options.separation_m)
    for sources, score in zip(found, scores, strict=True):
        n = prefix_length(score, DEFAULT)
        level = 10 * sources.power.log10().numpy()
        if n != len(sources) or not np.allclose(level, score.level_db[:n], atol=1e-6):
            raise RuntimeError(
                f"the sweep keeps {n} peaks where detect_sources keeps {len(sources)}: their rules have drifted apart"
            )


def sweep_family(family: Family, share: float, report: Callable[[str], None]) -> list[Row]:
    """Every row of the table for one kind of covariance."""
    count = max(SCENES_AT_ONCE, round(family.n_scenes * share))
    scenes = [
        generate_scenes(family.system, SEED, range(i, min(i + SCENES_AT_ONCE, count)))
        for i in range(0, count, SCENES_AT_ONCE)
    ]
    parts = [family.estimate(part) for part in scenes]
    few = max(1, round(FEW_BATCHES * share))
    shipped = (math.degrees(SHIPPED.separation_rad), SHIPPED.separation_m)
    rows: list[Row] = []
    for loading in LOADINGS:
        report(f"{family.name}: loading {loading:g}")
        rankings = rank_peaks(parts, scenes, loading, SHIPPED, "reference")
        fixed = _fixed(family, loading, SHIPPED, "reference")
        rows += table(fixed, rankings, shipped, SWEPT)
        if loading == SHIPPED_LOADING:
            check_against_detection(parts[0], scenes[0], rankings, SHIPPED)
            for separation in SEPARATIONS:
                rows += table(fixed, rankings[: few * SCENES_AT_ONCE], separation, [DEFAULT])
    changed = [(replace(SHIPPED, window=window), grid) for window in WINDOWS for grid in GRIDS]
    changed += [(replace(SHIPPED, candidates=count), "reference") for count in CANDIDATES]
    for options, grid in changed:
        if (options, grid) != (SHIPPED, "reference"):
            report(f"{family.name}: window {options.window}, {options.candidates} candidates, {grid} grid")
            rankings = rank_peaks(parts[:few], scenes[:few], SHIPPED_LOADING, options, grid)
            rows += table(_fixed(family, SHIPPED_LOADING, options, grid), rankings, shipped, [DEFAULT])
    return rows


def _fixed(family: Family, loading: float, options: DetectionOptions, grid: str) -> Row:
    window = "x".join(map(str, options.window))
    columns: Row = {"covariance": family.name, "loading": loading, "grid": grid}
    return {**columns, "window": window, "candidates": options.candidates}


def table(
    fixed: Row, rankings: Sequence[Ranking], separation: tuple[float, float], swept: Sequence[Thresholds]
) -> list[Row]:
    """Rows for some thresholds."""
    scores = score_prefixes(rankings, *separation)
    fixed = {**fixed, "scenes": len(scores), "separation_deg": separation[0], "separation_m": separation[1]}
    return [{**fixed, **thresholds._asdict(), **figures(scores, thresholds)} for thresholds in swept]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """The table as CSV, four significant digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CSV_FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def select(rows: Sequence[Row], **wanted: str | float) -> list[Row]:
    """Rows with the given entries."""
    return [
        row
        for row in rows
        if all(row[k] == v or (isinstance(v, float) and math.isclose(float(row[k]), v)) for k, v in wanted.items())
    ]


def _shipped_columns() -> Row:
    fixed = _fixed(FAMILIES[0], SHIPPED_LOADING, SHIPPED, "reference")
    del fixed["covariance"]
    separation = {"separation_deg": math.degrees(SHIPPED.separation_rad), "separation_m": SHIPPED.separation_m}
    return {**fixed, **separation, **DEFAULT._asdict()}


def best_and_shipped(rows: Sequence[Row]) -> list[str]:
    """For each kind of covariance: F1 at the shipped defaults, and the best of the full sweep."""
    lines = []
    for family in dict.fromkeys(str(row["covariance"]) for row in rows):
        own = select(rows, covariance=family)
        most = max(int(row["scenes"]) for row in own)
        own = select(own, scenes=most)
        now = select(own, **_shipped_columns())[0]
        best = max(own, key=lambda row: float(row["f1"]))
        lines.append(
            f"{family:18s} {most:4d} scenes: F1 {now['f1']:.3f} (precision {now['precision']:.3f}, recall "
            f"{now['recall']:.3f}) at the defaults; best {best['f1']:.3f} at loading {best['loading']:g}, "
            f"{best['rule']} {best['max_db']:g} dB, z {best['mad_z']:g}"
        )
    return lines


def draw(rows: Sequence[Row], path: Path) -> None:
    """F1 against each setting, the others at their defaults; against max_db at the best loading."""
    figure = Figure(figsize=(18, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4, sharey=True)
    columns = _shipped_columns()
    for number, family in enumerate(dict.fromkeys(str(row["covariance"]) for row in rows)):
        own = select(rows, covariance=family)
        full = select(own, scenes=max(int(row["scenes"]) for row in own))
        few = select(own, scenes=min(int(row["scenes"]) for row in own))
        style = {"color": f"C{number}", "marker": ".", "label": family}
        _curve(axes[0, 0], _best_loading(full, columns, "peak"), "max_db", style)
        _curve(axes[0, 0], _best_loading(full, columns, "excess"), "max_db", {**style, "ls": ":"})
        for axis, name in zip(axes[0, 1:], ("mad_z", "prominence_db", "loading"), strict=True):
            _curve(axis, _others_shipped(full, columns, name), name, style)
        _curve(axes[1, 0], _others_shipped(few, columns, "separation_deg", "separation_m"), "separation_deg", style)
        _curve(axes[1, 1], _others_shipped(few, columns, "candidates"), "candidates", style)
        _curve(axes[1, 2], _others_shipped(few, columns, "window"), "window", style)
        _curve(axes[1, 3], _others_shipped(few, {**columns, "grid": "training"}, "window"), "window", style)
    titles = (
        *("max_db, best loading (dotted: of the excess)", "mad_z (0: no such test)", "prominence_db", "loading"),
        *("separation, degrees / metres", "candidates", "window, reference grid", "window, training grid"),
    )
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set(title=title, ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    shipped = (SHIPPED.max_db, DEFAULT.mad_z, DEFAULT.prominence_db, SHIPPED_LOADING)
    for axis, value in zip(axes[0], shipped, strict=True):
        axis.axvline(value, color="0.6", lw=1, zorder=0)
    axes[0, 3].set_xscale("log")
    for axis in axes[:, 0]:
        axis.set_ylabel("F1")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=100)


def _curve(axis: Axes, rows: Sequence[Row], name: str, style: dict[str, str]) -> None:
    x = [f"{r[name]:g} / {r['separation_m']:g}" if name == "separation_deg" else r[name] for r in rows]
    axis.plot(x, [row["f1"] for row in rows], **style)


def _others_shipped(rows: Sequence[Row], columns: Row, *free: str) -> list[Row]:
    """Rows in which everything but ``free`` is at its default, each setting once, in the order of the sweep."""
    chosen = select(rows, **{k: v for k, v in columns.items() if k not in free})
    unique = {tuple(row[name] for name in free): row for row in chosen}
    return sorted(unique.values(), key=lambda row: [_order(row[name]) for name in free])


def _order(value: str | float) -> float:
    if isinstance(value, str):
        return float(["x".join(map(str, window)) for window in WINDOWS].index(value))
    return value


def _best_loading(rows: Sequence[Row], columns: Row, rule: str) -> list[Row]:
    """F1 against max_db at the loading that is best at the shipped thresholds."""
    fixed = {**columns, "rule": rule}
    at_default = _others_shipped(rows, fixed, "loading")
    best = max(at_default, key=lambda row: float(row["f1"]))["loading"]
    return _others_shipped(rows, {**fixed, "loading": best}, "max_db")


def main() -> None:
    """Run the sweep and write its table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="a tenth of the scenes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    def report(text: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {text}", flush=True)

    rows = [row for family in FAMILIES for row in sweep_family(family, 0.1 if arguments.quick else 1.0, report)]
    write_table(rows, arguments.output / "detection_sweep.csv")
    draw(rows, arguments.output / "detection_sweep.png")
    report("written")
    print("\n".join(best_and_shipped(rows)))


if __name__ == "__main__":
    main()
