"""Workers of a study whose trials only wait a little, each in a process of its own that can be killed.

Usage: tuning_process.py STORAGE FOLDER TRIALS PAUSE_S

Reads one command a line and answers each with one line: ``start`` gives the number of a new worker, ``state N`` its
exit status, or "running". Workers are forked from this process, which does nothing else, once everything is imported.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from risfast.tune.options import HpoConfig, PrunerOptions
from risfast.tune.study import Result, open_study, work

PARAMETERS = ("optimiser.lr", "optimiser.weight_decay")


def config(storage: str, trials: int, **changes: Any) -> HpoConfig:
    """A study of two parameters, with fast signs of life."""
    values: dict[str, Any] = {"beat_s": 0.5, "attempts": 100, "pruner": PrunerOptions(kind="none"), **changes}
    return HpoConfig(storage=storage, trials=trials, parameters=PARAMETERS, **values)


def without_pictures(monkeypatch: Any) -> None:
    """Trainings draw nothing: it would take longer than they do, and their own tests look at the pictures."""
    for name in ("draw_curves", "draw_localisation"):
        monkeypatch.setattr(f"risfast.train.runs.{name}", lambda *arguments: None)


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


def run(storage: str, folder: str, trials: str, pause_s: str) -> None:
    """Be a worker."""
    with open_study(config(storage, int(trials)), Path(folder)) as opened:
        work(opened, Waiting(float(pause_s)), lambda line: None)


def forked(arguments: list[str]) -> int:
    """Number of a new worker, whose exit status is 0 where its work was done."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        run(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # and never back into the loop of its parent


def state(number: int) -> str:
    """What has become of a worker."""
    ended, status = os.waitpid(number, os.WNOHANG)
    return str(os.waitstatus_to_exitcode(status)) if ended else "running"


if __name__ == "__main__":
    for line in sys.stdin:
        word, *rest = line.split()
        print(forked(sys.argv[1:]) if word == "start" else state(int(rest[0])), flush=True)
