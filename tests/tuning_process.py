"""A worker of a study whose trials only wait a little, in a process of its own that can be killed.

Usage: tuning_process.py STORAGE FOLDER TRIALS PAUSE_S
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from risfast.tune.options import HpoConfig, PrunerOptions
from risfast.tune.study import open_study
from risfast.tune.worker import Result, work

PARAMETERS = ("optimiser.lr", "optimiser.weight_decay")


def config(storage: str, trials: int, **changes: Any) -> HpoConfig:
    """A study of two parameters, with fast signs of life."""
    values: dict[str, Any] = {"beat_s": 0.5, "attempts": 100, "pruner": PrunerOptions(kind="none"), **changes}
    return HpoConfig(storage=storage, trials=trials, parameters=PARAMETERS, **values)


class Waiting:
    """An objective that waits and reports, and whose value is a function of its parameters alone."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s

    def __call__(
        self, choice: Mapping[str, Any], seed: int, folder: Path, report: Callable[[int, float], None]
    ) -> Result:
        for step in range(3):
            time.sleep(self.pause_s / 3)
            report(step, 1.0 / (step + 1))
        return Result(choice["optimiser.lr"] + choice["optimiser.weight_decay"], {"seed": seed, "pid": os.getpid()})


if __name__ == "__main__":
    storage, folder, trials, pause_s = sys.argv[1:]
    with open_study(config(storage, int(trials)), Path(folder)) as opened:
        work(opened, Waiting(float(pause_s)), lambda line: None)
