"""Hours in minutes: thousands of answers in one process, whose memory and latency must stay where they are.

``python -m bench.soak`` makes 2000 localisations, 10 000 detections on 300 different arrays and grids, and a live loop
whose frames come twice as fast as they can be located. ``--share 0.02`` does a fiftieth of it. It prints a table and
draws ``--picture``, and exits with 1 where memory grew or the live loop fell behind.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from risfast import Localizer, SearchGrid, SensorArray, Setup, detect_sources
from risfast.localize import ForgettingDetector, LiveLoop
from risfast.simulate import SystemConfig, generate_scenes
from risfast.steering import steering_vectors

LOCALISATIONS, DETECTIONS, PROBLEMS, FRAMES = 2000, 10_000, 300, 400
MOST_GROWTH = 100 << 20  # bytes, of the second half of a part over the end of its first quarter
_SCENES = 50


class Part(NamedTuple):
    """What one part of a soak measured."""

    name: str
    seconds: np.ndarray  # of each answer
    resident: np.ndarray  # bytes after each

    @property
    def growth(self) -> float:
        """Bytes that the median of the last quarter has over that of the second quarter; caches fill in the first."""
        n = len(self.resident)
        return float(np.median(self.resident[-max(n // 4, 1) :]) - np.median(self.resident[n // 4 : max(n // 2, 1)]))

    def line(self) -> str:
        p50, p99 = np.percentile(1e3 * self.seconds, (50, 99))
        most = 1e3 * self.seconds.max()
        peak, growth = self.resident.max() / 1e6, self.growth / 1e6
        return f"{self.name:14}{len(self.seconds):8}{p50:10.1f}{p99:10.1f}{most:10.1f}{peak:10.0f}{growth:10.1f}"


HEADER = f"{'':14}{'answers':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'most MB':>10}{'growth MB':>10}"


def resident_bytes() -> int:
    """What the process holds now."""
    return 4096 * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


def measured(name: str, answers: Iterator[Callable[[], object]], count: int) -> Part:
    """So many answers, one after the other."""
    seconds, resident = np.zeros(count), np.zeros(count)
    for number in range(count):
        answer = next(answers)
        began = time.perf_counter()
        answer()
        seconds[number] = time.perf_counter() - began
        resident[number] = resident_bytes()
    return Part(name, seconds, resident)


def localisations() -> Iterator[Callable[[], object]]:
    """Scenes of the reference system, with the model that comes with the package, of two lengths in turn."""
    localizer = Localizer.from_pretrained()
    batches = [generate_scenes(SystemConfig(n_snapshots=n), 1, range(_SCENES)) for n in (16, 64)]
    number = 0
    while True:
        scenes, one = batches[number % 2], number // 2 % _SCENES
        number += 1
        yield lambda s=scenes, i=one: localizer.localize(s.y[i], s.codes[i], s.channel[i])


def problems(count: int) -> list[tuple[Setup, SearchGrid]]:
    """Different arrays, each with a grid of its own."""
    rng, made = random.Random(0), []
    for _ in range(count):
        n_h, n_v = rng.randint(3, 9), rng.randint(3, 9)
        array = SensorArray.rectangular(n_h, n_v, rng.uniform(0.08, 0.15), 0.3)
        planes = tuple(sorted(rng.uniform(0.5, 8.0) for _ in range(rng.randint(1, 4))))
        grid = SearchGrid.box(rng.randint(21, 61), rng.randint(15, 41), planes, rng.uniform(0.6, 1.0), 0.5)
        made.append((Setup(array, sampling="direct"), grid))
    return made


def detections(count: int) -> Iterator[Callable[[], object]]:
    """Two sources in noise, on the problems in turn."""
    generator, number = torch.Generator().manual_seed(0), 0
    known = problems(count)
    while True:
        setup, grid = known[number % count]
        number += 1
        place = torch.rand(2, 2, dtype=torch.float64, generator=generator) - 0.5
        a = steering_vectors(setup.array, place[:, 0], 0.5 * place[:, 1], torch.tensor([1.0, 3.0]).double())
        n = setup.array.n_elements
        covariance = a.mT @ a.conj() + 0.1 * torch.eye(n, dtype=a.dtype)
        yield lambda c=covariance, s=setup, g=grid: detect_sources(c, s, g)


def live(count: int) -> tuple[Part, int, float]:
    """Frames twice as fast as they can be located: the part, how many were dropped, and the bound of latency."""
    setup, grid = problems(1)[0]
    detector = ForgettingDetector(setup, grid=grid)
    frame = torch.randn(256, setup.array.n_elements, dtype=torch.complex64)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        detector(frame)
        times.append(time.perf_counter() - began)
    pause = float(np.median(times)) / 2

    def frames() -> Iterator[torch.Tensor]:
        for _ in range(count):
            time.sleep(pause)
            yield frame

    latency, resident, longest, dropped = [], [], 0.0, 0
    for result in LiveLoop(detector).run(frames()):
        latency.append(result.latency_s)
        resident.append(resident_bytes())
        dropped, longest = dropped + result.dropped, max(longest, result.seconds)
    return Part("live, latency", np.array(latency), np.array(resident)), dropped, 2 * longest


def draw(path: Path, parts: list[Part]) -> None:
    """Memory and time over the answers."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for part in parts:
        share = np.linspace(0, 1, len(part.seconds))
        upper.plot(share, part.resident / 1e6, label=part.name)
        lower.plot(share, 1e3 * part.seconds, ".", ms=2, label=part.name)
    upper.set(ylabel="resident memory (MB)", title="A soak of one process")
    lower.set(ylabel="time of an answer (ms)", xlabel="share of the answers of a part", yscale="log")
    upper.legend()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the answers; 1 is all of them")
    parser.add_argument("--picture", type=Path, default=Path("soak.png"))
    given = parser.parse_args(arguments)
    if not 0 < given.share <= 1:
        parser.error("--share must lie in (0, 1]")

    def some(count: int) -> int:
        return max(round(given.share * count), 8)

    torch.set_num_threads(1)
    print(HEADER)
    parts = []
    for name, make, count in (
        ("localisations", localisations, some(LOCALISATIONS)),
        ("detections", lambda: detections(some(PROBLEMS)), some(DETECTIONS)),
    ):
        parts.append(measured(name, make(), count))
        print(parts[-1].line(), flush=True)
        gc.collect()
    part, dropped, bound = live(some(FRAMES))
    parts.append(part)
    print(part.line())
    late = int((part.seconds > bound).sum())
    print(f"live: {dropped} frames dropped, {late} results later than the bound of {1e3 * bound:.0f} ms")
    draw(given.picture, parts)
    grown = [part.name for part in parts if part.growth > MOST_GROWTH]
    if grown:
        print(f"memory grew: {', '.join(grown)}")
    return int(bool(grown) or late > 0 or dropped == 0)


if __name__ == "__main__":
    sys.exit(main())
