"""Runs the tiny training in processes of its own: killed at random instants, or two at a time.

Usage: training_process.py same FOLDER
       training_process.py kill FOLDER KILLS SEED
       training_process.py both FOLDER ROUNDS SEED
"same" is a run without dropout, whose result does not depend on the number of processes; its group must have had
threads, and leave none behind, for one that is still at work when the interpreter shuts down aborts the process.
"kill" makes children that train in FOLDER/killed and kills each after a random time, until so many died before their
end; it then ends that run, and makes the same one in FOLDER/whole without a break.
"both" trains in FOLDER/0, FOLDER/1 ... and each time lets another process try the same folder at a random instant,
which must be refused; FOLDER/whole is the run that nobody disturbed.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tiny_backbone import build, tiny

from risfast.io.durable import OwnedError
from risfast.train.backbone import train_backbone

_REFUSED = 7  # status of a process that found another in its folder


def config_of(kills: int) -> Any:
    """A training with enough steps for so many processes to die in it."""
    return tiny(
        optimiser={"steps": 6 * kills, "warmup": 5},
        validation={"every": kills, "capon_scenes": 0, "scenes": 4},
        machine={"checkpoint_every": 1, "log_every": 4},
    )


SAME = tiny(backbone={"options": {"dropout": 0.0}})


def silent(_: object) -> None:
    pass


def kill(folder: Path, kills: int, seed: int) -> None:
    rng, config = random.Random(seed), config_of(kills)
    done = 0
    while done < kills:
        child = os.fork()
        if child == 0:
            train_backbone(config, folder / "killed", silent, build=build)
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.6))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):  # it was through before the kill: nothing is left to interrupt
            raise SystemExit(f"the run ended after {done} kills; give it more steps")
        done += 1
    for name in ("killed", "whole"):  # after the last fork: a child must not inherit the threads of a training
        train_backbone(config, folder / name, silent, build=build)


def both(folder: Path, rounds: int, seed: int) -> None:
    importlib.import_module("torch._inductor")  # which determinism takes, once for all children: seconds
    rng = random.Random(seed)
    quiet = {"every": 60, "capon_scenes": 0, "scenes": 4}
    machine = {"checkpoint_every": 10, "log_every": 4}
    config = tiny(optimiser={"steps": 100, "warmup": 5}, validation=quiet, machine=machine)

    def child(run: Path) -> int:
        process = os.fork()
        if process == 0:
            try:
                train_backbone(config, run, silent, build=build)
            except OwnedError:
                os._exit(_REFUSED)
            os._exit(0)
        return process

    for number in range(rounds):
        run = folder / str(number)
        first = child(run)
        while not (run / "metrics.jsonl").is_file():  # from then on it is at work
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.2))
        for process, expected in ((child(run), _REFUSED), (first, 0)):
            _, status = os.waitpid(process, 0)
            if os.waitstatus_to_exitcode(status) != expected:
                raise SystemExit(f"round {number}: a process ended with {status}, not {expected}")
    train_backbone(config, folder / "whole", silent, build=build)


def group_threads() -> list[str]:
    """Names of the threads of this process that belong to a process group; none where the system does not tell."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def same(folder: Path) -> None:
    """A run that looks for the threads of its group, at work and after it."""
    at_work: list[str] = []

    def look(_: object) -> None:
        at_work[:] = group_threads()

    train_backbone(SAME, folder, look, build=build)
    if left := group_threads():
        raise SystemExit(f"threads outlive their process group: {left}")
    if not at_work and Path("/proc/self/task").is_dir():
        raise SystemExit("the threads of the process group have other names: the check above sees none")


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what in ("kill", "both"):
        {"kill": kill, "both": both}[what](Path(folder), int(rest[0]), int(rest[1]))
    else:
        same(Path(folder))
