"""Runs the tiny training in processes of its own: killed at random instants, or two at a time.

Usage: training_process.py once FOLDER
       training_process.py same FOLDER
       training_process.py kill FOLDER KILLS SEED
"same" is a run without dropout, whose result does not depend on the number of processes; it must leave no thread of
their group behind, for one that is still at work when the interpreter shuts down aborts the process. "kill" makes
children that train and kills each after a random time, until so many died before their end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from tiny_backbone import build, tiny

from risfast.train.backbone import train_backbone

CONFIG = tiny(
    optimiser={"steps": 60, "warmup": 5},
    validation={"every": 10, "capon_scenes": 0, "scenes": 4},
    machine={"checkpoint_every": 1, "log_every": 4},
)


SAME = tiny(backbone={"options": {"dropout": 0.0}})


def silent(_: object) -> None:
    pass


def kill(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    done = 0
    while done < kills:
        child = os.fork()
        if child == 0:
            train_backbone(CONFIG, folder, silent, build=build)
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.6))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):  # it was through before the kill: nothing is left to interrupt
            raise SystemExit(f"the run ended after {done} kills; give it more steps")
        done += 1
    train_backbone(CONFIG, folder, silent, build=build)


def group_threads() -> list[str]:
    """Names of the threads of this process that belong to a process group; none where the system does not tell."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "kill":
        kill(Path(folder), int(rest[0]), int(rest[1]))
    else:
        train_backbone(SAME if what == "same" else CONFIG, Path(folder), silent, build=build)
        if left := group_threads():
            raise SystemExit(f"threads outlive their process group: {left}")
