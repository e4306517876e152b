"""False alarms of ``detect_sources`` on noise, beside the rate that is asked for.

    OMP_NUM_THREADS=1 python -m bench.false_alarms

takes an hour or more on one core, most of it for the 64 elements, and writes ``bench/results/false_alarms.csv``
and ``.png``; ``--arrays`` measures some of them again and keeps the others. Noise is white, and a scene in which
anything is found counts.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import beta

from risfast import Region, SensorArray, Setup, detect_sources

SEED = 20261130
SCENES_AT_ONCE = 50
MOST_POINTS = 1 << 17  # of a map; peaks are refined off the grid
FALSE_ALARM = 1e-2
WITHIN = 2.0  # times the rate that is asked for, and one over it
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def spiral(n: int, radius_m: float, wavelength_m: float) -> SensorArray:
    """A Vogel spiral in the x-y plane."""
    index = torch.arange(n, dtype=torch.float64) + 0.5
    radius, turn = radius_m * (index / n).sqrt(), index * GOLDEN_ANGLE
    positions = torch.stack([radius * turn.cos(), radius * turn.sin(), torch.zeros_like(turn)], 1)
    return SensorArray(positions, wavelength_m)


def lattice(n: int, spacing_m: float, wavelength_m: float) -> SensorArray:
    """A cube of n^3 elements."""
    axis = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * spacing_m
    return SensorArray(torch.cartesian_prod(axis, axis, axis), wavelength_m)


NEAR = Region((-math.pi / 3, math.pi / 3), (-math.pi / 6, math.pi / 6), (0.3, 1.5))
SETUPS = {
    "line of 8": Setup(SensorArray.linear(8, 0.5, 1.0)),
    "ring of 8": Setup(SensorArray.circular(8, 0.64, 1.0, plane="xz")),
    "plane of 6 x 6": Setup(SensorArray.rectangular(6, 6, 0.5, 1.0)),
    "cube of 27": Setup(lattice(3, 0.45, 1.0)),
    "spiral of 64": Setup(spiral(64, 0.71, 343 / 4000), NEAR),
}


class Rate(NamedTuple):
    """How many scenes of noise have a source."""

    array: str
    snapshots: int
    scenes: int
    alarms: int
    rate: float
    rate_low: float  # Ends of the interval that holds the rate with 95 %
    rate_high: float


def snapshot_counts(n: int) -> tuple[int, int, int]:
    """One, too few for the covariance to have full rank, and many."""
    return 1, n // 2, 10 * n


def noise_covariances(random: np.random.Generator, scenes: int, n: int, snapshots: int) -> torch.Tensor:
    """Sample covariances (scenes, N, N) of white noise."""
    shape = (scenes, n, snapshots)
    x = random.standard_normal(shape) + 1j * random.standard_normal(shape)
    return torch.from_numpy(x @ x.conj().swapaxes(1, 2) / (2 * snapshots))


def measured(name: str, snapshots: int, scenes: int) -> Rate:
    """The rate of one array with so many snapshots."""
    setup, random, alarms = SETUPS[name], np.random.default_rng(SEED), 0
    grid = setup.search_grid(most_points=MOST_POINTS)
    for done in range(0, scenes, SCENES_AT_ONCE):
        count = min(SCENES_AT_ONCE, scenes - done)
        noise = noise_covariances(random, count, setup.array.n_elements, snapshots)
        found = detect_sources(noise, setup, grid, snapshots=snapshots, false_alarm=FALSE_ALARM)
        alarms += sum(len(sources) > 0 for sources in found)
    low = float(beta.ppf(0.025, alarms, scenes - alarms + 1)) if alarms else 0.0
    high = float(beta.ppf(0.975, alarms + 1, scenes - alarms)) if alarms < scenes else 1.0
    return Rate(name, snapshots, scenes, alarms, alarms / scenes, low, high)


def write_table(rows: Sequence[Rate], path: Path) -> None:
    """One line for each array and number of snapshots."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Rate._fields)
        table.writerows([f"{v:.5g}" if isinstance(v, float) else v for v in row] for row in rows)


def read_table(path: Path) -> list[Rate]:
    """What :func:`write_table` wrote; nothing where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        kinds = [str, int, int, int, float, float, float]
        return [Rate(*(kind(v) for kind, v in zip(kinds, row, strict=True))) for row in list(csv.reader(file))[1:]]


def draw(rows: Sequence[Rate], path: Path) -> None:
    """Rates with their intervals, and the band that they should lie in."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhspan(FALSE_ALARM / WITHIN, FALSE_ALARM * WITHIN, color="0.92", label="within a factor of two")
    axes.axhline(FALSE_ALARM, color="0.5", linewidth=1, label="asked for")
    for place, row in enumerate(rows):
        spread = [[row.rate - row.rate_low], [row.rate_high - row.rate]]
        axes.errorbar(place, row.rate, spread, fmt="o", color="C0", capsize=3)
    axes.set_xticks(range(len(rows)), [f"{row.array}\nL = {row.snapshots}" for row in rows], rotation=60, fontsize=7)
    axes.set_ylabel("scenes of noise with a source")
    axes.set_ylim(0, None)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write after each row, so that a run which is stopped leaves what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2000, help="of each array and number of snapshots")
    parser.add_argument("--arrays", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    table = given.output / "false_alarms.csv"
    known = {(row.array, row.snapshots): row for row in read_table(table)}
    for name in given.arrays:
        for snapshots in snapshot_counts(SETUPS[name].array.n_elements):
            last = known[name, snapshots] = measured(name, snapshots, given.scenes)
            print(f"{name}, L = {snapshots}: {last.rate:.4f} ({last.rate_low:.4f} .. {last.rate_high:.4f})", flush=True)
            rows = sorted(known.values(), key=lambda row: list(SETUPS).index(row.array))
            write_table(rows, table)
            draw(rows, given.output / "false_alarms.png")


if __name__ == "__main__":
    main()
