"""What a study costs beside the training that it is made of.

    python -m bench.study                                            # SQLite and journal, in a temporary folder
    python -m bench.study --storage postgresql://user@host/database

runs the trials of the preset ``quick`` with everything but the training: the sampler chooses, each validation is
reported and asked whether to prune, the result is stored. One real training of the same configuration, without a study,
says what that is a share of; it is the shortest that any preset has, so others pay less. The share of processor times
does not depend on what else the machine does. The times of the wall hold the waiting for disks and servers too; a busy
machine makes them longer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from risfast.train.distributed import machine_settings
from risfast.tune.objectives import TrainingObjective
from risfast.tune.options import PRESETS, HpoConfig, PrunerOptions
from risfast.tune.study import Result, open_study, work


class Reports:
    """A training without the training: as many reports as it has validations, and a value."""

    def __init__(self, config: HpoConfig) -> None:
        base = config.base
        self._steps = range(base.validation.every, base.optimiser.steps + 1, base.validation.every)

    def __call__(
        self, choice: Mapping[str, Any], seed: int, folder: Path, report: Callable[[int, float], None]
    ) -> Result:
        """As a training reports."""
        value = (seed % 1000) / 1000
        for step in self._steps:
            report(step, value)
        return Result(value, {"validations": {step: value for step in self._steps}, "train_seconds": 0.0})


class Seconds(NamedTuple):
    """Of a trial without its training."""

    processor: float
    wall: float


def seconds_of_study(config: HpoConfig, folder: Path) -> list[Seconds]:
    """What each trial takes without its training, in order."""
    with open_study(config, folder) as opened:
        times = [Seconds(time.process_time(), time.monotonic())]
        work(opened, Reports(config), lambda line: times.append(Seconds(time.process_time(), time.monotonic())))
    return [Seconds(b.processor - a.processor, b.wall - a.wall) for a, b in itertools.pairwise(times)]


def seconds_of_training(config: HpoConfig, folder: Path) -> float:
    """Processor seconds of one training, on one thread."""
    began = time.process_time()
    TrainingObjective(config)({}, 0, folder, lambda step, value: None)
    return time.process_time() - began


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="+", default=["sqlite", "journal"])
    parser.add_argument("--trials", type=int, default=100)
    chosen = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # No trial is given up: each makes all of its reports, and is asked after each of them.
    config = replace(PRESETS["quick"]().study, trials=chosen.trials, pruner=PrunerOptions(startup=10**6))
    with tempfile.TemporaryDirectory() as place, machine_settings(1, False):
        training = seconds_of_training(config, Path(place) / "training")
        print(f"one training: {training:.1f} s")
        for storage in chosen.storage:
            named = replace(config, storage=storage, name=f"bench-{time.time_ns()}")
            times = seconds_of_study(named, Path(place) / storage.partition(":")[0])
            processor, wall = (statistics.mean(column) for column in zip(*times, strict=True))
            late = statistics.mean(t.processor for t in times[-10:])
            print(
                f"{storage.partition(':')[0]}: {1e3 * processor:.0f} ms of processor a trial over {len(times)} trials "
                f"({1e3 * late:.0f} ms at the end), {100 * processor / training:.2f} % of the training's; "
                f"{1e3 * wall:.0f} ms of the wall"
            )


if __name__ == "__main__":
    main()
