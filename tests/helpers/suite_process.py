"""Runs a suite in processes that are killed at random instants until so many died, and once more to its end.

Usage: suite_process.py MODEL FOLDER KILLS SEED
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from tiny_suite import tiny_config

from risfast.evaluate.suite import SuiteConfig, run_suite


def config_of(model: Path) -> SuiteConfig:
    return tiny_config(model, scenes=33)


def main(model: Path, folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    died = 0
    while died < kills:
        child = os.fork()
        if child == 0:
            run_suite(config_of(model), folder)
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.5))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        died += 1
        if not os.WIFSIGNALED(status):  # through before the kill: nothing is left to interrupt
            break
    run_suite(config_of(model), folder)


if __name__ == "__main__":
    model, folder, kills, seed = sys.argv[1:]
    main(Path(model), Path(folder), int(kills), int(seed))
